"""RigL: sparse training in which connections are dropped and grown."""

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
    """The memory of `RigL`: masks of the kernels, in the order of `pruning.kernel_paths`."""

    masks: tuple[Array, ...]
    figures: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class RigL:
    """Sparse training that replaces small weights by connections with large gradients.

    Each kernel of n weights has round(kept * n) connections, which are random at first. Every update
    drops a fraction of them, those of smallest magnitude, and grows as many, with the value 0, where
    the gradient of the loss is largest. The gradient is that of the last batch, attacked as in
    training. The fraction falls along a cosine, and is 0 after the share `until` of all steps. If the
    budget falls, more connections are dropped than grown. The log has `moved`, the fraction of the
    connections that the last update replaced.

    Attributes:
      kept: The fraction of the weights that stay, in (0, 1], or a tuple with one fraction per
        epoch; see `Compression`.
      fraction: The fraction of the connections of a kernel that the first update replaces, in [0, 1].
      until: The fraction of all steps after which connections no longer change, in (0, 1].
      initial: The first connections: "random", or "magnitude" for the largest weights of a trained
        network.
      every: The number of steps between updates, 100 in the paper; None: one update after each epoch.
      exclude: Path prefixes of kernels that are not compressed. None: kernels called "stem" and "head";
        if there are none, `fit` excludes the first and the last kernel that the network uses.
      guard: Whether `fit` refuses an attack that changes in the same epoch as `kept`; see
        `Compression`.

    Raises:
      TypeError, ValueError: A setting has the wrong type or is out of range.

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
        """Returns the parameters under the first masks, and the memory of the masks."""
        masks = []
        for index, kernel in enumerate(compressed_kernels(params, self.exclude).values()):
            scores = jnp.abs(kernel)
            if self.initial == "random":
                scores = jax.random.uniform(jax.random.fold_in(key, index), kernel.shape)
            masks.append(_largest(scores, jnp.ones(kernel.shape, bool), _count(kept, kernel.size)))
        memory = RigLMemory(tuple(masks), {"moved": jnp.float32(0.0)})
        return self.effective(params, memory), memory

    def effective(self, params: PyTree, memory: RigLMemory) -> PyTree:
        """Returns the parameters under the masks."""
        return apply_masks(params, self._tree(params, memory.masks))

    def penalty(self, params: PyTree, memory: RigLMemory) -> Array:
        """Returns 0: there is no penalty."""
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
        """Drops and grows connections."""
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
        """Returns the parameters under the masks, which keep at most the budget, and the masks."""
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
    """Returns the mask of the `count` largest scores where `among` is True."""
    return keep_largest([scores], [among], scores.size - count)[0]
