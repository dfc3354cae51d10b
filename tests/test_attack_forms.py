"""Minimal norms: closed forms, brute force and a general optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxrobust import norms
from jaxrobust.attacks import (
    APGD,
    FAB,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    hyperplane,
)
from jaxrobust.types import Evaluation

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
SHAPE = (3, 4, 2)
SIZE = 24


def length(change, norm):
    flat = np.asarray(change, np.float64).reshape(len(change), -1)
    return np.linalg.norm(flat, ORDER[norm], axis=1)


# --- projections ---


def nearest_on_hyperplane(point, normal, height, norm):
    """The smallest norm of a change d with normal . d = -height and point + d in [0, 1], or None."""
    size, low, high = len(point), -point, 1 - point
    if norm == "l1":
        found = scipy.optimize.linprog(
            np.ones(2 * size),
            A_eq=np.concatenate([normal, -normal])[None],
            b_eq=[-height],
            bounds=[*((0, h) for h in high), *((0, -x) for x in low)],
        )
        return found.fun if found.status == 0 else None
    if norm == "linf":
        identity, ones = np.eye(size), np.ones((size, 1))
        found = scipy.optimize.linprog(
            np.append(np.zeros(size), 1),
            A_ub=np.block([[identity, -ones], [-identity, -ones]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.append(normal, 0)[None],
            b_eq=[-height],
            bounds=[*zip(low, high, strict=True), (0, None)],
        )
        return found.fun if found.status == 0 else None
    # The change is clip(-t normal) for one t: the root of what is left to the hyperplane.
    side = np.sign(height)

    def left(t):
        return side * (normal @ np.clip(-t * side * normal, low, high) + height)

    if left(1e6) > 0:
        return None
    t = scipy.optimize.brentq(left, 0, 1e6, xtol=1e-14)
    return np.linalg.norm(np.clip(-t * side * normal, low, high))


@pytest.mark.parametrize("norm", norms.NORMS)
def test_hyperplane_projection_is_the_nearest_point_of_it_in_the_box(norm):
    random = np.random.default_rng(0)
    project = jax.jit(lambda *arguments: hyperplane.project(*arguments, norm))
    reached = 0
    for trial in range(12):
        point = np.clip(random.normal(0.5, 0.5, SIZE), 0, 1).astype(np.float32).astype(float)
        normal = random.normal(size=SIZE) * np.exp(random.normal(size=SIZE))
        normal[trial % SIZE] = 0
        normal = normal.astype(np.float32).astype(float)
        height = np.float32(random.normal() * np.abs(normal).sum() / 2)
        change = project(
            jnp.float32(point).reshape(SHAPE), jnp.float32(normal).reshape(SHAPE), height
        )
        change = np.asarray(change, float).ravel()
        assert (point + change).min() >= -1e-7 and (point + change).max() <= 1 + 1e-7
        expected = nearest_on_hyperplane(point, normal, height, norm)
        if expected is None:
            # Out of reach: as far towards it as the box allows.
            farthest = np.where(normal * height > 0, -point, 1 - point) * (normal != 0)
            np.testing.assert_allclose(change, farthest, atol=1e-6)
            continue
        reached += 1
        np.testing.assert_allclose(normal @ change, -height, rtol=1e-5)
        np.testing.assert_allclose(length(change[None], norm)[0], expected, rtol=1e-4)
    assert 0 < reached < 12


@pytest.mark.parametrize("norm", norms.NORMS)
def test_hyperplane_projection_of_a_point_on_it_or_without_a_normal_is_the_point(norm):
    point = jnp.linspace(0, 1, SIZE).reshape(SHAPE)
    for normal, height in ((jnp.ones(SHAPE), 0.0), (jnp.zeros(SHAPE), 1.0)):
        change = hyperplane.project(point, normal, jnp.float32(height), norm)
        np.testing.assert_array_equal(change, 0)
    tiny = hyperplane.project(point, jnp.full(SHAPE, 1e-25), jnp.float32(1e-25), norm)
    np.testing.assert_allclose(jnp.sum(tiny), -1, rtol=1e-5)


def test_l1_projection_is_the_nearest_point_of_the_ball_in_the_box():
    random = np.random.default_rng(0)
    radius = 2.0
    for trial in range(6):
        image = np.clip(random.normal(0.5, 0.5, SIZE), 0, 1)
        wanted = random.normal(size=SIZE) * (0.05 if trial == 0 else 1)
        # In halves: d = up - down, both not negative, sum at most the radius.
        found = scipy.optimize.minimize(
            lambda halves, wanted=wanted: np.sum((halves[:SIZE] - halves[SIZE:] - wanted) ** 2),
            np.zeros(2 * SIZE),
            bounds=[*((0, 1 - x) for x in image), *((0, x) for x in image)],
            constraints={"type": "ineq", "fun": lambda halves: radius - halves.sum()},
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert found.success
        projected = norms.project(
            jnp.float32(wanted).reshape(SHAPE), jnp.float32(image).reshape(SHAPE), radius, "l1"
        )
        expected = found.x[:SIZE] - found.x[SIZE:]
        np.testing.assert_allclose(np.ravel(projected), expected, atol=2e-4)


# --- minimal norms ---
# All of them on one small network, whose weights are arguments: each attack is compiled once.

PIXELS = (2, 3, 1)


def network(weights, x, module=jnp):
    """Linear where `curved` is 0."""
    sums = (x.reshape(len(x), -1) - 0.5) @ weights["first"]
    curved = weights["curved"]
    return (curved * module.tanh(sums) + (1 - curved) * sums) @ weights["second"] + weights["bias"]


def classifier(first, second, bias, curved):
    weights = {"first": first, "second": second, "bias": bias, "curved": curved}
    double = {name: np.asarray(value, float) for name, value in weights.items()}
    single = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    return jax.tree_util.Partial(network, single), lambda x: network(double, x, np)


FABS = {norm: FAB(0.2, 50, norm=norm, num_restarts=2) for norm in norms.NORMS}
MINIMAL = [
    *((attack, 0.01) for attack in FABS.values()),
    (FAB(0.2, 50, norm="l2", aim="one", num_restarts=4, num_targets=2), 0.01),
    (CarliniWagner(learning_rate=4e-3, num_iterations=300, num_searches=10), 0.02),
    (CarliniWagnerLinf(learning_rate=1e-3), 0.1),
]


def name_of(value):
    return f"{type(value).__name__}-{value.norm}" if hasattr(value, "norm") else ""


def linear():
    """A linear classifier, images far from 0 and 1 with small margins, and the norms needed."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(6, 8)) / 3, random.normal(size=(8, 3))
    function, exact = classifier(first, second, np.zeros(3), 0.0)
    images = random.uniform(0.4, 0.6, (4, *PIXELS)).astype(np.float32)
    values, weights = exact(images.astype(float)), first @ second
    labels = values.argmax(axis=1)

    def needed(norm):
        gaps = values[np.arange(4), labels][:, None] - values
        sizes = [
            [np.linalg.norm(weights[:, k] - weights[:, label], DUAL[norm]) for k in range(3)]
            for label in labels
        ]
        ratios = gaps / np.maximum(sizes, 1e-9)
        ratios[np.arange(4), labels] = np.inf
        return ratios.min(axis=1)

    return function, jnp.asarray(images), jnp.asarray(labels), needed


