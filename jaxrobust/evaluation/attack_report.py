"""The report of an attack on a data set: success rates and a record of every image."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from jaxrobust import attacks, checks, norms
from jaxrobust.attacks.attack import Attack, epsilon_of
from jaxrobust.attacks.judging import is_within
from jaxrobust.evaluation.classification import predictions, softmax
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.programs.company import unusual


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttackReport:
    """The report of one attack on N images, as arrays on the host.

    Attributes:
      attack: The attack.
      labels: int [N], the true classes.
      targets: int [N], the classes to reach, or None for an untargeted attack.
      clean_images: float32 [N, H, W, C] in [0, 1].
      images: float32 [N, H, W, C] in [0, 1], the adversarial images.
      clean_logits: float32 [N, K], the logits of the clean images.
      logits: float32 [N, K], the logits of the adversarial images, evaluated after the attack.
      num_steps: int [N], the steps before the first success, or all steps if there was none.
      num_queries: int [N], how many images the classifier evaluated for this image.
      num_gradients: int [N], how many gradients were computed for this image.
      saw_nan: bool [N], whether a logit or a gradient has been NaN. Points with NaN logits do not count
        as fooling, so inspect such an image.
      remarks: Sentences about how the classifier was evaluated; usually empty.
    """

    attack: Attack
    labels: np.ndarray
    targets: np.ndarray | None
    clean_images: np.ndarray
    images: np.ndarray
    clean_logits: np.ndarray
    logits: np.ndarray
    num_steps: np.ndarray
    num_queries: np.ndarray
    num_gradients: np.ndarray
    saw_nan: np.ndarray
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        counted = int((self.success & self.attacked).sum()), int(self.attacked.sum())
        fooled = f"{counted[0]} successes on {counted[1]} of {len(self.labels)} images"
        return f"AttackReport({attack_label(self.attack)}; {fooled})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that say why the figures may be wrong; usually empty."""
        return (*unusual(self.clean_logits), *self.remarks)

    @functools.cached_property
    def clean_predictions(self) -> np.ndarray:
        """The predicted classes of the clean images, int [N]; -1 where a logit is NaN."""
        return predictions(self.clean_logits)

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """The predicted classes of the adversarial images, int [N]; -1 where a logit is NaN."""
        return predictions(self.logits)

    @functools.cached_property
    def attacked(self) -> np.ndarray:
        """Whether an image counts in the success rate, bool [N].

        For an untargeted attack those images count whose clean form is classified correctly. For a
        targeted attack those count that are not of the target class.
        """
        if self.targets is not None:
            return self.targets != self.labels
        return self.clean_predictions == self.labels

    @functools.cached_property
    def success(self) -> np.ndarray:
        """Whether the adversarial image is classified as another class, or as the target, bool [N].

        For an attack that looks for the smallest perturbation and has an epsilon (FAB), the
        perturbation must also lie within epsilon.
        """
        epsilon = epsilon_of(self.attack)
        return self.fools & self.within(np.inf if epsilon is None else epsilon)

    @functools.cached_property
    def fools(self) -> np.ndarray:
        """Whether the adversarial image fools, whatever the size of its perturbation, bool [N]."""
        finite = self.predictions >= 0
        if self.targets is not None:
            return (self.predictions == self.targets) & finite
        return (self.predictions != self.labels) & finite

    def within(self, epsilon: Any) -> np.ndarray:
        """Says whether the perturbation's norm is at most epsilon, bool [N].

        It is True throughout for an attack that never exceeds its own epsilon.

        Args:
          epsilon: In pixel units, one number or [N].
        """
        if self.attack.keep != "closest":
            return np.ones(len(self.labels), bool)
        return np.asarray(is_within(self.norms, np.asarray(epsilon)))

    @property
    def norms(self) -> np.ndarray:
        """The size of the perturbations in the attack's norm, in pixel units, float [N]."""
        checks.one_of("norm", self.attack.norm, norms.NORMS)
        return np.asarray(getattr(self, self.attack.norm))

    @functools.cached_property
    def l1(self) -> np.ndarray:
        """The l1 norms of the perturbations in pixel units, float [N]."""
        return np.abs(self.images - self.clean_images).sum(axis=(1, 2, 3))

    @functools.cached_property
    def l2(self) -> np.ndarray:
        """The l2 norms of the perturbations in pixel units, float [N]."""
        return np.sqrt(((self.images - self.clean_images) ** 2).sum(axis=(1, 2, 3)))

    @functools.cached_property
    def linf(self) -> np.ndarray:
        """The linf norms of the perturbations in pixel units, float [N]."""
        return np.abs(self.images - self.clean_images).max(axis=(1, 2, 3))


def success_rate(report: AttackReport) -> Rate:
    """Computes the share of successes among the attacked images (`AttackReport.attacked`).

    Args:
      report: The report of the attack.

    Returns:
      {"count", "n", "rate", "low", "high"}, with a 95 % interval.
    """
    attacked = report.attacked
    return rate(int((report.success & attacked).sum()), int(attacked.sum()))


