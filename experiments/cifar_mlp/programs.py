"""Training as one compiled program: every value of a hyper-parameter and every seed of an ablation.

`train` scans over epochs and, within them, over batches; the settings of an ablation stand side by
side, and the seeds follow one another (`lax.map`). All settings of a seed start from the same weights
and see the same images in the same order, so that their differences are paired. Three things follow:

- The images of a batch are read once for all settings, and the first layers of all settings are one
  matrix product, [B, D] x [D, S * H]: half the time of `vmap` over the whole network, which XLA makes a
  product of three dimensions. The layers behind it are small, and vmapped.
- Batch sizes are multiples of the smallest, the unit of the scan: a setting with batches of four units
  adds four gradients up before it takes their mean for a step, which is exactly SGD with that batch.
- Hidden widths are padded to the largest, with zeros that stay zeros (`network.initial`). A stack of
  one program for each width would compute less (500 units instead of 800 for the source's four
  widths) and read the images four times; padding keeps one program.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp import network
from experiments.cifar_mlp.network import Layer, Params
from jaxrobust import compilation


class Settings(NamedTuple):
    """The hyper-parameters of S trainings, each [S].

    Attributes:
      learning_rate: Of the first epoch.
      decay: What the learning rate is multiplied by after each epoch.
      regularizer: Of `network.penalty`.
      batch_size: A multiple of the smallest of them.
      width: Units of the hidden layer; 0 where there is none.
    """

    learning_rate: Any
    decay: Any
    regularizer: Any
    batch_size: Any
    width: Any


class Examples(NamedTuple):
    """Images uint8 [N, D] and labels int32 [N]."""

    images: Any
    labels: Any


class Splits(NamedTuple):
    """What a classifier is trained on, chosen by and measured on; D pixels' mean and deviation."""

    train: Examples
    validation: Examples
    test: Examples
    mean: Any
    std: Any


class Trained(NamedTuple):
    """R seeds of S settings after E epochs.

    Attributes:
      params: Leaves [R, S, ...].
      train_loss: float32 [R, S, E], cross-entropy of the batches as they were trained on.
      train_accuracy: float32 [R, S, E], likewise.
      validation_loss: float32 [R, S, E], after each epoch.
      validation_accuracy: float32 [R, S, E], likewise.
      test_accuracy: float32 [R, S], after the last epoch.
    """

    params: Any
    train_loss: Any
    train_accuracy: Any
    validation_loss: Any
    validation_accuracy: Any
    test_accuracy: Any


