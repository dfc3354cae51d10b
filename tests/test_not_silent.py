"""Figures that used to be wrong without a word: the smallest input of each, with the right value."""

import tracemalloc
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_table import TABLE, two_layers
from attack_table import batch as attacked_images
from attack_table import classifier as attacked_network

from jaxrobust import attacks, attribution, checks, defenses, evaluation, losses, types
from jaxrobust.data import augment
from jaxrobust.evaluation import answers
from jaxrobust.models import Classifier
from jaxrobust.types import BatchDependent, as_key

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((24, 4, 4, 2)).astype(np.float32)


def means(images):
    return images.mean((1, 2))


LABELS = means(IMAGES).argmax(1)

# 2. Answers that depend on the batch --------------------------------------------------------------


class Normalised(nn.Module):
    """A network that was left in training mode where it is told to be."""

    train: bool

    @nn.compact
    def __call__(self, images):
        return means(nn.BatchNorm(use_running_average=not self.train)(images))


def batch_norm(train):
    network = Normalised(train)
    variables = Normalised(False).init(KEY, IMAGES)
    return lambda x: network.apply(variables, x, mutable=["batch_stats"])[0]


def centred(images):
    """Not BatchNorm, but it depends on the batch too."""
    return means(images) - means(images).mean(0)


def masked_centred(images):
    """A constant of -1e9 is no spread that others could hide in."""
    return jnp.concatenate([centred(images), jnp.full((len(images), 2), -1e9)], axis=1)


def neighbour(images):
    """Odd rows alone depend on the row before them."""
    odd = (jnp.arange(len(images)) % 2 == 1)[:, None]
    return means(images) + jnp.where(odd, means(jnp.roll(images, 1, axis=0)), 0.0)


def row_noise(images):
    """Noise of the row: other images get the same, the same image gets other noise elsewhere."""
    return means(images) + 0.3 * jax.random.normal(KEY, (images.shape[0], 2))


CALLS = {
    "logits": lambda f: evaluation.logits(f, IMAGES),
    "logits of one": lambda f: evaluation.logits(f, IMAGES[:1]),
    "evaluate": lambda f: evaluation.evaluate(f, IMAGES, LABELS),
    "attack_dataset": lambda f: evaluation.attack_dataset(
        attacks.FGSM(0.1), f, IMAGES, LABELS, key=KEY
    ),
    "suite": lambda f: evaluation.attack_suite(
        {"fgsm": attacks.FGSM(0.1)}, f, IMAGES, LABELS, key=KEY
    ),
    "curve": lambda f: evaluation.robustness_curve(
        attacks.FGSM(0.1), f, IMAGES, LABELS, evaluation.Sweep([0.1]), key=KEY, model="m"
    ),
    "transfer": lambda f: evaluation.transfer_rates(
        evaluation.attack_dataset(attacks.FGSM(0.1), means, IMAGES, LABELS, key=KEY), f
    ),
    "matrix": lambda f: evaluation.transfer_matrix(
        {"a": f},
        {"a": evaluation.attack_dataset(attacks.FGSM(0.1), means, IMAGES, LABELS, key=KEY)},
    ),
    "attack": lambda f: attacks.FGSM(0.1)(KEY, f, IMAGES, LABELS),
    "smoothed": lambda f: defenses.smoothed_counts(KEY, f, IMAGES, 0.1, 4),
    "universal": lambda f: evaluation.universal_perturbation(
        evaluation.UniversalPerturbation(0.1, max_passes=1), f, IMAGES, key=KEY
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "logits_fn", [batch_norm(True), centred, masked_centred], ids=lambda f: f.__name__
)
def test_answers_that_depend_on_the_batch_are_refused(call, logits_fn):
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\).*train=False") as error:
        CALLS[call](logits_fn)
    assert "Stochastic" not in str(error.value)


def test_every_row_is_looked_at():
    with pytest.raises(ValueError, match="training mode"):
        evaluation.logits(neighbour, np.full((4, 2, 2, 2), 0.5, np.float32))


def test_in_evaluation_mode_nothing_is_refused():
    for call in CALLS.values():
        call(batch_norm(False))


def test_sanity_says_that_the_answers_depend_on_the_batch():
    result = evaluation.sanity(centred, IMAGES, centred(IMAGES).argmax(1), 0.1, key=KEY)
    assert result["verdict"] == "suspicious" and "training mode" in result["reason"]


