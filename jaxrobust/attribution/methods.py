"""All maps by name, called alike: what a study loops over."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxrobust.attribution import class_activation, gradients
from jaxrobust.attribution.occlusion import occlusion
from jaxrobust.types import Array, LogitsFn


@dataclasses.dataclass(frozen=True)
class Method:
    """A function that draws maps, called as all others are.

    Attributes:
      function: ``(logits_fn, images, labels, **options)`` -> maps float32 [B, H, W].
      is_signed: Whether its maps have negative values: evidence against the class.
      needs_layer: Whether it looks at a layer: not for a network whose `layers` have no default.
      takes_key: Whether it draws random numbers, from the option `key`.

    Example:
      >>> import jax.numpy as jnp
      >>> method = METHODS["saliency"]
      >>> method(None, lambda images: images.mean((1, 2)), jnp.ones((1, 4, 4, 3))).shape
      (1, 4, 4)
    """

    function: Callable[..., Array]
    is_signed: bool = False
    needs_layer: bool = False
    takes_key: bool = False

    def __call__(
        self,
        key: Array | None,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array | None = None,
        **options: Any,
    ) -> Array:
        """The maps of images.

        Args:
          key: A PRNG key, for a method that takes one.
          logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
          images: float32 [B, H, W, C] in [0, 1].
          labels: int [B], the classes to explain; None explains the predicted ones.
          **options: The function's own.

        Returns:
          float32 [B, H, W].
        """
        if self.takes_key:
            options["key"] = key
        return self.function(logits_fn, images, labels, **options)


METHODS: dict[str, Method] = {
    "saliency": Method(gradients.saliency),
    "smooth_grad": Method(gradients.smooth_grad, takes_key=True),
    "input_x_gradient": Method(gradients.input_x_gradient, is_signed=True),
    "integrated_gradients": Method(gradients.integrated_gradients, is_signed=True),
    "grad_cam": Method(class_activation.grad_cam, needs_layer=True),
    "grad_cam_plus_plus": Method(class_activation.grad_cam_plus_plus, needs_layer=True),
    "hires_cam": Method(class_activation.hires_cam, needs_layer=True),
    "layer_cam": Method(class_activation.layer_cam, needs_layer=True),
    "eigen_cam": Method(class_activation.eigen_cam, needs_layer=True),
    "score_cam": Method(class_activation.score_cam, needs_layer=True),
    "occlusion": Method(occlusion, is_signed=True),
}
"""The methods by their names."""
