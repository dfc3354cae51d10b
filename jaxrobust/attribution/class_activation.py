"""Class activation maps: the regions on which a class's logit depends, as seen at one layer.

Let A [H', W', C'] be the layer's output and g the gradient of the class's logit with respect to it,
with channels k:

    grad_cam             relu( sum_k mean(g_k) A_k )
    grad_cam_plus_plus   relu( sum_k w_k A_k ),  w_k = sum(relu(g_k) / (2 + sum(A_k) g_k))
    hires_cam            relu( sum_k g_k A_k )
    layer_cam            relu( sum_k relu(g_k) A_k )
    eigen_cam            relu( A v ), v the first right singular vector of A as [H' W', C']
    score_cam            relu( sum_k w_k A_k ),  w the softmax of the logits of the image masked by A_k

Unless another layer is named, the layer is the last one that is a map of one image and through which
the whole computation goes: in a residual network the last sum after its activation. `layers` lists all
layers. Tokens [T, C] of a transformer are placed where they lie in the image; if that cannot be found
out, pass `reshape`.

All maps are enlarged bilinearly to the size of the image and are not negative. Their scale has no
meaning: compare maps by rank or cosine, and divide each by its maximum to draw it.

Each method is a function of the layer's output and the gradient (`cam_from_gradient`), or of more
(`cam_from_layer`); everything else is shared.
"""

import functools
import inspect
import re
import warnings
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
    """The signature of every method of this file; `grad_cam` describes the arguments."""

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
    """What a method may use of one image: the layer's output, and functions of the network.

    Attributes:
      outputs: float32 [H', W', C'], the layer's output.
      gradient: () -> float32 [H', W', C'], the gradient of the class's logit with respect
        to the outputs.
      logit: An image [H, W, C] -> the class's logit, a scalar.
      enlarged: A map [H', W'] -> the map at the size of the image, [H, W].
      image: float32 [H, W, C] in [0, 1].
    """

    outputs: Array
    gradient: Callable[[], Array]
    logit: Callable[[Array], Array]
    enlarged: Callable[[Array], Array]
    image: Array


# The part that all docstrings share, placed before the example and the references.
_ARGUMENTS = """

Args:
  logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function, in any framework and
    any floating type.
  images: float32 [B, H, W, C] in [0, 1].
  labels: int [B], the classes to explain; by default the predicted classes.
  layer: The name of a layer that is a map of one image, as `layers` lists them. By default it is the
    last one through which the whole computation goes and that is read at more than one position.
  reshape: How tokens form a map, if that cannot be found out from the network: a function
    [T, C] -> [H', W', C'], or (H', W') for the last H' * W' tokens, row by row.

Returns:
  float32 [B, H, W], not negative: the map [H', W'] enlarged bilinearly.

Raises:
  TypeError: The images are integers, the labels are not, the classifier is `Stochastic`, or `reshape`
    is neither a function nor two integers.
  ValueError: Shapes do not fit, images are outside [0, 1], labels are outside 0 .. K - 1, `reshape`
    does not fit the tokens, or the layer does not exist or is not a map of one image. In the last case
    the message says why, and which layers can be used."""


