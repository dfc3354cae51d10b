"""Pruned networks against the base network and against the control, image by image."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.pruned_benchmark.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.evaluation.statistics import Mean
from jaxrobust.studies import blocks

Outcomes = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Two networks on the same images.

    Attributes:
      attack: What the images went through; "" for nothing.
      variant: The one.
      other: What it is compared with.
      n: Images.
      difference: Share that the variant has right, less that of the other.
      low: Of its 95 % interval.
      high: Of its 95 % interval.
      p_value: McNemar's, with Holm's correction over all comparisons made with it.
    """

    attack: str
    variant: Variant
    other: Variant
    n: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def direction(self) -> int:
        """1 where the variant is beyond chance more often right, -1 less often, else 0."""
        return int(np.sign(self.difference)) if self.p_value < 0.05 else 0

    def within(self, margin: float) -> bool:
        """Whether the whole interval lies within a margin around no difference."""
        return -margin <= self.low and self.high <= margin

    @property
    def cell(self) -> Any:
        """The difference in points with its interval, for a table."""
        return blocks.estimate(self.difference, self.low, self.high, 100)


def compare(pairs: Mapping[tuple[str, Variant, Variant], Outcomes]) -> list[Comparison]:
    """Compares pairs of networks, with one correction for all of them.

    Args:
      pairs: {(attack, variant, other): (bool [N], bool [N])}, which images each has right. Pairs
        without an image are left out.
    """
    kept = {pair: outcomes for pair, outcomes in pairs.items() if len(outcomes[0])}
    raw = [evaluation.mcnemar(*outcomes)["p_value"] for outcomes in kept.values()]
    found = []
    for (pair, outcomes), p_value in zip(kept.items(), evaluation.holm(raw), strict=True):
        gap = evaluation.paired_difference(*outcomes)
        size, difference, low, high = gap["n"], gap["difference"], gap["low"], gap["high"]
        found.append(Comparison(*pair, size, difference, low, high, p_value))
    return found


def pruned_variants(study: Study) -> list[Variant]:
    """All that was pruned."""
    return [
        variant
        for network in study.config.networks
        for variant in study.variants(network)
        if variant.kind not in ("base", "control")
    ]


def accuracy(study: Study, kind: str) -> list[Comparison]:
    """Every pruned network against its base network or its first control, on all test images."""
    pairs = [(v, Variant(v.network, kind)) for v in pruned_variants(study)]
    return compare({("", a, b): (study.right(a), study.right(b)) for a, b in pairs})


def over_networks(study: Study) -> dict[tuple[str, float], Mean]:
    """{(criterion, sparsity): accuracy less the mean of the controls, over the networks}.

    An interval of Student's t over the networks: each pruned network is one training, and what another
    would have given is in how they differ. Of fewer than three there is none.
    """
    found = {}
    for criterion in study.config.criteria:
        for place, sparsity in enumerate(study.config.sparsities):
            gaps = []
            for network in study.config.networks:
                kinds = [v for v in study.variants(network) if v.kind == "control"]
                controls = np.mean([study.right(v).mean() for v in kinds])
                pruned = study.right(study.pruned(network, criterion)[place]).mean()
                gaps.append(float(pruned - controls))
            mean = evaluation.mean_interval(gaps)
            if len(gaps) < 3:  # t has so few degrees of freedom that the interval says nothing
                mean = {**mean, "low": None, "high": None}
            found[criterion, sparsity] = mean
    return found


def between_controls(study: Study) -> list[Comparison]:
    """The other controls against the first: what another order of the images changes."""
    controls = [
        (variant, Variant(network, "control"))
        for network in study.config.networks
        for variant in study.variants(network)
        if variant.kind == "control" and variant.number
    ]
    return compare({("", a, b): (study.right(a), study.right(b)) for a, b in controls})


def shown(study: Study, setting: str, names: Sequence[str], kind: str) -> list[Comparison]:
    """Pruned networks against base or first control, on images that attacks made on their base.

    Only images count that both have right without an attack: others say nothing of the attack.
    """
    return _under_attack(
        study, names, kind, lambda name, v: study.shown[v.network, setting, name][v]
    )


def white_box(study: Study, names: Sequence[str]) -> list[Comparison]:
    """Pruned networks against the control, each attacked itself; of the images both have right."""
    return _under_attack(study, names, "control", lambda name, v: study.white_box[v][name])


def _under_attack(
    study: Study, names: Sequence[str], kind: str, outcomes: Callable[[str, Variant], np.ndarray]
) -> list[Comparison]:
    pairs: dict[tuple[str, Variant, Variant], Outcomes] = {}
    for variant in pruned_variants(study):
        other = Variant(variant.network, kind)
        both = study.right_of_attacked(variant) & study.right_of_attacked(other)
        for name in names:
            sides = [outcomes(name, v)[both] for v in (variant, other)]
            pairs[name, variant, other] = (sides[0], sides[1])
    return compare(pairs)
