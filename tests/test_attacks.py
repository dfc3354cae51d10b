"""What holds for every attack of the table; wrong input and the reference network follow."""

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_table import NUM_CLASSES, TABLE, batch, classifier, two_layers
from counting import Counted

from jaxrobust import attacks, models, norms
from jaxrobust.attacks import BIM, FAB, FGSM, PGD, Attack, conversation, engine
from jaxrobust.attacks.attack import overrides
from jaxrobust.types import Evaluation, fold_keys

TOLERANCE = 1e-6  # float32 differences of numbers up to 1


@pytest.fixture(params=TABLE)
def attack(request):
    return TABLE[request.param]


@pytest.fixture(params=[name for name in TABLE if TABLE[name].keep != "closest"])
def bounded(request):
    """An attack that stays within its epsilon."""
    return TABLE[request.param]


@pytest.fixture(params=[name for name in TABLE if TABLE[name].keep == "closest"])
def minimal(request):
    return TABLE[request.param]


# The first of each class and norm, for what costs seconds an attack.
KINDS = {(type(TABLE[name]), TABLE[name].norm): name for name in reversed(TABLE)}


@pytest.fixture(params=sorted(KINDS.values()))
def kind(request):
    return TABLE[request.param]


def settings_of(attack, kind):
    """The names of its hyper-parameters of a type."""
    return [field.name for field in dataclasses.fields(attack) if field.type is kind]


def test_every_attack_of_the_library_has_a_row():
    assert {type(attack) for attack in TABLE.values()} == set(attacks.ATTACKS.values())


def run(attack, key=0, logits_fn=None, images=None, labels=None):
    default_images, default_labels = batch()
    images = default_images if images is None else images
    labels = default_labels if labels is None else labels
    if attack.targeted:
        labels = (labels + 1) % NUM_CLASSES
    return attack(jax.random.key(key), logits_fn or classifier(), images, labels)


def distances(images, originals, norm):
    return jax.vmap(lambda d: norms.norm(d, norm))(images - originals)


def test_stays_in_the_ball_and_in_the_box(bounded):
    images, _ = batch()
    result = run(bounded)
    lengths = distances(result.images, images, bounded.norm)
    assert float(lengths.max()) <= bounded.epsilon + TOLERANCE
    assert float(result.images.min()) >= 0 and float(result.images.max()) <= 1
    assert float(lengths.min()) > 0


def test_epsilon_zero_is_the_identity(bounded):
    images, _ = batch()
    result = run(dataclasses.replace(bounded, epsilon=0.0))
    np.testing.assert_allclose(result.images, images, atol=1e-7)


def test_every_image_has_its_own_epsilon(bounded):
    """Each row is what the whole batch would be with its epsilon."""
    images, _ = batch()
    epsilons = bounded.epsilon * np.array([0.0, 0.2, 0.5, 1.0, 0.7, 0.0], np.float32)
    result = run(dataclasses.replace(bounded, epsilon=epsilons))
    lengths = np.asarray(distances(result.images, images, bounded.norm))
    assert (lengths <= epsilons + TOLERANCE).all()
    whole = run(dataclasses.replace(bounded, epsilon=float(epsilons[2])))
    np.testing.assert_allclose(result.images[2], whole.images[2], atol=10 * TOLERANCE)


def test_minimal_attacks_fool_close_by(minimal):
    images, _ = batch()
    result = run(minimal)
    if minimal.targeted:  # a class that is nowhere near, for some
        assert int(result.success.sum()) >= 3
    else:
        assert result.success.all()
    assert float(result.images.min()) >= 0 and float(result.images.max()) <= 1
    lengths = np.asarray(distances(result.images, images, minimal.norm))[np.asarray(result.success)]
    assert (lengths > 0).all() and np.median(lengths) < {"linf": 0.1, "l2": 0.6, "l1": 2.5}[
        minimal.norm
    ]


