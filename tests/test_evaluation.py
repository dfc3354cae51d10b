"""Accuracy, rates, attack reports, transfer, and what goes into result.json."""

import dataclasses
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from jaxrobust import evaluation, files, studies
from jaxrobust.attacks import BIM, FGSM, PGD
from jaxrobust.models import Classifier
from jaxrobust.studies import results


@given(st.integers(0, 400), st.integers(1, 400))
def test_wilson_interval_equals_scipy(count, n):
    count = min(count, n)
    ours = evaluation.rate(count, n)
    theirs = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose([ours["low"], ours["high"]], [theirs.low, theirs.high], atol=1e-12)


def test_rate_of_nothing_and_of_nonsense():
    assert evaluation.rate(0, 0)["rate"] is None
    with pytest.raises(ValueError, match="`count` must be .* at least 0 and at most 3, got 4"):
        evaluation.rate(4, 3)


def brightness(variables, images):
    """Three classes: dark, middle and bright by the mean pixel; `variables` scales the logits."""
    mean = images.mean((1, 2, 3))
    return variables * jnp.stack([0.6 - 2 * mean, jnp.zeros_like(mean), 2 * mean - 1.4], axis=1)


CLASSIFIER = Classifier(brightness, jnp.float32(10))


def grey(*levels):
    return np.stack([np.full((4, 4, 1), level, np.float32) for level in levels])


def test_evaluate_by_hand():
    images = grey(0.1, 0.2, 0.5, 0.5, 0.9, 0.9, 0.9)
    labels = np.array([0, 1, 1, 1, 2, 2, 0])
    report = evaluation.evaluate(CLASSIFIER, images, labels, ["dark", "middle", "bright"], 3)
    assert report["accuracy"]["count"] == 5 and report["accuracy"]["n"] == 7
    assert report["confusion_matrix"] == [[1, 0, 1], [1, 2, 0], [0, 0, 2]]
    middle = report["per_class"][1]
    assert middle["class"] == "middle" and middle["support"] == 3
    np.testing.assert_allclose(
        [middle["precision"], middle["recall"], middle["f1"]], [1, 2 / 3, 0.8]
    )
    json.dumps(report)


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_classes_are_those_of_scikit_learn(seed):
    """With images without an answer, a class without images, and one that nothing is taken for."""
    draws = np.random.default_rng(seed)
    labels, answers = draws.integers(0, 4, 40), draws.integers(1, 5, 40)
    values = np.where(np.eye(6)[answers] > 0, 9, draws.random((40, 6))).astype(np.float32)
    values[draws.random(40) < 0.1] = np.nan
    images = np.tile(np.arange(40, dtype=np.uint8)[:, None, None, None], (1, 2, 2, 1))
    table = jnp.asarray(values)
    with warnings.catch_warnings(action="ignore"):
        report = evaluation.evaluate(
            lambda images: table[jnp.round(255 * images[:, 0, 0, 0]).astype(int)], images, labels
        )
    predicted = np.where(np.isnan(values).any(1), -1, answers)
    classes = range(6)
    theirs = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0.0
    )
    for name, expected in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert [row[name] for row in report["per_class"]] == expected.tolist()
        assert name == "support" or report["macro"][name] == expected.mean()
    matrix = metrics.confusion_matrix(labels, predicted, labels=classes)
    assert report["confusion_matrix"] == matrix.tolist()


def test_logits_do_not_depend_on_the_batch_size_and_take_bytes():
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 1)).astype(np.uint8)
    whole = evaluation.logits(CLASSIFIER, images)
    for batch_size in (1, 3, 7, 100):
        np.testing.assert_allclose(evaluation.logits(CLASSIFIER, images, batch_size), whole)
    np.testing.assert_allclose(evaluation.logits(CLASSIFIER, images / np.float32(255)), whole)


