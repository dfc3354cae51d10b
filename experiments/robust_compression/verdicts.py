"""What the source says, and what the figures say of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.robust_compression import attacking, further, outcome, published, trained
from experiments.robust_compression.config import ALTERNATIVES, CONTROL, SCHEMES
from experiments.robust_compression.study import METHOD_WORDS, Study, Variant
from experiments.robust_compression.trainings import PHASED
from jaxrobust import evaluation
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.evaluation.statistics import MeanDifference
from jaxrobust.studies import blocks

MARGIN = 0.03  # what compression may cost, in shares of the images
RANDOM = "random_masks"
LOSS = 1 / 3  # a network that loses more than this of the dense one's accuracy has collapsed


def verdicts(study: Study) -> list[dict[str, Any]]:
    """Margins, collapse, sparsity, schemes, alternatives, transfer, combination, weights, time."""
    found = [_margin(study, kept) for kept in study.config.kept]
    found += [_collapse(study), _sparsity(study)]
    others = [method for method in study.config.methods if method != "irregular"]
    schemes = [method for method in others if method in SCHEMES]
    alternatives = [m for m in others if m in ALTERNATIVES and m != RANDOM]
    if schemes:
        question = "Is the irregular scheme the best of ADMM's?"
        found.append(_against(study, schemes, question))
    if alternatives:
        question = "Does one-shot ADMM do as well as the alternatives, at as many epochs?"
        found.append(_against(study, alternatives, question))
    if RANDOM in others:
        found.append(_against(study, [RANDOM], "Is one-shot ADMM better than random masks?"))
    return found + further.verdicts(study)


def within(gap: MeanDifference, margin: float) -> str:
    """Whether a network keeps within a margin below another, in a few words.

    Args:
      gap: Of shares, compressed less dense, over seeds; n is 1 where it is of one over images.
      margin: What it may lose.
    """
    mean, low, high = gap["mean"], gap["low"], gap["high"]
    if low is None or high is None:
        return "not tested"
    if low >= -margin:
        return "yes, the whole interval"
    if high < -margin:
        return "no, the whole interval is below"
    if gap["n"] == 1:
        return "undecided"
    return (
        "on average yes, not beyond doubt" if mean >= -margin else "on average no, not beyond doubt"
    )


def has_collapsed(dense: Sequence[float], compressed: Sequence[float]) -> bool:
    """Whether any accuracy of a compressed network is less than two thirds of the dense one's.

    Args:
      dense: Accuracies, clean and under attack.
      compressed: The same of the compressed network.

    Example:
      >>> has_collapsed((0.7725, 0.439), (0.667, 0.380)), has_collapsed((0.799, 0.408), (0.404, 0.240))
      (False, True)
    """
    return any(c < (1 - LOSS) * d for d, c in zip(dense, compressed, strict=True))


def compare(gaps: dict[str, MeanDifference]) -> str:
    """Who is ahead of whom, in a few words.

    Args:
      gaps: {name: irregular less the other, over seeds}.
    """
    if not gaps:
        return "nothing to compare"
    p_values = [1.0 if g["p_value"] is None else g["p_value"] for g in gaps.values()]
    adjusted = dict(zip(gaps, evaluation.holm(p_values), strict=True))
    sure = {name: np.sign(gaps[name]["mean"]) for name, p in adjusted.items() if p < 0.05}
    ahead = [name for name, gap in gaps.items() if gap["mean"] > 0]
    if len(gaps) == 1:
        which = "ahead" if ahead else "not ahead"
        return f"{which}, {'beyond chance' if sure else 'no difference beyond chance'}"
    words = f"ahead of {len(ahead)} of {len(gaps)} on average"
    proven = [name for name, sign in sure.items() if sign > 0]
    behind = [name for name, sign in sure.items() if sign < 0]
    if proven:
        words += f", beyond chance of {', '.join(proven)}"
    if behind:
        words += f", beyond chance behind {', '.join(behind)}"
    return words if proven or behind else f"{words}, no difference beyond chance"


def _points(gap: Any) -> str:
    words = f"{100 * gap['mean']:+.1f}"
    if gap["low"] is None:
        return f"{words} points"
    return f"{words} points ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"


def _sure(study: Study) -> str:
    if len(study.seeds) == 1:
        return (
            "One training of each, 95 % intervals over the images (Newcombe): what another training "
            "would give is not known."
        )
    return (
        f"Differences paired over {len(study.seeds)} seeds, 95 % Student-t intervals; every seed "
        "attacks other test images."
    )


def _margin(study: Study, kept: float) -> dict[str, Any]:
    answers, details = [], []
    for network in study.config.networks:
        radius = study.config.radii[0]
        variant = Variant(network, "irregular", kept, radius, study.seeds[0])
        for measure, outcomes in (("Clean", study.right), ("AutoAttack", study.standing)):
            name = f"{network}, {measure}" if len(study.config.networks) > 1 else measure
            gap = outcome.against_dense(study, variant, outcomes)
            answers.append(f"{name}: {within(gap, MARGIN)}.")
            details.append(f"{name} {_points(gap)}.")
    return blocks.verdict(
        f"Does one-shot ADMM with {100 * kept:g} % of the weights stay within "
        f"{100 * MARGIN:g} points of the dense robust network?",
        " ".join(answers),
        _sure(study)
        + " The other networks have one seed: theirs are intervals over the images."
        * (len(study.seeds) > 1 and len(study.config.networks) > 1),
        [("methods", "methods"), ("attack by attack", "autoattack")],
        details=" ".join([*details, *_source_loses(kept)]),
    )


def _source_loses(kept: float) -> list[str]:
    """What the source's networks lose, clean and under AutoAttack; [] where it has none so small."""
    found = []
    for network, by_radius in published.AUTO_ATTACK.items():
        for radius, rows in sorted(by_radius.items()):
            if kept in rows:
                clean, left = (rows[1.0][place] - rows[kept][place] for place in (0, -1))
                found.append(f"{network} trained at {radius:g} {clean:.1f} and {left:.1f}")
    if not found:
        return []
    return [f"In the source's table 4.2 points lost, clean and attacked: {', '.join(found)}."]


