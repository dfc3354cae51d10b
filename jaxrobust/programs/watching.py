"""Identifies classifiers, and notices if the weights of one change during a long run."""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrobust import compilation
from jaxrobust.programs.arguments import as_argument, is_settled
from jaxrobust.programs.tracing import Program, trace
from jaxrobust.types import LogitsFn

_SHARE = 0.02  # the share of a run's time that checks for changed weights may take


def fingerprint(logits_fn: LogitsFn, images: Any) -> dict[str, str]:
    """Identifies a classifier by digests, which are the same in all processes with one release of jax.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: floating point [B, H, W, C]; only shape and type matter.

    Returns:
      {"program": the digest of the equations, "weights": the digest of all arrays}, with 16 hexadecimal
      digits each. Different callbacks into Python give the same digest.
    """
    compilation.check_callable(logits_fn)
    program = _whole(logits_fn, images)
    leaves = jax.tree.leaves(logits_fn) if is_settled(logits_fn) else []
    weights = hashlib.sha256()
    for array in (*program.arrays, *leaves):
        weights.update(_bytes(array))
    return {"program": program.code.text, "weights": weights.hexdigest()[:16]}


class Watch:
    """Notices that a classifier's weights change while it is evaluated.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: floating point [B, H, W, C]; only shape and type matter.
    """

    def __init__(self, logits_fn: LogitsFn, images: Any) -> None:
        one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
        self._look = _look_at(logits_fn, one)
        self._seen, self._took, self._last = (), 0.0, 0.0
        self._seen = self._timed()

    def _timed(self) -> tuple:
        start = time.perf_counter()
        seen = self._look()
        self._last = time.perf_counter()
        self._took = self._last - start
        return seen

    def check(self, *, always: bool = True) -> None:
        """Raises if the classifier has changed since the watch began.

        Args:
          always: Whether to compare in any case. If False, it compares only if the last comparison was
            so long ago that another one costs little.

        Raises:
          ValueError: The classifier's equations or arrays have changed.
        """
        if not always and time.perf_counter() - self._last < self._took / _SHARE:
            return
        now = self._timed()
        same = len(now) == len(self._seen) and all(map(_is_same, self._seen, now))
        if not same:
            raise ValueError(
                "`logits_fn` has changed while it was being evaluated: its weights or its equations "
                "are not those of the start, so earlier results do not belong to its present state. "
                "Evaluate a copy (a pytree with its weights as leaves), or evaluate after training."
            )


def _look_at(logits_fn: LogitsFn, images: Any) -> Callable[[], tuple]:
    if is_settled(logits_fn):
        # jax's arrays never change, but arrays of numpy may be written to.
        leaves = [leaf for leaf in jax.tree.leaves(logits_fn) if isinstance(leaf, np.ndarray)]
        return lambda: tuple(hashlib.sha256(_bytes(leaf)).digest() for leaf in leaves)

    def look() -> tuple:
        program = _whole(logits_fn, images)
        return (program.code.text, *program.arrays)

    return look


def _is_same(before: Any, now: Any) -> bool:
    if before is now:
        return True
    if isinstance(before, jax.Array) and isinstance(now, jax.Array):
        alike = before.shape == now.shape and before.dtype == now.dtype
        return alike and _bytes(before) == _bytes(now)
    return bool(before == now)


def _whole(logits_fn: LogitsFn, images: Any) -> Program:
    """Returns the program of a classifier; the weights of a settled one are among its arguments."""
    if not is_settled(logits_fn):
        found: Any = as_argument(logits_fn, images)
        whole: Program = getattr(found, "function", found)  # `function` is that of a Stochastic
        return whole
    leaves, structure = jax.tree.flatten(logits_fn)
    return trace(
        lambda leaves, images: jax.tree.unflatten(structure, leaves)(images), leaves, images
    )


def _bytes(array: Any) -> bytes:
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    plain = np.asarray(array)
    return f"{plain.dtype}{plain.shape}".encode() + np.ascontiguousarray(plain).tobytes()
