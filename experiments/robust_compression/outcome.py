"""All methods in one table over the seeds, and the source's table 4.2 beside ours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.robust_compression import attacking, networks, published, trainings
from experiments.robust_compression.shares import share_over_seeds
from experiments.robust_compression.study import METHOD_WORDS, Study, Variant
from jaxrobust import evaluation
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.evaluation.statistics import MeanDifference
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of

PART = "outcome"
# Variant -> which images it has right, bool [N].
Outcomes = Callable[[Variant], np.ndarray]


def sections(study: Study) -> list[dict[str, Any]]:
    """The methods, the cumulative columns of AutoAttack."""
    return [methods(study), table_4_2(study)]


def common(study: Study) -> Outcomes:
    """Of the attacked images, those left after the attacks that all networks meet."""
    name = attacking.common_attack(study)
    return lambda variant: study.standing(variant, name)


def most(study: Study) -> Outcomes:
    """`common`, of more images where the network met these attacks on more."""
    name = attacking.common_attack(study)
    return lambda variant: study.standing_of_more(variant, name)


def mean_over_seeds(study: Study, variant: Variant, outcomes: Outcomes) -> float:
    """The share of the images that a network has right, over its seeds."""
    return float(np.mean([outcomes(v).mean() for v in study.over_seeds(variant)]))


def against(study: Study, variant: Variant, other: Variant, outcomes: Outcomes) -> MeanDifference:
    """How much more than another network of the same seed it has right, over seeds."""
    sides = [
        [float(outcomes(v).mean()) for v in study.over_seeds(side)] for side in (variant, other)
    ]
    return evaluation.paired_mean_difference(*sides)


def against_dense(study: Study, variant: Variant, outcomes: Outcomes) -> MeanDifference:
    """`against` the dense network of its kind."""
    dense = Variant(variant.network, radius=variant.radius, seed=variant.seed)
    return against(study, variant, dense, outcomes)


def methods(study: Study) -> dict[str, Any]:
    """Every method at every share: means over seeds, and differences to the dense network."""
    compared = study.compared(study.seeds[0])
    rows = [_row(study, variant) for variant in compared]
    several = len(study.seeds) > 1
    words = " and ".join(attacking.first_two(study))
    table = blocks.table(
        [
            "Method",
            blocks.column("Kept", unit="%", decimals=1),
            blocks.column("Clean", unit="%", decimals=1),
            blocks.column(words, unit="%", decimals=1, group="Right under attack"),
            blocks.column("all of AutoAttack", unit="%", decimals=1, group="Right under attack"),
            blocks.column("clean", unit="points", decimals=1, group="Against dense"),
            blocks.column("under attack", unit="points", decimals=1, group="Against dense"),
            blocks.column("Zeros in the file", unit="%", decimals=2),
            blocks.column("Epochs", decimals=0),
        ],
        rows,
        f"{study.main}, {networks.NETWORKS[study.main].words}; attacked at 8/255. Clean: of all "
        f"{len(study.test)} test images; under attack: of {len(study.attacked)} "
        f"for each seed, others for each; of {sum(map(len, study.attacked_by(study.seeds[0])))} for "
        f"{words} on dense networks and the irregular scheme. "
        + (
            f"Means over {len(study.seeds)} seeds with 95 % Student-t intervals. Every seed is "
            "another training and attacks other images, so that under attack they cover both; clean "
            "images are the same for all. Differences are paired by seed. "
            if several
            else "One seed: intervals of single networks are Wilson's, and differences have none. "
        )
        + "Zeros: of the weights that may be pruned, counted in the saved file. Epochs: of all phases "
        "together.",
        title="Methods",
        highlight=[0],
    )
    table["id"] = "methods-table"
    clean_bars = _chart(study, compared, study.right, "Clean accuracy")
    robust_bars = _chart(study, compared, most(study), f"Accuracy under {words}")
    return blocks.section(
        "methods",
        "Methods",
        [clean_bars, robust_bars, table],
        part=PART,
        text=[
            "One-shot ADMM with four sets: irregular (the largest weights of every layer), funnel "
            "(deeper layers no denser than those before them), redundant (filters that differ), N:M "
            "(N of every M neighbours; for 10 % it is 1 of 8). Two-phase ADMM (Ye et al.), HYDRA and "
            "magnitude pruning begin with the same robust network of half of the epochs; the first two "
            "spend a quarter on their masks and a quarter on fine-tuning under them. RigL moves its "
            "masks as it trains; random masks, fixed from the start, are the control of all; dense in "
            "two phases, interrupted as magnitude pruning is and never pruned, that of the others in "
            f"phases. Every method has {study.config.num_epochs} epochs in all, in each of them the "
            "attack and the learning rate of every other; a new phase begins without momentum.",
            f"Two-phase ADMM differs from Ye et al.: rho begins at {study.config.rho:g}, not at 0.001, "
            "for in so few updates theirs would move no weight; as theirs it grows by 1.3 in each, and "
            f"the dual is not rescaled; at {trainings.largest_rho(study):g} it stays: beyond, steps "
            "of this learning rate would grow unstable. N:M keeps 1 of 8 for a tenth, and redundant "
            "whole filters: a tenth of 16 are 2. Both are 12.5 %.",
        ],
    )


def _cell(study: Study, variant: Variant, outcomes: Outcomes) -> Any:
    """In shares: the mean over seeds with its interval, or of one network its rate."""
    own = study.over_seeds(variant)
    if len(own) == 1:
        return rate_of(outcomes(own[0]))
    return share_over_seeds([float(outcomes(v).mean()) for v in own])


def _row(study: Study, variant: Variant) -> list[Any]:
    gaps: list[Any] = [None, None]
    if variant.method != "dense":
        # Of the same images on both sides.
        robust = most(study) if variant in study.more else common(study)
        found = [against_dense(study, variant, which) for which in (study.right, robust)]
        gaps = [blocks.estimate(gap["mean"], gap["low"], gap["high"], 100) for gap in found]
    fully = study.is_fully_attacked(variant)
    facts = study.facts[variant]
    return [
        METHOD_WORDS[variant.method],
        variant.kept,
        _cell(study, variant, study.right),
        _cell(study, variant, most(study)),
        _cell(study, variant, study.standing) if fully else None,
        *gaps,
        facts["zeros"] / facts["weights"],
        facts["epochs"],
    ]


def _chart(study: Study, compared: list[Variant], outcomes: Outcomes, title: str) -> dict[str, Any]:
    """Dots with intervals, a block for each share kept."""
    groups: dict[str, list[dict[str, Any]]] = {}
    dense = compared[0]
    for variant in compared[1:]:
        if variant.kept == 1:  # the control, in the table
            continue
        distances = {abs(kept - variant.kept): kept for kept in study.config.kept}
        kept = distances[min(distances)]
        label = f"{100 * kept:g} % kept"
        if label not in groups:
            groups[label] = [{"name": "dense", "value": _bounds(_cell(study, dense, outcomes))}]
        value = _bounds(_cell(study, variant, outcomes))
        groups[label].append({"name": METHOD_WORDS[variant.method], "value": value})
    return {
        "kind": "intervals",
        "title": title,
        "percent": True,
        "groups": [{"name": name, "items": items} for name, items in groups.items()],
        "caption": "Intervals as in the table below.",
    }


def table_4_2(study: Study) -> dict[str, Any]:
    """What every attack of AutoAttack and those before it left, the source's figures below ours."""
    names = list(attacking.suite_of(study, Variant(study.main)))
    with_source = study.dataset.name in ("cifar10", "cifar10_jpeg")
    rows: list[list[Any]] = []
    groups: dict[str, list[dict[str, Any]]] = {}
    shown: list[str] = []  # of the source's networks
    for network in study.config.networks:
        family = networks.NETWORKS[network].source
        for radius in study.radii_of(network):
            for variant in study.pair(network, radius):
                left = [rate_of(study.standing(variant, name)) for name in names]
                words = f"{network}, {variant.share}, {epsilon_label(radius)}"
                rows.append([words, study.accuracy(variant), *left])
                if radius == study.config.radii[0]:
                    stages = zip(
                        ("no attack", *names), (_attacked_clean(study, variant), *left), strict=True
                    )
                    groups[words] = [
                        {"name": name, "value": _bounds(rate)} for name, rate in stages
                    ]
        if with_source and family not in shown:
            shown.append(family)
            for radius, by_share in published.AUTO_ATTACK[family].items():
                for kept, row in by_share.items():
                    share = "dense" if kept == 1 else f"{100 * kept:g} %"
                    figures = [value / 100 for value in row]
                    rows.append([f"source's {family}, {share}, {radius:g}", *figures])
    theirs_are = (
        f"The source's four columns are {', '.join(published.COLUMNS[1:])}, with 5 starts, on the "
        "original CIFAR-10; ours are those of AutoAttack's standard version, whose APGD-T and FAB-T "
        "look for every target class and find more."
        if with_source
        else ""
    )
    return blocks.section(
        "autoattack",
        "AutoAttack, attack by attack",
        [
            {
                "kind": "intervals",
                "title": "What is left after each attack and those before it",
                "percent": True,
                "bars": True,
                "groups": [{"name": name, "items": items} for name, items in groups.items()],
                "caption": f"Of {len(study.attacked)} test images, one network each (seed "
                f"{study.seeds[0]}); Wilson's 95 % intervals.",
            },
            blocks.table(
                [
                    "Network, share kept, epsilon of training",
                    blocks.column("No attack", unit="%", decimals=1),
                    *(blocks.column(name, unit="%", decimals=1) for name in names),
                ],
                rows,
                f"Epsilon 8/255. No attack: of all {len(study.test)} test images; columns of attacks, "
                f"each after those before it: of {len(study.attacked)}. One network each (seed "
                f"{study.seeds[0]}). {theirs_are}",
                title="Table 4.2",
            ),
        ],
        part=PART,
    )


def _attacked_clean(study: Study, variant: Variant) -> evaluation.Rate:
    """Of the attacked images, those right when clean."""
    return study.suites[variant]["clean_accuracy"]


def _bounds(cell: Any) -> dict[str, Any]:
    """A rate, an estimate or a number as the item of a chart."""
    if not isinstance(cell, dict):
        return {"value": cell, "low": None, "high": None}
    return {"value": cell.get("rate", cell.get("value")), "low": cell["low"], "high": cell["high"]}
