"""Thresholds in epsilon and steps, confidences, and transfer, on models with closed forms."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted

from jaxrobust import evaluation
from jaxrobust.attacks import APGD, BIM, FAB, FGSM, PGD, DeepFool
from jaxrobust.evaluation import Crossing, Execution
from jaxrobust.models import Classifier

KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(4).uniform(0.4, 0.6, (40, 2, 2, 3)).astype(np.float32)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


CLASSIFIER = Classifier(linear, WEIGHTS[:, :2])
LABELS = np.asarray(linear(WEIGHTS[:, :2], IMAGES)).argmax(1)


def closed_form():
    """The smallest epsilon for each image: margin over the l1 norm of the weights' difference."""
    difference = WEIGHTS[:, 0].astype(float) - WEIGHTS[:, 1]
    return np.sort(np.abs(IMAGES.reshape(40, -1) @ difference) / np.abs(difference).sum())


def find(attack, *, targets=None, **crossing):
    crossing = Crossing(**{"tolerance": 1e-4} | crossing)
    options = {"key": KEY, "targets": targets, "crossing": crossing, "execution": Execution(40)}
    return evaluation.epsilon_for_success(attack, CLASSIFIER, IMAGES, LABELS, **options)


@pytest.mark.parametrize("attack", [FGSM(0.1), BIM(0.1, 0.05, 3), PGD(0.1, 0.05, 5)])
@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0])
def test_epsilon_of_a_linear_model_is_margin_over_norm(attack, rate):
    found = find(attack, rate=rate, interval=False)
    expected = closed_form()[int(np.ceil(rate * 40)) - 1]
    assert expected <= found["epsilon"] + 1e-6 and found["epsilon"] <= expected + 1.01e-4
    assert found["low"] is None and found["high"] is None


def test_interval_is_where_wilson_admits_the_rate():
    found = find(FGSM(0.1))
    epsilons = closed_form()
    rates = [evaluation.rate(count, 40) for count in range(41)]
    for name, bound in (("low", "high"), ("epsilon", "rate"), ("high", "low")):
        count = next(i for i, rate in enumerate(rates) if rate[bound] >= 0.5)
        np.testing.assert_allclose(found[name], epsilons[count - 1], atol=1.01e-4)
    assert found["low"] < found["epsilon"] < found["high"]
    tried = [evaluation_["epsilon"] for evaluation_ in found["evaluations"]]
    assert tried[0] == 0.0 and tried == sorted(set(tried)) and tried[-1] == 0.3
    assert found["evaluations"][0]["success"]["count"] == 0
    json.dumps(found)


def test_epsilon_out_of_reach_is_none():
    found = find(FGSM(0.1), maximum=float(closed_form()[17]) * 1.001, rate=0.9)
    assert found["epsilon"] is None and found["low"] is None and found["high"] is None
    nothing_right = evaluation.epsilon_for_success(
        FGSM(0.1), CLASSIFIER, IMAGES, 1 - LABELS, key=KEY, execution=Execution(40)
    )
    assert nothing_right["epsilon"] is None and nothing_right["low"] is None
    assert nothing_right["evaluations"][-1]["success"]["n"] == 0


def test_targets_reached_already_need_nothing():
    """Labels turned around: every image is taken for its target when clean."""
    found = evaluation.epsilon_for_success(
        FGSM(0.1, targeted=True), CLASSIFIER, IMAGES, 1 - LABELS, key=KEY, targets=LABELS
    )
    assert found["epsilon"] == found["low"] == found["high"] == 0.0


def test_targeted_epsilon_of_a_linear_model():
    found = find(FGSM(0.1, targeted=True), targets=1 - LABELS, interval=False)
    np.testing.assert_allclose(found["epsilon"], closed_form()[19], atol=1.01e-4)


