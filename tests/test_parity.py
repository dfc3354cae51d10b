"""The comparison with PyTorch's libraries: what can be tested without them."""

import copy
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import auto_attack, worker
from experiments.benchmarks.parity import __main__ as parity
from experiments.benchmarks.parity import compare, export, matrix, ours, peers, tables
from jaxrobust import evaluation, models, studies
from jaxrobust.attacks import APGD, FGSM, PGD

ATTACK = ours.attack
EFFORT = matrix.Effort(3, 5, 2, 2, 5, 4)


def random_variables(name):
    shapes = jax.eval_shape(
        models.create(name).init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)
    )
    leaves, structure = jax.tree.flatten(shapes)
    random = np.random.default_rng(0)
    return structure.unflatten([random.normal(size=x.shape).astype("f4") for x in leaves])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """Ten classes: class k's logit is the pixels times weights k."""

    weights: np.ndarray

    def __call__(self, images):
        return images.reshape(len(images), -1) @ jnp.asarray(self.weights)


@pytest.fixture(scope="module")
def network():
    random = np.random.default_rng(0)
    weights = random.normal(size=(48, 10)).astype(np.float32)
    images = random.uniform(0.2, 0.8, size=(16, 4, 4, 3)).astype(np.float32)
    labels = (images.reshape(16, -1) @ weights).argmax(axis=1).astype(np.int32)
    labels[0] = (labels[0] + 1) % 10  # one that is wrong when clean
    return export.Network("linear", None, Linear(weights), images, labels, {})


class Judge:
    """A peer in numpy: judges images as torch_worker.py does, and answers attacks from a table."""

    def __init__(self, network, answers):
        self.network, self.answers, self.asked = network, answers, []

    def __call__(self, request):
        self.asked.append(request)
        if "judge" not in request:
            return self.answers[request["library"], request["attack"]]
        clean = self.network.images.reshape(16, -1)
        made = np.load(request["judge"]).reshape(16, -1)
        weights, labels = self.network.classifier.weights, self.network.labels
        right = (clean @ weights).argmax(axis=1) == labels
        fooled = (made @ weights).argmax(axis=1) != labels
        difference = np.abs(made - clean)
        sizes = {
            "linf": difference.max(axis=1),
            "l2": np.sqrt((difference**2).sum(axis=1)),
            "l1": difference.sum(axis=1),
        }
        inside = np.ones(16, bool)
        if request["epsilon"] is not None:
            inside = sizes[request["norm"]] <= request["epsilon"] * (1 + 1e-5)
        return {
            "robust": (right & ~(fooled & inside)).tolist(),
            "fooled": fooled.tolist(),
            "outside": int((fooled & ~inside).sum()),
            **{name: values.tolist() for name, values in sizes.items()},
        }


def answer(robust):
    return {"robust": robust, "outside": 0, "seconds": 1.0}


def every_answer():
    rows = [row for norm in matrix.NORMS for row in matrix.within_ball(EFFORT, norm, 0.1)]
    mask = [index % 2 == 0 for index in range(16)]
    return {(library, p["attack"]): answer(mask) for r in rows for library, p in r.peers.items()}


@pytest.fixture
def one_attack(monkeypatch):
    """Whatever our attack is, it makes these images: all of it takes long to compile."""

    def attack(network, chosen, epsilon, seed):
        return ATTACK(network, FGSM(epsilon), epsilon, seed)

    monkeypatch.setattr(ours, "attack", attack)
    monkeypatch.setattr(ours, "radii", lambda *_: [0.05])


def compared(network, tmp_path, judge, norm):
    stages = studies.Stages(tmp_path)
    return compare.within_ball(compare.Comparison(network, judge, stages, EFFORT), norm, 1)


@pytest.mark.parametrize("name", ["cnn", "resnet_small"])
def test_to_torch_inverts_from_torch(name):
    variables = random_variables(name)
    back = models.from_torch(name, export.to_torch(name, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_to_torch_refuses_what_it_would_drop():
    variables = random_variables("cnn")
    variables["params"]["extra"] = np.zeros(3)
    with pytest.raises(ValueError, match="params/extra"):
        export.to_torch("cnn", variables)


def test_networks_survive_their_file(tmp_path):
    widths = (4, 4, 4)
    module = models.create("resnet_small", widths=widths)
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), images)
    classifier = models.Classifier(module.apply, variables, np.full(3, 0.5), np.full(3, 0.2))
    path = tmp_path / "network.npz"
    export.save(path, "resnet_small", widths, classifier, images, np.arange(3), {"data": "none"})
    network = export.read("small", path)
    np.testing.assert_array_equal(network.classifier(images), classifier(images))
    assert network.recipe == {"data": "none"}


