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

Each is a function of what the layer puts out and of the gradient (`cam_from_gradient`), or of more
(`cam_from_layer`); all else they share.
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

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


class ClassActivation(Protocol):
    """What every method of this file is called as; `grad_cam` says what the arguments are."""

    def __call__(  # noqa: D102
        self,
        logits_fn: LogitsFn,
        images: Array,
        labels: Array | None = None,
        layer: str | None = None,
        *,
        reshape: Reshape = None,
    ) -> Array: ...


class Seen(NamedTuple):
    """One image at a layer, and what a map may ask of the network.

    Attributes:
      outputs: float32 [H', W', C'], what the layer puts out.
      gradient: () -> the same shape, the gradient of the class's logit by the outputs.
      logit: Image [H, W, C] -> the class's logit, a scalar.
      enlarged: [H', W'] -> [H, W].
      image: [H, W, C].
    """

    outputs: Array
    gradient: Callable[[], Array]
    logit: Callable[[Array], Array]
    enlarged: Callable[[Array], Array]
    image: Array


# What every function's docstring says, before its example and its references.
_ARGUMENTS = """

Args:
  logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function, in any framework and
    any floating type.
  images: float32 [B, H, W, C] in [0, 1].
  labels: int [B], the classes to explain; None explains the predicted ones.
  layer: Name of a layer that is a map of one image, as `layers` lists them; None takes the last one
    that everything goes through and that is read at more than one position.
  reshape: Where tokens stand, if that is not to be followed through the network: a function
    [T, C] -> [H', W', C'], or (H', W') of the last H' * W' tokens, row by row.

Returns:
  float32 [B, H, W], not negative: the map of [H', W'] enlarged bilinearly.

Raises:
  TypeError: Integer images, fractional labels, a `Stochastic` classifier, a `reshape` that is neither a
    function nor two integers.
  ValueError: Shapes that do not fit, images outside [0, 1], labels outside 0 .. K - 1; a layer that
    does not exist or is no map of one image: the message says why, and which will do. A `reshape` that
    does not fit the tokens."""


def cam_from_layer(heat: Callable[[Seen], Array]) -> ClassActivation:
    """A method of attribution from what one layer says of an image.

    Args:
      heat: Seen -> [H', W'], of which the map is what is positive.

    Returns:
      A function like `grad_cam`, of the name and with the docstring of `heat`.
    """

    def explain(
        logits_fn: LogitsFn,
        images: Array,
        labels: Array | None = None,
        layer: str | None = None,
        *,
        reshape: Reshape = None,
    ) -> Array:
        logits_fn, images, labels = checked(logits_fn, images, labels)
        if not isinstance(reshape, tuple | list) and not callable(reshape) and reshape is not None:
            raise TypeError(
                "`reshape` must be a function [T, C] -> [H', W', C'], (H', W') or None, got "
                f"{reshape!r}."
            )
        program = program_of(logits_fn, images.shape[1:])
        found = chosen(layers_of(logits_fn, program), layer, as_tokens=reshape is not None)
        view, function = _reading(found, reshape)
        arguments = (program, images, labels, function)
        return programs.call(_maps, *arguments, heat=heat, value=found.value, view=view)

    for name in ("__module__", "__name__", "__qualname__"):  # found by pickle where `heat` is
        setattr(explain, name, getattr(heat, name))
    parts = re.split(r"(?=\n\n(?:Example|References):)", inspect.getdoc(heat) or "", maxsplit=1)
    explain.__doc__ = "".join([parts[0], _ARGUMENTS, *parts[1:]])
    return explain


def cam_from_gradient(combine: Callable[[Array, Array], Array]) -> ClassActivation:
    """A method of attribution from a layer's outputs and the gradient by them.

    Args:
      combine: (outputs, gradient), float32 [H', W', C'] of one image -> [H', W'], of which the map is
        what is positive.

    Returns:
      As `cam_from_layer`.

    Example:
      >>> @cam_from_gradient
      ... def xgrad_cam(outputs, gradient):
      ...     shares = jnp.sum(outputs * gradient, (0, 1)) / (jnp.sum(outputs, (0, 1)) + 1e-7)
      ...     return outputs @ shares
      >>> images = jnp.array([[[[0.5, 0.0], [0.25, 1.0]]]])
      >>> xgrad_cam(lambda x: jax.nn.relu(x).sum((1, 2)), images, layer="images:relu").round(3).tolist()
      [[[0.0, 1.0]]]
    """

    @functools.wraps(combine)
    def heat(seen: Seen) -> Array:
        return combine(seen.outputs, seen.gradient())

    return cam_from_layer(heat)


