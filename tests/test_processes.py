"""Several processes that run one script, and what becomes of it if one of them is lost."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from joined import ATTACK, attacked

from jaxrobust import processes
from jaxrobust.evaluation.found import Found
from jaxrobust.evaluation.search import shares
from jaxrobust.evaluation.state_file import StateFile
from jaxrobust.studies import cluster

TESTS = Path(__file__).resolve().parent


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def slurm(rank, num_processes, job):
    """What SLURM tells a process, from which jax finds the others; the job decides about the port."""
    told = {"STEP_NODELIST": "localhost", "NTASKS": num_processes, "PROCID": rank, "LOCALID": rank}
    return {f"SLURM_{name}": str(value) for name, value in (told | {"JOB_ID": job}).items()}


def run(*command, num_processes=2, job=None, devices=(1, 1)):
    """Runs a command in several processes, of a job of SLURM: [(exit code, stdout, stderr)]."""
    port = free_port()
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
    }
    started = []
    for rank in range(num_processes):
        of_all, told = f"localhost:{port},{num_processes},{rank}", {}
        if job is not None:
            of_all, told = "auto", slurm(rank, num_processes, job)
        told["JAX_NUM_CPU_DEVICES"] = str(devices[rank])
        started.append(
            subprocess.Popen(
                [sys.executable, *map(str, command), "--processes", of_all],
                env=environment | told,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        ended = []
        for process in started:
            out, err = process.communicate(timeout=300)
            ended.append((process.returncode, out, err))
        return ended
    finally:
        for process in started:
            process.kill()


def joined(folder, *options, **job):
    return run(TESTS / "joined.py", "--folder", folder, *options, **job)


def finished(folder):
    """How many jobs the state files of all processes have as finished, each counted once."""
    found = [np.load(path)["finished"] for path in folder.glob("state.npz*")]
    return int(np.any(found, axis=0).sum()) if found else 0


@pytest.mark.parametrize("lost", [1, 0])
def test_the_others_name_the_lost_process_and_a_rerun_does_the_rest(lost, tmp_path):
    ended = joined(tmp_path, "--dies", lost)
    assert ended[lost][0] == -9
    code, out, err = ended[1 - lost]
    assert code == 1 and not out
    [line] = [line for line in err.splitlines() if line.startswith("Process")]
    assert line.startswith(f"Process {lost} (on {socket.gethostname()}) of 2 was lost")
    assert "run the same command again in all processes" in line
    assert "Traceback" not in err
    jobs = 30 * ATTACK.num_restarts
    before = finished(tmp_path)
    assert 0 < before < jobs

    # What was finished is not asked for again, and both get the same number of images.
    first, second = joined(tmp_path)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    asked = [json.loads((tmp_path / f"asked{rank}.json").read_text()) for rank in range(2)]
    assert sum(asked) == (jobs - before) * (ATTACK.num_steps + 1)
    assert not second[1]
    assert json.loads(first[1]) == attacked()
    # One process reads what two have found.
    assert attacked(tmp_path / "state.npz") == attacked()


def test_an_error_of_one_process_ends_the_others(tmp_path):
    failed, other = joined(tmp_path, "--fails", 1, job=os.getpid())[::-1]
    assert failed[0] == 2 and "error: `fails` must be at least 2, got 1" in failed[2]
    assert other[0] == 1 and "Process 1 " in other[2]


def test_scripts_train_and_attack_in_two_processes_as_in_one(tmp_path):
    def script(name, number, *options, folder=None):
        place = tmp_path / str(folder or number)
        options = (*options, "--quick", "--no-diagnostics", "--results-dir", place)
        first, *others = run("-m", f"experiments.{name}", *options, num_processes=number)
        assert [first[0], *(code for code, *_ in others)] == [0] * number, first[2]
        assert not any(out or "..." in err for _, out, err in others)
        return place / name / "default", first[2]

    options = ["--methods", "standard", "--widths", 4, 4, 4, "--suite", "fgsm"]
    two, one = (script("train", number, *options)[0] for number in (2, 1))
    logs = [folder / "training" / "simple_cnn-standard" / "log.jsonl" for folder in (two, one)]
    for rows in zip(*(log.read_text().splitlines() for log in logs), strict=True):
        given, expected = (json.loads(row)["train_loss"] for row in rows)
        assert given == pytest.approx(expected, rel=1e-4)

    options = ["--model", one / "models" / "simple_cnn-standard.jrw", "--data", "digits"]
    options += ["--epsilon", "4/255", "--suite", "plus", "--curve", "1/255"]
    two, one = (script("evaluate", number, *options)[0] for number in (2, 1))
    verdicts = [np.load(folder / "outcomes.npz") for folder in (two, one)]
    assert verdicts[0].files == verdicts[1].files and verdicts[0].files
    for name in verdicts[0].files:
        np.testing.assert_array_equal(verdicts[0][name], verdicts[1][name])
    # One process goes on with what two have done: it attacks nothing.
    _, err = script("evaluate", 1, *options, "--save-images", folder=2)
    assert "suite: done before" in err and (two / "adversarial" / "suite.npz").is_file()
    assert len(list((two / "suite").glob("*.npz.process1"))) == len(
        list((two / "suite").glob("*.npz"))
    )


@pytest.mark.parametrize("leaves", [1, 0])
def test_processes_that_disagree_are_told_and_ctrl_c_ends_each_by_itself(leaves, tmp_path):
    """The hosts have different numbers of devices, and one process ends before the other."""
    script = TESTS / "disagreeing.py", "--folder", tmp_path, "--leaves", leaves
    ended = run(*script, devices=(1, 2))
    assert [code for code, *_ in ended] == [130, 130], ended
    assert not any("lost" in err or "Traceback" in err for *_, err in ended), ended
    same = "must have the same arguments in all processes; they differ in the"
    command = "All processes must run the same command with the same code, data and model; they "
    calls = (
        "All processes must make the same calls with the same settings and data; process 0 makes "
    )
    expected = {
        "settings": f"{command}differ in epsilon.",
        "inputs": f"{command}differ in data, labels or model.",
        "results": "`results_dir` must be a folder that all processes see, got ",
        "attack": f"An attack {same} attack.",
        "weights": f"An evaluation {same} weights of the classifier.",
        "state": "`execution.path` must be in a folder that all processes see, got ",
        "images": f"An evaluation {same} images.",
        "calls": f"{calls}the call disagreeing.<lambda> bool [], and process 1 jaxrobust.evaluation.",
    }
    for rank in range(2):
        told = json.loads((tmp_path / f"told{rank}.json").read_text())
        assert told.keys() == expected.keys()
        for name, words in expected.items():
            assert told[name].startswith(words), told[name]
    assert not list(tmp_path.rglob(".*.partial"))
    # What they agreed on was computed once, by both.
    assert len(list(tmp_path.glob("study/default/adversarial/*.npz"))) == 1
    names = sorted(path.name for path in tmp_path.glob("state.npz*"))
    assert names == ["state.npz", "state.npz.process1"]


class Client:
    """One of jax's coordination service that does something in place of waiting."""

    def __init__(self, act):
        self.wait_at_barrier = self.get_live_nodes = lambda *_: act()