def test_networks_are_known_by_weights_and_images_and_not_by_rounding(tmp_path):
    def known(**changed):
        arrays = {"ours/w": np.ones(3), "images": np.ones((2, 3)), "logits": np.ones(2)}
        np.savez(tmp_path / "network.npz", **(arrays | changed))
        return export.fingerprint(tmp_path / "network.npz")

    assert known() == known() == known(logits=np.full(2, 1 + 1e-6))
    changed = {"ours/w": np.array([1, 1, 1 + 1e-6])}, {"images": np.zeros((2, 3))}
    assert len({known(), *(known(**arrays) for arrays in changed)}) == 3


@pytest.mark.parametrize("norm", matrix.NORMS)
def test_both_sides_have_the_same_settings(norm):
    effort = matrix.Effort(7, 11, 13)
    for row in matrix.within_ball(effort, norm, 0.125):
        if isinstance(row.ours, dict):
            assert row.ours == matrix.suite(effort, norm, 0.125)
            assert not row.peers  # it is made of the answers to SUITE
            continue
        assert row.peers
        for request in row.peers.values():
            assert (request["norm"], request["epsilon"]) == (norm, 0.125)
            assert (row.ours.norm, row.ours.epsilon) == (norm, 0.125)
            steps = request.get("num_steps", request.get("num_queries"))
            assert steps == getattr(row.ours, "num_iterations", row.ours.num_steps)
            assert request.get("loss") == {"APGD-CE": "ce", "APGD-DLR": "dlr"}.get(row.name)
            if "loss" in request:
                assert row.ours.loss == request["loss"]
            assert request.get("step_size") == getattr(row.ours, "step_size", None)
            assert request.get("decay") == getattr(row.ours, "decay", None)
            # Targeted ones take every wrong class once, all others start once.
            targeted = request["attack"] in ("APGDT", "FABT")
            assert row.ours.num_restarts == (9 if targeted else request.get("num_restarts", 1))
            if request["library"] == "art" and "Square" in row.name:
                assert row.ours.rescale_schedule


def test_the_suite_is_auto_attack_at_the_effort_given():
    for norm in ("linf", "l2"):
        assert tuple(matrix.suite(EFFORT, norm, 0.1)) == matrix.SUITE
        assert matrix.suite(matrix.Effort(), norm, 0.1) == evaluation.auto_attack_suite(0.1, norm)
    short = matrix.suite(EFFORT, "linf", 0.1)
    assert [short[n].num_iterations for n in ("APGD-CE", "APGD-T", "FAB-T")] == [3, 3, 3]
    assert short["Square"].num_steps == 5


def test_every_comparison_has_a_name_and_some_can_be_chosen(network, tmp_path, one_attack):
    rows = [row.name for norm in matrix.NORMS for row in matrix.within_ball(EFFORT, norm, 0.1)]
    assert set(rows) == set(matrix.NAMES)
    comparison = compare.Comparison(
        network, Judge(network, every_answer()), studies.Stages(tmp_path), EFFORT, attacks=("PGD",)
    )
    assert [c["attack"] for c in compare.within_ball(comparison, "linf", 1)] == ["PGD"]
    with pytest.raises(ValueError, match="`attacks` must be one of .* got 'PDG'"):
        parity.Config(tmp_path, tmp_path, attacks=("PDG",))
    with pytest.raises(
        ValueError, match="`attacks` with AutoAttack must have APGD-T, FAB-T, Square"
    ):
        parity.Config(tmp_path, tmp_path, attacks=("APGD-CE", "AutoAttack"))


def test_minimal_norms_have_the_same_settings():
    for norm, row in matrix.minimal(EFFORT):
        for request in row.peers.values():
            assert request["norm"] == row.ours.norm == norm
            for setting in ("num_searches", "num_iterations", "num_steps", "overshoot"):
                if setting in request:
                    assert request[setting] == getattr(row.ours, setting)


def test_what_we_return_is_what_we_say_of_it(network):
    images, robust, _ = ours.attack(network, FGSM(0.05), 0.05, seed=0)
    difference = np.abs(images - network.images)
    assert difference.max() <= 0.05 * (1 + 1e-5)
    fooled = evaluation.logits(network.classifier, images).argmax(axis=1) != network.labels
    assert robust.tolist() == (ours.right(network) & ~fooled).tolist()
    assert 0 < robust.sum() < 15


