"""Descriptions by which a run recognises its own checkpoints.

A run that starts again must not go on from the checkpoint of other settings or other data. So all
that decides its result is described as JSON, written beside the checkpoints, and compared.
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
    """A JSON description of a model, an attack, a function or data, the same in every process.

    `repr` would not do: it prints the addresses of functions and leaves out most of an array.

    Args:
      value: A dataclass (linen modules are), an nnx module, a function, a `functools.partial`, numbers,
        strings, arrays and containers of these. Of a function only the name is known, of a variable of
        nnx the class and shape, of any other object only the class: changes inside are not seen.

    Returns:
      Dicts, lists, strings, numbers, booleans and None. Of an array its type, shape and SHA-256.

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
            # What is found in the program is no setting; what it does is seen by digests.
            if field.name not in ignored and not field.metadata.get("found")
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
    """A digest of what a function computes: other code gives another one, other names do not.

    Arrays that the function closes over are part of it.

    Args:
      function: Any that JAX can trace.
      *arguments: Arrays or their shapes (`jax.ShapeDtypeStruct`), in pytrees.

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
    """The arrays of a traced function and of those inside it, of which its text has but the shapes."""
    yield from closed.consts
    for equation in closed.jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from _closed_over(inner)


def versions() -> dict[str, str]:
    """The packages whose release may change a result in its last bit."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}


def _qualified(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
