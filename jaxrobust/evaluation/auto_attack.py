"""AutoAttack: a suite of attacks, of which an image has to withstand every one.

    standard  APGD-CE, APGD-T, FAB-T, Square
    plus      APGD-CE and APGD-DLR with 5 restarts, FAB with 5, Square, APGD-T, FAB-T
    rand      APGD-CE and APGD-DLR, for classifiers that answer at random

Each attack is made on the images that are right and that none before it has fooled; an image is left as
soon as one of its starts, or of its target classes, fools it.

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
    """Robust accuracy under AutoAttack.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; for "rand" a
        `jaxrobust.types.Stochastic` with 20 samples.
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N].
      epsilon: Radius in pixel units, one or [N].
      key: A PRNG key.
      norm: "linf", "l2" or "l1"; in l1 there is no Square.
      version: "standard", "plus" or "rand".
      execution: As in `attack_suite`.

    Returns:
      SuiteReport.

    Raises:
      TypeError: As `attack_dataset`.
      ValueError: As `attack_dataset` and `auto_attack_suite`.
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
    """The attacks of AutoAttack by name, in their order.

    Args:
      epsilon: Radius in pixel units, one or [N].
      norm: "linf", "l2" or "l1"; in l1 there is no Square, which the reference implementation has.
      version: "standard", "plus" or "rand".
      num_classes: K. There are min(9, K - 1) target classes. With two classes DLR has no third logit
        to divide by and is the margin (`jaxrobust.losses.dlr`).

    Returns:
      {name: attack}.

    Raises:
      ValueError: An unknown norm or version, an epsilon or number of classes out of range.

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
