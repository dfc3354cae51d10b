"""Universal perturbations of a linear classifier, where it is known what can be reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust.attacks import BIM, DeepFool
from jaxrobust.evaluation import UniversalPerturbation, universal_perturbation

SHAPE = (3, 4, 2)
SIZE = 24


def length(change, norm):
    flat = np.asarray(change, np.float64).reshape(len(change), -1)
    return np.linalg.norm(flat, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


def two_classes(normal, x):
    rise = (x.reshape(len(x), -1) - 0.5) @ normal
    return jnp.stack([rise, -rise], axis=1)


def one_sided(size=40):
    """A linear classifier, and images that are all of its first class, by different margins."""
    random = np.random.default_rng(0)
    normal = random.normal(size=SIZE)
    flat = random.uniform(0.3, 0.7, (size, SIZE))
    wanted = np.linspace(0.02, 0.06, size) * np.abs(normal).sum()
    flat = flat + ((wanted - (flat - 0.5) @ normal) / (normal @ normal))[:, None] * normal
    assert flat.min() > 0.1 and flat.max() < 0.9
    images = flat.reshape(size, *SHAPE).astype(np.float32)
    return jax.tree_util.Partial(two_classes, jnp.float32(normal)), images, normal, wanted


@pytest.mark.parametrize(("norm", "batch_size"), [("linf", 1), ("l2", 16)])
def test_universal_perturbation_fools_a_linear_classifier_everywhere(norm, batch_size):
    logits_fn, images, normal, wanted = one_sided()
    radius = {"linf": 0.1, "l2": 1.2 * wanted.max() / np.linalg.norm(normal)}[norm]
    told = []
    result = universal_perturbation(
        UniversalPerturbation(radius, norm, target_rate=1.0),
        logits_fn,
        images,
        key=jax.random.key(0),
        batch_size=batch_size,
        progress=lambda *one: told.append(one),
    )
    assert result.converged and result.fooling_rate["count"] == len(images)
    assert length(result.perturbation[None], norm)[0] <= radius * (1 + 1e-6)
    assert np.all(np.asarray(logits_fn(result.apply(images))).argmax(axis=1) == 1)
    # DeepFool only ever moves along the normal, and no farther than the last image needs.
    direction = result.perturbation.ravel() / np.linalg.norm(result.perturbation)
    assert direction @ normal / np.linalg.norm(normal) < -0.95
    passes = range(1, len(result.fooling_rates) + 1)
    assert told == [(f"pass {index}", 40 * index, 400) for index in passes]


def test_universal_perturbation_is_as_small_as_it_must_be():
    logits_fn, images, normal, wanted = one_sided()
    # This radius is enough for the images of the smaller margins only.
    radius = 0.04
    reachable = (wanted < radius * np.abs(normal).sum()).mean()
    result = universal_perturbation(
        UniversalPerturbation(radius, target_rate=1.0, max_passes=4),
        logits_fn,
        images,
        key=jax.random.key(1),
    )
    assert not result.converged and len(result.fooling_rates) == 4
    assert 0.2 < result.fooling_rate["rate"] <= reachable
    nothing = universal_perturbation(
        UniversalPerturbation(0.0, max_passes=1), logits_fn, images, key=jax.random.key(1)
    )
    assert nothing.fooling_rate["count"] == 0 and not nothing.perturbation.any()


def test_universal_perturbation_leaves_labels_that_are_given_and_says_what_is_wrong():
    logits_fn, images, _, _ = one_sided()
    key, attack = jax.random.key(0), UniversalPerturbation(0.1)
    result = universal_perturbation(attack, logits_fn, images, np.ones(40, int), key=key)
    assert result.converged and not result.perturbation.any()  # none was right to begin with
    with pytest.raises(ValueError, match="labels"):
        universal_perturbation(attack, logits_fn, images, np.full(40, 2), key=key)
    with pytest.raises(ValueError, match="target_rate"):
        UniversalPerturbation(0.1, target_rate=1.5)
    with pytest.raises(ValueError, match="norm"):
        UniversalPerturbation(0.1, norm="l1")
    with pytest.raises(TypeError, match="`inner` must be a DeepFool, got BIM"):
        UniversalPerturbation(0.1, inner=BIM())


def test_the_inner_attack_is_the_authors():
    """Ten steps and nine other classes, where DeepFool by itself takes fifty and ten."""
    assert UniversalPerturbation(0.1).inner == DeepFool(0.02, 10, "l2", 9)
