"""Stages that are kept, and the blocks of a report."""

import dataclasses
import json
import subprocess
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import attacks, evaluation, files, models, studies
from jaxrobust.reports import blocks
from jaxrobust.reports.pictures import decode_array
from jaxrobust.studies import terminal


def test_a_finished_stage_is_not_computed_again(tmp_path):
    calls = []

    def compute(progress):
        calls.append(1)
        progress("half", 1, 2)
        return {"pair": (1, 2), "nan": float("nan")}

    first = studies.Stages(tmp_path)
    result = first.remember("a stage, with words", compute)
    again = studies.Stages(tmp_path)
    assert again.remember("a stage, with words", compute) == result == {"pair": [1, 2], "nan": None}
    assert len(calls) == 1
    assert again.seconds == first.seconds


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    code = "import sys, pathlib; from jaxrobust import files; files.hold(pathlib.Path(sys.argv[1]))"

    def another():
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True)

    assert another().returncode == 0  # and it has let go
    files.hold(tmp_path)
    files.hold(tmp_path)  # the same process may come again
    refused = another()
    assert refused.returncode == 1 and "Another process is at work in" in refused.stderr


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    def fail(progress):
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        studies.Stages(tmp_path).remember("stage", fail)
    assert studies.Stages(tmp_path).remember("stage", lambda _: 7) == 7


def test_a_stage_deletes_its_scratch_folder_once_its_result_is_saved(tmp_path, monkeypatch):
    scratch = tmp_path / "training"

    def compute(_):
        scratch.mkdir(exist_ok=True)
        (scratch / "checkpoint").touch()
        return 7

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(studies.stages.files, "write_json", stop)
        with pytest.raises(KeyboardInterrupt):
            studies.Stages(tmp_path).remember("stage", compute, scratch=scratch)
    assert (scratch / "checkpoint").exists()
    assert studies.Stages(tmp_path).remember("stage", compute, scratch=scratch) == 7
    assert not scratch.exists()
    # Stopped in between: the next process deletes it.
    scratch.mkdir()
    assert studies.Stages(tmp_path).remember("stage", compute, scratch=scratch) == 7
    assert not scratch.exists()


def test_names_that_differ_only_in_signs_are_different_stages(tmp_path):
    stages = studies.Stages(tmp_path)
    assert stages.remember("at 5 %", lambda _: 1) == 1
    assert stages.remember("at 5", lambda _: 2) == 2
    assert studies.Stages(tmp_path).remember("at 5 %", lambda _: 3) == 1
    with pytest.raises(ValueError, match="'at 5' twice"):
        stages.remember("at 5", lambda _: 4)


