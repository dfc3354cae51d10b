"""Attacks over data sets that are killed: they go on where they were, and nothing is lost."""

import jax
import numpy as np
import pytest
from verdicts import ATTACKS, SEED, attack, classifier, examples

from jaxrobust import compilation, evaluation
from jaxrobust.attacks import APGD, BIM, FAB, PGD, auto_pgd, conversation, lanes
from jaxrobust.evaluation import Execution, queue, state_file
from jaxrobust.evaluation.seats import Seats
from jaxrobust.types import fold_keys

KEY = jax.random.key(SEED)


class Killed(Exception):
    pass


def killed_after(calls):
    def progress(what, done, total):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Killed

    return progress


def test_the_names_in_a_file_are_those_of_files_that_are_there(tmp_path):
    """A run that was interrupted by an earlier version goes on: no name in its file changes."""
    path = tmp_path / "state.npz"
    with pytest.raises(Killed):
        attack(ATTACKS["pgd"][0], num_lanes=16, path=path, progress=killed_after(1))
    of_lanes = ("originals", "labels", "keys", "finished", "attack.epsilon", "attack.step_size")
    of_progress = ("images", "success", "rank", "fooled", "first_success", "num_steps", "saw_nan")
    of_progress += ("num_queries", "num_gradients")
    found = ("images", "success", "rank", "restart", "steps", "first", "num_queries", "saw_nan")
    found += ("num_gradients", "finished", "rows", "description", "program", "weights")
    found += ("clean_logits", "moved_logits")
    names = {*found, *(f"lane.{name}" for name in of_lanes)}
    names |= {f"lane.progress.{name}" for name in of_progress}
    names |= {f"lane/{name}" for name in ("asked", "group", "row", "restart", "steps")}
    with np.load(path) as file:
        assert {name for name in file if not name.startswith("lane.states")} == names


def test_the_names_of_apgds_state_are_those_of_files_that_are_there():
    """Its fields stay flat for them; a file without one of these would lose what is under way."""
    names = "original label target start point previous best best_loss best_gradient last_loss"
    names += " step_size step stage window since_check increases halved loss_at_check share support"
    assert set(auto_pgd.State._fields) == set(names.split())


@pytest.mark.parametrize("calls", [0, 2, 10])
def test_a_killed_attack_goes_on(calls, tmp_path):
    """Where it was, in the middle of its lanes: nothing is done twice."""
    settings, _ = ATTACKS["apgd-t"]
    options = {"num_lanes": 16, "until_fooled": True, "path": tmp_path / "state.npz"}
    before, after = [], []
    stop = killed_after(calls)

    def until_killed(what, done, total):
        before.append((done, total))
        stop(what, done, total)

    with pytest.raises(Killed):
        attack(settings, progress=until_killed, **options)
    report = attack(settings, progress=lambda _, *told: after.append(told), **options)
    whole = attack(settings, num_lanes=16, until_fooled=True)
    np.testing.assert_array_equal(report.success, whole.success)
    np.testing.assert_array_equal(report.images, whole.images)
    np.testing.assert_array_equal(report.num_queries, whole.num_queries)
    assert after[-1][0] == after[-1][1]
    # What is left when it goes on is what was left when it was killed.
    left = before[-1][1] - before[-1][0]
    assert after[0][1] - after[0][0] < left
    # Finished: nothing is left to do.
    again = attack(settings, progress=lambda *_: pytest.fail("attacked again"), **options)
    np.testing.assert_array_equal(again.images, report.images)


@pytest.mark.parametrize(
    "where, groups",
    [
        *((where, (8,)) for where in ("start", "refill", "advance", "pick", "harvest", "progress")),
        *((where, None) for where in ("advance", "reorder")),
    ],
)
def test_an_interrupt_anywhere_loses_no_verdict(where, groups, tmp_path, monkeypatch):
    """In the middle of each call, late enough that jobs are over and others under way."""
    monkeypatch.setattr(compilation, "group_sizes", lambda: groups)
    monkeypatch.setattr(queue, "_SAVE_EVERY", 0.0)
    settings = PGD(0.03, 0.01, 6, num_restarts=2)
    options = {"num_lanes": 16, "path": tmp_path / "state.npz", "until_fooled": True}
    whole = attack(settings, num_lanes=16, until_fooled=True)
    calls = {"start": 3, "refill": 2, "advance": 5, "pick": 2, "reorder": 1, "harvest": 9}
    left = calls.get(where, 9)

    def interrupted(function):
        def call(*arguments, **keywords):
            nonlocal left
            left -= 1
            result = function(*arguments, **keywords)  # donated buffers are gone by now
            if left == 0:
                raise KeyboardInterrupt
            return result

        return call

    with monkeypatch.context() as patch:
        told = None
        if where == "harvest":
            patch.setattr(queue.Queue, "_is_left", interrupted(queue.Queue._is_left))
        elif where == "progress":
            told = interrupted(lambda what, done, total: None)
        else:
            name = f"compiled_{where}"
            patch.setattr(lanes, name, interrupted(getattr(lanes, name)))
        try:
            attack(settings, progress=told, **options)
        except KeyboardInterrupt:
            assert left == 0
        else:
            assert where == "reorder"  # the only one that need not happen
    report = attack(settings, **options)
    np.testing.assert_array_equal(report.success, whole.success)
    np.testing.assert_allclose(report.images, whole.images, atol=1e-6)


