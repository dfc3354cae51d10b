"""The source's two claims, and what the figures say of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.pruned_benchmark import comparisons, published, threats
from experiments.pruned_benchmark.comparisons import Comparison
from experiments.pruned_benchmark.study import CRITERION_WORDS, Study
from jaxrobust.evaluation.statistics import Mean
from jaxrobust.studies import blocks

MARGIN = 0.01  # of "unchanged": the source's own, plus or minus one point


def verdicts(study: Study) -> list[dict[str, Any]]:
    """Accuracy, robustness to the base network's images, robustness to attacks of one's own."""
    return [_accuracy(study), _shown(study), _white_box(study)]


def tally(found: Sequence[Comparison]) -> tuple[int, int, int, int]:
    """(more often right, less often right, shown to be within the margin, undecided)."""
    up = sum(c.direction > 0 for c in found)
    down = sum(c.direction < 0 for c in found)
    same = sum(c.direction == 0 and c.within(MARGIN) for c in found)
    return up, down, same, len(found) - up - down - same


def rises(found: Sequence[Comparison]) -> str:
    """Whether accuracy rises, in a few words."""
    up, down, _, _ = tally(found)
    if up == len(found) and found:
        return "yes"
    if up:
        return f"in {up} of {len(found)} cases" + (f", in {down} it falls" if down else "")
    if down:
        return "no, it falls" if down == len(found) else f"no, in {down} of {len(found)} it falls"
    return "not shown"


def unchanged(found: Sequence[Comparison]) -> str:
    """Whether robustness stays what it is, in a few words."""
    up, down, same, _ = tally(found)
    if not found:
        return "not measured, as no image is right without an attack"
    if up + down:
        return f"no, more often in {up} of {len(found)} cases, less in {down}"
    return "yes, within a point" if same == len(found) else "no change is shown"


def _counted(found: Sequence[Comparison]) -> str:
    up, down, same, undecided = tally(found)
    return (
        f"of {len(found)} cases {up} more often right, {down} less often, {same} the same within a "
        f"point, {undecided} undecided; mean change {_mean(found)}"
    )


def _accuracy(study: Study) -> dict[str, Any]:
    base = comparisons.accuracy(study, "base")
    control = comparisons.accuracy(study, "control")
    noise = comparisons.between_controls(study)
    details = (
        f"Against the base network the mean change is {_mean(base)}; against the control, which has "
        f"had the same fine-tuning, {_mean(control)}, from {_extreme(control, min)} to "
        f"{_extreme(control, max)}."
    )
    ends = (study.config.sparsities[0], study.config.sparsities[-1])
    if len(study.config.networks) > 1:
        gaps = comparisons.over_networks(study)
        for sparsity in dict.fromkeys(ends):
            words = [
                f"{CRITERION_WORDS[criterion]} {_with_interval(gaps[criterion, sparsity])}"
                for criterion in study.config.criteria
            ]
            details += (
                f" Over the networks together, against the mean of their controls, at "
                f"{100 * sparsity:g} %: {', '.join(words)} points."
            )
    if noise:
        largest = max(abs(c.difference) for c in noise)
        details += (
            " Controls that saw the images in another order differ among themselves by up to "
            f"{100 * largest:.1f} points: a smaller difference is that of a training."
        )
    return blocks.verdict(
        "Does pruning raise accuracy?",
        f"Against the base network: {rises(base)}. Against the control: {rises(control)}.",
        f"McNemar on {len(study.test)} test images, Holm over {len(control)} pruned networks, one "
        f"training of each. The source has no control: it compares base networks of "
        f"{study.config.num_epochs} epochs with pruned ones that had more.",
        [("accuracy over sparsity", "accuracy-over-sparsity")],
        details=details,
    )


def _shown(study: Study) -> dict[str, Any]:
    words, details = [], []
    for setting in threats.SETTINGS:
        name = "With the source's parameters" if setting == "source" else f"At {setting}"
        for kind in ("control", "base"):
            found = comparisons.shown(study, setting, threats.NAMES[:7], kind)
            if kind == "control":
                words.append(f"{name}: {unchanged(found)}.")
            details.append(f"{name}, against the {kind}: {_counted(found)}.")
    within = [
        f"{kept} of {total} on {dataset.replace('cifar', 'CIFAR-')}"
        for dataset, (kept, total) in source_within().items()
    ]
    return blocks.verdict(
        "Have pruned networks the base network's images right as often as the control?",
        " ".join(words),
        "Of the images that both networks have right without an attack (McNemar, Holm over all attacks "
        "and networks of a comparison). The images are the base network's worst, and not another's: "
        "against it the source compares, against the control is pruning alone. Within a point: the "
        "whole 95 % interval is. The source says that its max δ are mostly within ±1; in its tables "
        f"{' and '.join(within)} are.",
        [("with the source's parameters", "shown-source"), ("at 8/255", "shown-8-255")],
        details=" ".join(details),
    )


def _white_box(study: Study) -> dict[str, Any]:
    found = comparisons.white_box(study, threats.WHITE_BOX)
    words, details = [], []
    for name in threats.WHITE_BOX:
        cases = [c for c in found if c.attack == name]
        words.append(f"{name}: {unchanged(cases)}.")
        left = [study.white_box[v][name].mean() for v in comparisons.pruned_variants(study)]
        details.append(
            f"{name}: {_counted(cases)}; it leaves pruned networks {100 * np.mean(left):.1f} % of the "
            "images on average."
        )
    return blocks.verdict(
        "Are pruned networks right as often as the control under attacks made on each?",
        " ".join(words),
        "White box, pruned against control, of the images that both have right without an attack "
        "(McNemar, Holm over all attacks and networks). Where nearly nothing is left, no change "
        "can show. The source has no such attack.",
        [("attacks made on the pruned networks themselves", "white-box")],
        details=" ".join(details),
    )


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


def _mean(found: Sequence[Comparison]) -> str:
    if not found:
        return "none measured"
    return f"{100 * float(np.mean([c.difference for c in found])):+.1f} points"


def _with_interval(gap: Mean) -> str:
    words = f"{100 * gap['mean']:+.1f}"
    if gap["low"] is None or gap["high"] is None:
        return words
    return f"{words} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


def _extreme(found: Sequence[Comparison], which: Any) -> str:
    chosen = which(found, key=lambda c: c.difference)
    return f"{100 * chosen.difference:+.1f} ({chosen.variant.name})"
