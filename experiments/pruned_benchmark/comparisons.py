"""Computes the effects of fine-tuning and of pruning: facts made from facts, numbers only."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pruned_benchmark import networks
from jaxrobust.studies import ANY, Fact, Facts
from jaxrobust.studies.comparison import (
    corrected,
    less,
    means,
    one_more,
    over_images,
    value,
    without,
)

FEWEST = 3  # the fewest networks for an interval over networks by Student's t
FLOOR = 0.02  # if the controls have less than this share right, no difference can be seen


def publish(facts: Facts, path: Path, data_set: str | None, num_classes: int) -> list[Fact]:
    """Adds the source's figures of a data set and of its changes; returns figures in doubt."""
    published, doubted = Facts(), []
    for fact in Facts().read(path):
        keys, figures = fact.keys, {"value": fact.value, "deviation": fact.deviation}
        published.add(fact.measure, without(keys, "table", "doubt"), **figures)
        if keys["data"] == data_set:
            of = without(keys, "table", "doubt", "data") | {"source": "003"}
            facts.add(fact.measure, of, **figures)
            doubted += [fact] * ("doubt" in keys)
    accuracies = facts.where("accuracy", network=ANY, kind=ANY, sparsity=ANY, source="003")
    facts.extend(less(facts, accuracies, _to_base, "accuracy to base"))
    # Which of the largest changes under attack that its tables print are within a point.
    for fact in [f for f in published if f.keys["kind"] == "base"]:
        if fact.keys.get("surrogate") == fact.keys["network"]:
            extremes(published, fact, ANY)
    for name in ("cifar10", "cifar100"):
        changes = [f for f in published if f.keys.get("end") == "max" and f.keys["data"] == name]
        within = np.array([abs(round(value(f), 4)) <= 0.01 for f in changes])  # rounded as printed
        facts.add("within a point", data=name, outcomes=within)
    # The sizes of its files, compared with those of its networks' weights.
    for base in facts.where("file size", network=ANY, kind="base", source="003"):
        of = without(base.keys, "kind")
        count = networks.num_parameters(of["network"], num_classes)
        facts.add("parameters", of, value=count)
        facts.add("size of the weights", of, value=4 * count / 1e6)
        pruned = facts.of("file size", of, kind="pruned")
        facts.add("file smaller", of, value=1 - value(pruned) / value(base))
        for fact in (base, pruned):
            facts.add("times the weights", fact.keys, value=value(fact) / (4 * count / 1e6))
    return doubted


def compare(facts: Facts, attacks: Any, white_box: Any, compared: str, sparsities: Any) -> None:
    """Adds differences to base networks and controls, and effects of pruning over the networks."""
    accuracies = _measured(facts, "accuracy")
    facts.extend(over_images(facts, accuracies, _to_base, "accuracy to base"))
    facts.extend(over_images(facts, accuracies, _to_control, "accuracy to control"))
    against_controls(facts, "accuracy")

    # Over the images that both have right without an attack, if there are any.
    attacked = _measured(facts, "white-box accuracy", attack=compared)

    def right(keys: dict[str, Any]) -> np.ndarray:
        return np.asarray(facts.of("accuracy under attack", keys, attack="none").outcomes)

    name = "white-box accuracy to control"
    found = over_images(facts, attacked, _to_control, name, among=right, correct=False)
    facts.extend(corrected([fact for fact in found if fact.n]))
    against_controls(facts, "white-box norm", relative=True)
    for attack in white_box:
        against_controls(facts, "white-box accuracy", attack=attack)
    for setting, names in attacks.items():
        seen: list[Fact] = []
        for attack in names:
            keys: dict[str, Any] = {"setting": setting, "attack": attack}
            against_controls(facts, "still right", **keys)
            left = facts.find("still right of controls", keys)
            if attack != "noise" and left is not None and value(left) >= FLOOR:
                seen += facts.where("still right from pruning", keys, sparsity=ANY)
        for side, sign in (("above", 1), ("below", -1)):
            changed = np.array([fact.direction == sign for fact in seen], bool)
            facts.add("still right cases", setting=setting, side=side, outcomes=changed)
    for fact in [fact for fact in facts if fact.keys.get("kind") == "base"]:
        if fact.measure == "accuracy":
            extremes(facts, fact, ANY, together=True)
        if fact.measure == "accuracy under attack":
            extremes(facts, fact, sparsities)