def robust_accuracy(report: AttackReport, epsilon: float | None = None) -> Rate:
    """Computes the share of all images that are classified correctly, clean and under the attack.

    Args:
      report: The report of an untargeted attack.
      epsilon: The largest perturbation that counts, in pixel units, for an attack that looks for the
        smallest perturbation. By default it is the attack's own epsilon; if the attack has none, any
        size counts.

    Returns:
      {"count", "n", "rate", "low", "high"}, with a 95 % interval.

    Raises:
      ValueError: The attack is targeted, or `epsilon` is given for an attack that has a fixed one.
    """
    if report.targets is not None:
        raise ValueError(
            "`report` must be of an untargeted attack, got a targeted one, for which robust accuracy "
            "is not defined: use `success_rate`."
        )
    fooled = report.success
    if epsilon is not None:
        if report.attack.keep != "closest":
            raise ValueError(
                "`epsilon` must be None except for attacks that look for the smallest perturbation, "
                f"got {epsilon} for {attack_label(report.attack)}."
            )
        fooled = report.fools & report.within(epsilon)
    # An answer with NaN is not correct: the label is not predicted.
    standing = report.attacked & ~fooled & (report.predictions >= 0)
    return rate(int(standing.sum()), len(report.labels))


class MedianNorm(TypedDict):
    """The median size of the perturbations found, where a failure counts as infinite.

    Attributes:
      norm: "linf", "l2" or "l1".
      median: The median in pixel units, or None if it is infinite because too many attacks failed.
      n: How many images were attacked.
      failures: How many of them were not fooled.
    """

    norm: str
    median: float | None
    n: int
    failures: int


def median_norm(report: AttackReport) -> MedianNorm:
    """Computes the median norm over all attacked images, for attacks that look for the smallest one.

    A mean over successes alone improves if the attack fails on hard images; this median does not,
    because a failure counts as infinite. For the norms 0.1 and 0.2 and one failure it is 0.2, and for
    0.1 and two failures it is infinite.

    Args:
      report: The report of the attack.

    Returns:
      {"norm", "median": in pixel units, or None if it is infinite, "n": the images attacked,
      "failures": how many of them were not fooled}.
    """
    attacked = report.attacked
    norms = np.where(report.fools, report.norms, np.inf)[attacked]
    median = float(np.median(norms)) if len(norms) else math.inf
    return {
        "norm": report.attack.norm,
        "median": median if math.isfinite(median) else None,
        "n": int(attacked.sum()),
        "failures": int(np.isinf(norms).sum()),
    }


def records(report: AttackReport) -> list[dict[str, Any]]:
    """Returns one dict for each image, which JSON can hold.

    Args:
      report: The report of one attack.

    Returns:
      A list of N dicts with the image's label, predictions, logits, confidences (the largest
      probability), norms in pixel units, steps, queries, gradients and success.
    """
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
            "num_queries": int(report.num_queries[i]),
            "num_gradients": int(report.num_gradients[i]),
        }
        if report.saw_nan[i]:
            row["saw_nan"] = True
        if report.targets is not None:
            row["target"] = int(report.targets[i])
        rows.append(row)
    return rows


def summarise(
    report: AttackReport, model: str, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Summarises an attack for result.json (docs/result_format.md, ATTACK).

    Args:
      report: The report of one attack on one model.
      model: The model's name.
      class_names: The names of the K classes; by default their indices.

    Returns:
      A dict that JSON can hold.

    Raises:
      ValueError: There are not K names.
    """
    num_classes = report.clean_logits.shape[1]
    names = [str(k) for k in range(num_classes)] if class_names is None else list(class_names)
    if len(names) != num_classes:
        raise ValueError(f"`class_names` must have {num_classes} names, got {len(names)}.")
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
        # Failures have no meaningful perturbation, and counting them as 0 would flatter the attack.
        "norms_of": "successes",
        "mean_l2": _mean(report.l2[wins]),
        "mean_linf": _mean(report.linf[wins]),
        "mean_confidence": _mean(confidence[attacked]),
        "median_steps": float(np.median(report.num_steps[wins])) if wins.any() else None,
        "records": records(report),
    }
    if report.attack.keep == "closest":
        summary["median_norm"] = median_norm(report)
    if report.warnings:
        summary["warnings"] = list(report.warnings)
    if report.targets is None:
        summary["robust_accuracy"] = robust_accuracy(report)
    else:
        reached = sorted(set(report.targets.tolist()))
        summary["target"] = ", ".join(names[k] for k in reached)
    return summary


def attack_label(attack: Attack, *, epsilon: bool = True) -> str:
    """Returns a short name of an attack for tables, such as "PGD, linf 8/255, 40 steps".

    Args:
      attack: Any attack.
      epsilon: Whether to include the norm and epsilon. Leave them out for a sweep over epsilon.
    """
    words = [type(attack).__name__]
    size = epsilon_of(attack)
    if epsilon:
        words.append(attack.norm if size is None else f"{attack.norm} {_span(size)}")
    words += [attack.duration()] if attack.duration() else []
    if attack.num_restarts > 1:
        words.append(f"{attack.num_restarts} restarts")
    return ", ".join(words)


def _span(epsilon: Any) -> str:
    """One number, or the smallest and the largest of one for each image."""
    low, high = epsilon_label(float(np.min(epsilon))), epsilon_label(float(np.max(epsilon)))
    return low if low == high else f"{low} to {high}"


def epsilon_label(epsilon: float) -> str:
    """Formats an epsilon for tables and labels, in levels of 255 if it is not a round number.

    Args:
      epsilon: In pixel units.

    Example:
      >>> epsilon_label(8 / 255), epsilon_label(0.2), epsilon_label(1 / 7)
      ('8/255', '0.2', '0.143')
    """
    short, levels = f"{epsilon:.3g}", round(255 * epsilon)
    # To float32's precision, in which attacks keep it.
    is_round = math.isclose(float(short), epsilon, rel_tol=1e-6)
    is_level = 0 < levels < 255 and math.isclose(levels / 255, epsilon, rel_tol=1e-6)
    return f"{levels}/255" if is_level and not is_round else short


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
