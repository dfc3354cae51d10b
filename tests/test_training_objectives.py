"""What a step descends, against numpy; that it is learnt; and the precision of the passes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from jax.tree_util import Partial
from small_networks import SMALL
from test_training_methods import (
    IMAGES,
    KEY,
    LABELS,
    RECIPE,
    WEIGHTS,
    Linear,
    craft,
    linear,
    replace,
    trained,
)

from jaxrobust import models
from jaxrobust.attacks import PGD
from jaxrobust.models import Classifier
from jaxrobust.training import (
    AWP,
    MART,
    TRADES,
    Constant,
    CrossEntropy,
    Distillation,
    FreeReplays,
    Network,
    Passes,
    Recipe,
    Warmup,
    create_state,
    train_step,
)
from jaxrobust.training.step.objectives import divergence

NOISE = np.random.default_rng(3).uniform(-0.1, 0.1, IMAGES.shape)
ADVERSARIAL = np.clip(IMAGES + NOISE, 0, 1).astype(np.float32)
RIGHT = np.eye(3, dtype=bool)[LABELS]
TEACHER = Partial(lambda weights, x: x.reshape(len(x), -1) @ weights, jnp.asarray(WEIGHTS))


def test_divergence_is_that_of_the_distributions():
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (first, second))
    expected = (p * np.log(p / q)).sum()
    np.testing.assert_allclose(
        divergence(jnp.float32(first), jnp.float32(second)), expected, rtol=1e-4
    )
    assert float(divergence(jnp.float32(first), jnp.float32(first))) == 0


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def entropy(logits, smoothing=0.0):
    targets = (1 - smoothing) * RIGHT + smoothing / 3
    return -(targets * np.log(softmax(logits))).sum(1)


def apart(first, second):
    p, q = softmax(first), softmax(second)
    return (p * np.log(p / q)).sum(1)


def mart(clean, other, _):
    p, q = softmax(clean), softmax(other)
    boosted = -np.log(q[RIGHT]) - np.log(1 - np.where(RIGHT, 0, q).max(1))
    return boosted + 5 * apart(clean, other) * (1 - p[RIGHT])


# Made of a teacher; by numpy of the logits (clean, adversarial, the teacher's); the order of its
# passes.
TABLE = {
    "cross-entropy": (lambda _: CrossEntropy(), lambda c, a, t: entropy(a), "a"),
    "natural-weight": (
        lambda _: CrossEntropy(natural_weight=0.1),
        lambda c, a, t: 0.9 * entropy(a) + 0.1 * entropy(c),
        "ac",
    ),
    "natural-weight-smoothed": (
        lambda _: CrossEntropy(natural_weight=0.1, label_smoothing=0.2),
        lambda c, a, t: 0.9 * entropy(a, 0.2) + 0.1 * entropy(c, 0.2),
        "ac",
    ),
    "trades": (lambda _: TRADES(), lambda c, a, t: entropy(c) + 6 * apart(c, a), "ca"),
    "trades-smoothed": (
        lambda _: TRADES(beta=2.0, label_smoothing=0.2),
        lambda c, a, t: entropy(c, 0.2) + 2 * apart(c, a),
        "ca",
    ),
    "mart": (lambda _: MART(), mart, "ca"),
    "distillation": (Distillation, lambda c, a, t: 900 * apart(t / 30, a / 30), "a"),
    "distillation-half": (
        lambda teacher: Distillation(teacher, weight=0.5, temperature=4.0),
        lambda c, a, t: 0.5 * 16 * apart(t / 4, a / 4) + 0.5 * entropy(c),
        "ac",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_objectives_are_those_of_their_papers(name):
    """Value, slope and all that is left of the passes, on a network that numpy computes as well."""
    made, by_numpy, order = TABLE[name]
    objective = made(TEACHER)
    variables = Linear().init(KEY, IMAGES)

    def descended(params):
        forward = Passes(Network(Linear()), params, variables["batch_stats"], KEY)
        value, logits, after = objective(forward, IMAGES, ADVERSARIAL, LABELS)
        return value, (logits, after.statistics, after.number)

    (value, (logits, statistics, number)), gradients = jax.value_and_grad(descended, has_aux=True)(
        variables["params"]
    )

    def logits_of(images, kernel):
        images = images.astype(float)
        deviations = np.sqrt(images.var((0, 1, 2)) + 1e-5)
        normalised = (images - images.mean((0, 1, 2))) / deviations
        return normalised.reshape(len(images), -1) @ kernel

    def expected(kernel):
        clean, other = logits_of(IMAGES, kernel), logits_of(ADVERSARIAL, kernel)
        return by_numpy(clean, other, linear(IMAGES).astype(float)).mean()

    kernel = np.asarray(variables["params"]["dense"]["kernel"], float)
    assert float(value) == pytest.approx(expected(kernel), rel=2e-4)
    np.testing.assert_allclose(logits, logits_of(ADVERSARIAL, kernel), atol=1e-5)
    way = np.random.default_rng(4).normal(size=kernel.shape)
    slope = (expected(kernel + 1e-4 * way) - expected(kernel - 1e-4 * way)) / 2e-4
    assert float(np.sum(gradients["dense"]["kernel"] * way)) == pytest.approx(slope, rel=1e-3)
    running = np.zeros(3)
    for images in order:
        running = 0.99 * running + 0.01 * {"a": ADVERSARIAL, "c": IMAGES}[images].mean((0, 1, 2))
    np.testing.assert_allclose(statistics["bn"]["mean"], running, rtol=1e-5)
    assert number == len(order)


def test_mart_is_exact_where_the_network_is_certain():
    """1 - p is 0 in float32 where p is nearly 1: its logarithm is that of the other classes' sum."""

    def answers(logits):
        return jnp.asarray(logits), answers

    def value(logits):
        return MART()(answers, logits, logits, jnp.array([1]))[0]

    wrong, gradient = jax.value_and_grad(value)(jnp.array([[60.0, 0.0, 0.0]]))
    assert float(wrong) == pytest.approx(60 + 60 - np.log(2), rel=1e-5)
    assert np.isfinite(gradient).all()
    assert float(value(jnp.array([[0.0, 60.0, 0.0]]))) == pytest.approx(0, abs=1e-5)