def test_one_that_waits_long_says_so_and_waits_no_more_after_an_error(monkeypatch):
    monkeypatch.setattr(processes, "_WARN_AFTER", 0.05)
    monkeypatch.setattr(processes, "client", lambda: Client(lambda: time.sleep(0.5)))
    with pytest.warns(UserWarning, match=r"waited for a minute in test_processes\.test_one_that"):
        processes.meet()

    def fail():
        assert processes.is_waiting()
        raise RuntimeError("the barrier has failed")

    monkeypatch.setattr(processes, "client", lambda: Client(fail))
    with pytest.raises(RuntimeError, match="the barrier has failed"):
        processes.meet()
    assert not processes.is_waiting()


def test_a_request_that_fails_does_not_end_the_watch(monkeypatch):
    answers = iter([None, {0, 1}, None, None, None, None, {0, 1}, {0}])

    def ask():
        answer = next(answers)
        if answer is None:
            raise RuntimeError("the network has failed for a moment")
        return answer

    ended, closed = [], free_port()
    monkeypatch.setattr(processes, "client", lambda: Client(ask))
    with socket.socket() as first:
        first.bind(("localhost", 0))
        first.listen()
        watch = cluster._Watch()
        watch._address, watch._everyone = ("localhost", first.getsockname()[1]), [0, 1]
        monkeypatch.setattr(watch._is_over, "wait", lambda _: bool(ended))
        monkeypatch.setattr(watch, "_end", ended.append)
        watch._ask()
        assert ended == [{1}]
    ended.clear()
    answers = iter([None] * 3)
    watch._address = "localhost", closed
    watch._ask()
    assert ended == [{0}] and not list(answers)


