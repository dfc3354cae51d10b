"""The source's ablations: its tables beside ours, and whether its conclusions hold."""

from typing import Any

import numpy as np

from experiments.cifar_mlp.source import HIDDEN, ONE_LAYER, Ablation
from experiments.cifar_mlp.study import Curves, Study, mean_of
from jaxrobust import evaluation
from jaxrobust.studies import blocks

SAME = 0.01  # within a point of accuracy a hyper-parameter is said to change nothing
_LOGARITHMIC = ("batch_size", "learning_rate")
FOUND = "As the source found it."


def section(study: Study, ablation: Ablation, *, part: str) -> dict[str, Any]:
    """One table of the source and ours, with charts."""
    curves = study.ablation(ablation)
    base = base_of(ablation)
    answer, reasons = judge(ablation, curves["test_accuracy"])
    return blocks.section(
        ablation.identifier,
        f"{ablation.network.capitalize()}: {ablation.title}",
        [
            *_charts(ablation, curves),
            blocks.table(
                [
                    ablation.title.capitalize(),
                    blocks.column("Source 002", "%", 2, group="Test accuracy"),
                    blocks.column("here", "%", 2, group="Test accuracy"),
                    blocks.column("Difference to the row in bold", "points", 2),
                    blocks.column("Validation accuracy", "%", 1),
                    blocks.column("Training accuracy", "%", 1),
                ],
                [_row(curves, ablation, index) for index in range(len(ablation.values))],
                f"Means over {_seeds(study.config.num_seeds)} with 95 % intervals (Student's t). The "
                "differences are of test accuracy and paired: all settings of a seed start from the "
                "same weights and see the images in the same order. In bold the source's own setting. "
                "Training accuracy is that of the last epoch's batches as they were trained on.",
                highlight=[ablation.values.index(base)],
            ),
        ],
        part=part,
        text=[
            f"The source: {ablation.claim}. {answer} {' '.join(reasons)}".strip(),
        ],
    )


def verdict(study: Study, ablation: Ablation) -> dict[str, Any]:
    """Whether the source's conclusion holds here."""
    curves = study.ablation(ablation)
    answer, reasons = judge(ablation, curves["test_accuracy"])
    gaps = 100 * (curves["test_accuracy"].mean(axis=0) - np.array(ablation.published))
    return blocks.verdict(
        f"{ablation.network.capitalize()}, {ablation.title}: {ablation.claim}?",
        answer,
        f"{_seeds(study.config.num_seeds).capitalize()} of each setting, paired, 95 % intervals. Our "
        f"accuracies lie {gaps.min():+.1f} to {gaps.max():+.1f} points from the source's, which are of "
        "one training each.",
        [(f"{ablation.network}, {ablation.title}", ablation.identifier)],
        details=" ".join(reasons),
    )


def base_of(ablation: Ablation) -> float:
    """The value of the source's own setting."""
    return (ONE_LAYER if ablation.network == "one layer" else HIDDEN)[ablation.parameter]


def judge(ablation: Ablation, accuracies: np.ndarray) -> tuple[str, list[str]]:
    """Whether a conclusion of the source holds, from accuracies [R seeds, S values].

    A difference counts if its paired 95 % interval over the seeds leaves out 0. "Nothing changes" holds
    if every value's interval against the source's own setting lies within a point.

    Returns:
      (the answer, sentences with the figures).
    """
    if len(accuracies) < 2:
        return "Not decided: one seed says nothing about chance.", []
    if not ablation.better:
        return _judge_flat(ablation, accuracies)
    column = dict(zip(ablation.values, accuracies.T, strict=True))
    reasons, shown, others = [], [], []
    for better, worse in ablation.better:
        gap = evaluation.paired_mean_difference(column[better], column[worse])
        low, high = _bounds(gap)
        pair = f"{better:g} against {worse:g}"
        if low > 0:
            shown.append(pair)
        else:
            how = "goes the other way" if high < 0 else "may be chance"
            others.append((pair, how))
        reasons.append(
            f"{ablation.title.capitalize()} {pair}: {100 * gap['mean']:+.2f} points "
            f"({100 * low:+.2f} to {100 * high:+.2f})."
        )
    means = accuracies.mean(axis=0)
    direction = np.sign(np.diff(ablation.published))
    disordered = ablation.ordered and (np.sign(np.diff(means)) != direction).any()
    if disordered:
        listed = ", ".join(
            f"{value:g}: {100 * mean:.2f} %"
            for value, mean in zip(ablation.values, means, strict=True)
        )
        reasons.append(f"From value to value the means do not keep the source's order ({listed}).")
    if others:
        words = "; ".join(f"{pair} {how}" for pair, how in others)
        if shown:
            return f"In part: {', '.join(shown)} is as it says; {words}.", reasons
        reverse = all(how == "goes the other way" for _, how in others)
        return f"{'Not so' if reverse else 'Not shown'} here: {words}.", reasons
    if disordered:
        return "In part: the ends differ as it says, the values between do not all.", reasons
    return FOUND, reasons


