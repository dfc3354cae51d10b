"""The comparison with PyTorch's libraries: what can be tested without them."""

import contextlib
import copy
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import auto_attack, harness, network_files
from experiments.benchmarks.parity import __main__ as parity
from experiments.benchmarks.parity import compare, matrix, networks, tables
from jaxrobust import evaluation, models, studies
from jaxrobust.attacks import APGD, FGSM, PGD
from jaxrobust.studies.outcomes import right_ones

ATTACK = compare.attack
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
    return network_files.Network("linear", None, Linear(weights), images, labels, {})


def named(request):
    """(library, class of the attack, whether that is FAB on one class after the other)."""
    ((name, arguments),) = request["attacks"]
    return request["library"], name, arguments.get("multi_targeted", False)


class Judge:
    """A peer in numpy: judges images as torch_worker.py does, and answers attacks from a table."""

    def __init__(self, network, answers):
        self.network, self.answers, self.asked = network, answers, []

    def __call__(self, do, **request):
        self.asked.append(request | {"do": do})
        if do == "attack":
            answer = self.answers[named(request)]
            if "error" in answer:
                raise harness.PeerError(answer["error"])
            return answer
        clean = self.network.images.reshape(16, -1)
        made = np.load(request["path"]).reshape(16, -1)
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
    return {named(request): answer(mask) for row in rows for request in row.peers.values()}


@pytest.fixture
def one_attack(monkeypatch):
    """Whatever our attack is, it makes these images: all of it takes long to compile."""

    def attack(network, chosen, epsilon, seed):
        return ATTACK(network, FGSM(epsilon), epsilon, seed)

    monkeypatch.setattr(compare, "attack", attack)
    monkeypatch.setattr(compare, "radii", lambda *_: [0.05])


def compared(network, tmp_path, judge, norm):
    stages = studies.Stages(tmp_path)
    return compare.within_ball(compare.Comparison(network, judge, stages, EFFORT), norm, 1)


@pytest.mark.parametrize("name", ["cnn", "resnet_small"])
def test_to_torch_inverts_from_torch(name):
    variables = random_variables(name)
    back = models.from_torch(name, network_files.to_torch(name, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_to_torch_refuses_what_it_would_drop():
    variables = random_variables("cnn")
    variables["params"]["extra"] = np.zeros(3)
    with pytest.raises(ValueError, match="params/extra"):
        network_files.to_torch("cnn", variables)


def test_networks_survive_their_file(tmp_path):
    widths = (4, 4, 4)
    module = models.create("resnet_small", widths=widths)
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), images)
    classifier = models.Classifier(module.apply, variables, np.full(3, 0.5), np.full(3, 0.2))
    path = tmp_path / "network.npz"
    recipe = {"data": "none"}
    labels = np.arange(3)
    network_files.save(path, "resnet_small", classifier, images, labels, widths, recipe)
    network = network_files.read("small", path)
    np.testing.assert_array_equal(network.classifier(images), classifier(images))
    assert network.recipe == {"data": "none"}


def test_networks_are_known_by_weights_and_images_and_not_by_rounding(tmp_path):
    def known(**changed):
        arrays = {"ours/w": np.ones(3), "images": np.ones((2, 3)), "logits": np.ones(2)}
        np.savez(tmp_path / "network.npz", **(arrays | changed))
        return network_files.fingerprint(tmp_path / "network.npz")

    assert known() == known() == known(logits=np.full(2, 1 + 1e-6))
    changed = {"ours/w": np.array([1, 1, 1 + 1e-6])}, {"images": np.zeros((2, 3))}
    assert len({known(), *(known(**arrays) for arrays in changed)}) == 3
    # Runs of earlier commits go on: it is what it was.
    assert known(architecture="cnn") == (
        "948db5102a5cd22676d701e35535785599cabd07084ea697172500b28ed2556c"
    )


# What the libraries call our settings; a setting of ours that an attack lacks is None there too.
THEIRS = {
    "torchattacks": {
        "eps": "epsilon",
        "steps": "num_steps",
        "n_queries": "num_steps",
        "alpha": "step_size",
        "decay": "decay",
        "loss": "loss",
    },
    "art": {"eps": "epsilon", "max_iter": "num_steps"},
}
NORM_NAMES = {
    "torchattacks": {"linf": "Linf", "l2": "L2"},
    "art": {"linf": "inf", "l2": 2, "l1": 1},
}


