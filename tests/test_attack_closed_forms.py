"""Attacks on linear classifiers, where every step has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.attacks import BIM, FGSM, PGD

# Closed forms: a linear classifier with two classes, whose margin falls by |w|_1 * step in linf and
# by |w|_2 * step in l2 as long as no pixel meets the edge of the box.

WEIGHTS = np.array([[[0.3, -0.2], [0.5, 0.1]], [[-0.4, 0.2], [0.1, -0.6]]], np.float32)


def linear(margin):
    """Logits [margin + w (x - .5), 0] on images [2, 2, 2] around .5."""

    def logits_fn(images):
        scores = margin + jnp.sum((images - 0.5) * WEIGHTS, axis=(1, 2, 3))
        return jnp.stack([scores, jnp.zeros_like(scores)], axis=1)

    return logits_fn


CENTRE, ZERO = jnp.full((1, 2, 2, 2), 0.5), jnp.array([0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda norm: FGSM(0.2, norm),
        lambda norm: BIM(0.2, 0.05, 10, norm),
        lambda norm: PGD(0.2, 0.05, 60, norm, keep="last"),
    ],
    ids=["fgsm", "bim", "pgd"],
)
def test_linear_classifier_ends_in_the_corner(make, norm):
    direction = np.sign(WEIGHTS) if norm == "linf" else WEIGHTS / np.linalg.norm(WEIGHTS)
    result = make(norm)(jax.random.key(0), linear(5.0), CENTRE, ZERO)
    np.testing.assert_allclose(result.images[0], 0.5 - 0.2 * direction, atol=2e-5)


def test_targeted_goes_the_other_way():
    result = BIM(0.2, 0.05, 10, targeted=True)(jax.random.key(0), linear(5.0), CENTRE, ZERO)
    np.testing.assert_allclose(result.images[0], 0.5 + 0.2 * np.sign(WEIGHTS), atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_steps_to_first_success(steps):
    margin = (steps - 0.5) * 0.05 * np.abs(WEIGHTS).sum()
    result = BIM(0.4, 0.05, 8)(jax.random.key(0), linear(margin), CENTRE, ZERO)
    assert bool(result.success[0]) and int(result.num_steps[0]) == steps


def test_steps_are_all_of_them_where_none_fools():
    result = BIM(0.4, 0.05, 8)(jax.random.key(0), linear(5.0), CENTRE, ZERO)
    assert not bool(result.success[0]) and int(result.num_steps[0]) == 8


def test_steps_are_zero_where_the_start_already_fools():
    result = BIM(0.1, 0.05, 3)(jax.random.key(0), linear(-1.0), CENTRE, ZERO)
    assert bool(result.success[0]) and int(result.num_steps[0]) == 0


def test_best_point_is_kept_where_the_last_is_worse():
    """A classifier that is fooled at a distance of .1 only, with a slope that leads on past it."""

    def shell(images):
        moved = jnp.mean(0.5 - images, axis=(1, 2, 3))
        nearby = jnp.abs(jax.lax.stop_gradient(moved) - 0.1) < 0.02
        return jnp.stack([2.0 - moved, jnp.where(nearby, 3.0, 0.0)], axis=1)

    settings = {"epsilon": 0.4, "step_size": 0.05, "num_steps": 5}
    best = BIM(**settings)(jax.random.key(0), shell, CENTRE, ZERO)
    last = BIM(**settings, keep="last")(jax.random.key(0), shell, CENTRE, ZERO)
    assert bool(best.success[0]) and int(best.num_steps[0]) == 2
    np.testing.assert_allclose(best.images, 0.4, atol=1e-6)
    assert not bool(last.success[0]) and int(last.num_steps[0]) == 2
    np.testing.assert_allclose(last.images, 0.25, atol=1e-6)
