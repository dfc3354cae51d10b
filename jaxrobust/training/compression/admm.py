"""ADMM: training with weights that are pulled towards a compressed copy of themselves."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.pruning import Constraint, Irregular, admm, apply_masks
from jaxrobust.pruning.masks import named_leaves, with_leaves
from jaxrobust.training.compression.method import check_settings, compressed_kernels, prefixes
from jaxrobust.types import Array, Masks, PyTree


class ADMMMemory(NamedTuple):
    """The memory of `ADMM`.

    Attributes:
      multipliers: Copies and duals of the kernels.
      removed: For everything that is no compressed kernel, by path, where the masks of theta' are
        False: what scales and shifts filters that theta' has removed.
      figures: What is logged.
    """

    multipliers: admm.Multipliers
    removed: dict[str, Array]
    figures: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ADMM:
    """The alternating direction method of multipliers (ADMM) for training compressed networks.

    The weights theta are pulled towards a copy theta' that satisfies the constraint: the penalty
    <u, theta - theta'> + rho / 2 ||theta - theta'||^2 is part of the loss in every step. The dual u and
    theta' are updated after each epoch, or after a fixed number of steps. What the masks of the
    constraint remove besides weights of kernels, such as what scales and shifts a removed filter, is
    drawn to 0 by rho / 2 ||.||^2. The log has
    `residual`, the l2 norm of theta - theta' before the update relative to that of theta; `dual_norm`,
    the l2 norm of u; and `rho`.

    Attributes:
      constraint: The set of compressed networks, such as `pruning.Irregular()`.
      kept: The fraction of the weights that stay, in (0, 1], or a tuple with one fraction per
        epoch; see `Compression`. A budget that falls tightens the constraint gradually.
      rho: The penalty parameter at the start, above 0.
      rho_growth: The factor by which each update multiplies rho, at least 1; 1.3 in Ye et al.
      largest_rho: The largest rho, at least `rho`; None: no limit.
      rescale: Whether the scaled dual is rescaled when rho grows (`pruning.admm.updated`).
      every: The number of steps between updates, 1 in the thesis; None: one update after each epoch.
      exclude: Path prefixes of kernels that are not compressed. None: kernels called "stem" and "head";
        if there are none, `fit` excludes the first and the last kernel that the network uses.
      guard: Whether `fit` refuses an attack that changes in the same epoch as `kept`; see
        `Compression`.

    Raises:
      TypeError, ValueError: A setting has the wrong type or is out of range.

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
                "`constraint` must be a constraint such as pruning.Irregular(), got "
                f"{self.constraint!r}."
            )
        check_settings(self.kept, self.every, self.exclude)
        checks.number("rho", self.rho, above=0.0)
        checks.number("rho_growth", self.rho_growth, minimum=1.0)
        if self.largest_rho is not None:
            checks.number("largest_rho", self.largest_rho, minimum=self.rho)

    def start(self, key: Array, params: PyTree, kept: Array | float) -> tuple[PyTree, ADMMMemory]:
        """Returns the parameters unchanged, and a memory in which theta' is their projection."""
        del key
        weights = tuple(self._kernels(params).values())
        project, removed = self._projection(params, kept)
        multipliers = admm.started(weights, project, self.rho)
        return params, _memory(weights, multipliers, multipliers, removed)

    def effective(self, params: PyTree, memory: ADMMMemory) -> PyTree:
        """Returns the parameters unchanged."""
        del memory
        return params

    def penalty(self, params: PyTree, memory: ADMMMemory) -> Array:
        """Returns the terms that the augmented Lagrangian adds to the loss."""
        leaves, kernels = dict(named_leaves(params)), tuple(self._kernels(params).values())
        # Scales and shifts of removed filters have no dual: with one they overshoot, and a network with
        # a tenth of its filters learned less. Those of filters that stay are free.
        squares = [
            jnp.sum(jnp.square(jnp.where(gone, leaves[path], 0.0).astype(jnp.float32)))
            for path, gone in memory.removed.items()
        ]
        pull = 0.5 * memory.multipliers.rho * sum(squares, jnp.float32(0.0))
        return admm.penalty(kernels, memory.multipliers) + pull

    def update(
        self,
        params: PyTree,
        memory: ADMMMemory,
        gradients: PyTree | None,
        kept: Array,
        progress: Array,
    ) -> tuple[PyTree, ADMMMemory]:
        """Updates u, then theta' with the new budget; the parameters do not change."""
        del gradients, progress
        weights = tuple(self._kernels(params).values())
        project, removed = self._projection(params, kept)
        after = admm.updated(
            weights,
            memory.multipliers,
            project,
            growth=self.rho_growth,
            largest_rho=self.largest_rho,
            rescale=self.rescale,
        )
        return params, _memory(weights, memory.multipliers, after, removed)

    def finish(
        self, params: PyTree, memory: ADMMMemory, kept: Array | float
    ) -> tuple[PyTree, Masks]:
        """Returns the projection of theta itself, without the dual, and its masks."""
        del memory
        masks = self._masks(params, kept)
        return apply_masks(params, masks), masks

    def _kernels(self, params: PyTree) -> dict[str, Array]:
        return compressed_kernels(params, self.exclude, self.constraint)

    def _masks(self, params: PyTree, kept: Array | float) -> Masks:
        exclude = prefixes(params, self.exclude, self.constraint)
        return self.constraint.masks(params, kept, exclude=exclude)

    def _projection(
        self, params: PyTree, kept: Array | float
    ) -> tuple[admm.Project, dict[str, Array]]:
        """Returns the projection, and a dict that it fills: what it removes besides kernels."""
        removed: dict[str, Array] = {}

        def project(weights: tuple[Array, ...]) -> tuple[Array, ...]:
            kernels = self._kernels(params)
            tree = with_leaves(params, dict(zip(kernels, weights, strict=True)))
            masks = self._masks(tree, kept)
            projected = apply_masks(tree, masks)  # which checks the masks
            others = {path: leaf for path, leaf in named_leaves(tree) if path not in kernels}
            for path, mask in named_leaves(masks):
                if path in others and jnp.issubdtype(others[path].dtype, jnp.floating):
                    removed[path] = ~jnp.asarray(mask)
            return tuple(self._kernels(projected).values())

        return project, removed


