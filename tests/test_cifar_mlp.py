"""Source 002: closed forms, one trace for each ablation, and the script from end to end."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cifar_mlp import ablations, fitting, fooling, network, programs, source
from experiments.cifar_mlp.__main__ import main
from experiments.cifar_mlp.config import Config
from experiments.cifar_mlp.network import Layer
from jaxrobust import models

ROOT = Path(__file__).resolve().parents[1]
NUM_INPUTS, NUM_CLASSES = 12, 3


def examples(count: int, seed: int = 0) -> programs.Examples:
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % NUM_CLASSES
    images = generator.integers(0, 120, (count, NUM_INPUTS)) + 60 * (labels[:, None] == 1)
    images[:, :4] += 100 * (labels[:, None] == 2)
    return programs.Examples(images.astype(np.uint8), labels)


SPLITS = programs.Splits(
    examples(64),
    examples(20, 1),
    examples(25, 2),
    np.full(NUM_INPUTS, 0.3, np.float32),
    np.full(NUM_INPUTS, 0.2, np.float32),
)


def settings(**columns) -> programs.Settings:
    """Settings with the same value for all that is not named."""
    base = {
        "learning_rate": 0.1,
        "decay": 0.9,
        "regularizer": 0.01,
        "batch_size": 16,
        "width": 5,
    }
    count = max((len(values) for values in columns.values()), default=1)
    rows = {name: columns.get(name, [value] * count) for name, value in base.items()}
    return programs.Settings(**{name: np.array(values) for name, values in rows.items()})


def keys(count: int = 2) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.arange(count))


def normalised(images: np.ndarray) -> np.ndarray:
    return (images / np.float32(255) - SPLITS.mean) / SPLITS.std


@pytest.mark.parametrize("regularizer", [0.0, 0.3])
def test_gradient_is_that_of_the_formula(regularizer):
    """Of one layer: x^T (softmax(z) - onehot(y)) / B + reg W, and its mean for the bias."""
    batch = examples(10)
    x = normalised(batch.images)
    generator = np.random.default_rng(1)
    layer = Layer(generator.normal(size=(NUM_INPUTS, NUM_CLASSES)), generator.normal(size=3))
    params = (jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), layer),)
    (found,) = jax.grad(network.loss)(
        params, jnp.asarray(x), jnp.asarray(batch.labels), regularizer
    )
    scores = x @ layer.weights + layer.bias
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    errors = shares - np.eye(NUM_CLASSES)[batch.labels]
    np.testing.assert_allclose(
        found.weights, x.T @ errors / len(x) + regularizer * layer.weights, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found.bias, errors.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_gradient_of_the_hidden_layer_is_that_of_back_propagation():
    batch = examples(10)
    x = normalised(batch.images)
    params = network.initial(jax.random.key(0), (NUM_INPUTS, 7, NUM_CLASSES), 0.5)
    first, second = jax.tree.map(np.asarray, params)
    found = jax.grad(network.loss)(params, jnp.asarray(x), jnp.asarray(batch.labels), 0.1)
    before = x @ first.weights + first.bias
    hidden = np.maximum(before, 0)
    scores = hidden @ second.weights + second.bias
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    errors = (shares - np.eye(NUM_CLASSES)[batch.labels]) / len(x)
    back = errors @ second.weights.T * (before > 0)
    np.testing.assert_allclose(
        found[1].weights, hidden.T @ errors + 0.1 * second.weights, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        found[0].weights, x.T @ back + 0.1 * first.weights, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(found[0].bias, back.sum(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(3))
def test_gradient_descent_arrives_at_least_squares(index):
    problem = fitting.problems(0)[index]
    descent = fitting.descend(problem.features, problem.targets, problem.rate, problem.num_steps)
    best = fitting.least_squares(problem.features, problem.targets)
    np.testing.assert_allclose(descent.layers.weights[-1], best[:-1], atol=5e-3)
    np.testing.assert_allclose(descent.layers.bias[-1], best[-1], atol=5e-3)
    assert np.isfinite(descent.losses).all() and descent.losses[-1] < descent.losses[0]


def test_all_settings_at_once_are_each_by_itself():
    """The stack of first layers, added gradients and padding against a plain loop of one training."""
    sizes, widths, rates = [16, 32, 16, 64], [5, 5, 3, 2], [0.1, 0.2, 0.05, 0.3]
    found = programs.run(
        keys(), settings(batch_size=sizes, width=widths, learning_rate=rates), SPLITS, 0.3, 3
    )
    for seed in range(2):
        for place, (size, width, rate) in enumerate(zip(sizes, widths, rates, strict=True)):
            expected = plain_training(seed, size, width, rate)
            first, last = (Layer(*(leaf[seed, place] for leaf in layer)) for layer in found.params)
            for got, wanted in zip(
                (first.weights, first.bias, last.weights, last.bias),
                jax.tree.leaves(expected),
                strict=True,
            ):
                np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-5)
            assert not np.any(first.weights[:, width:]) and not np.any(last.weights[width:])
            test = normalised(SPLITS.test.images)
            right = np.mean(network.logits(expected, test).argmax(1) == SPLITS.test.labels)
            np.testing.assert_allclose(found.test_accuracy[seed, place], right, atol=0.05)


slope_of = jax.jit(jax.grad(network.loss))


def plain_training(seed: int, size: int, width: int, rate: float):
    start, order = jax.random.split(jax.random.key(seed))
    params = network.initial(start, (NUM_INPUTS, 5, NUM_CLASSES), 0.3, width)
    x, y = normalised(SPLITS.train.images), SPLITS.train.labels
    for epoch in range(3):
        rows = jax.random.permutation(jax.random.fold_in(order, epoch), len(y))
        for batch in np.asarray(rows).reshape(-1, size):
            slope = slope_of(params, x[batch], y[batch], 0.01)
            params = network.update(params, slope, rate * 0.9**epoch)
    return params


def test_one_trace_for_an_ablation(monkeypatch):
    """All values and seeds of a hyper-parameter are one program, and other values need no other."""
    traces = []
    draw = programs._initial
    monkeypatch.setattr(programs, "_initial", lambda *a: traces.append(1) or draw(*a))
    programs.run(keys(3), settings(learning_rate=[0.1, 0.2, 0.3]), SPLITS, 0.1, 2)
    assert len(traces) == 1
    programs.run(keys(3), settings(learning_rate=[0.5, 0.6, 0.7]), SPLITS, 0.1, 2)
    programs.run(keys(3), settings(decay=[1.0, 0.9, 0.8]), SPLITS, 0.2, 2)
    programs.run(keys(3), settings(regularizer=[0.0, 0.1, 1.0]), SPLITS, 0.2, 2)
    assert len(traces) == 1
    programs.run(keys(3), settings(width=[4, 6, 8]), SPLITS, 0.1, 2)
    assert len(traces) == 2
    programs.run(keys(3), settings(batch_size=[8, 16, 32]), SPLITS, 0.1, 2)
    assert len(traces) == 3


@pytest.mark.parametrize(
    "sizes, message",
    [([16, 24], "multiples of the smallest"), ([64, 128], "at most the 64 training images")],
)
def test_batch_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        programs.run(keys(), settings(batch_size=sizes), SPLITS, 0.1, 1)


def test_ascent_reaches_the_boundary_of_a_linear_classifier():
    """The way to the target's region of two classes is |z_t - z_y| / ||w_t - w_y||, if w_t = -w_y."""
    weights = jnp.array([1.0, -2.0, 2.0])
    variables = jnp.stack([weights, -weights], axis=1)

    def apply(variables, images):
        return (images.reshape(len(images), -1) - 0.5) @ variables

    classifier = models.Classifier(apply, variables)
    images = jnp.full((1, 1, 1, 3), 0.5) + 0.1 * weights.reshape(1, 1, 1, 3) / 3
    found = fooling.ascend(classifier, images, jnp.array([1]), 0.003, 100)
    norm = float(jnp.linalg.norm(found.images - images))
    assert 0.1 <= norm < 0.1035 and int(found.num_steps[0]) == round(norm / 0.003)
    one = fooling.ascend(classifier, images, jnp.array([1]), 0.05, 1)
    np.testing.assert_allclose(jnp.linalg.norm(one.images - images), 0.05, rtol=1e-5)


