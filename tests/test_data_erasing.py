"""Random erasing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import data


def untouched(key, images):
    return images


def test_a_square_is_hidden_and_nothing_else():
    images = jax.random.uniform(jax.random.key(1), (64, 16, 12, 3), maxval=0.4)
    erased = np.asarray(jax.jit(data.Erasing(untouched, side=4))(jax.random.key(0), images))
    changed = (erased != np.asarray(images)).any(axis=-1)
    assert (erased[changed] == 0.5).all()
    for mask in changed:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        # A rectangle: whole inside the image, cut at its edges.
        assert mask.sum() == len(rows) * len(columns) and 4 <= mask.sum() <= 16
    assert len({mask.tobytes() for mask in changed}) > 32


def test_an_image_does_not_depend_on_the_batch():
    images = jnp.zeros((8, 16, 16, 1))
    erase = data.Erasing(untouched, side=5)
    whole = erase(jax.random.key(0), images)
    np.testing.assert_array_equal(whole[:3], erase(jax.random.key(0), images[:3]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((untouched, 0), "`side` must be at least 1"),
        ((untouched, 4, 2.0), "`fill` must be"),
        ((None, 4), "`augment` must be callable"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.Erasing(*arguments)
