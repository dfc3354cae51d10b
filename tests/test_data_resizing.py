"""Training on smaller images than the network is used on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data, models, training


def untouched(key, images):
    return images


def test_a_fine_grating_turns_grey():
    """Every second pixel white: sampled without a filter, half the size would be black or white."""
    images = jnp.zeros((2, 32, 32, 3)).at[:, :, ::2].set(1.0)
    half = jax.jit(data.Resized(untouched, 16))(jax.random.key(0), images)
    assert half.shape == (2, 16, 16, 3)
    np.testing.assert_allclose(half[:, :, 1:-1], 0.5, atol=1e-6)


def test_the_augmentation_comes_first():
    flip = data.augment.Augmentation(flip=1.0)
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
    key = jax.random.key(0)
    shrunk = data.Resized(untouched, 8)(key, images)
    np.testing.assert_allclose(
        data.Resized(flip, 8)(key, images), shrunk[:, :, ::-1], rtol=1e-5, atol=1e-6
    )


def test_a_network_learns_on_small_images_and_answers_large_ones():
    """Red or green, of any brightness."""
    labels = np.arange(64) % 2
    images = np.zeros((64, 64, 64, 3), np.uint8)
    images[np.arange(64), :, :, labels] = np.linspace(128, 255, 64)[:, None, None]
    network = models.create("photo_cnn", 2, widths=(4,) * 6)
    fitted = training.fit(
        network,
        training.Data((images, labels), mean=0.5, std=0.5),
        training.Recipe(
            num_epochs=20,
            batch_size=16,
            schedule=training.Constant(1e-2),
            augmentation=data.Resized(untouched, 48),
        ),
        progress=False,
    )
    classifier = models.Classifier(network.apply, fitted.variables, 0.5, 0.5)
    assert fitted.history[-1]["train_accuracy"] > 0.9
    logits = classifier(jnp.asarray(images / np.float32(255)))
    assert (logits.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.parametrize(
    "arguments, message",
    [((untouched, 0), "`side` must be at least 1"), ((None, 4), "`augment` must be callable")],
)
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.Resized(*arguments)