def accuracies(*means: float, spread: float = 0.001) -> np.ndarray:
    return np.array(means) + spread * np.array([[-1, 1, -1, 1], [0, 0, 0, 0], [1, -1, 1, 0]])


@pytest.mark.parametrize(
    "identifier, means, words",
    [
        ("one-layer-regularizer", (0.4, 0.401, 0.4, 0.399), ablations.FOUND),
        ("one-layer-regularizer", (0.4, 0.4, 0.4, 0.35), "Not so here: 0.1 changes"),
        ("one-layer-regularizer", (0.4, 0.4, 0.4, 0.391), "Not shown here: 0.1 may change"),
        ("hidden-layer-batch-size", (0.5, 0.49, 0.48, 0.47), ablations.FOUND),
        ("hidden-layer-batch-size", (0.5, 0.48, 0.49, 0.47), "In part"),
        ("hidden-layer-batch-size", (0.5, 0.5, 0.5, 0.4999), "Not shown here"),
        ("hidden-layer-batch-size", (0.45, 0.46, 0.47, 0.48), "Not so here"),
        ("hidden-layer-decay", (0.45, 0.46, 0.5, 0.49), ablations.FOUND),
        (
            "hidden-layer-decay",
            (0.45, 0.46, 0.5, 0.51),
            "In part: 0.9 against 1 is as it says; 0.9 against 0.8 goes the other way.",
        ),
    ],
)
def test_conclusions_follow_from_the_figures(identifier, means, words):
    ablation = next(a for a in source.ABLATIONS if a.identifier == identifier)
    answer, reasons = ablations.judge(ablation, accuracies(*means))
    assert answer.startswith(words) and reasons


