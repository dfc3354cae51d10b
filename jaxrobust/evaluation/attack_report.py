"""What an attack on a data set came to: success rates with a record of every image."""

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
      num_queries: int [N], images that the classifier was asked about on behalf of this one.
      num_gradients: int [N], gradients on behalf of this one.
      saw_nan: bool [N], whether a logit or a gradient has been NaN: such an image is to be looked at.
        Its NaN points were not counted as fooling.
      remarks: Sentences on how the classifier was evaluated; mostly none.
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
        return f"AttackReport({attack_label(self.attack)}, {len(self.labels)} images)"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what makes the figures doubtful; mostly none."""
        return (*unusual(self.clean_logits), *self.remarks)

    @functools.cached_property
    def clean_predictions(self) -> np.ndarray:
        """Int [N]; -1 where a logit is NaN."""
        return predictions(self.clean_logits)

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """Int [N], on the adversarial images; -1 where a logit is NaN."""
        return predictions(self.logits)

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
        """Bool [N]: the adversarial image is taken for another class, or for the target.

        Of an attack that looks for the smallest perturbation and has an epsilon (FAB), within it.
        """
        epsilon = epsilon_of(self.attack)
        return self.fools & self.within(np.inf if epsilon is None else epsilon)

    @functools.cached_property
    def fools(self) -> np.ndarray:
        """Bool [N]: `success`, but at any distance."""
        finite = self.predictions >= 0
        if self.targets is not None:
            return (self.predictions == self.targets) & finite
        return (self.predictions != self.labels) & finite

    def within(self, epsilon: Any) -> np.ndarray:
        """Bool [N]: the perturbation's norm is at most epsilon.

        Always so for an attack that keeps to its epsilon by itself.
        """
        if self.attack.keep != "closest":
            return np.ones(len(self.labels), bool)
        return np.asarray(is_within(self.norms, np.asarray(epsilon)))

    @property
    def norms(self) -> np.ndarray:
        """Float [N], norms of the perturbations in the attack's norm, in pixel units."""
        checks.one_of("norm", self.attack.norm, norms.NORMS)
        return np.asarray(getattr(self, self.attack.norm))

    @functools.cached_property
    def l1(self) -> np.ndarray:
        """Float [N], norms of the perturbations in pixel units."""
        return np.abs(self.images - self.clean_images).sum(axis=(1, 2, 3))

    @functools.cached_property
    def l2(self) -> np.ndarray:
        """Float [N], norms of the perturbations in pixel units."""
        return np.sqrt(((self.images - self.clean_images) ** 2).sum(axis=(1, 2, 3)))

    @functools.cached_property
    def linf(self) -> np.ndarray:
        """Float [N], norms of the perturbations in pixel units."""
        return np.abs(self.images - self.clean_images).max(axis=(1, 2, 3))


def success_rate(report: AttackReport) -> Rate:
    """Successes among the images attacked (`AttackReport.attacked`)."""
    attacked = report.attacked
    return rate(int((report.success & attacked).sum()), int(attacked.sum()))


def robust_accuracy(report: AttackReport, epsilon: float | None = None) -> Rate:
    """Of all images, those right when clean and right under the attack. Untargeted attacks only.

    Args:
      report: Of the attack.
      epsilon: For an attack that looks for the smallest perturbation: how large it may be. By default
        the attack's own, where it has one, and any size where it has none.

    Raises:
      ValueError: A targeted attack, or an epsilon for an attack that keeps to its own.
    """
    if report.targets is not None:
        raise ValueError("`robust_accuracy` is defined for untargeted attacks, got a targeted one.")
    fooled = report.success
    if epsilon is not None:
        if report.attack.keep != "closest":
            raise ValueError(
                "`epsilon` is for attacks that look for the smallest perturbation, got one for "
                f"{attack_label(report.attack)}."
            )
        fooled = report.fools & report.within(epsilon)
    # What answers with NaN is not right: the label is not predicted.
    standing = report.attacked & ~fooled & (report.predictions >= 0)
    return rate(int(standing.sum()), len(report.labels))


class MedianNorm(TypedDict):
    """The median of the perturbations found, failures counted as infinite.

    Attributes:
      norm: "linf", "l2" or "l1", in pixel units.
      median: None where half or more of the attacks failed: it is infinite then.
      n: Images attacked.
      failures: How many of them were not fooled.
    """

    norm: str
    median: float | None
    n: int
    failures: int


def median_norm(report: AttackReport) -> MedianNorm:
    """The median norm over all images attacked, for an attack that looks for the smallest.

    A mean of successes alone looks the better the more attacks fail; this does not: of the norms 0.1
    and 0.2 and a failure the median is 0.2, of 0.1 and two failures it is infinite.

    Args:
      report: Of the attack.

    Returns:
      {"norm", "median": None where it is infinite, "n", "failures"}.
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
    """The attack as it goes into result.json (docs/result_format.md, ATTACK).

    Args:
      report: Of one attack on one model.
      model: The model's name.
      class_names: K names; their indices by default.

    Raises:
      ValueError: Another number of names.
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
        # What failed has no perturbation that means anything: 0 would make an attack look subtle.
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
    """A short name for tables: "PGD, linf 0.03, 40 steps".

    Args:
      attack: What to name.
      epsilon: Whether to name the norm and its epsilon; not for a sweep over it.
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
    """An epsilon as all tables and labels spell it: levels of 255 where it is no round number.

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
