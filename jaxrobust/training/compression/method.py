"""The interface of methods that compress a network during training.

A method has a memory beside the parameters, and may change both between steps. `train_step` asks the
method which weights the network computes with and what to add to the loss; `fit` calls the rest.
`admm`, `hydra` and `rigl` are the methods.
"""

from typing import Any, ClassVar, Protocol

import numpy as np

from jaxrobust import checks
from jaxrobust.pruning import kernel_paths
from jaxrobust.pruning.constraints import open_kernels
from jaxrobust.types import Array, Masks, PyTree

STEM_AND_CLASSIFIER = ("stem/", "head/")


class Memory(Protocol):
    """The memory of a method: a pytree of arrays that is saved with every checkpoint.

    Attributes:
      figures: float32 scalars for the log, by name. The names must not change during a run.
    """

    @property
    def figures(self) -> dict[str, Array]: ...  # noqa: D102


class Compression(Protocol):
    """The interface of a compression method: a hashable frozen dataclass.

    Its methods are pure. All but `start` are compiled, with `kept` as a traced argument; only `start`
    and the checks of `fit` read the field.

    Attributes:
      kept: The fraction of the weights that stay, in (0, 1], in the kernels that are not excluded: one
        for all epochs, or a tuple with one for each epoch, whose last value repeats.
      every: The number of steps between updates; None: one update after each epoch.
      guard: Whether `fit` refuses an attack whose radius or number of steps changes in the same epoch
        as `kept`: a change of the figures would then have two causes.
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
        """Returns (what is trained, with the structure and shapes of the parameters; the memory)."""

    def effective(self, params: PyTree, memory: Any) -> PyTree:
        """Returns the parameters that the network computes with; it must be differentiable."""

    def penalty(self, params: PyTree, memory: Any) -> Array:
        """Returns a scalar that is added to the loss."""

    def update(
        self,
        params: PyTree,
        memory: Any,
        gradients: PyTree | None,
        kept: Array,
        progress: Array,
    ) -> tuple[PyTree, Any]:
        """Updates the trained parameters and the memory after every `every` steps.

        Args:
          params: What is trained.
          memory: The memory before the update.
          gradients: The gradient of the loss on one batch with respect to the weights that the network
            computes with; None unless `needs_gradients`.
          kept: float32 scalar, the budget of the next epoch.
          progress: The fraction of all steps that are done, in (0, 1].

        Returns:
          (params, memory) after the update.
        """

    def finish(self, params: PyTree, memory: Any, kept: Array | float) -> tuple[PyTree, Masks]:
        """Returns (the parameters of the compressed network, 0 where a mask is False; the masks)."""


def prefixes(
    params: PyTree, exclude: tuple[str, ...] | None, constraint: Any = None
) -> tuple[str, ...]:
    """Returns `exclude`, or for None those of "stem" and "head" that are among the kernels.

    Kernels are those that the constraint knows, or else those that are called so.
    """
    if exclude is not None:
        return exclude
    paths = kernel_paths(params, getattr(constraint, "kernels", None))
    return tuple(p for p in STEM_AND_CLASSIFIER if any(f"{path}/".startswith(p) for path in paths))


def compressed_kernels(
    params: PyTree, exclude: tuple[str, ...] | None, constraint: Any = None
) -> dict[str, Array]:
    """Returns the kernels that are not excluded, by path, as far as the constraint knows them."""
    kernels = getattr(constraint, "kernels", None)
    return open_kernels(params, prefixes(params, exclude, constraint), kernels)


def check_settings(kept: Any, every: Any, exclude: Any) -> None:
    """Raises unless these fields of a method are valid (see `Compression`)."""
    values = kept if isinstance(kept, tuple) else (kept,)
    if not values:
        raise ValueError("`kept` must be a number, or a tuple of at least one number, got ().")
    for value in values:
        if isinstance(value, list) or np.ndim(value) > 0:
            raise TypeError(
                f"`kept` must be a number, or a tuple with a number for each epoch, got {kept!r}."
            )
        checks.number("kept", value, above=0.0, maximum=1.0)
    if every is not None:
        checks.integer("every", every, minimum=1)
    if exclude is not None and not isinstance(exclude, tuple):
        raise TypeError(f"`exclude` must be a tuple of path prefixes or None, got {exclude!r}.")


def kept_at(compression: Compression, epoch: int) -> float:
    """Returns the budget of an epoch, counted from 0; the last budget repeats."""
    kept = compression.kept if isinstance(compression.kept, tuple) else (compression.kept,)
    return float(kept[min(epoch, len(kept) - 1)])