@pytest.mark.parametrize("norm", matrix.NORMS)
def test_both_sides_have_the_same_settings(norm):
    effort = matrix.Effort(7, 11, 13)
    for row in matrix.within_ball(effort, norm, 0.125):
        if isinstance(row.ours, dict):
            assert row.ours == matrix.suite(effort, norm, 0.125)
            assert not row.peers  # it is made of the answers to SUITE
            continue
        assert row.peers
        assert (row.ours.norm, row.ours.epsilon) == (norm, 0.125)
        for library, request in row.peers.items():
            assert (request["library"], request["norm"]) == (library, norm)
            assert request["epsilon"] == 0.125
            ((name, arguments),) = request["attacks"]
            shared = {k: v for k, v in THEIRS[library].items() if k in arguments}
            assert "epsilon" in shared.values() and "num_steps" in shared.values()
            for theirs, mine in shared.items():
                iterations = mine == "num_steps" and hasattr(row.ours, "num_iterations")
                assert arguments[theirs] == getattr(
                    row.ours, "num_iterations" if iterations else mine
                )
            for setting in ("step_size", "decay"):
                assert (setting in shared.values()) == hasattr(row.ours, setting)
            by_name = name in ("PGDL2",) if norm == "l2" else name in ("PGD", "MIFGSM")
            assert by_name or arguments["norm"] == NORM_NAMES[library][norm]
            if "loss_type" in arguments:
                losses = {"ce": "cross_entropy", "dlr": "difference_logits_ratio"}
                assert arguments["loss_type"] == losses[row.ours.loss]
                assert arguments["eps_step"] == (1 if norm == "l1" else 2) * 0.125
            # Targeted ones take every wrong class once, all others start once.
            targeted = name == "APGDT" or arguments.get("multi_targeted", False)
            assert row.ours.num_restarts == (9 if targeted else 1)
            assert arguments.get("n_restarts", arguments.get("nb_random_init", 1)) == 1
            if "Square" in name:
                rescaled = library == "art" or arguments["resc_schedule"]
                assert row.ours.rescale_schedule == rescaled


def test_auto_attack_of_the_peer_is_made_of_the_same_attacks():
    rows = {row.name: row.peers for row in matrix.within_ball(EFFORT, "linf", 0.1)}
    request = matrix.auto_attack(EFFORT, 0.1)
    assert request["attacks"] == [rows[n]["torchattacks"]["attacks"][0] for n in matrix.SUITE]


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
        parity.check(parity.Config(tmp_path, tmp_path, attacks=("PDG",)))
    with pytest.raises(ValueError, match="AutoAttack must also have APGD-T, FAB-T, Square"):
        parity.check(parity.Config(tmp_path, tmp_path, attacks=("APGD-CE", "AutoAttack")))
    for wrong in ({"num_images": 0}, {"num_radii": -1}, {"num_searches": 0}, {"norms": ("l0",)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            parity.check(parity.Config(tmp_path, tmp_path, **wrong))
    with pytest.raises(ValueError, match="`seeds` must be different"):
        parity.check(parity.Config(tmp_path, tmp_path, seeds=(1, 1)))


def test_minimal_norms_have_the_same_settings():
    theirs = {
        "L2CarliniWagnerAttack": {"binary_search_steps": "num_searches", "steps": "num_iterations"},
        "L2DeepFoolAttack": {"steps": "num_steps", "overshoot": "overshoot"},
        "DeepFool": {"max_iter": "num_steps", "epsilon": "overshoot"},
    }
    theirs["LinfDeepFoolAttack"] = theirs["L2DeepFoolAttack"]
    for norm, row in matrix.minimal(EFFORT):
        for request in row.peers.values():
            assert request["norm"] == row.ours.norm == norm
            assert request["epsilon"] is None
            ((name, arguments),) = request["attacks"]
            for setting, mine in theirs[name].items():
                assert arguments[setting] == getattr(row.ours, mine)
            if name == "L2CarliniWagnerAttack":
                assert arguments["stepsize"] == row.ours.learning_rate
                assert arguments["initial_const"] == row.ours.initial_constant


def test_what_we_return_is_what_we_say_of_it(network):
    images, robust = compare.attack(network, FGSM(0.05), 0.05, seed=0)
    difference = np.abs(images - network.images)
    assert difference.max() <= 0.05 * (1 + 1e-5)
    fooled = evaluation.logits(network.classifier, images).argmax(axis=1) != network.labels
    assert robust.tolist() == (right_ones(*network.target) & ~fooled).tolist()
    assert 0 < robust.sum() < 15


def test_the_last_point_is_kept_where_the_peer_keeps_it(network):
    attack = PGD(0.05, 0.02, num_steps=3, keep="last")
    images, _ = compare.attack(network, attack, 0.05, seed=0)
    arguments = (network.classifier, network.images, network.labels)
    whole = evaluation.attack_dataset(attack, *arguments, key=jax.random.key(0))
    np.testing.assert_array_equal(images, whole.images)


def test_radii_lie_between_the_extremes(network):
    radii = compare.radii(network, "linf", 2, 5, seed=0)
    assert radii == sorted(radii)
    for epsilon, goal in zip(radii, (0.65, 0.4), strict=True):
        _, robust = compare.attack(network, APGD(epsilon, "ce", 5), epsilon, 0)
        assert abs(robust.mean() - goal) < 0.1


def test_verdicts_come_from_the_judge_and_the_suite_is_an_intersection(
    network, tmp_path, one_attack
):
    answers = every_answer()
    withstood = [index < 3 for index in range(16)]
    answers["torchattacks", "FAB", True] = answer(withstood)
    judge = Judge(network, answers)
    cells = {cell["attack"]: cell for cell in compared(network, tmp_path, judge, "linf")}
    judged = [request for request in judge.asked if request["do"] == "judge"]
    assert len(judged) == len(cells)  # our side is judged too
    assert all(request["norm"] == "linf" and request["epsilon"] for request in judged)
    _, robust = ATTACK(network, FGSM(0.05), 0.05, 0)
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
    asked = [(r["attacks"][0][0], r["seed"]) for r in judge.asked if r["do"] == "attack"]
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
    broken["torchattacks", "Square", False] = {"error": "RuntimeError: no"}
    cells = compared(network, tmp_path, Judge(network, broken), "linf")
    assert cells[-1]["peers"]["torchattacks"] == {"error": "Square of its suite failed"}
    assert compare.counted(cells)["broke"] == 2
    judge = Judge(network, every_answer())
    cells = compared(network, tmp_path, judge, "linf")
    assert [named(request)[1] for request in judge.asked] == ["Square"]  # all else was kept
    assert "holds" in cells[-1]["peers"]["torchattacks"]


def test_minimal_norms_are_medians_of_what_fools(network, tmp_path):
    sizes = np.linspace(0.01, 0.16, 16)
    reply = {"fooled": [True] * 8 + [False] * 8, "l2": sizes.tolist(), "seconds": 1.0}
    libraries = (("foolbox", "L2DeepFoolAttack", False), ("art", "DeepFool", False))
    judge = Judge(network, dict.fromkeys(libraries, reply))
    comparison = compare.Comparison(network, judge, studies.Stages(tmp_path), EFFORT)
    (row,) = [r for norm, r in matrix.minimal(EFFORT) if r.name == "DeepFool" and norm == "l2"]
    mask = right_ones(*network.target)
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
    with pytest.raises(ValueError, match="two named 'small'"):
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


def test_nothing_left_to_compare_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "versions", lambda python, *packages: {})
    config = parity.Config(tmp_path, tmp_path, networks=("cifar_robust",), quick=True)
    with pytest.raises(ValueError, match="name a network that can be used"):
        parity.main(config)


def test_a_network_of_another_recipe_is_not_trained_over(tmp_path):
    module = models.create("resnet_small", widths=networks.WIDTHS)
    images = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), images))
    classifier = models.Classifier(module.apply, variables, np.zeros(3), np.ones(3))
    path = tmp_path / "cifar_standard.npz"
    labels, recipe = np.zeros(1, int), {"data": "another"}
    network_files.save(path, "resnet_small", classifier, images, labels, networks.WIDTHS, recipe)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="trained by another recipe"):
        networks.cifar(tmp_path, tmp_path / "nothing")
    assert path.read_bytes() == before


