"""Verified robustness of small networks: bounds that no perturbation within epsilon can leave.

A report says of each image whether it is proved, and by what margins::

    report = certificates.certify(classifier, images, labels, epsilon=1 / 255)

The network is not rewritten: its program is traced, and each operation in it has a rule.
`defenses.certify_smoothed` is the other kind of certificate, of a classifier smoothed with noise: in
l2, of any network, and with a small probability of error.
"""

from jaxrobust.certificates.bounds import (
    Bounds,
    Certified,
    certify,
    crown_bounds,
    ibp_bounds,
    margin_bounds,
)

__all__ = ["Bounds", "Certified", "certify", "crown_bounds", "ibp_bounds", "margin_bounds"]