def test_success_recomputes_from_the_images(attack):
    _, labels = batch()
    result = run(attack)
    predictions = jnp.argmax(classifier()(result.images), axis=1)
    aims = (labels + 1) % NUM_CLASSES
    expected = (predictions == aims) if attack.targeted else (predictions != labels)
    np.testing.assert_array_equal(result.success, expected)


def test_same_key_same_result(attack):
    first, second = run(attack, key=3), run(attack, key=3)
    chex.assert_trees_all_equal(first, second)


def test_random_start_depends_on_the_key():
    pgd = dataclasses.replace(TABLE["pgd-last"], num_steps=1)
    assert not np.array_equal(run(pgd, key=0).images, run(pgd, key=1).images)


def test_does_not_depend_on_the_batch(attack):
    images, labels = batch()
    whole = run(attack)
    part = run(attack, images=images[:2], labels=labels[:2])
    np.testing.assert_allclose(part.images, whole.images[:2], atol=TOLERANCE)
    np.testing.assert_array_equal(part.success, whole.success[:2])
    np.testing.assert_array_equal(part.num_steps, whole.num_steps[:2])


def test_a_nan_row_spoils_no_other_row(attack):
    images, _ = batch()

    def sometimes_nan(x):
        # The second image's rows of logits and gradients are NaN.
        logits = classifier()(x)
        return logits.at[1].set(jnp.nan * logits[1])

    clean, spoilt = run(attack), run(attack, logits_fn=sometimes_nan)
    others = np.array([0, 2, 3, 4, 5])
    np.testing.assert_allclose(spoilt.images[others], clean.images[others], atol=TOLERANCE)
    np.testing.assert_array_equal(spoilt.success[others], clean.success[others])
    assert not bool(spoilt.success[1])
    if hasattr(attack, "epsilon") and attack.keep != "closest":
        np.testing.assert_allclose(spoilt.images[1], images[1], atol=attack.epsilon + TOLERANCE)
    assert np.isfinite(spoilt.images).all()


def test_an_infinite_gradient_disarms_no_attack(kind):
    attack = kind
    """The square root of a black pixel: its gradient is infinite, the others are as they were."""
    if not attack.uses_gradient:
        return
    images, labels = batch()
    dark = images.at[:, 0, 0, 0].set(0.0)

    def rooted(x):
        return classifier()(x) + 1e-3 * jnp.sqrt(x[:, 0, 0, :1])

    plain = run(attack, images=dark, labels=labels)
    spoilt = run(attack, logits_fn=rooted, images=dark, labels=labels)
    assert np.isfinite(spoilt.images).all()
    assert int(spoilt.success.sum()) >= int(plain.success.sum()) - 1


def test_compiled_equals_uncompiled(kind):
    attack = kind
    images, labels = batch(2)
    lengths = {"num_iterations": 2, "num_steps": 3}
    short = {name: lengths[name] for name in settings_of(attack, int) if name in lengths}
    attack = dataclasses.replace(attack, **short)
    compiled = run(attack, images=images, labels=labels)
    with jax.disable_jit():
        plain = run(attack, images=images, labels=labels)
    # Rounding differs, and each of several steps builds on the one before.
    np.testing.assert_allclose(compiled.images, plain.images, atol=30 * TOLERANCE)
    np.testing.assert_array_equal(compiled.success, plain.success)


def test_one_compilation_for_all_epsilons_and_weights(attack):
    @Counted
    def counted(variables, images):
        return two_layers(variables, images)

    traces = counted.traces

    def counting(seed):
        return dataclasses.replace(classifier(seed), apply_fn=counted)

    run(attack, logits_fn=counting(0))
    first = len(traces)
    assert first > 0
    setting = settings_of(attack, float)[0]
    for value in (0.01, 0.05, np.float32(0.2), jnp.float32(0.3), np.linspace(0.01, 0.1, 6)):
        run(dataclasses.replace(attack, **{setting: value}), logits_fn=counting(1))
    assert len(traces) == first