def test_auto_attack_is_timed_attack_by_attack(network, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_attack, "matrix_rate", lambda: 1e9)
    monkeypatch.setattr(network_files, "fingerprint", lambda path: "f")
    monkeypatch.setattr(network_files, "load", lambda *_, **__: {"device": "cpu"})
    suite = {"FGSM": FGSM(0.04), "PGD": PGD(0.04, 0.01, num_steps=5)}
    monkeypatch.setattr(matrix, "suite", lambda effort, norm, epsilon: suite)
    asked = []

    def ask(do, **request):
        asked.append(request)
        return {"robust": [True] * 8, "fooled": [False] * 8, "seconds": 1000.0, "memory": None}

    monkeypatch.setattr(harness, "peer", lambda python: contextlib.nullcontext(ask))
    config = auto_attack.Config(peer_python=tmp_path, shared=tmp_path, quick=True)
    whole, *parts = auto_attack.compare(config, network, 0.04)
    assert len(asked) == 2  # a warm-up and one round
    assert asked[1]["attacks"] == matrix.auto_attack(matrix.QUICK, 0.04)["attacks"]
    assert whole["effort"]["num_steps"] == matrix.QUICK.num_steps
    assert whole["num_images"] == len(asked[1]["indices"]) == 8
    assert [row["attack"] for row in (whole, *parts)] == [
        "AutoAttack",
        "FGSM",
        "PGD",
        "predictions",
    ]
    # 2 x 48 x 10 operations for an image and for a gradient. FGSM asks twice about each image that is
    # right, with one gradient; PGD 6 times about each that FGSM left and that stays robust, with 5.
    questions = {row["attack"]: round(row["arithmetic_seconds"] * 1e9 / 960) for row in parts}
    robust = whole["robust"]["jaxrobust"]
    assert 0 < robust < 7
    assert questions["FGSM"] == 7 * 3
    assert questions["PGD"] >= robust * (6 + 5)
    assert sum(row["arithmetic_seconds"] for row in parts) == pytest.approx(
        whole["arithmetic_seconds"]
    )
    assert whole["ratio"]["torchattacks"]["median"] > 1
    seconds = [row["median_seconds"]["jaxrobust"] for row in (whole, *parts)]
    assert seconds[0] == pytest.approx(sum(seconds[1:]))
