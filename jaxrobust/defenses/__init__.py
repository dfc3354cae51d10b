"""Defences: functions from images to logits, built from other such functions.

One that compresses every image before the classifier sees it::

    defended = Preprocessed(classifier, JPEG(quality=75))

Each is a frozen dataclass that is a pytree, so a compiled attack serves it with other weights too. To
attack a defence adaptively, attack it; an attacker who does not know of it attacks `classifier` and
shows what he found to `defended`.
"""

from jaxrobust.defenses.averaging import Ensemble, Expectation
from jaxrobust.defenses.blur import GaussianBlur, gaussian_blur
from jaxrobust.defenses.certificate import (
    ABSTAIN,
    Certificate,
    Sampling,
    certified_within,
    certify_smoothed,
    lower_confidence_bound,
    predict,
)
from jaxrobust.defenses.jpeg_codec import JPEG, jpeg
from jaxrobust.defenses.preprocessed import Preprocessed
from jaxrobust.defenses.smoothing import Smoothed, smoothed_counts

__all__ = [
    "ABSTAIN",
    "JPEG",
    "Certificate",
    "Ensemble",
    "Expectation",
    "GaussianBlur",
    "Preprocessed",
    "Sampling",
    "Smoothed",
    "certified_within",
    "certify_smoothed",
    "gaussian_blur",
    "jpeg",
    "lower_confidence_bound",
    "predict",
    "smoothed_counts",
]
