"""HYDRA: training learns which weights to keep, and does not change the weights."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust.pruning import Constraint, Irregular, apply_masks, kernel_paths
from jaxrobust.pruning.masks import followers_of, keep_all, named_leaves, with_leaves
from jaxrobust.training.compression.method import check_settings, compressed_kernels, prefixes
from jaxrobust.types import Array, Masks, PyTree


class HydraMemory(NamedTuple):
    """The memory of `Hydra`: the parameters at the start, and the budget of this epoch."""

    frozen: PyTree
    kept: Array
    figures: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Hydra:
    """Learns a score for every weight on the robust loss; the weights with the largest scores stay.

    `fit` trains scores in place of each kernel. The network computes with the frozen kernel, masked to
    the scores of largest magnitude; gradients pass through the mask to the scores (a straight-through
    estimator). The initial scores are proportional to the weights. Parameters that are in no layer with
    a kernel, such as scales and biases of normalisation, are trained, also those of filters without
    weights; all others are frozen. A layer is what has one parent among the parameters, so a flat dict
    is one layer. Use it to prune a trained network (`variables=`), and fine-tune the result under its
    masks: `fit(variables=result.variables, masks=result.masks)`, or `two_phase`.

    Each step sorts the scores. The log has `score_change`, the fraction of the kept weights that
    pruning by magnitude would remove.

    Attributes:
      constraint: The constraint on the weights that stay, such as `pruning.Irregular()`.
      kept: The fraction of the weights that stay, in (0, 1], or a tuple with one fraction per
        epoch; see `Compression`.
      exclude: Path prefixes of kernels that are neither pruned nor trained. None: kernels called "stem"
        and "head"; if there are none, `fit` excludes the first and the last kernel that the network
        uses. (The official code prunes all of them.)
      guard: Whether `fit` refuses an attack that changes in the same epoch as `kept`; see
        `Compression`.

    Raises:
      TypeError, ValueError: A setting has the wrong type or is out of range.

    References:
      Sehwag, Wang, Mittal, Jana, "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020,
      equation 3 and section 3.1 (initial scores sqrt(6 / fan in) w / max(abs(w))),
      https://arxiv.org/abs/2002.10509
    """

    constraint: Constraint = Irregular()  # noqa: RUF009 (it cannot be changed)
    kept: float | tuple[float, ...] = 0.1
    exclude: tuple[str, ...] | None = None
    guard: bool = True

    every: ClassVar[int | None] = None
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self.kept, self.every, self.exclude)

    def start(self, key: Array, params: PyTree, kept: Array | float) -> tuple[PyTree, HydraMemory]:
        """Returns scores in place of the kernels, and a memory of the parameters."""
        del key
        kernels = self._kernels(params)
        scores = {path: _initial_scores(kernel) for path, kernel in kernels.items()}
        trained = with_leaves(params, scores)
        kept = jnp.asarray(kept, jnp.float32)
        return trained, HydraMemory(params, kept, {"score_change": jnp.float32(0.0)})

    def effective(self, params: PyTree, memory: HydraMemory) -> PyTree:
        """Returns the frozen weights under the mask of the scores."""
        scores = self._kernels(params)
        masks = dict(named_leaves(self._masks(params, memory.kept)))
        computed = self._frozen_leaves(memory.frozen)
        for path, score in scores.items():
            magnitude = jnp.abs(score)
            # The mask's value, exactly, with the gradient of the score's magnitude.
            mask = masks[path] + (magnitude - jax.lax.stop_gradient(magnitude))
            computed[path] = computed[path] * mask
        return with_leaves(params, computed)

    def penalty(self, params: PyTree, memory: HydraMemory) -> Array:
        """Returns 0: there is no penalty."""
        del params, memory
        return jnp.float32(0.0)

    def update(
        self,
        params: PyTree,
        memory: HydraMemory,
        gradients: PyTree | None,
        kept: Array,
        progress: Array,
    ) -> tuple[PyTree, HydraMemory]:
        """Sets the budget of the next epoch."""
        del gradients, progress
        ours = self._kernels(self._masks(params, kept))
        plain = self._kernels(self._masks(memory.frozen, kept))
        stays = sum(jnp.sum(mask) for mask in ours.values())
        other = sum(jnp.sum(mask & ~plain[path]) for path, mask in ours.items())
        return params, HydraMemory(
            memory.frozen, kept, {"score_change": jnp.asarray(other / stays)}
        )

    def finish(
        self, params: PyTree, memory: HydraMemory, kept: Array | float
    ) -> tuple[PyTree, Masks]:
        """Returns the weights under the mask, with exactly the budget, and the masks."""
        # A score learns for kernels alone, so everything else stays, whatever the constraint removes.
        chosen = self._kernels(self._masks(params, kept))
        masks = with_leaves(keep_all(params), chosen)
        return apply_masks(with_leaves(params, self._frozen_leaves(memory.frozen)), masks), masks

    def _kernels(self, params: PyTree) -> dict[str, Array]:
        return compressed_kernels(params, self.exclude, self.constraint)

    def _frozen_leaves(self, params: PyTree) -> dict[str, Array]:
        """Returns kernels and their biases; the other parameters belong to normalisation layers."""
        known = getattr(self.constraint, "kernels", None)
        # A kernel that the constraint does not know is not pruned, and not trained either; what it
        # knows to be the scale of a filter is no kernel, whatever its name.
        leaves, kernels = dict(named_leaves(params)), kernel_paths(params, known)
        scales = {scale for path in kernels for scale in followers_of(known, path, leaves)}
        layers = {path.rpartition("/")[0] for path in {*kernel_paths(params), *kernels} - scales}
        return {path: leaf for path, leaf in leaves.items() if path.rpartition("/")[0] in layers}

    def _masks(self, params: PyTree, kept: Array | float) -> Masks:
        exclude = prefixes(params, self.exclude, self.constraint)
        return self.constraint.masks(jax.lax.stop_gradient(params), kept, exclude=exclude)


def _initial_scores(kernel: Array) -> Array:
    fan_in = math.prod(kernel.shape[:-1])
    largest = jnp.maximum(jnp.max(jnp.abs(kernel)), 1e-12)
    return math.sqrt(6 / fan_in) * kernel.astype(jnp.float32) / largest
