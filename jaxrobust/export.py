"""Classifiers as one file that runs without this package: jax alone loads it, on a CPU or a GPU.

The file is what `jax.export` serialises: the network's operations and weights, for any batch size. To
classify with it, or to attack it, nothing but jax is needed (and flatbuffers, which jax reads with)::

    import pathlib, jax

    logits_fn = jax.export.deserialize(pathlib.Path("model.jaxexport").read_bytes()).call
    logits_fn(images)  # float32 [B, H, W, C] in [0, 1] -> logits [B, K]

`jax.grad` goes through it where it was saved with gradients. A file is code: load none that you would
not run. jax promises to read files of its releases of the last half year, and no older ones.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation, files, packages, programs
from jaxrobust.types import Array, LogitsFn

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""The platforms that a file can be written for."""


def save(
    path: str | os.PathLike[str],
    logits_fn: LogitsFn,
    image_shape: tuple[int, int, int],
    *,
    platforms: Sequence[str] = ("cpu", "cuda"),
    vjp_order: int = 1,
) -> int:
    """Saves a classifier, weights and normalisation included, for any batch size.

    No device of the platforms needs to be there. The file is written whole or not at all.

    Args:
      path: Of the file; its folder is made where it is missing, a file there is replaced.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]: a `models.Classifier`, dense or
        shrunk, or any other function that can be compiled with a symbol as B: where it needs the batch
        size, `images.shape[0]` will do and `len(images)` will not.
      image_shape: (H, W, C).
      platforms: Where it shall run, some of `PLATFORMS`.
      vjp_order: How often it can be differentiated by the images: 0 not at all, 1 for attacks by
        gradients. Each order takes about as much space again as the network.

    Returns:
      The file's size in bytes.

    Raises:
      ModuleNotFoundError: flatbuffers is not installed.
      TypeError: A classifier that cannot be called.
      ValueError: An unknown platform, a shape or order out of range, logits that are not [B, K], a
        function that is for one batch size.

    Example:
      >>> import tempfile
      >>> double = lambda images: 2 * images.mean((1, 2))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     size = save(f"{folder}/model.jaxexport", double, (2, 2, 3))
      ...     load(f"{folder}/model.jaxexport")(jnp.ones((1, 2, 2, 3))).tolist()
      [[2.0, 2.0, 2.0]]

    References:
      https://docs.jax.dev/en/latest/export/export.html
    """
    with packages.extra("export", "An exported file"):
        import flatbuffers  # noqa: F401  (jax serialises with it)
    checks.integer("vjp_order", vjp_order, minimum=0)
    if isinstance(platforms, str) or not platforms:
        raise ValueError(f"`platforms` must be some of {PLATFORMS}, got {platforms!r}.")
    for platform in platforms:
        checks.one_of("platforms", platform, PLATFORMS)
    if len(image_shape) != 3:
        raise ValueError(f"`image_shape` must be (H, W, C), got {image_shape!r}.")
    for size in image_shape:
        checks.integer("image_shape", size, minimum=1)
    function = compilation.as_pytree(logits_fn)
    programs.logits_shape(function, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
    with compilation.portable():
        # A lambda of its own: nothing that was traced for this machine is taken from a cache.
        try:
            exported = jax.export.export(
                jax.jit(lambda images: function(images)), platforms=tuple(platforms)
            )(images)
        except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
            if isinstance(error, TypeError) and "_DimExpr" not in str(error):
                raise
            raise ValueError(
                "`logits_fn` makes a number of the batch size, compares it, or loops over the batch, "
                "which may be of any size in an exported file: write `images.shape[0]` where it says "
                "`len(images)` or `int(...)`, and jax.vmap for a loop over images."
            ) from error
        except RuntimeError as error:
            if "bad_cast" not in str(error):
                raise
            raise ValueError(
                "`logits_fn` calls back into Python (jax.pure_callback or the like), which no file can "
                "hold."
            ) from error
        data = _serialized(exported, vjp_order)
    with files.replace(Path(path)) as file:
        file.write(data)
    return len(data)


def _serialized(exported: Any, vjp_order: int) -> bytearray:
    try:
        return exported.serialize(vjp_order=vjp_order)
    except ValueError as error:
        if not vjp_order or "differentiation" not in str(error):
            raise
        raise ValueError(
            f"`vjp_order` must be 0 for this `logits_fn`, got {vjp_order}: it cannot be "
            f"differentiated. {error}"
        ) from error


def load(path: str | os.PathLike[str]) -> Callable[[Array], Array]:
    """Loads what `save` saved, as a LogitsFn.

    Args:
      path: Of the file; it is code, so only from where you would run code from.

    Returns:
      Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].

    Raises:
      FileNotFoundError: No such file.
      ModuleNotFoundError: flatbuffers is not installed.
      ValueError: Not a file of `save`, or of a jax release too far away.
    """
    data = Path(path).read_bytes()
    with packages.extra("export", "An exported file"):
        import flatbuffers  # noqa: F401  (without it the error below would blame the file)
    try:
        return jax.export.deserialize(bytearray(data)).call
    except Exception as error:  # its parser has errors of many classes
        raise ValueError(f"{path} is no exported classifier that this jax can read.") from error