def test_what_was_found_is_kept_without_the_handler(tmp_path, monkeypatch):
    """Killed for good: nothing is saved any more, and the last state on the disk must do."""
    monkeypatch.setattr(queue, "_SAVE_EVERY", 0.0)
    settings, _ = ATTACKS["apgd-t"]
    options = {"num_lanes": 16, "until_fooled": True, "path": tmp_path / "state.npz"}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop = killed_after(10)

        def last(*told):
            try:
                stop(*told)
            except Killed:
                patch.setattr(state_file.StateFile, "save", lambda self, arrays: None)
                raise

        attack(settings, progress=last, **options)
    told = []
    report = attack(settings, progress=lambda _, *one: told.append(one), **options)
    whole = attack(settings, num_lanes=16, until_fooled=True)
    np.testing.assert_array_equal(report.images, whole.images)
    assert told[0][0] > 16  # more than the first look at 16 lanes that start anew


def test_with_other_lanes_a_killed_attack_starts_the_jobs_under_way_anew(tmp_path):
    settings, _ = ATTACKS["apgd-t"]
    options = {"until_fooled": True, "path": tmp_path / "state.npz"}
    told = []
    with pytest.raises(Killed):
        attack(settings, num_lanes=16, progress=killed_after(9), **options)
    report = attack(settings, num_lanes=48, progress=lambda _, *one: told.append(one), **options)
    whole = attack(settings, num_lanes=45, until_fooled=True)
    np.testing.assert_array_equal(report.success, whole.success)
    assert told[0][1] < 3 * 45 * 12  # but not those that were over


def test_lanes_that_do_not_fit_are_left_alone():
    """Other lanes, a leaf that is missing, a leaf of another shape."""
    settings, (images, labels) = PGD(0.1, 0.05, 3), examples()
    arrays = jax.tree.map(np.asarray, conversation.per_image(settings, len(labels)))
    keys = fold_keys(KEY, np.arange(len(labels)))
    task = queue.Task(arrays, images, labels.astype(np.int32), keys, until_fooled=False)
    first = Seats.free(16, len(labels), 3)
    for lane in first.vacant[:5]:
        first.take(lane, restart=0, row=int(lane))
    first.start(list(range(5)), task.start)
    kept = first.arrays()
    missing = {name: leaf for name, leaf in kept.items() if name != "lane.progress.rank"}
    narrow = kept | {"lane.originals": kept["lane.originals"][:, 1:]}
    for num_lanes, arrays in ((8, kept), (16, missing), (16, narrow), (16, {})):
        seats = Seats.free(num_lanes, len(labels), 3)
        before = {name: np.copy(value) for name, value in vars(seats).items() if value is not None}
        assert not seats.restore(arrays, task.start) and seats.running is None
        for name, value in before.items():
            np.testing.assert_array_equal(getattr(seats, name), value)
    seats = Seats.free(16, len(labels), 3)
    assert seats.restore(kept, task.start)
    for name, leaf in seats.arrays().items():
        np.testing.assert_array_equal(leaf, kept[name])


def test_a_file_of_another_attack_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    attack(BIM(0.05, 0.02, 2), path=path)
    for other, options in ((BIM(0.06, 0.02, 2), {}), (BIM(0.05, 0.02, 2), {"until_fooled": True})):
        with pytest.raises(ValueError, match="holds another attack"):
            attack(other, path=path, **options)
    images, labels = examples()
    with pytest.raises(ValueError, match="holds another attack"):
        evaluation.attack_dataset(
            BIM(0.05, 0.02, 2),
            classifier(1),
            images,
            labels,
            key=KEY,
            execution=Execution(path=path),
        )
    path.unlink()
    # Plain functions, of which no weights are seen, with the same predictions.
    plain = {"images": images, "labels": labels, "key": KEY, "execution": Execution(path=path)}
    evaluation.attack_dataset(BIM(0.05, 0.02, 2), lambda x: classifier()(x), **plain)
    with pytest.raises(ValueError, match="holds another attack"):
        evaluation.attack_dataset(BIM(0.05, 0.02, 2), lambda x: 50 * classifier()(x), **plain)
    path.write_bytes(b"half of")
    with pytest.raises(ValueError, match="is not the state of an attack; delete it"):
        attack(BIM(0.05, 0.02, 2), path=path)


def test_a_killed_suite_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "_SAVE_EVERY", 0.0)
    images, labels = examples()
    suite = {"APGD": APGD(0.05, num_iterations=5), "FAB": FAB(0.05, num_iterations=5)}

    def run(**options):
        execution = Execution(num_lanes=8, **options)
        return evaluation.attack_suite(
            suite, classifier(), images, labels, key=KEY, execution=execution
        )

    whole = run()
    stop = killed_after(9)
    with pytest.raises(Killed):
        run(path=tmp_path, progress=stop)
    np.testing.assert_array_equal(run(path=tmp_path).fooled_by, whole.fooled_by)
