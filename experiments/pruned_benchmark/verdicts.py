"""The source's two claims, and what the figures say of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.pruned_benchmark import comparisons, published, threats
from experiments.pruned_benchmark.comparisons import Figure
from experiments.pruned_benchmark.study import CRITERION_WORDS, Study
from jaxrobust.evaluation.statistics import Mean
from jaxrobust.studies import blocks

FLOOR = 0.02  # of the images: where the controls have so few left, nothing can be seen


def verdicts(study: Study) -> list[dict[str, Any]]:
    """Accuracy, robustness to the base network's images, robustness to attacks of one's own."""
    return [_accuracy(study), _shown(study), _white_box(study)]


def effect(means: Mapping[float, Mean]) -> str:
    """What pruning does to a figure, in words.

    Args:
      means: {sparsity: what pruned networks have more than controls, as a share}.
    """
    if any(mean["n"] < comparisons.FEWEST for mean in means.values()):
        gaps = [mean["mean"] for mean in means.values()]
        ends = dict.fromkeys(f"{100 * end:+.1f}" for end in (min(gaps), max(gaps)))
        return f"{' to '.join(ends)} points, of too few networks to say more"
    rises = [s for s, mean in means.items() if _direction(mean) > 0]
    falls = [s for s, mean in means.items() if _direction(mean) < 0]
    rest = [s for s in means if s not in (*rises, *falls)]
    words = []
    for verb, found in (("it rises", rises), ("it falls", falls)):
        if found:
            points = ", ".join(_points(means[s]) for s in found)
            words.append(f"{verb} at {_percents(found)}, by {points} points")
    if rest:
        largest = max((means[s] for s in rest), key=lambda mean: abs(mean["mean"]))
        words.append(f"no change is shown at {_percents(rest)} (at most {_points(largest)})")
    return "; ".join(words)


def source_within() -> dict[str, tuple[int, int]]:
    """Of the source's largest changes by attack and network, those within a point; and of how many."""
    found = {}
    for dataset, tables in published.UNDER_ATTACK.items():
        rows = [
            row
            for by_network in tables.values()
            for by_attack in by_network.values()
            for row in by_attack.values()
        ]
        # To the second decimal, in which they are printed at most.
        gaps = [round(max(row[1:]) - row[0], 2) for row in rows]
        found[dataset] = (sum(abs(gap) <= 1 for gap in gaps), len(gaps))
    return found


def _accuracy(study: Study) -> dict[str, Any]:
    figure = comparisons.right_figure(study)
    trained = comparisons.from_fine_tuning(study, figure)
    details = [_each(study, figure)]
    details += [
        f"{CRITERION_WORDS[criterion]}: {effect(_means(study, figure, (criterion,)))}."
        for criterion in study.config.criteria
        if len(study.config.criteria) > 1
    ]
    return blocks.verdict(
        "Does pruning raise accuracy?",
        f"Fine-tuning without pruning changes it by {_points(trained)} points against the base "
        "network, with which the source compares. What pruning adds to that: "
        f"{effect(_means(study, figure, study.config.criteria))}.",
        f"{_method(study)} {len(study.test):,} test images. The source has no control: it compares "
        "base networks of 10 epochs with pruned ones that had more.",
        [("accuracy over sparsity", "accuracy-over-sparsity")],
        details=" ".join(details),
    )


def _shown(study: Study) -> dict[str, Any]:
    words, details = [], []
    for setting in threats.SETTINGS:
        title = threats.words(setting) if setting == "source" else f"attacks at {setting}"
        means: dict[str, dict[float, Mean]] = {}
        gone = []
        for name in threats.ATTACKS:
            figure = comparisons.shown_figure(study, setting, name)
            if not _left(study, figure) >= FLOOR:  # nor where there is no image to be right on
                gone.append(name)
            else:
                means[name] = _means(study, figure, study.config.criteria)
        seen = [mean for by_sparsity in means.values() for mean in by_sparsity.values()]
        nothing = f"; {_and(gone)} leave the controls next to nothing" if gone else ""
        words.append(f"With the {title}: {_tally(seen)}{nothing}.")
        last = study.config.sparsities[-1]
        shares = ", ".join(f"{name} {_points(found[last])}" for name, found in means.items())
        if shares:
            details.append(f"{title.capitalize()}, points at {100 * last:g} %: {shares}.")
    within = [
        f"{kept} of {total} on {dataset.replace('cifar', 'CIFAR-')}"
        for dataset, (kept, total) in source_within().items()
    ]
    return blocks.verdict(
        "Have pruned networks the base network's images right as often as the controls?",
        _shortened(study) + " ".join(words),
        f"{_method(study)} Of the images that the base network has right without an attack. They are "
        "the base network's worst, and not another's: being right on them is no robustness to an "
        "attack. The source compares with the base and says that its max δ are mostly within ±1; in "
        f"its tables {' and '.join(within)} are.",
        [("with the source's parameters", "shown-source"), ("at 8/255", "shown-8-255")],
        details=" ".join(details),
    )