@pytest.mark.parametrize("name", ["pgd-restarts", "apgd-t", "deepfool"])
def test_runs_inside_a_users_jit(name):
    attack = TABLE[name]
    images, labels = batch()
    inside = jax.jit(lambda key, c, x, y: attack(key, c, x, y))
    result = inside(jax.random.key(0), classifier(), images, labels)
    np.testing.assert_allclose(result.images, run(attack).images, atol=10 * TOLERANCE)


def test_works_in_a_gradient_taken_around_it():
    """Adversarial training as one writes it first: the weights are traced, in a closure."""
    images, labels = batch()
    start = classifier()

    def loss(variables):
        traced = dataclasses.replace(start, variables=variables)
        found = PGD(0.1, 0.03, 2)(jax.random.key(0), lambda x: traced(x), images, labels)
        return traced(jax.lax.stop_gradient(found.images)).sum()

    gradient = jax.grad(loss)(start.variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_works_in_a_gradient_around_it_whatever_computes_convolutions(monkeypatch):
    """Nested gradients reach into the forms that convolutions have on the CPU."""
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    labels = jnp.zeros(2, jnp.int32)
    network = models.create("cnn", widths=(4, 4, 4, 4, 4))
    variables = network.init(jax.random.key(0), images)

    def loss(variables):
        found = BIM(0.1, 0.03, 2)(
            jax.random.key(0), lambda x: network.apply(variables, x), images, labels
        )
        return network.apply(variables, jax.lax.stop_gradient(found.images)).sum()

    monkeypatch.setenv("JAXROBUST_ONEDNN", "0")
    jax.clear_caches()
    expected = jax.grad(loss)(variables)
    monkeypatch.delenv("JAXROBUST_ONEDNN")
    jax.clear_caches()
    chex.assert_trees_all_close(jax.grad(loss)(variables), expected, atol=1e-3)
    jax.clear_caches()


def test_a_row_that_wants_no_gradient_gets_zeros():
    """Whatever the rows beside it want."""
    fab = conversation.per_image(FAB(0.1, 3), 3)
    images, labels = batch(3)
    keys = fold_keys(jax.random.key(0), jnp.arange(3))
    states = conversation.start(fab, keys, images, labels, jnp.int32(0))
    mixed = states._replace(candidate=jnp.array([False, True, False]))

    def gradients(states, finished=False):
        found = conversation.evaluate(fab, classifier(), states, keys, finished=finished)[1]
        return np.asarray(found.gradient)

    both = gradients(states)
    assert np.abs(both).reshape(3, -1).max(axis=1).all()
    np.testing.assert_array_equal(gradients(mixed)[1], 0)
    np.testing.assert_allclose(gradients(mixed)[[0, 2]], both[[0, 2]], atol=TOLERANCE)
    np.testing.assert_array_equal(gradients(states, jnp.ones(3, bool)), 0)
    answer = Evaluation(jnp.zeros((3, NUM_CLASSES)), both[..., 0, 0, 0], both)
    cost = conversation.cost(fab, classifier(), mixed, answer)
    assert cost[1].tolist() == [NUM_CLASSES - 1, 0, NUM_CLASSES - 1]


def test_works_with_64_bits_enabled(attack):
    """A loop's state must keep its types, whatever the classifier computes in: tracing shows it."""
    images, labels = batch()
    weights = jax.tree.map(np.asarray, classifier().variables)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), weights)
        network = dataclasses.replace(classifier(), variables=double)
        keys = fold_keys(jax.random.key(0), jnp.arange(len(images)))
        arrays = conversation.per_image(attack, len(images))
        result = jax.eval_shape(engine.run, arrays, keys, network, images, labels)
    assert result.images.dtype == jnp.float32


def test_64_bits_change_no_verdict():
    images, labels = batch()  # before: with 64 bits the same keys draw other numbers
    weights = jax.tree.map(np.asarray, classifier().variables)
    expected = run(TABLE["bim"])
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), weights)
        network = dataclasses.replace(classifier(), variables=double)
        result = run(TABLE["bim"], logits_fn=network, images=images, labels=labels)
    np.testing.assert_array_equal(result.success, expected.success)


