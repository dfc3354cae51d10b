"""Accuracy on clean images: the source's tables 1 and 13, with controls."""

from typing import Any

from experiments.pruned_benchmark import comparisons, over_sparsity, published
from experiments.pruned_benchmark.networks import NETWORKS, SHORT
from experiments.pruned_benchmark.study import CRITERION_WORDS, Study, Variant
from experiments.pruned_benchmark.trainings import COMPARED
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of

PART = "accuracy"


def source_accuracy(study: Study, variant: Variant) -> float | None:
    """What the source reports of its relative of a network, as a share; None where nothing."""
    rows = published.ACCURACY.get(study.source_data or "", {}).get(study.family(variant.network))
    if rows is None:
        return None
    if variant.kind == "base":
        return rows["base"] / 100
    if variant.kind not in rows or variant.sparsity not in published.SPARSITIES:
        return None
    return rows[variant.kind][published.SPARSITIES.index(variant.sparsity)] / 100


def section(study: Study) -> dict[str, Any]:
    """Charts, the table with the largest gain and loss, and a table of all for each network."""
    against_base = {c.variant: c for c in comparisons.accuracy(study, "base")}
    against_control = {c.variant: c for c in comparisons.accuracy(study, "control")}
    figure = comparisons.right_figure(study)
    found: list[dict[str, Any]] = [
        over_sparsity.gaps(study, network, f"{network}: accuracy over sparsity", figure)
        for network in study.config.networks
    ]
    found += [_extremes(study), *_over_networks(study)]
    for network in study.config.networks:
        found.append(_table(study, network, against_base, against_control))
    return blocks.section(
        "accuracy-over-sparsity",
        "Accuracy over sparsity",
        found,
        part=PART,
        text=[
            "The source compares pruned networks, which have been fine-tuned, with base networks, "
            "which have not. A control has had the fine-tuning and no pruning: the same images in "
            "the same order, at the same learning rates, under masks that remove nothing. What a "
            "pruned network has more than the base and not more than the control is due to training. "
            "Whole filters are removed: a layer of 8 loses 2 of them at 20 % and at 30 %."
        ],
    )


def _extremes(study: Study) -> dict[str, Any]:
    """The source's max delta and min delta, against the base and against the control."""
    rows = []
    for network in study.config.networks:
        variants = [v for v in comparisons.pruned_variants(study) if v.network == network]
        rates = [_share(study, v) for v in variants]
        base, control = (_share(study, Variant(network, k)) for k in ("base", "control"))
        figures: list[float | None] = [
            100 * (end(rates) - other) for other in (base, control) for end in (max, min)
        ]
        if study.source_data:
            reported = [source_accuracy(study, v) for v in _of_source(network)]
            known = [100 * value for value in reported if value is not None]
            figures += [end(known[1:]) - known[0] if known else None for end in (max, min)]
        rows.append([network, base, control, *figures])
    ours, theirs = "Against the base", "Source, against the base"
    ends = ("max", "min") if study.source_data else ()
    return blocks.table(
        [
            "Network",
            blocks.column("Base", unit="%", decimals=1),
            blocks.column("Control", unit="%", decimals=1),
            blocks.column("max δ", unit="points", decimals=1, group=ours),
            blocks.column("min δ", unit="points", decimals=1, group=ours),
            blocks.column("max δ", unit="points", decimals=1, group="Against the control"),
            blocks.column("min δ", unit="points", decimals=1, group="Against the control"),
            *(blocks.column(f"{end} δ", unit="points", decimals=1, group=theirs) for end in ends),
        ],
        rows,
        "The best and the worst of all pruned networks, as in the source's tables 1 and 13. The best "
        f"of {len(comparisons.pruned_variants(study)) // len(study.config.networks)} is chosen by the "
        "images that it is measured on, which flatters it.",
        title="Largest gain and loss",
    )


def _over_networks(study: Study) -> list[dict[str, Any]]:
    """What pruning changes in all networks together."""
    criteria = study.config.criteria
    groups = {CRITERION_WORDS[criterion]: (criterion,) for criterion in criteria}
    if len(criteria) > 1:
        groups["all of these"] = criteria
    figure = comparisons.right_figure(study)
    rows = {
        words: [comparisons.from_pruning(study, figure, of, s) for s in study.config.sparsities]
        for words, of in groups.items()
    }
    return over_sparsity.together(
        study,
        "Criterion",
        rows,
        f"Accuracy less that of {comparisons.controls_in_words(study)}.",
        unit="points",
    )


def _of_source(network: str) -> list[Variant]:
    """The source's base network and all that it pruned."""
    pruned = [
        Variant(network, criterion, sparsity)
        for criterion in ("l1", "l2", "geometric_median")
        for sparsity in published.SPARSITIES
    ]
    return [Variant(network), *pruned]


def _share(study: Study, variant: Variant) -> float:
    return float(study.right(variant).mean())


def _table(
    study: Study,
    network: str,
    against_base: dict[Variant, comparisons.Comparison],
    against_control: dict[Variant, comparisons.Comparison],
) -> dict[str, Any]:
    rows = []
    whole = study.facts[Variant(network)]["parameters"]
    theirs_of_base = source_accuracy(study, Variant(network))
    for variant in study.variants(network):
        base, control = against_base.get(variant), against_control.get(variant)
        theirs = source_accuracy(study, variant)
        their_gap = None
        if theirs is not None and theirs_of_base is not None and variant.kind != "base":
            their_gap = 100 * (theirs - theirs_of_base)
        rows.append(
            [
                variant.words,
                rate_of(study.right(variant)),
                None if base is None else base.cell,
                None if base is None else base.p_value,
                None if control is None else control.cell,
                None if control is None else control.p_value,
                1 - study.facts[variant]["parameters"] / whole,
                *([theirs, their_gap] if study.source_data else []),
            ]
        )
    words = f"Source, {SHORT[study.family(network)]}"
    source = [
        blocks.column("accuracy", unit="%", decimals=1, group=words),
        blocks.column("points", decimals=1, group=words),
    ]
    return blocks.table(
        [
            "Variant",
            "Accuracy",
            blocks.column("points", decimals=1, group="Against the base"),
            blocks.column("p", decimals=4, group="Against the base"),
            blocks.column("points", decimals=1, group="Against the control"),
            blocks.column("p", decimals=4, group="Against the control"),
            blocks.column("Parameters removed", unit="%", decimals=1),
            *(source if study.source_data else []),
        ],
        rows,
        f"{network}: {NETWORKS[network].words}. Of {len(study.test)} test images. Differences are "
        "paired, with Newcombe's 95 % intervals; p is McNemar's, with Holm's correction over all "
        "networks; 0.0000 is less than 0.00005. The images say nothing of what another training would "
        f"give{': the rows of the other controls do' if study.config.num_controls > 1 else ''}.",
        title=network,
    )


def agreement(study: Study) -> dict[str, Any]:
    """That a shrunk network computes what the masked one did, which was trained."""
    rows = [
        [v.name, study.facts[v]["kept"], study.facts[v]["difference"]]
        for v in comparisons.pruned_variants(study)
    ]
    return blocks.section(
        "shrunk",
        "Shrunk, not masked",
        [
            blocks.table(
                [
                    "Network",
                    blocks.column("Channels kept, coupled ones once", unit="%", decimals=1),
                    blocks.column("Largest difference of a logit", decimals=7),
                ],
                rows,
                "All figures of this report are of networks from which the filters were taken out. "
                f"They were trained under masks; the last column says how far the two differ on "
                f"{COMPARED} test images.",
                title="Each pruned network",
                folded=True,
            )
        ],
        part=PART,
    )
