"""Training and compressing at once: what a method is, and ADMM.

A method keeps a memory beside the parameters and changes both between the steps; the steps themselves
stay those of `train_step`, which asks it what the network computes with and what to add to the loss.
`fit(..., compression=...)` does the rest. `scores.Hydra` and `dynamic.RigL` are the other methods.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.pruning import Constraint, Irregular, admm, apply_masks, kernel_paths
from jaxrobust.pruning.constraints import open_kernels
from jaxrobust.pruning.masks import with_leaves
from jaxrobust.training.adversaries import stages_of
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.sequences import check_sequences
from jaxrobust.types import Array, Masks, PyTree, as_key

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


class ADMMMemory(NamedTuple):
    """Of `ADMM`: the kernels' copies and duals, in the order of `pruning.kernel_paths`."""

    multipliers: admm.Multipliers
    figures: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ADMM:
    """Weights tied to a copy of them that lies in a set of compressed networks.

    The penalty <u, theta - theta'> + rho / 2 ||theta - theta'||^2 is part of the loss in every
    step; u and theta' are updated after each epoch, or every so many steps. In the log: `residual`,
    the length of theta - theta' relative to theta's before the update; `dual_norm`, the length of
    u; `rho`.

    Attributes:
      constraint: The set.
      kept: As `Compression`; a budget that falls from epoch to epoch ties the weights ever closer.
      rho: The penalty parameter at the start, above 0.
      rho_growth: What every update multiplies rho by, at least 1; Ye et al.: 1.3.
      largest_rho: It grows no further; None: without end.
      rescale: Whether the scaled dual is rescaled when rho grows (`pruning.admm.updated`).
      every: Steps between updates; None: one after each epoch. The source's algorithm has 1.
      exclude: Path prefixes of kernels that stay whole and are not tied. None: "stem" and "head", where
        there are such.
      guard: As `Compression`.

    Raises:
      TypeError, ValueError: A setting of the wrong type or out of range.

    References:
      Zhang et al., "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
      Multipliers", ECCV 2018, equations 5 to 9, https://arxiv.org/abs/1804.03294
      Marshall, "Robust Convolutional Neural Networks with Resource Constraints", master's thesis,
      Université Grenoble Alpes, equations 6 to 9 and algorithm 1
      Ye et al., "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019, algorithm 1,
      https://arxiv.org/abs/1903.12561
    """

    constraint: Constraint = Irregular()  # noqa: RUF009 (it cannot be changed)
    kept: float | tuple[float, ...] = 0.1
    rho: float = 1e-3
    rho_growth: float = 1.0
    largest_rho: float | None = None
    rescale: bool = True
    every: int | None = None
    exclude: tuple[str, ...] | None = None
    guard: bool = True

    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.constraint, type) or not hasattr(self.constraint, "masks"):
            raise TypeError(
                f"`constraint` must be a set such as pruning.Irregular(), got {self.constraint!r}."
            )
        check_settings(self.kept, self.every, self.exclude)
        checks.number("rho", self.rho, above=0.0)
        checks.number("rho_growth", self.rho_growth, minimum=1.0)
        if self.largest_rho is not None:
            checks.number("largest_rho", self.largest_rho, minimum=self.rho)

    def start(self, key: Array, params: PyTree, kept: Array | float) -> tuple[PyTree, ADMMMemory]:
        """The parameters as they are; theta' is their projection."""
        del key
        weights = tuple(compressed_kernels(params, self.exclude).values())
        multipliers = admm.started(weights, self._projection(params, kept), self.rho)
        return params, ADMMMemory(multipliers, self._figures(weights, multipliers, multipliers))

    def effective(self, params: PyTree, memory: ADMMMemory) -> PyTree:
        """The parameters as they are."""
        del memory
        return params

    def penalty(self, params: PyTree, memory: ADMMMemory) -> Array:
        """The augmented Lagrangian's terms."""
        weights = tuple(compressed_kernels(params, self.exclude).values())
        return admm.penalty(weights, memory.multipliers)

    def update(
        self,
        params: PyTree,
        memory: ADMMMemory,
        gradients: PyTree | None,
        kept: Array,
        progress: Array,
    ) -> tuple[PyTree, ADMMMemory]:
        """u, then theta' by the new budget; the parameters stay."""
        del gradients, progress
        weights = tuple(compressed_kernels(params, self.exclude).values())
        after = admm.updated(
            weights,
            memory.multipliers,
            self._projection(params, kept),
            growth=self.rho_growth,
            largest_rho=self.largest_rho,
            rescale=self.rescale,
        )
        return params, ADMMMemory(after, self._figures(weights, memory.multipliers, after))

    def finish(
        self, params: PyTree, memory: ADMMMemory, kept: Array | float
    ) -> tuple[PyTree, Masks]:
        """Theta itself, projected; without the dual."""
        del memory
        masks = self.constraint.masks(params, kept, exclude=prefixes(params, self.exclude))
        return apply_masks(params, masks), masks

    def _projection(self, params: PyTree, kept: Array | float) -> admm.Project:
        paths = tuple(compressed_kernels(params, self.exclude))

        def project(weights: tuple[Array, ...]) -> tuple[Array, ...]:
            tree = with_leaves(params, dict(zip(paths, weights, strict=True)))
            masks = self.constraint.masks(tree, kept, exclude=prefixes(params, self.exclude))
            return tuple(compressed_kernels(apply_masks(tree, masks), self.exclude).values())

        return project

    def _figures(
        self, weights: PyTree, before: admm.Multipliers, after: admm.Multipliers
    ) -> dict[str, Array]:
        return {
            "residual": admm.residual(weights, before),
            "dual_norm": admm.dual_norm(after),
            "rho": after.rho,
        }


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


def check_compression(
    compression: Compression, config: TrainConfig, attack: Any, params: PyTree
) -> None:
    """Raises unless a method can be trained by these settings and attacks.

    Args:
      compression: The method.
      config: The settings.
      attack: Of the training images: one, a schedule, or None.
      params: Of the network, arrays or their shapes.

    Raises:
      ValueError: More budgets than epochs; a budget out of the constraint's reach; one that changes in
        an epoch in which the attack does.
    """
    kept = [kept_at(compression, epoch) for epoch in range(config.num_epochs)]
    if isinstance(compression.kept, tuple) and len(compression.kept) > config.num_epochs:
        raise ValueError(
            f"`kept` must have at most one value per epoch, {config.num_epochs}, got "
            f"{len(compression.kept)}."
        )
    key = jax.eval_shape(lambda: as_key(jax.random.key(0)))
    # What is out of reach is above the largest or below the smallest that is within.
    for value in {min(kept), max(kept)}:

        def finished(key: Array, params: PyTree, value: float = value) -> PyTree:
            return compression.finish(*compression.start(key, params, value), value)

        jax.eval_shape(finished, key, params)
    if compression.guard:
        epsilons, steps = _attack_by_epoch(config, attack)
        check_sequences(epsilons, steps, kept)


def _attack_by_epoch(config: TrainConfig, attack: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The radius and the number of steps in each epoch, as far as the attack has such."""
    stages, warmup = stages_of(attack), config.attack_warmup_epochs
    epsilons, steps = [], []
    for epoch in range(1, config.num_epochs + 1):
        one = next(one for first, one in reversed(stages) if first <= epoch)
        scale = min(1.0, epoch / warmup) if warmup else 1.0
        epsilons.append(np.asarray(getattr(one, "epsilon", 0.0)) * scale)
        steps.append(getattr(one, "num_steps", 0))
    return [value.tolist() for value in epsilons], steps
