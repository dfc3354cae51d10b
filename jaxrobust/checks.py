"""Checks of arguments at the public edge: each error names what was wrong and what would be right.

Static facts (names, shapes, types) can be checked while tracing. Values are checked only where they
are known: a traced value passes, because nothing can be said about it yet.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {tuple(allowed)}, got {value!r}.")


def instance(name: str, value: Any, kind: type, such_as: str) -> None:
    """Raises TypeError unless `value` is of a class; `such_as` shows how one is written."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {such_as}, got {type(value).__name__}.")


def number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
) -> None:
    """Raises unless `value` is a finite number in [minimum, maximum] and greater than `above`.

    Numbers and arrays of them are looked at; placeholders and traced values pass.

    Raises:
      TypeError: A string, a bool, None or a container.
      ValueError: Out of range, infinite or NaN.
    """
    if isinstance(value, bool | str | bytes | list | tuple | dict) or value is None:
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if isinstance(value, jax.Array | np.ndarray) and not is_traced(value):
        if not jnp.issubdtype(value.dtype, jnp.number):
            if value.dtype != object:  # of a placeholder nothing can be said
                raise TypeError(f"`{name}` must be a number, got an array of {value.dtype}.")
            return
        if not value.size:
            return
        # The one that is furthest out speaks for all.
        low, high = float(np.min(value)), float(np.max(value))
        value = low if not (low >= minimum and low > above) or math.isnan(low) else high
    if not isinstance(value, int | float | np.number):
        return
    if not (math.isfinite(value) and minimum <= value <= maximum and value > above):
        minimum = minimum if minimum > above else -math.inf  # which says the same
        bounds = [
            f"{words} {bound:g}"
            for words, bound in (("above", above), ("at least", minimum), ("at most", maximum))
            if math.isfinite(bound)
        ]
        raise ValueError(
            f"`{name}` must be a finite number{' ' * bool(bounds)}{' and '.join(bounds)}, "
            f"got {value!r}."
        )


def fraction(name: str, value: Any) -> None:
    """Raises unless `value` is a number in [0, 1), as `number` does."""
    number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {value!r}.")


def integer(name: str, value: Any, *, minimum: int) -> None:
    """Raises unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")


def integers(name: str, array: Any) -> None:
    """Raises TypeError unless `array`, which has a dtype, is of integers; reads no values."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got {array.dtype}.")


def float_images(images: Any) -> None:
    """Raises unless `images` is a floating array [B, H, W, C]; reads no values.

    Raises:
      TypeError: No array, or one of integers.
      ValueError: Wrong rank.
    """
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise TypeError(f"`images` must be an array, got {type(images).__name__}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"`images` must be floating point in [0, 1], got {images.dtype}; "
            "divide uint8 images by 255."
        )
    if images.ndim != 4:
        raise ValueError(f"`images` must be [B, H, W, C], got shape {tuple(images.shape)}.")


def images_and_labels(images: Any, labels: Any) -> None:
    """Checks the shapes and types of a batch; no values, so it may run while tracing.

    Args:
      images: floating [B, H, W, C].
      labels: integer [B].

    Raises:
      TypeError: Integer images or fractional labels.
      ValueError: Wrong rank, or lengths that differ.
    """
    float_images(images)
    if not hasattr(labels, "shape") or not hasattr(labels, "dtype"):
        raise TypeError(f"`labels` must be an array, got {type(labels).__name__}.")
    integers("labels", labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"`labels` must have shape {tuple(images.shape[:1])} to match `images`, "
            f"got {tuple(labels.shape)}."
        )


def value_range(images: Any) -> None:
    """Raises ValueError unless every pixel is in [0, 1]. Reads values: host only.

    Args:
      images: floating, any shape.
    """
    if not images.size:
        return
    low, high = _ends(images)
    if not (math.isfinite(low) and math.isfinite(high)):
        index = tuple(np.argwhere(~np.isfinite(np.asarray(images, np.float32)))[0].tolist())
        raise ValueError(
            f"`images` must be finite and lie in [0, 1], got {np.asarray(images)[index]} at {index}."
        )
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"`images` must lie in [0, 1], got values in [{low:.9g}, {high:.9g}]. Normalisation "
            "belongs in the classifier (`Classifier(mean=..., std=...)`), so that epsilon is in pixel "
            "units; what resizing leaves beyond the ends is for `np.clip(images, 0, 1)`."
        )


_PIECE = 1 << 24  # values looked at together: a few megabytes beside the array itself


def _ends(array: Any) -> tuple[Any, Any]:
    """The smallest and the largest value, NaN where there is one; found where the array lies."""
    if isinstance(array, jax.Array):
        low, high = jax.device_get((jnp.min(array), jnp.max(array)))
        return low.item(), high.item()
    flat = np.asarray(array).reshape(-1)
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]
    if np.issubdtype(flat.dtype, np.integer):
        return min(int(p.min()) for p in pieces), max(int(p.max()) for p in pieces)
    # In numpy's own types, to which those of ml_dtypes convert; NaN spreads.
    ends = np.array([(p.min(), p.max()) for p in pieces], np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def label_range(name: str, labels: Any, num_classes: int) -> None:
    """Raises ValueError unless every label is in 0 .. num_classes - 1. Reads values: host only.

    Args:
      name: The argument's name, for the message.
      labels: integer, any shape.
      num_classes: K.
    """
    if not labels.size:
        return
    low, high = _ends(labels)
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"`{name}` must lie in 0 .. {num_classes - 1} for {num_classes} classes, "
            f"got values in {low} .. {high}."
        )


def is_traced(*values: Any) -> bool:
    """Whether this code is being traced, or one of the values is: then values are not known.

    Args:
      *values: Pytrees. Under `jax.grad` alone only what is differentiated is traced.
    """
    leaves = [jnp.zeros(()), *jax.tree.leaves(values)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def json_object(name: str, value: Any) -> dict[str, Any]:
    """A mapping as JSON has it: arrays and tuples become lists, numpy's numbers Python's.

    Raises:
      TypeError: No mapping, a key that is no string (JSON would make one of it), or a value that is
        neither JSON nor an array; the message says where.
      ValueError: NaN or infinity, for which JSON has no word.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"`{name}` must be a JSON object, got {type(value).__name__}.")

    def plain(item: Any, where: str) -> Any:
        if isinstance(item, Mapping):
            for key in item:
                if not isinstance(key, str):
                    raise TypeError(f"`{name}` must have strings as keys, got {key!r} in {where}.")
            return {key: plain(entry, f"{where}[{key!r}]") for key, entry in item.items()}
        if isinstance(item, np.generic | np.ndarray | jax.Array):
            item = np.asarray(item).tolist()
        if isinstance(item, list | tuple):
            return [plain(entry, f"{where}[{index}]") for index, entry in enumerate(item)]
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"`{name}` must be JSON, which has no {item}, got it as {where}.")
        if item is None or isinstance(item, bool | int | float | str):
            return item
        raise TypeError(f"`{name}` must be JSON and arrays, got {type(item).__name__} as {where}.")

    result: dict[str, Any] = plain(value, name)
    return result