def test_the_setting_is_read_and_wrong_ones_are_explained():
    assert cluster.address("auto") == {}
    assert cluster.address("[::1]:80,2,1") == {
        "coordinator_address": "[::1]:80",
        "num_processes": 2,
        "process_id": 1,
        "cluster_detection_method": "deactivate",
    }
    wrong = ("", "2", "host,2,0", "host:1,2", "host:1,2,2", "host:1,2,-1", ":1,2,0", "host:x,2,0")
    for text in wrong:
        with pytest.raises(ValueError, match="`processes` must be auto, or HOST:PORT,NUMBER,INDEX"):
            cluster.address(text)


def test_images_are_shared_equally_and_stay_where_they_are_under_way():
    left = np.ones((2, 11), bool)
    owner = shares(left, {}, 3)
    np.testing.assert_array_equal(owner, np.arange(11) % 3)
    # Two of the images are finished, and the second process has four in its lanes.
    left[:, :2] = False
    lanes = {"lane/row": np.array([9, -1, 5, 6, 0]), "lane/restart": np.array([0, 0, 1, 0, 1])}
    owner = shares(left, {1: lanes}, 3)
    assert owner[0] == owner[1] == -1 and all(owner[[5, 6, 9]] == 1)
    assert np.bincount(owner[2:]).tolist() == [3, 3, 3]
    # That process does not come back.
    owner = shares(left, {1: lanes}, 1)
    assert owner.tolist() == [-1, -1] + [0] * 9
    # Two have the same image, from runs with different numbers of processes.
    assert shares(left, {1: lanes, 2: lanes}, 3)[9] == 1
    assert shares(np.zeros((1, 4), bool), {}, 2).tolist() == [-1] * 4


def test_results_of_several_processes_are_those_of_the_one_that_is_ahead(tmp_path):
    images = np.zeros((4, 1, 1, 1), np.float32)
    found = [Found.nothing(images, np.ones(4, bool), 2) for _ in range(2)]
    words = '{"attack": {}, "jobs": [], "key": [], "until_fooled": false}'
    logits = dict.fromkeys(("clean_logits", "moved_logits"), images)
    file = StateFile(tmp_path / "state.npz", words, {"program": "a", "weights": "b"} | logits)
    for rank, (one, jobs) in enumerate(
        zip(found, (([0, 1], [0, 0]), ([0, 0, 1], [0, 1, 2])), strict=True)
    ):
        one.finished[tuple(jobs)] = True
        rows = np.array(jobs[1])
        one.images[rows], one.restart[rows], one.num_queries[rows] = rank + 1, 0, rank + 5
    for rank, one in enumerate(found):
        file.of(rank).save(one.arrays(np.ones(4, bool)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.npz", "state.npz.process1"]
    for name in ("state.npz.bfloat16", "state.npz.1", "state.npz.5"):
        (tmp_path / name).write_bytes(b"another attack, or an older file")
    saved = file.load_all()
    assert list(saved) == [0, 1]
    merged = Found.nothing(images, np.ones(4, bool), 2)
    for arrays in saved.values():
        merged.restore(arrays)
    assert merged.finished.T.tolist() == [[True, True], [True, False], [False, True], [False] * 2]
    assert merged.images.ravel().tolist() == [1, 2, 2, 0]
    assert merged.num_queries.tolist() == [5, 6, 6, 0]
    # Saved without the images of another process, which are in its own file.
    arrays = merged.arrays(np.array([True, False, True, True]))
    assert arrays["rows"].tolist() == [0, 2] and arrays["images"].ravel().tolist() == [1, 2]
    assert arrays["finished"].T.tolist() == [[True, True], [False] * 2, [False, True], [False] * 2]
    assert merged.finished[0, 1]