@pytest.mark.parametrize(("attack", "above"), MINIMAL, ids=name_of)
def test_minimal_norm_attacks_find_the_distance_to_a_linear_boundary(attack, above):
    function, images, labels, needed = linear()
    result = attack(jax.random.key(0), function, images, labels)
    assert bool(result.success.all())
    ratio = length(result.images - images, attack.norm) / needed(attack.norm)
    assert ratio.min() >= 1 - 1e-3 and ratio.max() <= 1 + above, ratio


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_needs_one_step_to_a_linear_boundary(norm):
    function, images, labels, needed = linear()
    result = DeepFool(norm=norm)(jax.random.key(0), function, images, labels)
    assert bool(result.success.all())
    np.testing.assert_array_equal(result.num_steps, 1)
    each = function(images).shape[1] - 1  # gradients: of the other classes
    # The step, and to see that it fooled.
    np.testing.assert_array_equal(result.num_gradients, 2 * each)
    expected = (needed(norm) + 1e-4) * 1.02
    np.testing.assert_allclose(length(result.images - images, norm), expected, rtol=1e-3)


@pytest.mark.parametrize("norm", norms.NORMS)
def test_fab_finds_the_nearest_point_where_the_box_is_in_the_way(norm):
    random = np.random.default_rng(3)
    images = np.clip(random.normal(0.5, 0.5, (4, *PIXELS)), 0, 1).astype(np.float32)
    normal = random.normal(size=6).astype(np.float32).astype(float)
    for image in images:
        flat = image.ravel().astype(float)
        # Two classes, and a third that never wins; the image is a third of the way from the boundary.
        lowest = np.where(normal > 0, -flat, 1 - flat) @ normal
        height = -0.6 * lowest
        threshold = (flat - 0.5) @ normal - height
        second = np.zeros((8, 3))
        second[0, 0] = 1
        function, _ = classifier(
            np.pad(normal[:, None], ((0, 0), (0, 7))), second, [-threshold, 0, -1e3], 0.0
        )
        expected = nearest_on_hyperplane(flat, normal, height, norm)
        batch = jnp.broadcast_to(image, (4, *PIXELS))  # the size compiled for the other tests
        result = FABS[norm](jax.random.key(0), function, batch, jnp.zeros(4, jnp.int32))
        assert bool(result.success.all())
        np.testing.assert_allclose(length(result.images - batch, norm), expected, rtol=0.01)


