"""APGD, MI-FGSM and Square against closed forms and by hand; the types of every attack's state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_table import TABLE

from jaxrobust import norms
from jaxrobust.attacks import APGD, MIFGSM, RandomNoise, Square
from jaxrobust.types import Evaluation

SHAPE = (3, 4, 2)
SIZE = 24


def length(change, norm):
    flat = np.asarray(change, np.float64).reshape(len(change), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


def test_apgd_reaches_the_corner_of_the_ball_on_a_linear_classifier():
    normal = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    images = jax.random.uniform(jax.random.key(1), (3, *SHAPE))

    def logits_fn(x):
        return jnp.stack([jnp.zeros(len(x)), jnp.sum(x * normal, axis=(1, 2, 3))], axis=1)

    result = APGD(0.1, num_iterations=10)(
        jax.random.key(0), logits_fn, images, jnp.zeros(3, jnp.int32)
    )
    expected = jnp.clip(images + 0.1 * jnp.sign(normal), 0, 1)
    np.testing.assert_allclose(result.images, expected, atol=1e-6)


def test_l1_apgd_puts_the_radius_into_the_largest_weights():
    random = np.random.default_rng(0)
    normal = random.normal(size=SIZE).astype(np.float32)
    image = jnp.asarray(random.uniform(0, 1, (1, *SHAPE)), jnp.float32)

    def logits_fn(x):
        rise = x.reshape(len(x), -1) @ normal
        return jnp.stack([-rise, rise], axis=1)

    radius = 2.0
    # The best there is: the largest weights first, each as far as the box lets it.
    gain, left = 0.0, radius
    for index in np.argsort(-np.abs(normal)):
        pixel = float(image.ravel()[index])
        step = min(left, 1 - pixel if normal[index] > 0 else pixel)
        gain, left = gain + step * abs(normal[index]), left - step
    result = APGD(radius, num_iterations=60, norm="l1")(
        jax.random.key(0), logits_fn, image, jnp.array([0])
    )
    change = np.asarray(result.images - image, float).ravel()
    assert np.abs(change).sum() <= radius + 1e-5
    assert change @ normal >= 0.98 * gain


def drive(attack, values, image, gradient=None):
    """The states of an attack that is told these values, whatever it asks."""
    zero = jnp.int32(0)
    state = jax.jit(attack.init)(jax.random.key(0), image, zero, zero)
    states = [state]
    gradient = jnp.ones(image.shape) if gradient is None else gradient
    tell = jax.jit(attack.tell)
    for value in values:
        state = tell(state, Evaluation(jnp.array([1.0, 0.0]), jnp.float32(value), gradient))
        states.append(state)
    return states


def test_apgd_looks_back_at_the_papers_checkpoints():
    states = drive(APGD(0.1, num_iterations=100), np.zeros(101), jnp.full(SHAPE, 0.5))
    sizes = np.array([state.step_size for state in states])
    # The answer after n steps is the (n + 1)th; the state after it is the first with half the size.
    halved = np.flatnonzero(sizes[1:] < sizes[:-1])
    np.testing.assert_array_equal(halved, [22, 41, 57, 70, 80, 87, 93, 99])
    np.testing.assert_allclose(sizes[[0, -1]], [0.2, 0.2 / 2**8], rtol=1e-6)


def test_apgd_keeps_its_step_while_the_loss_rises_and_goes_back_to_the_best_where_it_does_not():
    image = jnp.full(SHAPE, 0.5)
    rising = drive(APGD(0.1, num_iterations=100), np.arange(60.0), image)
    assert {float(state.step_size) for state in rising} == {np.float32(0.2)}
    falling = drive(
        APGD(0.1, num_iterations=100), -np.arange(23.0), image, gradient=-jnp.ones(SHAPE)
    )
    best = rising[0].start  # the first point was the best
    np.testing.assert_array_equal(falling[-1].best, best)
    np.testing.assert_array_equal(falling[-1].previous, best)


def test_l1_apgd_lowers_its_radius_over_30_30_and_40_percent_of_the_steps():
    attack = APGD(1.0, num_iterations=20, norm="l1")
    random = np.random.default_rng(0)
    image = jnp.asarray(random.uniform(0.3, 0.7, (6, 6, 3)), jnp.float32)
    states = drive(attack, np.arange(20.0), image, jnp.asarray(random.normal(size=(6, 6, 3))))
    radii = [float(norms.norm(state.point - image, "l1")) for state in states]
    np.testing.assert_allclose(radii, [3] * 6 + [2] * 6 + [1] * 9, rtol=1e-4)
    eligible = [bool(attack.eligible(state)) for state in states]
    assert eligible == [False] * 12 + [True] * 9


def test_momentum_by_hand():
    random = np.random.default_rng(0)
    weights = random.normal(size=(SIZE, 2))
    image = random.uniform(0.3, 0.7, (1, *SHAPE))

    def by_hand(x):
        """The gradient of the cross-entropy of class 0: its probability's loss, times the weights."""
        values = x.ravel() @ weights
        return (weights[:, 1] - weights[:, 0]) / (1 + np.exp(values[0] - values[1]))

    average, x = np.zeros(SIZE), image.ravel().copy()
    for _ in range(2):
        gradient = by_hand(x)
        average = 0.5 * average + gradient / np.abs(gradient).sum()
        x = x + 0.02 * average / np.linalg.norm(average)
        change = x - image.ravel()
        x = image.ravel() + change * min(1, 0.03 / np.linalg.norm(change))
    attack = MIFGSM(0.03, 0.02, decay=0.5, num_steps=2, norm="l2", keep="last")
    result = attack(
        jax.random.key(0),
        lambda x: x.reshape(1, -1) @ jnp.float32(weights),
        jnp.float32(image),
        jnp.array([0]),
    )
    np.testing.assert_allclose(result.images.ravel(), x, atol=1e-6)


