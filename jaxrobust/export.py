"""Saves a classifier as one file that jax runs without this package, on a CPU or a GPU.

`jax.export` writes the network's operations and weights, for any batch size. To classify with the file
or to attack it, only jax and flatbuffers are needed (jax reads the file with flatbuffers)::

    import pathlib, jax

    logits_fn = jax.export.deserialize(pathlib.Path("model.jaxexport").read_bytes()).call
    logits_fn(images)  # float32 [B, H, W, C] in [0, 1] -> logits [B, K]

`jax.grad` works on `logits_fn` if the file was saved with gradients. A file is code: load only files
that you would run. jax promises to read files that its releases of the last half year wrote, but no
older ones.
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
    """Saves a classifier with its weights and its normalisation, for any batch size.

    This machine does not need a device of the platforms. The file is written whole or not at all.

    Args:
      path: The path of the file. Its folder is made if it is missing; an existing file is replaced.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. It is a `models.Classifier`,
        dense or shrunk, or any other function that jax can compile for a symbolic B: it may use
        `images.shape[0]` as the batch size, but not `len(images)`.
      image_shape: (H, W, C), the shape of one image.
      platforms: The platforms that the file shall run on, one or more of `PLATFORMS`.
      vjp_order: How often the function can be differentiated with respect to the images: 0 not at all,
        1 for attacks that use gradients. Each order adds about the size of the network to the file.

    Returns:
      The file's size in bytes.

    Raises:
      ModuleNotFoundError: flatbuffers is not installed.
      TypeError: `logits_fn` cannot be called.
      ValueError: A platform is unknown, a shape or an order is out of range, the logits are not [B, K],
        or the function works for one batch size only.

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
        raise ValueError(f"`platforms` must be one or more of {PLATFORMS}, got {platforms!r}.")
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
        # A new lambda, so that jax does not reuse what it has traced for this machine alone.
        try:
            exported = jax.export.export(
                jax.jit(lambda images: function(images)), platforms=tuple(platforms)
            )(images)
        except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
            if isinstance(error, TypeError) and "_DimExpr" not in str(error):
                raise
            raise ValueError(
                "`logits_fn` must work for any batch size, but it converts the batch size to a number, "
                "compares it, or loops over the batch: write `images.shape[0]` where it says "
                "`len(images)` or `int(...)`, and use jax.vmap for a loop over images."
            ) from error
        except RuntimeError as error:
            if "bad_cast" not in str(error):
                raise
            raise ValueError(
                "`logits_fn` must not call back into Python (jax.pure_callback or the like), because a "
                "file cannot hold that."
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
    """Loads a classifier that `save` has written.

    Args:
      path: The path of the file. A file is code, so load only files whose source you trust.

    Returns:
      A function: images float32 [B, H, W, C] in [0, 1] -> logits [B, K].

    Raises:
      FileNotFoundError: There is no such file.
      ModuleNotFoundError: flatbuffers is not installed.
      ValueError: `save` did not write the file, or it wrote it with a release of jax whose files this
        release cannot read.
    """
    data = Path(path).read_bytes()
    with packages.extra("export", "An exported file"):
        import flatbuffers  # noqa: F401  (without it the error below would blame the file)
    try:
        return jax.export.deserialize(bytearray(data)).call
    except Exception as error:  # its parser has errors of many classes
        raise ValueError(
            f"{path} is not an exported classifier that jax {jax.__version__} can read: save it anew "
            "with `jaxrobust.export.save`."
        ) from error
