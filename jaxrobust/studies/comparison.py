"""Compares facts with facts, paired over images or over seeds, and averages facts.

Each function takes facts (`measured`) and returns new facts with the measure `name`, which
`Facts.extend` can add. A difference has the keys of the measured fact. Its control is looked up in
`facts`: `control` is a function from the keys of a fact to the keys of its control, or to None if the
fact is not to be compared.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrobust import evaluation
from jaxrobust.studies.facts import Fact, Facts

Keys = Mapping[str, Any]
Control = Callable[[dict[str, Any]], Keys | None]


def without(keys: Keys, *names: str) -> dict[str, Any]:
    """Returns the keys without some of them.

    Example:
      >>> without({"network": "mlp", "seed": 0}, "seed")
      {'network': 'mlp'}
    """
    return {name: value for name, value in keys.items() if name not in names}


def value(fact: Fact) -> float:
    """Returns the value of a fact; raises ValueError if it has none."""
    if fact.value is None:
        raise ValueError(f"The fact {fact.measure!r} of {fact.keys} has no value to compare.")
    return fact.value


def over_images(
    facts: Facts,
    measured: Iterable[Fact],
    control: Control,
    name: str,
    *,
    among: Callable[[dict[str, Any]], np.ndarray] | None = None,
    correct: bool = True,
) -> list[Fact]:
    """Subtracts the share of a control from each fact's share, paired over the same images.

    The facts must have outcomes, bool [N].

    Args:
      facts: The facts among which the controls are.
      measured: The facts to compare.
      control: The keys of a fact -> the keys of its control, or None.
      name: The measure of the new facts.
      among: The keys of a fact -> bool [N], the images to count. Images count if they do so for the
        fact and for its control. By default all count.
      correct: Whether p gets Holm's correction over all facts that are returned.

    Returns:
      For each fact with a control: value, the difference of the shares; low and high, its Newcombe
      interval; p of McNemar's test; n, the number of images that count. If n is 0, there are no other
      figures.
    """
    found = []
    for fact, other in _pairs(facts, measured, control):
        counted = None if among is None else among(fact.keys) & among(other.keys)
        found.append(paired(fact, other, name, fact.keys, counted))
    return corrected(found) if correct else found


def paired(
    fact: Fact, other: Fact, name: str, keys: Keys, counted: np.ndarray | None = None
) -> Fact:
    """Subtracts the share of one fact from that of another, paired over the same images.

    Args:
      fact: A fact with outcomes, bool [N].
      other: The fact to subtract, with outcomes of the same images.
      name: The measure of the new fact.
      keys: The keys of the new fact.
      counted: bool [N], the images to count; None counts all.

    Returns:
      The difference, with the figures that `over_images` returns; p is not corrected.

    Raises:
      ValueError: A fact has no outcomes, or the numbers of images differ.
    """
    sides = [_outcomes(fact), _outcomes(other)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{name!r} must compare the same images, got {len(sides[0])} of {fact.keys} and "
            f"{len(sides[1])} of {other.keys}."
        )
    if counted is not None:
        sides = [side[counted] for side in sides]
    if not len(sides[0]):
        return Fact(name, dict(keys), n=0)
    gap: Any = evaluation.paired_difference(*sides)
    figures = {figure: gap[figure] for figure in ("n", "low", "high")}
    p = evaluation.mcnemar(*sides)["p_value"]
    return Fact(name, dict(keys), value=gap["difference"], p=p, **figures)


def corrected(facts: Sequence[Fact]) -> list[Fact]:
    """Applies Holm's correction to the p-values; a fact without one counts as a comparison too."""
    adjusted = evaluation.holm([1.0 if fact.p is None else fact.p for fact in facts])
    return [
        fact if fact.p is None else dataclasses.replace(fact, p=p)
        for fact, p in zip(facts, adjusted, strict=True)
    ]


def over_seeds(
    facts: Facts,
    measured: Iterable[Fact],
    control: Control,
    name: str,
    *,
    over: str = "seed",
    correct: bool = True,
) -> list[Fact]:
    """Subtracts the values of a control, paired over seeds, and averages the differences.

    Args:
      facts: The facts among which the controls are.
      measured: The facts to compare.
      control: The keys of a fact -> the keys of its control, or None.
      name: The measure of the new facts.
      over: The key to average over.
      correct: Whether p gets Holm's correction over all facts that are returned; `corrected` does this
        for the facts of several calls together.

    Returns:
      Facts without the key `over`: value, the mean difference; low and high, its Student interval; p of
      the paired t-test; n, the number of pairs; deviation, the standard deviation of the differences.
      Interval, p and deviation are None if there is only one pair, or if all differences are equal.
    """
    found = []
    for keys, group in _grouped(_pairs(facts, measured, control), over):
        values = [[value(fact) for fact in side] for side in zip(*group, strict=True)]
        gap = evaluation.paired_mean_difference(*values)
        found.append(_mean(name, keys, gap, gap["p_value"]))
    return corrected(found) if correct else found


