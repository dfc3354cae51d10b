"""Pruned networks against base networks and controls: image by image, and over the networks."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.pruned_benchmark.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.evaluation.statistics import Mean
from jaxrobust.studies import blocks

FEWEST = 3  # networks for an interval over them
Outcomes = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Two networks on the same images.

    Attributes:
      variant: The one.
      other: What it is compared with.
      n: Images.
      difference: Share that the variant has right, less that of the other.
      low: Of its 95 % interval.
      high: Of its 95 % interval.
      p_value: McNemar's, with Holm's correction over all comparisons made with it.
    """

    variant: Variant
    other: Variant
    n: int
    difference: float
    low: float
    high: float
    p_value: float

    @property
    def cell(self) -> Any:
        """The difference in points with its interval, for a table."""
        return blocks.estimate(self.difference, self.low, self.high, 100)


def compare(pairs: Mapping[tuple[Variant, Variant], Outcomes]) -> list[Comparison]:
    """Compares pairs of networks, with one correction for all of them.

    Args:
      pairs: {(variant, other): (bool [N], bool [N])}, which images each has right. Pairs without an
        image are left out.
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
    """Every network against its base network, or against its first control; on all test images."""
    others = ("base",) if kind == "base" else ("base", "control")
    pairs = [
        (variant, Variant(variant.network, kind))
        for network in study.config.networks
        for variant in study.variants(network)
        if variant.kind not in others or (kind == "control" and variant.number)
    ]
    return compare({(a, b): (study.right(a), study.right(b)) for a, b in pairs})


def white_box(study: Study, name: str) -> list[Comparison]:
    """Every network under an attack made on itself, against the first control under its own.

    Only images count that both have right without an attack.
    """
    pairs: dict[tuple[Variant, Variant], Outcomes] = {}
    for network in study.config.networks:
        control = Variant(network, "control")
        for variant in study.variants(network):
            if variant.kind == "base" or variant == control:
                continue
            both = study.right_of_attacked(variant) & study.right_of_attacked(control)
            sides = [study.white_box[v][name][both] for v in (variant, control)]
            pairs[variant, control] = (sides[0], sides[1])
    return compare(pairs)


# What a network is measured by: a share of the images, or any other figure.
Figure = Callable[[Variant], float]


def shown_figure(study: Study, setting: str, name: str) -> Figure:
    """The share of an attack's images, made on the base, that a network of the family has right.

    Of the images that the base network has right: CW and DeepFool leave others as they are. Not a
    number where there are none.
    """

    def share(variant: Variant) -> float:
        attacked = study.right_of_attacked(Variant(variant.network))
        right = study.shown[variant.network, setting, name][variant]
        return float(right[attacked].mean()) if attacked.any() else math.nan

    return share


def right_figure(study: Study) -> Figure:
    """The share of all test images that a network has right."""
    return lambda variant: float(study.right(variant).mean())


def white_box_figure(study: Study, name: str) -> Figure:
    """The share of all attacked images that a network has right under an attack made on itself."""
    return lambda variant: float(study.white_box[variant][name].mean())


def norm_figure(study: Study) -> Figure:
    """The median l2 norm that DeepFool needs, of the images that a network has right without it."""

    def median(variant: Variant) -> float:
        lengths = study.white_box[variant]["norms"][study.right_of_attacked(variant)]
        return float(np.median(lengths)) if len(lengths) else math.inf

    return median


def controls_in_words(study: Study) -> str:
    """What pruned networks are compared with."""
    number = study.config.num_controls
    return "a control" if number == 1 else f"the mean of {number} controls"


def controls(study: Study, network: str) -> list[Variant]:
    """The controls of a network."""
    return [variant for variant in study.variants(network) if variant.kind == "control"]


def mean_of_controls(study: Study, network: str, figure: Figure) -> float:
    """A figure's mean over the controls of a network."""
    return float(np.mean([figure(variant) for variant in controls(study, network)]))


def from_fine_tuning(study: Study, figure: Figure) -> Mean:
    """The mean of the controls less the base, over the networks: what training on does by itself."""
    return _over_networks(
        [mean_of_controls(study, n, figure) - figure(Variant(n)) for n in study.config.networks]
    )


def from_pruning(
    study: Study,
    figure: Figure,
    criteria: Sequence[str],
    sparsity: float,
    *,
    relative: bool = False,
) -> Mean:
    """The mean of the pruned networks less the mean of the controls, over the networks.

    An interval of Student's t over the networks: each pruned network is one training, and what another
    would have given is in how the networks differ. Of fewer than three there is none.

    Args:
      study: A study whose networks are trained.
      figure: What is compared.
      criteria: The pruned networks of these are averaged first.
      sparsity: Theirs.
      relative: Whether the difference is a share of the controls' figure.
    """
    gaps = []
    for network in study.config.networks:
        before = mean_of_controls(study, network, figure)
        after = np.mean([figure(Variant(network, c, sparsity)) for c in criteria])
        gaps.append(float(after - before) / (before if relative else 1.0))
    return _over_networks(gaps)


def training_noise(study: Study, figure: Figure) -> float | None:
    """How far from the mean of the controls one more control would be, in 95 of 100 trainings.

    A prediction interval of Student's t, with the spread of the controls around the mean of their
    network, pooled over the networks as if it were the same. It is that of the fine-tuning of one base
    network with its images in another order; other test images are not in it. None where controls are
    too few to say: with fewer than two degrees of freedom, or with as many right in all of them.
    """
    figures = [[figure(v) for v in controls(study, n)] for n in study.config.networks]
    number = len(figures[0])
    freedom = len(figures) * (number - 1)
    if freedom < 2:
        return None
    variance = sum(float(np.var(of_one)) * number for of_one in figures) / freedom
    if variance == 0:
        return None
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance * (1 + 1 / number))


def beyond_noise(study: Study, figure: Figure, noise: float) -> dict[str, tuple[int, int, int]]:
    """How many pruned networks differ from the mean of their controls by more than training noise.

    Returns:
      {network: (above, below, of how many)}.
    """
    found = {}
    for network in study.config.networks:
        before = mean_of_controls(study, network, figure)
        pruned = [v for v in pruned_variants(study) if v.network == network]
        gaps = [figure(variant) - before for variant in pruned]
        found[network] = (sum(g > noise for g in gaps), sum(g < -noise for g in gaps), len(gaps))
    return found


def _over_networks(gaps: list[float]) -> Mean:
    mean = evaluation.mean_interval(gaps)
    if len(gaps) < FEWEST:  # t has so few degrees of freedom that the interval says nothing
        mean = {**mean, "low": None, "high": None}
    return mean
