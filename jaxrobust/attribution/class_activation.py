"""Class activation maps: which regions a class's logit hangs on, seen from one layer.

With A [H', W', C'] the layer's output, g the gradient of the class's logit by it, both per channel k:

    grad_cam             relu( sum_k mean(g_k) A_k )
    grad_cam_plus_plus   relu( sum_k w_k A_k ),  w_k = sum(relu(g_k) / (2 + sum(A_k) g_k))
    hires_cam            relu( sum_k g_k A_k )
    layer_cam            relu( sum_k relu(g_k) A_k )
    eigen_cam            relu( A v ), v the first right singular vector of A as [H' W', C']
    score_cam            relu( sum_k w_k A_k ),  w the softmax of the logits of the image masked by A_k

The layer is, unless another is named, the last map of one image that everything goes through: of a
residual network the last sum behind its activation (see `layers`, which lists them all). Tokens
[T, C] of a transformer are drawn where they stand in the image; `reshape` says where if that cannot be
followed.

All are enlarged bilinearly to the image, each position drawn where it stands, and not negative. Only
their shape is defined, not their scale: compare maps by rank or cosine, and draw each over its own
maximum.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, programs
from jaxrobust.attribution.arguments import checked
from jaxrobust.attribution.layers import Layer, chosen, layers_of, program_of
from jaxrobust.attribution.views import View
from jaxrobust.programs.lines import Value, stop_behind
from jaxrobust.programs.tracing import Program
from jaxrobust.types import Array, LogitsFn

Reshape = Callable[[Array], Array] | tuple[int, int] | None


def grad_cam(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    layer: str | None = None,
    *,
    reshape: Reshape = None,
) -> Array:
    """Grad-CAM: a layer's channels weighted by their mean gradient, what is positive of their sum.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function, in any
        framework and any floating type.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: Name of a layer that is a map of one image, as `layers` lists them; None takes the last
        one that everything goes through and that is read at more than one position.
      reshape: Where tokens stand, if that is not to be followed through the network: a function
        [T, C] -> [H', W', C'], or (H', W') of the last H' * W' tokens, row by row.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: Integer images, fractional labels, a `Stochastic` classifier, a `reshape` that is
        neither a function nor two integers.
      ValueError: Shapes that do not fit, images outside [0, 1], labels outside 0 .. K - 1; a layer
        that does not exist or is no map of one image: the message says why, and which will do. A
        `reshape` that does not fit the tokens.

    Example:
      >>> weights = jnp.array([[1.0, 0.0], [0.0, 2.0]])[None, None]
      >>> def logits_fn(images):
      ...     features = jax.lax.conv_general_dilated(
      ...         images, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      ...     )
      ...     return features.sum((1, 2))
      >>> images = jnp.array([[[[0.5, 0.0], [0.0, 1.0]]]])
      >>> grad_cam(logits_fn, images, jnp.array([1])).tolist()
      [[[0.0, 2.0]]]

    References:
      Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
      Localization", ICCV 2017, equations 1 and 2, https://arxiv.org/abs/1610.02391
    """
    arguments = (logits_fn, images, labels, layer, reshape)
    return _explained(_from_gradient, *arguments, combine=_grad_cam)


def grad_cam_plus_plus(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    layer: str | None = None,
    *,
    reshape: Reshape = None,
) -> Array:
    """Grad-CAM++: a layer's channels weighted by positive gradients, each position by its own alpha.

    The score is Y = exp(f) of the logit f. In a piecewise linear network its n-th derivative by an
    activation is exp(f) g^n, so alpha = g^2 / (2 g^2 + sum(A) g^3) = 1 / (2 + sum(A) g), computed in
    the second form because powers of small gradients vanish in float32. In the weights exp(f) is one
    factor for a whole map and left out: it would overflow.

    Behind a ReLU the denominator is at least 2 wherever the gradient is positive, and only there does
    alpha count. Where activations are signed it can come close to 0, and one position would drown all
    others: alpha is 0 where the denominator is within 0.001 of 0.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`.
      reshape: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
      WACV 2018, section 3.2 (alpha for the exponential score, weights), https://arxiv.org/abs/1710.11063
    """
    arguments = (logits_fn, images, labels, layer, reshape)
    return _explained(_from_gradient, *arguments, combine=_grad_cam_plus_plus)


def hires_cam(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    layer: str | None = None,
    *,
    reshape: Reshape = None,
) -> Array:
    """HiResCAM: activation times gradient at each position; what is positive of the channels' sum.

    Unlike Grad-CAM's averaged gradients it points at positions that the logit hangs on. Behind a
    global average followed by a dense layer the two are the same.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`.
      reshape: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
      neural networks", 2020, https://arxiv.org/abs/2011.08891
    """
    arguments = (logits_fn, images, labels, layer, reshape)
    return _explained(_from_gradient, *arguments, combine=_hires_cam)


def layer_cam(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    layer: str | None = None,
    *,
    reshape: Reshape = None,
) -> Array:
    """LayerCAM: activations weighted by the positive gradient of their own position.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`; the method is meant for early, large layers too.
      reshape: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
      Transactions on Image Processing 2021, equations 6 and 7, https://doi.org/10.1109/TIP.2021.3089943
    """
    arguments = (logits_fn, images, labels, layer, reshape)
    return _explained(_from_gradient, *arguments, combine=_layer_cam)


def eigen_cam(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    layer: str | None = None,
    *,
    reshape: Reshape = None,
) -> Array:
    """EigenCAM: a layer's output projected onto its first principal component.

    It needs no gradient and knows no class. As in the paper the output is not centred. A singular
    vector has no sign of its own: the one is taken whose projection sums to at least 0, which makes
    the map of a layer behind a ReLU positive wherever anything is active.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B]; checked but not used, so that all maps are called alike.
      layer: As in `grad_cam`.
      reshape: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Muhammad, Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
      section III, https://arxiv.org/abs/2008.00299
    """
    return _explained(_eigen_cam, logits_fn, images, labels, layer, reshape)


def score_cam(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    layer: str | None = None,
    *,
    reshape: Reshape = None,
) -> Array:
    """Score-CAM: a layer's channels weighted by the logit of the image seen through them.

    Each channel is enlarged to the image and scaled to [0, 1]; the image times that mask gives a
    logit, and the softmax of the logits over the channels gives the weights. (The baseline that the
    paper subtracts from all of them cancels.) A constant channel masks everything. It needs no
    gradient, but one forward pass per channel: they run one after another, so that memory does not
    grow with their number.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; None explains the predicted ones.
      layer: As in `grad_cam`.
      reshape: As in `grad_cam`.

    Returns:
      float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

    Raises:
      TypeError: As `grad_cam`.
      ValueError: As `grad_cam`.

    References:
      Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
      CVPR workshops 2020, equations 5 to 8, https://arxiv.org/abs/1910.01279
    """
    return _explained(_score_cam, logits_fn, images, labels, layer, reshape)


def _explained(
    body: Callable[..., Array],
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None,
    layer: str | None,
    reshape: Reshape,
    **options: Any,
) -> Array:
    """The maps that a function makes of one layer's outputs, compiled."""
    logits_fn, images, labels = checked(logits_fn, images, labels)
    if not isinstance(reshape, tuple | list) and not callable(reshape) and reshape is not None:
        raise TypeError(
            f"`reshape` must be a function [T, C] -> [H', W', C'], (H', W') or None, got {reshape!r}."
        )
    program = program_of(logits_fn, images.shape[1:])
    found = chosen(layers_of(logits_fn, program), layer, as_tokens=reshape is not None)
    view, function = _reading(found, reshape)
    arguments = (program, images, labels, function)
    return programs.call(body, *arguments, value=found.value, view=view, **options)


def _reading(layer: Layer, reshape: Reshape) -> tuple[View, Program | None]:
    """How a map is read from a layer: what is static of it, and the user's function."""
    if reshape is None:
        assert layer.view is not None
        return layer.view, None
    axes = (1, 2) if layer.view is None else layer.view.axes
    num_tokens, channels = (layer.shape[axis - 1] for axis in axes)
    if not callable(reshape):
        if len(reshape) != 2:
            raise ValueError(f"`reshape` must be (H', W') or a function, got {reshape!r}.")
        for size in reshape:
            checks.integer("reshape", size, minimum=1)
        height, width = map(int, reshape)
        if height * width > num_tokens:
            raise ValueError(
                f"`reshape` must be (H', W') of at most {num_tokens} tokens, which layer "
                f"{layer.name!r} has, got {height} * {width}."
            )
        return View(axes, num_tokens - height * width, (height, width)), None
    # Traced, so that equal functions share what is compiled.
    function = programs.trace(reshape, jax.ShapeDtypeStruct((num_tokens, channels), jnp.float32))
    shape = getattr(function.results, "shape", None)
    if shape is None or len(shape) != 3:
        raise ValueError(
            f"`reshape` must return [H', W', C'] of the tokens [{num_tokens}, {channels}] of layer "
            f"{layer.name!r}, got {shape}."
        )
    return View(axes, 0, (1, num_tokens)), function


def _as_map(value: Array, view: View, reshape: Program | None) -> Array:
    """float32 [H', W', C'] of a layer's output for one image, or of a gradient by it."""
    value = value.astype(jnp.float32)
    return view.read(value) if reshape is None else reshape(view.laid(value))


def _predicted_if_none(program: Program, images: Array, labels: Array | None) -> Array:
    if labels is not None:
        return labels
    return jax.vmap(lambda image: jnp.argmax(program(image[None])[0]))(images)


def _product(one: Array, other: Array) -> Array:
    """A matrix product; GPUs would otherwise multiply with 10 bits of mantissa."""
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)


def _grad_cam(outputs: Array, gradient: Array) -> Array:
    return _product(outputs, jnp.mean(gradient, axis=(0, 1)))


def _grad_cam_plus_plus(outputs: Array, gradient: Array) -> Array:
    denominator = 2 + jnp.sum(outputs, axis=(0, 1)) * gradient
    vanishing = jnp.abs(denominator) < 1e-3
    alpha = jnp.where(vanishing, 0.0, 1 / jnp.where(vanishing, 1.0, denominator))
    return _product(outputs, jnp.sum(alpha * jax.nn.relu(gradient), axis=(0, 1)))


def _hires_cam(outputs: Array, gradient: Array) -> Array:
    return jnp.sum(gradient * outputs, axis=-1)


def _layer_cam(outputs: Array, gradient: Array) -> Array:
    return jnp.sum(jax.nn.relu(gradient) * outputs, axis=-1)


def _drawn(heat: Array, images: Array, view: View) -> Array:
    """What is positive of [H', W'], enlarged to [H, W]."""
    return view.enlarged(jax.nn.relu(heat), images.shape[1:3])


def _from_gradient(
    program: Program,
    images: Array,
    labels: Array | None,
    reshape: Program | None,
    *,
    combine: Callable[[Array, Array], Array],
    value: Value,
    view: View,
) -> Array:
    def one(image: Array, label: Array) -> Array:
        outputs, rest = stop_behind(program, value, image[None])
        gradient = jax.grad(lambda instead: rest(instead)[0][0, label].astype(jnp.float32))(outputs)
        parts = (_as_map(part, view, reshape) for part in (outputs, gradient))
        return _drawn(combine(*parts), images, view)

    return jax.vmap(one)(images, _predicted_if_none(program, images, labels))


def _eigen_cam(
    program: Program,
    images: Array,
    labels: Array | None,
    reshape: Program | None,
    *,
    value: Value,
    view: View,
) -> Array:
    def one(image: Array) -> Array:
        outputs = _as_map(stop_behind(program, value, image[None])[0], view, reshape)
        projection = _first_projection(outputs.reshape(-1, outputs.shape[-1]))
        signed = jnp.where(jnp.sum(projection) < 0, -projection, projection)
        return _drawn(signed.reshape(outputs.shape[:2]), images, view)

    return jax.vmap(one)(images)


def _first_projection(matrix: Array) -> Array:
    """Of [N, C] the projection [N] on the first right singular vector, up to its sign.

    By the last eigenvector of the smaller of the two Gram matrices, min(N, C) on a side.
    """
    positions, channels = matrix.shape
    if channels <= positions:
        _, vectors = jnp.linalg.eigh(_product(matrix.T, matrix))
        return _product(matrix, vectors[:, -1])
    squares, vectors = jnp.linalg.eigh(_product(matrix, matrix.T))
    return jnp.sqrt(jnp.maximum(squares[-1], 0.0)) * vectors[:, -1]


def _score_cam(
    program: Program,
    images: Array,
    labels: Array | None,
    reshape: Program | None,
    *,
    value: Value,
    view: View,
) -> Array:
    def one(image: Array, label: Array) -> Array:
        outputs = _as_map(stop_behind(program, value, image[None])[0], view, reshape)

        def score(channel: Array) -> Array:
            mask = view.enlarged(channel, image.shape[:2])
            low, high = jnp.min(mask), jnp.max(mask)
            mask = (mask - low) / jnp.where(high == low, 1.0, high - low)
            logits = program((image * mask[..., None])[None])
            return logits[0, label].astype(jnp.float32)

        weights = jax.nn.softmax(jax.lax.map(score, jnp.moveaxis(outputs, -1, 0)))
        return _drawn(_product(outputs, weights), images, view)

    return jax.vmap(one)(images, _predicted_if_none(program, images, labels))
