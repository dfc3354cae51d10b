"""Source 004: the study's arithmetic, and the script from end to end."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import coverage_page
import jinja2
import numpy as np
import pytest

from experiments.robust_compression import attacks, measures, networks, pulls, trainings
from experiments.robust_compression.__main__ import PRESETS, Settings, check, main
from experiments.robust_compression.networks import (
    EPSILON,
    METHOD_WORDS,
    METHODS,
    NETWORKS,
    Study,
    Variant,
    spread_rows,
)
from jaxrobust import data, evaluation, models, pruning, studies, training
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.studies import ANY, Fact, words
from jaxrobust.studies.outcomes import pack
from jaxrobust.training.step.attack_schedule import strength

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "robust_compression"


@pytest.mark.parametrize("method", ["dense", *METHODS])
@pytest.mark.parametrize("num_epochs", [6, 15, 30])
def test_every_method_has_as_many_epochs(method, num_epochs):
    found = trainings.phases(method, num_epochs)
    assert sum(found) == num_epochs and found[0] >= 1
    later = {"magnitude": [2], "dense_phases": [2], "two_phase": [1, 2], "hydra": [1, 2]}
    assert [phase for phase in (1, 2) if found[phase]] == later.get(method, [])
    if method in later:  # they share the training of the dense half
        assert found[0] == trainings.phases("magnitude", num_epochs)[0]


def test_n_of_m():
    found = [trainings.n_of_m(kept) for kept in (0.5, 0.25, 0.1)]
    assert found == [(2, 4), (1, 4), (1, 8)]


def test_rows_are_spread():
    assert len(spread_rows(100, 7)) == 7 and len(spread_rows(5, 7)) == 5
    parts = [spread_rows(12, 3, (number, 2)).tolist() for number in (0, 1)]
    assert parts == [[1, 5, 9], [3, 7, 11]]


def test_curves_over_seeds_have_students_interval(tmp_path):
    study = made_study(tmp_path, seeds=2)
    dense = study.settings.compared()[0]
    # With the second seed the curve ended below chance.
    for seed, counts in enumerate(((8, 4, 0), (8, 2))):
        for epsilon, count in zip((0.0, 0.1, 0.2), counts, strict=False):
            rate = evaluation.rate(count, 10)
            of = {"attack": "PGD", "epsilon": epsilon}
            study.run.facts.add_rate("robust accuracy", dense.but(seed=seed), rate, **of)
    measures.average(study)
    found = study.run.facts.where("mean robust accuracy", dense, attack="PGD", epsilon=ANY)
    assert [fact.keys["epsilon"] for fact in found] == [0.0, 0.1]
    assert found[0].value == pytest.approx(0.8) and found[0].low is None  # no spread
    assert found[1].value == pytest.approx(0.3) and found[1].n == 2
    assert (found[1].low, found[1].high) == (0.0, 1.0)  # 0.3 +- 1.27, cut to shares
    study, rate = made_study(tmp_path, seeds=1), evaluation.rate(4, 10)
    of = {"attack": "PGD", "epsilon": 0.1}
    study.run.facts.add_rate("robust accuracy", dense.but(seed=0), rate, **of)
    measures.average(study)
    one = study.run.facts.of("mean robust accuracy", dense, **of)
    assert (one.count, one.n, one.low) == (4, 10, rate["low"])


def macro(name: str, *arguments: object) -> str:
    """A macro of the study's words, rendered."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        extensions=["jinja2.ext.do"],
        trim_blocks=True,
        lstrip_blocks=True,
        comment_start_string="{##",
        comment_end_string="##}",
    )
    environment.filters["listed"] = words.listed
    module = environment.get_template("answers.md.j2").module
    return getattr(module, name)(*arguments).strip()


def gap(*differences: float, other: str = "hydra", p: float | None = None) -> Fact:
    found = evaluation.paired_mean_difference(np.array(differences), np.zeros(len(differences)))
    bounds = {"low": found["low"], "high": found["high"], "p": found["p_value"] if p is None else p}
    return Fact("difference", {"other": other}, value=found["mean"], **bounds)


