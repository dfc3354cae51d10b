"""How a classifier stands up to an attack, over a whole data set."""

from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.attacks import Attack
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
    """Attacks every image, a fixed number at a time: one that is finished makes room for the next.

    Image i uses the key folded with i: whether it is fooled depends neither on the number of lanes nor
    on the images beside it nor on the number of devices, but for the rounding of the classifier's own
    arithmetic at other batch sizes. The lanes are shared by the devices of this process, and the images
    by the processes of `jax.distributed`, each of which must make the same call and gets the same
    report.

    Args:
      attack: What to run. Its floats may be arrays [N]: an epsilon for every image.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K], of any framework, in
        evaluation mode; its weights are arguments of the compiled code. May be
        `jaxrobust.types.Stochastic`.
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N], true classes.
      key: A PRNG key.
      targets: For a targeted attack the class to reach, one for all or [N]. With one for all, images
        that are of that class themselves are not counted.
      until_fooled: Whether an image is left at its first success, with all the restarts that are still
        to come. The verdicts are the same, far sooner; the adversarial images are then the first found
        and not the best. An attack that looks for the smallest perturbation is left at the first that
        lies within its epsilon. Not obeyed where the first success may be lost again: with
        `keep="last"`, and by a `Stochastic` classifier.
      execution: How many at a time, in which type, from which file a killed attack goes on, and who is
        told: `progress` is called with the attack's label.

    Returns:
      AttackReport.

    Raises:
      TypeError: Labels or targets that are no integers.
      ValueError: Labels, targets or images out of range or of the wrong shape; a targeted attack
        without targets, or targets for an untargeted one, or targets that are the labels; NaN logits
        for all clean images; a classifier whose answer to an image depends on the images beside it;
        images that the attack cannot work on; a file that holds another attack. All before anything
        is attacked. Later only weights that change while the attack goes on, which ends it; what was
        found is kept at `execution.path`.
    """
    check_execution(execution)
    prepared = prepare(logits_fn, images, labels)
    if attack.targeted != (targets is not None):
        raise ValueError(
            "`targets` must be given for a targeted attack and for no other, got "
            f"{'targets' if targets is not None else 'none'} with targeted={attack.targeted}."
        )
    # What an untargeted attack leaves is the label, what a targeted one reaches the target.
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
            f"`targets` must be one class or of shape {labels.shape}, got shape {array.shape}."
        )
    checks.label_range("targets", array, num_classes)
    if array.shape == labels.shape and (array == labels).any():
        first = int(np.flatnonzero(array == labels)[0])
        raise ValueError(
            f"`targets` must differ from the labels, got the label of {int((array == labels).sum())} "
            f"of {len(labels)} images, image {first} the first."
        )
    return np.broadcast_to(array, labels.shape)
