"""Checks whether a classifier's answer to an image depends on the other images of the batch.

The usual case is BatchNorm in training mode: its statistics are those of the batch, so accuracy and the
results of attacks depend on the batch size.
"""

import warnings
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.programs import comparing
from jaxrobust.programs.arguments import as_argument
from jaxrobust.types import Array, BatchDependent, LogitsFn, Stochastic, fold_keys

# The largest allowed distances between answers to the same image, as shares of the distances between
# answers to different images. The first is for other images beside it, where its own arithmetic stays
# the same. The second is for another row, or for the image alone, where rounding changes, which
# matters most in bfloat16.
_BESIDE, _MOVED = 1e-4, 0.03
_MASKED = 1e20  # a logit beyond this is masked: the class is never predicted
_ALONE = 3  # the number of images that are evaluated alone

TRAINING_MODE = (
    "The classifier is probably in training mode, where BatchNorm takes its statistics from the batch "
    "and dropout is active: call `model.eval()` (nnx), or apply the module with `train=False`, "
    "`use_running_average=True` or `deterministic=True` (linen)."
)


class Dependence(NamedTuple):
    """A dependence of a classifier's answers on the batch.

    Attributes:
      when: When the logits differ: "asked twice", "beside others" or "alone".
      moved: The number of images whose logits differ.
      n: The number of images.
    """

    when: str
    moved: int
    n: int

    def __str__(self) -> str:
        if self.when == "asked twice":
            return (
                f"The classifier is stochastic: {self.moved} of {self.n} images get other logits when "
                "they are evaluated twice. Declare it as a `jaxrobust.types.Stochastic`, whose figures "
                "are means over its answers."
            )
        where = {
            "beside others": "when other images are in their batch",
            "alone": "when they are alone or in another place of their batch",
        }[self.when]
        what = f"The classifier gives {self.moved} of {self.n} images other logits {where}."
        return f"{what} {TRAINING_MODE}"


def answer(logits_fn: Any, images: Array, places: Array, draw: Array | int = 0) -> Array:
    """Computes a classifier's logits as float32; those of a `Stochastic` are the mean of its samples.

    Args:
      logits_fn: The classifier, as `as_argument` returns it.
      images: float32 [B, H, W, C] in [0, 1].
      places: int [B], the indices of the images in their data set, on which the samples depend.
      draw: The number of the draw; other numbers give other samples.

    Returns:
      float32 [B, K].
    """
    if not isinstance(logits_fn, Stochastic):
        return logits_fn(images).astype(jnp.float32)
    key = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), draw)
    return logits_fn(images, fold_keys(key, places)).astype(jnp.float32)


compiled_answer = compilation.jit(answer, exact_types=True)


def dependence(
    logits_fn: LogitsFn,
    images: np.ndarray,
    *,
    first: np.ndarray | None = None,
    thorough: bool = False,
) -> Dependence | None:
    """Looks for a dependence of the classifier's answers on the batch.

    One half of the images of a batch is replaced by noise, then the other half. The images that stay
    must keep their logits. A batch of one image gets a second image.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A `BatchDependent` classifier
        is not checked.
      images: float32 [B, H, W, C] in [0, 1], a batch.
      first: float32 [B, K], the logits of this batch, if they are known.
      thorough: Whether to evaluate also a few images in batches of copies of themselves, and all images
        in another place of the batch.

    Returns:
      The dependence; None if the answers do not depend on the batch.
    """
    if isinstance(logits_fn, BatchDependent) or not len(images):
        return None
    count = len(images)
    # An unusual seed, because the images may themselves be noise that was drawn with a usual one.
    noise = np.random.default_rng(0x6A61785F).random(images.shape, np.float32)
    places = np.arange(count)
    # All batches have the shape of `images`, so that these checks compile nothing more.
    function = as_argument(logits_fn, jax.ShapeDtypeStruct(images.shape, np.float32))

    def shown(images: np.ndarray, places: np.ndarray = places) -> np.ndarray:
        return np.asarray(compiled_answer(function, jnp.asarray(images), jnp.asarray(places)))

    first = shown(images) if first is None else first
    if count == 1:
        pair = np.concatenate([images, noise])
        try:
            function, two = as_argument(logits_fn, pair), np.arange(2)
        except Exception:  # the function only takes batches of one image
            return None
        both = shown(pair, two)
        moved = _far(both, np.concatenate([first, both[1:]]), _MOVED)
        return Dependence("beside others", moved, 1) if moved else None
    # One half is the rows whose number has an even count of ones in binary: every regular group of
    # rows, of neighbours or with a stride, then has rows in both halves.
    stays = np.array([row.bit_count() % 2 == 0 for row in range(count)])
    moved = 0
    for stay in (stays, ~stays):
        mixed = np.where(stay[:, None, None, None], images, noise)
        moved += _far(first, shown(mixed), _BESIDE, stay)
    if moved:
        again = _far(first, shown(images), _BESIDE)
        found = ("asked twice", again) if again else ("beside others", moved)
        return Dependence(*found, count)
    if not thorough:
        return None
    single = first.copy()
    for row in np.unique(np.linspace(0, count - 1, _ALONE).astype(int)):
        copies = np.broadcast_to(images[row], images.shape)
        single[row] = shown(copies, np.full(count, row))[row]
    rolled = np.roll(shown(np.roll(images, 1, axis=0), np.roll(places, 1)), -1, axis=0)
    moved = max(_far(first, single, _MOVED), _far(first, rolled, _MOVED))
    return Dependence("alone", moved, count) if moved else None