def test_the_last_point_is_kept_where_the_peer_keeps_it(network):
    attack = PGD(0.05, 0.02, num_steps=3, keep="last")
    images, _, _ = ours.attack(network, attack, 0.05, seed=0)
    arguments = (network.classifier, network.images, network.labels)
    whole = evaluation.attack_dataset(attack, *arguments, key=jax.random.key(0))
    np.testing.assert_array_equal(images, whole.images)


def test_radii_lie_between_the_extremes(network):
    radii = ours.radii(network, "linf", 2, 5, seed=0)
    assert radii == sorted(radii)
    for epsilon, goal in zip(radii, (0.65, 0.4), strict=True):
        _, robust, _ = ours.attack(network, APGD(epsilon, "ce", 5), epsilon, 0)
        assert abs(robust.mean() - goal) < 0.1


def test_verdicts_come_from_the_judge_and_the_suite_is_an_intersection(
    network, tmp_path, one_attack
):
    answers = every_answer()
    withstood = [index < 3 for index in range(16)]
    answers["torchattacks", "FABT"] = answer(withstood)
    judge = Judge(network, answers)
    cells = {cell["attack"]: cell for cell in compared(network, tmp_path, judge, "linf")}
    judged = [request for request in judge.asked if "judge" in request]
    assert len(judged) == len(cells)  # our side is judged too
    assert all(request["norm"] == "linf" and request["epsilon"] for request in judged)
    _, robust, _ = ATTACK(network, FGSM(0.05), 0.05, 0)
    assert [cell["ours"]["robust"] for cell in cells.values()] == [[int(robust.sum())]] * len(cells)
    suite = cells["AutoAttack"]["peers"]["torchattacks"]
    assert suite["robust"] == [2]  # the even ones of the first three
    assert suite["difference"] == cells["AutoAttack"]["ours"]["robust"][0] - 2
    assert cells["APGD-CE"]["num_images"] == 16
    difference = cells["APGD-CE"]["ours"]["robust"][0] - 8
    assert cells["APGD-CE"]["peers"]["art"]["holds"] == (difference <= 0)


def test_what_is_drawn_is_made_with_every_seed_and_the_sums_are_compared(
    network, tmp_path, one_attack
):
    judge = Judge(network, every_answer())
    comparison = compare.Comparison(network, judge, studies.Stages(tmp_path), EFFORT, seeds=(3, 5))
    cells = {c["attack"]: c for c in compare.within_ball(comparison, "linf", 1)}
    asked = [(r["attack"], r["seed"]) for r in judge.asked if "attack" in r]
    assert asked.count(("Square", 3)) == asked.count(("Square", 5)) == 1
    assert ("MIFGSM", 3) in asked and ("MIFGSM", 5) not in asked  # it draws nothing
    assert [len(cells[name]["ours"]["robust"]) for name in ("Square", "MI-FGSM")] == [2, 1]
    suite = cells["AutoAttack"]["peers"]["torchattacks"]
    assert suite["robust"] == [8, 8]  # FAB-T's one answer goes with both seeds
    assert suite["difference"] == sum(cells["AutoAttack"]["ours"]["robust"]) - 16


@pytest.mark.parametrize(
    ("mine", "theirs", "holds"),
    [((9, 9, 6), (8, 8, 8), True), ((9, 8, 8), (8, 8, 8), False), ((50, 51), (50, 50), True)],
)
def test_a_comparison_holds_by_one_image_in_two_hundred_over_all_seeds(mine, theirs, holds):
    def answers(counts, images):
        masks = [[index < count for index in range(images)] for count in counts]
        return [{"robust": mask, "outside": 0, "seconds": 1.0} for mask in masks]

    images = 40 if len(mine) == 3 else 100
    beside = compare._beside(answers(mine, images), answers(theirs, images))
    assert beside["holds"] == holds
    assert beside["difference"] == sum(mine) - sum(theirs)


def test_a_broken_peer_is_no_success_and_is_asked_again(network, tmp_path, one_attack):
    broken = every_answer()
    broken["torchattacks", "Square"] = {"error": "RuntimeError: no"}
    cells = compared(network, tmp_path, Judge(network, broken), "linf")
    assert cells[-1]["peers"]["torchattacks"] == {"error": "of its suite Square broke"}
    assert "robust images: " in compare.count(cells, [])
    assert compare.count(cells, []).split(";")[0].endswith("2 broke")
    judge = Judge(network, every_answer())
    cells = compared(network, tmp_path, judge, "linf")
    assert [request["attack"] for request in judge.asked] == ["Square"]  # all else was kept
    assert "holds" in cells[-1]["peers"]["torchattacks"]