@pytest.mark.parametrize(
    "differences, answer",
    [
        ((-0.01, -0.012, -0.011), "yes, with the whole interval"),
        ((-0.00, -0.03, -0.02), "on average yes, not beyond doubt"),
        ((-0.02, -0.05, -0.04), "on average no, not beyond doubt"),
        ((-0.10, -0.101, -0.102), "no, the whole interval is below"),
        ((-0.02,), "not tested"),
    ],
)
def test_whether_a_margin_is_kept(differences, answer):
    assert macro("within", gap(*differences), 0.03) == answer


SURE, BEHIND, NOISE = (0.1, 0.101, 0.102), (-0.1, -0.101, -0.102), (0.1, -0.2, 0.3)


@pytest.mark.parametrize(
    "gaps, answer",
    [
        ({"hydra": SURE}, "ahead, beyond chance"),
        ({"hydra": BEHIND}, "behind, beyond chance"),
        ({"hydra": NOISE}, "ahead, no difference beyond chance"),
        ({"hydra": (0.0, 0.1, -0.1)}, "level, no difference beyond chance"),
        (
            {"hydra": SURE, "rigl": BEHIND},
            "ahead of 1 of 2 on average; beyond chance it is ahead of HYDRA and behind RigL",
        ),
        (
            {"hydra": SURE, "redundant": SURE, "magnitude": NOISE},
            "ahead of 3 of 3 on average; beyond chance it is ahead of HYDRA and ADMM redundant",
        ),
        (
            {"hydra": BEHIND, "rigl": NOISE},
            "ahead of 1 of 2 on average; beyond chance it is behind HYDRA",
        ),
        (
            {"hydra": NOISE, "rigl": (0.1, -0.2, 0.0)},
            "ahead of 1 of 2 on average, no difference beyond chance",
        ),
    ],
)
def test_who_is_ahead(gaps, answer):
    facts = studies.comparison.corrected(
        [gap(*values, other=name) for name, values in gaps.items()]
    )
    assert macro("ahead", facts, METHOD_WORDS) == answer


def test_a_correction_can_take_an_answer_away():
    alone = gap(0.1, 0.101, 0.102, p=0.03)
    assert macro("ahead", [alone], METHOD_WORDS) == "ahead, beyond chance"
    both = studies.comparison.corrected([alone, gap(0.1, -0.2, 0.3, other="rigl")])
    assert macro("ahead", both, METHOD_WORDS).endswith("no difference beyond chance")


def test_one_seed_is_compared_over_its_images_several_over_seeds(tmp_path):
    right = {"dense": np.arange(40) < 30, "irregular": np.arange(40) < 18}

    def compared(num_seeds: int) -> Fact:
        study = made_study(tmp_path, seeds=num_seeds)
        dense = study.settings.compared()[0]
        pair = (dense.but(method="irregular", kept=0.5), dense)
        for variant in pair:
            for one in study.settings.seeded(variant):
                outcomes = np.roll(right[one.method], one.seed)
                study.run.facts.add("accuracy", one, outcomes=outcomes)
        (found,) = measures.compare(study, [pair], "accuracy")
        assert found.keys == studies.facts.keys_of(pair[0]) | {"other": "dense", "other_kept": 1.0}
        return found

    one, three = compared(1), compared(3)
    images = evaluation.paired_difference(right["irregular"], right["dense"])
    assert [one.value, one.low, one.high] == [images[k] for k in ("difference", "low", "high")]
    assert one.p == evaluation.mcnemar(*right.values())["p_value"]
    assert macro("within", one, 0.03, True) == "no, the whole interval is below"
    assert macro("within", one, 0.3, True) == "undecided, the interval reaches to both sides"
    assert three.n == 3 and three.value == one.value == -0.3