def test_bisection_compiles_once():
    @Counted
    def counted(weights, images):
        return linear(weights, images)

    traces = counted.traces

    def search(scale):
        classifier = Classifier(counted, scale * WEIGHTS[:, :2])
        return evaluation.epsilon_for_success(
            BIM(0.1, 0.05, 2), classifier, IMAGES, LABELS, key=KEY, execution=Execution(40)
        )

    evaluation.attack_dataset(
        BIM(0.1, 0.05, 2),
        Classifier(counted, WEIGHTS[:, :2]),
        IMAGES,
        LABELS,
        key=KEY,
        execution=Execution(40),
    )
    evaluation.logits(Classifier(counted, WEIGHTS[:, :2]), IMAGES)
    once = len(traces)
    found = search(1)
    search(2)
    assert len(found["evaluations"]) > 9 and len(traces) == once


def test_bisection_says_which_epsilon_is_tried():
    told = []
    evaluation.epsilon_for_success(
        FGSM(0.1), CLASSIFIER, IMAGES, LABELS, key=KEY, crossing=Crossing(tolerance=0.2),
        execution=Execution(progress=lambda *one: told.append(one)),
    )  # fmt: skip
    assert told[0][0] == "epsilon 0.3" and told[0][2] == 80  # two questions for each of 40 images
    assert list(dict.fromkeys(name for name, *_ in told)) == ["epsilon 0.3", "epsilon 0.15"]


def test_step_size_keeps_its_proportion():
    swept = evaluation.at_epsilon(PGD(0.1, 0.025, 4), 0.04)
    assert (swept.epsilon, swept.num_steps) == (0.04, 4) and abs(swept.step_size - 0.01) < 1e-12
    assert evaluation.at_epsilon(FGSM(0.1), 0.2) == FGSM(0.2)


def test_the_label_of_a_sweep_names_no_epsilon():
    attack = PGD(0.1, 0.025, 4, num_restarts=2)
    assert evaluation.attack_label(attack) == "PGD, linf 0.1, 4 steps, 2 restarts"
    assert evaluation.attack_label(attack, epsilon=False) == "PGD, 4 steps, 2 restarts"
    assert evaluation.attack_label(FGSM(0.1), epsilon=False) == "FGSM"


def test_labels_count_as_the_papers_do():
    of_targets = APGD(0.1, "targeted_dlr", num_iterations=7)
    assert evaluation.attack_label(of_targets) == "APGD, linf 0.1, 7 iterations"  # of 8 questions
    assert evaluation.attack_label(FAB(0.1, 7)) == "FAB, linf 0.1, 7 iterations"  # of 13
    assert evaluation.attack_label(DeepFool()) == "DeepFool, l2, 50 steps"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 0.0}, "`rate` must be a finite number above 0 and at most 1"),
        ({"maximum": 0.0}, "`maximum` must be a finite number above 0"),
        ({"tolerance": 0.0}, "`tolerance` must be a finite number above 0"),
        ({"attack": FGSM(0.0)}, "`attack.epsilon` must be a finite number above 0"),
        ({"maximum": 2.0}, "`epsilon` must be .* at most 1, got 2"),
    ],
)
def test_threshold_errors(options, message):
    attack = options.pop("attack", FGSM(0.1))
    with pytest.raises(ValueError, match=message):
        find(attack, **options)


def report(success, num_steps, attacked=None, logits=None, targets=None):
    """An AttackReport of which only these matter: class 0 is right, 1 is wrong, 2 the target."""
    n = len(success)
    attacked = np.ones(n, bool) if attacked is None else np.asarray(attacked)
    clean = np.where(attacked[:, None], [1.0, 0, 0], [0, 1.0, 0])
    if logits is None:
        logits = np.where(np.asarray(success)[:, None], [0, 1.0, 0], [1.0, 0, 0])
    return evaluation.AttackReport(
        attack=FGSM(0.1, targeted=targets is not None),
        labels=np.zeros(n, int),
        targets=targets,
        clean_images=np.zeros((n, 1, 1, 1)),
        images=np.zeros((n, 1, 1, 1)),
        clean_logits=clean,
        logits=np.asarray(logits, float),
        num_steps=np.asarray(num_steps),
        num_queries=np.asarray(num_steps),
        num_gradients=np.asarray(num_steps),
        saw_nan=np.zeros(n, bool),
    )