def test_minimal_norms_are_medians_of_what_fools(network, tmp_path):
    sizes = np.linspace(0.01, 0.16, 16)
    reply = {"fooled": [True] * 8 + [False] * 8, "l2": sizes.tolist(), "seconds": 1.0}
    judge = Judge(network, {("foolbox", "L2DeepFoolAttack"): reply, ("art", "DeepFool"): reply})
    comparison = compare.Comparison(network, judge, studies.Stages(tmp_path), EFFORT)
    (row,) = [r for norm, r in matrix.minimal(EFFORT) if r.name == "DeepFool" and norm == "l2"]
    mask = ours.right(network)
    result = compare.smallest(comparison, "l2", row, mask)
    assert result["num_images"] == 15
    assert result["peers"]["foolbox"]["found"] == 7  # of those that are right when clean
    assert result["peers"]["foolbox"]["median"] == np.inf
    # On a linear network DeepFool is the distance to the nearest plane, and 2 % beyond it.
    weights = network.classifier.weights
    logits = network.images.reshape(16, -1) @ weights
    gaps = logits.max(axis=1, keepdims=True) - logits
    normals = np.linalg.norm(weights.T[logits.argmax(axis=1)] - weights.T[:, None], axis=-1).T
    with np.errstate(invalid="ignore"):
        distances = np.nanmin(np.where(gaps > 0, gaps / normals, np.nan), axis=1)
    assert result["ours"]["median"] == pytest.approx(1.02 * np.median(distances[mask]), rel=1e-3)


def one_result():
    peer = {"robust": [10, 11], "outside": 2, "difference": 5, "holds": False, "seconds": 1.0}
    mine = {"robust": [13, 13], "by_our_own_reckoning": [13, 13], "outside": 0, "seconds": 1.0}
    cell = {"network": "small", "norm": "linf", "epsilon": 0.1, "attack": "APGD-CE"}
    norm = {"network": "small", "norm": "l2", "attack": "DeepFool", "num_images": 40}
    found = {"median": 0.5, "found": 40, "seconds": 1.0}
    environment = {"jaxrobust": "0", "jax": "0.10", "jaxlib": "0.10", "device": "cpu"}
    environment |= {"torch_device": "cpu", "torch_threads": 1, "num_cores": 1}
    return {
        "run": "one",
        "config": {"seeds": [0, 1]},
        "effort": {"num_steps": 100},
        "per_image": 200,
        "environment": environment | {"commit": "abc", "commits_of_stages": ["abc"]},
        "peer_versions": {"torch": "2"},
        "networks": [
            {
                "name": "small",
                "fingerprint": "f",
                "num_images": 50,
                "num_right": 40,
                "logits_difference": 1e-6,
                "recipe": {"data": "none", "training": "none"},
            }
        ],
        "cells": [cell | {"num_images": 50, "ours": mine, "peers": {"torchattacks": peer}}],
        "minimal_norms": [
            norm | {"ours": found, "peers": {"foolbox": found | {"ratio": 1.0, "holds": True}}}
        ],
    }


def other_result():
    other = copy.deepcopy(one_result()) | {"run": "other"}
    other["cells"][0]["norm"] = "l2"
    other["minimal_norms"] = []
    other["networks"][0]["logits_difference"] = 3e-6
    return other


def test_the_tables_say_what_they_are_of():
    text = tables.markdown([one_result(), other_result()])
    assert (
        "| small | linf | 0.1 | APGD-CE | 50 | 2 | 13 | 10.5 (+2.5), 1 outside |  | **no** |"
        in text
    )
    assert "| small | l2 | 0.1 | APGD-CE | 50 |" in text
    assert (
        "| small | DeepFool | l2 | 40 | 0.5000 (40) | foolbox | 0.5000 (40) | 1.000 | yes |" in text
    )
    assert text.count("| small | 50 | 80.0 % | 3.0e-06 |") == 1
    assert "robust images: 0 of 2 comparisons hold" in text
    assert "minimal norms: 1 of 1 comparisons hold" in text
    assert "jax on cpu, 1 core; PyTorch on cpu, 1 thread" in text
    assert "intersection of its four attacks" in text
    assert "| Carlini-Wagner | linf |" in text


