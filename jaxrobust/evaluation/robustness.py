"""How a classifier stands up to an attack: success rates with a record of every image."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import attacks, checks, compilation
from jaxrobust.attacks import engine
from jaxrobust.evaluation.classification import (
    Progress,
    as_float,
    logits,
    padded_batches,
    softmax,
)
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.types import Attack, LogitsFn


@dataclasses.dataclass(frozen=True, eq=False)
class AttackReport:
    """One attack on N images: host arrays, from which every figure is computed.

    Attributes:
      attack: What was run.
      labels: int [N], true classes.
      targets: int [N], the classes to reach, or None for an untargeted attack.
      clean_images: float32 [N, H, W, C] in [0, 1].
      images: float32 [N, H, W, C] in [0, 1], adversarial.
      clean_logits: float32 [N, K].
      logits: float32 [N, K], of the adversarial images, evaluated anew.
      num_steps: int [N], steps to the first success, all of them where there was none.
    """

    attack: Attack
    labels: np.ndarray
    targets: np.ndarray | None
    clean_images: np.ndarray
    images: np.ndarray
    clean_logits: np.ndarray
    logits: np.ndarray
    num_steps: np.ndarray

    @functools.cached_property
    def clean_predictions(self) -> np.ndarray:
        """Int [N]."""
        return self.clean_logits.argmax(axis=1)

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """Int [N], on the adversarial images."""
        return self.logits.argmax(axis=1)

    @functools.cached_property
    def attacked(self) -> np.ndarray:
        """Bool [N]: the images that the success rate is of.

        Untargeted, those that the classifier has right when clean: one that is wrong already proves
        nothing. Targeted, those that are not of the target class.
        """
        if self.targets is not None:
            return self.targets != self.labels
        return self.clean_predictions == self.labels

    @functools.cached_property
    def success(self) -> np.ndarray:
        """Bool [N]: the adversarial image is taken for another class, or for the target."""
        finite = ~np.isnan(self.logits).any(axis=1)
        if self.targets is not None:
            return (self.predictions == self.targets) & finite
        return (self.predictions != self.labels) & finite

    @functools.cached_property
    def l2(self) -> np.ndarray:
        """Float [N], norms of the perturbations in pixel units."""
        return np.sqrt(((self.images - self.clean_images) ** 2).sum(axis=(1, 2, 3)))

    @functools.cached_property
    def linf(self) -> np.ndarray:
        """Float [N], norms of the perturbations in pixel units."""
        return np.abs(self.images - self.clean_images).max(axis=(1, 2, 3))


def attack_dataset(
    attack: Attack,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    *,
    key: jax.Array,
    targets: Any = None,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> AttackReport:
    """Attacks every image, in batches of one size.

    Image i uses the key folded with i: its result does not depend on the batch size.

    Args:
      attack: What to run.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]; a Classifier's weights are
        arguments of the compiled code.
      images: uint8, or floating in [0, 1], [N, H, W, C], N of at least 1.
      labels: int [N], true classes.
      key: A PRNG key.
      targets: For a targeted attack the class to reach, one for all or [N].
      batch_size: Images at a time.
      progress: Called with (images done, N) after every batch.

    Returns:
      AttackReport.

    Raises:
      TypeError: Labels or targets that are no integers.
      ValueError: Labels, targets or images out of range or of the wrong shape; a targeted attack
        without targets, or targets for an untargeted one. All before anything is computed.
    """
    checks.integer("batch_size", batch_size, minimum=1)
    clean = as_float(images)
    labels = np.asarray(labels)
    checks.images_and_labels(clean, labels)
    if len(clean) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    if attack.targeted != (targets is not None):
        raise ValueError(
            "`targets` must be given for a targeted attack and for no other, got "
            f"{'targets' if targets is not None else 'none'} with targeted={attack.targeted}."
        )
    function = compilation.as_argument(logits_fn)
    num_classes = compilation.logits_shape(function, clean[:1])[1]
    checks.label_range("labels", labels, num_classes)
    aims = labels
    if targets is not None:
        targets = aims = _targets(targets, labels, num_classes)
    clean_logits = logits(logits_fn, clean, batch_size)
    arrays = engine.as_arrays(attack)
    found, steps = [], []
    for indices, count in padded_batches(len(clean), batch_size):
        result = engine.compiled_run(
            arrays,
            engine.fold_keys(key, jnp.asarray(indices)),
            function,
            jnp.asarray(clean[indices]),
            jnp.asarray(aims[indices], jnp.int32),
        )
        found.append(np.asarray(result.images)[:count])
        steps.append(np.asarray(result.num_steps)[:count])
        if progress is not None:
            progress(int(indices[count - 1]) + 1, len(clean))
    adversarial = np.concatenate(found)
    return AttackReport(
        attack=attack,
        labels=labels,
        targets=targets,
        clean_images=clean,
        images=adversarial,
        clean_logits=clean_logits,
        logits=logits(logits_fn, adversarial, batch_size),
        num_steps=np.concatenate(steps),
    )


def _targets(targets: Any, labels: np.ndarray, num_classes: int) -> np.ndarray:
    array = np.asarray(targets)
    checks.integers("targets", array)
    if array.shape not in ((), labels.shape):
        raise ValueError(
            f"`targets` must be one class or of shape {labels.shape}, got shape {array.shape}."
        )
    checks.label_range("targets", array, num_classes)
    return np.broadcast_to(array, labels.shape)


def success_rate(report: AttackReport) -> Rate:
    """Successes among the images attacked (`AttackReport.attacked`)."""
    attacked = report.attacked
    return rate(int((report.success & attacked).sum()), int(attacked.sum()))


def robust_accuracy(report: AttackReport) -> Rate:
    """Of all images, those right when clean and right under the attack. Untargeted attacks only.

    Raises:
      ValueError: A targeted attack.
    """
    if report.targets is not None:
        raise ValueError("`robust_accuracy` is defined for untargeted attacks, got a targeted one.")
    standing = report.attacked & (report.predictions == report.labels)
    return rate(int(standing.sum()), len(report.labels))


def records(report: AttackReport) -> list[dict[str, Any]]:
    """One JSON-ready dict for every image: predictions, logits, confidences, norms, steps, success."""
    clean, adversarial = softmax(report.clean_logits), softmax(report.logits)
    rows = []
    for i in range(len(report.labels)):
        row = {
            "index": i,
            "label": int(report.labels[i]),
            "attacked": bool(report.attacked[i]),
            "success": bool(report.success[i]),
            "clean_prediction": int(report.clean_predictions[i]),
            "adversarial_prediction": int(report.predictions[i]),
            "clean_confidence": float(clean[i].max()),
            "adversarial_confidence": float(adversarial[i].max()),
            "clean_logits": report.clean_logits[i].tolist(),
            "adversarial_logits": report.logits[i].tolist(),
            "l2": float(report.l2[i]),
            "linf": float(report.linf[i]),
            "num_steps": int(report.num_steps[i]),
        }
        if report.targets is not None:
            row["target"] = int(report.targets[i])
        rows.append(row)
    return rows


def summarise(report: AttackReport, model: str, class_names: Sequence[str]) -> dict[str, Any]:
    """The attack as it goes into result.json (docs/result_format.md, ATTACK).

    Args:
      report: Of one attack on one model.
      model: The model's name.
      class_names: K names.
    """
    description = attacks.to_dict(report.attack)
    name = description.pop("name")
    attacked = report.attacked
    wins = report.success & attacked
    confidence = softmax(report.logits).max(axis=1)
    summary: dict[str, Any] = {
        "name": name,
        "label": attack_label(report.attack),
        "parameters": description,
        "model": model,
        "success": success_rate(report),
        "mean_l2": _mean(report.l2[attacked]),
        "mean_linf": _mean(report.linf[attacked]),
        "mean_confidence": _mean(confidence[attacked]),
        "median_steps": float(np.median(report.num_steps[wins])) if wins.any() else None,
        "records": records(report),
    }
    if report.targets is None:
        summary["robust_accuracy"] = robust_accuracy(report)
    else:
        reached = sorted(set(report.targets.tolist()))
        summary["target"] = ", ".join(class_names[k] for k in reached)
    return summary


def attack_label(attack: Attack, *, epsilon: bool = True) -> str:
    """A short name for tables: "PGD, linf 0.03, 40 steps".

    Args:
      attack: What to name.
      epsilon: Whether to name the norm and its epsilon; not for a sweep over it.
    """
    words = [type(attack).__name__]
    norm, size = getattr(attack, "norm", None), getattr(attack, "epsilon", None)
    if epsilon and norm is not None:
        words.append(norm if size is None else f"{norm} {size:.3g}")
    if attack.num_steps > 1:
        words.append(f"{attack.num_steps} steps")
    if attack.num_restarts > 1:
        words.append(f"{attack.num_restarts} restarts")
    return ", ".join(words)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
