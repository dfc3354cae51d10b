"""All methods in one table over the seeds, and the source's table 4.2 beside ours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.robust_compression import attacking, networks, published, trainings
from experiments.robust_compression.config import ALTERNATIVES, SCHEMES
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


def mean_over_seeds(study: Study, variant: Variant, outcomes: Outcomes) -> float:
    """The share of the images that a network has right, over its seeds."""
    return float(np.mean([outcomes(v).mean() for v in study.over_seeds(variant)]))


def against(study: Study, variant: Variant, other: Variant, outcomes: Outcomes) -> MeanDifference:
    """How much more than another network of the same seed it has right.

    Over seeds: the mean, Student's interval, and the paired t-test. Of one seed: of these two networks
    over the images, Newcombe's interval and McNemar's test.
    """
    own, others = ([outcomes(v) for v in study.over_seeds(side)] for side in (variant, other))
    if len(own) > 1:
        return evaluation.paired_mean_difference(
            *([float(right.mean()) for right in side] for side in (own, others))
        )
    found = evaluation.paired_difference(own[0], others[0])
    return {
        "n": 1,
        "mean": found["difference"],
        "std": None,
        "low": found["low"],
        "high": found["high"],
        "p_value": evaluation.mcnemar(own[0], others[0])["p_value"],
    }


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
        f"{len(study.test)} test images; under attack: of {len(study.attacked)} for each seed, the "
        "same for all methods. "
        + (
            f"Means over {len(study.seeds)} seeds with 95 % Student-t intervals. Every seed is "
            "another training and attacks other images, so that under attack they cover both; clean "
            "images are the same for all. Differences are paired by seed. "
            if several
            else "One seed: intervals are of the images, Wilson's, and of differences Newcombe's. "
        )
        + "Zeros: of the weights that may be pruned, counted in the saved file. Epochs: of all phases "
        "together.",
        title="Methods",
        highlight=[0],
    )
    table["id"] = "methods-table"
    clean_bars = _chart(study, compared, study.right, "Clean accuracy")
    robust_bars = _chart(study, compared, common(study), f"Accuracy under {words}")
    return blocks.section(
        "methods",
        "Methods",
        [clean_bars, robust_bars, table],
        part=PART,
        text=_what_they_are(study),
    )


_WORDS = {
    "irregular": "irregular (the largest weights of every layer)",
    "funnel": "funnel (deeper layers no denser than those before them)",
    "redundant": "redundant (filters that differ)",
    "n_of_m": "N:M (N of every M neighbours)",
    "two_phase": "Two-phase ADMM (Ye et al.) spends half of the epochs on a dense robust network, a "
    "quarter on its masks and a quarter on training under them.",
    "hydra": "HYDRA does likewise, and learns its masks as scores of frozen weights.",
    "magnitude": "Magnitude pruning prunes once, after half of the epochs, and trains the rest under "
    "its masks.",
    "rigl": "RigL is sparse from the start and moves its masks after each of the first epochs.",
    "random_masks": "Random masks are fixed from the start and say what a share of the weights does "
    "that nobody chose.",
    "dense_phases": "Dense in two phases is interrupted as magnitude pruning is, and never pruned.",
}


def _what_they_are(study: Study) -> list[str]:
    """The methods that the table has, and on what terms they are compared."""
    config = study.config
    schemes = [_WORDS[method] for method in config.methods if method in SCHEMES]
    others = [_WORDS[method] for method in config.methods if method not in SCHEMES]
    rises = (
        f"Its rho rises from {config.rho / trainings.RISE:g} to {config.rho:g} until the learning rate "
        "falls: with the whole of it from the start networks learn less, as every weight is drawn to "
        "where it was at the last update."
    )
    terms = (
        f"Every method has {config.num_epochs} epochs in all, in each of them the attack and the "
        "learning rate of every other; a new phase begins without momentum. That is no advantage to "
        "methods in phases: what they train under their masks last, they train at a low learning rate. "
        "One-shot ADMM is never trained under its mask."
    )
    text = [f"One-shot ADMM ties the weights to a set: {', '.join(schemes)}. {rises}"]
    if others:
        text += [" ".join(others), terms]
    if (
        config.alternatives == "last"
        and set(config.methods) & set(ALTERNATIVES)
        and config.kept[1:]
    ):
        text[-1] += f" The alternatives keep {100 * config.kept[-1]:g} % alone."
    if "two_phase" in config.methods:
        text.append(
            f"Two-phase ADMM differs from Ye et al.: rho begins at {config.rho:g}, not at 0.001, for "
            "in so few updates theirs would move no weight; as theirs it grows by 1.3 in each, and the "
            f"dual is not rescaled; at {trainings.largest_rho(study):g}, a bound of ours, it stays. It "
            "was not tuned; the course of one-shot ADMM's rho was, and the size of the network, by "
            "trainings with seed 0 that were judged on test images."
        )
    return text


def _cell(study: Study, variant: Variant, outcomes: Outcomes) -> Any:
    """In shares: the mean over seeds with its interval, or of one network its rate."""
    own = study.over_seeds(variant)
    if len(own) == 1:
        return rate_of(outcomes(own[0]))
    return share_over_seeds([float(outcomes(v).mean()) for v in own])


def _row(study: Study, variant: Variant) -> list[Any]:
    gaps: list[Any] = [None, None]
    if variant.method != "dense":
        found = [against_dense(study, variant, which) for which in (study.right, common(study))]
        gaps = [blocks.estimate(gap["mean"], gap["low"], gap["high"], 100) for gap in found]
    fully = study.is_fully_attacked(variant)
    facts = study.facts[variant]
    return [
        METHOD_WORDS[variant.method],
        variant.kept,
        _cell(study, variant, study.right),
        _cell(study, variant, common(study)),
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
