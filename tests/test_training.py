"""Optimizers, schedules, decisions and the pure steps, against closed forms and optax."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrobust.training import (
    TrainConfig,
    create_state,
    eval_step,
    make_optimizer,
    make_schedule,
    train_step,
)
from jaxrobust.training import step as step_module
from jaxrobust.training.data import Examples, padded_batch_at, shuffled
from jaxrobust.training.history import best_epoch, is_finished, learning_rate_scale, plateau_scale
from jaxrobust.training.objectives import smoothed_cross_entropy


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


def descend(optimizer, **arguments):
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradients in GRADIENTS:
        updates, state = optimizer.update(gradients, state, params, **arguments)
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
    ("settings", "reference"),
    [
        ({"optimizer": "adamw"}, optax.adamw(0.1, weight_decay=0.3)),
        (
            {"optimizer": "adamw", "decayed_weights": "kernels"},
            optax.adamw(0.1, weight_decay=0.3, mask=only_kernels),
        ),
        ({"optimizer": "adam"}, optax.chain(optax.add_decayed_weights(0.3), optax.adam(0.1))),
        (
            {"optimizer": "sgd", "momentum": 0.8, "nesterov": True},
            optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1, 0.8, nesterov=True)),
        ),
        (
            {"optimizer": "sgd", "momentum": 0.0, "gradient_clip": 0.5},
            optax.chain(
                optax.clip_by_global_norm(0.5), optax.add_decayed_weights(0.3), optax.sgd(0.1)
            ),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_optimizer_is_that_of_optax(settings, reference):
    optimizer = make_optimizer(TrainConfig(weight_decay=0.3, **settings))
    assert_trees_close(descend(optimizer, learning_rate=0.1), descend(reference))


def test_sgd_with_momentum_is_that_of_torch():
    config = TrainConfig(optimizer="sgd", momentum=0.9, weight_decay=0.1)
    kernel = np.array([[0.5, -2.0]])
    buffer = 0.0
    for gradients in GRADIENTS:  # torch/optim/sgd.py: buf = m * buf + (g + wd * p); p -= lr * buf
        buffer = 0.9 * buffer + np.asarray(gradients["dense"]["kernel"]) + 0.1 * kernel
        kernel = kernel - 0.05 * buffer
    params = descend(make_optimizer(config), learning_rate=0.05)
    np.testing.assert_allclose(params["dense"]["kernel"], kernel, rtol=1e-5)


def test_step_schedule_falls_after_its_milestones():
    config = TrainConfig(
        schedule="step", milestones=(2, 3), step_factor=0.5, learning_rate=1.0, num_epochs=4
    )
    schedule = make_schedule(config, steps_per_epoch=3)
    expected = [1.0] * 6 + [0.5] * 3 + [0.25] * 3
    assert [float(schedule(step)) for step in range(12)] == expected


def test_cosine_schedule_with_warmup():
    config = TrainConfig(schedule="cosine", warmup_epochs=2, num_epochs=6, learning_rate=0.8)
    schedule = make_schedule(config, steps_per_epoch=5)
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
    config = TrainConfig(schedule="plateau", monitor="validation_accuracy", plateau_patience=0)
    rising = [{"validation_accuracy": value} for value in (0.2, 0.3, 0.4)]
    assert learning_rate_scale(config, rising) == 1.0
    assert learning_rate_scale(config, [*rising, {"validation_accuracy": 0.40001}]) == 0.5
    assert learning_rate_scale(TrainConfig(), rising) == 1.0


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=30), st.integers(1, 5))
def test_early_stopping_stops_once_and_only_without_progress(losses, patience):
    config = TrainConfig(num_epochs=1000, early_stopping_patience=patience)
    rows = [{"validation_loss": loss} for loss in losses]
    stops = [n for n in range(1, len(rows) + 1) if is_finished(config, rows[:n])]
    if stops:
        first = stops[0]
        assert min(losses[first - patience : first]) >= min(losses[: first - patience])
    else:
        assert len(rows) - best_epoch(config, rows) < patience


def test_best_epoch_is_the_first_of_equals():
    rows = [{"validation_accuracy": a, "validation_loss": -a} for a in (0.5, 0.7, 0.7, 0.6)]
    assert best_epoch(TrainConfig(monitor="validation_accuracy"), rows) == 2
    assert best_epoch(TrainConfig(), rows) == 2
    assert best_epoch(TrainConfig(), [{"train_loss": 1.0}]) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "adagrad"}, "`optimizer` must be one of"),
        ({"schedule": "exponential"}, "`schedule` must be one of"),
        ({"monitor": "train_loss"}, "`monitor` must be one of"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a finite number above 0"),
        ({"num_epochs": 0}, "`num_epochs` must be at least 1"),
        ({"label_smoothing": 1.0}, "`label_smoothing` must be in"),
        ({"ema_decay": 1.5}, "`ema_decay` must be a finite number at least 0 and at most 1"),
        ({"gradient_clip": -1.0}, "`gradient_clip` must be"),
        ({"schedule": "step"}, "need each other"),
        ({"milestones": (3,)}, "need each other"),
        ({"schedule": "step", "milestones": (4, 2)}, "must ascend"),
        ({"warmup_epochs": 30}, "`warmup_epochs` must be less"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` must be at least 1"),
    ],
)
def test_settings_out_of_range(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**settings)


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


def make_step(**overrides):
    """(state, batch, arguments of train_step) for the small network."""
    net = Net()
    images = jax.random.randint(jax.random.key(1), (6, 2, 2, 3), 0, 256).astype(jnp.uint8)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    optimizer = make_optimizer(TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0))
    variables = net.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    arguments = {
        "apply_fn": net.apply,
        "optimizer": optimizer,
        "schedule": lambda step: 0.1,
        "mean": (0.4, 0.5, 0.6),
        "std": 0.25,
    }
    average = "ema_decay" in overrides
    return (
        create_state(variables, optimizer, average=average),
        (images, labels),
        arguments | overrides,
    )


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


def test_train_step_takes_any_optax_optimizer_and_the_plateau_scale():
    state, batch, arguments = make_step()
    lowered = dataclasses.replace(state, learning_rate_scale=jnp.float32(0.5))
    key = jax.random.key(3)
    half, metrics = train_step(lowered, batch, key, **arguments)
    np.testing.assert_allclose(metrics["learning_rate"], 0.05, rtol=1e-6)
    sgd = optax.sgd(0.05)
    plain = create_state(state.variables, sgd)
    expected, _ = train_step(plain, batch, key, **(arguments | {"optimizer": sgd}))
    assert_trees_close(half.params, expected.params)


def test_moving_average():
    state, batch, arguments = make_step(ema_decay=0.15)
    first, _ = train_step(state, batch, jax.random.key(0), **arguments)
    # (1 + 1) / (10 + 1) is above 0.15.
    expected = jax.tree.map(
        lambda old, new: 0.15 * old + 0.85 * new, state.variables, first.variables
    )
    assert_trees_close(first.average, expected)
    assert first.evaluated is first.average
    with pytest.raises(ValueError, match="ema_decay"):
        train_step(state, batch, jax.random.key(0), **(arguments | {"ema_decay": None}))


def test_masks_and_penalty():
    state, batch, arguments = make_step()
    key = jax.random.key(0)
    masks = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 2 == 0, state.params
    )
    masked, _ = train_step(state, batch, key, masks=masks, **arguments)
    free, metrics = train_step(state, batch, key, **arguments)
    assert_trees_close(
        masked.params, jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, free.params)
    )
    _, with_penalty = train_step(state, batch, key, penalty=lambda params: 3.0, **arguments)
    np.testing.assert_allclose(with_penalty["loss"], metrics["loss"] + 3.0, rtol=1e-6)


def test_attack_replaces_the_images_and_sees_the_network_in_evaluation_mode(monkeypatch):
    state, (images, labels), arguments = make_step()
    seen = {}

    def invert(attack, key, logits_fn, images, labels):
        seen.update(attack=attack, logits=logits_fn(images), images=images)
        return 1.0 - images

    monkeypatch.setattr(step_module.adversaries, "craft", invert)
    key = jax.random.key(5)
    augment = lambda key, images: images / 2  # noqa: E731
    attacked, _ = train_step(
        state, (images, labels), key, attack="the attack", augment=augment, **arguments
    )
    expected, _ = train_step(state, (1 - images / 255.0 / 2, labels), key, **arguments)
    assert_trees_close(attacked.params, expected.params)

    assert seen["attack"] == "the attack"
    np.testing.assert_allclose(seen["images"], images / 255.0 / 2, rtol=1e-6)
    normalised = (images / 255.0 / 2 - jnp.array([0.4, 0.5, 0.6])) / 0.25
    np.testing.assert_allclose(
        seen["logits"], Net().apply(state.variables, normalised), rtol=1e-4, atol=1e-6
    )


def test_padded_evaluation_counts_every_example_once():
    random = np.random.default_rng(0)
    examples = Examples(
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
        create_state({"params": {}, "cache": {}}, optax.sgd(0.1))
    kernel = jnp.ones(3)
    state = create_state({"params": {"kernel": kernel}}, optax.sgd(0.1))
    jax.jit(lambda s: s, donate_argnums=0)(state)
    assert math.isclose(float(kernel.sum()), 3.0)
