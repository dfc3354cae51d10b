"""What the engine promises to attacks of other kinds than those that exist: toy ones."""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import compilation
from jaxrobust.attacks import PGD, Attack, conversation, engine, lanes
from jaxrobust.types import fold_keys

IMAGES = jnp.full((2, 2, 2, 1), 0.5)
LABELS = jnp.array([0, 0])


def logits_fn(images):
    """Class 1 from a mean of .7 upwards, class 2 from .3 downwards."""
    mean = images.mean((1, 2, 3))
    return jnp.stack([jnp.zeros_like(mean), mean - 0.7, 0.3 - mean], axis=1)


class State(NamedTuple):
    image: jax.Array
    step: jax.Array
    seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Walk(Attack):
    """Asks about given brightnesses one after the other; needs no gradient."""

    levels: tuple[float, ...] = (0.95, 0.8, 0.2, 0.5)
    keep: str = dataclasses.field(default="closest", metadata={"static": True})

    norm: ClassVar[str] = "l2"
    num_steps: ClassVar[int] = 3
    num_restarts: ClassVar[int] = 1
    targeted: ClassVar[bool] = False
    uses_gradient: ClassVar[bool] = False

    def init(self, key, image, label, restart):
        return State(image, jnp.int32(0), jnp.float32(0))

    def ask(self, state):
        return jnp.full_like(state.image, jnp.stack(self.levels)[state.step])

    @staticmethod  # a method like any other
    def objective(logits, state):
        return logits[1]

    def tell(self, state, evaluation):
        assert evaluation.gradient is None
        return state._replace(step=state.step + 1)


def test_an_attack_without_gradients_costs_none_and_keeps_the_closest():
    result = Walk()(jax.random.key(0), logits_fn, IMAGES, LABELS)
    # .95, .8 and .2 fool; .8 and .2 are .3 away, and .8 came first. .5 is closest and fools nobody.
    np.testing.assert_allclose(result.images, 0.8, atol=1e-6)
    assert result.success.all()
    np.testing.assert_array_equal(result.num_steps, 0)
    np.testing.assert_array_equal(result.num_queries, 4)
    np.testing.assert_array_equal(result.num_gradients, 0)


def test_best_and_last_of_the_same_walk():
    best = Walk(keep="best")(jax.random.key(0), logits_fn, IMAGES, LABELS)
    np.testing.assert_allclose(best.images, 0.95, atol=1e-6)
    last = Walk(keep="last")(jax.random.key(0), logits_fn, IMAGES, LABELS)
    np.testing.assert_allclose(last.images, 0.5, atol=1e-6)
    assert not last.success.any()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AllLogits(Attack):
    """Wants the gradient of every logit, as DeepFool does; remembers them in its state."""

    norm: ClassVar[str] = "l2"
    num_steps: ClassVar[int] = 1
    num_restarts: ClassVar[int] = 1
    targeted: ClassVar[bool] = False
    keep: ClassVar[str] = "last"
    uses_gradient: ClassVar[bool] = True

    def init(self, key, image, label, restart):
        return image

    def ask(self, state):
        return state

    def objective(self, logits, state):
        return logits

    def tell(self, state, evaluation):
        return state


def test_k_objectives_give_k_gradients():
    points, evaluation = conversation.evaluate(
        AllLogits(), logits_fn, IMAGES, fold_keys(jax.random.key(0), jnp.arange(2))
    )
    np.testing.assert_array_equal(points, IMAGES)
    assert evaluation.value.shape == (2, 3)
    assert evaluation.gradient.shape == (2, 3, 2, 2, 1)
    # The mean of four pixels: a quarter each.
    for k, slope in enumerate((0.0, 0.25, -0.25)):
        np.testing.assert_allclose(evaluation.gradient[:, k], slope, atol=1e-6)


def test_points_are_held_inside_the_box():
    result = Walk(levels=(0.5, 7.0, 0.5, -3.0), keep="best")(
        jax.random.key(0), logits_fn, IMAGES, LABELS
    )
    np.testing.assert_array_equal(result.images, 1.0)


