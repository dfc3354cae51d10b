"""Curves over epsilon, transfer, and what an attack makes of an image (figures 4.5, 4.6, C.1, C.2)."""

from typing import Any

import numpy as np

from experiments.robust_compression import attacking
from experiments.robust_compression.shares import share_over_seeds
from experiments.robust_compression.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.studies import blocks

PART = "robustness"
PANEL_EPSILONS = (0.0, 0.016, 0.03, 0.06, 0.1, 0.2, 0.3)
_PANEL_STEPS = 7  # the source's
_PANEL_IMAGES = 3


def sections(study: Study) -> list[dict[str, Any]]:
    """Curves, transfer, panels."""
    return [curves(study), transfer(study), panels(study)]


def mean_curve(curves: list[list[dict[str, Any]]]) -> tuple[list[float], list[Any]]:
    """The mean over seeds with Student's interval; of one seed its rates with Wilson's.

    Args:
      curves: Of each seed [{"epsilon", "robust_accuracy"}, ...], which may end at different epsilons.

    Returns:
      (epsilons that all seeds have, a rate or an estimate for each).
    """
    shortest = min(map(len, curves))
    epsilons = [point["epsilon"] for point in curves[0][:shortest]]
    if len(curves) == 1:
        return epsilons, [point["robust_accuracy"] for point in curves[0]]
    values = []
    for place in range(shortest):
        rates = [curve[place]["robust_accuracy"]["rate"] for curve in curves]
        values.append(share_over_seeds(rates))
    return epsilons, values


def curves(study: Study) -> dict[str, Any]:
    """Figure 4.5; with --data cifar100 figure C.1."""
    charts, rows = [], []
    for network in study.config.networks:
        lines = []
        for number, radius in enumerate(study.radii_of(network)):
            for variant in study.pair(network, radius):
                found = [attacking.curve(study, v) for v in study.over_seeds(variant)]
                name = f"{variant.share}, {epsilon_label(radius)}"
                epsilons, values = mean_curve(found)
                lines.append(blocks.line(name, epsilons, values, dashed=number > 0))
                rows += [[variant.name, *_ends(study, found[0])]] if number == 0 else []
        charts.append(
            blocks.chart(
                f"{network}: accuracy over epsilon",
                "epsilon of the attack, linf",
                "accuracy",
                lines,
                f"PGD with {study.config.curve_steps} steps on {len(study.attacked)} test images, "
                "those wrong without an attack included. In the legend the share of weights kept, and "
                "the epsilon of training; bands as the section says.",
                percent=True,
            )
        )
    table = blocks.table(
        ["Network", blocks.column("Last epsilon", decimals=3), "Accuracy there", "Below chance"],
        rows,
        "Where the curve ends: at the first epsilon that leaves less than chance, or at the last one.",
        title="Where the curves end",
        folded=True,
    )
    several = len(study.seeds) > 1
    others = len(study.config.networks) > 1 or len(study.config.radii) > 1
    return blocks.section(
        "epsilon-curves",
        "Robust accuracy over epsilon",
        [*charts, table],
        part=PART,
        text=[
            "Algorithm 2 of the source: the same attack with a growing epsilon, until accuracy falls "
            "below chance. "
            + (
                f"Of {study.main}, trained at {epsilon_label(study.config.radii[0])}, lines are means "
                f"over {len(study.seeds)} seeds with 95 % Student-t intervals"
                + ("; of the others, one network each, they are Wilson's." if others else ".")
                if several
                else "Intervals are Wilson's, of one network each."
            )
        ],
    )


def _ends(study: Study, curve: list[dict[str, Any]]) -> list[Any]:
    last = curve[-1]
    below = last["robust_accuracy"]["rate"] < 1 / study.dataset.num_classes
    return [last["epsilon"], last["robust_accuracy"], "yes" if below else "no"]