def smallest_by_scipy(exact, image, label, norm):
    """The smallest norm that fools, by several constrained descents."""
    random = np.random.default_rng(0)
    flat, size = image.ravel(), image.size
    best = np.inf
    for other in set(range(3)) - {int(label)}:

        def wins(d, other=other):
            values = exact((flat + d)[None])[0]
            return values[other] - values[label] - 1e-6

        for _ in range(3):
            start = random.normal(size=size) * 0.2
            extra = []
            if norm == "l2":
                variables, aim, change = start, lambda d: d @ d, lambda d: d
                bounds = [(-x, 1 - x) for x in flat]
            elif norm == "linf":
                variables = np.append(start, np.abs(start).max())
                aim, change = (lambda v: v[-1]), (lambda v: v[:-1])
                bounds = [*((-x, 1 - x) for x in flat), (0, 1)]
                extra = [
                    {"type": "ineq", "fun": lambda v: v[-1] - v[:-1]},
                    {"type": "ineq", "fun": lambda v: v[-1] + v[:-1]},
                ]
            else:
                variables = np.concatenate([np.maximum(start, 0), np.maximum(-start, 0)])
                aim, change = np.sum, (lambda v: v[:size] - v[size:])
                bounds = [*((0, 1 - x) for x in flat), *((0, x) for x in flat)]
            constraint = {"type": "ineq", "fun": lambda v, c=change, w=wins: w(c(v))}
            found = scipy.optimize.minimize(
                aim, variables, bounds=bounds, constraints=[constraint, *extra], method="SLSQP"
            )
            d = change(found.x)
            if found.success and wins(d) > -1e-6:
                best = min(best, float(length(d[None], norm)[0]))
    return best


@pytest.mark.parametrize(
    ("attack", "above"), [*MINIMAL, (DeepFool(), 0.3), (DeepFool(norm="linf"), 0.3)], ids=name_of
)
def test_minimal_norms_on_a_network_are_those_of_a_general_optimiser(attack, above):
    random = np.random.default_rng(5)
    first, second = random.normal(size=(6, 8)) * 1.5, random.normal(size=(8, 3))
    function, exact = classifier(first, second, np.zeros(3), 1.0)
    images = random.uniform(0.2, 0.8, (4, *PIXELS)).astype(np.float32)
    labels = exact(images.astype(float)).argmax(axis=1)
    result = attack(jax.random.key(0), function, jnp.asarray(images), jnp.asarray(labels))
    assert bool(result.success.all())
    found = length(result.images - images, attack.norm)
    expected = [
        smallest_by_scipy(exact, image.astype(float), label, attack.norm)
        for image, label in zip(images, labels, strict=True)
    ]
    assert np.isfinite(expected).all()
    assert np.all(found <= np.array(expected) * (1 + above) + 1e-5), found / expected


@pytest.mark.parametrize(
    "attack", [FAB(aim="one", num_targets=3), APGD(loss="targeted_dlr", num_targets=3)]
)
def test_a_start_aims_at_the_class_of_its_rank_on_the_clean_image(attack):
    logits, image = jnp.array([1.0, 4.0, 2.0, 3.0]), jnp.full(PIXELS, 0.5)

    def aim(restart):
        state = attack.init(jax.random.key(0), image, jnp.int32(1), restart)
        evaluation = Evaluation(logits, attack.objective(logits, state), jnp.ones(PIXELS))
        aimed = attack.tell(state, evaluation)
        return attack.ask(state), aimed.target, jax.grad(attack.objective)(logits, aimed)

    looks, targets, rises = jax.jit(jax.vmap(aim))(jnp.arange(4))
    np.testing.assert_array_equal(looks, jnp.broadcast_to(image, looks.shape))
    np.testing.assert_array_equal(targets, [3, 2, 0, 3])
    assert np.all(np.asarray(rises)[np.arange(4), targets] > 0)
