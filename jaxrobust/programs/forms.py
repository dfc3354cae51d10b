"""Computes operations of traced networks on the CPU with the fast forms of `jaxrobust.ops`.

A convolution is not computed at its own place. It waits as an `Image` for the operations that follow:
scales and shifts of its channels (BatchNorm in evaluation mode, a bias) go into its kernel and bias, an
added array becomes its residual, and `jax.nn.relu` becomes its activation. It is computed when any
other operation needs its value. Images are stored as [B, H, W, C], even if the network uses another
layout: transposing an image only changes the description of its axes, so the transpositions around
convolutions and pooling cost nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrobust import ops
from jaxrobust.programs import derivatives
from jaxrobust.types import Array

_BATCH, _ROWS, _COLUMNS, _CHANNELS = range(4)
_MOST_TAPS = 25  # the largest window of a pooling: each of its places takes an operation
_MOST_WEIGHTS = 81  # the largest kernel of a channel, likewise


@dataclasses.dataclass(eq=False)
class Convolution:
    """A convolution that has not been computed yet, with its bias, residual and activation."""

    images: Array
    kernel: Array
    window: ops.Window
    bias: Array | None = None
    residual: Array | None = None
    activation: ops.Activation = None
    depthwise: bool = False

    def compute(self) -> Array:
        """Computes the convolution, [B, H, W, C]."""
        options: Any = {"bias": self.bias, "activation": self.activation}
        if self.depthwise:
            return ops.depthwise_convolution(self.images, self.kernel, self.window, **options)
        options["residual"] = self.residual
        return ops.convolution(self.images, self.kernel, self.window, **options)


class Image:
    """A value of the program that is stored as [B, H, W, C], or a convolution that will be.

    Attributes:
      shape: The shape of the value in the program.
      axes: For each axis of this shape, the axis of [B, H, W, C] that it is, or None for an axis of
        length 1. Axes of [B, H, W, C] with length 1 may be missing.
      is_shared: Whether several operations use the value, so that it is computed once and not changed.
    """

    def __init__(
        self, found: "Array | Convolution", shape: Sequence[int], axes: Sequence[int | None]
    ) -> None:
        self._found, self.shape, self.axes = found, tuple(shape), tuple(axes)
        self.is_shared = False
        self._value: Array | None = None

    @property
    def waiting(self) -> Convolution | None:
        """The convolution, if it may still be changed; otherwise None."""
        found = self._found
        return found if isinstance(found, Convolution) and not self.is_shared else None

    def array(self) -> Array:
        """Returns the value as [B, H, W, C]."""
        if isinstance(self._found, Convolution):
            self._found = self._found.compute()
        return self._found

    def value(self) -> Array:
        """Returns the value as the program has it."""
        if self._value is None:
            present = [axis for axis in self.axes if axis is not None]
            order = (*present, *(axis for axis in range(4) if axis not in present))
            array = self.array()
            if order != tuple(range(4)):
                array = lax.transpose(array, order)
            self._value = array.reshape(self.shape)
        return self._value

    def moved(self, shape: Sequence[int], axes: Sequence[int | None]) -> "Image":
        """Returns the same image with another shape in the program."""
        if self.is_shared:
            self.array()
        image = Image(self._found, shape, axes)
        image.is_shared = self.is_shared
        return image


@dataclasses.dataclass(eq=False)
class Repeated:
    """A smaller array that is repeated along axes, such as a bias that is broadcast to an image.

    Attributes:
      array: The smaller array.
      shape: The shape of the value in the program.
      axes: For each axis of the array, the axis of this shape that it is.
    """

    array: Array
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def value(self) -> Array:
        """Returns the value as the program has it."""
        return lax.broadcast_in_dim(self.array, self.shape, self.axes)


def value(operand: Any) -> Any:
    """Returns an operand as the program has it."""
    return operand.value() if isinstance(operand, Image | Repeated) else operand


def placed(operand: Any, axes: tuple[int | None, ...]) -> Array:
    """Converts an operand whose axes are given to [B, H, W, C]; a number is returned unchanged."""
    if isinstance(operand, Image) and operand.axes == axes:
        return operand.array()
    array = jnp.asarray(value(operand))
    if array.ndim == 0:
        return array
    present = sorted((axis, position) for position, axis in enumerate(axes) if axis is not None)
    others = [position for position, axis in enumerate(axes) if axis is None]
    array = lax.transpose(array, (*(position for _, position in present), *others))
    sizes = dict(zip((axis for axis, _ in present), array.shape, strict=False))
    return array.reshape([sizes.get(axis, 1) for axis in range(4)])


Form = Callable[[Any, Sequence[Any]], "Sequence[Any] | None"]


def _convolution(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    images, kernel = operands
    params = equation.params
    spec = params["dimension_numbers"]
    result = equation.outvars[0].aval
    types = {jnp.result_type(operand.aval) for operand in equation.invars} | {result.dtype}
    # The forms compute with images of one floating-point type; everything else is left to jax.
    if (
        len(spec.lhs_spec) != 4
        or len(types) != 1
        or not jnp.issubdtype(result.dtype, jnp.floating)
        or params["batch_group_count"] != 1
        or 0 in (*result.shape, *equation.invars[0].aval.shape)
    ):
        return None
    # The forms have their own order of axes; the result remembers the order of the program.
    images = placed(images, _axes_of(spec.lhs_spec))
    outputs, inputs, rows, columns = spec.rhs_spec
    kernel = lax.transpose(jnp.asarray(value(kernel)), (rows, columns, inputs, outputs))
    groups, axes = params["feature_group_count"], _axes_of(spec.out_spec)
    strides, (above, beside) = tuple(params["window_strides"]), params["padding"]
    window = ops.Window(strides, (tuple(above), tuple(beside)), tuple(params["rhs_dilation"]))
    factors = tuple(params["lhs_dilation"])
    is_depthwise = groups == images.shape[-1] == kernel.shape[-1] and groups > 1
    # Zeros between the pixels: a transposed convolution, or the gradient of a strided one.
    if factors != (1, 1):
        if groups > 1 or strides != (1, 1) or window.dilation != (1, 1):
            return None
        before = (above[0], beside[0])
        size = (result.shape[spec.out_spec[2]], result.shape[spec.out_spec[3]])
        array = ops.transposed_convolution(images, kernel, factors, before, size)
        return [Image(array, result.shape, axes)]
    # Groups have a form only if each is one channel with few weights: each weight takes an operation.
    if groups > 1 and (not is_depthwise or math.prod(kernel.shape[:2]) > _MOST_WEIGHTS):
        return None
    found = Convolution(images, kernel, window, depthwise=is_depthwise)
    return [Image(found, result.shape, axes)]


def _axes_of(spec: Sequence[int]) -> tuple[int, ...]:
    """Returns the axis at each position from the positions of batch, channels, rows and columns."""
    axes = dict(zip(spec, (_BATCH, _CHANNELS, _ROWS, _COLUMNS), strict=True))
    return tuple(axes[position] for position in range(4))


def _sum(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    first, second = operands
    for image, other in ((first, second), (second, first)):
        if (waiting := _open(image)) is None:
            continue
        vector = _of_channels(other, image)
        if vector is not None:
            bias = vector if waiting.bias is None else waiting.bias + vector
            return [_changed(image, bias=bias)]
        shape = other.shape if isinstance(other, Image | Repeated) else jnp.shape(other)
        if shape == image.shape and waiting.residual is None and not waiting.depthwise:
            return [_changed(image, residual=placed(other, image.axes))]
    return _elementwise(equation, operands)


def _difference(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    first, second = operands
    waiting = _open(first)
    vector = None if waiting is None else _of_channels(second, first)
    if waiting is None or vector is None:
        return _elementwise(equation, operands)
    bias = -vector if waiting.bias is None else waiting.bias - vector
    return [_changed(first, bias=bias)]


def _product(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    first, second = operands
    for image, other in ((first, second), (second, first)):
        waiting = _open(image)
        vector = None if waiting is None else _of_channels(other, image)
        if waiting is not None and vector is not None and waiting.residual is None:
            return [_scaled(image, waiting, vector)]
    return _elementwise(equation, operands)


def _quotient(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    first, second = operands
    waiting = _open(first)
    vector = None if waiting is None else _of_channels(second, first)
    if waiting is None or vector is None or waiting.residual is not None:
        return _elementwise(equation, operands)
    return [_scaled(first, waiting, 1 / vector)]


def _scaled(image: Image, waiting: Convolution, factor: Array) -> Image:
    bias = None if waiting.bias is None else waiting.bias * factor
    return _changed(image, kernel=waiting.kernel * factor.reshape(1, 1, 1, -1), bias=bias)


def _changed(image: Image, **changes: Any) -> Image:
    assert image.waiting is not None
    found = dataclasses.replace(image.waiting, **changes)
    return Image(found, image.shape, image.axes)


def _open(operand: Any) -> Convolution | None:
    """Returns the convolution of an operand if something may still be added to it, else None."""
    waiting = operand.waiting if isinstance(operand, Image) else None
    return None if waiting is None or waiting.activation else waiting


def _of_channels(operand: Any, image: Image) -> Array | None:
    """Returns [C] if an operand has one number, or one for each channel, of the kernel's type."""
    waiting = image.waiting
    assert waiting is not None
    if isinstance(operand, Image):
        return None
    axes = image.axes
    if isinstance(operand, Repeated):
        axes = tuple(axes[position] for position in operand.axes)
        operand = operand.array
    shape, channels = jnp.shape(operand), waiting.kernel.shape[-1]
    if jnp.result_type(operand) != waiting.kernel.dtype or math.prod(shape) not in (1, channels):
        return None
    sizes = {axis: size for axis, size in zip(axes, shape, strict=True)} if shape else {}
    if sizes.get(_CHANNELS, 1) != math.prod(shape):
        return None
    return jnp.broadcast_to(jnp.asarray(operand).reshape(-1), (channels,))


