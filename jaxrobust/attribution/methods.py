"""All attribution methods by name, with the same arguments, for loops over methods."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxrobust.attribution import class_activation, gradients
from jaxrobust.attribution.occlusion import occlusion
from jaxrobust.types import Array, LogitsFn


@dataclasses.dataclass(frozen=True)
class Method:
    """An attribution method that is called with the same arguments as all others.

    Attributes:
      function: ``(logits_fn, images, labels, **options)`` -> maps float32 [B, H, W].
      is_signed: Whether its maps can be negative, which means evidence against the class.
      needs_layer: Whether it looks at a layer. It then needs a network whose `layers` have a default.
      takes_key: Whether it draws random numbers with the option `key`.

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
        """Computes the maps of images.

        Args:
          key: A PRNG key. It is used only by methods that take one, and may otherwise be None.
          logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
          images: float32 [B, H, W, C] in [0, 1].
          labels: int [B], the classes to explain; by default the predicted classes.
          **options: Further arguments of the function.

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
"""The attribution methods by name."""
