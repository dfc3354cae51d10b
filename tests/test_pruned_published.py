"""Source 003's numbers: as printed, whole, and what they cannot be."""

import collections

import numpy as np
import pytest

from experiments.pruned_benchmark import __main__ as pruned
from experiments.pruned_benchmark import comparisons
from jaxrobust.studies import ANY, Facts
from jaxrobust.studies.comparison import without

CRITERIA = ("l1", "l2", "geometric_median")
ATTACKS = ("CW", "DF", "FGSM", "BiM", "PGD", "APGD", "UP")


@pytest.fixture(scope="module")
def source():
    """All that published.csv holds, the number of the table and doubts aside."""
    facts = Facts()
    for fact in Facts().read(pruned.SOURCE):
        keys = without(fact.keys, "table", "doubt")
        facts.add(fact.measure, keys, value=fact.value, deviation=fact.deviation)
    return facts


def under_attack(data, network, surrogate, kind, sparsity, attack):
    keys = {"data": data, "network": network, "surrogate": surrogate, "setting": "source"}
    return "accuracy under attack", keys | {"kind": kind, "sparsity": sparsity, "attack": attack}


def on_clean(data, network, kind, sparsity):
    return "accuracy", {"data": data, "network": network, "kind": kind, "sparsity": sparsity}


@pytest.mark.parametrize(
    "asked, printed",
    [
        (on_clean("cifar10", "densenet121", "base", 0.0), 83.3),
        (on_clean("cifar10", "resnet50", "l2", 0.5), 70.4),
        (on_clean("cifar10", "mobilenet_v1", "l1", 0.1), 84.4),
        (on_clean("cifar10", "mobilenet_v1", "l1", 0.5), 80.2),
        (on_clean("cifar100", "resnet50", "geometric_median", 0.3), 46),
        (under_attack("cifar10", "vgg19", "vgg19", "base", 0.0, "UP"), 49.4),
        (under_attack("cifar10", "vgg19", "vgg19", "l2", 0.3, "UP"), 50.6),
        (under_attack("cifar10", *["mobilenet_v1"] * 2, "geometric_median", 0.1, "PGD"), 18.3),
        (under_attack("cifar10", *["mobilenet_v1"] * 2, "base", 0.0, "PGD"), 7.4),
        (under_attack("cifar10", "resnet50", "resnet50", "l1", 0.1, "CW"), 73.1),
        (under_attack("cifar100", "densenet121", "densenet121", "base", 0.0, "DF"), 13.49),
        (under_attack("cifar100", "densenet121", "densenet121", "l2", 0.5, "DF"), 31.27),
        (under_attack("cifar100", "resnet50", "resnet50", "l1", 0.5, "UP"), 15.02),
        (under_attack("cifar100", *["resnet50"] * 2, "geometric_median", 0.1, "APGD"), 1.93),
        (under_attack("cifar10", "vgg19", "resnet50", "base", 0.0, "UP"), 12.4),
        (under_attack("cifar10", "vgg19", "resnet50", "l2", 0.4, "UP"), 14.5),
        (under_attack("cifar10", "vgg19", "densenet121", "l2", 0.5, "PGD"), 3.8),
        (under_attack("cifar10", "densenet121", "mobilenet_v1", "base", 0.0, "APGD"), 13.3),
    ],
)
def test_published_shares(source, asked, printed):
    """Cells of every table, read off the source by eye."""
    measure, keys = asked
    assert source.of(measure, keys).value == pytest.approx(printed / 100, abs=1e-12)


def test_published_times_and_sizes(source):
    keys = {"data": "cifar10", "network": "resnet50", "kind": "l2", "sparsity": 0.5, "batch": 64}
    found = source.of("latency", keys)
    assert (found.value, found.deviation) == (81.41, 3.82)
    base = keys | {"network": "mobilenet_v1", "kind": "base", "sparsity": 0.0, "batch": 32}
    assert source.of("latency", base).value == 20.43
    for kind, size in (("base", 230), ("pruned", 77)):
        of = {"data": "cifar10", "network": "vgg19", "kind": kind}
        assert source.of("file size", of).value == size