def _activation(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    image, *others = operands
    if others or not isinstance(image, Image):
        return None
    activation = derivatives.activation_of(equation)
    if activation is None:
        return None
    if _open(image) is not None:
        return [_changed(image, activation=activation)]
    function = jax.nn.relu if activation == "relu" else jax.nn.relu6
    return [Image(function(image.array()), image.shape, image.axes)]


def _elementwise(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    """Applies the same operation to images as they are stored."""
    images = [operand for operand in operands if isinstance(operand, Image)]
    shape = equation.outvars[0].aval.shape
    axes = next((image.axes for image in images if image.shape == shape), None)
    if axes is None:
        return None
    results = derivatives.bind(equation, [placed(operand, axes) for operand in operands])
    return [Image(result, shape, axes) for result in results]


def _transposed(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    (image,) = operands
    if not isinstance(image, Image):
        return None
    axes = [image.axes[position] for position in equation.params["permutation"]]
    return [image.moved(equation.outvars[0].aval.shape, axes)]


def _repeated(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    first, *others = operands
    shape = equation.outvars[0].aval.shape
    if others or isinstance(first, Image | Repeated) or math.prod(shape) == jnp.size(first):
        return _reshaped(equation, operands)
    return [Repeated(jnp.asarray(first), shape, equation.params["broadcast_dimensions"])]


def _reshaped(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    """Adds or removes axes of length 1."""
    image, *others = operands
    shape = equation.outvars[0].aval.shape
    if not isinstance(image, Image) or others or not shape or 0 in shape:
        return None
    is_reshape = equation.primitive.name == "reshape"
    if is_reshape and equation.params["dimensions"] is not None:  # it also transposes
        return None
    kept = [(size, axis) for size, axis in zip(image.shape, image.axes, strict=True) if size > 1]
    if [size for size, _ in kept] != [size for size in shape if size > 1]:
        return None
    dimensions = equation.params.get("broadcast_dimensions")
    if dimensions is not None and list(dimensions) != sorted(dimensions):
        return None
    left = iter(kept)
    return [image.moved(shape, [next(left)[1] if size > 1 else None for size in shape])]


def _pooled(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    operand, params, aval = operands[0], equation.params, equation.outvars[0].aval
    sizes, strides = params["window_dimensions"], params["window_strides"]
    if {*params["base_dilation"], *params["window_dilation"]} != {1}:
        return None
    if not 1 < math.prod(sizes) <= _MOST_TAPS or not jnp.issubdtype(aval.dtype, jnp.floating):
        return None
    if 0 in (*aval.shape, *equation.invars[0].aval.shape):
        return None
    shape = jnp.shape(value(operand)) if not isinstance(operand, Image) else operand.shape
    axes = operand.axes if isinstance(operand, Image) else _axes_of_windows(shape, sizes, strides)
    if axes is None:
        return None
    by_axis = dict(zip(axes, zip(sizes, strides, params["padding"], strict=True), strict=True))
    whole = [(1, 1, (0, 0))]
    for axis, (size, stride, padding) in zip(
        axes, zip(sizes, strides, params["padding"], strict=True), strict=True
    ):
        if axis not in (_ROWS, _COLUMNS) and (size, stride, tuple(padding)) != whole[0]:
            return None
    rows, columns = (by_axis.get(axis, whole[0]) for axis in (_ROWS, _COLUMNS))
    size, strides, padding = zip(rows, columns, strict=True)
    pool = ops.Pool(size, strides, (tuple(padding[0]), tuple(padding[1])))
    pooling = ops.max_pool if equation.primitive.name == "reduce_window_max" else ops.sum_pool
    return [Image(pooling(placed(operand, axes), pool), aval.shape, axes)]


def _axes_of_windows(
    shape: Sequence[int], sizes: Sequence[int], strides: Sequence[int]
) -> tuple[int | None, ...] | None:
    """Finds the axes: windows are on rows and columns; the others are batch, then channels."""
    windows = [axis for axis in range(len(shape)) if sizes[axis] > 1 or strides[axis] > 1]
    others = [axis for axis in range(len(shape)) if axis not in windows and shape[axis] > 1]
    if len(windows) > 2 or len(others) > 2:
        return None
    axes: list[int | None] = [None] * len(shape)
    for axis, what in zip(windows, (_ROWS, _COLUMNS), strict=False):
        axes[axis] = what
    if len(others) == 1:  # one image, or one channel
        axes[others[0]] = _BATCH if others[0] < windows[0] else _CHANNELS
    elif others:
        axes[others[0]], axes[others[1]] = _BATCH, _CHANNELS
    return tuple(axes)


def _reduced(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    """Reduces over all pixels, which leaves images and channels."""
    (image,) = operands
    if not isinstance(image, Image):
        return None
    gone = {image.axes[axis] for axis in equation.params["axes"]} - {None}
    left = [
        axis for position, axis in enumerate(image.axes) if position not in equation.params["axes"]
    ]
    if not gone <= {_ROWS, _COLUMNS} or left != [_BATCH, _CHANNELS] or len(gone) != 2:
        return None
    axes = (_ROWS, _COLUMNS)
    is_sum = equation.primitive.name == "reduce_sum"
    array = image.array()
    if is_sum:  # in the array's own type, like the primitive
        return [jnp.sum(array, axis=axes, dtype=array.dtype)]
    return [jnp.max(array, axis=axes)]


def _concatenated(equation: Any, operands: Sequence[Any]) -> Sequence[Any] | None:
    first = operands[0]
    if not all(isinstance(one, Image) and one.axes == first.axes for one in operands):
        return None
    axis = first.axes[equation.params["dimension"]]
    if axis is None:
        return None
    array = lax.concatenate([one.array() for one in operands], axis)
    return [Image(array, equation.outvars[0].aval.shape, first.axes)]


_ELEMENTWISE = (
    *("abs", "and", "ceil", "clamp", "convert_element_type", "eq", "erf", "erfc", "exp", "exp2"),
    *("expm1", "floor", "ge", "gt", "integer_pow", "le", "log", "log1p", "logistic", "lt", "max"),
    *("min", "ne", "neg", "not", "or", "pow", "round", "rsqrt", "select_n", "sign", "sqrt"),
    *("square", "stop_gradient", "tanh"),
)
FORMS: Mapping[str, Form] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "add": _sum,
    "add_any": _sum,
    "broadcast_in_dim": _repeated,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolution,
    "custom_jvp_call": _activation,
    "div": _quotient,
    "expand_dims": _reshaped,
    "mul": _product,
    "reduce_max": _reduced,
    "reduce_sum": _reduced,
    "reduce_window_max": _pooled,
    "reduce_window_sum": _pooled,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "sub": _difference,
    "transpose": _transposed,
}
