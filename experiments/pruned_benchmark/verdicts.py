"""The source's two claims, and what the figures say of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.pruned_benchmark import comparisons, published, threats
from experiments.pruned_benchmark.comparisons import Comparison
from experiments.pruned_benchmark.robustness import WHITE_BOX
from experiments.pruned_benchmark.study import Study
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
        return "Yes"
    if up and not down:
        return f"In {up} of {len(found)} cases"
    if up:
        return f"In {up} of {len(found)} cases; in {down} it falls"
    return "No: it falls" if down == len(found) and found else "Not shown"


def unchanged(found: Sequence[Comparison]) -> str:
    """Whether robustness stays what it is, in a few words."""
    up, down, same, undecided = tally(found)
    if not found:
        return "Not measured: no image is right without an attack."
    if not up + down:
        if same == len(found):
            return "Yes, within a point everywhere."
        return (
            f"No change is shown; within a point for certain in {same} of {len(found)} cases, too few "
            f"images to tell in {undecided}."
        )
    return (
        f"No: beyond chance less robust in {down} of {len(found)} cases, more robust in {up}; within a "
        f"point in {same}, undecided in {undecided}."
    )


def _accuracy(study: Study) -> dict[str, Any]:
    base = comparisons.accuracy(study, "base")
    control = comparisons.accuracy(study, "control")
    noise = comparisons.between_controls(study)
    details = (
        f"Against the base network: {rises(base)[0].lower()}{rises(base)[1:]}; mean change "
        f"{_mean(base)}. Against the control, which has had the same fine-tuning: mean change "
        f"{_mean(control)}, from {_extreme(control, min)} to {_extreme(control, max)}."
    )
    if noise:
        largest = max(abs(c.difference) for c in noise)
        details += (
            f" Controls that saw the images in another order differ from it by up to "
            f"{100 * largest:.1f} points: a smaller difference is that of a training."
        )
    return blocks.verdict(
        "Does pruning raise accuracy?",
        f"Of the pruning: {rises(control)[0].lower()}{rises(control)[1:]}.",
        f"McNemar on {len(study.test)} test images, Holm over {len(control)} pruned networks, one "
        "training of each. The source has no control: it compares with base networks of "
        f"{study.config.num_epochs} epochs what had {study.config.fine_tuning_epochs} more.",
        [("accuracy over sparsity", "accuracy-over-sparsity")],
        details=details,
    )


def _shown(study: Study) -> dict[str, Any]:
    words, details = [], []
    for setting in threats.SETTINGS:
        found = comparisons.shown(study, setting, threats.NAMES[:7])
        name = "the source's parameters" if setting == "source" else "8/255"
        words.append(f"At {name}: {_lower(unchanged(found))}")
        details.append(f"At {name} the mean change is {_mean(found)}")
    answer = " ".join(words)
    kept, total = _source_within()
    return blocks.verdict(
        "Do pruned networks stand up to the base network's images as before?",
        answer,
        "Pruned against control, of the images that both have right without an attack (McNemar, Holm "
        "over all attacks and networks of a setting). 'Within a point': the whole 95 % interval lies "
        f"within the source's own ±1. In the source's tables of these attacks {kept} of {total} max δ "
        "lie within ±1.",
        [("with the source's parameters", "shown-source"), ("at 8/255", "shown-8-255")],
        details="; ".join(details) + ".",
    )


def _white_box(study: Study) -> dict[str, Any]:
    found = comparisons.white_box(study, WHITE_BOX)
    by_attack = {name: [c for c in found if c.attack == name] for name in WHITE_BOX}
    left = {
        name: np.mean([study.white_box[c.variant][name].mean() for c in cases]) if cases else 0.0
        for name, cases in by_attack.items()
    }
    answer = " ".join(f"{name}: {_lower(unchanged(cases))}" for name, cases in by_attack.items())
    details = "; ".join(
        f"{name} leaves pruned networks {100 * left[name]:.1f} % of the images on average, mean change "
        f"to the control {_mean(cases)}"
        for name, cases in by_attack.items()
    )
    return blocks.verdict(
        "Are pruned networks as robust to attacks made on themselves?",
        answer,
        "White box, pruned against control, of the images that both have right without an attack "
        "(McNemar, Holm over both attacks and all networks). The source has no such attack.",
        [("attacks made on the pruned networks themselves", "white-box")],
        details=f"{details}. Where nearly nothing is left, no change can show.",
    )


def _source_within() -> tuple[int, int]:
    """How many of the source's largest changes lie within a point, of its seven attacks' cells."""
    gaps = [
        max(row[1:]) - row[0]
        for tables in published.UNDER_ATTACK.values()
        for networks in tables.values()
        for attacks in networks.values()
        for row in attacks.values()
    ]
    # To the first decimal, in which they are printed.
    return sum(abs(round(gap, 2)) <= 1.0 for gap in gaps), len(gaps)


def _mean(found: Sequence[Comparison]) -> str:
    if not found:
        return "none measured"
    return f"{100 * float(np.mean([c.difference for c in found])):+.1f} points"


def _extreme(found: Sequence[Comparison], which: Any) -> str:
    chosen = which(found, key=lambda c: c.difference)
    return f"{100 * chosen.difference:+.1f} ({chosen.variant.name})"


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]