def _memory(
    weights: tuple[Array, ...],
    before: admm.Multipliers,
    after: admm.Multipliers,
    removed: dict[str, Array],
) -> ADMMMemory:
    """Returns the memory after an update."""
    figures = {
        "residual": admm.residual(weights, before),
        "dual_norm": admm.dual_norm(after),
        "rho": after.rho,
    }
    return ADMMMemory(after, removed, figures)


def rho_for_pull(pull: float, learning_rate: float, steps: int, momentum: float = 0.0) -> float:
    """Returns the rho of `ADMM` that draws the weights by a given share towards theta' between updates.

    In each step of SGD the penalty moves a weight towards theta' by the share
    learning_rate * rho / (1 - momentum) of its distance, if no other gradient acts on it and nothing
    is clipped: gradient clipping shortens the penalty's gradient too. So one pull scales rho to another
    batch size, number of images or learning rate; which pull is good, it does not say. If the learning
    rate falls later, the pull of the same rho falls with it. For a large pull within few steps rho is a
    bound, because momentum SGD then overshoots.

    Args:
      pull: The share of the distance to theta' that is covered between two updates, in (0, 1).
      learning_rate: The learning rate, above 0.
      steps: The number of steps between two updates, at least 1.
      momentum: The momentum of SGD, in [0, 1).

    Returns:
      rho, above 0.

    Raises:
      TypeError, ValueError: An argument has the wrong type or is out of range.

    Example:
      >>> round(rho_for_pull(0.99, 0.05, steps=46, momentum=0.9), 3)
      0.2
    """
    checks.fraction("pull", pull)
    checks.number("pull", pull, above=0.0)
    checks.number("learning_rate", learning_rate, above=0.0)
    checks.integer("steps", steps, minimum=1)
    checks.fraction("momentum", momentum)
    return -math.log1p(-pull) * (1 - momentum) / (learning_rate * steps)