def test_seconds_of_stages_within_others_add_up(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("jaxrobust.studies.stages.time.perf_counter", lambda: next(clock))

    def outer(_):
        with stages("inner"):
            pass
        return None

    stages = studies.Stages(tmp_path)
    stages.remember("outer", outer)
    # The clock was read at the start and end of both: 3 seconds in all, 1 of them in the inner one.
    assert stages.seconds == {"inner": 1, "outer": 2}
    again = studies.Stages(tmp_path)
    again.remember("outer", outer)
    assert again.seconds == stages.seconds


def test_a_damaged_stage_is_named(tmp_path):
    studies.Stages(tmp_path).remember("stage", lambda _: 1)
    (path,) = (tmp_path / "stages").glob("*.json")
    path.write_text("{")
    with pytest.raises(ValueError, match="is not the result of a stage; delete it"):
        studies.Stages(tmp_path).remember("stage", lambda _: 1)
    path.write_text(json.dumps({"stage": "x", "seconds": 1, "within": {}, "result": 1}))
    with pytest.raises(ValueError, match="holds the result of another stage"):
        studies.Stages(tmp_path).remember("stage", lambda _: 1)


def test_stages_of_one_run_name_all_their_commits(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxrobust.studies.stages.commit", lambda: "one")
    studies.Stages(tmp_path).remember("first", lambda _: 1)
    monkeypatch.setattr("jaxrobust.studies.stages.commit", lambda: "two")
    stages = studies.Stages(tmp_path)
    stages.remember("first", lambda _: 1)
    stages.remember("second", lambda _: 2)
    assert stages.commits == ["one", "two"]
    monkeypatch.setattr("jaxrobust.studies.stages.commit", lambda: "three")
    with stages("third"):
        pass
    assert stages.commits == ["one", "two", "three"]


def test_a_table_as_lines_of_a_terminal():
    rate = evaluation.rate(15, 20)
    columns = [
        "Network",
        blocks.column("Time", "s", 1),
        blocks.column("right", group="PGD"),
        "Note",
    ]
    rows = [["cnn", 3, rate, None], ["a long name", 12.34, None, "slow"]]
    lines = terminal.table_lines(blocks.table(columns, rows, "A caption.", title="Networks"))
    assert lines == [
        "Networks",
        "Network      Time (s)  PGD: right (n = 20)  Note",
        "cnn               3.0  75 % (53–89)         –",
        "a long name      12.3     –                 slow",
    ]


def test_a_terminal_shows_the_tables_of_some_sections():
    table = blocks.table(["a"], [["b"]])
    page = [
        table,
        blocks.heading("First", "first"),
        table,
        blocks.text("Words."),
        blocks.heading("Second", "second"),
        table,
        table,
    ]
    assert terminal.section_lines(page, ["first"]) == ["", "a", "b", ""]
    assert terminal.section_lines(page, ["second"]) == ["", "a", "b", "", "a", "b", ""]
    assert terminal.section_lines(page, ["third"]) == terminal.section_lines(page, []) == []


def test_lines_take_bands_from_rates_and_leave_gaps():
    rates = [evaluation.rate(1, 2), None, evaluation.rate(2, 2)]
    found = blocks.line("cnn", (0.1, 0.2, 0.3), rates)
    assert found["x"] == [0.1, 0.3] and found["y"] == [0.5, 1.0]
    assert found["high"][1] == 1.0 and found["low"][0] == rates[0]["low"]
    assert "low" not in blocks.line("cnn", (0, 1), (1, 2))


def test_a_point_without_bounds_has_none():
    found = blocks.line("cnn", (1, 2), ({"value": 0.5, "low": 0.25, "high": 0.75}, 0.5))
    assert found["low"] == [0.25, None] and found["high"] == [0.75, None]


def test_bars_take_numbers_and_values_with_their_spread():
    spread = {"value": 2.0, "deviation": 0.5}
    found = blocks.intervals("Time", {"batch 32": {"dense": 3, "small": spread}}, bars=True)
    assert found["bars"] and found["kind"] == "intervals"
    items = [item["value"] for item in found["groups"][0]["items"]]
    assert items == [{"value": 3, "low": None, "high": None}, spread]


def test_tiles_keep_small_differences():
    image = np.full((2, 2, 3), 0.5, np.float32)
    found = blocks.tile(image + 0.001, style="difference", against=image)
    change = decode_array(found["image"]) - decode_array(found["against"])
    np.testing.assert_allclose(change, 0.001, atol=1e-6)
    assert decode_array(blocks.tile(image)["image"]).dtype == np.uint8


def test_attack_reports_come_back_from_disk(tmp_path):
    def logits_fn(x):
        return jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)

    images = np.random.default_rng(0).uniform(0, 1, (4, 2, 2, 1)).astype(np.float32)
    for attack, targets in (
        (attacks.PGD(0.1, 0.03, 3), None),
        (attacks.FGSM(0.1, targeted=True), 1),
    ):
        report = evaluation.attack_dataset(
            attack, logits_fn, images, [0, 1, 0, 1], key=jax.random.key(0), targets=targets
        )
        path = tmp_path / "deep" / "set.npz"
        evaluation.save_attack(path, report)
        loaded = evaluation.load_attack(path)
        assert loaded.attack == attack
        assert evaluation.summarise(loaded, "m", "ab") == evaluation.summarise(report, "m", "ab")
    # A report of an attack of one's own needs its class.
    evaluation.save_attack(path, dataclasses.replace(report, attack=Own(0.1, 0.03, 3)))
    assert evaluation.load_attack(path, Own).attack == Own(0.1, 0.03, 3)
    with pytest.raises(ValueError, match=r"is not an attack report.*`name` must be one of"):
        evaluation.load_attack(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not an attack report"):
        evaluation.load_attack(path)
    with pytest.raises(FileNotFoundError):
        evaluation.load_attack(tmp_path / "none.npz")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own(attacks.PGD):
    """An attack that the package does not know."""


@dataclasses.dataclass(frozen=True)
class Choices:
    norm: Literal["linf", "l2"] | None = None
    steps: int = 1
    most: int | None = None
    names: tuple[str, ...] | None = ("a", "b")
    sizes: tuple[int, ...] = ()
    rate: float = 0.0


def test_settings_are_checked_by_their_types():
    def check(**given):
        studies.check_settings(Choices(**given), {"steps": 0}, names=("a", "b", "c"))

    check()
    check(norm="l2", steps=0, most=1, names=None)
    for given, error, message in (
        ({"norm": "l1"}, ValueError, "`norm` must be one of"),
        ({"steps": -1}, ValueError, "`steps` must be at least 0"),
        ({"steps": None}, TypeError, "`steps` must be an integer"),
        ({"most": 0}, ValueError, "`most` must be at least 1"),
        ({"most": True}, TypeError, "`most` must be an integer"),
        ({"names": ("d",)}, ValueError, "`names` must be one of"),
        ({"names": ("a", "a")}, ValueError, "`names` must have at least one value and none twice"),
        ({"names": ()}, ValueError, "`names` must have at least one value and none twice"),
    ):
        with pytest.raises(error, match=message):
            check(**given)


def test_the_mean_and_the_deviation_of_images_are_no_weights():
    def network(weights, images):
        return images.mean((1, 2)) @ weights["kernel"]

    kernel = np.zeros((3, 4), np.float32)
    for variables in (
        {"kernel": kernel},
        {"params": {"kernel": kernel}, "batch_stats": np.ones(9)},
    ):
        classifier = models.Classifier(network, variables, np.zeros(3), np.ones(3))
        assert studies.num_parameters(classifier) == 12
    assert studies.num_parameters(lambda images: images.mean((1, 2))) is None
