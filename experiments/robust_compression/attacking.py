"""What is measured under attack, once for each network: AutoAttack, curves over epsilon, transfer."""

import functools
import itertools
from typing import Any

from experiments.robust_compression.config import EPSILON
from experiments.robust_compression.study import Study, Variant
from jaxrobust import evaluation, studies
from jaxrobust.attacks import PGD
from jaxrobust.studies import suite_run
from jaxrobust.studies.outcomes import rate_of
from jaxrobust.training.compression.budget_schedules import LONGEST_STEP
from jaxrobust.types import Attack


def pgd(epsilon: float, num_steps: int) -> PGD:
    """PGD whose steps together reach 2.5 times as far as its ball does; a single one less."""
    return PGD(epsilon, epsilon * min(2.5 / num_steps, LONGEST_STEP), num_steps)


def suite_of(study: Study, variant: Variant) -> dict[str, Attack]:
    """All of AutoAttack, or its first two attacks."""
    attacks = evaluation.auto_attack_suite(EPSILON, num_classes=study.dataset.num_classes)
    if not study.is_fully_attacked(variant):
        attacks = dict(itertools.islice(attacks.items(), 2))
    steps = study.config.suite_steps
    return attacks if steps is None else studies.suites.shortened(attacks, steps)


def first_two(study: Study) -> dict[str, Attack]:
    """The attacks that all networks meet."""
    return dict(itertools.islice(suite_of(study, Variant(study.main)).items(), 2))


def common_attack(study: Study) -> str:
    """The last attack that all networks meet: methods are compared by what is left after it."""
    return list(first_two(study))[-1]


def make_suites(study: Study) -> None:
    """Attacks every robust network, into the study's records."""
    for variant in study.robust():
        found = study.stages.remember(
            f"attack {variant.name}", functools.partial(_attacked, study, variant)
        )
        study.stages.count_resumed(
            f"attack {variant.name}", sum(attack["seconds"] for attack in found["attacks"])
        )
        study.suites[variant] = found


def _attacked(study: Study, variant: Variant, _: Any) -> dict[str, Any]:
    images = study.attacked_by(variant.seed)
    report, seconds = suite_run.run_suite(
        suite_of(study, variant),
        study.classifier(variant),
        images.images,
        images.labels,
        key=study.key,
        folder=study.folder / "suite" / variant.stem,
    )
    summary = evaluation.summarise_suite(report, variant.name)
    for entry in summary["attacks"]:
        entry["seconds"] = seconds[entry["name"]]
    words = "AutoAttack (standard)" if study.is_fully_attacked(variant) else "APGD-CE and APGD-T"
    return summary | {"label": f"{words}, linf 8/255" + ", shortened" * study.config.quick}


def curve(study: Study, variant: Variant) -> list[dict[str, Any]]:
    """Algorithm 2: accuracy under PGD over rising epsilons, until it is below chance.

    Returns:
      [{"epsilon", "robust_accuracy": a rate}, ...].
    """
    images = study.attacked_by(variant.seed)
    found = study.stages.remember(
        f"curve of {variant.name}",
        lambda progress: evaluation.robustness_curve(
            pgd(EPSILON, study.config.curve_steps),
            study.classifier(variant),
            images.images,
            images.labels,
            study.config.curve_epsilons,
            key=study.key,
            model=variant.name,
            stop_below=1 / study.dataset.num_classes,
            progress=progress,
        ),
    )
    return found["points"]


def transfer(study: Study, source: Variant, targets: list[Variant]) -> list[dict[str, Any]]:
    """Algorithm 3: PGD on one network, shown to all; over rising epsilons.

    Returns:
      A CURVE of docs/result_format.md for each of `targets`, in their order.
    """
    if source not in study.transfers:
        study.transfers[source] = study.stages.remember(
            f"transfer from {source.name}",
            lambda progress: evaluation.transfer_curves(
                pgd(EPSILON, min(20, study.config.curve_steps)),
                {target.name: study.classifier(target) for target in targets},
                source.name,
                study.attacked.images,
                study.attacked.labels,
                study.config.curve_epsilons,
                key=study.key,
                progress=progress,
            ),
        )
    return study.transfers[source]


def trained_at(study: Study, radius: float) -> list[Variant]:
    """Dense networks and the irregular scheme, of all networks that were trained at a radius."""
    networks = [name for name in study.config.networks if radius in study.radii_of(name)]
    return [variant for network in networks for variant in study.pair(network, radius)]


def strongest_and_weakest(study: Study, candidates: list[Variant]) -> tuple[Variant, Variant]:
    """By what AutoAttack leaves; the first of equals."""
    common = common_attack(study)

    def left(variant: Variant) -> float:
        return rate_of(study.standing(variant, common))["rate"] or 0.0

    return max(candidates, key=left), min(candidates, key=left)
