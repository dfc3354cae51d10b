"""Source 003's numbers: as printed, whole, and what they cannot be."""

import numpy as np

from experiments.pruned_benchmark import (
    networks,
    published,
    published_transfer,
    verdicts,
)


def test_published_numbers():
    """Cells of every table, read off the source by eye."""
    table_1 = published.ACCURACY["cifar10"]
    assert table_1["densenet121"]["base"] == 83.3 and table_1["resnet50"]["l2"][4] == 70.4
    assert table_1["mobilenet_v1"]["l1"] == (84.4, 82.7, 82.7, 81.4, 80.2)
    assert published.ACCURACY["cifar100"]["resnet50"]["geometric_median"][2] == 46
    attacked = published.UNDER_ATTACK
    assert attacked["cifar10"]["l2"]["vgg19"]["UP"] == (49.4, 48.7, 48.9, 50.6, 47.3, 48.8)
    assert attacked["cifar10"]["geometric_median"]["mobilenet_v1"]["PGD"][:2] == (7.4, 18.3)
    assert attacked["cifar10"]["l1"]["resnet50"]["CW"][1] == 73.1
    assert attacked["cifar100"]["l2"]["densenet121"]["DF"] == (
        *(13.49, 35.76, 35.1),
        *(34.18, 33.64, 31.27),
    )
    assert attacked["cifar100"]["l1"]["resnet50"]["UP"][-1] == 15.02
    assert attacked["cifar100"]["geometric_median"]["resnet50"]["APGD"][1] == 1.93
    moved = published_transfer.TRANSFER
    assert moved["resnet50"]["vgg19"]["UP"] == (12.4, 10.9, 12, 12.6, 14.5, 10.1)
    assert moved["densenet121"]["vgg19"]["PGD"][-1] == 3.8
    assert moved["mobilenet_v1"]["densenet121"]["APGD"][0] == 13.3
    assert published.LATENCY[64]["resnet50"][3] == (81.41, 3.82)
    assert published.LATENCY[32]["mobilenet_v1"][0] == (20.43, 1.61)
    assert published.SIZES["cifar10"]["vgg19"] == (230, 77)


def test_every_published_row_is_whole():
    rows = [
        row
        for tables in published.UNDER_ATTACK.values()
        for by_network in tables.values()
        for by_attack in by_network.values()
        for row in by_attack.values()
    ]
    assert len(rows) == 3 * 4 * 7 + 3 * 3 * 6 and all(len(row) == 6 for row in rows)
    moved = [
        row
        for by_victim in published_transfer.TRANSFER.values()
        for by_attack in by_victim.values()
        for row in by_attack.values()
    ]
    assert len(moved) == 4 * 3 * 7 and all(len(row) == 6 for row in moved)


def test_the_cell_in_doubt_repeats_its_neighbour():
    ((surrogate, victim, name, place),) = published_transfer.IN_DOUBT
    table = published_transfer.TRANSFER[surrogate][victim]
    assert table[name][place] == table["CW"][place] == 82.2
    others = [value for index, value in enumerate(table[name]) if index != place]
    assert max(others) < 13


def test_the_source_agrees_with_its_deltas():
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
    assert verdicts.source_within()["cifar10"][1] == 84
    assert verdicts.source_within()["cifar100"][1] == 54
    for dataset, by_network in printed.items():
        for network, deltas in by_network.items():
            rows = published.ACCURACY[dataset][network]
            values = [v for name in ("l1", "l2", "geometric_median") for v in rows[name]]
            found = max(values) - rows["base"], min(values) - rows["base"]
            np.testing.assert_allclose(found, deltas, atol=1e-9)


def test_the_sources_files_hold_copies_of_the_weights():
    """Its pruned files are the weights of the unpruned networks, its base files three times these."""
    for family, (base, small) in published.SIZES["cifar10"].items():
        weights = 4e-6 * networks.published_parameters(family, 10)
        assert 0.9 < small / weights < 1.1, family
        assert 2.6 < base / weights < 3.2, family
