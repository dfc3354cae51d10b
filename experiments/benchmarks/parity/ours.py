"""Our side of the comparison, judged as the peers are: by the images that come back."""

import time
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.parity.export import Network
from jaxrobust import evaluation
from jaxrobust.attacks import APGD
from jaxrobust.types import Attack

_INSIDE = 1e-5  # of epsilon: the tolerance of the ball, as in torch_worker.py
_FIRST = {"linf": 4 / 255, "l2": 0.5, "l1": 6.0}
# Robust accuracies are spread between this and the clean accuracy. Not 10 %: the suite is stronger
# than the one attack that the radii are found with.
_LOWEST = 0.15


def right(network: Network) -> np.ndarray:
    """Bool [N]: the clean images that the network has right."""
    logits = evaluation.logits(network.classifier, network.images)
    return logits.argmax(axis=1) == network.labels


def lengths(difference: np.ndarray, norm: str) -> np.ndarray:
    """Float64 [N]: norms of [N, H, W, C]."""
    flat = np.abs(difference.astype(np.float64).reshape(len(difference), -1))
    if norm == "l2":
        return np.sqrt((flat**2).sum(axis=1))
    return flat.max(axis=1) if norm == "linf" else flat.sum(axis=1)


def attack(
    network: Network, chosen: Attack | None, norm: str, epsilon: float | None, seed: int
) -> dict[str, Any]:
    """Runs one of our attacks.

    Args:
      network: With its images.
      chosen: None: AutoAttack standard.
      norm: "linf", "l2" or "l1".
      epsilon: None: whatever fools counts.
      seed: Of everything random.

    Returns:
      {"robust": N booleans, "lengths": N norms, None where nothing fools, "seconds"}: seconds
      include compilation.
    """
    arguments = (network.classifier, network.images, network.labels)
    key = jax.random.key(seed)
    start = time.perf_counter()
    if chosen is None:
        assert epsilon is not None  # AutoAttack has a radius
        suite = evaluation.auto_attack(*arguments, epsilon, key=key, norm=norm)
        return {"robust": suite.robust.tolist(), "seconds": time.perf_counter() - start}
    # An image is left at its first success, but for its smallest perturbation.
    report = evaluation.attack_dataset(
        chosen, *arguments, key=key, until_fooled=epsilon is not None
    )
    seconds = time.perf_counter() - start
    sizes = lengths(report.images - network.images, norm)
    fooled = report.success
    if epsilon is not None:
        fooled = fooled & (sizes <= epsilon * (1 + _INSIDE))
    return {
        "robust": (report.attacked & ~fooled).tolist(),
        "lengths": [float(size) if won else None for size, won in zip(sizes, fooled, strict=True)],
        "seconds": seconds,
    }


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
            robust = attack(network, APGD(epsilon, "ce", num_steps, norm), norm, epsilon, seed)
            known[epsilon] = float(np.mean(robust["robust"]))
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
