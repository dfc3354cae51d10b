"""Source 004: its numbers, and what they say of themselves."""

import itertools
from pathlib import Path

import pytest

from experiments.robust_compression import measures
from jaxrobust.studies import Facts

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "robust_compression"
COLUMNS = ("APGD-CE", "APGD-DLR", "FAB", "Square")


@pytest.fixture(scope="module")
def published() -> Facts:
    facts = Facts()
    facts.read(FOLDER / "published.csv", source="004")
    return facts


def cumulative(published: Facts, network: str, radius: float, kept: float) -> tuple[float, ...]:
    """A row of the source's table 4.2, in percent."""
    of = {"network": network, "radius": radius, "kept": kept, "data": "cifar10", "source": "004"}
    found = [published.of("accuracy", of)]
    found += [published.of("robust accuracy", of, after=name) for name in COLUMNS]
    return tuple(round(100 * fact.value, 4) for fact in found)


def test_published_numbers(published):
    """Cells of every table, read off the source by eye."""
    assert cumulative(published, "ResNet", 0.1, 1) == (77.25, 53.9, 44.2, 43.9, 43.9)
    row = cumulative(published, "ResNet", 0.1, 0.5)
    assert (row[0], row[-1]) == (77.2, 42.4)
    row = cumulative(published, "ResNet", 0.1, 0.1)
    assert (row[0], row[-1]) == (66.7, 38.0)
    assert cumulative(published, "MobileNet", 0.03, 0.1) == (36.8, 8.0, 3.0, 2.5, 2.5)
    for network, member, figures in (
        ("ResNet", "combined", (0.856, 0.822, 0.78)),
        ("MobileNet", "robust", (0.701, 0.511, 0.464)),
    ):
        of = {"network": network, "member": member, "data": "cifar10", "source": "004"}
        found = [published.of("accuracy", of)]
        found += [
            published.of("robust accuracy", of, attack=attack, epsilon=0.1)
            for attack in ("PGD", "CW")
        ]
        assert tuple(fact.value for fact in found) == figures
    natural = {"network": "MobileNet", "radius": 0, "kept": 1, "source": "004"}
    assert published.of("parameters", network="MobileNet", source="004").value == 2e6
    assert published.of("accuracy", natural, data="cifar10").value == 0.932
    assert published.of("accuracy", natural, data="cifar100").value == 0.66


def test_where_the_sources_columns_rise(published):
    """What is left after one attack more cannot be more; in one row it is."""
    rows = list(itertools.product(("ResNet", "MobileNet"), (0.1, 0.03), (1, 0.5, 0.1)))
    found = [
        row
        for row in rows
        if any(after > before for before, after in itertools.pairwise(cumulative(published, *row)))
    ]
    assert len(rows) == 12 and found == [("ResNet", 0.03, 1)]


def test_the_sources_combined_networks_cannot_be_right(published):
    """What withstands every attack at 0.1 withstands AutoAttack at 0.03, which is a smaller ball."""
    of = {"network": "ResNet", "member": "robust", "data": "cifar10", "source": "004"}
    under_pgd = published.of("robust accuracy", of, attack="PGD", epsilon=0.1).value
    assert 100 * under_pgd > cumulative(published, "ResNet", 0.1, 1)[-1]


def test_a_collapse_is_what_the_source_calls_one(published):
    for network, collapsed in (("ResNet", False), ("MobileNet", True)):
        for radius in (0.1, 0.03):
            rows = [cumulative(published, network, radius, kept) for kept in (1, 0.1)]
            dense, smallest = ((row[0], row[-1]) for row in rows)
            assert measures.has_collapsed(dense, smallest) is collapsed
