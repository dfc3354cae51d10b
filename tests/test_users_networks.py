"""Every attack on networks and with settings that users bring; by night."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_table import TABLE
from attack_table import batch as attacked_images
from attack_table import classifier as attacked_network
from test_not_silent import MASKS, STRICT, bfloat16_network, masked

from jaxrobust import evaluation

KEY = jax.random.key(0)
SIZE = 16


def run(attack, network, key=KEY, examples=None):
    images, labels = examples or attacked_images(SIZE)
    aims = (labels + 1) % 3 if attack.targeted else labels
    result = attack(key, network, images, aims)
    assert result.images.dtype == jnp.float32
    predicted = evaluation.logits(network, result.images, SIZE).argmax(1)
    fooled = (predicted == aims) if attack.targeted else (predicted != aims)
    np.testing.assert_array_equal(result.success, fooled)
    return result


@pytest.mark.parametrize("name", TABLE)
def test_a_network_of_bfloat16(name):
    run(TABLE[name], bfloat16_network())


@pytest.mark.parametrize("value", MASKS[:2])
@pytest.mark.parametrize("name", TABLE)
def test_a_network_with_masked_classes(name, value):
    plain, found = run(TABLE[name], attacked_network()), run(TABLE[name], masked(value))
    np.testing.assert_array_equal(found.success, plain.success)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg", "legacy"])
@pytest.mark.parametrize("name", TABLE)
def test_any_key(name, kind):
    key = jax.random.PRNGKey(0) if kind == "legacy" else jax.random.key(0, impl=kind)
    found = run(TABLE[name], attacked_network(), key)
    if kind == "legacy":
        np.testing.assert_array_equal(found.images, run(TABLE[name], attacked_network()).images)


@pytest.mark.parametrize("setting", [*STRICT, "no jit"])
@pytest.mark.parametrize("name", TABLE)
def test_strict_settings(name, setting):
    option, value = (STRICT | {"no jit": ("jax_disable_jit", True)})[setting]
    # Made before: the random numbers of float64 are others.
    network, examples = attacked_network(), attacked_images(SIZE)
    plain = run(TABLE[name], network, examples=examples)
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        found = run(TABLE[name], network, examples=examples)
    finally:
        jax.config.update(option, before)
    if setting != "x64" or TABLE[name].norm != "l1":  # whose signs are drawn in other numbers there
        assert (np.asarray(found.success) != np.asarray(plain.success)).sum() <= 1


@pytest.mark.parametrize("name", TABLE)
def test_a_network_in_training_mode_is_refused(name):
    images, labels = (np.asarray(part) for part in attacked_images(SIZE))
    attack = TABLE[name]
    targets = (labels + 1) % 3 if attack.targeted else None
    network = attacked_network()

    def training(x):
        logits = network(x)
        return (logits - logits.mean(0)) / logits.std(0)

    with pytest.raises(ValueError, match="probably in training mode"):
        evaluation.attack_dataset(attack, training, images, labels, key=KEY, targets=targets)
