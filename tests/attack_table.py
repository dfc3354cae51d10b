"""The table of attacks on which all that holds for every attack is tested, and a network for them.

Each attack of the library has a row, and more where a norm or a setting makes it another program.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks
from jaxrobust.models import Classifier

TABLE = {
    "fgsm": attacks.FGSM(0.1),
    "fgsm-l2": attacks.FGSM(0.5, norm="l2"),
    "fgsm-targeted": attacks.FGSM(0.1, targeted=True),
    "bim": attacks.BIM(0.1, 0.03, 5),
    "bim-l2-last": attacks.BIM(0.5, 0.2, 5, norm="l2", keep="last"),
    "pgd": attacks.PGD(0.1, 0.03, 5),
    "pgd-l2": attacks.PGD(0.5, 0.2, 5, norm="l2"),
    "pgd-targeted": attacks.PGD(0.1, 0.03, 5, targeted=True),
    "pgd-last": attacks.PGD(0.1, 0.03, 5, keep="last"),
    "pgd-restarts": attacks.PGD(0.1, 0.03, 3, num_restarts=3),
    "pgd-no-random-start": attacks.PGD(0.1, 0.03, 5, random_start=False),
    "pgd-l1": attacks.PGD(2.0, 0.7, 5, norm="l1"),
    "mifgsm": attacks.MIFGSM(0.1, 0.03, num_steps=5),
    "mifgsm-l2": attacks.MIFGSM(0.5, 0.2, num_steps=5, norm="l2"),
    "apgd-t": attacks.APGD(0.1, "targeted_dlr", num_iterations=12, num_restarts=2, num_targets=2),
    "apgd": attacks.APGD(0.1, num_iterations=12),
    "apgd-dlr": attacks.APGD(0.1, "dlr", num_iterations=12),
    "apgd-l2": attacks.APGD(0.5, num_iterations=12, norm="l2"),
    "apgd-l1": attacks.APGD(2.0, num_iterations=20, norm="l1"),
    "apgd-dlr-l2": attacks.APGD(0.5, "dlr", num_iterations=12, norm="l2"),
    "apgd-targeted": attacks.APGD(0.1, num_iterations=12, targeted=True),
    "square": attacks.Square(0.1, num_steps=30),
    "square-l2": attacks.Square(0.5, num_steps=30, norm="l2"),
    "noise": attacks.RandomNoise(0.1, num_steps=5),
    "noise-l1": attacks.RandomNoise(2.0, num_steps=5, norm="l1"),
    # Those that look for the smallest perturbation, however large it is.
    "fab": attacks.FAB(0.1, num_iterations=8),
    "fab-l2": attacks.FAB(0.1, num_iterations=8, norm="l2"),
    "fab-l1": attacks.FAB(0.1, num_iterations=8, norm="l1", num_restarts=2),
    "fab-t": attacks.FAB(0.1, num_iterations=8, aim="one", num_restarts=2, num_targets=2),
    "fab-t-l2": attacks.FAB(0.1, num_iterations=8, norm="l2", aim="one", num_targets=2),
    "cw": attacks.CarliniWagner(
        learning_rate=0.05, initial_constant=1.0, num_iterations=12, num_searches=4
    ),
    "cw-targeted": attacks.CarliniWagner(
        learning_rate=0.05,
        initial_constant=1.0,
        num_iterations=12,
        num_searches=4,
        targeted=True,
    ),
    "cw-linf": attacks.CarliniWagnerLinf(
        learning_rate=0.02, initial_constant=1e-2, num_steps=60, num_iterations=10
    ),
    "deepfool": attacks.DeepFool(num_steps=12),
    "deepfool-linf": attacks.DeepFool(num_steps=12, norm="linf", num_candidates=1),
}
NUM_CLASSES = 3


def two_layers(variables, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ variables["first"])
    return hidden @ variables["second"]


def classifier(seed: int = 0) -> Classifier:
    first, second = jax.random.split(jax.random.key(seed))
    variables = {
        "first": jax.random.normal(first, (6 * 6 * 2, 8)),
        "second": jax.random.normal(second, (8, NUM_CLASSES)),
    }
    return Classifier(two_layers, variables, np.full(2, 0.5), np.full(2, 0.5))


def batch(size: int = 6):
    """Images with pixels at both ends of the range, and the classes the classifier sees in them."""
    images = jax.random.uniform(jax.random.key(1), (size, 6, 6, 2), minval=-0.1, maxval=1.1)
    images = jnp.clip(images, 0, 1)
    return images, jnp.argmax(classifier()(images), axis=1)
