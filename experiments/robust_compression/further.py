"""What the source says of transfer, combined networks, weights and time, and what the figures say."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.robust_compression import attacking, combined, cost, published, trained
from experiments.robust_compression.config import EPSILON
from experiments.robust_compression.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of


def verdicts(study: Study) -> list[dict[str, Any]]:
    """Transfer, combination, weights, time."""
    return [_transfer(study), _combined(study), _weights(study), _time(study)]


def _transfer(study: Study) -> dict[str, Any]:
    answers, details = [], []
    for radius in study.config.radii:
        targets = attacking.trained_at(study, radius)
        strong, weak = attacking.strongest_and_weakest(study, targets)
        if strong == weak:
            continue
        lost = dict[Variant, list[float]]()
        for source in (strong, weak):
            found = attacking.transfer(study, source, targets)
            others = [c for t, c in zip(targets, found, strict=True) if t not in (strong, weak)]
            lost[source] = [_lost(curve["points"]) for curve in others]
        if not lost[strong]:
            continue
        gap = evaluation.paired_mean_difference(lost[strong], lost[weak])
        which = "strongest" if gap["mean"] > 0 else "weakest"
        sure = ""
        if gap["low"] is None or gap["high"] is None:
            sure = ", by one other network alone"
        elif gap["low"] <= 0 <= gap["high"]:
            sure = ", not beyond chance"
        answers.append(
            f"Trained at {epsilon_label(radius)}: those of the {which} network fool more{sure}."
        )
        interval = (
            ""
            if gap["low"] is None or gap["high"] is None
            else f" ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
        )
        details.append(
            f"Trained at {epsilon_label(radius)}, at {epsilon_label(EPSILON)} the others lose "
            f"{100 * np.mean(lost[strong]):.1f} points by images made on {strong.network}, "
            f"{strong.share}, and {100 * np.mean(lost[weak]):.1f} by those of {weak.network}, "
            f"{weak.share}; difference {100 * gap['mean']:+.1f}{interval}."
        )
    return blocks.verdict(
        "Whose adversarial images fool the other networks more?",
        " ".join(answers) or "Not answered: there is no third network to show them to.",
        f"Mean loss of accuracy of all other networks, on {len(study.attacked)} images, one network of "
        "each kind; 95 % Student-t intervals over these other networks. The source: those of its "
        "strongest network do, those of its weakest do not.",
        [("transfer", "transfer-curves")],
        details=" ".join(details),
    )


def _lost(points: Sequence[dict[str, Any]]) -> float:
    """What the last epsilon up to that of all attacks takes."""
    within = [point for point in points if point["epsilon"] <= EPSILON + 1e-9]
    return points[0]["robust_accuracy"]["rate"] - within[-1]["robust_accuracy"]["rate"]


def _combined(study: Study) -> dict[str, Any]:
    answers, details = [], []
    whole_there, robust_there = (published.COMBINED["ResNet"][m][1] for m in ("combined", "robust"))
    for network in study.config.networks:
        found = combined.outcomes(study, network)
        whole, robust = found["combined"], found["robust"]
        for name in ("PGD, 8/255", "APGD, 8/255"):
            gap = evaluation.paired_difference(whole[name], robust[name])
            if gap["low"] > 0:
                word = "more robust"
            else:
                word = "less robust" if gap["high"] < 0 else "no difference beyond chance"
            answers.append(f"{network}, {name}: {word}.")
        shown = whole["PGD, 8/255, made on robust"]
        details.append(
            f"{network} under PGD at 8/255: the robust network keeps "
            f"{_share(robust['PGD, 8/255'])}, the combination {_share(whole['PGD, 8/255'])}, and "
            f"{_share(shown)} where the images were made on the robust network alone."
        )
    return blocks.verdict(
        "Is a natural and a robust network together more robust than the robust one?",
        " ".join(answers),
        f"Paired on {len(study.attacked)} images, 95 % intervals (Newcombe), one pair of networks. The "
        f"source's ResNet: {whole_there:g} % against {robust_there:g} % under PGD.",
        [("a natural and a robust network together", "combined")],
        details=" ".join(details),
    )


def _share(outcomes: np.ndarray) -> str:
    return f"{100 * (rate_of(outcomes)['rate'] or 0):.1f} %"


def _weights(study: Study) -> dict[str, Any]:
    radius = study.config.radii[0]
    pairs = [
        [trained.deviation(study, Variant(study.main, radius=r, seed=seed)) for r in (0.0, radius)]
        for seed in study.seeds
    ]
    natural, robust = (list(side) for side in zip(*pairs, strict=True))
    gap = evaluation.paired_mean_difference(np.log(robust), np.log(natural))
    ratio = math.exp(gap["mean"])
    word = "more" if ratio > 1 else "less"
    beyond, pairs_of, interval = "in the one pair that there is", "of one seed", ""
    low, high = gap["low"], gap["high"]
    if low is not None and high is not None:
        beyond = f"{'beyond' if low > 0 or high < 0 else 'not beyond'} chance"
        pairs_of = f"paired over {len(study.seeds)} seeds"
        interval = f" ({math.exp(low):.2f} to {math.exp(high):.2f})"
    return blocks.verdict(
        "Do the weights of robust networks vary more than those of natural ones?",
        f"{study.main}: they vary {word}, {beyond}.",
        f"Ratio of the deviations, {pairs_of}. The source shows it for one network of each kind.",
        [("what the weights look like", "weights")],
        details=f"Robust over natural: {ratio:.2f}{interval}.",
    )


def _time(study: Study) -> dict[str, Any]:
    found = [
        (entry["network"], entry["batch"], share, figures["difference"])
        for entry in cost.times(study)
        for share, figures in cost.compressed(entry["variants"]).items()
    ]
    faster = [one for one in found if blocks.latency_verdict(one[3]) == "faster"]
    slower = [one for one in found if blocks.latency_verdict(one[3]) == "slower"]
    return blocks.verdict(
        "Are networks with fewer weights faster, run as they are?",
        f"In {len(faster)} of {len(found)} cases, slower in {len(slower)}.",
        "Networks taking turns at every batch, against dense twins as the measure of noise; on this "
        "machine alone. The source finds gains on all hardware, which it calls marginal.",
        [("time of one image and of 100", "latency")],
    )
