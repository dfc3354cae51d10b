"""What the study answers, in words made from its figures."""

from typing import Any

import numpy as np

from experiments.sports10.study import Study
from jaxrobust import evaluation
from jaxrobust.studies import blocks

TOLERATED = 0.04  # points of accuracy that a smaller network may cost on the mean of the seeds


def verdicts(study: Study) -> list[dict[str, Any]]:
    """The questions of a reader who has to choose."""
    found = []
    model = _best_model(study)
    if model is not None:
        found.append(_which_model(study, model))
    pruned = study.facts.get("seeds", {})
    name = model if model is not None and model in pruned else study.compressed[-1]
    found.append(_which_sparsity(study, name))
    found.append(_which_defence(study))
    found.append(_does_pruning_hurt(study))
    return found


def _best_model(study: Study) -> str | None:
    held_out = study.facts["held out"]
    return max(held_out, key=lambda name: held_out[name]["rate"], default=None)


def _which_model(study: Study, name: str) -> dict[str, Any]:
    held_out, seeds = study.facts["held out"][name], study.facts["tests"][name]
    rates = [row["accuracy"]["rate"] for row in seeds]
    pairs = [pair for pair in study.facts["pairs"] if name in pair["names"]]
    beaten = [_other(pair, name) for pair in pairs if pair["p_value"] < 0.05]
    tied = [_other(pair, name) for pair in pairs if pair["p_value"] >= 0.05]
    doubts = f" Not told apart from {_listed(tied)}." if tied else ""
    untested = sorted(set(study.config.models) - set(study.facts["held out"]))
    if untested:
        doubts += (
            f" Not compared with {_listed(untested)}, which is too slow to cross-validate here."
        )
    return blocks.verdict(
        "Which model?",
        f"{name}: {100 * np.mean(rates):.1f} % of the test photographs on the mean of "
        f"{len(rates)} seeds, "
        f"{_rate(held_out)} in cross-validation.",
        (f"Better than {_listed(beaten)} beyond chance (McNemar, Holm)." if beaten else "")
        + doubts
        + " Cross-validation trains on a fifth less, so it is the lower figure; the 50 test "
        f"photographs alone leave an interval of {_interval(seeds[0]['accuracy'])}.",
        [("seeds, folds and tests", "certainty")],
    )


def _which_sparsity(study: Study, name: str) -> dict[str, Any]:
    gaps, sizes = study.facts["seeds"][name], study.facts[f"size of {name}"]
    accepted = [label for label, gap in gaps.items() if gap["mean"] >= -TOLERATED]
    if not accepted:
        answer = f"None: every sparsity costs {name} more than {100 * TOLERATED:g} points."
    else:
        label = accepted[-1]
        answer = (
            f"{label} with fine-tuning: {name} changes by {_points(gaps[label]['mean'])} on the "
            "mean of the "
            f"seeds, and its file is {sizes[label]['times']:.1f} times smaller "
            f"({sizes[label]['sparse']:.0f} KiB). With int8 values besides it is "
            f"{list(sizes.values())[-1]['times']:.1f} times smaller. It is not faster: see latency."
        )
    sure = []
    for label, gap in gaps.items():
        if gap["low"] is not None:
            sure.append(
                f"{label}: {_points(gap['mean'])} ({_points(gap['low'])} to {_points(gap['high'])})"
            )
    fold = study.facts["folds"].get(name, {})
    held = [
        f"{label}: {entry['gap']['value']:+.1f} ({entry['gap']['low']:+.1f} to "
        f"{entry['gap']['high']:+.1f})"
        for label, entry in fold.items()
        if entry["gap"]
    ]
    confidence = f"Over the seeds, with 95 % intervals: {'; '.join(sure)}." if sure else "One seed."
    if held:
        confidence += f" On the held-out photographs: {'; '.join(held)} points."
    return blocks.verdict(
        "Which sparsity?",
        answer,
        confidence,
        [("accuracy over sparsity", "sparsity"), ("latency", "latency")],
    )


def _which_defence(study: Study) -> dict[str, Any]:
    found = study.facts["defences"]
    best = max(
        found, key=lambda words: (found[words]["small"]["rate"], found[words]["main"]["rate"])
    )
    bare, chosen = found["none"], found[best]
    test = evaluation.mcnemar(np.array(chosen["standing"], bool), np.array(bare["standing"], bool))
    cheap = [
        f"{words} keeps {_rate(found[words]['small'])}"
        for words in found
        if words.startswith(("JPEG", "Gaussian"))
    ]
    if best == "none":
        answer = "None of them helps against an attacker who knows it."
    else:
        answer = (
            f"{best}, if any: against an attacker who knows it, {_rate(chosen['small'])} stay "
            "right at epsilon "
            f"0.01 and {_rate(chosen['main'])} at {study.config.epsilon:g}, where the bare "
            "network keeps "
            f"{_rate(bare['small'])} and {_rate(bare['main'])}. It costs clean accuracy: "
            f"{_rate(chosen['clean'])} against {_rate(bare['clean'])}. Preprocessing only looks like a "
            f"defence: at epsilon 0.01 {_listed(cheap)}."
        )
    return blocks.verdict(
        "Which defence?",
        answer,
        f"Against none at epsilon {study.config.epsilon:g}: {test['only_a']} photographs saved, "
        f"{test['only_b']} lost, "
        f"p = {test['p_value']:.2g} (McNemar). One seed, 50 photographs, PGD: stronger attacks "
        "can only lower "
        "these figures.",
        [("defences, attacked twice", "defences")],
    )


def _does_pruning_hurt(study: Study) -> dict[str, Any]:
    words, real = [], []
    for name, variants in study.facts["folds"].items():
        for label, entry in variants.items():
            gap = entry["robust_gap"]
            if gap is None:
                continue
            words.append(
                f"{name} at {label}: {gap['value']:+.1f} points ({gap['low']:+.1f} to "
                f"{gap['high']:+.1f})"
            )
            real.append(not gap["low"] <= 0 <= gap["high"])
    if not words:
        answer = "Not measured on the folds in this run."
    elif any(real):
        answer = "It changes robustness in some cases: " + "; ".join(words) + "."
    else:
        answer = "No difference is shown: " + "; ".join(words) + "."
    return blocks.verdict(
        "Does pruning make attacks easier?",
        answer,
        "Right under white-box PGD, pruned against dense, paired on the held-out photographs of "
        "the folds, "
        "with 95 % intervals, not corrected for their number.",
        [("accuracy over sparsity", "sparsity"), ("attacks on pruned networks", "pruned-attacks")],
    )


def _other(pair: dict[str, Any], name: str) -> str:
    a, b = pair["names"]
    return b if a == name else a


def _rate(rate: dict[str, Any]) -> str:
    return f"{100 * rate['rate']:.1f} % ({_interval(rate)}, n = {rate['n']})"


def _interval(rate: dict[str, Any]) -> str:
    return f"{100 * rate['low']:.0f} to {100 * rate['high']:.0f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
