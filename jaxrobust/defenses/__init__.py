"""Defences: functions from images to logits that wrap other such functions.

This one compresses every image before the classifier sees it::

    defended = Preprocessed(classifier, JPEG(quality=75))

Each defence is a frozen dataclass and a pytree, so that a compiled attack can be reused with other
weights. A detector scores images instead of changing them: see `detection_threshold`.
An adaptive attack attacks `defended`. An attacker who does not know the defence attacks
`classifier`, and the result is evaluated on `defended`.
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
from jaxrobust.defenses.detection import (
    BitDepth,
    MedianSmoothing,
    confidence_score,
    detection_threshold,
    squeezing_score,
)
from jaxrobust.defenses.jpeg_codec import JPEG, jpeg
from jaxrobust.defenses.preprocessed import Preprocessed
from jaxrobust.defenses.smoothing import Smoothed, smoothed_counts

__all__ = [
    "ABSTAIN",
    "JPEG",
    "BitDepth",
    "Certificate",
    "Ensemble",
    "Expectation",
    "GaussianBlur",
    "MedianSmoothing",
    "Preprocessed",
    "Sampling",
    "Smoothed",
    "certified_within",
    "certify_smoothed",
    "confidence_score",
    "detection_threshold",
    "gaussian_blur",
    "jpeg",
    "lower_confidence_bound",
    "predict",
    "smoothed_counts",
    "squeezing_score",
]
