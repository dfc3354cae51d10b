"""Tries the copy of oneDNN inside jaxlib; `jaxrobust.compilation.onednn_types` runs this as a process.

It prints the name of every type in which all convolutions come out right.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.ops import onednn
from jaxrobust.ops.conv import Window, convolution
from jaxrobust.types import Array

Arrays = tuple[Array, Array, Array | None, Array | None]

# Largest error of outputs whose largest is 1; bfloat16 has 8 bits.
_TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2}


class Case(NamedTuple):
    """A convolution.

    Attributes:
      images: The shape of the images.
      kernel: The shape of the kernel.
      window: Strides and padding.
      has_bias: Whether a bias is added.
      has_residual: Whether a residual is added.
    """

    images: tuple[int, int, int, int]
    kernel: tuple[int, int, int, int]
    window: Window
    has_bias: bool = False
    has_residual: bool = False


_SAME = ((1, 1), (1, 1))
CASES = (
    Case((3, 8, 8, 3), (3, 3, 3, 16), Window(padding=_SAME)),
    Case((3, 8, 8, 16), (3, 3, 16, 16), Window(padding=_SAME), True, True),
    Case((2, 9, 7, 16), (3, 3, 16, 32), Window((2, 2), _SAME), True),
    Case((3, 8, 8, 32), (1, 1, 32, 7), Window(), False, True),
    Case((1, 9, 8, 5), (5, 4, 5, 9), Window((1, 2), ((2, 3), (0, 1))), True),
    Case((4, 4, 4, 64), (2, 2, 64, 33), Window()),
)


def error(case: Case, type_name: str, seed: int = 0) -> float:
    """Returns the largest error of random outputs, divided by the largest output or 1 if this is less.

    The reference is the library's own form, in float32, of the same rounded arrays.

    Args:
      case: The convolution.
      type_name: "float32" or "bfloat16".
      seed: The seed of the arrays. Outputs of the convolution have a variance of 1, like the others.

    Returns:
      The error, at least 0.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return jnp.asarray(generator.standard_normal(shape, np.float32), type_name)

    shape = case.window.output_shape(case.images, case.kernel)
    arrays = (
        normal(*case.images),
        normal(*case.kernel) / math.prod(case.kernel[:3]) ** 0.5,
        normal(shape[3]) if case.has_bias else None,
        normal(*shape) if case.has_residual else None,
    )
    return float(_error(arrays, case.window))


@functools.partial(compilation.jit, in_a_hurry=True, static_argnums=1)
def _error(arrays: Arrays, window: Window) -> Array:
    found = onednn.convolve(*arrays, window).astype(jnp.float32)
    exact: Arrays = jax.tree.map(lambda one: one.astype(jnp.float32), arrays)
    images, kernel, bias, residual = exact
    expected = convolution(images, kernel, window, bias=bias, residual=residual)
    return jnp.abs(found - expected).max() / jnp.maximum(jnp.abs(expected).max(), 1)


def is_right(case: Case, type_name: str, seed: int = 0) -> bool:
    """Says whether the outputs are right but for rounding in the type."""
    return error(case, type_name, seed) <= _TOLERANCES[type_name]


if __name__ == "__main__":
    for _name in compilation.ONEDNN_TYPES:
        if all(is_right(case, _name) for case in CASES):
            print(_name, flush=True)