@pytest.mark.parametrize(
    "images, labels, names, message",
    [
        (grey(0.5), [], None, "at least one, got 0 labels for 1 images"),
        (grey(0.5, 0.6), [1], None, "got 1 labels for 2 images"),
        (grey(0.5), [3], None, r"`labels` must lie in 0 .. 2 for 3 classes"),
        (grey(0.5), [1], ["a"], "`class_names` must have 3 names, got 1"),
        (grey(1.5), [1], None, r"`images` must lie in \[0, 1\]"),
    ],
)
def test_evaluate_errors(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(CLASSIFIER, images, np.array(labels, int), names)


IMAGES = grey(0.1, 0.29, 0.325, 0.5, 0.69, 0.75, 0.9)
LABELS = np.array([0, 0, 1, 1, 1, 1, 2])  # the classifier takes .75 for bright: one is wrong


def attacked(attack, *, targets=None, until_fooled=False, **execution):
    options = {"key": jax.random.key(0), "targets": targets, "until_fooled": until_fooled}
    options |= {"execution": evaluation.Execution(**execution)}
    return evaluation.attack_dataset(attack, CLASSIFIER, IMAGES, LABELS, **options)


def test_attack_report_by_hand():
    """Brightness may move by .05: it crosses .3 or .7 from .29, .325 and .69."""
    report = attacked(BIM(0.05, 0.01, 6))
    np.testing.assert_array_equal(report.attacked, [1, 1, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(report.success, [0, 1, 1, 0, 1, 1, 0])
    rate = evaluation.success_rate(report)
    assert (rate["count"], rate["n"]) == (3, 6)
    robust = evaluation.robust_accuracy(report)
    assert (robust["count"], robust["n"]) == (3, 7)
    np.testing.assert_allclose(report.linf[0], 0.05, atol=1e-6)
    np.testing.assert_allclose(report.l2[0], 0.05 * 4, atol=1e-6)
    assert report.num_steps.tolist() == [6, 2, 3, 6, 2, 0, 6]


def test_targeted_report_counts_the_images_of_other_classes():
    report = attacked(BIM(0.05, 0.01, 6, targeted=True), targets=1)
    np.testing.assert_array_equal(report.attacked, [1, 1, 0, 0, 0, 0, 1])
    rate = evaluation.success_rate(report)
    assert (rate["count"], rate["n"]) == (1, 3)
    with pytest.raises(ValueError, match="must be of an untargeted attack"):
        evaluation.robust_accuracy(report)


def test_records_and_summary_are_json_and_agree():
    report = attacked(PGD(0.05, 0.01, 6))
    summary = evaluation.summarise(report, "bright", ["dark", "middle", "bright"])
    again = json.loads(json.dumps(summary))
    assert again["label"] == "PGD, linf 0.05, 6 steps" and again["parameters"]["epsilon"] == 0.05
    records = again["records"]
    won = sum(record["success"] and record["attacked"] for record in records)
    assert won == again["success"]["count"]
    assert [record["clean_prediction"] for record in records] == [0, 0, 1, 1, 1, 2, 2]
    wins = [record["l2"] for record in records if record["attacked"] and record["success"]]
    assert 0 < len(wins) < again["success"]["n"] and again["norms_of"] == "successes"
    np.testing.assert_allclose(again["mean_l2"], np.mean(wins))
    assert all(len(record["adversarial_logits"]) == 3 for record in records)


def test_attack_dataset_does_not_depend_on_the_lanes():
    whole = attacked(PGD(0.05, 0.01, 3))
    for batch_size in (1, 3, 7):
        part = attacked(PGD(0.05, 0.01, 3), num_lanes=batch_size)
        np.testing.assert_allclose(part.images, whole.images, atol=1e-6)
        np.testing.assert_array_equal(part.num_steps, whole.num_steps)


def test_sweeps_compile_once():
    @Counted
    def counted(variables, images):
        return brightness(variables, images)

    traces = counted.traces

    def sweep(epsilon, scale):
        classifier = Classifier(counted, jnp.float32(scale))
        options = {"key": jax.random.key(0), "execution": evaluation.Execution(num_lanes=3)}
        evaluation.attack_dataset(PGD(epsilon, 0.01, 3), classifier, IMAGES, LABELS, **options)

    sweep(0.1, 10)
    first = len(traces)
    sweep(0.2, 10)
    sweep(0.3, 5)
    assert len(traces) == first


def test_progress_is_told():
    told = []
    attacked(FGSM(0.05), num_lanes=3, progress=lambda *one: told.append(one))
    assert {name for name, *_ in told} == {"FGSM, linf 0.05"}
    assert told[-1][1:] == (14, 14) and told == sorted(told)  # two questions for each of 7 images


@pytest.mark.parametrize(
    "attack, options, message",
    [
        (FGSM(), {"targets": 1}, "`targets` must be given for a targeted attack and for no other"),
        (FGSM(targeted=True), {}, "`targets` must be given for a targeted attack"),
        (FGSM(targeted=True), {"targets": 3}, r"`targets` must lie in 0 .. 2"),
        (
            FGSM(targeted=True),
            {"targets": [1, 2]},
            r"`targets` must be one class or have shape \(7,\)",
        ),
        (FGSM(), {"num_lanes": 0}, "`num_lanes` must be at least 1"),
        (FGSM(), {"search_type": "int8"}, "`search_type` must be one of"),
    ],
)
def test_attack_dataset_errors(attack, options, message):
    with pytest.raises(ValueError, match=message):
        attacked(attack, **options)


def brighter(by):
    """A classifier that sees so much more brightness."""
    return Classifier(lambda variables, images: brightness(variables, images + by), jnp.float32(10))


def test_transfer_by_hand():
    others = {"plain": CLASSIFIER, "near": brighter(0.02), "far": brighter(0.04)}
    found = {
        name: evaluation.attack_dataset(
            FGSM(0.05), logits_fn, IMAGES, LABELS, key=jax.random.key(0)
        )
        for name, logits_fn in others.items()
    }
    counts = [
        [(rate["count"], rate["n"]) for rate in row]
        for row in evaluation.transfer_matrix(others, found)["rates"]
    ]
    # plain is fooled on .29 and .69 (upwards) and .325 (downwards, to .275). Of these the others
    # have only .325 right when clean; .275 is .295 to near, which is fooled, and .315 to far.
    assert counts[0] == [(3, 3), (1, 1), (0, 1)]
    # near is fooled on .325 alone, far on nothing.
    assert counts[1] == [(1, 1), (1, 1), (0, 1)]
    assert counts[2] == [(0, 0), (0, 0), (0, 0)]
    with pytest.raises(ValueError, match="`reports` must be for the models"):
        evaluation.transfer_matrix(others, {"plain": found["plain"]})
    with pytest.raises(ValueError, match="one attack and the same images, and 'far' is"):
        other = dataclasses.replace(found["far"], attack=FGSM(0.1))
        evaluation.transfer_matrix(others, found | {"far": other})


def test_right_and_wrong_are_explained_first():
    predictions, labels = np.array([0, 1, 1, 2, 2, 3]), np.array([0, 0, 1, 2, 1, 3])
    assert studies.right_and_wrong(predictions, labels, 2) == [0, 1, 2, 4]
    assert studies.right_and_wrong(predictions, labels, 3) == [0, 1, 2, 4, 3]


def test_spread_over_the_true_positions():
    mask = np.array([0, 1, 1, 1, 0, 1, 1], bool)
    assert studies.spread(mask, 3) == [1, 3, 6]
    assert studies.spread(mask, 9) == [1, 2, 3, 5, 6]
    assert studies.spread(mask, 0) == []


def test_curve_keeps_the_step_in_proportion_and_ends_at_the_clean_accuracy():
    curve = evaluation.robustness_curve(
        PGD(0.05, 0.01, 40),
        CLASSIFIER,
        IMAGES,
        LABELS,
        evaluation.Sweep([0.0, 0.05, 0.5]),
        key=jax.random.key(0),
        model="m",
    )
    counts = [point["robust_accuracy"]["count"] for point in curve["points"]]
    assert counts == [6, 3, 0]
    assert curve["label"] == "PGD, 40 steps"
    with pytest.raises(ValueError, match="`attack.epsilon` must be a finite number above 0"):
        sweep, options = evaluation.Sweep([0.1]), {"key": jax.random.key(0), "model": "m"}
        evaluation.robustness_curve(FGSM(0.0), CLASSIFIER, IMAGES, LABELS, sweep, **options)


def test_nan_logits_are_neither_right_nor_a_success():
    def broken(variables, images):
        logits = brightness(variables, images)
        return jnp.where(images.mean((1, 2, 3))[:, None] > 0.8, jnp.nan, logits)

    classifier = Classifier(broken, jnp.float32(10))
    clean = evaluation.evaluate(classifier, IMAGES, LABELS)
    assert clean["accuracy"]["count"] == 5  # of six, .9 has no prediction
    report = evaluation.attack_dataset(
        BIM(0.05, 0.01, 6), classifier, IMAGES, LABELS, key=jax.random.key(0)
    )
    assert not report.success[-1] and not report.attacked[-1]
    assert evaluation.robust_accuracy(report)["count"] == 2


def test_loss_of_a_confident_error_is_not_capped():
    logits_fn = lambda x: jnp.tile(jnp.array([[200.0, 0.0]]), (len(x), 1))  # noqa: E731
    assert evaluation.evaluate(logits_fn, grey(0.5), np.array([1]))["loss"] == 200.0


def test_environment_names_versions_device_and_commit():
    environment = studies.environment()
    assert environment["jax"] == jax.__version__
    assert environment["device"].startswith(jax.default_backend())
    json.dumps(environment)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_survive_json(dtype):
    from jaxrobust import reports

    array = (np.arange(24).reshape(2, 3, 4)[:, ::-1] * 3).astype(dtype)
    again = reports.decode_array(json.loads(json.dumps(reports.encode_array(array))))
    np.testing.assert_array_equal(again, array)
    assert again.dtype == dtype


def test_write_json_replaces_nan_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5]}
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5]}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@dataclasses.dataclass(frozen=True)
class Settings:
    results_dir: Path
    epsilon: float = 0.1
    names: tuple[str, ...] = ("a",)
    run: str = "run"