def check(
    logits_fn: LogitsFn,
    images: np.ndarray,
    *,
    first: np.ndarray | None = None,
    thorough: bool = False,
) -> None:
    """Raises if `dependence`, with the same arguments, finds a dependence.

    Raises:
      ValueError: The answers depend on the batch; the message names the likely reason.
    """
    found = dependence(logits_fn, images, first=first, thorough=thorough)
    if found is None:
        return
    advice = (
        ""
        if found.when == "asked twice"
        else " Every figure would depend on the batch size. If this is intended, wrap the classifier: "
        "`jaxrobust.types.BatchDependent(logits_fn)`."
    )
    raise ValueError(f"`logits_fn` cannot be evaluated. {found}{advice}")


class _Known:
    """An array of a checked program, to which only a weak reference is kept.

    Attributes:
      content: The type, shape and digest of an array that is made anew at each call, such as a constant
        of numpy; None for other arrays.
    """

    def __init__(self, array: Any, *, with_content: bool) -> None:
        self._array = weakref.ref(array) if isinstance(array, jax.Array) else lambda: array
        self.content = comparing.content(array) if with_content else None

    def is_same(self, array: Any) -> bool:
        before = self._array()
        if before is array or self.content is not None:
            return before is array or self.content == comparing.content(array)
        return not isinstance(array, jax.Array) and bool(before == array)


_checked: "weakref.WeakKeyDictionary[Any, Sequence[_Known]]" = weakref.WeakKeyDictionary()


def check_once(logits_fn: LogitsFn, function: Any, images: Any) -> None:
    """Calls `check`, unless the program was last checked with the same arrays.

    Raises:
      ValueError: The answers depend on the batch.
    """
    program: Any = function.function if isinstance(function, Stochastic) else function
    known = _checked.get(program.code)
    if known is not None and all(map(_Known.is_same, known, program.arrays)):
        return
    images = np.asarray(images)  # not before: they may be on an accelerator
    is_for_these = images.shape in (shape for shape, _ in program.code.arguments)
    shown = function if is_for_these else as_argument(logits_fn, images)
    first = np.asarray(compiled_answer(shown, jnp.asarray(images), jnp.arange(len(images))))
    for sentence in unusual(first):
        warnings.warn(sentence, stacklevel=4)
    check(logits_fn, images, first=first)
    # An array that was replaced since the last call may be made anew at each call: keep its content.
    before: Sequence[_Known | None] = known or [None] * len(program.arrays)
    _checked[program.code] = [
        _Known(array, with_content=one is not None and not one.is_same(array))
        for one, array in zip(before, program.arrays, strict=True)
    ]


def unusual(values: np.ndarray) -> tuple[str, ...]:
    """Returns sentences about what is unusual in logits [N, K]; usually none."""
    rows = values[~np.isnan(values).any(axis=1)].astype(np.float64)
    if not len(rows):
        return ()
    # The tolerance allows for narrow types. Logits do not have such rows by chance.
    sums = rows.sum(axis=1)
    if rows.min() >= 0 and rows.max() <= 1 and np.abs(sums - 1).max() < 1e-2:
        return (
            "The classifier returns probabilities where logits are needed: its rows lie in [0, 1] and "
            "sum to 1. A second softmax flattens every loss, so attacks look weaker than they are. "
            "Leave the last softmax out, or return `jnp.log(probabilities)`.",
        )
    return ()


def _far(first: np.ndarray, second: np.ndarray, tolerance: float, rows: Any = slice(None)) -> int:
    """Counts the rows in which two answers to the same images differ by more than the tolerance."""
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(first.astype(np.float64) - second))
    apart = np.where(np.isnan(apart), np.inf, apart)
    moved: np.ndarray = np.any(apart > tolerance * _scales(first), axis=1)
    return int(moved[rows].sum())


def _scales(logits: np.ndarray) -> np.ndarray:
    """Returns for each class how far its logits for different images are apart.

    A class counts at least as much as the median class. Classes that are masked, or have the same logit
    for all images, do not count for the median.
    """
    rows = logits[~np.isnan(logits).any(axis=1)].astype(np.float64)
    ordinary = (np.abs(rows) < _MASKED).all(axis=0)
    spreads, sizes = np.zeros(logits.shape[1]), np.zeros(logits.shape[1])
    if len(rows):
        spreads[ordinary] = np.ptp(rows[:, ordinary], axis=0)
        sizes[ordinary] = np.abs(rows[:, ordinary]).max(axis=0)
    varied = spreads > 0
    # If all images get almost the same answer, their distances are only rounding errors.
    return np.maximum(spreads, max(_middle(spreads[varied]), 1e-4 * _middle(sizes[varied])))


def _middle(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2]) if len(values) else 0.0
