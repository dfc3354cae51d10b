"""Adds the records that `evaluation` and `studies` return to the facts of a study.

Each function takes a record of one kind; its docstring names the function that makes such records. The
facts get the keys of `of`, as in `Facts.add`, and any further keys.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrobust.studies.facts import Facts


def add_model(facts: Facts, entry: Mapping[str, Any], of: Any = None, /, **keys: Any) -> None:
    """Adds a record of `model_entry`: accuracy, loss, parameters, and precision, recall and F1.

    The scores of a single class have the key `class`.
    """
    evaluated = entry["evaluation"]
    facts.add_rate("accuracy", of, evaluated["accuracy"], **keys)
    facts.add("loss", of, value=evaluated["loss"], n=evaluated["accuracy"]["n"], **keys)
    facts.add("parameters", of, value=entry["num_parameters"], **keys)
    for row in evaluated["per_class"]:
        for score in ("precision", "recall", "f1"):
            which = keys | {"class": row["class"]}
            facts.add(score, of, value=row[score], n=row["support"], **which)
    for score in ("precision", "recall", "f1"):
        facts.add(f"mean {score}", of, value=evaluated["macro"][score], **keys)


def add_attack(facts: Facts, entry: Mapping[str, Any], of: Any = None, /, **keys: Any) -> None:
    """Adds a record of `evaluation.summarise`: success, robust accuracy, norms, confidence and steps.

    The keys should tell the attacks of the study apart.
    """
    # Without outcomes: each model is attacked on other images, so successes cannot be paired.
    facts.add_rate("success", of, entry["success"], **keys)
    if entry.get("robust_accuracy"):
        # An attack without a target attacks only the images that the model has right.
        left = [record["attacked"] and not record["success"] for record in entry["records"]]
        facts.add("robust accuracy", of, outcomes=np.array(left, bool), **keys)
    for name in ("mean_l2", "mean_linf", "mean_confidence", "median_steps"):
        facts.add(name.replace("_", " "), of, value=entry.get(name), **keys)


def add_suite(facts: Facts, summary: Mapping[str, Any], of: Any = None, /, **keys: Any) -> None:
    """Adds a record of `evaluation.summarise_suite`: accuracy, robust accuracy and seconds.

    The robust accuracy after an attack and those before it has the key `after`, the attack's name; the
    robust accuracy under the whole suite has no such key. The accuracy without an attack has the key
    `attacked`, which is False.
    """
    fooled_by = np.array(summary["fooled_by"])
    facts.add("accuracy", of, outcomes=fooled_by != -2, attacked=False, **keys)
    facts.add("robust accuracy", of, outcomes=fooled_by == -1, **keys)
    for number, attack in enumerate(summary["attacks"]):
        left = (fooled_by == -1) | (fooled_by > number)
        facts.add("robust accuracy", of, outcomes=left, after=attack["name"], **keys)
        facts.add("seconds", of, value=attack["seconds"], after=attack["name"], **keys)


def add_curve(facts: Facts, curve: Mapping[str, Any], of: Any = None, /, **keys: Any) -> None:
    """Adds a record of `evaluation.robustness_curve`: robust accuracy, with the key `epsilon`."""
    for point in curve["points"]:
        counted, epsilon = point["robust_accuracy"], point["epsilon"]
        facts.add_rate("robust accuracy", of, counted, epsilon=epsilon, **keys)


def add_transfer(facts: Facts, table: Mapping[str, Any], /, **keys: Any) -> None:
    """Adds a record of `evaluation.transfer_matrix`, with the keys `made_on` and `shown_to`."""
    for made_on, rates in zip(table["models"], table["rates"], strict=True):
        for shown_to, counted in zip(table["models"], rates, strict=True):
            facts.add_rate("transfer", None, counted, made_on=made_on, shown_to=shown_to, **keys)


def add_latency(facts: Facts, times: Mapping[str, Any], of: Any = None, /, **keys: Any) -> None:
    """Adds a network's times in ms: an entry of `variants` of `evaluation.compare_latency`.

    The measures are "latency", the mean with its deviation, and "median latency". All networks except
    the reference also have "latency to reference", the median difference with its interval, and
    "latency sign", the sign of this difference, or 0 if `evaluation.compare_latency` finds no
    difference.
    """
    facts.add("latency", of, value=times["mean_ms"], deviation=times["std_ms"], **keys)
    facts.add("median latency", of, value=times["median_ms"], **keys)
    gap = times["difference"]
    if gap is not None:
        ends = {"low": gap["low_ms"], "high": gap["high_ms"]}
        facts.add("latency to reference", of, value=gap["median_ms"], **ends, **keys)
        sign = int(np.sign(gap["median_ms"])) if gap["different"] else 0
        facts.add("latency sign", of, value=sign, **keys)