def test_noise_of_the_row_is_refused_by_who_attacks():
    with pytest.raises(ValueError, match="when they are alone or in another place"):
        evaluation.attack_dataset(attacks.FGSM(0.1), row_noise, IMAGES, LABELS, key=KEY)


def test_who_means_it_says_so():
    values = evaluation.logits(BatchDependent(centred), IMAGES)
    np.testing.assert_allclose(values, centred(IMAGES), atol=1e-6)


# 3. Keys of another implementation ----------------------------------------------------------------


def test_a_threefry_key_stays_what_it_is_and_a_legacy_one_is_the_same():
    data = jax.random.key_data
    np.testing.assert_array_equal(data(as_key(jax.random.key(7))), data(jax.random.key(7)))
    np.testing.assert_array_equal(data(as_key(jax.random.PRNGKey(7))), data(jax.random.key(7)))
    for wrong in (7, np.zeros(2), jax.random.split(KEY, 3), None):
        with pytest.raises(TypeError, match="`key` must be a PRNG key"):
            as_key(wrong)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_other_generators_draw_other_numbers_for_each_row(impl):
    """Under vmap they draw the same for all: Square fooled 14 of 24 images instead of 24."""
    keys = types.fold_keys(jax.random.key(0, impl=impl), jnp.arange(4))
    draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys)
    assert len(np.unique(np.asarray(draws), axis=0)) == 4
    assert jax.random.key_impl(keys) == "threefry2x32" or "threefry" in str(keys.dtype)
    seeds = [jax.random.key_data(as_key(jax.random.key(s, impl=impl))).tolist() for s in (0, 1)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_verdicts_do_not_depend_on_lanes_with_any_key(impl):
    key = jax.random.key(0, impl=impl)
    found = [
        evaluation.attack_dataset(
            attacks.Square(0.1, num_steps=20),
            means,
            IMAGES,
            LABELS,
            key=key,
            execution=evaluation.Execution(lanes),
        ).success
        for lanes in (4, 24)
    ]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "key", [jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")], ids=["legacy", "rbg"]
)
def test_every_function_takes_every_key(key):
    images, labels = jnp.asarray(IMAGES), jnp.asarray(LABELS)
    attacks.PGD(0.1)(key, means, images, labels)
    for name, call in CALLS.items():
        if name not in ("logits", "logits of one", "evaluate", "transfer"):
            call(means)
    evaluation.attack_dataset(attacks.PGD(0.1), means, IMAGES, LABELS, key=key)
    evaluation.attack_suite({"pgd": attacks.PGD(0.1)}, means, IMAGES, LABELS, key=key)
    universal = evaluation.UniversalPerturbation(0.1, max_passes=1)
    evaluation.universal_perturbation(universal, means, IMAGES, key=key)
    evaluation.sanity(means, IMAGES, LABELS, 0.1, key=key, num_images=4)
    attribution.smooth_grad(means, images, key=key, num_samples=2)
    attribution.random_maps(key, (2, 4, 4))
    defenses.smoothed_counts(key, means, images, 0.1, 4)
    defenses.certify_smoothed(key, means, images, 0.1, defenses.Sampling(4, 4))
    defenses.Smoothed(means, 0.1, 2, key)(images)
    augmented = augment.Augmentation(flip=0.5, brightness=0.5)(key, jnp.stack([images[0]] * 8))
    assert len(np.unique(np.asarray(augmented).reshape(8, -1), axis=0)) > 2


# 4. and 5. Narrow types


def test_logits_are_float32_whatever_the_classifier_computes_in():
    """The loss of 3,000 images with logits (0, 0) was .085 instead of log 2."""
    images = np.zeros((3000, 1, 1, 2), np.float32)

    def narrow(x):
        return means(x).astype(jnp.bfloat16)

    assert evaluation.logits(narrow, images).dtype == np.float32
    found = evaluation.evaluate(narrow, images, np.zeros(3000, int))
    np.testing.assert_allclose(found["loss"], np.log(2), rtol=1e-6)
    report = evaluation.attack_dataset(
        attacks.FGSM(0.0), narrow, images[:5], np.zeros(5, int), key=KEY
    )
    assert report.logits.dtype == report.clean_logits.dtype == np.float32
    summary = evaluation.summarise(report, "m", ["a", "b"])
    np.testing.assert_allclose(summary["mean_confidence"], 0.5)


def test_images_of_bfloat16_are_images(tmp_path):
    narrow = jnp.asarray(IMAGES, jnp.bfloat16)
    wide = np.asarray(narrow, np.float32)
    attack = attacks.PGD(0.1, 0.05, 3)
    execution = evaluation.Execution(path=tmp_path / "state")
    for images in (narrow, np.asarray(narrow)):
        report = evaluation.attack_dataset(
            attack, means, images, LABELS, key=KEY, execution=execution
        )
        again = evaluation.attack_dataset(attack, means, wide, LABELS, key=KEY)
        np.testing.assert_array_equal(report.images, again.images)
        np.testing.assert_array_equal(answers.as_float(images), wide)
        assert evaluation.evaluate(means, images, LABELS)["accuracy"]["n"] == 24
    with pytest.raises(ValueError, match="must lie in"):
        answers.as_float(2 * narrow)


def test_a_state_of_a_narrow_classifier_is_read_again(tmp_path):
    def narrow(x):
        return means(x).astype(jnp.bfloat16)

    def run():
        execution = evaluation.Execution(path=tmp_path / "state")
        return evaluation.attack_dataset(
            attacks.PGD(0.1), narrow, IMAGES, LABELS, key=KEY, execution=execution
        )

    np.testing.assert_array_equal(run().images, run().images)


def bfloat16_network():
    base = attacked_network()

    def apply(variables, images):
        first, second = (variables[k].astype(jnp.bfloat16) for k in ("first", "second"))
        flat = images.reshape(len(images), -1).astype(jnp.bfloat16)
        return jnp.tanh(flat @ first) @ second

    return Classifier(apply, base.variables, base.mean, base.std)


@pytest.mark.parametrize("name", ["fab", "deepfool", "cw", "apgd-dlr", "pgd-last", "fgsm"])
def test_a_success_is_one_when_the_image_is_shown_again(name):
    """FAB: 128 of 146 successes of a bfloat16 network were still there."""
    attack, network = TABLE[name], bfloat16_network()
    images, _ = attacked_images(32)
    labels = evaluation.logits(network, images).argmax(1)
    result = attack(KEY, network, images, jnp.asarray(labels))
    again = evaluation.logits(network, result.images, 32).argmax(1) != labels
    np.testing.assert_array_equal(result.success, again)
    assert result.success.any()


# 6. Masked classes


def masked(value, num=7):
    def apply(variables, images):
        logits = two_layers(variables, images)
        return jnp.concatenate([logits, jnp.full((len(images), num), value)], axis=1)

    base = attacked_network()
    return Classifier(apply, base.variables, base.mean, base.std)


MASKS = (-np.inf, float(np.finfo(np.float32).min), -1e30)


@pytest.mark.parametrize("value", MASKS)
def test_losses_leave_masked_classes_out(value):
    logits = jnp.array([2.0, 1.0, -1.0])
    longer = jnp.concatenate([logits, jnp.full(4, value)])
    for label in range(3):
        for loss in (losses.margin, losses.dlr):
            pair = [jax.value_and_grad(loss)(z, label) for z in (logits, longer)]
            np.testing.assert_allclose(pair[1][0], pair[0][0], rtol=1e-6)
            np.testing.assert_allclose(pair[1][1][:3], pair[0][1], atol=1e-6)
            assert (pair[1][1][3:] == 0).all()
        target = (label + 1) % 3
        pair = [losses.targeted_dlr(z, label, target) for z in (logits, longer)]
        np.testing.assert_allclose(*pair, rtol=1e-6)
    two = jnp.array([2.0, 1.0, value, value])  # no third logit: the margin
    np.testing.assert_allclose(losses.dlr(two, 0), -1.0)
    assert jnp.isfinite(jax.grad(losses.dlr)(two, 0)).all()
    assert jnp.isfinite(jax.grad(losses.dlr)(two, 2)).all()  # the label itself is masked


@pytest.mark.parametrize("value", MASKS[:2])
@pytest.mark.parametrize("name", ["apgd-dlr", "apgd-t", "fab", "fab-t", "cw", "deepfool", "square"])
def test_masked_classes_change_no_verdict(name, value):
    attack = TABLE[name]
    images, labels = attacked_images(24)
    plain = attack(KEY, attacked_network(), images, labels)
    found = attack(KEY, masked(value), images, labels)
    np.testing.assert_array_equal(found.success, plain.success)
    np.testing.assert_allclose(found.images, plain.images, atol=1e-5)


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_auto_attack_is_as_strong_with_masked_classes(version):
    """With two or three valid classes of ten `rand` left 56 images instead of 33."""
    images, labels = (np.asarray(part) for part in attacked_images(24))
    pair = []
    for network in (attacked_network(), masked(-np.inf)):
        suite = {
            name: attack if name != "Square" else attacks.Square(0.05, num_steps=50)
            for name, attack in evaluation.auto_attack_suite(0.05, "linf", version, 3).items()
        }
        pair.append(evaluation.attack_suite(suite, network, images, labels, key=KEY))
    np.testing.assert_array_equal(pair[0].robust, pair[1].robust)
    assert 0 < pair[0].robust.sum() < 24 and not pair[1].saw_nan.any()


# 8. Norms


def test_norms_are_of_successes():
    """Failures counted as 0 made an attack look subtle."""
    images = np.full((4, 1, 1, 2), 0.5, np.float32)
    images[:, 0, 0, 0] += [0.01, 0.02, 0.3, 0.4]
    labels = np.zeros(4, int)
    report = evaluation.attack_dataset(attacks.FGSM(0.05), means, images, labels, key=KEY)
    summary = evaluation.summarise(report, "m", ["a", "b"])
    assert report.success.tolist() == [True, True, False, False]
    np.testing.assert_allclose(summary["mean_linf"], 0.05, rtol=1e-4)
    assert "median_norm" not in summary and summary["success"]["count"] == 2
    nothing = evaluation.attack_dataset(attacks.FGSM(0.001), means, images, labels, key=KEY)
    assert evaluation.summarise(nothing, "m", ["a", "b"])["mean_l2"] is None


def test_the_median_of_a_minimal_attack_counts_failures_as_infinite():
    images = np.full((3, 1, 1, 2), 0.5, np.float32)
    images[:, 0, 0, 0] += [0.1, 0.2, 0.4]
    labels = np.zeros(3, int)

    def deaf(x):  # answers alike whatever the third image is made into
        return jnp.where((x[:, 0, 0, 0] > 0.82)[:, None], jnp.array([[9.0, 0.0]]), means(x))

    report = evaluation.attack_dataset(attacks.DeepFool(), deaf, images, labels, key=KEY)
    found = evaluation.summarise(report, "m", ["a", "b"])["median_norm"]
    assert (found["norm"], found["n"], found["failures"]) == ("l2", 3, 1)
    np.testing.assert_allclose(found["median"], report.l2[1], rtol=1e-6)
    np.testing.assert_allclose(report.l2[1], 0.2 / np.sqrt(2), rtol=0.03)
    one = evaluation.attack_dataset(attacks.DeepFool(), deaf, images[1:], labels[1:], key=KEY)
    assert evaluation.summarise(one, "m", ["a", "b"])["median_norm"]["median"] is None


# 9. Large data


def test_checks_of_images_on_the_host_take_no_copy():
    images = np.zeros((2000, 32, 32, 3), np.float32)  # 25 MB
    images[-1, -1, -1, -1] = 1.5
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"got values in \[0, 1\.5\]"):
        checks.value_range(images)
    images[-1] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        checks.value_range(images[-2:])
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()
    checks.value_range(images[:-1])