def run(
    keys: jax.Array, settings: Settings, splits: Splits, scale: float, num_epochs: int
) -> Trained:
    """Trains all settings with all seeds, in one call of one compiled program.

    Args:
      keys: PRNG keys [R], one for each seed.
      settings: S of them.
      splits: The data.
      scale: Standard deviation of the first weights.
      num_epochs: E.
    """
    sizes, widths = np.asarray(settings.batch_size), np.asarray(settings.width)
    unit = int(sizes.min())
    if (sizes % unit).any():
        raise ValueError(f"`batch_size` must be multiples of the smallest, got {sizes.tolist()}.")
    num_units = len(splits.train.labels) // int(sizes.max()) * int(sizes.max() // unit)
    if not num_units:
        raise ValueError(
            f"`batch_size` must be at most the {len(splits.train.labels)} training images, "
            f"got {sizes.tolist()}."
        )
    floats = [jnp.asarray(value, jnp.float32) for value in settings[:3]]
    integers = [jnp.asarray(value, jnp.int32) for value in (sizes // unit, widths)]
    return _train(
        keys,
        Settings(*floats, *integers),
        splits,
        scale,
        unit=unit,
        num_units=num_units,  # no fewer for a small batch than for a large one
        hidden=int(widths.max()),
        num_classes=int(np.max(splits.train.labels)) + 1,
        num_epochs=num_epochs,
        adds_up=bool((sizes > unit).any()),
    )


@functools.partial(
    compilation.jit,
    static_argnames=("unit", "num_units", "hidden", "num_classes", "num_epochs", "adds_up"),
)
def _train(
    keys: jax.Array,
    settings: Settings,
    splits: Splits,
    scale: float | jax.Array,
    *,
    unit: int,
    num_units: int,
    hidden: int,
    num_classes: int,
    num_epochs: int,
    adds_up: bool,
) -> Trained:
    train, num_settings = splits.train, len(settings.width)

    def normalised(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255 - splits.mean) / splits.std

    def answers(params: Params, images: jax.Array) -> jax.Array:
        """The logits [S, B, K] of all settings."""
        first, *rest = params
        wide = normalised(images) @ first.weights.reshape(images.shape[1], -1)
        values = wide.reshape(len(images), num_settings, -1) + first.bias
        return jax.vmap(network.after_first, in_axes=(0, 1))(rest, values)

    def scores(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Losses and accuracies, [S]."""
        losses = jax.vmap(network.data_loss, in_axes=(0, None))(logits, labels)
        return losses, jnp.mean(logits.argmax(axis=2) == labels, axis=1)

    def objective(params: Params, batch: Examples) -> tuple[jax.Array, Any]:
        """The sum of the losses: its gradient is that of each, because none depends on another."""
        losses, accuracies = scores(answers(params, batch.images), batch.labels)
        penalties = jax.vmap(network.penalty, in_axes=(_axes(params), 0))(
            params, settings.regularizer
        )
        return jnp.sum(losses + penalties), (losses, accuracies)

    def one_seed(key: jax.Array) -> Trained:
        start, order = jax.random.split(key)
        params = _initial(
            start, settings.width, (train.images.shape[1], hidden, num_classes), scale
        )
        axes = _axes(params)
        sums = jax.tree.map(jnp.zeros_like, params) if adds_up else ()

        def step(state: Any, rows: jax.Array) -> Any:
            params, sums, count, rate = state
            batch = Examples(train.images[rows], train.labels[rows])
            gradient, measured = jax.grad(objective, has_aux=True)(params, batch)
            if adds_up:
                gradient = jax.tree.map(jnp.add, sums, gradient)
                due = (count + 1) % settings.batch_size == 0
                rates = jnp.where(due, rate / settings.batch_size, 0.0)
                kept = jnp.where(due, 0.0, 1.0)
                forget = jax.vmap(_scaled, in_axes=(axes, 0), out_axes=axes)
                sums = forget(gradient, kept)
            else:
                rates = rate
            move = jax.vmap(network.update, in_axes=(axes, axes, 0), out_axes=axes)
            return (move(params, gradient, rates), sums, count + 1, rate), measured

        def epoch(state: Any, number: jax.Array) -> Any:
            params, sums = state
            rows = jax.random.permutation(jax.random.fold_in(order, number), len(train.labels))
            rows = rows[: num_units * unit].reshape(num_units, unit)
            rate = settings.learning_rate * settings.decay**number
            state, measured = jax.lax.scan(step, (params, sums, 0, rate), rows)
            validated = scores(
                answers(state[0], splits.validation.images), splits.validation.labels
            )
            return state[:2], (*(value.mean(axis=0) for value in measured), *validated)

        (params, _), curves = jax.lax.scan(epoch, (params, sums), jnp.arange(num_epochs))
        _, tested = scores(answers(params, splits.test.images), splits.test.labels)
        first, *rest = params
        params = (first._replace(weights=first.weights.swapaxes(0, 1)), *rest)
        train_loss, train_accuracy, validation_loss, validation_accuracy = (c.T for c in curves)
        return Trained(
            params, train_loss, train_accuracy, validation_loss, validation_accuracy, tested
        )

    return jax.lax.map(one_seed, keys)


def _initial(
    key: jax.Array, widths: jax.Array, sizes: tuple[int, int, int], scale: float | jax.Array
) -> Params:
    """The first weights of all settings: equal, but for the units that a setting does not have."""
    num_inputs, hidden, num_classes = sizes
    if not hidden:
        params = network.initial(key, (num_inputs, num_classes), scale)
        copies = [jnp.broadcast_to(leaf, (len(widths), *leaf.shape)) for leaf in params[0]]
        params = (Layer(*copies),)
    else:
        make = functools.partial(network.initial, key, sizes, scale)
        params = jax.vmap(make)(widths)
    first, *rest = params
    return (first._replace(weights=first.weights.swapaxes(0, 1)), *rest)


def _axes(params: Params) -> Any:
    """Where the settings are: in the middle of the first weights, [D, S, H], else in front."""
    return (Layer(1, 0), *(Layer(0, 0) for _ in params[1:]))


def _scaled(params: Params, factor: jax.Array) -> Params:
    return jax.tree.map(lambda value: factor * value, params)
