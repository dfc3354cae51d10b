"""AutoAttack: a suite of attacks; an image is robust if it withstands all of them.

    standard  APGD-CE, APGD-T, FAB-T, Square
    plus      APGD-CE and APGD-DLR with 5 restarts, FAB with 5, Square, APGD-T, FAB-T
    rand      APGD-CE and APGD-DLR, for classifiers whose answers are random

Each attack is run on the images that are classified correctly and that no earlier attack has fooled.
The attack on an image ends as soon as one of its restarts or target classes fools it.

References:
  Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
  attacks", ICML 2020, section 6, https://arxiv.org/abs/2003.01690
"""

from typing import Any

import jax
import numpy as np

from jaxrobust import checks, programs
from jaxrobust.attacks import APGD, FAB, Attack, Square
from jaxrobust.evaluation.execution import Execution
from jaxrobust.evaluation.suite import SuiteReport, attack_suite
from jaxrobust.types import LogitsFn

VERSIONS = ("standard", "plus", "rand")


def auto_attack(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    epsilon: Any,
    *,
    key: jax.Array,
    norm: str = "linf",
    version: str = "standard",
    execution: Execution = Execution(),
) -> SuiteReport:
    """Measures the robust accuracy under AutoAttack.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; for "rand" a
        `jaxrobust.types.Stochastic` with 20 samples.
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the true classes.
      epsilon: The radius in pixel units, one number or [N].
      key: A PRNG key.
      norm: "linf", "l2" or "l1". The suite for l1 has no Square.
      version: "standard", "plus" or "rand".
      execution: How many images at a time, and the folder in which a killed run is resumed, as in
        `attack_suite`.

    Returns:
      SuiteReport.

    Raises:
      TypeError: The labels are not integers, or `logits_fn` cannot be called.
      ValueError: The norm, the version or epsilon is out of range, or images, labels or the classifier
        are refused as by `attack_dataset`.
    """
    images = np.asarray(images)
    shape = (1, *images.shape[1:])
    num_classes = programs.logits_shape(logits_fn, jax.ShapeDtypeStruct(shape, np.float32))[1]
    return attack_suite(
        auto_attack_suite(epsilon, norm, version, num_classes),
        logits_fn,
        images,
        labels,
        key=key,
        execution=execution,
    )


def auto_attack_suite(
    epsilon: Any, norm: str = "linf", version: str = "standard", num_classes: int = 10
) -> dict[str, Attack]:
    """Returns the attacks of AutoAttack by name, in their order.

    Args:
      epsilon: The radius in pixel units, one number or [N].
      norm: "linf", "l2" or "l1". Unlike the reference implementation, the suite for l1 has no Square.
      version: "standard", "plus" or "rand".
      num_classes: The number of classes K, at least 2. There are min(9, K - 1) target classes. With two
        classes DLR has no third logit to divide by and is the margin (`jaxrobust.losses.dlr`).

    Returns:
      {name: attack}.

    Raises:
      ValueError: The norm or version is unknown, or epsilon or the number of classes is out of range.

    Example:
      >>> list(auto_attack_suite(8 / 255))
      ['APGD-CE', 'APGD-T', 'FAB-T', 'Square']
      >>> auto_attack_suite(8 / 255, num_classes=3)["APGD-T"].num_restarts
      2
    """
    checks.one_of("version", version, VERSIONS)
    checks.integer("num_classes", num_classes, minimum=2)
    # In l1 more starts and fewer targets, as in the reference implementation.
    few = norm == "l1" and version == "standard"
    targets = min(9, num_classes - 1)
    dlr_targets = min(5 if few else 9, num_classes - 1)
    restarts = 5 if few or version == "plus" else 1
    cross_entropy = APGD(epsilon, "ce", norm=norm, num_restarts=restarts)
    ratio = APGD(epsilon, "dlr", norm=norm, num_restarts=restarts)
    if version == "rand":
        return {"APGD-CE": cross_entropy, "APGD-DLR": ratio}
    targeted: dict[str, Attack] = {
        "APGD-T": APGD(
            epsilon, "targeted_dlr", norm=norm, num_restarts=dlr_targets, num_targets=dlr_targets
        ),
        "FAB-T": FAB(epsilon, norm=norm, aim="one", num_restarts=targets, num_targets=targets),
    }
    square: dict[str, Attack] = {} if norm == "l1" else {"Square": Square(epsilon, norm=norm)}
    if version == "standard":
        return {"APGD-CE": cross_entropy, **targeted, **square}
    return {
        "APGD-CE": cross_entropy,
        "APGD-DLR": ratio,
        "FAB": FAB(epsilon, norm=norm, num_restarts=5),
        **square,
        **targeted,
    }
