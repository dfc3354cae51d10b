"""Checks of the arguments of public functions; each error says what is allowed and what was given.

Names, shapes and types can be checked while jax traces. Values are checked only where they are known: a
traced value passes.
"""

import math
import warnings
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
    """Raises TypeError unless `value` is a `kind`; `such_as` describes one, for the message."""
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

    Numbers and arrays of numbers are checked; placeholders and traced values pass.

    Raises:
      TypeError: `value` is a string, a bool, None or a container.
      ValueError: `value` is out of range, infinite or NaN.
    """
    if isinstance(value, bool | str | bytes | list | tuple | dict) or value is None:
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if isinstance(value, jax.Array | np.ndarray) and not isinstance(value, jax.core.Tracer):
        if not jnp.issubdtype(value.dtype, jnp.number):
            if value.dtype != object:  # nothing is known about a placeholder
                raise TypeError(f"`{name}` must be a number, got an array of {value.dtype}.")
            return
        if not value.size:
            return
        # If the value that is furthest out is allowed, all are. It is looked for on the host: jax makes
        # an attack anew from every compiled result, and each time its numbers are checked.
        array = np.asarray(value)
        low, high = float(array.min()), float(array.max())
        value = low if not (low >= minimum and low > above) or math.isnan(low) else high
    if not isinstance(value, int | float | np.number):
        return
    if not (math.isfinite(value) and minimum <= value <= maximum and value > above):
        minimum = minimum if minimum > above else -math.inf  # `above` says it already
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
    """Raises TypeError unless `value` is a number, and ValueError unless it is in [0, 1)."""
    number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {value!r}.")


def integer(name: str, value: Any, *, minimum: int) -> None:
    """Raises TypeError unless `value` is an integer, and ValueError unless it is at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {value}.")


def integers(name: str, array: Any) -> None:
    """Raises TypeError unless the array has an integer dtype. It reads no values."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"`{name}` must be integers, got {array.dtype}.")


def float_images(images: Any) -> None:
    """Raises unless `images` is a floating-point array [B, H, W, C]. It reads no values.

    Raises:
      TypeError: `images` is not an array of floating-point numbers.
      ValueError: `images` does not have four axes.
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
    """Checks the shapes and types of a batch. It reads no values, so it may run while jax traces.

    Args:
      images: floating point [B, H, W, C].
      labels: int [B].

    Raises:
      TypeError: The images are integers, or the labels are not.
      ValueError: The images do not have four axes, or the lengths differ.
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
    """Raises ValueError unless every pixel is in [0, 1]. It reads values, so they must not be traced.

    Args:
      images: floating point, any shape.
    """
    if not images.size:
        return
    low, high = _ends(images)
    if not (math.isfinite(low) and math.isfinite(high)):
        index = tuple(np.argwhere(~np.isfinite(np.asarray(images, np.float32)))[0].tolist())
        raise ValueError(
            f"`images` must be finite and lie in [0, 1], got {np.asarray(images)[index]} at {index}."
        )
    if low >= 0.0 and high > 2.0:
        raise ValueError(
            f"`images` must lie in [0, 1], got values in [{low:.9g}, {high:.9g}]: divide them by the "
            "largest value that a pixel can have, such as 255, or give bytes as uint8."
        )
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"`images` must lie in [0, 1], got values in [{low:.9g}, {high:.9g}]. Normalisation "
            "belongs in the classifier (`Classifier(mean=..., std=...)`) or `training.Data`, so that "
            "epsilon is in pixel units. If resizing left values slightly outside, use "
            "`np.clip(images, 0, 1)`."
        )


_DARK = 16  # of 255


def bytes_range(images: Any) -> None:
    """Warns if bytes are so small that they hardly have the range 0 .. 255, as raw digits have.

    Args:
      images: uint8, any shape.
    """
    if images.size and 0 < (high := _ends(images)[1]) <= _DARK:
        warnings.warn(
            f"The largest byte of the images is {high}. Bytes are divided by 255, so that these images "
            "are almost black: if they have another range, divide them by its end yourself.",
            stacklevel=4,
        )


_PIECE = 1 << 24  # values per piece: a piece needs only a few megabytes beside the array itself


def _ends(array: Any) -> tuple[Any, Any]:
    """Returns the smallest and the largest value, or NaN if there is one, without moving the array."""
    if isinstance(array, jax.Array):
        low, high = jax.device_get((jnp.min(array), jnp.max(array)))
        return low.item(), high.item()
    flat = np.asarray(array).reshape(-1)
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]
    if np.issubdtype(flat.dtype, np.integer):
        return min(int(p.min()) for p in pieces), max(int(p.max()) for p in pieces)
    # float64 holds the values of every floating type, those of ml_dtypes too, and keeps NaN.
    ends = np.array([(p.min(), p.max()) for p in pieces], np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def label_range(name: str, labels: Any, num_classes: int) -> None:
    """Raises ValueError unless every label is in 0 .. num_classes - 1.

    It reads values, so they must not be traced.

    Args:
      name: The argument's name, for the message.
      labels: int, any shape.
      num_classes: The number of classes, K.
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
    """Says whether jax is tracing this code or one of the values, so that values are not known.

    Args:
      *values: Pytrees. Under `jax.grad` alone, only the values to be differentiated are traced.
    """
    leaves = [jnp.zeros(()), *jax.tree.leaves(values)]
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def json_object(name: str, value: Any) -> dict[str, Any]:
    """Converts a mapping to JSON values: arrays and tuples to lists, numpy's numbers to Python's.

    Args:
      name: The argument's name, for the messages.
      value: A mapping with strings as keys; its values are JSON, arrays, or mappings of these.

    Returns:
      The same content in Python's own types.

    Raises:
      TypeError: `value` is not a mapping, a key is not a string (JSON would turn it into one), or an
        entry is neither JSON nor an array; the message says which.
      ValueError: An entry is NaN or infinite, which JSON cannot hold.
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
            raise ValueError(f"`{name}` must be JSON, which cannot hold {item}, got it as {where}.")
        if item is None or isinstance(item, bool | int | float | str):
            return item
        raise TypeError(
            f"`{name}` must hold JSON values and arrays only, got {type(item).__name__} as {where}."
        )

    result: dict[str, Any] = plain(value, name)
    return result
