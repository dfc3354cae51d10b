"""A classifier's answers to many images, and whether figures can be made of them."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.types import BatchDependent, LogitsFn, Stochastic, fold_keys

# How far answers to one image may be apart, as a share of the spread of its logits: with other images
# beside it in its batch (nothing of its own arithmetic changes), in another row or at another batch
# size (rounding does, of a network that computes in bfloat16 by more).
_OTHERS, _ROW = 1e-4, 0.03

TRAINING_MODE = (
    "It is probably in training mode, where BatchNorm takes its statistics from the batch: call "
    "`model.eval()` (nnx), or apply the module with `train=False` or `use_running_average=True` "
    "(linen)."
)
_ADVICE = (
    f"{TRAINING_MODE} If the answers are meant to depend on the batch, wrap the classifier: "
    "`jaxrobust.types.BatchDependent(logits_fn)`."
)


def padded_batches(num_images: int, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of batches of one size: the last is filled up with its last index.

    One size means one compilation; what the filling computes is thrown away.

    Args:
      num_images: How many there are.
      batch_size: At least 1; reduced to num_images where it is larger.

    Yields:
      (indices int [batch_size], how many of them count).
    """
    batch_size = min(batch_size, num_images)
    for start in range(0, num_images, max(batch_size, 1)):
        indices = np.arange(start, start + batch_size)
        yield np.minimum(indices, num_images - 1), min(batch_size, num_images - start)


