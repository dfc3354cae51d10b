"""RigL: a sparse network from the first step on, whose connections move."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks
from jaxrobust.pruning import apply_masks, keep_all
from jaxrobust.pruning.constraints import number_kept
from jaxrobust.pruning.magnitude import keep_largest
from jaxrobust.pruning.masks import with_leaves
from jaxrobust.training.compression.method import check_settings, compressed_kernels
from jaxrobust.types import Array, Masks, PyTree


class RigLMemory(NamedTuple):
    """Of `RigL`: the masks of the compressed kernels, in the order of `pruning.kernel_paths`."""

    masks: tuple[Array, ...]
    figures: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class RigL:
    """Connections that are small make room for others whose gradient is large.

    Of each kernel round(kept * n) weights are there, random ones at first. At every update a
    fraction of them, the smallest, is dropped, and as many are grown where the loss's gradient is
    largest, at 0. The gradient is that of the last batch, attacked as in training. The fraction
    falls along a cosine, to 0 when `until` of the steps are done. With a budget that falls, more
    are dropped than grown. In the log: `moved`, the fraction of the connections that the last
    update replaced.

    Attributes:
      kept: As `Compression`.
      fraction: Of the connections of a kernel that the first update replaces, in [0, 1].
      until: The share of all steps after which nothing moves any more, in (0, 1].
      initial: "random", or "magnitude": the largest weights, of a network that is trained.
      every: Steps between updates, the paper's 100; None: one after each epoch.
      exclude: Path prefixes of kernels that stay whole. None: what is called "stem" and "head";
        where nothing is, `fit` takes the first and the last kernel of the program.
      guard: As `Compression`.

    Raises:
      TypeError, ValueError: A setting of the wrong type or out of range.

    References:
      Evci, Gale, Menick, Castro, Elsen, "Rigging the Lottery: Making All Tickets Winners", ICML 2020,
      section 3 (uniform densities), https://arxiv.org/abs/1911.11134
    """

    kept: float | tuple[float, ...] = 0.1
    fraction: float = 0.3
    until: float = 0.75
    initial: str = "random"
    every: int | None = None
    exclude: tuple[str, ...] | None = None
    guard: bool = True

    needs_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self.kept, self.every, self.exclude)
        checks.number("fraction", self.fraction, minimum=0.0, maximum=1.0)
        checks.number("until", self.until, above=0.0, maximum=1.0)
        checks.one_of("initial", self.initial, ("random", "magnitude"))

    def start(self, key: Array, params: PyTree, kept: Array | float) -> tuple[PyTree, RigLMemory]:
        """The parameters under the first masks."""
        masks = []
        for index, kernel in enumerate(compressed_kernels(params, self.exclude).values()):
            scores = jnp.abs(kernel)
            if self.initial == "random":
                scores = jax.random.uniform(jax.random.fold_in(key, index), kernel.shape)
            masks.append(_largest(scores, jnp.ones(kernel.shape, bool), _count(kept, kernel.size)))
        memory = RigLMemory(tuple(masks), {"moved": jnp.float32(0.0)})
        return self.effective(params, memory), memory

    def effective(self, params: PyTree, memory: RigLMemory) -> PyTree:
        """The weights that are there."""
        return apply_masks(params, self._tree(params, memory.masks))

    def penalty(self, params: PyTree, memory: RigLMemory) -> Array:
        """None."""
        del params, memory
        return jnp.float32(0.0)

    def update(
        self,
        params: PyTree,
        memory: RigLMemory,
        gradients: PyTree | None,
        kept: Array,
        progress: Array,
    ) -> tuple[PyTree, RigLMemory]:
        """Drops and grows."""
        share = (
            0.5 * self.fraction * (1 + jnp.cos(jnp.pi * jnp.minimum(progress / self.until, 1.0)))
        )
        steepness = compressed_kernels(gradients, self.exclude)
        kernels = compressed_kernels(params, self.exclude)
        weights, masks, grown = {}, [], []
        for (path, kernel), mask in zip(kernels.items(), memory.masks, strict=True):
            count = _count(kept, kernel.size)
            left = jnp.minimum(count - jnp.round(share * count).astype(jnp.int32), jnp.sum(mask))
            stays = _largest(jnp.abs(kernel), mask, left)
            # One that is dropped may grow again at once, as in the paper's code: it keeps its value.
            new = _largest(jnp.abs(steepness[path]), ~stays, count - left)
            masks.append(stays | new)
            weights[path] = jnp.where(mask & masks[-1], kernel, 0)
            grown.append(jnp.sum(new & ~mask))
        total = sum(jnp.sum(mask) for mask in masks)
        moved = sum(grown, jnp.int32(0)) / total
        memory = RigLMemory(tuple(masks), {"moved": moved.astype(jnp.float32)})
        return with_leaves(params, weights), memory

    def finish(
        self, params: PyTree, memory: RigLMemory, kept: Array | float
    ) -> tuple[PyTree, Masks]:
        """The weights that are there; of more than the budget, the largest."""
        kernels = compressed_kernels(params, self.exclude).values()
        masks = tuple(
            _largest(jnp.abs(kernel), mask, jnp.minimum(_count(kept, kernel.size), jnp.sum(mask)))
            for kernel, mask in zip(kernels, memory.masks, strict=True)
        )
        tree = self._tree(params, masks)
        return apply_masks(params, tree), tree

    def _tree(self, params: PyTree, masks: tuple[Array, ...]) -> Masks:
        paths = compressed_kernels(params, self.exclude)
        return with_leaves(keep_all(params), dict(zip(paths, masks, strict=True)))


def _count(kept: Array | float, size: int) -> Array:
    return jnp.maximum(number_kept(kept, size), 1)


def _largest(scores: Array, among: Array, count: Array) -> Array:
    """The mask of the `count` largest of those that are True, which are at least as many."""
    return keep_largest([scores], [among], scores.size - count)[0]
