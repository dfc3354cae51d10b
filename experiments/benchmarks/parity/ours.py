"""Our side of the comparison: it makes images, and the worker that judges the peers' judges them."""

import time

import jax
import numpy as np

from experiments.benchmarks.parity.export import Network
from jaxrobust import evaluation
from jaxrobust.attacks import APGD
from jaxrobust.types import Attack

_FIRST = {"linf": 4 / 255, "l2": 0.5, "l1": 6.0}
# Robust accuracies are spread between this and the clean accuracy. Not 10 %: the suite is stronger
# than the one attack that the radii are found with.
_LOWEST = 0.15


def right(network: Network) -> np.ndarray:
    """Bool [N]: the clean images that the network has right."""
    logits = evaluation.logits(network.classifier, network.images)
    return logits.argmax(axis=1) == network.labels


def attack(
    network: Network,
    chosen: Attack | dict[str, Attack],
    epsilon: float | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Runs one of our attacks.

    Args:
      network: With its images.
      chosen: The attack, or a suite by name.
      epsilon: None: whatever fools counts.
      seed: Of everything random.

    Returns:
      (images float32 [N, H, W, C], bool [N] which of them are robust by our own reckoning, seconds,
      which include compilation).
    """
    arguments = (network.classifier, network.images, network.labels)
    key = jax.random.key(seed)
    start = time.perf_counter()
    if isinstance(chosen, dict):
        suite = evaluation.attack_suite(chosen, *arguments, key=key)
        return suite.images, suite.robust, time.perf_counter() - start
    # An image is left at its first success, but for its smallest perturbation; an attack that keeps
    # its last point goes on to it.
    until_fooled = epsilon is not None
    report = evaluation.attack_dataset(chosen, *arguments, key=key, until_fooled=until_fooled)
    return report.images, report.attacked & ~report.success, time.perf_counter() - start


def radii(network: Network, norm: str, count: int, num_steps: int, seed: int) -> list[float]:
    """Radii at which the robust accuracy lies well between 10 and 90 %, smallest first.

    Args:
      network: With its images.
      norm: "linf", "l2" or "l1".
      count: How many; their robust accuracies under APGD-CE are spread evenly.
      num_steps: Of APGD.
      seed: Of everything random.
    """
    known: dict[float, float] = {}

    def accuracy(epsilon: float) -> float:
        if epsilon not in known:
            _, robust, _ = attack(network, APGD(epsilon, "ce", num_steps, norm), epsilon, seed)
            known[epsilon] = float(robust.mean())
        return known[epsilon]

    clean = min(float(np.mean(right(network))), 0.9)
    shares = [1 - (index + 1) / (count + 1) for index in range(count)]
    goals = [_LOWEST + (clean - _LOWEST) * share for share in shares]
    high = _FIRST[norm]
    while accuracy(high) > goals[-1] and high < 64 * _FIRST[norm]:
        high *= 2
    found = []
    low = 0.0
    for goal in goals:
        below, above = low, high
        while True:
            middle = float(f"{(below + above) / 2:.3g}")
            if abs(accuracy(middle) - goal) <= 0.03 or above - below < 0.02 * above:
                break
            below, above = (middle, above) if accuracy(middle) > goal else (below, middle)
        low = middle
        found.append(middle)
    return found