def _to_base(keys: dict[str, Any]) -> dict[str, Any] | None:
    other = {"kind": "base", "sparsity": 0.0, "number": None}
    return None if keys["kind"] == "base" else keys | other


def _to_control(keys: dict[str, Any]) -> dict[str, Any] | None:
    other = keys | {"kind": "control", "sparsity": 0.0, "number": 0}
    return None if keys["kind"] == "base" or keys == other else other


def _measured(facts: Facts, measure: str, **keys: Any) -> list[Fact]:
    """Returns a measure of all networks; only controls have the key "number"."""
    free: dict[str, Any] = {"network": ANY, "kind": ANY, "sparsity": ANY, **keys}
    return [*facts.where(measure, **free), *facts.where(measure, number=ANY, **free)]


def against_controls(facts: Facts, measure: str, *, relative: bool = False, **keys: Any) -> None:
    """Compares base and pruned networks with the mean of their network's controls.

    Each pruned network is one training, so intervals are Student's, over the networks. If a network
    lacks a value, nothing is compared. With `relative`, gaps are shares of the mean of the controls.
    """
    measured = _measured(facts, measure, **keys)
    if any(fact.value is None for fact in measured):
        return
    controls = [fact for fact in measured if "number" in fact.keys]
    # "of controls": the mean of a network's controls, and without the key "network" that of all.
    of_one = ("kind", "sparsity", "number")
    before = facts.extend(means(controls, of_one, f"{measure} of controls"))
    facts.extend(means(controls, (*of_one, "network"), f"{measure} of controls"))
    # "gap": a base or pruned network minus the mean of its controls.
    mean_of = {fact.keys["network"]: value(fact) for fact in before}
    gaps = []
    for fact in [fact for fact in measured if fact not in controls]:
        mean = mean_of[fact.keys["network"]]
        gap = (value(fact) - mean) / (mean if relative else 1.0)
        gaps.append(facts.add(f"{measure} gap", fact.keys, value=gap))
    # "from training": the controls minus the base, as a mean over the networks.
    trained = [dataclasses.replace(g, value=-value(g)) for g in gaps if g.keys["kind"] == "base"]
    over = ("network", "kind", "sparsity")
    facts.extend(means(trained, over, f"{measure} from training", fewest=FEWEST))
    # "from pruning": the pruned networks minus the controls, as a mean over the networks, at each
    # sparsity; for each criterion, and without the key "kind" for the mean of the criteria.
    pruned = [gap for gap in gaps if gap.keys["kind"] != "base"]
    for found in (pruned, means(pruned, "kind", measure)):
        facts.extend(means(found, "network", f"{measure} from pruning", fewest=FEWEST))
    # "beyond noise": how many of a network's pruned networks are farther from the mean of its controls
    # than one more control would be. The interval of that is the gap of the kind "control".
    for noise in facts.extend(one_more(controls, "number", "network", f"{measure} gap")):
        for network in mean_of:
            mine = np.array([value(gap) for gap in pruned if gap.keys["network"] == network])
            for side, beyond in (("above", mine > noise.high), ("below", mine < noise.low)):
                of = keys | {"network": network, "side": side}
                facts.add(f"{measure} beyond noise", of, outcomes=beyond)


def extremes(facts: Facts, base: Fact, sparsities: Any, *, together: bool = False) -> None:
    """Adds the best and worst pruned network minus base and control, by criterion or together."""
    of = without(base.keys, "kind", "sparsity")
    others = facts.where(base.measure, of, kind=ANY, sparsity=sparsities)
    pruned = [fact for fact in others if fact.keys["kind"] != "base"]
    control = facts.find(base.measure, of, kind="control", sparsity=0.0, number=0)
    for kind in dict.fromkeys(None if together else fact.keys["kind"] for fact in pruned):
        values = [value(fact) for fact in pruned if kind in (None, fact.keys["kind"])]
        for to, reference in {"base": base, "control": control}.items():
            if reference is not None:
                for end in (max, min):
                    which = {"kind": kind, "to": to, "end": end.__name__}
                    gap = end(values) - value(reference)
                    facts.add(f"{base.measure} extreme", of, value=gap, **which)
