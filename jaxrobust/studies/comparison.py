"""Facts compared with facts: paired over images or over seeds, and averaged. Numbers only.

Every function takes the facts that are measured and returns new ones, of the measure `name`, which
`Facts.extend` adds. A difference keeps the keys of what was compared; `facts` are where its control is,
and `control` is a function from the keys of a fact to those of what it is compared with, or to None: it
is not compared.
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
    """Keys without some of them.

    Example:
      >>> without({"network": "mlp", "seed": 0}, "seed")
      {'network': 'mlp'}
    """
    return {name: value for name, value in keys.items() if name not in names}


def value(fact: Fact) -> float:
    """The value of a fact; ValueError where it has none."""
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
    """Shares of the same images less those of a control, image by image, of outcomes bool [N].

    `among` is from keys to bool [N], the images that count; those count that do for both, by default
    all. With `correct` p has Holm's correction over all that are returned.

    Returns:
      For each that has a control: value, the difference of the shares; its Newcombe interval; p,
      McNemar's; n, the images that count: with 0 of them there is no other figure.
    """
    found = []
    for fact, other in _pairs(facts, measured, control):
        counted = None if among is None else among(fact.keys) & among(other.keys)
        found.append(paired(fact, other, name, fact.keys, counted))
    return corrected(found) if correct else found


def paired(
    fact: Fact, other: Fact, name: str, keys: Keys, counted: np.ndarray | None = None
) -> Fact:
    """The share of one fact less that of another, of outcomes bool [N] on the same images.

    `keys` are those of what is returned; `counted` is bool [N], the images that count, None: all.

    Returns:
      As `over_images`; p is not corrected.

    Raises:
      ValueError: Facts without outcomes, or of different numbers of images.
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
    """The facts with Holm's correction of their p-values; one without a p counts as a comparison."""
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
    """Values less those of a control with the same seeds, or whatever else the key `over` pairs.

    With `correct` p has Holm's correction over all that this call returns; `corrected` corrects those
    of several calls together.

    Returns:
      Keys without `over`: value, the mean difference; its Student interval and p, of the paired t-test,
      None where there is one pair or no spread; n, the number of pairs; deviation, of the differences.
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
    """`over_seeds` of what has several seeds, `over_images`, of outcomes bool [N], of what has one.

    Returns:
      Keys without `over`, and figures as those functions return them; p has Holm's correction over all
      that are returned.
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
    """Values less those of a control, without a test."""
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
    """Means over one key or several, such as "seed", which the means do not have.

    Facts that agree in all other keys are averaged. An interval takes `fewest` values: with fewer it
    would say nothing. With `alone` one value alone keeps its own figures: of a share, the interval over
    its images.

    Returns:
      value, the mean; its 95 % Student interval, which of shares ends at 0 and at 1; deviation; n, the
      number of values.
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
    """How far from the mean of several values one more would be, in 95 of 100 cases.

    A prediction interval of Student's t, with the spread of the values around the mean of their group,
    pooled over the groups as if it were the same in all: of trainings that differ in their seed, what
    another seed would change.

    The key `over`, such as "seed", tells the values of a group apart, and `pooled`, such as "network",
    the groups, which must have as many values each: ValueError otherwise.

    Returns:
      value 0; low and high, the interval around the mean; n, the number of values. Nothing where these
      are too few to say: with fewer than two degrees of freedom, or without any spread.
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
                f"{name!r} needs as many values in each {pooled}, got {sorted(sizes)}."
            )
        values = np.array(list(by_group.values()))
        size, freedom = values.shape[1], values.shape[0] * (values.shape[1] - 1)
        squares = float((values.var(axis=1) * size).sum())
        # Equal values differ by their rounding: that is no spread.
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
    """Items by the keys of their first fact but for `over`, in order of appearance."""
    groups: dict[Any, tuple[dict[str, Any], list[tuple[Fact, ...]]]] = {}
    for item in items:
        keys = without(item[0].keys, *over)
        groups.setdefault(frozenset(keys.items()), (keys, []))[1].append(item)
    return list(groups.values())


def _mean(name: str, keys: dict[str, Any], mean: Any, p: float | None = None) -> Fact:
    figures = {figure: mean[figure] for figure in ("n", "low", "high")}
    # Without an interval it would say how coarse the values are, not how they scatter.
    deviation = None if mean["low"] is None else mean["std"]
    return Fact(name, keys, value=mean["mean"], p=p, deviation=deviation, **figures)


def _outcomes(fact: Fact) -> np.ndarray:
    if fact.outcomes is None:
        raise ValueError(f"The fact {fact.measure!r} of {fact.keys} has no outcomes to compare.")
    return fact.outcomes