def test_radii_are_compared_where_both_have_a_figure(tmp_path):
    study = made_study(tmp_path, seeds=2, radii=(8 / 255, 0.1))
    facts = study.run.facts
    for pair in study.settings.pairs():
        for one in study.settings.seeded(pair[0]):
            facts.add("accuracy", one, outcomes=np.arange(40) < (20 if one.radius == 0.1 else 30))
            curve = {"attack": "PGD", "epsilon": study.settings.curve_epsilons[-1]}
            if one.radius == 0.1 or one.seed == study.settings.seed:
                facts.add("robust accuracy", one, value=one.radius, **curve)
    measures.compare_radii(study, "Square")
    (clean,) = facts.where("accuracy change", network=ANY, method=ANY, kept=ANY, radius=0.1)
    assert (clean.value, clean.n) == (-0.25, 2)
    (curve,) = facts.where("robust accuracy change", clean.keys, **curve)
    assert curve.n == 1 and curve.value == pytest.approx(0.1 - 8 / 255)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data": "mnist"}, "`data` must be one of"),
        ({"networks": ("vgg11",)}, "`networks` must be one of"),
        ({"methods": ("magnitude",)}, "`methods` must include irregular"),
        ({"methods": ("irregular", "obd")}, "`methods` must be one of"),
        ({"kept": (0.1, 0.5)}, "`kept` must be one or more descending"),
        ({"ratios": ()}, "`ratios` must be one or more descending"),
        ({"radii": (0.1, 0.1)}, "`radii` must be one or more different"),
        ({"curve_epsilons": (0.1, 0.2)}, "`curve_epsilons` must ascend from 0"),
        ({"num_epochs": 5}, "`num_epochs` must be at least 6"),
        ({"seeds": 0}, "`seeds` must be at least 1"),
        ({"augmentation": "crop"}, "`augmentation` must be one of"),
        ({"preset": "huge"}, "`preset` must be one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        check(Settings(**settings))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name):
    check(studies.preset(Settings, PRESETS, name))


def test_what_presets_say():
    gpu, cpu = Settings(), studies.preset(Settings, PRESETS, "cpu", num_epochs=9)
    assert gpu.num_attacked == 1000 and gpu.num_train is None
    assert gpu.networks == ("resnet18", "resnet34", "mobilenet_v2")
    assert cpu.networks == ("resnet10_slim",) and cpu.num_epochs == 9 and cpu.seeds == 3
    table = studies.preset(Settings, PRESETS, "table")
    # Both architectures, both radii, three shares and three seeds, and as many natural ones.
    assert len(table.robust()) == 2 * 2 * 3 * 3 and len(table.variants()) == 36 + 2 * 3 * 3
    assert table.curve_steps == 100 and table.augmentation == "rotation"
    quick = studies.preset(Settings, PRESETS, "quick")
    assert gpu.data_set == "cifar10_jpeg" and quick.data_set == "digits"
    assert dataclasses.replace(quick, data_dir=Path()).data_set == "cifar10_jpeg"


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
    chosen = studies.preset(Settings, PRESETS, "cpu", **{"num_attacked": 40} | settings)
    run = studies.Run("robust_compression", chosen, tmp_path, studies.Stages(tmp_path))
    return Study(run, dataset)


def test_every_network_has_a_file_and_a_name_of_its_own(tmp_path):
    variants = made_study(tmp_path).settings.variants()
    assert len({v.stem for v in variants}) == len({v.name for v in variants}) == len(variants)
    counts = [sum(v.seed == seed for v in variants) for seed in (0, 1, 2)]
    assert counts[0] == counts[1] == counts[2]


def test_names_of_stages_stay():
    """Finished runs are found by them."""
    one = Variant("resnet6_tiny", "n_of_m", 0.125, EPSILON, 1)
    assert one.name == "resnet6_tiny, ADMM, N:M, 12.5 %, trained at 8/255, seed 1"
    assert one.stem == "resnet6-tiny-n-of-m-12.5-8of255-seed1"
    assert Variant("cnn_tiny", radius=0.0, seed=0).name == "cnn_tiny, dense, natural, seed 0"


@pytest.mark.parametrize("num_epochs", [6, 7, 12, 15, 30])
def test_every_method_meets_the_same_attack_and_learning_rate(tmp_path, num_epochs):
    study = made_study(tmp_path, num_epochs=num_epochs)
    whole = trainings.attacks_of(study.settings, EPSILON)
    wanted = [strength(whole, epoch) for epoch in range(1, num_epochs + 1)]
    found = {}
    for method in ("dense", *METHODS):
        rows, rates, done = [], [], 0
        for epochs in filter(None, trainings.phases(method, num_epochs)):
            recipe = trainings.recipe(study, EPSILON, done, epochs)
            assert recipe.adversary.stages[-1][0] <= epochs  # what `fit` asks for
            rows += [strength(recipe.adversary, epoch) for epoch in range(1, epochs + 1)]
            schedule = recipe.learning_rate(10)
            rates += [float(schedule(10 * epoch)) for epoch in range(epochs)]
            done += epochs
        assert rows == wanted, method
        found[method] = rates
    for method, rates in found.items():
        assert rates == pytest.approx(found["dense"]), method
    drop = round(0.75 * num_epochs)
    full = study.settings.learning_rate
    assert found["dense"][:drop] == pytest.approx([full] * drop)
    assert found["dense"][drop:] == pytest.approx([0.2 * full] * (num_epochs - drop))
    assert trainings.recipe(study, 0.0, 0, num_epochs).adversary is None


@pytest.mark.parametrize("num_epochs", [6, 7, 12, 15, 30])
@pytest.mark.parametrize("kept", [1.0, 0.1])
def test_sequences_change_one_thing_at_a_time(tmp_path, num_epochs, kept):
    settings = made_study(tmp_path, num_epochs=num_epochs).settings
    whole = trainings.attacks_of(settings, EPSILON)
    rows = [strength(whole, epoch) for epoch in range(1, num_epochs + 1)]
    epsilons, steps = zip(*rows, strict=True)
    shares = trainings.budgets(settings, kept)
    assert len(shares) == num_epochs and shares[0] == 1.0
    assert list(shares) == sorted(shares, reverse=True)
    assert set(shares[round(0.75 * num_epochs) :]) == {kept}
    training.check_sequences(epsilons, steps, shares)
    # The whole attack from the middle on, when the methods in phases begin to prune.
    assert list(epsilons) == sorted(epsilons)
    assert set(epsilons[num_epochs // 2 - 1 :]) == {EPSILON}
    assert set(steps[num_epochs // 2 - 1 :]) == {settings.max_steps}
    for _, one in whole.stages:
        assert one.step_size <= 1.25 * one.epsilon + 1e-9


def test_a_phase_has_its_part_of_the_attacks():
    whole = training.AttackSchedule(
        tuple((first, attacks.pgd(epsilon, 1)) for first, epsilon in ((1, 0.1), (3, 0.2), (6, 0.3)))
    )
    found = whole.part(3, 4).stages
    assert [(first, one.epsilon) for first, one in found] == [(1, 0.2), (3, 0.3)]


def test_a_single_step_is_that_of_fgsm_rs():
    assert attacks.pgd(0.1, 1).step_size == pytest.approx(0.125)
    assert attacks.pgd(0.1, 10).step_size == pytest.approx(0.025)


def test_what_a_training_says(tmp_path):
    """Counts of the file, and the alarm of the compressed network."""
    study, variant = made_study(tmp_path), Variant("resnet10_slim", "irregular", 0.5, seed=0)
    losses = (1.9, 1.8, 1.7, 2.4)
    study.records[variant] = {
        "right": pack(np.arange(40) < 10),
        "right_as_trained": 8,
        "weights": 100,
        "zeros": 49,
        "promised": 50,
        "parameters": 120,
        "bytes": 400,
        "dense_bytes": 600,
        "epochs": 4,
        "residual": 0.25,
        "final": {"accuracy_before": 0.5, "accuracy_projected": 0.25, "accuracy_after": 0.375},
        "history": [
            {"epoch": epoch, "train_loss": 1.0, "validation_loss": loss}
            for epoch, loss in enumerate(losses, start=1)
        ],
    }
    values = {"stem": [[0.5, 0.5]], "block": [[0.0, 0.5]], "head": [[0.5, 0.5]]}
    kernels = {name: {"kernel": np.array(value)} for name, value in values.items()}
    study._classifiers[variant] = SimpleNamespace(variables={"params": kernels})
    measures.train(study, variant)
    facts = study.run.facts
    wanted = {
        "explosion epoch": 4,
        "collapse epoch": 4,
        "last loss": 2.4,
        "accuracy": 0.25,
        "accuracy as trained": 0.2,
        "accuracy projected": 0.25,
        "weights not 0": 51,
        "weights too many": 1,
        "zeros": 0.49,
        "filters without weights": 0.5,
        "times smaller": 1.5,
        "residual": 0.25,
        "largest weight": 0.5,
    }
    assert {name: facts.of(name, variant).value for name in wanted} == wanted
    found = facts.where("loss", variant, epoch=ANY)
    assert [(fact.keys["epoch"], fact.value) for fact in found] == list(enumerate(losses, start=1))


def test_images_of_training_validation_and_seeds_are_apart(tmp_path):
    labels = np.arange(400) % 10
    names = tuple(map(str, range(400)))
    images = np.zeros((400, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(400), 256)
    split = data.Split(images, labels, names)
    study = made_study(tmp_path, split, num_train=100, num_validation=30)
    assert len(study.train) == 100 and len(study.validation) == 30
    assert not set(study.train.files) & set(study.validation.files)
    attacked = [study.attacked(seed)[0][:, 0, 0, :2] for seed in study.settings.all_seeds]
    assert len({tuple(pixel) for images in attacked for pixel in images.tolist()}) == 3 * 40


def test_alternatives_at_the_last_share_alone(tmp_path):
    compared = made_study(tmp_path, methods=METHODS).settings.compared()
    shares = {
        method: [v.kept for v in compared if v.method == method] for method in ("dense", *METHODS)
    }
    assert shares["irregular"] == [0.5, 0.1] and shares["hydra"] == [0.1]
    assert shares["dense_phases"] == [1.0] and shares["n_of_m"] == [0.5, 0.125]


def test_multipliers_are_updated_four_times_in_an_epoch(tmp_path):
    split = data.Split(np.zeros((400, 32, 32, 3), np.uint8), np.arange(400) % 10, ("",) * 400)
    study = made_study(tmp_path, split, num_train=100, batch_size=8)
    tie = trainings.compression(study, Variant("resnet10_slim", "irregular", 0.1))
    assert tie.every == 3 and tie.kept == trainings.budgets(study.settings, 0.1)
    # It grows four times in each of the first three quarters of twelve epochs.
    assert tie.rho * tie.rho_growth ** (4 * 9) == pytest.approx(tie.largest_rho)
    assert tie.rho == training.rho_for_pull(0.05, 0.05, 3, 0.9)
    assert tie.largest_rho == training.rho_for_pull(0.99, 0.05, 3, 0.9)
    # With 46 steps between two updates, rho rises from 0.002 to 0.2. When the learning rate has fallen,
    # the last rho pulls less: by 60 %, as the report says.
    course = [training.rho_for_pull(pull, 0.05, 46, 0.9) for pull in trainings.PULLS]
    assert course == pytest.approx([0.002, 0.2], rel=0.15)
    fallen = training.rho_for_pull(0.6, trainings.FACTOR * 0.05, 46, 0.9)
    assert course[1] == pytest.approx(fallen, rel=0.01)
    # In fewer steps the last pull would need a rho that is too large.
    few = made_study(tmp_path, split, num_train=100, batch_size=100)
    assert trainings.rhos(few)[1] * few.settings.learning_rate == pytest.approx(0.2)
    phased = trainings.compression(study, Variant("resnet10_slim", "two_phase", 0.1))
    assert phased.rho == tie.largest_rho and phased.largest_rho == pytest.approx(4)


def test_transfer_is_from_the_best_and_the_worst_of_all_networks(tmp_path, monkeypatch):
    study = made_study(tmp_path, radii=(EPSILON, 0.1), networks=("resnet10_slim", "cnn_tiny"))
    facts, settings = study.run.facts, study.settings
    robust = [v for v in settings.robust() if v.seed == 0 and v.method in ("dense", "irregular")]
    for count, variant in enumerate(robust, start=1):
        facts.add("robust accuracy", variant, after="APGD-T", outcomes=np.arange(40) < count)
    seen = []

    def curves(attack, logits_fns, source, images, labels, epsilons, **given):
        seen.append((attack.num_steps, source))
        lost = 0.5 if source == robust[-1].name else 0.2
        points = [
            {"epsilon": epsilon, "robust_accuracy": evaluation.rate(int(40 * left), 40)}
            for epsilon, left in zip(epsilons, [1.0] + [1 - lost] * 20, strict=False)
        ]
        return [{"points": points} for _ in logits_fns]

    monkeypatch.setattr(evaluation, "transfer_curves", curves)
    monkeypatch.setattr(study, "classifier", lambda variant: None)
    found = attacks.transfer(study, "APGD-T")
    assert len(found["targets"]) == len(robust) == 12
    assert found["sources"] == {"strongest": robust[-1], "weakest": robust[0]}
    assert seen == [(100, robust[-1].name), (100, robust[0].name)]
    gap = facts.of("mean accuracy lost difference")
    assert gap.n == 10 and gap.value == pytest.approx(0.3)


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
        trainings._random_masks(study, Variant("resnet10_slim", "random_masks", 0.1, seed=seed))
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


@pytest.mark.slow(60)
def test_pulls_are_compared_by_validation_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pulls, "CANDIDATES", ((0.05, 0.99),))
    monkeypatch.setattr(networks.Study, "attacked", None)  # no test image is looked at
    given = {"num_train": 128, "num_attacked": 8, "results_dir": tmp_path}
    settings = studies.preset(Settings, PRESETS, "quick", **given)
    pulls.main(settings)
    said = capsys.readouterr().out
    assert "of 32 images" in said and re.search(
        r"0\.05 +0\.99 +\d+\.\d% +\d+\.\d% +\d\.\d{3}", said
    )
    pulls.main(settings)  # it is finished, so nothing is trained again
    assert capsys.readouterr().out.splitlines()[-1] == said.splitlines()[-1]


@pytest.mark.slow(90)
def test_quick_from_end_to_end_resumed_and_refused(tmp_path, capsys):
    given = {"num_train": 256, "num_attacked": 8, "kept": (0.5,), "radii": (8 / 255, 0.1)}
    given |= {"results_dir": tmp_path}
    settings = studies.preset(Settings, PRESETS, "quick", **given)
    report = main(settings)
    folder = tmp_path / "robust_compression" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert report == folder / "report.html" and "Report:" in capsys.readouterr().out
    assert sum(block["kind"] == "verdict" for block in result["blocks"]) >= 7
    assert not list((folder / "training").glob("*/*"))

    facts = studies.load_facts(folder)
    robust = facts[(facts.measure == "robust accuracy") & (facts.after == "Square")]
    assert (robust[robust.source.isna()].n == 8).all() and set(facts.method) >= {"magnitude"}
    outcomes = studies.load_outcomes(folder)
    for fact in robust[robust.outcomes.notna()].itertuples():
        assert outcomes[fact.outcomes].mean() == fact.value

    smaller = facts[(facts.measure == "times smaller") & (facts.kept == 0.5)]
    assert len(smaller) == 4 and (smaller.value > 1.3).all()

    # What was asked for is in the file, and the file is a model like any other.
    path = folder / "models" / "resnet6-tiny-irregular-50-8of255-seed0.jrw"
    variables = models.load(path).classifier.variables
    leaves = dict(named_leaves(variables["params"]))
    for name in pruning.kernel_paths(variables["params"]):
        kept = int((leaves[name] != 0).sum())
        pruned = not name.startswith(NETWORKS["resnet6_tiny"].exclude)
        assert kept == (round(0.5 * leaves[name].size) if pruned else leaves[name].size), name
    smaller = studies.load_model(str(path)).classifier
    assert smaller(np.zeros((2, 32, 32, 3), np.float32)).shape == (2, 10)

    text = report.read_text()
    for anchor in coverage_page.named("robust_compression"):
        assert f'id="{anchor}"' in text, anchor
    assert "Training images are used as they are" in text  # digits are not flipped
    assert "trained at 0.1 more robust than those trained at 8/255?" in text
    assert "by looking at test images" in text and "the pull is at most 60\u00a0%" in text

    # Killed after some stages: what was finished is read back, the rest made again, the same.
    kept_files = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    lost = [p for p in kept_files if "magnitude" in p.name or "latency" in p.name]
    assert len(lost) > 2
    for path in (*lost, folder / "result.json"):
        path.unlink()
    main(settings)
    again = json.loads((folder / "result.json").read_text())

    def without_times(found: dict) -> list[dict]:
        """Of a result the blocks that hold no times, which no machine has twice."""
        timed = ("faster", "Latency", "Mean time", "Parameters")
        return [b for b in found["blocks"] if not any(word in json.dumps(b) for word in timed)]

    assert without_times(again) == without_times(result)
    assert len(without_times(result)) > 30
    for path, time in kept_files.items():
        assert (path.stat().st_mtime_ns == time) == (path not in lost)

    with pytest.raises(ValueError, match="num_attacked was 8, is now 9"):
        main(dataclasses.replace(settings, num_attacked=9))
    assert json.loads((folder / "result.json").read_text()) == again