def _white_box(study: Study) -> dict[str, Any]:
    words, details, gone = [], [], []
    for name in threats.WHITE_BOX:
        figure = comparisons.white_box_figure(study, name)
        left = _left(study, figure)
        if left < FLOOR:
            gone.append(f"{name} ({100 * left:.1f} %)")
            continue
        words.append(
            f"{name} leaves the controls {100 * left:.1f} %; with pruning "
            f"{effect(_means(study, figure, study.config.criteria))}."
        )
        details.append(f"{name}: {_each(study, figure)}")
    if gone:
        words.append(
            f"Nothing can be seen where the controls have next to nothing left: {_and(gone)}."
        )
    return blocks.verdict(
        "Are pruned networks right as often as the controls under attacks made on each?",
        _shortened(study) + " ".join(words),
        f"White box. {_method(study)} Of all {len(study.attacked)} images: what a network has wrong "
        "without an attack counts. The source has no such attack.",
        [("attacks made on the pruned networks themselves", "white-box")],
        details=" ".join(details),
    )


def _means(study: Study, figure: Figure, criteria: Sequence[str]) -> dict[float, Mean]:
    return {
        sparsity: comparisons.from_pruning(study, figure, criteria, sparsity)
        for sparsity in study.config.sparsities
    }


def _left(study: Study, figure: Figure) -> float:
    """A figure's mean over all controls."""
    controls = [v for n in study.config.networks for v in comparisons.controls(study, n)]
    return float(np.mean([figure(control) for control in controls]))


def _shortened(study: Study) -> str:
    """What stands before an answer that attacks of too few steps give."""
    return "" if study.config.max_steps is None else "Shortened attacks, no answer. "


def _method(study: Study) -> str:
    config = study.config
    criteria = _and([CRITERION_WORDS[criterion] for criterion in config.criteria])
    words = (
        f"Pruned networks ({criteria}) less {comparisons.controls_in_words(study)} that had the same "
        "fine-tuning"
    )
    if len(config.networks) < comparisons.FEWEST:
        return f"{words}."
    return (
        f"{words}, mean over {len(config.networks)} networks, with 95 % intervals of Student's t over "
        "the networks; not corrected: of 20 such intervals one excludes no change by chance."
    )


def _each(study: Study, figure: Figure) -> str:
    """Which networks differ from their controls by more than another training would."""
    noise = comparisons.training_noise(study, figure)
    if noise is None:
        return "With so few controls what another training would change is not known."
    words = []
    for network, (above, below, number) in comparisons.beyond_noise(study, figure, noise).items():
        counts = [
            f"{count} {where}" for count, where in ((above, "above"), (below, "below")) if count
        ]
        if counts:
            words.append(f"{network} {' and '.join(counts)} of {number}")
    beyond = f"beyond that are {'; '.join(words)}" if words else "none is beyond that"
    return (
        f"One more control would be within {100 * noise:.1f} points of the mean of the others (95 %; "
        "of 20 one is not, and other test images are not counted in). Of the pruned networks, one "
        f"training each, {beyond}."
    )


def _tally(means: Iterable[Mean]) -> str:
    """How many of several changes are shown."""
    means = list(means)
    if any(mean["n"] < comparisons.FEWEST for mean in means):
        return "too few networks for intervals"
    up = sum(_direction(mean) > 0 for mean in means)
    down = sum(_direction(mean) < 0 for mean in means)
    if not means:
        return "nothing to compare"
    if not up + down:
        return f"no change is shown in any of {len(means)} cases"
    return f"of {len(means)} cases more often in {up}, less often in {down}"


def _direction(mean: Mean) -> int:
    """1 where the whole interval is above 0, -1 where it is below, else 0."""
    return int((mean["low"] or 0) > 0) - int((mean["high"] or 0) < 0)


def _points(mean: Mean) -> str:
    words = f"{100 * mean['mean']:+.1f}"
    if mean["low"] is None or mean["high"] is None:
        return words
    return f"{words} ({100 * mean['low']:+.1f} to {100 * mean['high']:+.1f})"


def _percents(sparsities: Sequence[float]) -> str:
    return f"{_and([f'{100 * sparsity:g}' for sparsity in sparsities])} %"


def _and(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