def test_an_unfinished_attack_is_told_what_it_lacks():
    @dataclasses.dataclass(frozen=True)
    class Half(Attack):
        num_steps: int = 3

        def init(self, key, image, label, restart):
            return image

    with pytest.raises(
        TypeError, match=r"Half is not an attack: it lacks norm, num_restarts, .* ask, "
    ):
        Half()(jax.random.key(0), logits_fn, IMAGES, LABELS)

    @dataclasses.dataclass(frozen=True)
    class Unregistered(Walk):
        pass

    with pytest.raises(TypeError, match="register_dataclass above its @dataclass"):
        Unregistered()(jax.random.key(0), logits_fn, IMAGES, LABELS)
    with pytest.raises(ValueError, match="`keep` must be one of"):
        Walk(keep="first")(jax.random.key(0), logits_fn, IMAGES, LABELS)


def test_what_is_no_attack_is_told_what_to_inherit():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Alone:
        epsilon: float = 0.1

    with pytest.raises(
        TypeError, match=r"Alone is not an attack: it must inherit jaxrobust\.attacks"
    ):
        engine.check_attack(Alone())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stated(PGD):
    """PGD with the defaults said aloud."""

    def done(self, state):
        return super().done(state)

    def eligible(self, state):
        return super().eligible(state)

    def wants_gradient(self, state):
        return super().wants_gradient(state)


def in_lanes(attack, keys, images, labels):
    """What lanes find of an attack with one start."""
    attack = conversation.per_image(attack, len(images))
    restarts, idle = jnp.zeros(len(images), jnp.int32), jnp.zeros(len(images), bool)
    begun = lanes.start(attack, keys, images, labels, restarts, idle)
    return lanes.advance(begun, logits_fn, jnp.int32(99), until_fooled=False).progress


def test_the_defaults_are_what_happens_without_them():
    keys = fold_keys(jax.random.key(1), jnp.arange(2))
    attacks = PGD(0.3, 0.1, 2), Stated(0.3, 0.1, 2)
    found = [attack(jax.random.key(1), logits_fn, IMAGES, LABELS) for attack in attacks]
    chex.assert_trees_all_close(*found, atol=1e-6)
    chex.assert_trees_all_close(
        *(in_lanes(one, keys, IMAGES, LABELS) for one in attacks), atol=1e-6
    )


def test_a_default_is_never_traced(monkeypatch):
    """Programs, and the digests of recipes with them, are what they are without the three methods."""

    def fail():
        raise AssertionError

    for method in (Attack.done, Attack.eligible, Attack.wants_gradient):
        # It keeps its name, by which it is found.
        monkeypatch.setattr(Attack, method.__name__, functools.wraps(method)(lambda *_: fail()))
    keys = fold_keys(jax.random.key(1), jnp.arange(2))
    PGD(0.3, 0.1, 2)(jax.random.key(1), lambda x: logits_fn(x), IMAGES, LABELS)
    engine.craft(PGD(0.3, 0.1, 2), jax.random.key(1), logits_fn, IMAGES, LABELS)
    in_lanes(PGD(0.3, 0.1, 2), keys, IMAGES, LABELS)


def test_microbatches_change_nothing(monkeypatch):
    images = jax.random.uniform(jax.random.key(0), (12, 2, 2, 1))
    labels = jnp.zeros(12, jnp.int32)
    keys = fold_keys(jax.random.key(1), jnp.arange(12))
    attack = conversation.per_image(PGD(0.2, 0.05, 4, num_restarts=2), 12)
    monkeypatch.setattr(compilation, "microbatch_size", lambda: None)
    whole = engine.run(attack, keys, logits_fn, images, labels)
    for size in (3, 4, 5, None):  # 5 does not divide 12
        monkeypatch.setattr(compilation, "microbatch_size", lambda size=size: size)
        parts = engine.run(attack, keys, logits_fn, images, labels)
        chex.assert_trees_all_close(parts, whole, atol=1e-6)
