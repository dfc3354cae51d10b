"""Makes a table of the layers of a network of any framework."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.programs import naming
from jaxrobust.programs.arguments import explained
from jaxrobust.programs.operations import MOVES
from jaxrobust.programs.tracing import trace


@dataclasses.dataclass(frozen=True)
class DescribedLayer:
    """A row of the table: all operations with one name.

    Attributes:
      name: The name, such as "blocks/0/conv"; "" for operations without a module, scope or weight.
      shape: The shape of the layer's last result in the order of the program.
      dtype: The type of that result.
      num_parameters: The number of values in the layer's arrays: weights, statistics and constants. An
        array that several layers use counts in the first of them.
      num_bytes: The size of these arrays in bytes.
      flops: The floating-point operations for all images together. A multiplication with an addition
        counts as two.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_parameters: int
    num_bytes: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Description:
    """The layers of a function; `print` shows them as a table.

    Attributes:
      layers: The layers in the order of their first operations.
      unused: The paths of arrays that no layer uses.
    """

    layers: tuple[DescribedLayer, ...]
    unused: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """The number of parameters of all layers."""
        return sum(layer.num_parameters for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        """The size of the arrays of all layers in bytes."""
        return sum(layer.num_bytes for layer in self.layers)

    @property
    def flops(self) -> int:
        """The floating-point operations of all layers."""
        return sum(layer.flops for layer in self.layers)

    def __str__(self) -> str:
        header = ("layer", "result", "parameters", "bytes", "FLOPs")
        rows = [
            (
                layer.name or "(without a name)",
                f"{layer.dtype}[{','.join(map(str, layer.shape))}]",
                *(f"{number:,}" for number in (layer.num_parameters, layer.num_bytes, layer.flops)),
            )
            for layer in self.layers
        ]
        total = (f"{number:,}" for number in (self.num_parameters, self.num_bytes, self.flops))
        rows = [header, *rows, ("total", "", *total)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                word.ljust(width) if column < 2 else word.rjust(width)
                for column, (word, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        rule = "-" * len(lines[0])
        lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
        if self.unused:
            lines.append(f"Not used: {', '.join(self.unused)}.")
        return "\n".join(line.rstrip() for line in lines)


def describe(function: Callable[[Any], Any], images: Any) -> Description:
    """Describes the layers of any function by shapes, parameters, bytes and FLOPs.

    FLOPs are counted from the equations that jax traces; nothing is computed or measured. A convolution
    or a matrix product counts two for each product that it adds up, including those with padding. A
    reduction counts one for each number that it reads. Other arithmetic counts one for each number of
    its result. Arithmetic on weights alone is not counted, and the body of a loop whose length depends
    on its data is counted once.

    Args:
      function: A function of one array, such as any classifier that attacks accept.
      images: An array [B, H, W, C], or of any other shape that the function takes, or a
        `jax.ShapeDtypeStruct`; its values do not matter.

    Returns:
      Description.

    Raises:
      TypeError: The function cannot be called or traced, or `images` is not an array.
      ValueError: The function is a module in training mode.

    Example:
      >>> weights = {"hidden": {"w": jnp.ones((12, 4))}, "head": {"w": jnp.ones((4, 2))}}
      >>> def logits(images):
      ...     hidden = jnp.tanh(images.reshape(len(images), -1) @ weights["hidden"]["w"])
      ...     return hidden @ weights["head"]["w"]
      >>> print(describe(logits, jnp.ones((1, 2, 2, 3))))
      layer             result        parameters  bytes  FLOPs
      --------------------------------------------------------
      (without a name)  float32[1,4]           0      0      4
      hidden            float32[1,4]          48    192     96
      head              float32[1,2]           8     32     16
      --------------------------------------------------------
      total                                   56    224    116
    """
    compilation.check_callable(function, "function")
    if not hasattr(images, "shape"):
        raise TypeError(
            "`images` must be an array or a jax.ShapeDtypeStruct, got "
            f"{type(images).__name__}: for a shape, pass `jax.ShapeDtypeStruct(shape, jnp.float32)`."
        )
    program = explained(trace, function, images)
    # Operations of one layer are one row, wherever in the program they are.
    paths, idle = naming.weight_paths(function, program)
    found: dict[str, list[naming.NamedOperation]] = {}
    for operation in naming.operations(program, paths):
        found.setdefault(operation.name, []).append(operation)
    used: set[int] = set()
    counted: set[int] = set()  # a rule may close over the same array several times
    layers = []
    for name, operations in found.items():
        # A weight that several layers share counts in the first of them alone.
        weights = {index for one in operations for index in one.weights} - used
        used |= weights
        arrays = {id(program.arrays[index]): program.arrays[index] for index in weights}
        sizes = [_size(array) for key, array in arrays.items() if key not in counted]
        counted |= arrays.keys()
        result = operations[-1].result
        layers.append(
            DescribedLayer(
                name,
                tuple(getattr(result, "shape", ())),
                str(getattr(result, "dtype", "")),
                sum(numbers for numbers, _ in sizes),
                sum(num_bytes for _, num_bytes in sizes),
                sum(one.times * _flops(one.equation) for one in operations),
            )
        )
    unused = [path for index, path in enumerate(paths) if index not in used]
    return Description(tuple(layers), (*unused, *idle))


def _size(array: Any) -> tuple[int, int]:
    """Returns the size of an array, (numbers, bytes); PRNG keys do not count."""
    array = jnp.asarray(array)
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        return 0, 0
    return array.size, array.size * np.dtype(array.dtype).itemsize


def _flops(equation: Any) -> int:
    if equation is None or equation.primitive.name in MOVES:
        return 0
    name, params = equation.primitive.name, equation.params
    shape = equation.invars[0].aval.shape if equation.invars else ()
    if name.startswith("reduce_window"):
        return math.prod((*equation.outvars[0].aval.shape, *params["window_dimensions"]))
    if name.startswith(("reduce_", "cum", "argm")):
        return math.prod(shape)
    result = equation.outvars[0].aval
    if not jnp.issubdtype(getattr(result, "dtype", np.bool_), jnp.inexact):
        return 0
    size = math.prod(result.shape)
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        _, inputs, *taps = params["dimension_numbers"].rhs_spec
        products = kernel[inputs] * math.prod(kernel[axis] for axis in taps)
        return 2 * size * products // math.prod(params["lhs_dilation"])
    return size
