"""Descriptions by which a run recognises its own checkpoints.

A run must not resume from a checkpoint of other settings or other data. So everything that determines
its result is described as JSON, written beside the checkpoints, and compared.
"""

import dataclasses
import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxrobust.training.step import nnx_modules


def describe(value: Any) -> Any:
    """Describes a model, an attack, a function or data as JSON that is the same in every process.

    `repr` is not enough: it prints the addresses of functions and leaves out most of an array.

    Args:
      value: A dataclass (which includes linen modules), an nnx module, a function, a
        `functools.partial`, a number, a string, an array, or a container of these. A function is
        described by its name, an nnx variable by its class and shape, and any other object by its
        class; changes inside these are not noticed.

    Returns:
      Dicts, lists, strings, numbers, booleans and None. An array becomes its type, shape and SHA-256.

    Example:
      >>> describe({"f": len, "sizes": (3, 4)})
      {'f': 'builtins.len', 'sizes': [3, 4]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if nnx_modules.is_nnx(value):
        return {path: describe(item) for path, item in nnx_modules.described(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return describe(jax.random.key_data(value))
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        if np.ndim(value) == 0:
            return array.reshape(()).item()
        # As bytes: numpy has no buffer of bfloat16.
        digest = hashlib.sha256(array.view(np.uint8).data).hexdigest()
        return f"{array.dtype.name}{list(array.shape)} sha256 {digest}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Where a linen module hangs is no setting of it.
        ignored = ("parent", "name") if isinstance(value, nn.Module) else ()
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            # What `fit` finds in the program unless it is given is a setting only where it is given.
            if field.name not in ignored
            and not (field.metadata.get("found") and getattr(value, field.name) is None)
        }
        return {"type": _qualified(type(value)), **fields}
    if hasattr(value, "func") and hasattr(value, "keywords"):
        return {
            "function": describe(value.func),
            "arguments": describe(value.args),
            "keywords": describe(value.keywords),
        }
    return _qualified(value if hasattr(value, "__qualname__") else type(value))


def program(function: Callable[..., Any], *arguments: Any) -> str:
    """Returns a digest of what a function computes, which depends on its code but not on names.

    Arrays in the closure of the function are part of the digest.

    Args:
      function: Any function that JAX can trace.
      *arguments: Pytrees of arrays or of their shapes (`jax.ShapeDtypeStruct`).

    Example:
      >>> x = jax.ShapeDtypeStruct((2,), np.float32)
      >>> program(lambda a: a + 1, x) == program(lambda b: b + 1, x) != program(lambda a: a + 2, x)
      True
    """
    closed = jax.make_jaxpr(function)(*arguments)
    # Functions inside (of a custom gradient, say) are printed with their addresses.
    text = re.sub(r"0x[0-9a-f]+", "", str(closed))
    digest = hashlib.sha256(text.encode())
    for array in _closed_over(closed):
        digest.update(str(describe(array)).encode())
    return digest.hexdigest()


def _closed_over(closed: Any) -> Iterator[Any]:
    """Yields the arrays in the closures of a traced function; its text has only their shapes."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from _closed_over(inner)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that may change the last bits of a result."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
