"""Re-estimation of BatchNorm's running statistics, for weights that changed without training.

If the weights of a network are projected, averaged or rounded, its activations change, and the running
statistics of its training no longer fit. New ones are the means of the statistics of many batches.

References:
  Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (means over batches instead of a
  moving average), https://arxiv.org/abs/2105.07576
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.training.run.plan import Itself
from jaxrobust.training.step import nnx_modules
from jaxrobust.training.step.network import Network, is_floating
from jaxrobust.training.step.state import plain
from jaxrobust.training.step.train_step import to_unit_range
from jaxrobust.types import Array, PyTree, as_key


def reestimate_batch_stats(
    model: Any,
    variables: PyTree,
    images: Any,
    *,
    mean: Any = 0.0,
    std: Any = 1.0,
    batch_size: int = 128,
    max_batches: int = 50,
    seed: int = 0,
) -> dict[str, PyTree]:
    """Re-estimates the running statistics of BatchNorm as means over random batches of images.

    Args:
      model: A linen module, an nnx module, or a pair of functions (init, apply); see `Network`.
      variables: {"params": ..., "batch_stats": ...}, or an nnx module. Variables without statistics are
        returned unchanged.
      images: [N, H, W, C], uint8 or floating in [0, 1], from the training set.
      mean: [C] or a scalar, subtracted from pixel values in [0, 1].
      std: [C] or a scalar, above 0, by which the difference is divided.
      batch_size: The number of images in a batch, at least 1 and at most N. Images that do not fill
        the last batch are left out.
      max_batches: The largest number of batches, at least 1.
      seed: The seed of the order of the images and of dropout.

    Returns:
      {"params": ..., "batch_stats": ...} with the new statistics.

    Raises:
      TypeError, ValueError: An argument has the wrong type or is out of range.
    """
    checks.integer("batch_size", batch_size, minimum=1)
    checks.integer("max_batches", max_batches, minimum=1)
    if batch_size > len(images):
        raise ValueError(
            f"`batch_size` must be at most {len(images)}, the number of images, got {batch_size}."
        )
    variables = plain(variables) if nnx_modules.is_nnx(variables) else variables
    if not variables.get("batch_stats"):
        return dict(variables)
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    # Batches at random, as in training: statistics of images in the order of classes would be others.
    order = np.random.default_rng(seed).permutation(len(images))
    count = min(max_batches, len(images) // batch_size)
    measured = functools.partial(_measured, Itself(Network(model).model, None))

    def batch(index: int) -> Array:
        return jnp.asarray(np.asarray(images)[order[index * batch_size : (index + 1) * batch_size]])

    def add(variables: PyTree, total: PyTree, index: int) -> PyTree:
        return measured(
            variables, total, batch(index), mean, std, as_key(jax.random.key(seed)), index
        )

    return averaged(variables, add, count)


def averaged(
    variables: PyTree, add: Callable[[PyTree, PyTree, int], PyTree], count: int
) -> dict[str, PyTree]:
    """Returns the variables with the mean of the statistics of `count` batches.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      add: (variables, the sum so far, the number of a batch) -> the sum with that batch's statistics.
      count: The number of batches, at least 1.
    """
    total = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    for index in range(count):
        total = add(variables, total, index)

    def mean(leaf: Array, old: Array) -> Array:
        return leaf / count if is_floating(old) else old

    means = jax.tree.map(mean, total, variables["batch_stats"])
    return dict(variables) | {"batch_stats": means}


def of_batch(network: Network, variables: PyTree, images: Array, key: Array) -> PyTree:
    """Returns the statistics of one batch, whatever the momentum of the layers is.

    A layer moves its statistic s towards that of the batch, b, as s <- m s + (1 - m) b. From s = 0 and
    s = 1 both m and b follow; in training mode nothing else depends on s. Statistics that do not move
    and counters are returned unchanged.

    Args:
      network: The network; its mean and standard deviation are arrays.
      variables: {"params": ..., "batch_stats": ...}.
      images: [B, H, W, C], uint8 or floating in [0, 1].
      key: A PRNG key for dropout.

    Returns:
      A pytree with the structure of "batch_stats".
    """
    images = (to_unit_range(images) - network.mean) / network.std
    given = variables["batch_stats"]

    def moved_from(value: float) -> PyTree:
        start = jax.tree.map(
            lambda leaf: jnp.full_like(leaf, value) if is_floating(leaf) else leaf, given
        )
        moved = {"params": variables["params"], "batch_stats": start}
        return programs.fast(network.apply)(moved, images, True, {"dropout": key})[1]

    def statistic(zero: Array, one: Array, old: Array) -> Array:
        if not is_floating(old):
            return old
        # As float32 has .9: without the noise that a large b leaves in the difference.
        weight = 1 - jnp.median(one - zero)
        return jnp.where(weight > 0, zero / jnp.where(weight > 0, weight, 1.0), old)

    return jax.tree.map(statistic, moved_from(0.0), moved_from(1.0), given)


@functools.partial(compilation.jit, static_argnums=0)
def _measured(
    model: Itself,
    variables: PyTree,
    total: PyTree,
    images: Array,
    mean: Array,
    std: Array,
    key: Array,
    index: int,
) -> PyTree:
    network = Network(model.value, mean, std)
    found = of_batch(network, variables, images, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, found)


# With the usual momentum of 0.9 they keep up after 29 steps, with flax's default of 0.99 after 299.
_LARGEST_REMAINDER = 0.05


def warn_of_slow_statistics(
    model: Any, image_shape: tuple[int, ...], num_steps: int, *, is_trained: bool
) -> None:
    """Warns if running statistics cannot follow new weights in so few steps.

    Args:
      model: The network, as in `fit`. Nothing is known of the momentum in a pair of functions.
      image_shape: (H, W, C).
      num_steps: The number of steps of the training.
      is_trained: Whether the statistics fit the weights that the training starts from.
    """
    if is_trained or isinstance(model, tuple):
        return
    momentum = max(_momenta(model, image_shape), default=0.0)
    remainder = momentum**num_steps
    if remainder > _LARGEST_REMAINDER:
        small_enough = math.floor(100 * _LARGEST_REMAINDER ** (1 / num_steps)) / 100
        warnings.warn(
            f"After the {num_steps} steps of this training, {remainder:.0%} of the initial running "
            f"statistics are left in BatchNorm, because its momentum is {momentum:g}. Validation and "
            "attacks use these statistics, which do not fit the trained weights. Use a momentum of at "
            f"most {small_enough:g}, or more steps, or call `training.reestimate_batch_stats` "
            "afterwards.",
            stacklevel=3,
        )


def _momenta(model: Any, image_shape: tuple[int, ...]) -> set[float]:
    """Returns the momenta of the BatchNorm layers of a linen or an nnx module."""
    if nnx_modules.is_nnx(model):
        from flax import nnx

        layers = [layer for _, layer in nnx.iter_modules(model)]
        return {float(layer.momentum) for layer in layers if isinstance(layer, nnx.BatchNorm)}
    found = set()

    def seen(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        frozen = getattr(context.module, "use_running_average", None) is True
        if isinstance(context.module, nn.BatchNorm) and not frozen:
            found.add(float(context.module.momentum))
        return call(*arguments, **options)

    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    with nn.intercept_methods(seen):
        keys = {"params": key, "dropout": key}
        jax.eval_shape(functools.partial(model.init, train=True), keys, image)
    return found