def test_one_seed_decides_nothing():
    for ablation in source.ABLATIONS:
        answer, _ = ablations.judge(ablation, np.array([ablation.published]))
        assert answer.startswith("Not decided")


def test_the_source_agrees_with_itself():
    """Its own figures, as if several seeds had given them, support what it concludes from them."""
    for ablation in source.ABLATIONS:
        answer, _ = ablations.judge(ablation, accuracies(*ablation.published, spread=1e-5))
        assert answer == ablations.FOUND, ablation.identifier


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`data` must be one of"):
        Config(data="mnist")
    with pytest.raises(ValueError, match="`num_seeds` must be at least 1"):
        Config(num_seeds=0)
    assert Config().data_set == "cifar10_jpeg" and Config(quick=True).data_set == "digits"
    assert Config(quick=True, data_dir=Path("there")).data_set == "cifar10_jpeg"


@pytest.mark.slow
def test_quick_from_end_to_end_resumed_and_refused(tmp_path, capsys):
    config = Config(
        num_seeds=2, num_epochs=1, num_attacked=12, num_shown=2, quick=True, results_dir=tmp_path
    )
    report = main(config)
    folder = tmp_path / "cifar_mlp" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert report == folder / "report.html" and "Report:" in capsys.readouterr().out
    assert [len(model["seeds"]) for model in result["models"]] == [2, 2, 2]
    assert [model["num_parameters"] for model in result["models"]] == [30730, 308310, 616610]
    assert len(result["verdicts"]) == 9 and len(result["attacks"]) == 7
    text = report.read_text()
    assert "not on CIFAR-10" in text
    covered = (ROOT / "docs" / "coverage.md").read_text().split("\n# What source 002")[1]
    anchors = set(re.findall(r"`#([a-z0-9-]+)`", covered.split("\n# ")[0]))
    assert anchors
    for anchor in anchors:
        assert f'id="{anchor}"' in text, anchor

    # Killed after the fourth training: the stages before it are read back, the others made again.
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    lost = [path for path in kept if "decay" in path.name or "fgsm" in path.name]
    for path in (*lost, folder / "result.json"):
        path.unlink()
    main(config)
    again = json.loads((folder / "result.json").read_text())
    for part in ("models", "verdicts", "attacks", "gallery", "curves", "sections"):
        assert again[part] == result[part], part
    for path, time in kept.items():
        assert (path.stat().st_mtime_ns == time) == (path not in lost)

    with pytest.raises(ValueError, match="num_epochs was 1, is now 2"):
        main(dataclasses.replace(config, num_epochs=2))
    assert json.loads((folder / "result.json").read_text()) == again