def _collapse(study: Study) -> dict[str, Any]:
    answers, details = [], []
    last = study.config.kept[-1]
    for network in study.config.networks:
        for radius in study.radii_of(network):
            fell, alarms = 0, 0
            seeds = study.seeds_of(network, radius)
            for seed in seeds:
                dense, *_, smallest = study.pair(network, radius, seed)
                pairs = [
                    [float(which(v).mean()) for which in (study.right, study.standing)]
                    for v in (dense, smallest)
                ]
                fell += has_collapsed(*pairs)
                alarms += trained.alarm(study, smallest)["collapsed"]
                details.append(
                    f"{smallest.name}: {100 * pairs[1][0]:.1f} % clean and {100 * pairs[1][1]:.1f} % "
                    f"under AutoAttack, dense {100 * pairs[0][0]:.1f} and {100 * pairs[0][1]:.1f} %."
                )
            words = f"{network}, trained at {epsilon_label(radius)}, irregular"
            if len(seeds) == 1:
                answers.append(f"{words}: {'yes' if fell else 'no'}.")
            else:
                answers.append(f"{words}: in {fell} of {len(seeds)} seeds.")
            if alarms:
                details.append(f"{words}: the loss of {alarms} ended no better than a guess.")
    compared = study.compared(study.seeds[0])
    whole = _shares(study, compared[0])
    for method in (*SCHEMES[1:], RANDOM):
        other = _nearest(compared, method, last)
        if other is not None:
            fell = sum(map(has_collapsed, whole, _shares(study, other)))
            answers.append(f"{METHOD_WORDS[method]}: in {fell} of {len(study.seeds)} seeds.")
    return blocks.verdict(
        f"Does robust training collapse at {100 * last:g} % of the weights?",
        " ".join(answers),
        "A collapse is a loss of more than a third of the dense network's accuracy, clean or under "
        "AutoAttack (its first two attacks, for what did not meet all): by this the source's MobileNet "
        "collapses at 10 %, its ResNet does not.",
        [("the loss over the epochs", "losses"), ("attack by attack", "autoattack")],
        details=" ".join(details),
    )