def test_json_round_trip_comparison_and_hash(attack):
    text = json.dumps(attacks.to_dict(attack))
    again = attacks.from_dict(json.loads(text))
    assert again == attack and hash(again) == hash(attack)
    if "num_steps" in attacks.to_dict(attack):
        numpy_steps = dataclasses.replace(attack, num_steps=np.int64(attack.num_steps))
        assert attacks.from_dict(attacks.to_dict(numpy_steps)) == attack
    setting = settings_of(attack, float)[0]
    assert dataclasses.replace(attack, **{setting: 0.7}) != attack


def values_of(attack):
    """How many values it has a gradient of: one, or as many as its objective has."""

    def objective(attack, image):
        label = jnp.int32(0)
        state = attack.init(jax.random.key(0), image, label, label)
        return attack.objective(jnp.zeros(NUM_CLASSES), state)

    return jax.eval_shape(objective, attack, batch()[0][0]).size


def test_counts_queries_and_gradients(attack):
    result = run(attack)
    starts, steps = attack.num_restarts, np.asarray(attack.num_restarts * attack.num_steps)
    if overrides(attack, Attack.done):  # it may need fewer
        steps = np.asarray(result.num_queries) - starts
        assert (steps <= starts * attack.num_steps).all() and (steps > 0).all()
    np.testing.assert_array_equal(result.num_queries, steps + starts)
    gradients, most = result.num_gradients, values_of(attack) * steps * attack.uses_gradient
    if overrides(attack, Attack.wants_gradient):
        assert (gradients < most).all() and (gradients > 0).all()
    else:
        np.testing.assert_array_equal(gradients, most)
    assert (np.asarray(result.num_steps) <= steps).all()


@pytest.mark.parametrize("name", ["fab", "fab-t"])
def test_fab_wants_a_gradient_in_every_other_step(name):
    fab = TABLE[name]
    asked = values_of(fab) * fab.num_restarts * fab.num_iterations
    np.testing.assert_array_equal(run(fab).num_gradients, asked)


def that_keeps_the_last(attack):
    """The attack with its last point, or None."""
    can = "keep" in settings_of(attack, str) and attack.num_restarts == 1
    last = dataclasses.replace(attack, keep="last") if can else attack
    return last if last.keep == "last" else None


@pytest.mark.parametrize("name", [name for name in TABLE if that_keeps_the_last(TABLE[name])])
def test_craft_is_the_last_point(name):
    attack = that_keeps_the_last(TABLE[name])
    images, labels = batch()
    aims = (labels + 1) % NUM_CLASSES if attack.targeted else labels
    points = engine.craft(attack, jax.random.key(0), classifier(), images, aims)
    np.testing.assert_allclose(points, run(attack).images, atol=10 * TOLERANCE)


def test_restarts_never_lose():
    for keep in ("best", "last"):
        one = PGD(0.1, 0.03, 3, keep=keep)
        first = run(one, key=5)
        all_of_them = run(dataclasses.replace(one, num_restarts=4), key=5)
        assert np.all(np.asarray(all_of_them.success) >= np.asarray(first.success))
        # Among points that fool equally, the one of the highest loss of the true class.
        _, labels = batch()
        losses_of = jax.vmap(lambda z, y: jax.nn.logsumexp(z) - z[y])
        before, after = (
            losses_of(classifier()(result.images), labels) for result in (first, all_of_them)
        )
        assert np.all(np.asarray(after - before) >= -1e-5)


