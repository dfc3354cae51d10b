"""Verified robustness of small networks, by bounds of their logits over all images within epsilon.

A report says for each image whether its label is proved, and with which margins::

    report = certificates.certify(classifier, images, labels, epsilon=1 / 255)

The network need not be rewritten: its program is traced, and each operation has a rule. For
certificates of a classifier that is smoothed with noise, see `defenses.certify_smoothed`: these are in
l2, for any network, and have a small probability of error.
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
