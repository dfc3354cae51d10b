"""One training step as a pure function.

Nothing here is compiled: the caller does that, with `jax.jit(functools.partial(train_step, recipe=...,
...))`. `jaxrobust.training.fit` is such a caller.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrobust.training.step.adversaries import Batch, Metrics, Shift, as_adversary
from jaxrobust.training.step.network import Network, Passes
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.training.step.state import TrainState
from jaxrobust.types import Array, Masks, PyTree, as_key


def train_step(
    state: TrainState,
    batch: tuple[Array, Array],
    key: Array,
    *,
    network: Network,
    recipe: Recipe,
    steps_per_epoch: int,
    masks: Masks | None = None,
) -> tuple[TrainState, Metrics]:
    """Augments a batch, makes it adversarial, and takes one optimizer step on the objective.

    The attack sees the network in evaluation mode (running statistics, no dropout): an adversary will
    meet that network, and the loss of an image then does not depend on the rest of the batch. The step
    itself is in training mode. (FreeReplays alone takes its gradient from the training pass.)

    Args:
      state: The state before the step, made by `create_state` with this recipe.
      batch: (images [B, H, W, C], uint8 or floating in [0, 1]; labels int [B]).
      key: A PRNG key for augmentation, attack and dropout.
      network: The network and its normalisation.
      recipe: The recipe of one epoch: use `recipe.at(epoch)` if its adversary is an AttackSchedule. Its
        batch size, validation and seed are not read.
      steps_per_epoch: The number of steps that the schedule and the warm-ups count as an epoch, at
        least 1.
      masks: A pytree with the structure of the parameters and boolean leaves. Parameters are set to 0
        where it is False. None: no masks.

    Returns:
      (state, metrics) after the step. The metrics are scalars: {"loss": the mean over the batch,
      "correct": int32, the number of correct predictions, "gradient_norm": the global l2 norm before
      clipping, of the weights that `masks` keep, "learning_rate"}. Loss and count are measured on the
      images trained on, in training mode, before the step (for FreeReplays, before the last replay);
      the loss leaves out the penalty of a compression. The caller updates the compression between
      steps.

    Raises:
      ValueError: The state was made with another recipe, or the adversary is an AttackSchedule.

    Example:
      >>> import functools
      >>> import flax.linen as nn
      >>> from jaxrobust.training.step.state import create_state
      >>> images, labels = jnp.eye(2).reshape(2, 2, 1, 1), jnp.array([0, 1])
      >>> class Linear(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, images, train=False):
      ...         return nn.Dense(2)(images.reshape(len(images), -1))
      >>> network, recipe = Network(Linear()), Recipe()
      >>> state = create_state(Linear().init(jax.random.key(0), images), recipe)
      >>> step = functools.partial(train_step, network=network, recipe=recipe, steps_per_epoch=1)
      >>> state, metrics = jax.jit(step)(state, (images, labels), jax.random.key(1))
      >>> int(state.step)
      1
    """
    _check_memories(state, recipe)
    rate = recipe.learning_rate(steps_per_epoch)(state.step) * state.learning_rate_scale
    clean, dropout_key = _clean_batch(state, batch, key, network, recipe, steps_per_epoch)
    descent = _Descent(network, recipe, clean, dropout_key, rate, masks)
    after, metrics = as_adversary(recipe.adversary).step(clean, state, descent)
    after = dataclasses.replace(after, step=state.step + 1)
    if recipe.averaging is not None:
        average = recipe.averaging.update(state.average, after.variables, after.step)
        after = dataclasses.replace(after, average=average)
    return after, metrics


def network_gradients(
    state: TrainState,
    batch: tuple[Array, Array],
    key: Array,
    *,
    network: Network,
    recipe: Recipe,
    steps_per_epoch: int,
) -> PyTree:
    """Computes the gradient of the objective with respect to all weights, also those that are 0.

    Args:
      state: The state, with the memory of the compression; it is not changed.
      batch: (images [B, H, W, C], uint8 or floating in [0, 1]; labels int [B]).
      key: A PRNG key for augmentation, attack and dropout.
      network: The network and its normalisation.
      recipe: The recipe of one epoch, with a compression.
      steps_per_epoch: The number of steps in an epoch, at least 1.

    Returns:
      A pytree with the structure of the parameters.
    """
    clean, dropout_key = _clean_batch(state, batch, key, network, recipe, steps_per_epoch)
    descent = _Descent(network, recipe, clean, dropout_key)
    adversarial = as_adversary(recipe.adversary).craft(clean, state.adversary)

    def loss(params: PyTree) -> tuple[Array, Any]:
        return descent.objective(params, state, adversarial, 0)

    return jax.grad(loss, has_aux=True)(_effective(recipe, state.params, state))[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Descent:
    """The optimizer step on the adversarial images of a batch, as a `Descend`.

    Attributes:
      network: The network and its normalisation.
      recipe: The recipe of one epoch.
      batch: The clean batch.
      dropout_key: A PRNG key for dropout.
      learning_rate: The learning rate of the step, a scalar.
      masks: Boolean leaves in the structure of the parameters, or None.
    """

    network: Network
    recipe: Recipe
    batch: Batch
    dropout_key: Array
    learning_rate: Any = None
    masks: Masks | None = None

    def __call__(
        self,
        state: TrainState,
        adversarial: Array,
        number: Array | int = 0,
        shift: Shift | None = None,
    ) -> tuple[TrainState, Metrics, Array]:
        """Takes one optimizer step; see `Descend`."""

        def attacked(params: PyTree, adversarial: Array) -> tuple[Array, Any]:
            effective = _effective(self.recipe, params, state)
            return self.objective(effective, state, adversarial, number)

        def loss(params: PyTree, adversarial: Array) -> tuple[Array, Any]:
            value, parts = attacked(params, adversarial)
            if self.recipe.compression is None:
                return value, (value, *parts)
            # In the log is the loss without what ties the weights: it says what the network can do.
            tie = self.recipe.compression.penalty(params, state.compression)
            return value + tie, (value, *parts)

        def uphill(params: PyTree) -> PyTree:
            return jax.grad(attacked, has_aux=True)(params, adversarial)[0]

        point = state.params
        if shift is not None:
            point = shift(point, uphill, lambda tree: _masked(tree, self.masks))
        (_, (value, logits, batch_stats)), (gradients, by_image) = jax.value_and_grad(
            loss, (0, 1), has_aux=True
        )(point, adversarial)
        # Pruned weights must not count when the gradient is clipped: behind BatchNorm, the gradient of
        # a filter of zeros is hundreds of times as large as that of others.
        gradients = _masked(gradients, self.masks)
        # The gradient may be that of another point; the step is taken from where the weights are.
        updates, opt_state = self.recipe.optimizer(self.learning_rate).update(
            gradients, state.opt_state, state.params
        )
        params = _masked(optax.apply_updates(state.params, updates), self.masks)
        after = dataclasses.replace(
            state, params=params, batch_stats=batch_stats, opt_state=opt_state
        )
        metrics = {
            "loss": value,
            "correct": jnp.sum(jnp.argmax(logits, -1) == self.batch.labels, dtype=jnp.int32),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(self.learning_rate, jnp.float32),
        }
        return after, metrics, by_image

    def objective(
        self, params: PyTree, state: TrainState, adversarial: Array, number: Array | int
    ) -> tuple[Array, tuple[Array, PyTree]]:
        """Returns (the loss at `params`, (logits, the new running statistics))."""
        # Begun anew for every gradient: each of a step sees the same statistics and dropout.
        forward = Passes(
            self.network,
            params,
            state.batch_stats,
            self.dropout_key,
            self.recipe.precision,
            number,
        )
        images, labels = self.batch.images, self.batch.labels
        returned = self.recipe.objective(forward, images, adversarial, labels)
        _check_returned(returned, forward, labels)
        value, logits, after = returned
        return value, (logits, after.statistics)


def _clean_batch(
    state: TrainState,
    batch: tuple[Array, Array],
    key: Array,
    network: Network,
    recipe: Recipe,
    steps_per_epoch: int,
) -> tuple[Batch, Array]:
    """Returns (the batch for the adversary, the key for dropout)."""
    images, labels = batch
    augment_key, attack_key, dropout_key = jax.random.split(as_key(key), 3)
    images = to_unit_range(images)
    if recipe.augmentation is not None:
        images = recipe.augmentation(augment_key, images)
    params = _effective(recipe, state.params, state)
    logits_fn = network.in_evaluation(params, state.batch_stats, recipe.precision)
    return Batch(images, labels, attack_key, logits_fn, state.step, steps_per_epoch), dropout_key


def _effective(recipe: Recipe, params: PyTree, state: TrainState) -> PyTree:
    """Returns the weights that the network computes with: the compression may change them."""
    if recipe.compression is None:
        return params
    return recipe.compression.effective(params, state.compression)


def _masked(tree: PyTree, masks: Masks | None) -> PyTree:
    if masks is None:
        return tree
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, tree)


def _check_returned(returned: Any, forward: Passes, labels: Array) -> None:
    """Raises unless an objective has returned what `Objective` says."""
    words = (
        "`objective` must return (the mean loss, the logits of the adversarial images, the passes that "
        "are left after them)"
    )
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise TypeError(f"{words}, got {type(returned).__name__}.")
    value, logits, after = returned
    if not isinstance(after, Passes):
        raise TypeError(
            f"{words}, got {type(after).__name__} for the passes: `logits, after = forward(images)`."
        )
    if after is forward:
        raise ValueError(
            f"{words}, got the passes that it was given: return `after` of `logits, after = "
            "forward(images)`, which has the updated running statistics."
        )
    shapes = jnp.shape(value), jnp.shape(logits)
    if shapes[0] != () or len(shapes[1]) != 2 or shapes[1][0] != labels.shape[0]:
        raise ValueError(
            f"{words}, a scalar and [{labels.shape[0]}, K], got shapes {shapes[0]} and {shapes[1]}."
        )


def _check_memories(state: TrainState, recipe: Recipe) -> None:
    for name in ("average", "compression"):
        field = "averaging" if name == "average" else name
        if (getattr(state, name) is None) != (getattr(recipe, field) is None):
            raise ValueError(
                f"`state` must be made by `create_state` with this recipe: `recipe.{field}` is "
                f"{getattr(recipe, field)}, but the state's `{name}` is "
                f"{'None' if getattr(state, name) is None else 'not None'}."
            )
    remembers = jax.eval_shape(lambda: as_adversary(recipe.adversary).memory((1, 1, 1, 1)))
    if (state.adversary is None) != (not jax.tree.leaves(remembers)):
        raise ValueError(
            "`state` must be made by `create_state` with this recipe: "
            f"`recipe.adversary` is {recipe.adversary}, but the state has "
            f"{'no' if state.adversary is None else 'a'} memory of an adversary."
        )


def to_unit_range(images: Array) -> Array:
    """Converts images to float32 in [0, 1]: divides uint8 by 255, and only casts floats.

    Raises:
      TypeError: The images have another type.
    """
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"`images` must be uint8 or floating point, got {images.dtype}.")
    return images.astype(jnp.float32)