def _shares(study: Study, variant: Variant) -> list[list[float]]:
    """Of each seed: the shares right, clean and under the attacks that all networks meet."""
    measures = (study.right, outcome.common(study))
    return [[float(of(v).mean()) for of in measures] for v in study.over_seeds(variant)]


def _sparsity(study: Study) -> dict[str, Any]:
    found = [v for v in study.variants() if v.kept < 1 and study.facts[v]["promised"] is not None]
    off = [
        variant
        for variant in found
        if study.facts[variant]["weights"] - study.facts[variant]["zeros"]
        != study.facts[variant]["promised"]
    ]
    methods = list(dict.fromkeys(METHOD_WORDS[variant.method] for variant in found))
    return blocks.verdict(
        "Is the sparsity in the saved files the one that was asked for?",
        f"No, in {len(off)} of {len(found)} files." if off else "Yes, to the weight.",
        f"Weights that are not 0, counted in {len(found)} files ({', '.join(methods)}), against the "
        "share of every kernel, rounded; funnel: of all kernels together. Redundant and N:M keep whole "
        "filters and groups, and promise no number.",
        [("sizes", "sizes")],
        details="; ".join(variant.name for variant in off),
    )


def _against(study: Study, methods: Sequence[str], question: str) -> dict[str, Any]:
    answers, details, reaches = [], [], []
    compared = study.compared(study.seeds[0])
    for kept in study.config.kept:
        own = Variant(study.main, "irregular", kept, study.config.radii[0], study.seeds[0])
        for name, outcomes in (("clean", study.right), ("under attack", outcome.common(study))):
            gaps = {}
            for method in methods:
                other = _nearest(compared, method, kept)
                if other is None:
                    continue
                gaps[METHOD_WORDS[method]] = outcome.against(study, own, other, outcomes)
            if not gaps:  # they keep other shares alone
                continue
            answers.append(f"{100 * kept:g} % kept, {name}: {compare(gaps)}.")
            ends = [(gap["low"], gap["high"]) for gap in gaps.values()]
            reaches += [
                (high - low) / 2 for low, high in ends if low is not None and high is not None
            ]
            details += [
                f"{100 * kept:g} %, {name}, against {method}: {_points(gap)}."
                for method, gap in gaps.items()
            ]
    if set(methods) & set(PHASED) and CONTROL in study.config.methods:
        radius, seed = study.config.radii[0], study.seeds[0]
        dense, control = (
            Variant(study.main, radius=radius, seed=seed),
            Variant(study.main, CONTROL, 1.0, radius, seed),
        )
        for name, outcomes in (("clean", study.right), ("under attack", outcome.common(study))):
            gap = outcome.against(study, control, dense, outcomes)
            details.append(f"Dense in two phases, less dense in one, {name}: {_points(gap)}.")
    return blocks.verdict(
        question,
        " ".join(answers) or "There is nothing to compare.",
        _sure(study)
        + f" Under attack: {' and '.join(attacking.first_two(study))}. "
        + ("Paired t-tests" if len(study.seeds) > 1 else "McNemar's test")
        + ", with Holm's correction over the methods of a comparison."
        + (
            f" The widest interval reaches {100 * max(reaches):.0f} points to either side: what "
            "differs by less can look the same."
            if reaches
            else ""
        )
        + (
            " The source says that its irregular scheme was best in work before it, and that of the "
            "three none was consistently better."
            if set(methods) & set(SCHEMES)
            else ""
        ),
        [("methods", "methods")],
        details=" ".join(details),
    )


def _nearest(compared: Sequence[Variant], method: str, kept: float) -> Variant | None:
    """The network of a method whose share is nearest to one; None where another share is nearer."""
    own = [variant for variant in compared if variant.method == method]
    near = min(own, key=lambda variant: abs(variant.kept - kept), default=None)
    return near if near is not None and abs(near.kept - kept) < 0.05 else None