@cam_from_gradient
def grad_cam(outputs: Array, gradient: Array) -> Array:
    """Grad-CAM: a layer's channels weighted by their mean gradient, what is positive of their sum.

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
    return _product(outputs, jnp.mean(gradient, axis=(0, 1)))


@cam_from_gradient
def grad_cam_plus_plus(outputs: Array, gradient: Array) -> Array:
    """Grad-CAM++: a layer's channels weighted by positive gradients, each position by its own alpha.

    The score is Y = exp(f) of the logit f. In a piecewise linear network its n-th derivative by an
    activation is exp(f) g^n, so alpha = g^2 / (2 g^2 + sum(A) g^3) = 1 / (2 + sum(A) g), computed in
    the second form because powers of small gradients vanish in float32. In the weights exp(f) is one
    factor for a whole map and left out: it would overflow.

    Behind a ReLU the denominator is at least 2 wherever the gradient is positive, and only there does
    alpha count. Where activations are signed it can come close to 0, and one position would drown all
    others: alpha is 0 where the denominator is within 0.001 of 0.

    References:
      Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
      WACV 2018, section 3.2 (alpha for the exponential score, weights), https://arxiv.org/abs/1710.11063
    """
    denominator = 2 + jnp.sum(outputs, axis=(0, 1)) * gradient
    vanishing = jnp.abs(denominator) < 1e-3
    alpha = jnp.where(vanishing, 0.0, 1 / jnp.where(vanishing, 1.0, denominator))
    return _product(outputs, jnp.sum(alpha * jax.nn.relu(gradient), axis=(0, 1)))


@cam_from_gradient
def hires_cam(outputs: Array, gradient: Array) -> Array:
    """HiResCAM: activation times gradient at each position; what is positive of the channels' sum.

    Unlike Grad-CAM's averaged gradients it points at positions that the logit hangs on. Behind a
    global average followed by a dense layer the two are the same.

    References:
      Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
      neural networks", 2020, https://arxiv.org/abs/2011.08891
    """
    return jnp.sum(gradient * outputs, axis=-1)


@cam_from_gradient
def layer_cam(outputs: Array, gradient: Array) -> Array:
    """LayerCAM: activations weighted by the positive gradient of their own position.

    It is meant for early, large layers too.

    References:
      Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
      Transactions on Image Processing 2021, equations 6 and 7, https://doi.org/10.1109/TIP.2021.3089943
    """
    return jnp.sum(jax.nn.relu(gradient) * outputs, axis=-1)


@cam_from_layer
def eigen_cam(seen: Seen) -> Array:
    """EigenCAM: a layer's output projected onto its first principal component.

    It needs no gradient and knows no class: labels are checked but not used, so that all maps are
    called alike. As in the paper the output is not centred. A singular vector has no sign of its own:
    the one is taken whose projection sums to at least 0, which makes the map of a layer behind a ReLU
    positive wherever anything is active.

    References:
      Muhammad, Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
      section III, https://arxiv.org/abs/2008.00299
    """
    projection = _first_projection(seen.outputs.reshape(-1, seen.outputs.shape[-1]))
    signed = jnp.where(jnp.sum(projection) < 0, -projection, projection)
    return signed.reshape(seen.outputs.shape[:2])


@cam_from_layer
def score_cam(seen: Seen) -> Array:
    """Score-CAM: a layer's channels weighted by the logit of the image seen through them.

    Each channel is enlarged to the image and scaled to [0, 1]; the image times that mask gives a
    logit, and the softmax of the logits over the channels gives the weights. (The baseline that the
    paper subtracts from all of them cancels.) A constant channel masks everything. It needs no
    gradient, but one forward pass per channel: they run one after another, so that memory does not
    grow with their number.

    References:
      Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
      CVPR workshops 2020, equations 5 to 8, https://arxiv.org/abs/1910.01279
    """

    def score(channel: Array) -> Array:
        mask = seen.enlarged(channel)
        low, high = jnp.min(mask), jnp.max(mask)
        mask = (mask - low) / jnp.where(high == low, 1.0, high - low)
        return seen.logit(seen.image * mask[..., None])

    weights = jax.nn.softmax(jax.lax.map(score, jnp.moveaxis(seen.outputs, -1, 0)))
    return _product(seen.outputs, weights)


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


def _maps(
    program: Program,
    images: Array,
    labels: Array | None,
    reshape: Program | None,
    *,
    heat: Callable[[Seen], Array],
    value: Value,
    view: View,
) -> Array:
    """What is positive of the heat of every image at a layer, enlarged: [B, H, W]."""
    if labels is None:
        labels = jax.vmap(lambda image: jnp.argmax(program(image[None])[0]))(images)

    def one(image: Array, label: Array) -> Array:
        outputs, rest = stop_behind(program, value, image[None])

        def of_class(logits: Array) -> Array:
            return logits[0, label].astype(jnp.float32)

        # By the outputs as they are, in whatever type and order of axes the network has them.
        def gradient() -> Array:
            found = jax.grad(lambda instead: of_class(rest(instead)[0]))(outputs)
            return _as_map(found, view, reshape)

        seen = Seen(
            _as_map(outputs, view, reshape),
            gradient,
            lambda other: of_class(program(other[None])),
            lambda small: view.enlarged(small, image.shape[:2]),
            image,
        )
        return seen.enlarged(jax.nn.relu(heat(seen)))

    return jax.vmap(one)(images, labels)


def _as_map(value: Array, view: View, reshape: Program | None) -> Array:
    """float32 [H', W', C'] of a layer's output for one image, or of a gradient by it."""
    value = value.astype(jnp.float32)
    return view.read(value) if reshape is None else reshape(view.laid(value))


def _product(one: Array, other: Array) -> Array:
    """A matrix product; GPUs would otherwise multiply with 10 bits of mantissa."""
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)


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
