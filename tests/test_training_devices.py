"""Training that several devices, of one process or of several, share: the same as on one."""

import dataclasses
import json

import pytest
from processes import answers
from trained import ATTACKED, CLEAN, FREE, SPARSE, trained

from jaxrobust import compilation
from jaxrobust.training.run import devices as devices_module
from jaxrobust.training.run import fit as fit_module
from jaxrobust.training.run import interrupt as interrupts
from jaxrobust.training.run import loop as loop_module
from jaxrobust.training.run.loop import Desk, Position


@pytest.fixture(scope="module")
def single():
    return [list(trained(recipe).history) for recipe in (ATTACKED, FREE, SPARSE)]


@pytest.mark.slow(50)
@pytest.mark.parametrize(("devices", "processes"), [(2, 1), (1, 2), (2, 2)])
def test_devices_and_processes_share_a_batch_and_change_nothing(
    devices, processes, single, tmp_path
):
    given = answers("trained.py", tmp_path, devices, num_devices=devices, num_processes=processes)
    for answer in given:
        assert answer["histories"] == given[0]["histories"]
        assert answer["devices"] == devices * processes
        first, free, _, sparse = answer["histories"]
        for history, expected in zip((first, free, sparse), single, strict=True):
            for one, other in zip(history, expected, strict=True):
                assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
                assert one["validation_accuracy"] == other["validation_accuracy"]
    # One of them wrote, and what several devices have trained one device reads back.
    lines = (tmp_path / "pgd" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == given[0]["histories"][0]
    again = trained(ATTACKED, run_dir=tmp_path / "pgd")
    assert list(again.history) == given[0]["histories"][0]
    if processes == 1:
        return
    first, second = (answer["said"] for answer in given)
    for said, words in zip(
        zip(first, second, strict=True),
        (
            ("called with the same arguments in all processes; they differ in recipe",) * 2,
            ("must be a folder that all processes see",) * 2,
            ("holds a run of other settings",) * 2,
            ("Interrupted after epoch 1;",) * 2,
            ("as a training ended",) * 2,
            (str(ATTACKED.num_epochs),) * 2,
        ),
        strict=True,
    ):
        assert all(part in text for part, text in zip(words, said, strict=True)), said


@pytest.mark.parametrize("shares", [1, 2])
def test_what_devices_share_leaves_out_onednn(shares, monkeypatch):
    """XLA cannot divide a call of oneDNN among devices: each would compute all rows."""
    monkeypatch.delenv("JAXROBUST_ONEDNN")
    monkeypatch.setattr(compilation, "_onednn_trial", lambda: ("float32",))
    monkeypatch.setattr(devices_module, "num_shares", lambda num_devices: shares)
    seen = []

    def compiled(*arguments):
        seen.append(compilation.onednn_types())
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_module, "_compile", compiled)
    with pytest.raises(KeyboardInterrupt):
        trained(CLEAN)
    assert seen == [("float32",) if shares == 1 else ()]


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="`num_devices` must be at most 1, the devices"):
        trained(CLEAN, num_devices=2)


def test_several_processes_need_a_folder_and_stop_between_epochs(monkeypatch, tmp_path):
    """Whatever one of them is told: half a batch would wait for ever."""
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match="`run_dir` must not be None with several processes"):
        trained(CLEAN)
    stopped = interrupts.Interrupt()
    stopped.requested = True
    taken = []

    class Programs:
        steps_per_epoch, steps_per_call = 5, 2
        update = None
        replicate = staticmethod(lambda value: value)
        order = staticmethod(lambda epoch: None)

        @staticmethod
        def train_batches(state, totals, order, epoch, count):
            taken.append(count)
            return dataclasses.replace(state, step=state.step + count), totals

    @dataclasses.dataclass
    class State:
        step: int = 0
        learning_rate_scale: float = 1.0

    class Display:
        start_epoch = advance = staticmethod(lambda *_: None)

    desk = Desk(None, 1, None, Display(), stopped)
    state, _ = loop_module._train_epoch(Position(State(), {}, ()), CLEAN, Programs(), desk)
    assert state.step == 5 and taken == [2, 2, 1]