def with_penalty(forward, images, adversarial, labels):
    value, logits, after = CrossEntropy()(forward, images, adversarial, labels)
    absolute = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(forward.params))
    return value + 1e-4 * absolute, logits, after


# The class is the column with the brightest pixels.
COLUMNS = Partial(lambda scale, images: scale * images.sum((1, 3)), jnp.float32(5.0))


@pytest.mark.parametrize("name", [*TABLE, "own"])
def test_every_objective_is_learnt(name):
    objective = with_penalty if name == "own" else TABLE[name][0](COLUMNS)
    adversary = PGD(0.05, 0.02, num_steps=2)
    history = trained(replace(RECIPE, objective=objective, adversary=adversary)).history
    assert history[-1]["train_loss"] < 0.8 * history[0]["train_loss"]
    assert history[-1]["validation_accuracy"] > 0.85


def test_what_an_objective_needs_is_asked_for_before_training():
    class Comparing:
        compares = True

        def __call__(self, forward, images, adversarial, labels): ...

    free = FreeReplays(0.05)
    comparing = [one for made, *_ in TABLE.values() if (one := made(TEACHER)).compares]
    assert comparing
    for objective in (*comparing, Comparing()):
        for adversary in (None, AWP(None), free, AWP(free), Warmup(free, 1)):
            with pytest.raises(
                ValueError, match="`adversary` must (not be None|be an attack) with"
            ):
                replace(RECIPE, objective=objective, adversary=adversary)


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        (CrossEntropy, {"natural_weight": 1.0}, "`natural_weight` must be in"),
        (TRADES, {"beta": 0.0}, "`beta` must be a finite number above 0"),
        (TRADES, {"label_smoothing": 1.0}, "`label_smoothing` must be in"),
        (MART, {"beta": 0.0}, "`beta` must be a finite number above 0"),
        (partial(Distillation, TEACHER), {"weight": 1.5}, "`weight` must be a finite number"),
        (partial(Distillation, TEACHER), {"temperature": 0.0}, "`temperature` must be a finite"),
        (Recipe, {"precision": "float16"}, "`precision` must be one of"),
    ],
)
def test_settings_out_of_range(value, settings, message):
    with pytest.raises(ValueError, match=message):
        value(**settings)


def test_what_is_no_objective():
    for none in ("trade", TRADES):
        with pytest.raises(TypeError, match="`objective` must be an objective such as .* got"):
            Recipe(objective=none)
    with pytest.raises(TypeError, match="`teacher` must be a pytree of its weights"):
        Distillation(linear)
    ten = Partial(lambda weights, x: x.reshape(len(x), -1) @ weights, jnp.ones((9, 10)))
    with pytest.raises(ValueError, match=r"logits of shape \(\d+, 3\)"):
        trained(replace(RECIPE, objective=Distillation(ten)))


CONVOLUTIONS = models.create("resnet_small", 3, stage_sizes=(1, 1), widths=(4, 6))


def convolution_types(function, *arguments):
    """The types of what every convolution in a program is made of."""
    found = set()

    def search(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                found.update(str(v.aval.dtype) for v in equation.invars)
            for inner in jaxprs_in_params(equation.params):
                search(inner)

    search(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bfloat16_computes_the_passes_and_keeps_nothing(precision):
    recipe = Recipe(
        optimizer=optax.sgd,
        schedule=Constant(0.1),
        adversary=PGD(0.03, 0.01, num_steps=2),
        precision=precision,
    )
    state = create_state(CONVOLUTIONS.init(KEY, jnp.ones((1, 8, 8, 3))), recipe)
    batch = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32), LABELS
    network = Network(CONVOLUTIONS)

    def step(state, batch):
        return train_step(state, batch, KEY, network=network, recipe=recipe, steps_per_epoch=1)

    assert convolution_types(step, state, batch) == {precision}
    after, metrics = jax.jit(step)(state, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.variables))
    assert metrics["loss"].dtype == jnp.float32 and np.isfinite(metrics["loss"])
    assert float(metrics["loss"]) == pytest.approx(float(stepped_loss(batch)), rel=0.05)


def stepped_loss(batch):
    """The loss of the step above, in float32."""
    variables = CONVOLUTIONS.init(KEY, jnp.ones((1, 8, 8, 3)))
    classifier = Classifier(CONVOLUTIONS.apply, variables)
    key = jax.random.split(KEY, 3)[1]
    adversarial = craft(PGD(0.03, 0.01, num_steps=2), key, classifier, *batch)
    logits, _ = CONVOLUTIONS.apply(variables, adversarial, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@pytest.mark.parametrize("name", ["resnet_small", "mobilenet_v2", "densenet121"])
def test_a_classifier_of_rounded_weights_computes_in_their_type(name):
    network = models.create(name, **SMALL[name])
    images = jnp.ones((1, 32, 32, 3))
    variables = jax.eval_shape(network.init, KEY, images)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), variables)
    classifier = partial(Classifier, network.apply, mean=0.5, std=0.2)
    types = convolution_types(lambda v, x: classifier(v)(x), half, images.astype(jnp.bfloat16))
    assert types == {"bfloat16"}
