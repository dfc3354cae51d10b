"""Optimizers, schedules, decisions and the pure steps, against closed forms and optax."""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobust.attacks import PGD
from jaxrobust.training import (
    EMA,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    CrossEntropy,
    Network,
    Plateau,
    Recipe,
    Steps,
    Validation,
    create_state,
    eval_step,
    train_step,
)
from jaxrobust.training.run.batches import DeviceData, padded_batch_at, shuffled
from jaxrobust.training.run.epoch_decisions import (
    best_epoch,
    is_finished,
    learning_rate_scale,
    plateau_scale,
)
from jaxrobust.training.step import adversaries
from jaxrobust.training.step.objectives import smoothed_cross_entropy


class Net(nn.Module):
    """A dense layer, with the state and the randomness that real networks have."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.BatchNorm(use_running_average=not train)(images)
        features = nn.Dropout(0.5, deterministic=not train)(features)
        return nn.Dense(3)(features.reshape(len(features), -1))


PARAMS = {"dense": {"kernel": jnp.array([[0.5, -2.0]]), "bias": jnp.array([0.25, 1.0])}}
GRADIENTS = [
    {"dense": {"kernel": jnp.array([[0.1, 3.0]]), "bias": jnp.array([-1.0, 0.0])}},
    {"dense": {"kernel": jnp.array([[-0.2, 1.0]]), "bias": jnp.array([0.5, 0.3])}},
]


def descend(optimizer):
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS:
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_trees_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), actual, expected
    )


def only_kernels(params):
    return {"dense": {"kernel": True, "bias": False}}


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (AdamW(weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)),
        (
            AdamW(weight_decay=0.3, decayed_weights="kernels"),
            optax.adamw(0.1, weight_decay=0.3, mask=only_kernels),
        ),
        (Adam(weight_decay=0.3), optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.1))),
        (
            SGD(momentum=0.8, nesterov=True, weight_decay=0.3),
            optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1, 0.8, nesterov=True)),
        ),
        (
            SGD(momentum=0.0, weight_decay=0.3, gradient_clip=0.5),
            optax.chain(
                optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.3), optax.sgd(0.1)
            ),
        ),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else str(value),
)
def test_optimizer_is_that_of_optax(optimizer, reference):
    assert_trees_close(descend(optimizer(0.1)), descend(reference))


def test_sgd_with_momentum_is_that_of_torch():
    kernel = np.array([[0.5, -2.0]])
    buffer = 0.0
    for gradients in GRADIENTS:  # torch/optim/sgd.py: buf = m * buf + (g + wd * p); p -= lr * buf
        buffer = 0.9 * buffer + np.asarray(gradients["dense"]["kernel"]) + 0.1 * kernel
        kernel = kernel - 0.05 * buffer
    params = descend(SGD(momentum=0.9, weight_decay=0.1)(0.05))
    np.testing.assert_allclose(params["dense"]["kernel"], kernel, rtol=1e-5)


def test_step_schedule_falls_after_its_milestones():
    recipe = Recipe(num_epochs=4, schedule=Steps(1.0, milestones=(2, 3), factor=0.5))
    schedule = recipe.learning_rate(steps_per_epoch=3)
    expected = [1.0] * 6 + [0.5] * 3 + [0.25] * 3
    assert [float(schedule(step)) for step in range(12)] == expected


def test_cosine_schedule_with_warmup():
    recipe = Recipe(num_epochs=6, schedule=Cosine(0.8, warmup_epochs=2))
    schedule = recipe.learning_rate(steps_per_epoch=5)
    values = np.array([float(schedule(step)) for step in range(31)])
    np.testing.assert_allclose(values[:10], 0.8 * np.arange(1, 11) / 10, rtol=1e-6)
    expected = 0.4 * (1 + np.cos(np.pi * np.arange(21) / 20))
    np.testing.assert_allclose(values[10:], expected, atol=1e-6)


def test_plateau_follows_torch_on_a_hand_made_sequence():
    # torch.optim.lr_scheduler.ReduceLROnPlateau(factor=.5, patience=2): three bad epochs in a row
    # (the third is one too many) halve the rate; 0.99995 is no improvement on 1 (threshold 1e-4).
    losses = [1.0, 0.99995, 1.2, 1.1, 1.0, 1.0, 1.0, 0.9, 0.95, 0.95, 0.95]
    expected = [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]
    actual = [plateau_scale(losses[: n + 1], 0.5, 2) for n in range(len(losses))]
    assert actual == expected


def test_plateau_on_accuracy_counts_a_rise_as_an_improvement():
    validation = Validation(monitor="validation_accuracy")
    recipe = Recipe(schedule=Plateau(patience=0), validation=validation)
    rising = [{"validation_accuracy": value} for value in (0.2, 0.3, 0.4)]
    assert learning_rate_scale(recipe, rising) == 1.0
    fallen = [*rising, {"validation_accuracy": 0.40001}]
    assert learning_rate_scale(recipe, fallen) == 0.5
    assert learning_rate_scale(Recipe(validation=validation), fallen) == 1.0


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30), st.integers(1, 5))
def test_early_stopping_stops_once_and_only_without_progress(losses, patience):
    validation = Validation(early_stopping_patience=patience)
    recipe = Recipe(num_epochs=1000, validation=validation)
    rows = [{"validation_loss": loss} for loss in losses]
    stops = [n for n in range(1, len(rows) + 1) if is_finished(recipe, rows[:n])]
    if stops:
        first = stops[0]
        assert min(losses[first - patience : first]) >= min(losses[: first - patience])
    else:
        assert len(rows) - best_epoch(validation.monitor, rows) < patience


def test_best_epoch_is_the_first_of_equals():
    rows = [{"validation_accuracy": a, "validation_loss": -a} for a in (0.5, 0.7, 0.7, 0.6)]
    assert best_epoch("validation_accuracy", rows) == 2
    assert best_epoch(Validation().monitor, rows) == 2
    assert best_epoch("validation_loss", [{"train_loss": 1.0}]) is None


@pytest.mark.parametrize(
    ("value", "settings", "words"),
    [
        (Validation, {"monitor": "train_loss"}, "`monitor` must be one of"),
        (Constant, {"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0"),
        (Recipe, {"num_epochs": 0}, "`num_epochs` must be at least 1"),
        (CrossEntropy, {"label_smoothing": 1.0}, "`label_smoothing` must be in"),
        (EMA, {"decay": 1.5}, r"`decay` must be in \[0, 1\)"),
        (SGD, {"gradient_clip": -1.0}, "`gradient_clip` must be"),
        (partial(Steps, 0.1), {"milestones": ()}, "`milestones` must be one or more epochs"),
        (partial(Steps, 0.1), {"milestones": (0, 3)}, "`milestones` must be at least 1"),
        (partial(Steps, 0.1), {"milestones": (4, 2)}, "in ascending order"),
        (Recipe, {"schedule": Constant(warmup_epochs=30)}, "`schedule.warmup_epochs` must be less"),
        (Validation, {"early_stopping_patience": 0}, "`early_stopping_patience` must be at least"),
    ],
)
def test_settings_out_of_range(value, settings, words):
    with pytest.raises(ValueError, match=words):
        value(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adagrad"}, "`optimizer` must be a function from a learning rate"),
        ({"optimizer": optax.adam(0.1)}, "or optax.adam \\(not optax.adam"),
        ({"optimizer": SGD}, "`optimizer` must be a function from a learning rate"),
        ({"schedule": "exponential"}, "`schedule` must be a schedule such as"),
        ({"schedule": Cosine}, "`schedule` must be a schedule such as"),
        ({"validation": "validation_loss"}, "`validation` must be a Validation"),
    ],
)
def test_what_is_no_part_of_a_recipe(settings, words):
    with pytest.raises(TypeError, match=words):
        Recipe(**settings)


def test_smoothed_cross_entropy_is_that_of_optax():
    logits = jax.random.normal(jax.random.key(0), (5, 4))
    labels = jnp.array([0, 3, 1, 2, 2])
    for smoothing in (0.0, 0.2):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 4), smoothing)
        np.testing.assert_allclose(
            smoothed_cross_entropy(logits, labels, smoothing),
            optax.softmax_cross_entropy(logits, targets),
            rtol=1e-5,
        )


RECIPE = Recipe(optimizer=SGD(momentum=0.0, weight_decay=0.0), schedule=Constant(0.1))


def make_step(**changes):
    """(state, batch, arguments of train_step) for the small network."""
    net = Net()
    images = jax.random.randint(jax.random.key(1), (6, 2, 2, 3), 0, 256).astype(jnp.uint8)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    recipe = dataclasses.replace(RECIPE, **changes)
    arguments = {
        "network": Network(net, mean=(0.4, 0.5, 0.6), std=0.25),
        "recipe": recipe,
        "steps_per_epoch": 1,
    }
    variables = net.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    return create_state(variables, recipe), (images, labels), arguments


def test_train_step_descends_the_gradient_of_the_normalised_images():
    state, (images, labels), arguments = make_step()
    key = jax.random.key(3)
    after, metrics = train_step(state, (images, labels), key, **arguments)

    dropout_key = jax.random.split(key, 3)[2]
    normalised = (images / 255.0 - jnp.array([0.4, 0.5, 0.6])) / 0.25

    def loss_fn(params):
        logits, updated = Net().apply(
            state.variables | {"params": params},
            normalised,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updated["batch_stats"]

    (loss, batch_stats), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    assert_trees_close(
        after.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    )
    assert_trees_close(after.batch_stats, batch_stats)
    assert int(after.step) == 1
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(gradients), rtol=1e-5)


def test_train_step_takes_any_optax_optimizer_and_schedule_and_the_plateau_scale():
    state, batch, arguments = make_step()
    lowered = dataclasses.replace(state, learning_rate_scale=jnp.float32(0.5))
    key = jax.random.key(3)
    half, metrics = train_step(lowered, batch, key, **arguments)
    np.testing.assert_allclose(metrics["learning_rate"], 0.05, rtol=1e-6)
    plain, _, arguments = make_step(optimizer=optax.sgd, schedule=optax.constant_schedule(0.05))
    expected, _ = train_step(plain, batch, key, **arguments)
    assert_trees_close(half.params, expected.params)


def test_moving_average():
    state, batch, arguments = make_step(averaging=EMA(0.15))
    first, _ = train_step(state, batch, jax.random.key(0), **arguments)
    # (1 + 1) / (10 + 1) is above 0.15.
    expected = jax.tree.map(
        lambda old, new: 0.15 * old + 0.85 * new, state.variables, first.variables
    )
    assert_trees_close(first.average, expected)
    assert first.evaluated is first.average
    plain, _, without = make_step()
    for other, wrong in ((state, without), (plain, arguments)):
        with pytest.raises(ValueError, match="`recipe.averaging` is"):
            train_step(other, batch, jax.random.key(0), **wrong)


def test_masks():
    state, batch, arguments = make_step()
    key = jax.random.key(0)
    masks = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 2 == 0, state.params
    )
    masked, _ = train_step(state, batch, key, masks=masks, **arguments)
    free, _ = train_step(state, batch, key, **arguments)
    assert_trees_close(
        masked.params, jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, free.params)
    )


def test_pruned_weights_do_not_count_when_the_gradient_is_clipped():
    state, batch, arguments = make_step()
    key = jax.random.key(0)
    masks = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 2 == 0, state.params
    )
    free, _ = train_step(state, batch, key, **arguments)
    steps = jax.tree.map(lambda m, a, b: jnp.where(m, a - b, 0), masks, free.params, state.params)
    norm = float(optax.tree.norm(steps)) / 0.1  # of the gradient of the weights that stay
    clipped = SGD(momentum=0.0, weight_decay=0.0, gradient_clip=norm / 2)
    arguments["recipe"] = dataclasses.replace(RECIPE, optimizer=clipped)
    masked, metrics = train_step(
        create_state(state.variables, arguments["recipe"]), batch, key, masks=masks, **arguments
    )
    expected = jax.tree.map(
        lambda m, p, step: jnp.where(m, p + step / 2, 0), masks, state.params, steps
    )
    assert_trees_close(masked.params, expected)
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-4)


def test_an_objective_of_ones_own_adds_a_penalty():
    def with_penalty(forward, images, adversarial, labels):
        value, logits, after = CrossEntropy()(forward, images, adversarial, labels)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(forward.params))
        return value + 0.3 * squares / 2, logits, after

    key = jax.random.key(0)
    state, batch, arguments = make_step()
    plain, metrics = train_step(state, batch, key, **arguments)
    _, _, arguments = make_step(objective=with_penalty)
    after, penalised = train_step(state, batch, key, **arguments)
    squares = sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(state.params))
    np.testing.assert_allclose(penalised["loss"], metrics["loss"] + 0.15 * squares, rtol=1e-5)
    assert penalised["correct"] == metrics["correct"]
    # Its gradient is 0.3 of the weights, and the rate is 0.1.
    assert_trees_close(
        after.params, jax.tree.map(lambda p, w: p - 0.03 * w, plain.params, state.params)
    )
    assert_trees_close(after.batch_stats, plain.batch_stats)


def test_attack_replaces_the_images_and_sees_the_network_in_evaluation_mode(monkeypatch):
    seen = {}

    def invert(attack, key, logits_fn, images, labels):
        seen.update(attack=attack, key=key, logits=logits_fn(images), images=images, labels=labels)
        return 1.0 - images

    monkeypatch.setattr(adversaries.engine, "craft", invert)
    key, attack = jax.random.key(5), PGD(0.1, 0.02, num_steps=2)
    state, (images, labels), arguments = make_step(
        adversary=attack, augmentation=lambda key, images: images / 2
    )
    attacked, _ = train_step(state, (images, labels), key, **arguments)
    _, _, plain = make_step()
    expected, _ = train_step(state, (1 - images / 255.0 / 2, labels), key, **plain)
    assert_trees_close(attacked.params, expected.params)

    assert seen["attack"] is attack
    assert seen["key"] == jax.random.split(key, 3)[1]
    np.testing.assert_array_equal(seen["labels"], labels)
    np.testing.assert_allclose(seen["images"], images / 255.0 / 2, rtol=1e-6)
    normalised = (images / 255.0 / 2 - jnp.array([0.4, 0.5, 0.6])) / 0.25
    np.testing.assert_allclose(
        seen["logits"], Net().apply(state.variables, normalised), rtol=1e-4, atol=1e-6
    )


def test_padded_evaluation_counts_every_example_once():
    random = np.random.default_rng(0)
    examples = DeviceData(
        jnp.asarray(random.integers(0, 256, (7, 2, 2, 1), np.uint8)),
        jnp.asarray(random.integers(0, 3, 7), jnp.int32),
    )

    def logits_fn(images):
        return images.reshape(len(images), -1)[:, :3]

    whole = eval_step(logits_fn, examples)
    parts = [
        eval_step(logits_fn, *padded_batch_at(examples, jnp.int32(index), 3)) for index in range(3)
    ]
    assert int(whole["count"]) == 7
    for name in whole:
        np.testing.assert_allclose(sum(part[name] for part in parts), whole[name], rtol=1e-6)


def test_order_is_a_new_permutation_in_every_epoch():
    orders = [np.asarray(shuffled(jax.random.key(0), epoch, 50)) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert not np.array_equal(*orders)
    assert np.array_equal(orders[0], shuffled(jax.random.key(0), 0, 50))


def test_state_copies_and_refuses_unknown_collections():
    with pytest.raises(ValueError, match="variables"):
        create_state({"params": {}, "cache": {}}, RECIPE)
    kernel = jnp.ones(3)
    state = create_state({"params": {"kernel": kernel}}, RECIPE)
    jax.jit(lambda s: s, donate_argnums=0)(state)
    assert math.isclose(float(kernel.sum()), 3.0)
