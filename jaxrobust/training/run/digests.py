"""Digests of what the parts of a training compute, so that an edit of a user's function is noticed.

The library's own values are described by their fields (`fingerprint.describe`). What a user wrote, and
values of the library that contain a user's functions, are traced as well.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.attacks import conversation
from jaxrobust.training.run import fingerprint
from jaxrobust.training.run.plan import joined, split
from jaxrobust.training.step.attack_schedule import stages_of
from jaxrobust.training.step.eval_step import eval_step
from jaxrobust.training.step.network import Network
from jaxrobust.training.step.recipe import Augmentation, Recipe
from jaxrobust.training.step.state import TrainState, create_state
from jaxrobust.training.step.train_step import train_step
from jaxrobust.types import Array, Masks, PyTree, as_key


def of_model(network: Network, variables: PyTree, image_shape: tuple[int, ...]) -> str:
    """Returns the digest of a network in training and evaluation mode."""

    def forward(variables: PyTree, images: Array, key: Array) -> Any:
        in_training = network.apply(variables, images, True, {"dropout": key})
        return in_training, network.logits(variables, images)

    return fingerprint.program(forward, variables, _images(2, image_shape), _key())


def of_augmentation(augmentation: Augmentation | None, image_shape: tuple[int, ...]) -> str | None:
    """Returns the digest of an augmentation, or None without one."""
    if augmentation is None:
        return None
    # Through a function of its own: jax would take the trace of a function that it has seen.
    return fingerprint.program(lambda *given: augmentation(*given), _key(), _images(2, image_shape))


def of_values(
    recipe: Recipe,
    template: TrainState,
    network: Network,
    masks: Masks | None,
    image_shape: tuple[int, ...],
) -> list[str]:
    """Returns the digests of what a recipe computes; [] if all its values are the library's."""
    parts = (
        *(recipe.optimizer, recipe.schedule, recipe.objective, recipe.adversary),
        *(recipe.averaging, recipe.compression, recipe.validation),
    )
    if not any(map(is_foreign, parts)):
        return []
    batch = (
        _images(recipe.batch_size, image_shape),
        jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32),
    )
    # The fast forms are those of one platform, and a run may go on on another.
    with compilation.portable():
        found = [_of_start(recipe, template, image_shape)]
        for _, adversary in stages_of(recipe.adversary):
            stage = dataclasses.replace(recipe, adversary=adversary)
            found.append(_of_step(stage, template, network, masks, batch))
        if recipe.compression is not None:
            found.append(_of_compression(recipe.compression, template))
        if recipe.validation.attack is not None:
            found.append(_of_validation(recipe, template, network, batch))
    return found


def is_foreign(value: Any) -> bool:
    """Whether a value is, or contains, something that is not the library's."""
    if value is None or isinstance(value, bool | int | float | str | np.ndarray | np.generic):
        return False
    if isinstance(value, jax.Array):
        return False
    if isinstance(value, tuple | list):
        return any(map(is_foreign, value))
    if not type(value).__module__.startswith("jaxrobust."):
        return True
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return any(is_foreign(getattr(value, field.name)) for field in fields)


def _of_start(recipe: Recipe, template: TrainState, image_shape: tuple[int, ...]) -> str:
    def start(variables: PyTree, key: Array) -> TrainState:
        return create_state(variables, recipe, image_shape=image_shape, key=key)

    return fingerprint.program(start, template.variables, _key())


def _of_step(
    recipe: Recipe, template: TrainState, network: Network, masks: Masks | None, batch: Any
) -> str:
    rest, arrays = split(recipe.objective)

    def step(
        state: TrainState, batch: Any, key: Array, adversary: Any, arrays: tuple[Array, ...]
    ) -> Any:
        changed = {"adversary": adversary, "objective": joined(rest, arrays)}
        return train_step(
            state,
            batch,
            key,
            network=network,
            recipe=dataclasses.replace(recipe, **changed),
            steps_per_epoch=1,
            masks=masks,
        )

    adversary = conversation.as_arrays(recipe.adversary)
    return fingerprint.program(step, template, batch, _key(), adversary, arrays)


def _of_compression(compression: Any, template: TrainState) -> str:
    def between(params: PyTree, memory: Any, gradients: PyTree, number: Array) -> Any:
        given = gradients if compression.needs_gradients else None
        after = compression.update(params, memory, given, number, number)
        return after, compression.finish(params, memory, number)

    params, number = template.params, jax.ShapeDtypeStruct((), jnp.float32)
    return fingerprint.program(between, params, template.compression, params, number)


def _of_validation(recipe: Recipe, template: TrainState, network: Network, batch: Any) -> str:
    def evaluated(variables: PyTree, batch: Any, key: Array, attack: Any) -> Any:
        statistics = variables.get("batch_stats", {})
        logits_fn = network.in_evaluation(variables["params"], statistics, recipe.precision)
        return eval_step(logits_fn, batch, attack=attack, key=key)

    attack = conversation.as_arrays(recipe.validation.attack)
    return fingerprint.program(evaluated, template.variables, batch, _key(), attack)


def _images(count: int, image_shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)


def _key() -> Any:
    return jax.eval_shape(lambda: as_key(jax.random.key(0)))