def test_a_broken_peer_is_said_to_have_broken():
    result = one_result()
    result["cells"][0]["peers"] = {"art": {"error": "ValueError: no"}}
    text = tables.markdown([result])
    assert "| 13 |  | broke | - |" in text
    assert "0 of 0 comparisons hold; 1 could not be made" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("effort",), {"num_steps": 5}),
        (("peer_versions",), {"torch": "3"}),
        (("environment", "device"), "gpu"),
    ],
)
def test_runs_that_differ_are_not_put_into_one_table(path, value):
    other = other_result()
    inner = other
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=r"\.".join(path)):
        tables.markdown([one_result(), other])


def test_a_comparison_is_there_once_and_a_network_has_one_meaning():
    with pytest.raises(ValueError, match=r"small linf 0\.1 APGD-CE"):
        tables.markdown([one_result(), one_result()])
    # Of one with more seeds that one counts.
    longer = copy.deepcopy(one_result())
    longer["cells"][0]["ours"]["robust"] = [13, 13, 14]
    longer["minimal_norms"] = []
    text = tables.markdown([one_result(), longer])
    assert "| small | linf | 0.1 | APGD-CE | 50 | 3 | 13.3 |" in text
    assert text.count("APGD-CE | 50 |") == 1
    other = other_result()
    other["networks"][0]["fingerprint"] = "g"
    with pytest.raises(ValueError, match="two called 'small'"):
        tables.markdown([one_result(), other])


def test_a_python_without_the_peers_is_refused_before_anything_is_made(tmp_path):
    config = parity.Config(tmp_path / "python", tmp_path, results_dir=tmp_path / "results")
    with pytest.raises(FileNotFoundError, match="peer_python"):
        parity.main(config)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ValueError, match="torchattacks"):
        parity.main(dataclasses.replace(config, peer_python=bare))
    assert not (tmp_path / "results").exists()


def test_a_worker_that_stops_is_said_to_have_stopped(tmp_path):
    with (
        worker.Worker(Path(sys.executable), "experiments.benchmarks.no_such_module") as peer,
        pytest.raises(RuntimeError, match="stopped; its own words are above"),
    ):
        peer.ask({"model": "cnn"})
    with pytest.raises(FileNotFoundError, match="`peer_python` must be a Python"):
        worker.Worker(tmp_path / "python", "json.tool")


def test_nothing_left_to_compare_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "versions", lambda python: {})
    config = parity.Config(tmp_path, tmp_path, networks=("cifar_robust",), quick=True)
    with pytest.raises(ValueError, match="leave something to compare"):
        parity.main(config)


def test_auto_attack_is_timed_attack_by_attack(network, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_attack, "matrix_rate", lambda: 1e9)
    monkeypatch.setattr(export, "fingerprint", lambda path: "f")
    suite = {"FGSM": FGSM(0.04), "PGD": PGD(0.04, 0.01, num_steps=5)}
    monkeypatch.setattr(matrix, "suite", lambda effort, norm, epsilon: suite)

    class Peer:
        def __init__(self):
            self.asked = []

        def hello(self):
            return {"device": "cpu", "num_threads": 1}

        def ask(self, request):
            self.asked.append(request)
            return {"robust": [True] * 8, "seconds": 1000.0}

    config = auto_attack.Config(tmp_path, tmp_path, quick=True)
    peer = Peer()
    row = auto_attack.compare(config, network, 0.04, peer)
    assert len(peer.asked) == 2  # a warm-up and one round
    assert peer.asked[1]["num_steps"] == row["effort"]["num_steps"] == matrix.QUICK.num_steps
    assert row["num_images"] == len(peer.asked[1]["indices"]) == 8
    assert list(row["attacks"]) == ["FGSM", "PGD"]
    # 2 x 48 x 10 operations for an image and for a gradient. FGSM asks twice about each image that is
    # right, with one gradient; PGD 6 times about each that FGSM left and that stays robust, with 5.
    asked = {k: round(v["arithmetic_seconds"] * 1e9 / 960) for k, v in row["attacks"].items()}
    robust = row["robust"]["jaxrobust"]
    assert 0 < robust < 7
    assert asked["FGSM"] == 7 * 3
    assert asked["PGD"] >= robust * (6 + 5)
    shares = [attack["arithmetic_seconds"] for attack in row["attacks"].values()]
    assert sum(shares) == pytest.approx(row["arithmetic_seconds"])
    assert row["ratio"] > 1
    words = auto_attack.describe(row)
    assert "PGD" in words and "arithmetic alone" in words
