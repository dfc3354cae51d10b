"""What the study answers, in words made from its figures."""

from typing import Any

import numpy as np

from experiments.sports10 import folds
from experiments.sports10.config import OURS
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
    name = model if model is not None and model in pruned else study.config.models[-1]
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
        doubts += f" Too slow to cross-validate here, and so not compared: {_listed(untested)}."
    return blocks.verdict(
        "Which model?",
        f"{name}.",
        (
            f"Better than {_listed(beaten)} beyond chance on the held-out photographs (McNemar, Holm)."
            if beaten
            else ""
        )
        + (
            " Its recipe was the best of several tried on these same photographs, which flatters it."
            if name == OURS
            else ""
        )
        + doubts
        + f" The {seeds[0]['accuracy']['n']} test photographs alone leave an interval of "
        f"{_interval(seeds[0]['accuracy'])} %.",
        [("seeds, folds and tests", "certainty")],
        details=f"{100 * np.mean(rates):.1f} % of the test photographs on the mean of {len(rates)} "
        f"seeds; {_rate(held_out)} in cross-validation, which trains on fewer photographs.",
    )


def _which_sparsity(study: Study, name: str) -> dict[str, Any]:
    gaps, sizes = study.facts["seeds"][name], study.facts[f"size of {name}"]
    held_out = {
        label: gap["value"] / 100 for label, gap in study.facts["folds"].get(name, {}).items()
    }
    # By the seeds and, where it was cross-validated, by the folds. The small number: differences of
    # fiftieths are not exact.
    accepted = [
        label
        for label, gap in gaps.items()
        if min(gap["mean"], held_out.get(label, 0.0)) >= -TOLERATED - 1e-9
    ]
    details = None
    if not accepted:
        answer = f"None: every sparsity costs {name} more than {100 * TOLERATED:g} points."
    else:
        label = accepted[-1]
        answer = f"{label}, fine-tuned."
        details = (
            f"The highest that costs at most {100 * TOLERATED:g} points, by the seeds and where "
            f"measured by the folds: {name} changes by {_points(gaps[label]['mean'])} "
            f"{_seeds(gaps[label]['n'])}, and its file is "
            f"{sizes[label]['times']:.1f} times smaller ({sizes[label]['sparse']:.0f} KiB)."
        )
        both = sizes.get(f"{label}, int8")
        if both is not None:
            details += f" With int8 values besides it is {both['times']:.1f} times smaller."
        quicker = study.facts["latency"][name].get(label, [])
        verdicts = ", ".join(f"{verdict} at batch {batch}" for batch, verdict in quicker)
        details += f" Time against the dense network: {verdicts}."
    bounds = [
        f"{label}: {_points(gap['mean'])} ({_points(gap['low'])} to {_points(gap['high'])}) "
        f"{_seeds(gap['n'])}"
        for label, gap in gaps.items()
        if gap["low"] is not None
    ]
    held = [
        f"{label}: {gap['value']:+.1f} ({gap['low']:+.1f} to {gap['high']:+.1f})"
        for label, gap in study.facts["folds"].get(name, {}).items()
    ]
    confidence = (
        f"Over the seeds, with 95 % intervals of training: {'; '.join(bounds)}."
        if bounds
        else "The seeds give no interval."
    )
    if held:
        confidence += (
            f" Paired on the held-out photographs, which is the surer figure: {'; '.join(held)} "
            "points."
        )
    return blocks.verdict(
        "Which sparsity?",
        answer,
        confidence,
        [("accuracy over sparsity", "sparsity"), ("latency", "latency")],
        details=details,
    )