def _judge_flat(ablation: Ablation, accuracies: np.ndarray) -> tuple[str, list[str]]:
    base = ablation.values.index(base_of(ablation))
    reasons, beyond, open_ = [], [], []
    for index, value in enumerate(ablation.values):
        if index == base:
            continue
        gap = evaluation.paired_mean_difference(accuracies[:, index], accuracies[:, base])
        low, high = _bounds(gap)
        words = (
            f"{value:g}: {100 * gap['mean']:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
        )
        reasons.append(words)
        if low > SAME or high < -SAME:
            beyond.append(f"{value:g}")
        elif low < -SAME or high > SAME:
            open_.append(f"{value:g}")
    figures = [f"Against {ablation.values[base]:g}: {'; '.join(reasons)}."]
    if beyond:
        return f"Not so here: {', '.join(beyond)} changes the accuracy by over a point.", figures
    if open_:
        return f"Not shown here: {', '.join(open_)} may change the accuracy by a point.", figures
    return FOUND, figures


def _bounds(gap: Any) -> tuple[float, float]:
    """The interval; where all seeds agree to the last digit, the difference itself."""
    if gap["low"] is None:
        return gap["mean"], gap["mean"]
    return gap["low"], gap["high"]


def _row(curves: Curves, ablation: Ablation, index: int) -> list[Any]:
    test = curves["test_accuracy"]
    base = ablation.values.index(base_of(ablation))
    gap = None
    if index != base:
        found = evaluation.paired_mean_difference(test[:, index], test[:, base])
        gap = blocks.estimate(found["mean"], found["low"], found["high"], 100)
    return [
        f"{ablation.values[index]:g}",
        ablation.published[index],
        mean_of(test[:, index]),
        gap,
        mean_of(curves["validation_accuracy"][:, index, -1]),
        mean_of(curves["train_accuracy"][:, index, -1]),
    ]


def _charts(ablation: Ablation, curves: Curves) -> list[dict[str, Any]]:
    ours = [mean_of(values, 100) for values in curves["test_accuracy"].T]
    theirs = [100 * value for value in ablation.published]
    y_title = "test accuracy, %"
    over: dict[str, Any]
    if 0 in ablation.values:  # which a logarithmic axis has no place for
        over = {
            "kind": "intervals",
            "title": f"Test accuracy over the {ablation.title}, %",
            "groups": [
                {
                    "name": f"{value:g}",
                    "items": [
                        {"name": "here", "value": _value(here)},
                        {"name": "source 002", "value": _value(there)},
                    ],
                }
                for value, here, there in zip(ablation.values, ours, theirs, strict=True)
            ],
        }
    else:
        over = blocks.chart(
            f"Test accuracy over the {ablation.title}",
            ablation.title,
            y_title,
            [
                blocks.line("here", ablation.values, ours),
                blocks.line("source 002", ablation.values, theirs, dashed=True),
            ],
            log_x=ablation.parameter in _LOGARITHMIC,
        )
    validation = 100 * curves["validation_accuracy"].mean(axis=0)
    epochs = range(1, validation.shape[1] + 1)
    training = blocks.chart(
        "Validation accuracy over the epochs",
        "epoch",
        "validation accuracy, %",
        [
            blocks.line(f"{ablation.title} {value:g}", epochs, row)
            for value, row in zip(ablation.values, validation, strict=True)
        ],
    )
    return [over, training]


def _value(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"value": value, "low": None, "high": None}


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
