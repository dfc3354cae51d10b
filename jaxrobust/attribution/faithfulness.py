"""Deletion and insertion: whether a class's probability depends on the pixels that a map marks."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.attribution.arguments import checked, checked_maps, pixels_like
from jaxrobust.types import Array, LogitsFn, as_key


def deletion_curve(
    logits_fn: LogitsFn,
    images: Array,
    maps: Array,
    labels: Array,
    *,
    num_steps: int = 20,
    baseline: float | Array = 0.5,
) -> dict[str, Array]:
    """Measures how fast a class's probability falls as the most important pixels are removed.

    It falls fast if the map is good. Pixels of equal importance are removed in one random order, the
    same for every map, so that a constant map counts as a random one. The steps run one after another,
    each on the whole batch.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      maps: floating point [B, H, W]; larger is more important. The negative pixels of a signed map are
        removed last; pass `jnp.abs(maps)` to count them as important.
      labels: int [B], the classes that the maps explain.
      num_steps: The number of steps from all pixels to none, at least 1.
      baseline: The value that replaces a removed pixel, in [0, 1]: a number, a colour [C], an image
        [H, W, C], or one image for each.

    Returns:
      {"fractions": float32 [num_steps + 1], the fraction of pixels removed, from 0 to 1,
      "probabilities": float32 [B, num_steps + 1], "auc": float32 [B], the area under the curve by the
      trapezoid rule}. The area is in [0, 1], and lower is better. An image whose map holds a NaN has
      NaN.

    Raises:
      TypeError: Images or maps are not of floating point, or labels or num_steps are not integers.
      ValueError: Shapes do not fit, images or the baseline are outside [0, 1], labels are outside
        0 .. K - 1, or num_steps is below 1.

    References:
      Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
      BMVC 2018, section 4.2 (the causal metric), https://arxiv.org/abs/1806.07421
    """
    function, images, maps, labels = _arguments(logits_fn, images, maps, labels, num_steps)
    removed = pixels_like("baseline", baseline, images)
    arguments = (function, images, removed, maps, labels)
    return programs.call(_curve, *arguments, num_steps=int(num_steps))


def insertion_curve(
    logits_fn: LogitsFn,
    images: Array,
    maps: Array,
    labels: Array,
    *,
    num_steps: int = 20,
    baseline: float | Array | None = None,
) -> dict[str, Array]:
    """Measures how fast a class's probability rises as the most important pixels are shown.

    It rises fast if the map is good. Pixels of equal importance are shown in one random order, the same
    for every map.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function.
      images: float32 [B, H, W, C] in [0, 1].
      maps: floating point [B, H, W]; larger is more important.
      labels: int [B], the classes that the maps explain.
      num_steps: The number of steps from no pixels to all, at least 1.
      baseline: The value of a pixel before it is shown, in [0, 1]: a number, a colour [C], an image
        [H, W, C], or one image for each. By default the image is blurred with a standard deviation of a
        sixteenth of its shorter side; the paper blurs too, because sharp edges would be evidence
        themselves.

    Returns:
      {"fractions": float32 [num_steps + 1], the fraction of pixels shown, from 0 to 1,
      "probabilities": float32 [B, num_steps + 1], "auc": float32 [B], the area under the curve by the
      trapezoid rule}. The area is in [0, 1], and higher is better. An image whose map holds a NaN has
      NaN.

    Raises:
      TypeError: Images or maps are not of floating point, or labels or num_steps are not integers.
      ValueError: Shapes do not fit, images or the baseline are outside [0, 1], labels are outside
        0 .. K - 1, or num_steps is below 1.

    References:
      Petsiuk, Das, Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models",
      BMVC 2018, section 4.2 (the causal metric), https://arxiv.org/abs/1806.07421
    """
    function, images, maps, labels = _arguments(logits_fn, images, maps, labels, num_steps)
    start = (
        _blurred(images, min(images.shape[1:3]) / 16)
        if baseline is None
        else pixels_like("baseline", baseline, images)
    )
    arguments = (function, start, images, maps, labels)
    return programs.call(_curve, *arguments, num_steps=int(num_steps))


def random_maps(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws random maps, the baseline that a good map must beat.

    Args:
      key: A PRNG key; map i uses it folded with i.
      shape: (B, H, W).

    Returns:
      float32 [B, H, W], uniform in [0, 1).

    Raises:
      ValueError: `shape` does not have three numbers.

    Example:
      >>> import jax
      >>> random_maps(jax.random.key(0), (2, 4, 4)).shape
      (2, 4, 4)
    """
    if len(shape) != 3:
        raise ValueError(f"`shape` must be (B, H, W), got {shape!r}.")
    key = as_key(key)
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), shape[1:]))(
        jnp.arange(shape[0])
    )


def _arguments(
    logits_fn: LogitsFn, images: Array, maps: Array, labels: Array, num_steps: int
) -> tuple[LogitsFn, Array, Array, Array]:
    checks.integer("num_steps", num_steps, minimum=1)
    if labels is None:
        raise TypeError("`labels` must be the classes that `maps` explain, got None.")
    function, images, checked_labels = checked(logits_fn, images, labels)
    assert checked_labels is not None  # they were not None
    return function, images, checked_maps("maps", maps, images.shape[:3]), checked_labels


def _curve(
    logits_fn: LogitsFn, start: Array, end: Array, maps: Array, labels: Array, *, num_steps: int
) -> dict[str, Array]:
    """The probability along the way from `start` to `end`, with the most important pixels first."""
    batch, height, width = maps.shape
    counts = np.rint(np.linspace(0, height * width, num_steps + 1))
    ties = jax.random.permutation(as_key(jax.random.key(0)), height * width)
    importance = maps.reshape(batch, -1)
    order = jax.vmap(lambda row: jnp.lexsort((ties, -row)))(importance)
    ranks = jnp.argsort(order, axis=-1).reshape(maps.shape)

    def probability(count: Array) -> Array:
        mixed = jnp.where((ranks < count)[..., None], end, start)
        return jax.nn.softmax(programs.fast(logits_fn)(mixed))[jnp.arange(batch), labels]

    probabilities = jax.lax.map(probability, jnp.asarray(counts, jnp.int32)).T
    undefined = jnp.isnan(importance).any(axis=-1, keepdims=True)
    probabilities = jnp.where(undefined, jnp.nan, probabilities).astype(jnp.float32)
    fractions = jnp.asarray(counts / (height * width), jnp.float32)
    area = jnp.trapezoid(probabilities, fractions, axis=-1)
    return {"fractions": fractions, "probabilities": probabilities, "auc": area}


def _blurred(images: Array, std: float) -> Array:
    """Blurs with a Gaussian of a standard deviation in pixels, normalised anew at the edges."""
    rows, columns = (_blur_matrix(length, std) for length in images.shape[1:3])
    blurred = jnp.einsum(
        "ih,bhwc,jw->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.clip(blurred, 0.0, 1.0)


def _blur_matrix(length: int, std: float) -> np.ndarray:
    positions = np.arange(length)
    weights = np.exp(-0.5 * ((positions[:, None] - positions) / std) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
