"""Source 004: its numbers, the study's arithmetic, and the script from end to end."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.robust_compression import (
    attacking,
    course,
    networks,
    outcome,
    published,
    robustness,
    trained,
    trainings,
    verdicts,
)
from experiments.robust_compression.__main__ import main
from experiments.robust_compression.config import EPSILON, METHODS, Config, complete
from experiments.robust_compression.shares import interval_of, spread_rows
from experiments.robust_compression.study import Study, Variant, n_of_m
from jaxrobust import data, evaluation, models, pruning, studies, training
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.studies.outcomes import pack, unpack

ROOT = Path(__file__).resolve().parents[1]


def test_published_numbers():
    """Cells of every table, read off the source by eye."""
    table = published.AUTO_ATTACK
    assert table["ResNet"][0.1][1.0] == (77.25, 53.9, 44.2, 43.9, 43.9)
    assert table["ResNet"][0.1][0.5][0] == 77.2 and table["ResNet"][0.1][0.5][-1] == 42.4
    assert table["ResNet"][0.1][0.1][0] == 66.7 and table["ResNet"][0.1][0.1][-1] == 38.0
    assert table["MobileNet"][0.03][0.1] == (36.8, 8.0, 3.0, 2.5, 2.5)
    assert published.COMBINED["ResNet"]["combined"] == (85.6, 82.2, 78.0)
    assert published.COMBINED["MobileNet"]["robust"] == (70.1, 51.1, 46.4)
    assert published.NATURAL["MobileNet"] == (2e6, 93.2, 66.0)


def test_where_the_sources_columns_rise():
    """What is left after one attack more cannot be more; in one row it is."""
    found = [
        (network, radius, kept)
        for network, by_radius in published.AUTO_ATTACK.items()
        for radius, by_share in by_radius.items()
        for kept, row in by_share.items()
        if any(after > before for before, after in itertools.pairwise(row))
    ]
    assert tuple(found) == published.RISES
    assert all(
        len(row) == len(published.COLUMNS)
        for by_radius in published.AUTO_ATTACK.values()
        for by_share in by_radius.values()
        for row in by_share.values()
    )


def test_the_sources_combined_networks_cannot_be_right():
    """What withstands every attack at 0.1 withstands AutoAttack at 0.03, which is a smaller ball."""
    robust_at_01 = published.COMBINED["ResNet"]["robust"][1]
    assert robust_at_01 > published.AUTO_ATTACK["ResNet"][0.1][1.0][-1]


def test_a_collapse_is_what_the_source_calls_one():
    for network, collapsed in (("ResNet", False), ("MobileNet", True)):
        for radius in (0.1, 0.03):
            rows = published.AUTO_ATTACK[network][radius]
            dense, smallest = ((rows[kept][0], rows[kept][-1]) for kept in (1.0, 0.1))
            assert verdicts.has_collapsed(dense, smallest) is collapsed


@pytest.mark.parametrize("method", ["dense", *METHODS])
@pytest.mark.parametrize("num_epochs", [6, 15, 30])
def test_every_method_has_as_many_epochs(method, num_epochs):
    found = course.phases(method, num_epochs)
    assert sum(found) == num_epochs and min(found) >= 1
    assert len(found) == {"magnitude": 2, "dense_phases": 2, "two_phase": 3, "hydra": 3}.get(
        method, 1
    )
    if len(found) > 1:  # they share the training of the dense half
        assert found[0] == course.phases("magnitude", num_epochs)[0]


def test_n_of_m():
    assert n_of_m(0.5) == (2, 4) and n_of_m(0.25) == (1, 4) and n_of_m(0.1) == (1, 8)


def test_outcomes_are_packed_and_unpacked():
    outcomes = np.random.default_rng(0).random(1003) < 0.3
    assert np.array_equal(unpack(pack(outcomes), 1003), outcomes)
    assert len(spread_rows(100, 7)) == 7 and len(spread_rows(5, 7)) == 5


def point(epsilon: float, count: int) -> dict:
    return {"epsilon": epsilon, "robust_accuracy": evaluation.rate(count, 10)}


def test_curves_over_seeds_have_students_interval():
    first = [point(0.0, 8), point(0.1, 4), point(0.2, 0)]
    second = [point(0.0, 8), point(0.1, 2)]  # it ended below chance
    epsilons, values = robustness.mean_curve([first, second])
    assert epsilons == [0.0, 0.1]
    assert values[0] == pytest.approx(0.8)  # no spread, and so no interval
    assert values[1]["value"] == pytest.approx(0.3)
    assert values[1]["low"] == 0.0 and values[1]["high"] == 1.0  # 0.3 +- 1.27, cut to shares
    assert robustness.mean_curve([first])[1][1]["count"] == 4


def test_means_over_seeds():
    cell = interval_of([0.4, 0.44, 0.42])
    # t(0.975, 2) = 4.3027, the deviation 2 points.
    assert cell["value"] == pytest.approx(42)
    assert cell["high"] - 42 == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)
    assert interval_of([0.4]) == pytest.approx(40)


def gap(*differences: float) -> dict:
    return evaluation.paired_mean_difference(np.array(differences), np.zeros(len(differences)))


@pytest.mark.parametrize(
    "differences, words",
    [
        ((-0.01, -0.012, -0.011), "yes, the whole interval"),
        ((-0.00, -0.03, -0.02), "on average yes, not beyond doubt"),
        ((-0.02, -0.05, -0.04), "on average no, not beyond doubt"),
        ((-0.10, -0.101, -0.102), "no, the whole interval is below"),
        ((-0.02,), "not tested"),
    ],
)
def test_whether_a_margin_is_kept(differences, words):
    assert verdicts.within(gap(*differences), 0.03) == words


@pytest.mark.parametrize(
    "gaps, words",
    [
        ({}, "nothing to compare"),
        ({"a": (0.1, 0.101, 0.102)}, "ahead, beyond chance"),
        ({"a": (-0.1, -0.101, -0.102)}, "not ahead, beyond chance"),
        ({"a": (0.1, -0.2, 0.3)}, "ahead, no difference beyond chance"),
        (
            {"a": (0.1, 0.101, 0.102), "b": (-0.1, -0.101, -0.102)},
            "ahead of 1 of 2 on average, beyond chance of a, beyond chance behind b",
        ),
        (
            {"a": (0.1, -0.2, 0.3), "b": (0.1, -0.2, 0.0)},
            "ahead of 1 of 2 on average, no difference beyond chance",
        ),
    ],
)
def test_who_is_ahead(gaps, words):
    assert verdicts.compare({name: gap(*values) for name, values in gaps.items()}) == words


def test_one_seed_is_compared_over_its_images_several_over_seeds(tmp_path):
    right = {"dense": np.arange(40) < 30, "irregular": np.arange(40) < 18}

    def compared(num_seeds):
        study = made_study(tmp_path, seeds=num_seeds)
        return outcome.against_dense(
            study, Variant(study.main, "irregular", 0.5), lambda v: np.roll(right[v.method], v.seed)
        )

    one, three = compared(1), compared(3)
    images = evaluation.paired_difference(right["irregular"], right["dense"])
    assert [one[key] for key in ("mean", "low", "high")] == [
        images[key] for key in ("difference", "low", "high")
    ]
    assert one["p_value"] == evaluation.mcnemar(*right.values())["p_value"]
    assert verdicts.within(one, 0.03) == "no, the whole interval is below"
    assert verdicts.within(one, 0.3) == "undecided"
    assert three["n"] == 3 and three["mean"] == one["mean"] == -0.3


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data": "mnist"}, "`data` must be one of"),
        ({"networks": ("vgg11",)}, "`networks` must be one of"),
        ({"methods": ("magnitude",)}, "`methods` must hold irregular"),
        ({"methods": ("irregular", "obd")}, "`methods` must be one of"),
        ({"kept": (0.1, 0.5)}, "`kept` must be some, descending"),
        ({"ratios": ()}, "`ratios` must be some"),
        ({"radii": (0.1, 0.1)}, "`radii` must be some"),
        ({"curve_epsilons": (0.1, 0.2)}, "`curve_epsilons` must rise from 0"),
        ({"num_epochs": 5}, "`num_epochs` must be at least 6"),
        ({"seeds": 0}, "`seeds` must be at least 1"),
        ({"rho": 0.0}, "`rho`"),
        ({"preset": "huge"}, "`preset` must be one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        complete(Config(**settings))


def test_presets_fill_in_what_was_not_given():
    gpu, cpu = complete(Config()), complete(Config(preset="cpu", num_epochs=9))
    assert gpu.networks == networks.FULL and gpu.num_attacked == 1000 and gpu.num_train is None
    assert cpu.networks == networks.NARROW and cpu.num_epochs == 9 and cpu.seeds == 3
    assert complete(Config(quick=True)) == complete(Config(preset="quick"))
    assert Config().data_set == "cifar10_jpeg" and Config(quick=True).data_set == "digits"


def made_study(tmp_path: Path, split: data.Split | None = None, **settings: object) -> Study:
    """A study of which nothing has been run, as if on CIFAR-10."""
    split = split or data.Split(np.zeros((40, 32, 32, 3), np.uint8), np.arange(40) % 10, ("",) * 40)
    dataset = data.Dataset(
        name="cifar10",
        train=split,
        test=split,
        class_names=tuple("abcdefghij"),
        mean=np.zeros(3, np.float32),
        std=np.ones(3, np.float32),
    )
    return Study(complete(Config(preset="cpu", num_attacked=40, **settings)), tmp_path, dataset)


def test_every_network_has_a_file_and_a_name_of_its_own(tmp_path):
    variants = made_study(tmp_path).variants()
    assert len({v.stem for v in variants}) == len({v.name for v in variants}) == len(variants)
    counts = [sum(v.seed == seed for v in variants) for seed in (0, 1, 2)]
    assert counts[1] == counts[2] < counts[0]


@pytest.mark.parametrize("num_epochs", [6, 7, 12, 15, 30])
def test_every_method_meets_the_same_attack_and_learning_rate(tmp_path, num_epochs):
    study = made_study(tmp_path, num_epochs=num_epochs)
    whole = course.attacks(study, EPSILON)
    wanted = [course.strength(whole, epoch) for epoch in range(1, num_epochs + 1)]
    found = {}
    for method in ("dense", *METHODS):
        rows, rates, done = [], [], 0
        for epochs in course.phases(method, num_epochs):
            part = course.part_of(whole, done, epochs)
            assert part.stages[-1][0] <= epochs  # what `fit` asks for
            rows += [course.strength(part, epoch) for epoch in range(1, epochs + 1)]
            schedule = course.recipe(study, done, epochs).learning_rate(10)
            rates += [float(schedule(10 * epoch)) for epoch in range(epochs)]
            done += epochs
        assert rows == wanted, method
        found[method] = rates
    for method, rates in found.items():
        assert rates == pytest.approx(found["dense"]), method
    drop = round(0.75 * num_epochs)
    full = study.config.learning_rate
    assert found["dense"][:drop] == pytest.approx([full] * drop)
    assert found["dense"][drop:] == pytest.approx([0.2 * full] * (num_epochs - drop))


@pytest.mark.parametrize("num_epochs", [6, 7, 12, 15, 30])
@pytest.mark.parametrize("kept", [1.0, 0.1])
def test_sequences_change_one_thing_at_a_time(tmp_path, num_epochs, kept):
    study = made_study(tmp_path, num_epochs=num_epochs)
    assert course.attacks(study, 0.0) is None and course.part_of(None, 0, 3) is None
    whole = course.attacks(study, EPSILON)
    rows = [course.strength(whole, epoch) for epoch in range(1, num_epochs + 1)]
    epsilons, steps = [row["epsilon"] for row in rows], [row["steps"] for row in rows]
    shares = course.budgets(study, kept)
    assert len(shares) == num_epochs and shares[0] == 1.0
    assert list(shares) == sorted(shares, reverse=True)
    assert set(shares[round(0.75 * num_epochs) :]) == {kept}
    training.check_sequences(epsilons, steps, shares)
    # The whole attack from the middle on, when the methods in phases begin to prune.
    assert epsilons == sorted(epsilons)
    assert set(epsilons[num_epochs // 2 - 1 :]) == {EPSILON}
    assert set(steps[num_epochs // 2 - 1 :]) == {study.config.max_steps}
    for _, one in whole.stages:
        assert one.step_size <= 1.25 * one.epsilon + 1e-9


def test_a_single_step_is_that_of_fgsm_rs():
    assert attacking.pgd(0.1, 1).step_size == pytest.approx(0.125)
    assert attacking.pgd(0.1, 10).step_size == pytest.approx(0.025)


def test_the_alarm_is_of_the_compressed_network(tmp_path):
    study, variant = made_study(tmp_path), Variant("resnet10_slim")
    study.facts[variant] = {
        "history": [
            {"epoch": epoch, "train_loss": 1.0, "validation_loss": loss}
            for epoch, loss in enumerate((1.9, 1.8, 1.7, 2.4), start=1)
        ]
    }
    found = trained.alarm(study, variant)
    assert found["explosion_epoch"] == 4 and found["collapse_epoch"] == 4


def test_images_of_training_validation_and_seeds_are_apart(tmp_path):
    labels = np.arange(400) % 10
    names = tuple(map(str, range(400)))
    split = data.Split(np.zeros((400, 32, 32, 3), np.uint8), labels, names)
    study = made_study(tmp_path, split, num_train=100, num_validation=30)
    assert len(study.train) == 100 and len(study.validation) == 30
    assert not set(study.train.files) & set(study.validation.files)
    everything = [name for seed in study.seeds for name in study.attacked_by(seed).files]
    assert len(set(everything)) == len(everything) == 3 * 40


def test_alternatives_at_the_last_share_alone(tmp_path):
    compared = made_study(tmp_path, methods=METHODS).compared(0)
    shares = {
        method: [v.kept for v in compared if v.method == method] for method in ("dense", *METHODS)
    }
    assert shares["irregular"] == [0.5, 0.1] and shares["hydra"] == [0.1]
    assert shares["dense_phases"] == [1.0] and shares["n_of_m"] == [0.5, 0.125]


def test_multipliers_are_updated_four_times_in_an_epoch(tmp_path):
    split = data.Split(np.zeros((400, 32, 32, 3), np.uint8), np.arange(400) % 10, ("",) * 400)
    study = made_study(tmp_path, split, num_train=100, batch_size=8)
    tie = trainings.admm(study, Variant(study.main, "irregular", 0.1))
    assert tie.every == 3 and tie.kept == course.budgets(study, 0.1)
    # Four times in each of the first three quarters of twelve epochs it grows, a hundredfold in all.
    assert tie.rho * tie.rho_growth ** (4 * 9) == pytest.approx(tie.largest_rho)
    assert tie.largest_rho == study.config.rho == pytest.approx(100 * tie.rho)
    assert trainings.largest_rho(study) * study.config.learning_rate == pytest.approx(0.2)


def test_funnel_knows_the_depth_of_both_families(tmp_path):
    study = made_study(tmp_path)
    assert trainings.constraint(study, Variant("resnet10_slim", "funnel", 0.1)).order is None
    order = trainings.constraint(study, Variant("mobilenet_v2_narrow", "funnel", 0.1)).order
    # A shortcut is used before what it passes; stem and head stay whole.
    assert order[:4] == tuple(
        f"stage_0_block_0/{layer}/conv/kernel"
        for layer in ("expand", "depthwise", "shortcut", "project")
    )
    assert order[-1] == "last/conv/kernel" and len(order) == len(set(order)) == 17 * 3 + 4 + 1


@pytest.mark.parametrize(
    "method, number", [("irregular", 4 + 4), ("funnel", 9), ("rigl", 8), ("redundant", None)]
)
def test_what_methods_promise(method, number):
    assert trainings.promised(Variant("resnet18", method, 0.1), [44, 44]) == number


def test_masks_of_the_control_are_as_many_and_at_random(tmp_path):
    study = made_study(tmp_path)
    found = [
        trainings._random_masks(study, Variant(study.main, "random_masks", 0.1, seed=seed))
        for seed in (0, 1)
    ]
    kernels = [dict(named_leaves(masks)) for masks in found]
    for path in pruning.kernel_paths(found[0]):
        counts = [int(each[path].sum()) for each in kernels]
        assert counts[0] == counts[1], path
        size = kernels[0][path].size
        if path.startswith(("stem", "head")):
            assert counts[0] == size
        else:
            assert counts[0] == round(0.1 * size)
            assert bool((kernels[0][path] != kernels[1][path]).any())


@pytest.mark.slow(90)
def test_quick_from_end_to_end_resumed_and_refused(tmp_path, capsys):
    config = Config(
        quick=True, results_dir=tmp_path, num_train=256, num_attacked=8, kept=(0.5,), seeds=1
    )
    report = main(config)
    folder = tmp_path / "robust_compression" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert report == folder / "report.html" and "Report:" in capsys.readouterr().out
    assert len(result["models"]) == 3 and len(result["verdicts"]) >= 7
    assert not list((folder / "training").glob("*/*"))

    # What was asked for is in the file, and the file is a model like any other.
    path = folder / "models" / "resnet6-tiny-irregular-50-8of255-seed0.jrw"
    variables = models.load(path).classifier.variables
    leaves = dict(named_leaves(variables["params"]))
    for name in pruning.kernel_paths(variables["params"]):
        kept = int((leaves[name] != 0).sum())
        pruned = not name.startswith(networks.NETWORKS["resnet6_tiny"].exclude)
        assert kept == (round(0.5 * leaves[name].size) if pruned else leaves[name].size), name
    smaller = studies.load_classifier(str(path))
    assert smaller(np.zeros((2, 32, 32, 3), np.float32)).shape == (2, 10)

    text = report.read_text()
    covered = (ROOT / "docs" / "coverage.md").read_text().split("\n# What source 004")[1]
    anchors = set(re.findall(r"`#([a-z0-9-]+)`", covered.split("\n# ")[0]))
    assert anchors
    for anchor in anchors:
        assert f'id="{anchor}"' in text, anchor

    # Killed after some stages: what was finished is read back, the rest made again, the same.
    kept_files = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    lost = [p for p in kept_files if "magnitude" in p.name or "latency" in p.name]
    assert len(lost) > 2
    for path in (*lost, folder / "result.json"):
        path.unlink()
    main(config)
    again = json.loads((folder / "result.json").read_text())
    assert again["models"] == result["models"]
    # But for the times, which no machine has twice.
    assert again["verdicts"][:-1] == result["verdicts"][:-1]
    for path, time in kept_files.items():
        assert (path.stat().st_mtime_ns == time) == (path not in lost)

    with pytest.raises(ValueError, match="num_attacked was 8, is now 9"):
        main(dataclasses.replace(config, num_attacked=9))
    assert json.loads((folder / "result.json").read_text()) == again
