"""A process of its own that attacks and prints the verdicts: what tests with several devices start.

python tests/verdicts.py [coordinator's address, number of processes, this one's number]
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import evaluation
from jaxrobust.attacks import APGD, FAB, PGD, Square
from jaxrobust.models import Classifier

NUM_CLASSES = 4
SEED = 3
ATTACKS = {
    "pgd": (PGD(0.03, 0.01, 5, num_restarts=2), False),
    "pgd-last": (PGD(0.03, 0.01, 5, keep="last"), True),
    "apgd-t": (APGD(0.03, "targeted_dlr", num_iterations=10, num_restarts=3, num_targets=3), True),
    "fab": (FAB(0.03, num_iterations=5), True),
    "square": (Square(0.06, num_steps=40), True),
}


def network(variables, images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ variables["first"])
    return hidden @ variables["second"]


def classifier(seed: int = 0) -> Classifier:
    first, second = jax.random.split(jax.random.key(seed))
    variables = {
        "first": jax.random.normal(first, (6 * 6 * 2, 12)) / 4,
        "second": jax.random.normal(second, (12, NUM_CLASSES)),
    }
    return Classifier(network, variables, np.full(2, 0.5), np.full(2, 0.5))


def examples(size: int = 45) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(jax.random.uniform(jax.random.key(1), (size, 6, 6, 2)))
    return images, np.asarray(jnp.argmax(classifier()(images), axis=1))


def attack(settings, *, until_fooled=False, **execution) -> evaluation.AttackReport:
    images, labels = examples()
    options = {"key": jax.random.key(SEED), "until_fooled": until_fooled}
    options |= {"execution": evaluation.Execution(**execution)}
    return evaluation.attack_dataset(settings, classifier(), images, labels, **options)


def verdicts(**options) -> dict[str, list]:
    """{attack: whether each image is fooled}, and of one that is not cut short what it took."""
    found = {}
    for name, (settings, until_fooled) in ATTACKS.items():
        report = attack(settings, until_fooled=until_fooled, **options)
        found[name] = report.success.tolist()
        if not until_fooled:
            found[f"{name}: counts"] = [
                report.num_steps.tolist(),
                report.num_queries.tolist(),
                report.num_gradients.tolist(),
                np.round(report.norms, 3).tolist(),
            ]
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        address, count, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        jax.distributed.initialize(address, count, rank)
    print(json.dumps({"devices": jax.local_device_count(), "verdicts": verdicts(num_lanes=32)}))