def check_images(images: Any) -> np.ndarray:
    """The images on the host, once their type and values have been checked; nothing is converted.

    Args:
      images: uint8, or floating in [0, 1], [B, H, W, C].

    Raises:
      TypeError: Another type.
      ValueError: Floats outside [0, 1].
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"`images` must be uint8 or floating point, got {images.dtype}.")
        checks.value_range(images)
    return images


def as_float(images: Any) -> np.ndarray:
    """Images as float32 in [0, 1]: uint8 are divided by 255, floats must lie there already.

    Args:
      images: uint8 or floating [B, H, W, C].

    Raises:
      TypeError: Another type.
      ValueError: Floats outside [0, 1].
    """
    return _converted(check_images(images))


def _converted(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / np.float32(255)
    return images.astype(np.float32, copy=False)


def _forward(
    logits_fn: LogitsFn, images: jax.Array, indices: jax.Array, draw: jax.Array
) -> jax.Array:
    if isinstance(logits_fn, Stochastic):
        keys = fold_keys(jax.random.fold_in(_zero_key(), draw), indices)
        return logits_fn(images, keys).astype(jnp.float32)
    return logits_fn(images).astype(jnp.float32)


_compiled_forward = compilation.jit(_forward, exact_types=True)


def _zero_key() -> jax.Array:
    return jax.random.key(0, impl="threefry2x32")


def answers(
    logits_fn: LogitsFn, images: np.ndarray, batch_size: int, draw: int = 0, *, start: Any = None
) -> np.ndarray:
    """The logits of images whose values have been checked, in batches of one size.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      batch_size: Images at a time.
      draw: Which answers of a `Stochastic` classifier: other numbers are other draws.
      start: int [N], the images' places in their data set, which its keys depend on; 0 .. N - 1.

    Returns:
      float32 [N, K].
    """
    if not len(images):
        return np.zeros((0, 0), np.float32)
    places = np.arange(len(images)) if start is None else start
    shape = (min(batch_size, len(images)), *images.shape[1:])
    function = programs.as_argument(logits_fn, jax.ShapeDtypeStruct(shape, np.float32))
    rows = [
        np.asarray(
            _compiled_forward(
                function,
                jnp.asarray(_converted(images[indices])),
                jnp.asarray(places[indices]),
                jnp.int32(draw),
            )
        )[:count]
        for indices, count in padded_batches(len(images), batch_size)
    ]
    return np.concatenate(rows)


def check_rows(logits_fn: LogitsFn, images: np.ndarray, batch_size: int, first: np.ndarray) -> None:
    """Refuses a classifier whose answer to an image depends on the images beside it.

    Every second image of a batch is replaced by its negative; the others must keep their logits. A
    batch of one image gets a neighbour.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: uint8, or floating in [0, 1], [N, H, W, C].
      batch_size: Images at a time.
      first: float32 [N, K], their logits as `answers` computes them.

    Raises:
      ValueError: Logits that change; the message says what is the likely reason.
    """
    count = min(batch_size, len(images))
    if not count or isinstance(logits_fn, BatchDependent):
        return
    shown = _converted(images[:count])
    if count == 1:
        pair, places = np.concatenate([shown, 1 - shown]), np.array([0, 1])
        beside, tolerance = answers(logits_fn, pair, 2, start=places)[:1], _ROW
    else:
        pair = shown.copy()
        pair[1::2] = 1 - pair[1::2]
        beside, tolerance = answers(logits_fn, pair, count), _OTHERS
    moved = _moved(first[:count:2], beside[::2], tolerance)
    if not moved:
        return
    n = len(first[:count:2])
    again = answers(logits_fn, shown, count)
    if _moved(first[:count], again, _OTHERS):
        raise ValueError(
            f"`logits_fn` gives the same images other logits when it is asked twice ({moved} of {n} "
            "images): declare a classifier that answers at random as a `jaxrobust.types.Stochastic`, "
            "whose figures are means over its answers."
        )
    raise ValueError(
        f"`logits_fn` gives {moved} of {n} images other logits when other images are in their batch: "
        f"every figure would depend on the batch size. {_ADVICE}"
    )


def check_alone(
    logits_fn: LogitsFn, images: np.ndarray, clean_logits: np.ndarray, num_images: int = 3
) -> None:
    """Refuses a classifier that gives an image other logits when it is alone.

    Args:
      logits_fn: As `check_rows`.
      images: [N, H, W, C].
      clean_logits: float32 [N, K], computed in batches.
      num_images: How many of them are shown alone.

    Raises:
      ValueError: As `check_rows`.
    """
    if isinstance(logits_fn, BatchDependent) or len(images) < 2:
        return
    rows = np.unique(np.linspace(0, len(images) - 1, num_images).astype(int))
    alone = answers(logits_fn, images[rows], 1, start=rows)
    moved = _moved(clean_logits[rows], alone, _ROW)
    if moved:
        raise ValueError(
            f"`logits_fn` gives {moved} of {len(rows)} images other logits alone than in a batch of "
            f"others. {_ADVICE}"
        )


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How far apart two answers are, [N], as a share of the spread of the first one's finite logits.

    Equal infinities and NaN in the same places are no distance; in different places they are infinite.
    """
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(first.astype(np.float64) - second))
    apart = np.where(np.isnan(apart), np.inf, apart).max(axis=1)
    usual = np.isfinite(first) & (np.abs(first) < 1e20)  # what is masked is no part of the spread
    high = np.where(usual, first, -np.inf).max(axis=1)
    low = np.where(usual, first, np.inf).min(axis=1)
    spread = np.maximum(np.where(np.isfinite(high - low), high - low, 0.0), 1e-6)
    return apart / spread


def _moved(first: np.ndarray, second: np.ndarray, tolerance: float) -> int:
    return int((distances(first, second) > tolerance).sum())


def unusual(values: np.ndarray) -> tuple[str, ...]:
    """What is noticed about logits [N, K] before anything is made of them: sentences, mostly none."""
    rows = values[~np.isnan(values).any(axis=1)].astype(np.float64)
    if not len(rows):
        return ()
    # Of narrow types too; a network's logits are never so by chance in all of several rows.
    sums = rows.sum(axis=1)
    if rows.min() >= 0 and rows.max() <= 1 and np.abs(sums - 1).max() < 1e-2:
        return (
            "The classifier returns probabilities where logits are needed: its rows lie in [0, 1] and "
            "sum to 1. A second softmax flattens every loss, so attacks look weaker than they are. "
            "Leave the last softmax out, or return `jnp.log(probabilities)`.",
        )
    return ()
