"""What is drawn and listed over the sparsities: of one network, and of all together."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.pruned_benchmark import comparisons
from experiments.pruned_benchmark.study import CRITERION_WORDS, Study, Variant
from jaxrobust.evaluation.statistics import Mean
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of

NOT_CORRECTED = (
    "Intervals are 95 %, of Student's t over the networks, one training of each, and not corrected for "
    "their number: of 20 one excludes 0 by chance. All are against the same controls."
)


def chart(
    study: Study,
    network: str,
    title: str,
    outcomes: Callable[[Variant], np.ndarray],
    caption: str,
) -> dict[str, Any]:
    """A line for each criterion; base and controls as level lines, the first control with its band.

    Args:
      study: A study whose networks are trained.
      network: The base network's name.
      title: Of the chart.
      outcomes: Of a variant, bool [N]: which images it has right.
      caption: Below the chart, before what the bands are.
    """
    sparsities = list(study.config.sparsities)
    ends = [0.0, sparsities[-1]]
    base = rate_of(outcomes(Variant(network)))["rate"]
    lines = [blocks.line("base", ends, [base, base], dashed=True)]
    for variant in comparisons.controls(study, network):
        rate = rate_of(outcomes(variant))
        values = [rate, rate] if variant.number == 0 else [rate["rate"]] * 2
        lines.append(blocks.line(variant.words, ends, values, dashed=variant.number > 0))
    for criterion in study.config.criteria:
        rates = [rate_of(outcomes(v)) for v in study.pruned(network, criterion)]
        lines.append(blocks.line(CRITERION_WORDS[criterion], sparsities, rates))
    return blocks.chart(
        title,
        "share of the filters to remove",
        "accuracy",
        lines,
        f"{caption} Bands: 95 % intervals over images. Level lines: base and controls, which nothing "
        "was removed from.",
        percent=True,
        percent_x=True,
    )


def gaps(study: Study, network: str, title: str, figure: comparisons.Figure) -> dict[str, Any]:
    """Points against the mean of the controls, a line for each criterion; the base as a level line.

    Args:
      study: A study whose networks are trained.
      network: The base network's name.
      title: Of the chart.
      figure: What is compared, as a share.
    """
    sparsities = list(study.config.sparsities)
    ends = [0.0, sparsities[-1]]
    before = comparisons.mean_of_controls(study, network, figure)

    def gap(variant: Variant) -> float:
        return 100 * (figure(variant) - before)

    noise = comparisons.training_noise(study, figure)
    zero = 0.0 if noise is None else {"value": 0.0, "low": -100 * noise, "high": 100 * noise}
    lines = [
        blocks.line("base", ends, [gap(Variant(network))] * 2, dashed=True),
        blocks.line("mean of the controls", ends, [zero] * 2),
    ]
    for criterion in study.config.criteria:
        points = [gap(variant) for variant in study.pruned(network, criterion)]
        lines.append(blocks.line(CRITERION_WORDS[criterion], sparsities, points))
    band = (
        "" if noise is None else " Band: where one more control would be, in 95 of 100 trainings."
    )
    return blocks.chart(
        title,
        "share of the filters to remove",
        "points against the controls",
        lines,
        f"The controls have {100 * before:.1f} %.{band}",
        percent_x=True,
    )


def together(
    study: Study,
    first: str,
    rows: Mapping[str, Sequence[Mean]],
    caption: str,
    unit: str | None = None,
) -> list[dict[str, Any]]:
    """What pruning changes in all networks together; no table for a single network.

    Args:
      study: Whose sparsities are the columns.
      first: Title of the first column.
      rows: {its words: a mean for each sparsity, as a share}.
      caption: Below the table, before what its intervals are.
      unit: Of the cells.
    """
    if len(study.config.networks) < 2:
        return []
    intervals = NOT_CORRECTED
    if len(study.config.networks) < comparisons.FEWEST:
        intervals = "Two networks are too few for an interval."
    return [
        blocks.table(
            [
                first,
                *(
                    blocks.column(
                        f"{100 * s:g} %", unit=unit, decimals=1, group="Filters to remove"
                    )
                    for s in study.config.sparsities
                ),
            ],
            [
                [words, *(blocks.estimate(m["mean"], m["low"], m["high"], 100) for m in means)]
                for words, means in rows.items()
            ],
            f"{caption} {intervals}",
            title="All networks together",
        )
    ]
