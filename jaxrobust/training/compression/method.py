"""What a method of training and compressing at once is.

A method keeps a memory beside the parameters and changes both between the steps; the steps themselves
stay those of `train_step`, which asks it what the network computes with and what to add to the loss.
`fit` does the rest for a recipe with a `compression`. `admm`, `hydra` and `rigl` are the methods.
"""

from typing import Any, ClassVar, Protocol

import numpy as np

from jaxrobust import checks
from jaxrobust.pruning import kernel_paths
from jaxrobust.pruning.constraints import open_kernels
from jaxrobust.types import Array, Masks, PyTree

STEM_AND_CLASSIFIER = ("stem/", "head/")


class Memory(Protocol):
    """What a method remembers: a pytree of arrays, saved with every checkpoint.

    Attributes:
      figures: float32 scalars for the log, by name, the same names throughout.
    """

    @property
    def figures(self) -> dict[str, Array]: ...  # noqa: D102


class Compression(Protocol):
    """A method of compressing while training: a frozen dataclass that can be hashed.

    All of it is pure; everything but `start` is compiled, with a traced `kept`: only `start` and the
    checks of `fit` read the field.

    Attributes:
      kept: The fraction of the weights that stay, in (0, 1], of the kernels that are not excluded: for
        all epochs, or one for each, of which the last repeats.
      every: Steps between updates; None: one after each epoch.
      guard: Whether `fit` refuses an attack whose radius or number of steps changes in an epoch in
        which `kept` does: what then changes in the figures would have two causes.
      needs_gradients: Whether `update` is given a gradient.
    """

    needs_gradients: ClassVar[bool]

    @property
    def kept(self) -> float | tuple[float, ...]: ...  # noqa: D102
    @property
    def every(self) -> int | None: ...  # noqa: D102
    @property
    def guard(self) -> bool: ...  # noqa: D102

    def start(self, key: Array, params: PyTree, kept: Array | float) -> tuple[PyTree, Any]:
        """(What is trained, of the parameters' structure and shapes; the memory)."""

    def effective(self, params: PyTree, memory: Any) -> PyTree:
        """What the network computes with; differentiable."""

    def penalty(self, params: PyTree, memory: Any) -> Array:
        """Added to the loss: a scalar."""

    def update(
        self,
        params: PyTree,
        memory: Any,
        gradients: PyTree | None,
        kept: Array,
        progress: Array,
    ) -> tuple[PyTree, Any]:
        """What comes between two steps, every `every` of them.

        Args:
          params: What is trained.
          memory: Before.
          gradients: Of the loss on one batch by what the network computes with; None unless
            `needs_gradients`.
          kept: Of the epoch that comes next, a float32 scalar.
          progress: The share of all steps that are done, in (0, 1].

        Returns:
          (params, memory) after.
        """

    def finish(self, params: PyTree, memory: Any, kept: Array | float) -> tuple[PyTree, Masks]:
        """(The parameters of the compressed network, 0 where its masks are False; the masks)."""


def prefixes(params: PyTree, exclude: tuple[str, ...] | None) -> tuple[str, ...]:
    """`exclude`; for None the stem and the classifier, as far as the network has kernels so called."""
    if exclude is not None:
        return exclude
    paths = kernel_paths(params)
    return tuple(p for p in STEM_AND_CLASSIFIER if any(f"{path}/".startswith(p) for path in paths))


def compressed_kernels(params: PyTree, exclude: tuple[str, ...] | None) -> dict[str, Array]:
    """The kernels that are not excluded, by path."""
    return open_kernels(params, prefixes(params, exclude))


def check_settings(kept: Any, every: Any, exclude: Any) -> None:
    """Raises unless these fields of a method are what `Compression` says."""
    values = kept if isinstance(kept, tuple) else (kept,)
    if not values:
        raise ValueError("`kept` must be a number or a tuple of some, got ().")
    for value in values:
        if isinstance(value, list) or np.ndim(value) > 0:
            raise TypeError(
                f"`kept` must be a number, or a tuple of one for each epoch, got {kept!r}."
            )
        checks.number("kept", value, above=0.0, maximum=1.0)
    if every is not None:
        checks.integer("every", every, minimum=1)
    if exclude is not None and not isinstance(exclude, tuple):
        raise TypeError(f"`exclude` must be a tuple of path prefixes or None, got {exclude!r}.")


def kept_at(compression: Compression, epoch: int) -> float:
    """The budget of an epoch, counted from 0; of later ones than there are budgets, the last."""
    kept = compression.kept if isinstance(compression.kept, tuple) else (compression.kept,)
    return float(kept[min(epoch, len(kept) - 1)])