def test_nothing_larger_than_a_batch_goes_to_the_device(monkeypatch):
    largest = [0]

    def watched(original):
        def put(given, *arguments, **options):
            for array in jax.tree.leaves(given):
                if isinstance(array, np.ndarray) and array.ndim == 4:
                    largest[0] = max(largest[0], len(array))
            return original(given, *arguments, **options)

        return put

    for module, name in ((jnp, "asarray"), (jnp, "array"), (jax, "device_put")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    images = RNG.random((300, 4, 4, 2)).astype(np.float32)
    evaluation.evaluate(means, images, means(images).argmax(1), batch_size=8)
    options = {"key": KEY, "execution": evaluation.Execution(num_lanes=8)}
    evaluation.attack_dataset(attacks.FGSM(0.1), means, images, means(images).argmax(1), **options)
    assert 0 < largest[0] <= 128  # clean images are looked at in batches of 128
    largest[0] = 0
    evaluation.logits(means, images, 16)
    assert largest[0] == 16


# 10. Probabilities


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probabilities_are_noticed(dtype):
    def probabilities(x):
        return jax.nn.softmax(20 * means(x)).astype(dtype)

    with pytest.warns(UserWarning, match="probabilities where logits are needed"):
        report = evaluation.attack_dataset(
            attacks.FGSM(0.1), probabilities, IMAGES, LABELS, key=KEY
        )
    assert "probabilities" in evaluation.summarise(report, "m", ["a", "b"])["warnings"][0]
    with pytest.warns(UserWarning, match="probabilities"):
        suite = evaluation.attack_suite(
            {"fgsm": attacks.FGSM(0.1)}, probabilities, IMAGES, LABELS, key=KEY
        )
    assert "probabilities" in evaluation.summarise_suite(suite, "m")["warnings"][0]
    assert "probabilities" in evaluation.evaluate(probabilities, IMAGES, LABELS)["warnings"][0]
    with pytest.warns(UserWarning, match="probabilities"):
        result = evaluation.sanity(probabilities, IMAGES, LABELS, 0.1, key=KEY)
    assert result["verdict"] != "sound" and "probabilities" in result["reason"]


def test_logits_are_not_taken_for_probabilities():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        for logits_fn in (means, lambda x: jax.nn.log_softmax(means(x))):
            report = evaluation.attack_dataset(
                attacks.FGSM(0.1), logits_fn, IMAGES, LABELS, key=KEY
            )
            assert not report.warnings


# 11. Errors that come early and are clear ---------------------------------------------------------


@pytest.mark.parametrize(
    "logits_fn, message",
    [
        (
            lambda x: (means(x), x),
            r"got tuple; if its first entry is the logits.*model\(images\)\[0\]",
        ),
        (lambda x: {"logits": means(x)}, r"got dict; choose one of its entries \['logits'\]"),
        (lambda x: None, "got None"),
        (lambda x: means(x).astype(int), "floating-point logits, got int32"),
    ],
)
def test_what_a_model_returns_besides_logits(logits_fn, message):
    with pytest.raises(TypeError, match=message):
        evaluation.logits(logits_fn, IMAGES)
    with pytest.raises(TypeError, match=message):
        attacks.FGSM()(KEY, logits_fn, IMAGES, LABELS)
    with pytest.raises(TypeError, match=message):
        evaluation.attack_dataset(attacks.FGSM(), logits_fn, IMAGES, LABELS, key=KEY)


def test_auto_attack_on_images_too_small_for_square_fails_first():
    images = RNG.random((4, 1, 30, 1)).astype(np.float32)

    def logits_fn(x):
        return x.reshape(x.shape[0], -1)[:, :3]

    asked = []
    with pytest.raises(ValueError, match="needs images of at least 5 x 5 pixels, got 1 x 30"):
        evaluation.auto_attack(
            logits_fn, images, np.zeros(4, int), 0.5, key=KEY, norm="l2",
            execution=evaluation.Execution(progress=lambda *told: asked.append(told)),
        )  # fmt: skip
    assert not asked


def test_transfer_needs_the_same_classes():
    report = evaluation.attack_dataset(attacks.FGSM(0.1), means, IMAGES, LABELS, key=KEY)

    def more(x):
        return jnp.concatenate([means(x), means(x)], axis=1)

    with pytest.raises(ValueError, match="`logits_fn` must have the 2 classes.*got 4"):
        evaluation.transfer_rates(report, more)
    with pytest.raises(ValueError, match=r"`logits_fns\['b'\]` must have the 2 classes"):
        evaluation.transfer_curves(
            attacks.FGSM(0.1), {"a": means, "b": more}, "a", IMAGES, LABELS, [0.1], key=KEY
        )


STRICT = {
    "rank": ("jax_numpy_rank_promotion", "raise"),
    "type": ("jax_numpy_dtype_promotion", "strict"),
    "nan": ("jax_debug_nans", True),
    "x64": ("jax_enable_x64", True),
}


@pytest.mark.parametrize("setting", STRICT)
def test_the_ways_of_evaluating_under_strict_settings(setting):
    """Every attack is tried under each of them in test_users_networks.py, by night."""
    network = attacked_network()
    images, labels = (np.asarray(part) for part in attacked_images(8))
    name, value = STRICT[setting]
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        values = evaluation.logits(network, images)
        assert values.dtype == np.float32
        report = evaluation.attack_dataset(
            attacks.Square(0.1, num_steps=10), network, images, labels, key=KEY
        )
        assert report.images.dtype == np.float32
        evaluation.sanity(network, images, labels, 0.05, key=KEY)
        evaluation.evaluate(lambda x: network(x), images, labels)
    finally:
        jax.config.update(name, before)


def test_a_function_of_one_image_has_no_company():
    def of_one(x):
        return x.reshape(1, -1)[:, :3]

    evaluation.logits(of_one, IMAGES[:1])
    attacks.FGSM(0.1)(KEY, of_one, IMAGES[:1], np.zeros(1, int))
