"""Source 000's own network, attacked as it was attacked there, gives the numbers printed there."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.sports10.published import as_published

TARGET = 1  # basketball
# (clean logits, which tell the photograph; logits under the attack; l2 norm), from its report.
FGSM = [
    (
        [-0.4, -2.1, 3.0, 6.8, -3.0, 4.1, -5.3, 1.1, -4.2, -1.8],
        [1.8, -1.7, 0.1, 2.8, -4.2, -2.9, -3.3, 5.5, -0.1, -0.5],
        56.6820,
    ),
    (
        [11.4, -3.7, -3.9, -2.7, -1.8, -0.7, 0.2, 3.2, -0.3, -3.4],
        [10.4, -4.4, -2.8, -1.5, -1.5, -2.4, -0.8, 4.7, 0.3, -3.6],
        26.3425,
    ),
    (
        [-4.4, -1.0, -1.9, -2.2, -4.7, 0.4, 2.0, 2.4, 9.5, 0.8],
        [-0.8, -1.8, -5.3, -2.3, -5.3, -2.8, 3.9, 4.6, 9.5, 0.6],
        40.3929,
    ),
]
FGSM_TARGETED = [
    (
        [1.4, -4.4, 8.7, 1.1, -3.1, 4.2, -5.6, -1.0, -3.9, 0.4],
        [2.3, -1.3, -1.5, -1.6, -5.2, -2.1, -1.2, 3.7, 2.8, 1.7],
        31.3857,
    ),
    (
        [-0.3, 2.5, -2.2, -3.5, -1.1, 1.3, -2.9, -1.1, 2.2, 4.2],
        [0.3, -0.1, -1.3, -0.2, -2.6, -2.3, -2.5, 3.2, 1.1, 1.3],
        46.3138,
    ),
]
PGD = [
    (
        [1.4, -3.1, 5.0, 3.9, -2.5, 1.7, -5.6, 0.5, -5.2, -0.6],
        [0.6, -1.3, 1.5, 2.1, -2.1, -1.9, -3.6, 3.0, -1.8, 0.5],
        39.0206,
    ),
    (
        [-3.6, 2.8, -4.0, -3.6, -3.9, 8.9, 0.7, -2.9, 1.8, 3.6],
        [0.7, 0.0, -1.9, -1.4, -3.1, 0.3, 0.1, 1.0, 2.0, 0.4],
        52.9746,
    ),
]
PGD_TARGETED = [
    (
        [11.4, -3.7, -3.9, -2.7, -1.8, -0.7, 0.2, 3.2, -0.3, -3.4],
        [8.0, -2.1, -3.3, -2.4, -1.3, -2.8, -1.2, 3.8, 1.8, -2.0],
        26.3414,
    ),
]


@pytest.mark.parametrize(
    "num_steps, step_size, targeted, examples",
    [
        (1, 0.03, False, FGSM),
        (1, 0.03, True, FGSM_TARGETED),
        (40, 0.01, False, PGD),
        (40, 0.01, True, PGD_TARGETED),
    ],
)
def test_the_published_figures_come_out(
    reference, reference_classifier, num_steps, step_size, targeted, examples
):
    classifier = reference_classifier
    images = jnp.asarray(reference["images"] / np.float32(255))
    start = (images - classifier.mean) / classifier.std
    clean = np.asarray(classifier(images))
    classes = np.full(len(clean), TARGET) if targeted else clean.argmax(axis=1)
    found = as_published(
        classifier,
        images,
        jnp.asarray(classes),
        jnp.float32(0.03),
        jnp.float32(step_size),
        jnp.int32(num_steps),
    )
    logits = np.asarray(classifier.apply_fn(classifier.variables, found))
    norms = np.linalg.norm(np.asarray(found - start).reshape(len(clean), -1), axis=1)
    for before, after, norm in examples:
        index = int(np.abs(clean - before).sum(axis=1).argmin())
        np.testing.assert_allclose(clean[index], before, atol=0.06)
        np.testing.assert_allclose(logits[index], after, atol=0.06)
        np.testing.assert_allclose(norms[index], norm, atol=2e-4)