def test_momentum_averages_gradients_of_length_one():
    gradients = np.random.default_rng(0).normal(size=(2, *SHAPE))
    attack, image = MIFGSM(0.1, 0.01, decay=0.7), jnp.full(SHAPE, 0.5)
    state = attack.init(jax.random.key(0), image, jnp.int32(0), jnp.int32(0))
    for gradient in gradients:
        value = Evaluation(jnp.zeros(2), jnp.float32(0), jnp.float32(gradient))
        state = attack.tell(state, value)
    first, second = (gradient / np.abs(gradient).sum() for gradient in gradients)
    np.testing.assert_allclose(state.average, 0.7 * first + second, rtol=1e-5)
    expected = 0.5 + 0.01 * np.sign(first) + 0.01 * np.sign(0.7 * first + second)
    np.testing.assert_allclose(state.point, expected, atol=1e-6)


# --- Square ---


def test_square_starts_with_stripes_and_its_windows_get_smaller():
    attack, image = Square(0.1), jnp.full((32, 32, 3), 0.5)
    state = jax.jit(attack.init)(jax.random.key(0), image, jnp.int32(0), jnp.int32(0))
    stripes = np.asarray(state.point - image)
    np.testing.assert_allclose(np.abs(stripes), 0.1, rtol=1e-5)
    np.testing.assert_array_equal(stripes, np.broadcast_to(stripes[:1], stripes.shape))
    assert {-1, 1} == set(np.sign(stripes[0]).ravel())
    tell = jax.jit(attack.tell)
    worse = Evaluation(jnp.array([1.0, 0.0]), jnp.float32(-2), None)
    kept = state._replace(best_value=jnp.float32(-1))
    sides = []
    # After the start, and after the candidates at which the share is halved.
    for step in (0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2001, 4001):
        heights = []
        for seed in range(4):
            keyed = kept._replace(step=jnp.int32(step), key=jax.random.key(seed))
            changed = np.asarray(tell(keyed, worse).point != kept.best).any(axis=2)
            rows = np.flatnonzero(changed.any(axis=1))
            assert changed.sum(axis=0).max() in (0, len(rows))  # of a window all rows change
            heights.append(len(rows))
        sides.append(max(heights))
    assert sides == [29, 29, 20, 20, 14, 14, 10, 10, 7, 7, 5, 4, 3]