def test_steps_for_success_by_hand():
    some = report([1, 1, 1, 0, 0, 1], [3, 1, 7, 10, 10, 0], [1, 1, 1, 1, 1, 0])
    assert evaluation.steps_for_success(some, 0.2) == 1
    assert evaluation.steps_for_success(some, 0.4) == 3
    assert evaluation.steps_for_success(some, 0.5) == 7
    assert evaluation.steps_for_success(some, 0.6) == 7
    assert evaluation.steps_for_success(some, 0.61) is None
    assert evaluation.steps_for_success(report([1], [0], [False])) is None
    with pytest.raises(ValueError, match="`rate` must be .* above 0"):
        evaluation.steps_for_success(some, 0)


def test_confidences_by_hand():
    logits = np.log([[0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    untargeted = report([1, 1, 0, 1], [1] * 4, [1, 1, 1, 0], logits)
    wrong = evaluation.confidences(untargeted)
    assert wrong["target"] is None and wrong["wrong"]["n"] == 2
    np.testing.assert_allclose(wrong["wrong"]["mean"], 0.7)
    targeted = report([0, 0, 0, 1], [1] * 4, logits=logits, targets=np.array([2, 2, 2, 2]))
    both = evaluation.confidences(targeted)
    assert (both["wrong"]["n"], both["target"]["n"]) == (1, 4)
    np.testing.assert_allclose([both["wrong"]["mean"], both["target"]["mean"]], [0.7, 1.1 / 4])
    broken = dataclasses.replace(untargeted, logits=np.full((4, 3), np.nan))
    assert evaluation.confidences(broken)["wrong"] == {"mean": None, "n": 0}
    json.dumps(both)


def shifted(shift):
    """A classifier of one pixel: class 1 above `shift`."""
    rows = lambda v, x: jnp.stack([v - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - v], axis=1)  # noqa: E731
    return Classifier(rows, jnp.float32(shift))


GREY = np.array([0.2, 0.42, 0.44, 0.47, 0.9], np.float32).reshape(-1, 1, 1, 1)


def counts(rates):
    return {name: (rate["count"], rate["n"]) for name, rate in rates.items()}


def test_transfer_rates_by_hand():
    """.1 upwards: .42, .44 and .47 cross the source's .5; the target has .47 wrong when clean."""
    labels = np.array([0, 0, 0, 0, 1])
    found = evaluation.attack_dataset(FGSM(0.1), shifted(0.5), GREY, labels, key=KEY)
    assert evaluation.success_rate(found)["count"] == 3
    rates = evaluation.transfer_rates(found, shifted(0.45))
    assert counts(rates) == {"of_successes": (3, 3), "of_right": (2, 2)}
    assert counts(evaluation.transfer_rates(found, shifted(0.53))) == {
        "of_successes": (2, 3),  # .42 becomes .52
        "of_right": (2, 3),
    }


def test_targeted_transfer_leaves_out_what_is_the_target_already():
    labels = np.array([0, 0, 0, 0, 1])
    found = evaluation.attack_dataset(
        FGSM(0.1, targeted=True), shifted(0.5), GREY, labels, key=KEY, targets=1
    )
    rates = evaluation.transfer_rates(found, shifted(0.45))
    assert counts(rates) == {"of_successes": (3, 3), "of_right": (2, 2)}


def test_of_right_is_the_transfer_matrix():
    models = {"a": shifted(0.5), "b": shifted(0.45), "c": shifted(0.53)}
    labels = np.array([0, 0, 0, 0, 1])
    found = {
        name: evaluation.attack_dataset(FGSM(0.1), model, GREY, labels, key=KEY)
        for name, model in models.items()
    }
    matrix = evaluation.transfer_matrix(models, found)["rates"]
    for row, source in zip(matrix, found.values(), strict=True):
        for cell, model in zip(row, models.values(), strict=True):
            assert cell == evaluation.transfer_rates(source, model)["of_right"]
