"""All maps by name, called alike: what a study loops over."""

from collections.abc import Callable
from typing import Any

from jaxrobust.attribution.class_activation import (
    eigen_cam,
    grad_cam,
    grad_cam_plus_plus,
    hires_cam,
    layer_cam,
    score_cam,
)
from jaxrobust.attribution.gradients import (
    input_x_gradient,
    integrated_gradients,
    saliency,
    smooth_grad,
)
from jaxrobust.attribution.occlusion import occlusion
from jaxrobust.types import Array, LogitsFn


def _without_key(function: Callable[..., Array]) -> Callable[..., Array]:
    def method(
        key: Array,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array | None = None,
        **options: object,
    ) -> Array:
        return function(logits_fn, images, labels, **options)

    return method


def _smooth_grad(
    key: Array, logits_fn: LogitsFn, images: Array, labels: Array | None = None, **options: Any
) -> Array:
    return smooth_grad(logits_fn, images, labels, key=key, **options)


METHODS: dict[str, Callable[..., Array]] = {
    "saliency": _without_key(saliency),
    "smooth_grad": _smooth_grad,
    "input_x_gradient": _without_key(input_x_gradient),
    "integrated_gradients": _without_key(integrated_gradients),
    "grad_cam": _without_key(grad_cam),
    "grad_cam_plus_plus": _without_key(grad_cam_plus_plus),
    "hires_cam": _without_key(hires_cam),
    "layer_cam": _without_key(layer_cam),
    "eigen_cam": _without_key(eigen_cam),
    "score_cam": _without_key(score_cam),
    "occlusion": _without_key(occlusion),
}
"""Name -> (key, logits_fn, images, labels=None, **options) -> maps float32 [B, H, W].

The options are the function's own. Only smooth_grad uses the key.
"""

SIGNED: frozenset[str] = frozenset({"input_x_gradient", "integrated_gradients", "occlusion"})
"""Methods whose maps have negative values: evidence against the class."""

NEEDS_LAYER: frozenset[str] = frozenset(
    {"grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam", "eigen_cam", "score_cam"}
)
"""Methods that look at a layer: not for a network whose `layers` have no default."""
