"""Occlusion: how far a class's logit falls when a patch of the image is covered."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.attribution.arguments import checked, pixels_like, predicted_if_none
from jaxrobust.types import Array, LogitsFn


def occlusion(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None = None,
    *,
    patch_size: int | None = None,
    stride: int | None = None,
    fill: float | Array = 0.5,
) -> Array:
    """Computes the mean drop of a class's logit over the square patches that cover each pixel.

    Patches start at every multiple of the stride, and the last ones lie at the edge, so that each
    pixel is covered. The patches run one after another, each on the whole batch.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. Any function, even one that
        cannot be differentiated.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; by default the predicted classes.
      patch_size: The side of a patch in pixels, in 1 .. min(H, W); by default an eighth of the shorter
        side.
      stride: The distance between patches in pixels, in 1 .. patch_size; by default half a patch.
      fill: The value of covered pixels, in [0, 1]: a number, a colour [C], an image [H, W, C], or one
        image for each. The default is grey, as in the paper.

    Returns:
      float32 [B, H, W], signed, in logits; negative where covering a pixel helps the class.

    Raises:
      TypeError: The images are integers, or labels or sizes are not.
      ValueError: Shapes do not fit, images or `fill` are outside [0, 1], labels are outside
        0 .. K - 1, or sizes are out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> logits_fn = lambda x: jnp.stack([2 * x[:, 0, 0, 0], x[:, 0, 1, 0]], axis=1)
      >>> images, label = jnp.ones((1, 1, 2, 1)), jnp.array([0])
      >>> occlusion(logits_fn, images, label, patch_size=1).tolist()  # 2 * (1 - 0.5)
      [[[1.0, 0.0]]]

    References:
      Zeiler, Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2,
      https://arxiv.org/abs/1311.2901
    """
    function, images, labels = checked(logits_fn, images, labels)
    shorter = min(images.shape[1:3])
    size = max(1, shorter // 8) if patch_size is None else patch_size
    checks.integer("patch_size", size, minimum=1)
    if size > shorter:
        raise ValueError(
            f"`patch_size` must be at most {shorter}, the shorter side of `images`, got {size}."
        )
    step = max(1, size // 2) if stride is None else stride
    checks.integer("stride", step, minimum=1)
    if step > size:
        raise ValueError(
            f"`stride` must be at most `patch_size`, {size}, to cover all pixels, got {step}."
        )
    fills = pixels_like("fill", fill, images)
    arguments = (function, images, labels, fills)
    return programs.call(_occlusion, *arguments, size=int(size), stride=int(step))


def _occlusion(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array | None,
    fills: Array,
    *,
    size: int,
    stride: int,
) -> Array:
    rows, columns = (_covered(length, size, stride) for length in images.shape[1:3])
    first, second = np.indices((len(rows), len(columns))).reshape(2, -1)

    def one(image: Array, label: Array, fill: Array) -> Array:
        def logit(position: tuple[Array, Array]) -> Array:
            patch = jnp.asarray(rows)[position[0], :, None] & jnp.asarray(columns)[position[1]]
            return programs.fast(logits_fn)(jnp.where(patch[..., None], fill, image)[None])[
                0, label
            ]

        drops = programs.fast(logits_fn)(image[None])[0, label] - jax.lax.map(
            logit, (first, second)
        )
        grid = drops.reshape(len(rows), len(columns))
        # Some accelerators multiply matrices at reduced precision unless told otherwise.
        total = jnp.einsum(
            "ij,ih,jw->hw", grid, rows * 1.0, columns * 1.0, precision=jax.lax.Precision.HIGHEST
        )
        return total / np.outer(rows.sum(0), columns.sum(0))

    return jax.vmap(one)(images, predicted_if_none(logits_fn, images, labels), fills)


def _covered(length: int, size: int, stride: int) -> np.ndarray:
    """Which positions each patch covers along one side: bool [patches, length]."""
    starts = np.array([*range(0, length - size, stride), length - size])[:, None]
    positions = np.arange(length)
    return (positions >= starts) & (positions < starts + size)
