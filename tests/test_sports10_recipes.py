"""The recipes of the Sports-10 study: what a training watches, and whose weights it keeps."""

import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import sports10
from experiments.sports10 import defences, folds, pruned_attacks
from experiments.sports10.config import PRESETS, Config, check
from experiments.sports10.networks import SUBJECTS
from experiments.sports10.study import Study
from jaxrobust import studies, training
from jaxrobust.reports import markdown
from jaxrobust.studies import words

FOLDER = Path(sports10.__file__).parent
CLASSES, PER_CLASS = ("basketball", "golf", "tennis"), 20


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    pixels = np.zeros((8, 8, 3), np.uint8)
    for split, count in (("train", PER_CLASS), ("valid", 2)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(pixels + index).save(folder / split / name / f"{index}.png")
    return folder


def study_of(folder, **settings):
    """A study whose trainings are only noted, as (stage, recipe, training set, validation set)."""
    config = Config(folder, **settings)
    run = studies.Run("sports10", config, None, studies.Stages(None))
    study = Study(config, run)
    noted = []

    def fit(stage, _, network, given, recipe, **options):
        noted.append((stage, recipe, given.train, given.validation))
        return training.FitResult(None, {"params": "last"}, {"params": "best"}, 1, (), ())

    study.run = types.SimpleNamespace(fit=fit, stages=run.stages, key=run.key)
    return study, noted


def test_report_a_trains_cnn_as_it_says():
    recipe = SUBJECTS["cnn_plateau"].training
    assert (recipe.num_epochs, recipe.batch_size) == (60, 32)
    assert recipe.optimizer == training.AdamW(weight_decay=1e-4)
    assert recipe.schedule == training.Plateau(1e-3, factor=0.5, patience=3)
    assert recipe.validation.monitor == "validation_loss"
    assert recipe.augmentation == SUBJECTS["cnn"].training.augmentation
    assert SUBJECTS["cnn_plateau_by_test"].training == recipe


def test_report_b_trains_resnet_small_as_it_says():
    subject = SUBJECTS["resnet_small_stopped"]
    assert (subject.training.num_epochs, subject.training.batch_size) == (50, 32)
    assert subject.training.optimizer == training.Adam()  # 1e-4 of weight decay
    assert subject.training.optimizer.weight_decay == 1e-4
    assert subject.training.schedule == training.Cosine(1e-3)
    assert subject.training.validation.early_stopping_patience == 10
    assert (subject.fine_tuning_epochs, subject.max_seeds, subject.folds) == (10, 3, True)


def numbered(images, labels):
    """Photographs as (number in its class, which is its pixels' value, class)."""
    return set(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("fold", [None, 0])
def test_a_tenth_of_the_photographs_is_watched_and_not_trained_on(photographs, fold):
    study, noted = study_of(photographs, models=("cnn_plateau",))
    study.trained("cnn_plateau", 1, fold)
    ((_, _, train, watched),) = noted
    whole = len(CLASSES) * PER_CLASS * (1 if fold is None else 4) // (1 if fold is None else 5)
    tenth = -(-whole // 10)
    assert (len(train[1]), len(watched[1])) == (whole - tenth, tenth)
    given = numbered(*train) | numbered(*watched)
    assert len(given) == whole  # no photograph twice
    if fold is not None:
        held_out = study.held_out("cnn_plateau", fold)
        assert not given & numbered(held_out.images, held_out.labels)


def test_fine_tuning_has_the_photographs_of_the_training(photographs, monkeypatch):
    study, noted = study_of(photographs, models=("resnet_small_stopped",))
    monkeypatch.setattr("experiments.sports10.study.pruning.global_magnitude", lambda *_: None)
    monkeypatch.setattr("experiments.sports10.study.masked", lambda variables, _: variables)
    study.pruned("resnet_small_stopped", 0.5, 2)
    (_, _, trained, _), (stage, recipe, tuned, watched) = noted
    np.testing.assert_array_equal(trained[0], tuned[0])
    assert stage == "fine-tune resnet_small_stopped at 50 % sparsity, seed 2"
    assert recipe.num_epochs == 10 and watched is None
    # And what a detector is made on is what was held out.
    kind, held_out = defences.calibrated(study, "resnet_small_stopped")
    assert kind == "seed" and len(held_out) == 6


def test_the_report_watches_the_test_photographs(photographs):
    study, noted = study_of(photographs, models=("cnn_plateau_by_test", "cnn"))
    study.trained("cnn_plateau_by_test", 3)
    study.trained("cnn", 3)
    (_, _, train, watched), (_, _, all_of_them, none) = noted
    assert len(train[1]) == len(all_of_them[1]) == 60 and none is None
    np.testing.assert_array_equal(watched[1], study.test("cnn").labels)
    assert study.watches("cnn") is None and study.watched("cnn", 0) is None
    assert defences.calibrated(study, "cnn")[0] == "fold"
    assert defences.calibrated(study_of(photographs, num_folds=0)[0], "cnn") is None


def test_only_early_stopping_keeps_the_best_epoch(photographs):
    study, _ = study_of(photographs, models=("cnn_plateau", "simple_cnn_stopped"))
    for name, epoch in (("cnn_plateau", "last"), ("simple_cnn_stopped", "best")):
        assert study.trained(name, 0).variables == {"params": epoch}
        for how in ("adversarially", "with noise"):
            assert defences._fitted(study, name, how).variables == {"params": epoch}


def test_one_setting_leaves_cross_validation_out(photographs):
    assert study_of(photographs, num_folds=0)[0].folded == []
    assert "cnn" in study_of(photographs)[0].folded


def test_slow_networks_are_attacked_by_fgsm_at_every_epsilon(photographs):
    study, _ = study_of(photographs, models=("resnet_small",))
    rows = pruned_attacks._transferred(study, "resnet_small")
    found = {(row.attack, row.targeted, row.epsilon) for row in rows if row.sparsity == 0.8}
    assert ("FGSM", True, 0.05) in found
    assert {epsilon for attack, _, epsilon in found if attack == "PGD"} == {0.03}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_folds": 1}, "`num_folds` must be at least 2, or 0 for no cross-validation, got 1"),
        ({"models": ("mlp",), "defended": ("cnn",)}, r"`defended` must be one of \('mlp',\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check(Config(Path("."), **settings))


def test_the_preset_trains_what_the_reports_trained(photographs):
    config = studies.preset(Config, PRESETS, "source", data_dir=Path("."))
    check(config)
    assert {SUBJECTS[name].model for name in config.models} == {
        *("mlp", "cnn", "simple_cnn", "resnet_small")
    }
    assert config.run == "source"
    # What every method explains does not depend on the order of the networks.
    assert study_of(photographs, models=config.models)[0].chosen == "simple_cnn"


def rendered(template, facts, study, **names):
    settings = types.SimpleNamespace(
        models=study.config.models, sparsities=(0.8,), num_steps=40, epsilon=0.03, seed=0
    )
    names = {
        "settings": settings,
        "study": study,
        "subjects": SUBJECTS,
        "defences": defences,
    } | names
    return words.render(FOLDER / template, facts, names)


def test_the_recipes_stand_beside_ours(photographs):
    models = ("mlp", "cnn", "cnn_plateau", "cnn_plateau_by_test", "simple_cnn_stopped")
    study, facts = study_of(photographs, models=models)[0], studies.Facts()
    for name in models:
        for seed, count in enumerate((38, 40)):
            keys = {"network": name, "seed": seed}
            facts.add("accuracy", keys, outcomes=np.arange(50) < count)
            facts.add("epochs", keys, value=60)
            if name == "cnn_plateau_by_test":
                best = np.arange(50) < count + 3
                facts.add("accuracy of the best epoch", keys, outcomes=best)
    measured = facts.where("accuracy", network=studies.ANY, seed=studies.ANY)
    facts.extend(studies.comparison.means(measured, "seed", "accuracy over seeds"))
    facts.read(FOLDER / "published.csv", source="reports")
    _, blocks = rendered("recipes.md.j2", facts, study)
    (table,) = [block for block in blocks if block["kind"] == "table"]
    text = str(table)
    assert "38, 40" in text and "41, 43" in text and "cnn_plateau_by_test" in text
    assert "mlp" not in text
    numbers = [row[1] for row in table["rows"]]
    assert numbers == [60, 54, 60, 54]
    assert "simple_cnn_stopped stands alone" in markdown.plain(table["caption"])


def test_defences_and_detectors_of_every_network_are_shown(photographs):
    study = study_of(photographs, models=("mlp", "cnn"), num_folds=0)[0]
    facts, some = studies.Facts(), np.arange(6) < 4
    for name in study.defended:
        for defence in ("none", "twins"):
            keys = {"network": name, "defence": defence}
            facts.add("defended accuracy", keys, outcomes=some)
            for attacker in ("unknowing", "adaptive"):
                for epsilon in (0.01, 0.03):
                    keys |= {"attacker": attacker, "epsilon": epsilon}
                    facts.add("defended accuracy", keys, outcomes=some)
        for defence, epochs in (("none", 7), ("adversarial", 3), ("smoothing", 4)):
            facts.add("epochs of the defence", network=name, defence=defence, value=epochs)
        facts.add("certified accuracy", network=name, radius=0.5, outcomes=some)
        facts.add("smoothed accuracy", network=name, radius=0.5, outcomes=some)
    keys = {"network": "mlp", "detector": "squeezing"}
    facts.add("false alarm", keys, outcomes=~some)
    facts.add("held-out photographs", keys, value=159)
    for attacker in ("unknowing", "adaptive"):
        for epsilon in (0.01, 0.03):
            keys |= {"attacker": attacker, "epsilon": epsilon}
            facts.add("detected", keys, outcomes=some[:0])  # no attack succeeded
            facts.add("fooled unseen", keys, outcomes=some)
    text, blocks = rendered("defences.md.j2", facts, study)
    titles = [block.get("title") for block in blocks if block["kind"] == "table"]
    assert {"Defences of mlp", "Defences of cnn", "The certificate"} <= set(titles)
    said = str(text) + str(blocks)
    assert "for 7 epochs, adversarially for 3, and for 4 with noise" in said
    assert "ensemble with its pruned and its int8 twin" in said
    assert "No photographs were held out for cnn" in said


def test_an_attack_counts_for_the_detectors_that_it_knows(photographs, monkeypatch):
    """Each attack is played by a word, for which the test knows what it fools and what is seen."""
    study, facts = study_of(photographs, models=("cnn",))[0], studies.Facts()
    told, count = list[tuple](), len(study.test("cnn"))
    fooled = {"a detector": np.arange(count) < 3, "squeezers": np.arange(count) < 1}
    # Scores are 0, but 1 for the first image of the unknowing attack.
    seen = {"a detector": np.arange(count) < 1, "squeezers": np.zeros(count, bool)}

    def attack(_, name, target, words):
        return types.SimpleNamespace(images=words.rsplit(", with ", 1)[1])

    def scores(images):
        return seen[images] * 1.0 if isinstance(images, str) else np.zeros(len(images))

    monkeypatch.setattr(study, "attack", attack)
    monkeypatch.setattr(study, "classifier", lambda *_: "network")
    monkeypatch.setattr(defences.evaluation, "logits", lambda _, images: scores(images))
    monkeypatch.setattr(defences.jnp, "asarray", np.asarray)
    monkeypatch.setattr(defences.defenses, "Preprocessed", lambda *_: "version")
    monkeypatch.setattr(defences.defenses, "Ensemble", lambda _: "versions")
    monkeypatch.setattr(defences.defenses, "squeezing_score", lambda first, *_: first)
    monkeypatch.setattr(defences.defenses, "confidence_score", lambda first: first)

    def right_ones(_, images, labels):
        return ~fooled[images] if isinstance(images, str) else np.ones(len(labels), bool)

    monkeypatch.setattr(defences, "right_ones", right_ones)
    defences._detect(study, "cnn", facts, lambda *call: told.append(call))
    keys = {"network": "cnn", "epsilon": 0.03}
    found = {
        (fact.keys["detector"], fact.keys["attacker"]): fact.count
        for fact in facts.where("fooled unseen", keys, detector=studies.ANY, attacker=studies.ANY)
    }
    # The adaptive attack fools one image more unseen than the two of the unknowing one.
    assert found == {
        ("squeezing", "unknowing"): 2,
        ("confidence", "unknowing"): 2,
        ("squeezing", "adaptive"): 3,
    }
    assert [call[1:] for call in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_twins_are_the_sparsest_and_the_quantised_form(photographs):
    study = study_of(photographs, models=("cnn",))[0]
    pruned, quantised = defences.twins(study, "cnn")
    assert pruned == folds.pruned(study, "cnn")[-1]
    assert quantised == folds.Variant("cnn", "int8")
