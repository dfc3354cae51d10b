"""Values of another type at the public edge: each error names what was wrong, and what is right."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import attacks, defenses, evaluation, models, pruning, training
from jaxrobust.evaluation import Crossing, Execution, Sweep

IMAGES = np.full((2, 4, 4, 1), 0.52, np.float32)
LABELS = np.zeros(2, int)
KEY = jax.random.key(0)
PGD = attacks.PGD(0.1, 0.05, 2)


def logits_fn(images):
    return jnp.stack([images.sum((1, 2, 3)), jnp.full(len(images), 8.0)], axis=1)


GIVEN = (logits_fn, IMAGES, LABELS)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: evaluation.attack_dataset(PGD, *GIVEN, key=KEY, execution=40),
            "`execution` must be an evaluation.Execution, such as .*, got int",
        ),
        (
            lambda: evaluation.attack_suite({"PGD": PGD}, *GIVEN, key=KEY, execution=40),
            "`execution` must be an evaluation.Execution",
        ),
        (
            lambda: evaluation.robustness_curve(PGD, *GIVEN, [0.1], key=KEY, model="m"),
            "`sweep` must be an evaluation.Sweep, such as .*, got list",
        ),
        (
            lambda: evaluation.epsilon_for_success(PGD, *GIVEN, key=KEY, crossing=0.5),
            "`crossing` must be an evaluation.Crossing, such as .*, got float",
        ),
        (
            lambda: evaluation.universal_perturbation(PGD, *GIVEN, key=KEY),
            "`attack` must be an evaluation.UniversalPerturbation, such as .*, got PGD",
        ),
        (
            lambda: evaluation.universal_perturbation(*GIVEN, key=KEY),
            "`attack` must be an evaluation.UniversalPerturbation, such as .*, got function",
        ),
        (
            lambda: defenses.certify_smoothed(KEY, logits_fn, IMAGES, 0.25, 200),
            "`sampling` must be a defenses.Sampling, such as .*, got int",
        ),
        (
            lambda: defenses.predict(KEY, logits_fn, IMAGES, 0.25, 200),
            "`sampling` must be a defenses.Sampling",
        ),
        (
            lambda: evaluation.attack_dataset(logits_fn, PGD, IMAGES, LABELS, key=KEY),
            "function is not an attack: it must inherit",
        ),
        (
            lambda: evaluation.robustness_curve(
                logits_fn, PGD, IMAGES, LABELS, Sweep([0.1]), key=KEY, model="m"
            ),
            "function is not an attack: it must inherit",
        ),
        (
            lambda: models.Classifier({}, logits_fn)(IMAGES),
            r"`apply_fn` must be a function .* got dict",
        ),
        (lambda: pruning.Criterion("l1"), "`score` must be a function of Makers, got 'l1'"),
        (lambda: Sweep(0.1), "`epsilons` must be a sequence of at least one number, got 0.1"),
        (lambda: Sweep([]), "`epsilons` must be a sequence of at least one number"),
        (lambda: Crossing("half"), "`rate` must be a number"),
    ],
)
def test_values_of_another_type(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_images_of_another_range_or_shape():
    data = training.Data((255 * IMAGES, LABELS))
    for call in (
        lambda: evaluation.attack_dataset(PGD, logits_fn, 255 * IMAGES, LABELS, key=KEY),
        lambda: training.fit(models.create("mlp"), data, training.Recipe(batch_size=2)),
    ):
        with pytest.raises(ValueError, match=r"lie in \[0, 1\], got .*: divide them by .* uint8"):
            call()
    with pytest.raises(ValueError, match=r"Normalisation belongs in .*np.clip\(images, 0, 1\)"):
        evaluation.attack_dataset(PGD, logits_fn, 2 * IMAGES, LABELS, key=KEY)
    raw = (IMAGES * 16).astype(np.uint8)
    with pytest.warns(UserWarning, match="The largest byte of the images is 8. .* almost black"):
        report = evaluation.attack_dataset(PGD, logits_fn, raw, LABELS, key=KEY)
    with warnings.catch_warnings(action="error"):
        evaluation.attack_dataset(PGD, logits_fn, 15 * raw, LABELS, key=KEY)
    # Two images of which none counts: they were classified wrongly before.
    assert repr(report).endswith("0 successes on 0 of 2 images)")


def test_an_error_of_the_network_comes_with_the_shape_of_the_images():
    network = models.create("cnn", num_classes=2)
    rows = np.zeros((2, 3, 32, 32), np.float32)
    classifier = models.Classifier(
        network.apply, jax.eval_shape(network.init, KEY, jnp.zeros((1, 32, 32, 3)))
    )
    for call in (
        lambda: evaluation.attack_dataset(PGD, classifier, rows, LABELS, key=KEY),
        lambda: training.fit(
            nnx.Conv(3, 2, (3, 3), rngs=nnx.Rngs(0)),
            training.Data((rows, LABELS)),
            training.Recipe(batch_size=2),
        ),
    ):
        with pytest.raises(Exception) as caught:
            call()
        note = "\n".join(caught.value.__notes__)
        assert "images of shape (" in note and "3, 32, 32)" in note and "channels last" in note


def test_a_suite_keeps_its_state_in_a_folder_and_an_attack_in_a_file(tmp_path):
    file, folder = tmp_path / "state.npz", tmp_path / "suite"
    suite = {"PGD": PGD}
    evaluation.attack_dataset(PGD, *GIVEN, key=KEY, execution=Execution(path=file))
    evaluation.attack_suite(suite, *GIVEN, key=KEY, execution=Execution(path=folder))
    with pytest.raises(
        ValueError, match=r"must be a folder for a suite, got the file .*state\.npz"
    ):
        evaluation.attack_suite(suite, *GIVEN, key=KEY, execution=Execution(path=file))
    with pytest.raises(ValueError, match="must be a file for one attack, got the folder"):
        evaluation.attack_dataset(PGD, *GIVEN, key=KEY, execution=Execution(path=folder))
    assert (folder / "0_PGD.npz").exists()


def test_criteria_say_what_they_lack():
    kernel = jnp.arange(40.0).reshape(2, 20) / 40
    weights = {"a": {"kernel": kernel}, "b": {"kernel": jnp.ones((20, 3))}}

    def network(weights, x):
        return x.mean((1, 2)) @ weights["a"]["kernel"] @ weights["b"]["kernel"]

    groups = pruning.channel_groups(network, weights, jnp.ones((1, 4, 4, 2)))
    with pytest.raises(ValueError, match=r"needs `key`: call filter_scores\(\.\.\., key="):
        pruning.prune_filters(weights, 0.5, groups, criterion="random")
    own = pruning.Criterion(lambda makers: np.full(makers.size, np.nan))
    with pytest.raises(
        ValueError, match="The scores of the criterion of your own have NaN for 'a'"
    ):
        pruning.filter_scores(weights, groups, own)
