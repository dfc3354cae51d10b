"""Attacks a classifier on a whole data set."""

from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks import Attack, engine
from jaxrobust.evaluation.answers import answers
from jaxrobust.evaluation.attack_report import AttackReport
from jaxrobust.evaluation.execution import Execution, check_execution
from jaxrobust.evaluation.search import prepare, search
from jaxrobust.types import LogitsFn


def attack_dataset(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    targets: Any = None,
    until_fooled: bool = False,
    execution: Execution = Execution(),
) -> AttackReport:
    """Attacks every image of a data set and reports the result for each.

    A fixed number of images is attacked at a time, and the next image starts when one is finished.
    Image i uses the key folded with i, so whether it is fooled does not depend on the number of lanes,
    the other images or the number of devices, except through rounding in the classifier at other batch
    sizes. The devices of this process share the lanes. The processes of `jax.distributed` share the
    images, and each of them gets the same report. So each of them must make the same call: a process
    that makes it alone waits for the others, and warns after a minute.

    Args:
      attack: The attack. Its floats may be arrays [N], such as an epsilon for every image.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. It may come from any framework
        and must be in evaluation mode; its weights are arguments of the compiled code. It may be a
        `jaxrobust.types.Stochastic`.
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the true classes.
      key: A PRNG key.
      targets: The classes to reach, for a targeted attack: one class for all images, or int [N]. With
        one class for all, images of that class are not counted.
      until_fooled: Whether the attack on an image ends at its first success, and its other restarts
        are dropped. The verdicts are the same and come much sooner, but the adversarial images are the
        first ones found and not the best. An attack that looks for the smallest perturbation ends at
        the first success within its epsilon. This is ignored where a success may be lost again: with
        `keep="last"` and for a `Stochastic` classifier.
      execution: How many images at a time, in which type to search, the file from which a killed attack
        is resumed, and `progress`, which is called with the attack's label.

    Returns:
      AttackReport.

    Raises:
      TypeError: Labels or targets are not integers.
      ValueError: Before the attack: images, labels or targets are out of range or have the wrong shape;
        targets are missing for a targeted attack, given for an untargeted one, or equal to the labels;
        the logits of all clean images are NaN; the classifier's answer to an image depends on the
        other images; the attack does not work on images of this shape; or the file holds another
        attack. During the attack: the classifier's weights change. The results until then are kept in
        `execution.path`.
    """
    check_execution(execution)
    engine.check_attack(attack)  # before the classifier is asked
    prepared = prepare(logits_fn, images, labels)
    if attack.targeted != (targets is not None):
        raise ValueError(
            "`targets` must be given for a targeted attack and for no other, got "
            f"{'targets' if targets is not None else 'none'} with targeted={attack.targeted}."
        )
    # An untargeted attack leaves the label, and a targeted attack reaches the target.
    aims = prepared.labels
    if targets is not None:
        targets = aims = _targets(targets, prepared.labels, prepared.clean_logits.shape[1])
    found = search(
        attack,
        prepared,
        aims,
        np.ones(len(aims), bool),
        key=key,
        until_fooled=until_fooled,
        execution=execution,
    )
    # Every figure is made of what the classifier says of these images in the end.
    shown = answers(logits_fn, found.images, execution.num_lanes, draw=1)
    prepared.watch.check()
    return AttackReport(
        attack=attack,
        labels=prepared.labels,
        targets=targets,
        clean_images=prepared.images,
        images=found.images,
        clean_logits=prepared.clean_logits,
        logits=shown,
        num_steps=found.steps_to_success,
        num_queries=found.num_queries,
        num_gradients=found.num_gradients,
        saw_nan=found.saw_nan | np.isnan(prepared.clean_logits).any(axis=1),
        remarks=prepared.remarks,
    )


def _targets(targets: Any, labels: np.ndarray, num_classes: int) -> np.ndarray:
    array = np.asarray(targets)
    checks.integers("targets", array)
    if array.shape not in ((), labels.shape):
        raise ValueError(
            f"`targets` must be one class or have shape {labels.shape}, got shape {array.shape}."
        )
    checks.label_range("targets", array, num_classes)
    if array.shape == labels.shape and (array == labels).any():
        first = int(np.flatnonzero(array == labels)[0])
        raise ValueError(
            f"`targets` must differ from the labels, got the label of {int((array == labels).sum())} "
            f"of {len(labels)} images; the first is image {first}."
        )
    return np.broadcast_to(array, labels.shape)