def _which_defence(study: Study) -> dict[str, Any]:
    found = study.facts["defences"]
    bare = found["none"]
    others = [words for words in found if words != "none"]
    best, parts, sure = {}, [], []
    for index, epsilon in enumerate(f"{e:g}" for e in study.facts["defended at"]):
        tests = [_against(found[words], bare, index)["p_value"] for words in others]
        adjusted = dict(zip(others, evaluation.holm(tests), strict=True))
        rates = {words: found[words]["known"][index]["rate"] for words in others}
        leader = max(rates, key=rates.__getitem__)
        if adjusted[leader] < 0.05 and rates[leader] > bare["known"][index]["rate"]:
            best[epsilon] = leader
        parts.append(
            f"At epsilon {epsilon}, of an attacker who knows the defence: {leader} keeps "
            f"{_rate(found[leader]['known'][index])}, the bare network "
            f"{_rate(bare['known'][index])}."
        )
        weak = [
            words
            for words in others
            if adjusted[words] >= 0.05 or rates[words] <= bare["known"][index]["rate"]
        ]
        if len(weak) == len(others) - 1:
            parts.append("No other is shown to help there.")
        elif weak:
            parts.append(f"Not shown to help there: {_listed(weak)}.")
        sure.append(f"{leader} against none at {epsilon}: p = {adjusted[leader]:.2g}")
    named = list(dict.fromkeys(best.values()))
    if not named:
        answer = "None is shown to help against an attacker who knows it."
    elif len(named) == 1:
        answer = f"{named[0][0].upper()}{named[0][1:]}."
    else:
        answer = "; ".join(f"at epsilon {epsilon} {words}" for epsilon, words in best.items())
        answer = f"{answer[0].upper()}{answer[1:]}."
    cost = [f"{words} has {_rate(found[words]['clean'])}" for words in named]
    parts.append(
        f"Right without an attack: the bare network {_rate(bare['clean'])}"
        + (f"; {'; '.join(cost)}." if cost else ".")
    )
    return blocks.verdict(
        "Which defence?",
        answer,
        f"{'; '.join(sure)} (McNemar, Holm over the defences). Chosen and measured on the same "
        f"{bare['clean']['n']} photographs, one seed, PGD alone: stronger attacks can only lower "
        "these figures.",
        [("defences, attacked twice", "defences")],
        details=" ".join(parts),
    )


def _against(defence: dict[str, Any], bare: dict[str, Any], epsilon: int) -> dict[str, Any]:
    standing = [np.array(entry["standing"][epsilon], bool) for entry in (defence, bare)]
    return dict(evaluation.mcnemar(*standing))


def _does_pruning_hurt(study: Study) -> dict[str, Any]:
    """Among photographs that both networks have right: which one falls more often?"""
    cases, p_values, details = [], [], None
    for name, variants in study.facts["robust"].items():
        for label, entry in variants.items():
            if not entry["n"]:
                continue
            cases.append((f"{name} at {label}", entry))
            p_values.append(entry["p_value"])
    if not cases:
        answer = "Not measured on the folds in this run."
    else:
        words = []
        for (label, entry), p_value in zip(cases, evaluation.holm(p_values), strict=True):
            gap = 100 * entry["difference"]
            direction = "easier" if gap < 0 else "harder"
            meaning = "not shown" if p_value >= 0.05 else direction
            words.append(
                f"{label}: {meaning} ({gap:+.1f} points, p = {p_value:.2g}, n = {entry['n']})"
            )
        easier, harder = (
            sum(f": {way} (" in word for word in words) for way in ("easier", "harder")
        )
        answer = (
            f"Beyond chance easier in {easier} of {len(words)} cases, harder in {harder}."
            if easier or harder
            else f"Not shown in any of {len(words)} cases."
        )
        details = f"{'; '.join(words)}."
    return blocks.verdict(
        "Does pruning make attacks easier?",
        answer,
        f"Right under white-box PGD at epsilon {folds.EPSILON:g}, pruned and fine-tuned against "
        "dense and fine-tuned alike, of the held-out photographs that both have right without an "
        "attack (McNemar, Holm).",
        [("accuracy over sparsity", "sparsity"), ("attacks on pruned networks", "pruned-attacks")],
        details=details,
    )


def _other(pair: dict[str, Any], name: str) -> str:
    a, b = pair["names"]
    return b if a == name else a


def _rate(rate: dict[str, Any]) -> str:
    return f"{100 * rate['rate']:.1f} % ({_interval(rate)}, n = {rate['n']})"


def _interval(rate: dict[str, Any]) -> str:
    return f"{100 * rate['low']:.0f} to {100 * rate['high']:.0f}"


def _seeds(count: int) -> str:
    return "of one seed" if count == 1 else f"on the mean of {count} seeds"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