def test_l2_start_fills_the_ball():
    """The radius of a uniform point in d dimensions is u^(1/d): its median is .5^(1/d)."""
    draw = jax.vmap(lambda key: norms.uniform_in_ball(key, (4, 4, 2), 2.0, "l2"))
    points = draw(jax.random.split(jax.random.key(0), 4000))
    radii = np.asarray(distances(points, 0.0, "l2")) / 2
    assert radii.max() <= 1 + TOLERANCE
    np.testing.assert_allclose(np.median(radii), 0.5 ** (1 / 32), atol=3e-3)
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=0.05)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: PGD(epsilon=-1.0),
            ValueError,
            "`epsilon` must be a finite number at least 0 and at most 1, got -1",
        ),
        (lambda: PGD(epsilon=8), ValueError, "`epsilon` must be .* at most 1, got 8"),
        (lambda: PGD(epsilon="1"), TypeError, "`epsilon` must be a number, got '1'"),
        (lambda: PGD(step_size=float("nan")), ValueError, "`step_size`"),
        (lambda: PGD(num_steps=0), ValueError, "`num_steps` must be at least 1, got 0"),
        (lambda: PGD(num_steps=2.5), TypeError, "`num_steps` must be an integer, got 2.5"),
        (
            lambda: FGSM(norm="l3"),
            ValueError,
            r"`norm` must be one of \('linf', 'l2', 'l1'\), got 'l3'",
        ),
        (lambda: BIM(keep="worst"), ValueError, "`keep` must be one of"),
        (lambda: PGD(num_restarts=2, random_start=False), ValueError, "all would be equal"),
        (lambda: attacks.from_dict({"name": "CW2"}), ValueError, "`name` must be one of"),
        (lambda: attacks.from_dict({"name": "FGSM", "steps": 1}), TypeError, "FGSM has no `steps`"),
    ],
)
def test_wrong_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"images": jnp.zeros((2, 6, 6, 2), jnp.uint8)}, TypeError, "divide uint8 images by 255"),
        ({"images": jnp.full((2, 6, 6, 2), 1.5)}, ValueError, r"`images` must lie in \[0, 1\]"),
        (
            {"images": jnp.full((2, 6, 6, 2), jnp.nan)},
            ValueError,
            r"finite and lie in \[0, 1\], got nan at",
        ),
        ({"images": jnp.zeros((2, 4, 4))}, ValueError, r"must be \[B, H, W, C\]"),
        ({"labels": jnp.zeros(3, int)}, ValueError, r"`labels` must have shape \(2,\)"),
        ({"labels": jnp.zeros(2)}, TypeError, "`labels` must be integers"),
        ({"labels": jnp.array([0, 3])}, ValueError, r"`labels` must lie in 0 .. 2 for 3 classes"),
        ({"labels": jnp.array([0, -1])}, ValueError, r"`labels` must lie in 0 .. 2"),
        ({"logits_fn": 3}, TypeError, "`logits_fn` must be callable, got int"),
        ({"logits_fn": lambda x: x.sum()}, ValueError, r"must return \[B, K\]"),
        ({"logits_fn": lambda x: np.asarray(x)}, TypeError, "must be written in jax.numpy"),
        ({"key": 0}, TypeError, "`key` must be a PRNG key such as .* got 0"),
    ],
)
def test_wrong_input(change, error, message):
    arguments = {
        "key": jax.random.key(0),
        "logits_fn": classifier(),
        "images": jnp.zeros((2, 6, 6, 2)),
        "labels": jnp.zeros(2, int),
    }
    with pytest.raises(error, match=message):
        FGSM()(**(arguments | change))


def test_reference_network(reference, reference_classifier):
    """PGD fools all 41 that are right, and turns at least 36 of 45 others into basketball."""
    images = jnp.asarray(reference["images"], jnp.float32) / 255
    labels = jnp.asarray(reference["labels"], jnp.int32)
    right = np.asarray(jnp.argmax(reference_classifier(images), 1) == labels)
    others = np.asarray(labels) != 1

    def successes(attack, aims, counted):
        result = attack(jax.random.key(0), reference_classifier, images, aims)
        assert float(jnp.abs(result.images - images).max()) <= 0.03 + TOLERANCE
        return int(np.asarray(result.success)[counted].sum())

    pgd = successes(PGD(0.03, 0.01, 40), labels, right)
    assert pgd == right.sum() == 41
    assert successes(FGSM(0.03), labels, right) <= pgd
    aims = jnp.ones_like(labels)
    targeted = successes(PGD(0.03, 0.01, 40, targeted=True), aims, others)
    assert targeted >= 36
    assert successes(FGSM(0.03, targeted=True), aims, others) <= targeted