def cam_from_layer(heat: Callable[[Seen], Array]) -> ClassActivation:
    """Makes an attribution method from a function of one image at a layer.

    Args:
      heat: Seen -> [H', W']. The map is its positive part.

    Returns:
      A function with the arguments of `grad_cam`, and with the name and the docstring of `heat`.
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
        maps = programs.call(_maps, *arguments, heat=heat, value=found.value, view=view)
        if not checks.is_traced(maps):
            _warn_of_zeros(maps, heat.__name__)
        return maps

    for name in ("__module__", "__name__", "__qualname__"):  # found by pickle where `heat` is
        setattr(explain, name, getattr(heat, name))
    parts = re.split(r"(?=\n\n(?:Example|References):)", inspect.getdoc(heat) or "", maxsplit=1)
    explain.__doc__ = "".join([parts[0], _ARGUMENTS, *parts[1:]])
    return explain


def _warn_of_zeros(maps: Array, method: str) -> None:
    """Warns if at least half of the maps are zero everywhere: such a picture shows nothing."""
    count = int((jnp.max(maps, axis=(1, 2), initial=0) == 0).sum())
    if count and 2 * count >= len(maps):
        warnings.warn(
            f"{count} of {len(maps)} maps of `{method}` are zero everywhere, because the weighted sum "
            "of the layer's channels is nowhere positive. This is common for `grad_cam` in networks "
            "that flatten their last map; use `layer_cam` or `hires_cam`, or another `layer`.",
            stacklevel=3,
        )


def cam_from_gradient(combine: Callable[[Array, Array], Array]) -> ClassActivation:
    """Makes an attribution method from a function of a layer's outputs and their gradient.

    Args:
      combine: (outputs, gradient), both float32 [H', W', C'] for one image -> [H', W']. The map is its
        positive part.

    Returns:
      A function with the arguments of `grad_cam`, and with the name and the docstring of `combine`.

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
    """Grad-CAM: sums a layer's channels weighted by their mean gradient, and keeps the positive part.

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
    """Grad-CAM++: weights a layer's channels by positive gradients, each position by its own alpha.

    The score is Y = exp(f) for the logit f. In a piecewise linear network its n-th derivative with
    respect to an activation is exp(f) g^n, so alpha = g^2 / (2 g^2 + sum(A) g^3) =
    1 / (2 + sum(A) g). The second form is used, because powers of small gradients vanish in float32.
    The factor exp(f) in the weights is the same for the whole map and is left out, because it would
    overflow.

    Alpha matters only where the gradient is positive. After a ReLU the denominator is at least 2
    there. With signed activations it can come close to 0, and one position would dominate all others,
    so alpha is set to 0 where the denominator is within 0.001 of 0.

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
    """HiResCAM: sums activation times gradient over the channels, and keeps the positive part.

    Unlike Grad-CAM with its averaged gradients, it marks only positions on which the logit depends. If
    only a global average and a dense layer follow, the two methods give the same map.

    References:
      Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
      neural networks", 2020, https://arxiv.org/abs/2011.08891
    """
    return jnp.sum(gradient * outputs, axis=-1)


@cam_from_gradient
def layer_cam(outputs: Array, gradient: Array) -> Array:
    """LayerCAM: weights each activation by the positive part of its own gradient.

    It is suited to early, large layers too.

    References:
      Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", IEEE
      Transactions on Image Processing 2021, equations 6 and 7, https://doi.org/10.1109/TIP.2021.3089943
    """
    return jnp.sum(jax.nn.relu(gradient) * outputs, axis=-1)


@cam_from_layer
def eigen_cam(seen: Seen) -> Array:
    """EigenCAM: projects a layer's output onto its first principal component.

    It needs no gradient and does not depend on the class: labels are checked but not used. As in the
    paper, the output is not centred. The sign of the singular vector is chosen such that the projection
    sums to at least 0, so the map of a layer after a ReLU is positive wherever anything is active.

    References:
      Muhammad, Yeasin, "Eigen-CAM: Class Activation Map using Principal Components", IJCNN 2020,
      section III, https://arxiv.org/abs/2008.00299
    """
    projection = _first_projection(seen.outputs.reshape(-1, seen.outputs.shape[-1]))
    signed = jnp.where(jnp.sum(projection) < 0, -projection, projection)
    return signed.reshape(seen.outputs.shape[:2])


@cam_from_layer
def score_cam(seen: Seen) -> Array:
    """Score-CAM: weights a layer's channels by the logit of the image masked by each of them.

    Each channel is enlarged to the image and scaled to [0, 1], and the image times that mask gives a
    logit. The weights are the softmax of these logits over the channels; the baseline that the paper
    subtracts from all of them cancels. A constant channel masks everything. The method needs no
    gradient but one forward pass for each channel. The passes run one after another, so memory does not
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
    """Returns how to read a map from a layer: a static view, and the user's function or None."""
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
    """The positive part of every image's `heat` at a layer, enlarged: [B, H, W]."""
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
    """Converts a layer's output for one image, or a gradient by it, to float32 [H', W', C']."""
    value = value.astype(jnp.float32)
    return view.read(value) if reshape is None else reshape(view.laid(value))


def _product(one: Array, other: Array) -> Array:
    """A matrix product in full precision; GPUs would otherwise use 10 bits of mantissa."""
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)


def _first_projection(matrix: Array) -> Array:
    """Projects a matrix [N, C] on its first right singular vector, up to its sign: [N].

    It uses the last eigenvector of the smaller of the two Gram matrices.
    """
    positions, channels = matrix.shape
    if channels <= positions:
        _, vectors = jnp.linalg.eigh(_product(matrix.T, matrix))
        return _product(matrix, vectors[:, -1])
    squares, vectors = jnp.linalg.eigh(_product(matrix, matrix.T))
    return jnp.sqrt(jnp.maximum(squares[-1], 0.0)) * vectors[:, -1]
