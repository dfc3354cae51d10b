"""Trains all values of a hyper-parameter, with all seeds, in one compiled program.

`run` scans over epochs and, within them, over batches. It trains the settings of an ablation together,
and the seeds one after another. All settings of a seed start from the same weights and see the same
images in the same order, so that their differences are paired. This has three consequences:

- The images of a batch are read once for all settings, and the first layers of all settings are one
  matrix product, [B, D] x [D, S * H]. This takes half the time of `vmap` over the whole network, which
  XLA computes as a product with three dimensions. The layers after the first are small, and vmapped.
- Batch sizes are multiples of the smallest, the unit of the scan. A setting with batches of four units
  sums four gradients and takes a step with their mean, which is exactly SGD with that batch.
- Hidden widths are padded to the largest, with zeros that stay zeros (`network.initial`). A program for
  each width would compute less (500 units instead of 800 for the source's widths), but read the images
  several times.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp import network
from experiments.cifar_mlp.network import Layer, Params
from jaxrobust import compilation, data


class Hyperparameters(NamedTuple):
    """The hyper-parameters of one training, or arrays [S] of those of S trainings."""

    learning_rate: Any  # of the first epoch
    decay: Any  # the factor of the learning rate after each epoch
    regularizer: Any  # of `network.penalty`
    batch_size: Any  # a multiple of the smallest batch size
    width: Any  # units of the hidden layer; 0 if there is none


class Examples(NamedTuple):
    """Images uint8 [N, D], and labels int32 [N]."""

    images: Any
    labels: Any


class Splits(NamedTuple):
    """Training, validation and test images, and the mean and standard deviation of each pixel [D]."""

    train: Examples
    validation: Examples
    test: Examples
    mean: Any
    std: Any


def splits_of(dataset: data.Dataset, num_folds: int) -> Splits:
    """Returns a data set as rows of pixels; the first of `num_folds` training folds validates."""
    train = dataset.train
    fitted, held_out = data.stratified_folds(train.labels, num_folds)[0]
    parts = (
        (train.images[fitted], train.labels[fitted]),
        (train.images[held_out], train.labels[held_out]),
        (dataset.test.images, dataset.test.labels),
    )
    pixels = np.prod(dataset.image_shape[:2])
    mean, std = (np.tile(values, pixels) for values in (dataset.mean, dataset.std))
    rows = [Examples(images.reshape(len(images), -1), labels) for images, labels in parts]
    return Splits(rows[0], rows[1], rows[2], mean, std)


def run(
    keys: jax.Array, settings: Hyperparameters, splits: Splits, scale: float, num_epochs: int
) -> tuple[Params, dict[str, jax.Array]]:
    """Trains all settings [S] with all seeds [R] in one program.

    The first weights have the standard deviation `scale`.

    Returns:
      The weights, leaves [R, S, ...], and float32 arrays by name: train_loss and train_accuracy [R, S,
      E], means over the batches during an epoch; validation_loss and validation_accuracy [R, S, E],
      after each epoch; test_accuracy [R, S], after the last epoch.

    Raises:
      ValueError: Batch sizes are not multiples of the smallest, or exceed the training images.
    """
    num_classes = int(np.max(splits.train.labels)) + 1
    sizes, widths = (tuple(map(int, column)) for column in settings[3:])
    floats = jnp.array(settings[:3], jnp.float32)
    return _train(keys, floats, splits, scale, sizes, widths, num_classes, num_epochs)


@functools.partial(compilation.jit, static_argnums=(4, 5, 6, 7))
def _train(
    keys: jax.Array,
    floats: jax.Array,
    splits: Splits,
    scale: Any,
    sizes: tuple[int, ...],
    widths: tuple[int, ...],
    num_classes: int,
    num_epochs: int,
) -> tuple[Params, dict[str, jax.Array]]:
    train, num_settings, unit = splits.train, len(widths), min(sizes)
    learning_rates, decays, regularizers = floats
    batches = jnp.array(sizes) // unit
    # All batch sizes see the same number of images.
    num_units = len(train.labels) // max(sizes) * (max(sizes) // unit)
    if any(size % unit for size in sizes):
        raise ValueError(f"`batch_size` must be multiples of the smallest, got {list(sizes)}.")
    if not num_units:
        raise ValueError(
            f"`batch_size` must be at most the {len(train.labels)} training images, "
            f"got {list(sizes)}."
        )

    def answers(params: Params, images: jax.Array) -> jax.Array:
        """Returns the logits [S, B, K] of all settings."""
        normalised = (images.astype(jnp.float32) / 255 - splits.mean) / splits.std
        first, *rest = params
        wide = normalised @ first.weights.reshape(images.shape[1], -1)
        values = wide.reshape(len(images), num_settings, -1) + first.bias
        return jax.vmap(network.after_first, in_axes=(0, 1))(rest, values)

    def scores(params: Params, examples: Examples) -> tuple[jax.Array, jax.Array]:
        """Returns losses [S] and accuracies [S]."""
        logits = answers(params, examples.images)
        losses = jax.vmap(network.data_loss, in_axes=(0, None))(logits, examples.labels)
        return losses, jnp.mean(logits.argmax(axis=2) == examples.labels, axis=1)

    def objective(params: Params, batch: Examples) -> tuple[jax.Array, Any]:
        """Returns the sum of the losses, from which each setting gets its own gradient."""
        losses, accuracies = scores(params, batch)
        penalties = jax.vmap(network.penalty, in_axes=(_axes(params), 0))(params, regularizers)
        return jnp.sum(losses + penalties), (losses, accuracies)

    def one_seed(key: jax.Array) -> tuple[Params, dict[str, jax.Array]]:
        start, order = jax.random.split(key)
        shape = (train.images.shape[1], max(widths), num_classes)
        params = _initial(start, widths, shape, scale)
        axes = _axes(params)
        move = jax.vmap(network.update, in_axes=(axes, axes, 0), out_axes=axes)
        sums = jax.tree.map(jnp.zeros_like, params) if max(sizes) > unit else ()

        def step(state: Any, rows: jax.Array) -> Any:
            params, sums, count, rate = state
            batch = Examples(train.images[rows], train.labels[rows])
            gradient, measured = jax.grad(objective, has_aux=True)(params, batch)
            if max(sizes) > unit:
                gradient = jax.tree.map(jnp.add, sums, gradient)
                due = (count + 1) % batches == 0
                rates = jnp.where(due, rate / batches, 0.0)
                sums = move(gradient, gradient, jnp.where(due, 1.0, 0.0))  # 0 after a step
            else:
                rates = rate
            return (move(params, gradient, rates), sums, count + 1, rate), measured

        def epoch(state: Any, number: jax.Array) -> Any:
            rows = jax.random.permutation(jax.random.fold_in(order, number), len(train.labels))
            rows = rows[: num_units * unit].reshape(num_units, unit)
            rate = learning_rates * decays**number
            (params, sums, *_), measured = jax.lax.scan(step, (*state, 0, rate), rows)
            means = [value.mean(axis=0) for value in measured]
            return (params, sums), (*means, *scores(params, splits.validation))

        (params, _), curves = jax.lax.scan(epoch, (params, sums), jnp.arange(num_epochs))
        names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        found = {name: values.T for name, values in zip(names, curves, strict=True)}
        found["test_accuracy"] = scores(params, splits.test)[1]
        return _swapped(params), found

    return jax.lax.map(one_seed, keys)


def _initial(
    key: jax.Array, widths: tuple[int, ...], sizes: tuple[int, int, int], scale: Any
) -> Params:
    """Returns the first weights of all settings, equal except for the units that a setting lacks."""
    if sizes[1]:
        return _swapped(
            jax.vmap(lambda w: network.initial(key, sizes, scale, w))(jnp.array(widths))
        )
    return _swapped(jax.vmap(lambda _: network.initial(key, sizes[::2], scale))(jnp.array(widths)))


def _swapped(params: Params) -> Params:
    """Swaps the first two axes of the first weights, [S, D, H] or [D, S, H]; others stay the same."""
    first, *rest = params
    return (first._replace(weights=first.weights.swapaxes(0, 1)), *rest)


def _axes(params: Params) -> Any:
    """Returns the axis of the settings: the second of the first weights [D, S, H], else the first."""
    return (Layer(1, 0), *(Layer(0, 0) for _ in params[1:]))
