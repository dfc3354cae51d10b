"""Saliency and Grad-CAM: which pixels, and which regions, a class's logit hangs on."""

import functools

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation
from jaxrobust.attribution.layers import activation_and_gradient, layer_shapes
from jaxrobust.types import Array, LogitsFn


def saliency(logits_fn: LogitsFn, images: Array, labels: Array | None = None) -> Array:
    """The largest absolute gradient of a class's logit over the channels of each pixel.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.

    Returns:
      float32 [B, H, W], not negative, in logits per pixel unit.

    Raises:
      TypeError: Integer images, fractional labels.
      ValueError: Shapes that do not fit, images outside [0, 1], labels outside 0 .. K - 1.

    Example:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([2 * x[:, 0, 0, 0], x[:, 0, 1, 0]], axis=1)
      >>> saliency(logits_fn, jnp.ones((1, 1, 2, 1)), jnp.array([0])).tolist()
      [[[2.0, 0.0]]]

    References:
      Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks", 2013, section 3.1,
      https://arxiv.org/abs/1312.6034
    """
    return _saliency(*_checked(logits_fn, images, labels))


def grad_cam(
    logits_fn: LogitsFn, images: Array, labels: Array | None = None, layer: str | None = None
) -> Array:
    """Grad-CAM: a layer's channels weighted by their mean gradient, what is positive of their sum.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], calling a linen module: a
        Classifier, or `lambda x: module.apply(variables, x)`.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: Path of a layer with an output [H', W', C'], as `layer_shapes` lists them; None takes
        the last one of more than one pixel.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: Integer images, fractional labels.
      ValueError: Shapes that do not fit, images outside [0, 1], labels outside 0 .. K - 1; a layer
        that does not exist, has no [H', W', C'] output or is called twice. The message lists those
        that will do.

    References:
      Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
      Localization", ICCV 2017, equations 1 and 2, https://arxiv.org/abs/1610.02391
    """
    return _grad_cam(*_checked(logits_fn, images, labels), layer)


def default_layer(logits_fn: LogitsFn, image_shape: tuple[int, ...]) -> str | None:
    """The layer that `grad_cam` takes by default: the last one of more than one pixel.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      image_shape: (H, W, C).

    Returns:
      Its path, or None for a network that has no such layer.
    """
    return _last_spatial(layer_shapes(logits_fn, image_shape))


def _last_spatial(shapes: dict[str, tuple[int, ...]]) -> str | None:
    large = [p for p, shape in shapes.items() if len(shape) == 3 and shape[0] * shape[1] > 1]
    return large[-1] if large else None


def _checked(
    logits_fn: LogitsFn, images: Array, labels: Array | None
) -> tuple[LogitsFn, Array, Array | None]:
    images = jnp.asarray(images)
    if labels is not None:
        labels = jnp.asarray(labels)
    checks.images_and_labels(images, jnp.zeros(images.shape[:1], int) if labels is None else labels)
    function, images = compilation.as_argument(logits_fn), images.astype(jnp.float32)
    num_classes = compilation.logits_shape(function, images)[1]
    if not checks.is_traced(images, labels):
        checks.value_range(images)
        if labels is not None:
            checks.label_range("labels", labels, num_classes)
    return function, images, labels


@compilation.jit
def _saliency(logits_fn: LogitsFn, images: Array, labels: Array | None) -> Array:
    def one(image: Array, label: Array) -> Array:
        gradient = jax.grad(lambda x: logits_fn(x[None])[0, label])(image)
        return jnp.max(jnp.abs(gradient), axis=-1)

    if labels is None:
        labels = jnp.argmax(logits_fn(images), axis=-1)
    return jax.vmap(one)(images, labels)


@functools.partial(compilation.jit, static_argnames="layer")
def _grad_cam(logits_fn: LogitsFn, images: Array, labels: Array | None, layer: str | None) -> Array:
    height, width = images.shape[1:3]
    layer, shape = _spatial_layer(layer_shapes(logits_fn, images.shape[1:]), layer)

    def one(image: Array, label: Array) -> Array:
        activation, gradient = activation_and_gradient(logits_fn, image, label, layer, shape)
        weights = jnp.mean(gradient, axis=(0, 1))
        heat = jax.nn.relu(activation @ weights)
        return jax.image.resize(heat, (height, width), "bilinear")

    if labels is None:
        labels = jnp.argmax(logits_fn(images), axis=-1)
    return jax.vmap(one)(images, labels)


def _spatial_layer(
    shapes: dict[str, tuple[int, ...]], layer: str | None
) -> tuple[str, tuple[int, ...]]:
    """The layer asked for, or the last spatial one, with its shape."""
    spatial = {path: shape for path, shape in shapes.items() if len(shape) == 3}
    if layer is None:
        layer = _last_spatial(shapes)
        if layer is None:
            raise ValueError(
                "The network has no layer with an output of [H, W, C], which Grad-CAM needs; "
                + (
                    f"its layers are {', '.join(shapes)}."
                    if shapes
                    else "it calls no linen module."
                )
            )
    if layer not in spatial:
        described = ", ".join(f"{path} {list(shape)}" for path, shape in spatial.items())
        reason = "has no output of [H, W, C]" if layer in shapes else "is no layer of the network"
        raise ValueError(f"`layer` {layer!r} {reason}; choose one of: {described}.")
    return layer, spatial[layer]
