"""Attacks over data sets: the same verdicts however they were computed, nothing retraced."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted
from processes import answers
from verdicts import ATTACKS, SEED, attack, classifier, examples, network, verdicts

from jaxrobust import compilation, evaluation
from jaxrobust.attacks import APGD, BIM, FAB, PGD, CarliniWagner, DeepFool, Square
from jaxrobust.evaluation import Execution, seats
from jaxrobust.models import Classifier
from jaxrobust.types import Stochastic, fold_keys

KEY = jax.random.key(SEED)


@pytest.fixture(scope="module")
def expected() -> dict[str, list]:
    """With as many lanes as there are images: nothing is refilled."""
    found = verdicts(num_lanes=45)
    for fooled in (found[name] for name in ATTACKS):
        assert 5 < sum(fooled) < 43  # else agreement would say little
    return found


@pytest.mark.parametrize(
    "groups, num_lanes", [((16,), 1), ((16,), 32), ((4, 5), 14), (None, 5), (None, 64)]
)
def test_verdicts_do_not_depend_on_the_lanes(expected, groups, num_lanes, monkeypatch):
    """In groups, as on the CPU, or all at once, as elsewhere; the counts neither."""
    monkeypatch.setattr(compilation, "group_sizes", lambda: groups)
    assert verdicts(num_lanes=num_lanes) == expected


@pytest.mark.parametrize("name", ATTACKS)
def test_leaving_at_the_first_success_changes_no_verdict(name, expected):
    settings, _ = ATTACKS[name]
    early, late = (attack(settings, until_fooled=until) for until in (True, False))
    np.testing.assert_array_equal(early.success, late.success)
    assert late.success.tolist() == expected[name]
    if settings.keep != "last":  # of which the first success may be lost again
        assert early.num_queries.sum() < late.num_queries.sum()
    # What withstands gets all of it either way.
    np.testing.assert_array_equal(early.num_queries[~late.success], late.num_queries[~late.success])


def test_a_success_cancels_the_images_other_restarts():
    report = attack(PGD(0.5, 0.2, 3, num_restarts=50), until_fooled=True)
    assert report.success.all()
    assert (report.num_queries <= 24).all()  # of 200


def test_one_batch_and_the_queue_find_the_same():
    """The simple call and the driver, image by image."""
    images, labels = examples()
    for settings in (
        PGD(0.1, 0.02, 5, num_restarts=3),
        DeepFool(num_steps=20),
        FAB(0.03, num_iterations=3, num_restarts=3),
    ):
        whole = settings(KEY, classifier(), images, labels)
        report = attack(settings, num_lanes=16)
        np.testing.assert_allclose(report.images, whole.images, atol=1e-5)
        np.testing.assert_array_equal(report.fools, whole.success)
        for count in ("num_steps", "num_queries", "num_gradients"):
            np.testing.assert_array_equal(getattr(report, count), getattr(whole, count))


def test_every_image_may_have_its_own_epsilon():
    images, _ = examples()
    epsilons = np.linspace(0, 0.2, len(images)).astype(np.float32)
    report = attack(BIM(epsilons, 0.03, 8), num_lanes=8)
    assert (report.linf <= epsilons + 1e-6).all() and report.linf[-1] > 0.19
    assert evaluation.attack_label(report.attack) == "BIM, linf 0 to 0.2, 8 steps"
    assert evaluation.summarise(report, "m", list("abcd"))["parameters"]["epsilon"][0] == 0
    with pytest.raises(ValueError, match=r"one for each of the 45 images, got shape \(3,\)"):
        attack(BIM(np.full(3, 0.1, np.float32)))
    with pytest.raises(ValueError, match="`epsilon` must be .* at most 1, got 1.5"):
        BIM(np.array([0.1, 1.5]))


def test_nothing_is_retraced_for_other_numbers_of_images_epsilons_and_weights():
    @Counted
    def counted(variables, images):
        return network(variables, images)

    traces = counted.traces

    # Square's 5000 queries would take most of the time here, and trace no more than 5.
    suite = {"apgd": APGD(0.1, num_iterations=5), "square": Square(0.1, num_steps=5)}

    def run(size, epsilon, seed):
        images, labels = examples(size)
        counting = dataclasses.replace(classifier(seed), apply_fn=counted)
        swept = {k: dataclasses.replace(a, epsilon=epsilon) for k, a in suite.items()}
        evaluation.attack_suite(swept, counting, images, labels, key=KEY, execution=Execution(16))

    run(20, 0.01, 0)
    first = len(traces)
    assert 0 < first <= 12
    run(20, 0.02, 1)
    assert len(traces) == first
    before = len(traces)
    run(45, 0.005, 0)
    # Clean logits of another number of images are another batch; the attacks are not.
    assert {shape[0] for shape in traces[before:]} <= {1, 45}


def test_the_suite_counts_what_each_attack_leaves():
    images, labels = examples()
    labels = labels.copy()
    labels[:4] = (labels[:4] + 1) % 4  # wrong before anything is done
    suite = {"small": BIM(0.01, 0.01, 3), "large": BIM(0.1, 0.02, 8)}
    report = evaluation.attack_suite(suite, classifier(), images, labels, key=KEY)
    assert report.clean_accuracy["count"] == 41 and (report.fooled_by[:4] == -2).all()
    np.testing.assert_array_equal(report.images[:4], images[:4])
    alone = [attack(settings).success[4:] for settings in suite.values()]
    np.testing.assert_array_equal(report.robust[4:], ~alone[0] & ~alone[1])
    assert report.after("small")["count"] == int((~alone[0]).sum())
    assert report.after("large") == report.robust_accuracy
    predicted = report.logits.argmax(axis=1)
    np.testing.assert_array_equal(predicted[4:] == labels[4:], report.robust[4:])
    assert (report.num_queries[:4] == 0).all() and (report.num_queries[4:] > 0).all()
    summary = evaluation.summarise_suite(report, "m")
    json.dumps(summary)
    assert [row["fooled"] for row in summary["attacks"]] == [
        int(alone[0].sum()),
        int((alone[1] & ~alone[0]).sum()),
    ]
    for wrong in ({}, {"t": BIM(0.1, targeted=True)}, {"cw": CarliniWagner()}):
        with pytest.raises(ValueError, match="`suite` must"):
            evaluation.attack_suite(wrong, classifier(), images, labels, key=KEY)


def test_minimal_attacks_end_within_epsilon_and_give_every_radius():
    report = attack(FAB(0.05, num_iterations=10))
    counts = [
        evaluation.robust_accuracy(report, epsilon)["count"] for epsilon in (0.0, 0.02, 0.05, 1)
    ]
    assert counts[0] == 45 and counts == sorted(counts, reverse=True) and counts[-1] < counts[1]
    assert evaluation.robust_accuracy(report)["count"] == counts[2]
    np.testing.assert_allclose(report.norms, report.linf)
    with pytest.raises(ValueError, match="`until_fooled` needs an epsilon"):
        attack(DeepFool(), until_fooled=True)
    with pytest.raises(
        ValueError, match="`epsilon` must be None except for attacks that look for the smallest"
    ):
        evaluation.robust_accuracy(attack(BIM(0.1, 0.1, 2)), 0.05)


def test_bfloat16_search_is_verified_in_float32():
    images, labels = examples()
    suite = {"pgd": PGD(0.03, 0.01, 10)}
    exact, rounded = (
        evaluation.attack_suite(
            suite, classifier(), images, labels, key=KEY, execution=Execution(search_type=kind)
        )
        for kind in ("float32", "bfloat16")
    )
    # Each success is one in float32; few are missed.
    predicted = np.asarray(jnp.argmax(classifier()(rounded.images), axis=1))
    np.testing.assert_array_equal(rounded.fooled_by == 0, predicted != labels)
    assert abs(int(rounded.robust.sum()) - int(exact.robust.sum())) <= 2

    def only_rounded(images):
        """Fooled where bfloat16 cannot tell the image from another one, in float32 never."""
        fooled = (images.dtype == jnp.bfloat16) * 2.0
        score = images.astype(jnp.float32).mean((1, 2, 3))
        return jnp.stack([1 + 0 * score, fooled + 0 * score], axis=1)

    images, rounded = examples()[0][:3], Execution(search_type="bfloat16")
    report = evaluation.attack_dataset(
        BIM(0.1, 0.1, 2), only_rounded, images, np.zeros(3, int), key=KEY, execution=rounded
    )
    assert not report.success.any()
    np.testing.assert_array_equal(report.num_queries, 6)  # attacked once more

    def nan_in_float32(images):
        """Where it is fooled it answers NaN, but not in bfloat16."""
        bright = images.astype(jnp.float32).mean((1, 2, 3)) > start + 0.01
        wrong = jnp.where(images.dtype == jnp.bfloat16, 2.0, jnp.nan)
        score = jnp.where(bright, wrong, images.astype(jnp.float32).mean((1, 2, 3)) / 2)
        return jnp.stack([score, jnp.ones_like(score)], axis=1)

    images, start = np.full((3, 6, 6, 2), 0.5, np.float32), 0.5
    report = evaluation.attack_dataset(
        BIM(0.1, 0.1, 2), nan_in_float32, images, np.ones(3, int), key=KEY, execution=rounded
    )
    assert not report.success.any() and report.saw_nan.all()


def test_what_bfloat16_cannot_see_is_attacked_in_float32():
    """At 0.5 and above, bfloat16 rounds a pixel to the next 1/256; epsilon is less than half of it."""

    def bright(weights, images):
        score = images.mean((1, 2, 3)) * weights
        return jnp.stack([jnp.full_like(score, 0.5039), score], axis=1)

    # The first three lack 0.001 to a success, the others 0.1.
    images = np.repeat(np.float32([0.5029, 0.4039]), 3)[:, None, None, None] * np.ones((6, 4, 4, 1))
    reports = [
        evaluation.attack_dataset(
            BIM(0.0015, 0.001, 3),
            Classifier(bright, jnp.float32(1)),
            images.astype(np.float32),
            np.zeros(6, int),
            key=KEY,
            execution=Execution(search_type=kind),
        )
        for kind in ("float32", "bfloat16")
    ]
    for report in reports:
        np.testing.assert_array_equal(report.success, [True] * 3 + [False] * 3)
    queries = [report.num_queries for report in reports]
    np.testing.assert_array_equal(queries[1][:3], 2 * queries[0][:3])
    np.testing.assert_array_equal(queries[1][3:], queries[0][3:])


def test_where_only_bfloat16_is_nan_float32_decides():
    """The logarithm of what float32 sees above 0, and bfloat16 rounds below."""

    def dim(weights, images):
        score = jnp.log(1.0005 - images.mean((1, 2, 3))) * weights
        return jnp.stack([score, jnp.full_like(score, -7.0)], axis=1)

    images = np.full((3, 4, 4, 1), 0.9985, np.float32)
    report = evaluation.attack_dataset(
        BIM(0.0012, 0.0006, 3),
        Classifier(dim, jnp.float32(1)),
        images,
        np.zeros(3, int),
        key=KEY,
        execution=Execution(search_type="bfloat16"),
    )
    assert report.success.all()


def noisy(variables, keys, images):
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
    return network(variables, images - 0.5 + 0.3 * noise)


def test_a_stochastic_classifier_is_attacked_in_expectation():
    """The mean of the gradients over many samples, against one computed by hand."""
    images, labels = examples(12)
    function = jax.tree_util.Partial(noisy, classifier().variables)
    shown = Stochastic(function, num_samples=8)
    reports = [
        evaluation.attack_dataset(
            BIM(0.1, 0.02, 8), shown, images, labels, key=KEY, execution=Execution(lanes)
        )
        for lanes in (12, 5)
    ]
    np.testing.assert_array_equal(reports[0].success, reports[1].success)
    np.testing.assert_allclose(reports[0].logits, reports[1].logits, atol=1e-5)
    assert reports[0].success.sum() > (reports[0].clean_predictions != labels).sum()
    from jaxrobust.attacks import conversation

    keys = fold_keys(KEY, jnp.arange(12))
    bim = conversation.per_image(BIM(), 12)
    states = conversation.start(bim, keys, images, labels, jnp.int32(0))
    _, evaluation_of_all = conversation.evaluate(bim, shown, states, keys)

    def loss(image, key, label):
        values = [
            jax.nn.logsumexp(z) - z[label]
            for z in (function(jax.random.fold_in(key, s)[None], image[None])[0] for s in range(8))
        ]
        return sum(values) / 8

    by_hand = jax.vmap(jax.grad(loss))(jnp.asarray(images), keys, jnp.asarray(labels))
    np.testing.assert_allclose(evaluation_of_all.gradient, by_hand, atol=1e-5)


def test_samples_of_a_classifier_that_does_not_answer_at_random_change_nothing():
    """FAB, which wants a gradient at every other question only, through the mean of samples."""
    images, labels = examples(10)
    steady = jax.tree_util.Partial(lambda variables, keys, x: network(variables, x), variables())
    plain = jax.tree_util.Partial(network, variables())
    attack = FAB(0.05, num_iterations=6)
    one, other = (
        evaluation.attack_dataset(
            attack, function, images, labels, key=KEY, execution=Execution(num_lanes=6)
        )
        for function in (Stochastic(steady, num_samples=3), plain)
    )
    assert one.success.sum() > 0 and (one.success == other.success).all()
    np.testing.assert_allclose(one.norms, other.norms, rtol=1e-4)
    # Three samples for every question, and no gradient where none is wanted.
    assert (one.num_queries == 3 * other.num_queries).all()
    assert (one.num_gradients == 3 * other.num_gradients).all()


def variables():
    return classifier().variables


def test_nan_is_flagged_and_never_a_success():
    images, labels = examples(8)

    def sometimes_nan(x):
        dark = x.mean((1, 2, 3)) < images[3].mean() + 1e-4
        near = jnp.abs(x.mean((1, 2, 3)) - images[3].mean()) < 0.05
        return jnp.where((dark & near)[:, None], jnp.nan, classifier()(x))

    clean = np.isnan(np.asarray(sometimes_nan(jnp.asarray(images)))).any(axis=1)
    assert 0 < clean.sum() < 8
    report = evaluation.attack_dataset(BIM(0.02, 0.01, 4), sometimes_nan, images, labels, key=KEY)
    assert report.saw_nan[clean].all() and not report.attacked[clean].any()
    assert not np.isnan(report.logits[report.success]).any()
    rows = evaluation.records(report)
    assert rows[int(np.flatnonzero(clean)[0])]["saw_nan"]
    with pytest.raises(ValueError, match="NaN for every clean image"):
        evaluation.attack_dataset(
            BIM(), lambda x: jnp.nan * classifier()(x), images, labels, key=KEY
        )


def test_targets_that_are_the_labels():
    images, labels = examples()
    with pytest.raises(ValueError, match="must differ from the labels, got the label of 45 of 45"):
        evaluation.attack_dataset(
            BIM(targeted=True), classifier(), images, labels, key=KEY, targets=labels
        )


@pytest.mark.parametrize(
    "asked, jobs, devices, steps, expected",
    [
        (128, 1000, 1, 5000, (4, 128)),
        (128, 1000, 2, 5000, (4, 128)),
        (128, 25, 2, 5000, (7, 140)),  # 13 on a device: two groups of 7 leave one lane idle
        (128, 25, 1, 5000, (5, 130)),
        (128, 25, 2, 100, (4, 128)),  # not worth a program
        (1, 1000, 1, 5000, (4, 4)),
        (10, 0, 2, 100, (4, 16)),
    ],
)
def test_groups_leave_few_lanes_idle(asked, jobs, devices, steps, expected, monkeypatch):
    monkeypatch.setattr(compilation, "group_sizes", lambda: (4, 5, 6, 7))
    assert seats.lane_count(asked, jobs, devices, steps) == expected


def test_few_lanes_go_to_few_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 64)
    monkeypatch.setattr(compilation, "group_sizes", lambda: (4,))
    assert [seats.device_count(lanes) for lanes in (1, 9, 128, 1000)] == [1, 3, 32, 64]
    monkeypatch.setattr(compilation, "group_sizes", lambda: None)
    assert seats.device_count(8) == 8


def test_busy_lanes_are_dealt_to_the_devices_in_turn():
    np.testing.assert_array_equal(seats._in_turn(8, 2), [0, 4, 1, 5, 2, 6, 3, 7])
    np.testing.assert_array_equal(seats._in_turn(3, 1), [0, 1, 2])


@pytest.mark.slow
def test_two_devices_give_the_verdicts_of_one(expected):
    [given] = answers("verdicts.py", num_devices=2)
    assert given == {"devices": 2, "verdicts": expected}


@pytest.mark.slow
def test_two_processes_give_the_verdicts_of_one(expected):
    for given in answers("verdicts.py", num_processes=2):
        assert given == {"devices": 1, "verdicts": expected}