def transfer(study: Study) -> dict[str, Any]:
    """Figures 4.6 and C.2: from the strongest and from the weakest network of a training radius."""
    charts = []
    for radius in study.config.radii:
        targets = attacking.trained_at(study, radius)
        ends = dict.fromkeys(attacking.strongest_and_weakest(study, targets))
        for which, source in zip(("strongest", "weakest"), ends, strict=False):
            lines = []
            found = attacking.transfer(study, source, targets)
            for target, curve in zip(targets, found, strict=True):
                points = curve["points"]
                lines.append(
                    blocks.line(
                        f"{target.network}, {target.share}" + " (source)" * (target == source),
                        [point["epsilon"] for point in points],
                        [point["robust_accuracy"] for point in points],
                        dashed=target.network != study.main,
                    )
                )
            charts.append(
                blocks.chart(
                    f"Made on the {which}: {source.network}, {source.share}",
                    "epsilon of the attack, linf",
                    "accuracy",
                    lines,
                    f"All trained at {epsilon_label(radius)}. The source's own line is its accuracy "
                    "under the attack itself. Dashed: another architecture than the first. Bands: "
                    "Wilson's 95 % intervals.",
                    percent=True,
                )
            )
    return blocks.section(
        "transfer-curves",
        "Transfer from the strongest and the weakest network",
        charts,
        part=PART,
        text=[
            "Algorithm 3 of the source: PGD makes images on one network, and all others are shown "
            "them. The strongest and the weakest are chosen by what AutoAttack's first attacks leave. "
            "Every curve begins at its network's clean accuracy, with which much of the rest goes."
        ],
    )


def panels(study: Study) -> dict[str, Any]:
    """Figures 3.1 and A.2: some images over epsilon, of the dense and of the smallest network."""
    found = study.stages.remember("panels", lambda _: _panels(study))
    return blocks.section(
        "panels",
        "What the attacks look like",
        [found],
        part=PART,
        text=[
            f"PGD with {_PANEL_STEPS} steps, as in the source's figures, at epsilons beyond those that "
            "leave an image what it is. Below each the answer of the network that was attacked."
        ],
    )


def _panels(study: Study) -> dict[str, Any]:
    pair = study.pair(study.main, study.config.radii[0])
    shown = [pair[0], pair[-1]]
    right = np.logical_and.reduce([study.right(v) for v in shown])
    rows_of = np.flatnonzero(right) if right.any() else np.arange(len(right))
    chosen = rows_of[np.linspace(0, len(rows_of) - 1, _PANEL_IMAGES + 2).astype(int)[1:-1]]
    images, labels = study.test.images[chosen], study.test.labels[chosen]
    names = study.dataset.class_names
    lines = [
        (f"{names[int(label)]}, {variant.share}", list[dict[str, Any]]())
        for label in labels
        for variant in shown
    ]
    for epsilon in PANEL_EPSILONS:
        for place, variant in enumerate(shown):
            made, said = _attacked(study, variant, images, labels, epsilon)
            for row in range(len(images)):
                tile = blocks.tile(made[row], text=names[said[row]])
                lines[row * len(shown) + place][1].append(tile)
    return blocks.pictures(
        lines,
        f"{study.main}, dense and with {pair[-1].share} of its weights, on images that both have "
        "right.",
        columns=[epsilon_label(epsilon) if epsilon else "clean" for epsilon in PANEL_EPSILONS],
    )


def _attacked(
    study: Study, variant: Variant, images: Any, labels: Any, epsilon: float
) -> tuple[np.ndarray, list[int]]:
    """(images, answers) at an epsilon; 0 leaves the image as it is."""
    classifier = study.classifier(variant)
    if epsilon == 0:
        clean = images.astype(np.float32) / np.float32(255)
        return clean, evaluation.logits(classifier, clean).argmax(1).tolist()
    attack = attacking.pgd(epsilon, _PANEL_STEPS)
    report = evaluation.attack_dataset(attack, classifier, images, labels, key=study.key)
    return report.images, report.logits.argmax(1).tolist()