def test_a_run_is_not_overwritten_by_another_configuration(tmp_path):
    folder = studies.start("experiment", Settings(tmp_path)).folder
    # Nothing was computed yet: a corrected configuration may take the folder over.
    studies.start("experiment", Settings(tmp_path, epsilon=0.3))
    studies.start("experiment", Settings(tmp_path))
    files.write_json(folder / "result.json", {})
    (folder / ".result.json.1.partial").write_text("{")
    studies.start("experiment", Settings(tmp_path))
    assert not (folder / ".result.json.1.partial").exists()
    with pytest.raises(ValueError, match="run of other settings: epsilon was 0.1, is now 0.2"):
        studies.start("experiment", Settings(tmp_path, epsilon=0.2))
    assert json.loads((folder / "settings.json").read_text())["epsilon"] == 0.1
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds results but no settings.json"):
        studies.start("experiment", Settings(tmp_path))


def test_run_names_stay_inside_the_results_folder(tmp_path):
    with pytest.raises(ValueError, match="`run` must be a plain name"):
        studies.start("quickstart", Settings(tmp_path, run="../other"))


def test_commit_is_none_outside_of_a_checkout(monkeypatch, tmp_path):
    inside = tmp_path / "a" / "b" / "c.py"
    monkeypatch.setattr(results, "__file__", str(inside))
    assert results.commit.__wrapped__() is None


def test_the_commit_is_that_of_the_start_of_a_run(monkeypatch, tmp_path):
    results.commit.cache_clear()
    studies.start("experiment", Settings(tmp_path))
    before = studies.environment()["commit"]
    monkeypatch.setattr(
        results, "__file__", str(tmp_path / "a" / "b" / "c.py")
    )  # the tree has moved
    assert results.commit.__wrapped__() is None
    assert studies.environment()["commit"] == before