def test_every_published_row_is_whole(source):
    """A base figure and five sparsities, by every criterion of every table."""
    rows = collections.defaultdict(list)
    for fact in source:
        if "attack" in fact.keys and fact.keys["kind"] != "base":
            rows[frozenset(without(fact.keys, "sparsity").items())].append(fact.keys["sparsity"])
            base = fact.keys | {"kind": "base", "sparsity": 0.0}
            assert source.find("accuracy under attack", base)
    own = [dict(row) for row in rows if dict(row)["network"] == dict(row)["surrogate"]]
    assert len(own) == 3 * 4 * 7 + 3 * 3 * 6 and len(rows) - len(own) == 4 * 3 * 7
    assert all(sorted(found) == [0.1, 0.2, 0.3, 0.4, 0.5] for found in rows.values())
    assert {row["attack"] for row in own if row["data"] == "cifar10"} == set(ATTACKS)
    accuracies = source.where("accuracy", data=ANY, network=ANY, kind=CRITERIA, sparsity=ANY)
    assert len(accuracies) == 7 * 3 * 5 and len(source) == 1398


def test_the_cell_in_doubt_repeats_its_neighbour(source):
    (doubted,) = [f for f in Facts().read(pruned.SOURCE) if "doubt" in f.keys]
    keys = without(doubted.keys, "table", "doubt")
    assert doubted.value == 0.822 and doubted.keys["table"] == 11
    assert source.of("accuracy under attack", keys, attack="CW").value == 0.822
    others = source.where("accuracy under attack", keys, sparsity=ANY)
    assert sorted(fact.value for fact in others)[-2] < 0.13


def test_the_source_agrees_with_its_deltas(source):
    """Its tables 1 and 13 print the largest and the smallest change."""
    printed = {
        "cifar10": {
            "mobilenet_v1": (5.2, 0.8),
            "densenet121": (3.7, -3.2),
            "resnet50": (5, -7.7),
            "vgg19": (2.9, 0.1),
        },
        "cifar100": {
            "mobilenet_v1": (7.02, 0.71),
            "densenet121": (12.2, 3.66),
            "resnet50": (8, -9.08),
        },
    }
    for data, by_network in printed.items():
        for network, deltas in by_network.items():
            of = {"data": data, "network": network}
            base = source.of("accuracy", of, kind="base", sparsity=0.0)
            comparisons.extremes(source, base, ANY, together=True)
            ends = [source.of("accuracy extreme", of, to="base", end=end) for end in ("max", "min")]
            found = [end.value for end in ends]
            np.testing.assert_allclose(100 * np.array(found), deltas, atol=1e-9)


@pytest.fixture(scope="module")
def published():
    facts = Facts()
    doubted = comparisons.publish(facts, pruned.SOURCE, "cifar10", 10)
    return facts, doubted


def test_most_changes_under_attack_are_not_within_a_point(published):
    facts, doubted = published
    counted = {f.keys["data"]: (f.count, f.n) for f in facts.where("within a point", data=ANY)}
    assert counted == {"cifar10": (42, 84), "cifar100": (17, 54)}
    assert [fact.keys["surrogate"] for fact in doubted] == ["vgg19"]


def test_the_sources_files_hold_copies_of_the_weights(published):
    """Its pruned files are the weights of the unpruned networks, its base files three times these."""
    facts, _ = published
    bases = facts.where("times the weights", network=ANY, kind="base", source="003")
    assert len(bases) == 4
    for base in bases:
        of = {"network": base.keys["network"], "source": "003"}
        assert 2.6 < base.value < 3.2
        assert 0.9 < facts.of("times the weights", of, kind="pruned").value < 1.1
        assert 0.6 < facts.of("file smaller", of).value < 0.7
    assert facts.of("parameters", network="vgg19", source="003").value == 20_040_522


def test_figures_of_other_data_stand_beside_nothing():
    facts = Facts()
    assert comparisons.publish(facts, pruned.SOURCE, None, 10) == []
    assert {fact.measure for fact in facts} == {"within a point"}