def over_seeds_or_images(
    facts: Facts, measured: Iterable[Fact], control: Control, name: str, *, over: str = "seed"
) -> list[Fact]:
    """Compares facts of several seeds as `over_seeds`, and facts of one seed as `over_images`.

    Returns:
      Facts without the key `over`, with the figures of these functions. p has Holm's correction over
      all facts that are returned.
    """
    found = []
    for _, group in _grouped(((fact,) for fact in measured), over):
        own = [fact for (fact,) in group]
        pairs = over_seeds(facts, own, control, name, over=over, correct=False)
        if len(own) == 1:
            pairs = over_images(facts, own, control, name, correct=False)
        found += [dataclasses.replace(gap, keys=without(gap.keys, over)) for gap in pairs]
    return corrected(found)


def less(facts: Facts, measured: Iterable[Fact], control: Control, name: str) -> list[Fact]:
    """Subtracts the values of a control, without a test."""
    pairs = _pairs(facts, measured, control)
    return [Fact(name, fact.keys, value(fact) - value(other)) for fact, other in pairs]


def means(
    measured: Iterable[Fact],
    over: str | Sequence[str],
    name: str,
    *,
    fewest: int = 2,
    alone: bool = False,
) -> list[Fact]:
    """Averages facts that agree in all keys except some, such as "seed".

    Args:
      measured: The facts.
      over: The key or keys to average over, which the means do not have.
      name: The measure of the means.
      fewest: The smallest number of values for which a mean gets an interval.
      alone: Whether a single value keeps its own figures (a share keeps its interval over images).

    Returns:
      The means: value; low and high, the 95 % Student interval, which is cut off at 0 and 1 for shares;
      deviation; n, the number of values.
    """
    names = (over,) if isinstance(over, str) else tuple(over)
    found = []
    for keys, group in _grouped(((fact,) for fact in measured), *names):
        mean: dict[str, Any] = {**evaluation.mean_interval([value(fact) for (fact,) in group])}
        if len(group) < fewest:
            mean |= {"low": None, "high": None}
        elif mean["low"] is not None and all(fact.count is not None for (fact,) in group):
            mean |= {"low": max(0.0, mean["low"]), "high": min(1.0, mean["high"])}
        if alone and len(group) == 1:
            own = group[0][0]
            found.append(dataclasses.replace(own, measure=name, keys=keys, outcomes=None))
        else:
            found.append(_mean(name, keys, mean))
    return found


def one_more(measured: Iterable[Fact], over: str, pooled: str, name: str) -> list[Fact]:
    """Predicts how far from the mean of several values one more value would be, in 95 of 100 cases.

    For trainings that differ in their seed, this is how much another seed would change the result. It
    is a prediction interval of Student's t. The spread of the values around the mean of their group is
    pooled over the groups, as if it were the same in all of them.

    Args:
      measured: The facts.
      over: The key that tells the values of a group apart, such as "seed".
      pooled: The key that tells the groups apart, such as "network".
      name: The measure of the new facts.

    Returns:
      Facts without these two keys: value is 0; low and high are the interval around the mean; n is the
      number of values. Where there are fewer than two degrees of freedom, or no spread, there is no
      fact.

    Raises:
      ValueError: The groups have different numbers of values.
    """
    from scipy import stats

    found = []
    for keys, group in _grouped(((fact,) for fact in measured), over, pooled):
        by_group: dict[Any, list[float]] = {}
        for (fact,) in group:
            by_group.setdefault(fact.keys[pooled], []).append(value(fact))
        sizes = {len(of_one) for of_one in by_group.values()}
        if len(sizes) > 1:
            raise ValueError(
                f"{name!r} needs the same number of values in each {pooled}, got {sorted(sizes)}."
            )
        values = np.array(list(by_group.values()))
        size, freedom = values.shape[1], values.shape[0] * (values.shape[1] - 1)
        squares = float((values.var(axis=1) * size).sum())
        # A spread as small as rounding errors counts as none.
        if freedom < 2 or squares <= 1e-20 * float((values**2).sum()):
            continue
        reach = float(stats.t.ppf(0.975, freedom)) * math.sqrt(squares / freedom * (1 + 1 / size))
        found.append(Fact(name, keys, value=0.0, low=-reach, high=reach, n=values.size))
    return found


def _pairs(facts: Facts, measured: Iterable[Fact], control: Control) -> Iterable[tuple[Fact, Fact]]:
    for fact in measured:
        other = control(dict(fact.keys))
        if other is not None:
            yield fact, facts.of(fact.measure, other)


def _grouped(
    items: Iterable[tuple[Fact, ...]], *over: str
) -> list[tuple[dict[str, Any], list[tuple[Fact, ...]]]]:
    """Groups items by the keys of their first fact, without `over`, in order of appearance."""
    groups: dict[Any, tuple[dict[str, Any], list[tuple[Fact, ...]]]] = {}
    for item in items:
        keys = without(item[0].keys, *over)
        groups.setdefault(frozenset(keys.items()), (keys, []))[1].append(item)
    return list(groups.values())


def _mean(name: str, keys: dict[str, Any], mean: Any, p: float | None = None) -> Fact:
    figures = {figure: mean[figure] for figure in ("n", "low", "high")}
    # Without an interval there is no deviation either: it would only show how coarse the values are.
    deviation = None if mean["low"] is None else mean["std"]
    return Fact(name, keys, value=mean["mean"], p=p, deviation=deviation, **figures)


def _outcomes(fact: Fact) -> np.ndarray:
    if fact.outcomes is None:
        raise ValueError(f"The fact {fact.measure!r} of {fact.keys} has no outcomes to compare.")
    return fact.outcomes
