"""What holds for every network, whole, masked and narrowed: alone, attacked and trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import SMALL

from jaxrobust import models, pruning, training
from jaxrobust.attacks import PGD
from jaxrobust.models import Classifier

EPSILON, KEY = 8 / 255, jax.random.key(0)
ATTACK = PGD(EPSILON, EPSILON / 2, num_steps=4)
MEAN, STD = (0.45, 0.45, 0.4), (0.25, 0.25, 0.25)
IMAGES = np.random.default_rng(0).uniform(0.1, 0.9, (6, 32, 32, 3)).astype(np.float32)


def narrowed(sizes):
    """Three quarters of each width."""

    def fewer(value):
        return tuple(width * 3 // 4 for width in value) if isinstance(value, tuple) else value

    return {
        name: fewer(value) if name.endswith("widths") else value for name, value in sizes.items()
    }


def variables_of(network, seed=1):
    """Initial weights, with statistics, scales and biases as training leaves them: all different."""
    variables = network.init(jax.random.key(seed), jnp.zeros((1, *IMAGES.shape[1:])))
    random = np.random.default_rng(seed)

    def drawn(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(random.uniform(0.7, 1.3, leaf.shape), jnp.float32)
        if name in ("bias", "mean"):
            return jnp.asarray(random.normal(0, 0.1, leaf.shape), jnp.float32)
        return leaf

    return jax.tree_util.tree_map_with_path(drawn, variables)


def size(variables):
    return pruning.parameter_counts(variables["params"])["size"]


@jax.jit
def answers(classifier, images):
    return classifier(images)


def measured(network):
    """Its answers, by a number among the variables: random weights answer in the hundreds."""
    return lambda variables, images: variables["factor"] * network.apply(variables["of"], images)


def check(apply_fn, variables):
    raw = Classifier(apply_fn, {"of": variables, "factor": jnp.float32(1)}, MEAN, STD)
    factor = 1 / jnp.std(answers(raw, IMAGES))
    classifier = Classifier(apply_fn, {"of": variables, "factor": factor}, MEAN, STD)
    logits = np.asarray(answers(classifier, IMAGES))
    scale = np.abs(logits).max()
    assert logits.shape == (6, 10) and 0 < scale < np.inf
    # No image's answer depends on those beside it, or on its place among them.
    others = np.concatenate([1 - IMAGES[5:0:-1], IMAGES[:1]])
    beside = np.asarray(answers(classifier, others))
    np.testing.assert_allclose(beside[-1], logits[0], atol=2e-5 * scale)
    assert np.abs(beside[0] - logits[0]).max() > 1e-4 * scale

    labels = logits.argmax(axis=1)
    result = ATTACK(KEY, classifier, IMAGES, labels)
    change = np.abs(np.asarray(result.images) - IMAGES)
    assert change.max() <= EPSILON + 1e-6 and (change > EPSILON / 2).mean() > 0.2
    assert result.images.min() >= 0 and result.images.max() <= 1
    # What is said of an image is what the network says of it.
    attacked = np.asarray(answers(classifier, result.images))
    np.testing.assert_array_equal(result.success, attacked.argmax(axis=1) != labels)
    # And the gradient led somewhere: the labels' cross-entropy is above that of the same noise.
    signs = np.random.default_rng(1).choice([-1, 1], IMAGES.shape)
    noisy = answers(classifier, np.clip(IMAGES + EPSILON * signs, 0, 1).astype(np.float32))
    loss = lambda given: -jax.nn.log_softmax(given)[np.arange(6), labels].mean()  # noqa: E731
    assert loss(attacked) > loss(noisy)


# The classes of which one stands for several networks: sizes of resnet18 and resnet34 are one code.
NAMES = sorted(set(SMALL) - {"resnet34", "photo_cnn"})


@pytest.mark.parametrize("name", NAMES)
def test_whole_masked_and_narrowed(name):
    network = models.create(name, 10, **SMALL[name])
    whole, apply_fn = variables_of(network), measured(network)
    check(apply_fn, whole)

    masks = pruning.global_magnitude(whole["params"], 0.5)
    params = pruning.apply_masks(whole["params"], masks)
    masked = whole | {"params": params}
    assert pruning.sparsity_of(params) == pytest.approx(0.5, abs=0.01)
    check(apply_fn, masked)

    narrow = models.create(name, 10, **narrowed(SMALL[name]))
    smaller = variables_of(narrow)
    assert size(smaller) < size(whole)
    check(measured(narrow), smaller)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_under_attack_trains_what_is_not_masked(name):
    network = models.create(name, 10, **SMALL[name])
    variables = variables_of(network)
    masks = pruning.global_magnitude(variables["params"], 0.5)
    params = pruning.apply_masks(variables["params"], masks)
    recipe = training.Recipe(
        optimizer=training.SGD(),
        schedule=training.Constant(0.01),
        adversary=PGD(EPSILON, EPSILON, num_steps=1),
    )
    state = training.create_state(variables | {"params": params}, recipe)
    step = functools.partial(
        training.train_step,
        network=training.Network(network, MEAN, STD),
        recipe=recipe,
        steps_per_epoch=1,
        masks=masks,
    )
    labels = np.arange(6) % 10
    after, metrics = jax.jit(step)(state, (IMAGES, labels), KEY)
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    for (path, mask), before, now in zip(
        jax.tree_util.tree_leaves_with_path(masks),
        jax.tree.leaves(params),
        jax.tree.leaves(after.params),
        strict=True,
    ):
        assert np.all(np.asarray(now)[~np.asarray(mask)] == 0), path
        if path[-1].key == "kernel":
            assert not np.all(before == now), path
