"""Source 003: the study's arithmetic and texts, and the script from end to end."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.pruned_benchmark import (
    accuracy,
    comparisons,
    networks,
    published,
    robustness,
    threats,
    trainings,
    verdicts,
)
from experiments.pruned_benchmark.__main__ import main
from experiments.pruned_benchmark.config import Config, complete
from experiments.pruned_benchmark.study import Study, Variant, spread_rows
from jaxrobust import data, models, pruning, studies
from jaxrobust.studies.outcomes import pack, unpack

ROOT = Path(__file__).resolve().parents[1]
NETWORK = "resnet50"


def test_the_schedule_rises_from_a_tenth_to_the_target():
    rising = trainings.schedule(0.5, 5, 4)
    assert rising[0] == 0.1 and rising[3:] == (0.5, 0.5) and list(rising) == sorted(rising)
    assert trainings.schedule(0.1, 3, 3) == (0.1, 0.1, 0.1)  # it just fine-tunes
    assert trainings.schedule(0.5, 2, 1) == (0.5, 0.5)


@pytest.mark.parametrize("name", [*networks.NARROW, *networks.TINY])
def test_smaller_networks_lose_half_of_every_layer(name):
    """So that every criterion leaves the same sizes, and one program serves them all."""
    network = networks.create(name, 10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), image)
    groups = pruning.channel_groups(network.apply, shapes, image)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    options = {"min_filters": trainings.MIN_FILTERS}
    masks = pruning.prune_filters(variables["params"], 0.5, groups, **options)
    keep = pruning.kept_filters(masks, groups)
    for group, size in groups.sizes.items():
        assert len(keep[group]) == size - round(size / 2)
    small = pruning.shrink(variables, groups, keep)
    smaller = networks.create(name, 10, **networks.widths(models.resized(network, small)))
    assert smaller == models.resized(network, small)
    made = jax.eval_shape(smaller.init, jax.random.key(0), image)
    assert jax.tree.map(np.shape, small) == jax.tree.map(np.shape, made)


def test_attacks_are_those_of_table_7():
    found = threats.attacks()
    assert set(found) == set(threats.SETTINGS)
    source = found["source"]
    assert list(source) == list(threats.NAMES)
    assert source["BiM"].epsilon == 1 and source["BiM"].num_steps == 100
    assert source["FGSM"].epsilon == 0.2 and not source["PGD"].random_start
    assert source["CW"].num_iterations == 10 and source["DF"].num_steps == 5
    assert all(found["8/255"][n].epsilon == 8 / 255 for n in ("FGSM", "BiM", "PGD", "APGD", "UP"))
    assert threats.attacks(2)["source"]["CW"].num_steps == 4
    assert threats.attacks(2)["8/255"]["UP"].max_passes == 2


def test_outcomes_are_packed_and_unpacked():
    outcomes = np.random.default_rng(0).random(1003) < 0.3
    assert np.array_equal(unpack(pack(outcomes), 1003), outcomes)
    assert len(spread_rows(100, 7)) == 7 and len(spread_rows(5, 7)) == 5


def outcomes(count: int, right: int) -> np.ndarray:
    return np.arange(count) < right


def test_comparisons_are_paired_and_corrected():
    other = Variant(NETWORK, "control")
    first, second = comparisons.compare(
        {
            (Variant(NETWORK, "l2", 0.1), other): (outcomes(1000, 540), outcomes(1000, 500)),
            (Variant(NETWORK, "l2", 0.2), other): (outcomes(1000, 500), outcomes(1000, 500)),
        }
    )
    assert first.difference == 0.04 and first.low < 0.04 < first.high
    # 40 images that one alone has right, and two comparisons.
    assert first.p_value == pytest.approx(2 * 2 * 0.5**40)
    assert second.difference == 0 and second.p_value == 1
    assert comparisons.compare({(Variant("a"), Variant("b")): (outcomes(0, 0),) * 2}) == []


def mean(value, low=None, high=None, n=4):
    return {"n": n, "mean": value, "std": 0.01, "low": low, "high": high}


@pytest.mark.parametrize(
    "means, words",
    [
        ([(0.02, 0.01, 0.03)], "it rises at 10 %, by +2.0 (+1.0 to +3.0) points"),
        (
            [(0.02, 0.01, 0.03), (-0.02, -0.03, -0.01)],
            "it rises at 10 %, by +2.0 (+1.0 to +3.0) points; it falls at 20 %, by -2.0 (-3.0 to -1.0) "
            "points",
        ),
        (
            [(0.001, -0.01, 0.01), (-0.002, -0.02, 0.01), (0.001, -0.01, 0.01)],
            "no change is shown at 10, 20 and 30 % (at most -0.2 (-2.0 to +1.0))",
        ),
        ([(0.0, None, None)], "no change is shown at 10 % (at most +0.0)"),
        ([(0.01, None, None, 2)], "+1.0 points, of too few networks to say more"),
    ],
)
def test_an_effect_in_words(means, words):
    assert verdicts.effect({0.1 + index / 10: mean(*m) for index, m in enumerate(means)}) == words


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data": "mnist"}, "`data` must be one of"),
        ({"networks": ("vgg11",)}, "`networks` must be one of"),
        ({"networks": ("vgg19", "vgg19")}, "no name twice"),
        ({"criteria": ("l3",)}, "`criteria` must be one of"),
        ({"criteria": ()}, "`criteria` must be at least one"),
        ({"sparsities": (0.05, 0.5)}, "`sparsities` must be a finite number at least 0.1"),
        ({"sparsities": (0.5, 0.3)}, "`sparsities` must be some, ascending"),
        ({"fine_tuning_epochs": 0}, "`fine_tuning_epochs` must be at least 1"),
        ({"pruning_epochs": 20}, "`pruning_epochs` must be at most"),
        ({"milestones": (20, 10)}, "`milestones` must ascend"),
        ({"fine_tuning_milestones": (2, 1)}, "`fine_tuning_milestones` must ascend"),
        ({"num_controls": 0}, "`num_controls` must be at least 1"),
        ({"latency_runs": 1}, "`latency_runs` must be at least 2"),
        ({"preset": "huge"}, "`preset` must be one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        complete(Config(**settings))


def test_presets_fill_in_what_was_not_given():
    full, cpu = complete(Config()), complete(Config(preset="cpu", num_epochs=3))
    assert full.networks == networks.FULL and full.num_train is None
    assert cpu.networks == networks.NARROW and cpu.num_epochs == 3 and cpu.num_train == 10_000
    assert full.sparsities == cpu.sparsities == published.SPARSITIES
    # Pruned networks train on at their last sparsity, and at a lower rate, before they are measured.
    for config in (full, cpu):
        assert config.pruning_epochs <= config.fine_tuning_milestones[0] < config.fine_tuning_epochs
    short = complete(Config(preset="cpu", fine_tuning_epochs=2))
    assert (short.pruning_epochs, short.fine_tuning_milestones) == (2, ())
    assert Config().data_set == "cifar10_jpeg" and Config(quick=True).data_set == "digits"


def made_study(
    tmp_path: Path,
    networks: tuple[str, ...] = (NETWORK,),
    criteria: tuple[str, ...] = ("l2",),
    num_controls: int = 3,
) -> Study:
    """A study of made-up outcomes, as if it had been run on CIFAR-10.

    The second network's figures are one image less than the first's, the third's two; what was pruned
    to 50 % loses as many once more.
    """
    split = data.Split(np.zeros((40, 32, 32, 3), np.uint8), np.arange(40) % 10, ("",) * 40)
    dataset = data.Dataset(
        name="cifar10",
        train=split,
        test=split,
        class_names=tuple("abcdefghij"),
        mean=np.zeros(3, np.float32),
        std=np.ones(3, np.float32),
    )
    config = complete(
        Config(
            networks=networks,
            criteria=criteria,
            sparsities=(0.1, 0.5),
            num_attacked=40,
            num_controls=num_controls,
        )
    )
    study = Study(config, tmp_path, dataset)
    for less, network in enumerate(networks):
        rights = {"base": 20, "control": 30, "control 2": 28, "control 3": 29}
        rights |= {"L2, 10 %": 32, "L2, 50 %": 24 - less}
        for variant in study.variants(network):
            count = rights[variant.words.replace("L1", "L2")] - less
            study.facts[variant] = {
                "right": pack(outcomes(40, count)),
                "parameters": count,
                "bytes": 1,
            }
            study.white_box[variant] = {
                name: outcomes(40, count - 10) for name in threats.WHITE_BOX
            }
            study.white_box[variant]["norms"] = np.where(outcomes(40, count), count / 10, 0.0)
        for setting in threats.SETTINGS:
            for name in threats.NAMES:
                study.shown[network, setting, name] = {
                    variant: outcomes(40, (rights[variant.words.replace("L1", "L2")] - less) // 2)
                    for variant in study.variants(network)
                }
    return study


THREE = ("mobilenet_v1", "resnet50", "vgg19")


def test_figures_over_networks(tmp_path):
    study = made_study(tmp_path, THREE)
    figure = comparisons.right_figure(study)
    trained = comparisons.from_fine_tuning(study, figure)
    assert trained["mean"] == pytest.approx(9 / 40) and trained["n"] == 3
    # 5, 6 and 7 images less than the mean of the controls.
    most = comparisons.from_pruning(study, figure, ("l2",), 0.5)
    assert most["mean"] == pytest.approx(-6 / 40)
    assert most["high"] - most["mean"] == pytest.approx(4.302653 / 3**0.5 / 40, rel=1e-5)
    share = comparisons.from_pruning(study, figure, ("l2",), 0.5, relative=True)
    assert share["mean"] == pytest.approx(-(5 / 29 + 6 / 28 + 7 / 27) / 3)
    # 3 controls each, one image apart: a variance of 1 with 6 degrees of freedom.
    noise = comparisons.training_noise(study, figure)
    assert noise == pytest.approx(2.446912 * (4 / 3) ** 0.5 / 40, rel=1e-5)
    # 3 images more are beyond 2.83, 5 to 7 less too.
    assert comparisons.beyond_noise(study, figure, noise) == dict.fromkeys(THREE, (1, 1, 2))
    assert comparisons.norm_figure(study)(Variant("resnet50")) == pytest.approx(1.9)
    two = made_study(tmp_path, THREE[:2])
    assert comparisons.from_pruning(two, figure, ("l2",), 0.5)["low"] is None


def test_images_that_the_base_has_wrong_do_not_count_as_shown(tmp_path):
    study = made_study(tmp_path)
    figure = comparisons.shown_figure(study, "source", "CW")
    assert figure(Variant(NETWORK, "l2", 0.1)) == 16 / 20
    study.shown[NETWORK, "source", "CW"][Variant(NETWORK, "l2", 0.1)][20:] = True
    assert figure(Variant(NETWORK, "l2", 0.1)) == 16 / 20


def test_white_box_compares_images_that_both_have_right(tmp_path):
    found = {
        c.variant.words: c for c in comparisons.white_box(made_study(tmp_path), "FGSM at 8/255")
    }
    assert set(found) == {"control 2", "control 3", "L2, 10 %", "L2, 50 %"}
    # 14 of the first 24 against 20; 22 of the first 30 against 20.
    assert found["L2, 50 %"].n == 24 and found["L2, 50 %"].difference == pytest.approx(-6 / 24)
    assert found["L2, 10 %"].n == 30 and found["L2, 10 %"].difference == pytest.approx(2 / 30)


@pytest.mark.parametrize("criteria", [("l2",), ("l1", "l2")])
def test_texts_of_one_network_and_one_control(tmp_path, criteria):
    study = made_study(tmp_path, criteria=criteria, num_controls=1)
    said = json.dumps([*verdicts.verdicts(study), accuracy.section(study)])
    assert "controls that" not in said and "1 controls" not in said
    assert "of 20" not in said and "All networks together" not in said
    assert "what another training would change is not known" in said
    equal = made_study(tmp_path, THREE)
    assert comparisons.training_noise(equal, lambda variant: 0.5) is None
    assert ("L1: " in verdicts.verdicts(study)[0].get("details", "")) == (len(criteria) > 1)


def test_verdicts_say_what_the_figures_do(tmp_path):
    accuracy_said, shown_said, white_said = verdicts.verdicts(made_study(tmp_path, THREE))
    assert "by +22.5 points" in accuracy_said["answer"]
    assert "it falls at 50 %, by -15.0 (-21.2 to -8.8) points" in accuracy_said["answer"]
    assert "within 7.1 points" in accuracy_said["details"]
    assert (
        "beyond that are mobilenet_v1 1 above and 1 below of 2; resnet50 1"
        in accuracy_said["details"]
    )
    assert shown_said["answer"].startswith(
        "With the source's parameters: of 14 cases more often in"
    )
    assert white_said["answer"].count("leaves the controls 45.0 %; with pruning") == 3
    study = made_study(tmp_path, THREE)
    for variant in study.white_box:
        study.white_box[variant][threats.WHITE_BOX[0]] = outcomes(40, 0)
    said = verdicts.verdicts(study)[2]["answer"]
    assert said.endswith("the controls have next to nothing left: FGSM at 8/255 (0.0 %).")


def cells(table: dict, row: int) -> list:
    return table["rows"][row]


def test_tables_of_accuracy(tmp_path):
    study = made_study(tmp_path)
    section = accuracy.section(study)
    tables = [block for block in section["blocks"] if block["kind"] == "table"]
    extremes, rows = cells(tables[0], 0), {row[0]: row for row in tables[-1]["rows"]}
    assert extremes[1:3] == [0.5, 0.75]
    np.testing.assert_allclose(extremes[3:7], [30, 10, 5, -15])
    np.testing.assert_allclose(extremes[7:], [5, -7.7], atol=1e-9)  # of all that the source has
    assert rows["L2, 50 %"][1]["count"] == 24
    assert rows["L2, 50 %"][2]["value"] == pytest.approx(10)
    assert rows["L2, 50 %"][4]["value"] == pytest.approx(-15)
    assert rows["L2, 50 %"][7] == pytest.approx(0.704)
    assert rows["L2, 50 %"][8] == pytest.approx(-7.7)
    assert rows["control"][2]["value"] == pytest.approx(25) and rows["control"][4] is None
    assert rows["control 2"][4]["value"] == pytest.approx(-5)
    assert rows["base"][2:6] == [None] * 4 and rows["base"][7] == pytest.approx(0.781)


def test_tables_under_attack_stand_beside_the_source(tmp_path):
    study = made_study(tmp_path)
    table = robustness.shown_table(study, NETWORK, "l2", "source")
    rows = {row[0]: row for row in table["rows"]}
    assert [cell["count"] for cell in rows["PGD"][1:5]] == [10, 15, 16, 12]
    np.testing.assert_allclose(rows["PGD"][5:], [15, 2.5])
    theirs = rows["CW, source"]
    np.testing.assert_allclose([theirs[1], *theirs[3:6]], [0.683, 0.714, 0.604, 3.1])
    assert theirs[2] is None and "noise, source" not in rows
    assert "PGD, source" not in {
        row[0] for row in robustness.shown_table(study, NETWORK, "l2", "8/255")["rows"]
    }


@pytest.mark.slow(95)
def test_quick_from_end_to_end_resumed_and_refused(tmp_path, capsys):
    config = Config(
        quick=True, results_dir=tmp_path, num_train=256, num_attacked=8, criteria=("l2",)
    )
    report = main(config)
    folder = tmp_path / "pruned_benchmark" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert report == folder / "report.html" and "Report:" in capsys.readouterr().out
    assert [model["name"] for model in result["models"]] == [
        f"{network}, {kind}"
        for network in networks.TINY
        for kind in ("base", "control", "L2, 50 %")
    ]
    assert len(result["verdicts"]) == 3
    assert not (folder / "training").exists() or not list((folder / "training").glob("*/*"))

    # What was removed is not in the file, and the file is a model like any other.
    dense = folder / "models" / "vgg6-tiny-base.jrw"
    small = folder / "models" / "vgg6-tiny-l2-50.jrw"
    assert small.stat().st_size < dense.stat().st_size / 2
    smaller = studies.load_classifier(str(small))
    assert smaller(np.zeros((2, 32, 32, 3), np.float32)).shape == (2, 10)
    shrunk = next(section for section in result["sections"] if section["id"] == "shrunk")
    assert all(row[2] < 1e-3 for row in shrunk["blocks"][0]["rows"])

    text = report.read_text()
    covered = (ROOT / "docs" / "coverage.md").read_text().split("\n# What source 003")[1]
    anchors = set(re.findall(r"`#([a-z0-9-]+)`", covered.split("\n# ")[0]))
    assert anchors
    for anchor in anchors:
        assert f'id="{anchor}"' in text, anchor

    # Killed after some stages: what was finished is read back, the rest made again, the same.
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    lost = [path for path in kept if "vgg6-tiny-l2" in path.name or "latency" in path.name]
    assert len(lost) > 2
    for path in (*lost, folder / "result.json"):
        path.unlink()
    main(config)
    again = json.loads((folder / "result.json").read_text())
    for part in ("models", "verdicts"):
        assert again[part] == result[part], part
    for path, time in kept.items():
        assert (path.stat().st_mtime_ns == time) == (path not in lost)

    with pytest.raises(ValueError, match="num_attacked was 8, is now 9"):
        main(dataclasses.replace(config, num_attacked=9))
    assert json.loads((folder / "result.json").read_text()) == again