@pytest.mark.parametrize("num_steps", [37, 1000, 5000, 10_000, 20_000])
def test_a_rescaled_schedule_shrinks_at_the_same_shares_of_the_steps(num_steps):
    halvings = np.array(Square(0.1, num_steps)._halvings())
    rescaled = np.array(Square(0.1, num_steps, rescale_schedule=True)._halvings())
    for step in range(
        1, num_steps, 1 + num_steps // 3000
    ):  # the reference counts a step as so many of 10,000
        level = (step * 10_000 // num_steps > halvings).sum()
        assert (step > rescaled).sum() == level


def test_square_l2_starts_on_the_sphere_with_tiles_that_sum_to_little():
    image = jnp.full((32, 32, 3), 0.5)
    attack = Square(0.5, norm="l2")
    state = jax.jit(attack.init)(jax.random.key(0), image, jnp.int32(0), jnp.int32(0))
    change = np.asarray(state.point - image)
    np.testing.assert_allclose(np.linalg.norm(change), 0.5, rtol=1e-5)
    # Five by five tiles of 6, one pixel from the border; of a tile one half is up, the other down.
    assert not change[0].any() and not change[31].any() and not change[:, [0, 31]].any()
    tile = change[1:7, 1:7]
    np.testing.assert_allclose(tile.sum(axis=(0, 1)), 0, atol=1e-5)
    assert np.abs(tile).min() > 0


@pytest.mark.parametrize(("norm", "shape"), [("linf", (12, 7, 3)), ("l2", (7, 12, 3))])
def test_square_stays_in_the_ball_and_beats_the_control(norm, shape):
    random = np.random.default_rng(0)
    weights = jnp.asarray(random.normal(size=(np.prod(shape), 2)), jnp.float32)
    images = jnp.asarray(random.uniform(0, 1, (4, *shape)), jnp.float32)

    def logits_fn(x):
        return x.reshape(len(x), -1) @ weights - jnp.array([0.0, 100.0])  # never fooled

    radius = {"linf": 0.1, "l2": 0.5}[norm]
    square = Square(radius, num_steps=150, norm=norm)
    noise = RandomNoise(radius, num_steps=150, norm=norm)
    labels, key = jnp.zeros(4, jnp.int32), jax.random.key(0)
    results = [attack(key, logits_fn, images, labels) for attack in (square, noise)]
    assert length(results[0].images - images, norm).max() <= radius + 1e-6
    gains = [
        np.diff(np.asarray(logits_fn(result.images) - logits_fn(images)), axis=1).ravel()
        for result in results
    ]
    assert np.all(gains[0] > 1.1 * gains[1])


def test_square_l2_needs_five_by_five_pixels():
    images = jnp.full((1, 4, 8, 1), 0.5)
    with pytest.raises(ValueError, match="at least 5 x 5 pixels"):
        Square(0.5, norm="l2")(
            jax.random.key(0), lambda x: x.sum((1, 2)) * jnp.ones(2), images, jnp.array([0])
        )


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_states_keep_their_types_whatever_the_classifier_computes_in(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        attack = jax.tree.map(jnp.float32, TABLE[name])

        def conversation(image):
            key, zero = jax.random.key(0), jnp.int32(0)
            state = attack.init(key, image, zero, zero)
            point = attack.ask(state)
            logits = jnp.asarray([3.0, 2.0, 1.0, 0.0], dtype)
            value = attack.objective(logits, state)
            wide = jnp.zeros((*value.shape, *point.shape), jnp.float32)
            gradient = wide if attack.uses_gradient else None
            return state, attack.tell(state, Evaluation(logits, value, gradient))

        image = jax.ShapeDtypeStruct((6, 6, 3), jnp.float32)
        before, after = jax.eval_shape(conversation, image)
        types = {leaf.dtype.name for leaf in jax.tree.leaves(before)}
        assert types <= {"float32", "int32", "bool", "key<fry>"}
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), after
        )
