"""Sanity diagnostics: sound classifiers pass, and hidden gradients are called that."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import evaluation
from jaxrobust.evaluation import Execution, diagnostics, gradient_checks
from jaxrobust.types import Stochastic

SIZE, CLASSES = 6, 4


def _problem():
    """Noisy prototypes, and a network of two layers whose first one looks at them."""
    rng = np.random.default_rng(0)
    prototypes = rng.uniform(0.2, 0.8, (CLASSES, SIZE * SIZE)).astype(np.float32)
    labels = np.arange(40, dtype=np.int32) % CLASSES
    images = prototypes[labels] + rng.normal(0, 0.1, (40, SIZE * SIZE)).astype(np.float32)
    centred = prototypes - prototypes.mean(0)
    mixing = rng.normal(0, 1, (24, CLASSES)).astype(np.float32)
    first = (mixing @ centred).T * 0.5
    second = np.linalg.pinv(mixing).T.astype(np.float32) * 4
    images = np.clip(images, 0, 1)
    images[:, :3] = 0  # black, where a square root has no derivative
    weights = {
        "mean": jnp.asarray(prototypes.mean(0)),
        "first": jnp.asarray(first),
        "second": jnp.asarray(second),
    }
    return weights, images.reshape(-1, SIZE, SIZE, 1), labels


WEIGHTS, IMAGES, LABELS = _problem()


def network(weights, images):
    flat = images.reshape(len(images), -1) - weights["mean"]
    return jnp.tanh(flat @ weights["first"]) @ weights["second"]


def levels(images):
    return jnp.round(images * 7) / 7


def noise_of_the_batch(images):
    return 0.1 * jax.random.normal(jax.random.key(3), images.shape)


SEEN = {
    "sound": lambda x: x,
    "quantised": levels,
    "shattered": lambda x: levels(x) + 0.02 * jnp.sin(500 * x),
    "nan": lambda x: jnp.sqrt(x) ** 2,
    "stochastic": lambda x: x + noise_of_the_batch(x),
    "straight through": lambda x: x + jax.lax.stop_gradient(levels(x) - x),
}
"""What the network is shown of an image; one program for all, which compiles once."""


def choose(number, weights, scale, images):
    return scale * network(weights, jax.lax.switch(number, list(SEEN.values()), images))


@pytest.fixture(scope="module")
def verdict():
    found = {}

    def of(kind):
        if kind not in found:
            number = jnp.int32(list(SEEN).index(kind) if kind in SEEN else 0)
            scale = jnp.float32(1e6 if kind == "saturated" else 1)
            function = jax.tree_util.Partial(choose, number, WEIGHTS, scale)
            found[kind] = evaluation.sanity(
                function, IMAGES, LABELS, 0.12, key=jax.random.key(0), execution=Execution(40)
            )
        return found[kind]

    return of


EXPECTED = {
    "sound": ("sound", set()),
    "straight through": ("sound", set()),
    "saturated": ("suspicious", {"saturation"}),
    "quantised": (
        "gradient masking",
        {"gradients", "finite differences", "unbounded attack", "black box"},
    ),
    "shattered": ("gradient masking", {"finite differences", "black box"}),
    "nan": ("gradient masking", {"gradients"}),
    "stochastic": ("suspicious", {"same answer twice"}),
}


def by_name(result):
    return {check["name"]: check for check in result["checks"]}


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_kind_is_called_what_it_is(verdict, kind):
    result = verdict(kind)
    checks = by_name(result)
    failed = {name for name, check in checks.items() if check["passed"] is False}
    if kind == "stochastic":  # what it sees depends on an image's place in its group of lanes
        failed -= {"more steps"}
    assert (result["verdict"], failed) == EXPECTED[kind]
    assert result["n"] == 40 and len(checks) == 10
    assert json.loads(json.dumps(result)) == result
    for name in failed & set(diagnostics.MASKING):
        assert checks[name]["detail"] in result["reason"]


def test_a_saturated_network_falls_to_dlr_all_the_same(verdict):
    """Scaled logits are the same classifier: what cross-entropy cannot see, DLR fools."""
    plain, scaled = by_name(verdict("sound")), by_name(verdict("saturated"))
    # Not all: where the scale is fused into the softmax, rounding leaves some a gradient.
    withstand, blind = (
        int(re.search(r"(\d+) " + after, scaled[name]["detail"])[1])
        for name, after in (("more steps", "withstand"), ("saturation", "of 40 images whose"))
    )
    assert withstand >= 30 and blind >= 20
    assert " 20 withstand 100 steps" in plain["more steps"]["detail"]
    for name in ("black box", "random noise", "unbounded attack"):
        assert scaled[name]["detail"] == plain[name]["detail"]


def brightness(images):
    """Dark or light."""
    mean = images.mean((1, 2, 3))
    return jnp.stack([0.5 - mean, mean - 0.5], axis=1)


def test_nothing_to_attack():
    images = np.full((3, 6, 6, 1), 0.25, np.float32)
    result = evaluation.sanity(brightness, images, np.ones(3, int), 0.1, key=jax.random.key(0))
    assert (result["n"], result["checks"], result["verdict"]) == (0, [], "suspicious")
    assert "No image is classified right" in result["reason"]


def scripted(monkeypatch, fooled, norm="linf", epsilon=0.1, shape=(6, 6, 1)):
    """The attack checks with attacks that fool the first of 10 images, as many as told."""

    def search(attack, prepared, aims, wanted, **options):
        loss, steps = getattr(attack, "loss", None), attack.num_steps
        name = type(attack).__name__ + (f" {loss} {steps}" if loss else "")
        rows = np.arange(10) < fooled.get((name, round(attack.epsilon, 3)), 0)
        images = np.where((rows & wanted)[:, None, None, None], 1.0, prepared.images)
        found = {"images": images.astype(np.float32), "restart": np.zeros(10, int)}
        return type("Found", (), found)

    monkeypatch.setattr(evaluation.search, "search", search)
    monkeypatch.setattr(diagnostics, "gradient_checks", lambda *arguments: [])
    images = np.full((10, *shape), 0.25, np.float32)
    result = diagnostics.sanity(
        brightness, images, np.zeros(10, int), epsilon, key=jax.random.key(0), norm=norm
    )
    return result, {check["name"]: check["passed"] for check in result["checks"]}


GOOD = {
    ("APGD ce 100", 0.1): 4,
    ("APGD dlr 100", 0.1): 5,
    ("APGD ce 10", 0.1): 3,
    ("APGD ce 100", 0.2): 8,
    ("APGD ce 100", 1.0): 9,
    ("APGD dlr 100", 1.0): 10,
    ("Square", 0.1): 5,
    ("RandomNoise", 0.1): 2,
}


@pytest.mark.parametrize(
    "changed, name, verdict",
    [
        ({}, None, "sound"),
        # One image is chance, two of ten are not.
        ({("APGD ce 10", 0.1): 5}, None, "sound"),
        ({("APGD ce 10", 0.1): 6}, "more steps", "suspicious"),
        ({("APGD ce 100", 0.2): 3}, None, "sound"),
        ({("APGD ce 100", 0.2): 2}, "larger epsilon", "suspicious"),
        ({("APGD dlr 100", 1.0): 9}, None, "sound"),
        ({("APGD dlr 100", 1.0): 8, ("APGD ce 100", 1.0): 8}, "unbounded attack", None),
        ({("Square", 0.1): 6}, None, "sound"),
        ({("Square", 0.1): 7}, "black box", None),
        ({("RandomNoise", 0.1): 7}, "random noise", None),
    ],
)
def test_what_attacks_may_and_may_not_do(monkeypatch, changed, name, verdict):
    result, passed = scripted(monkeypatch, GOOD | changed)
    assert [check for check in passed if passed[check] is False] == ([name] if name else [])
    assert result["verdict"] == (verdict or "gradient masking")


def test_what_does_not_apply(monkeypatch):
    nothing = scripted(monkeypatch, GOOD, "l1")[1]
    assert nothing["black box"] is None and nothing["random noise"] is not None
    tiny = scripted(monkeypatch, GOOD, "l2", shape=(4, 4, 1))[1]
    assert tiny["black box"] is None
    whole = scripted(monkeypatch, {("APGD ce 100", 1.0): 10}, epsilon=1.0)
    assert whole[1]["larger epsilon"] is None and whole[0]["verdict"] == "sound"


def test_many_is_two_images_and_two_per_cent():
    assert not gradient_checks.many(1, 3) and gradient_checks.many(2, 3)
    assert not gradient_checks.many(2, 100) and gradient_checks.many(3, 100)


def test_a_declared_stochastic_classifier_is_not_blamed(monkeypatch):
    def noisy(keys, images):
        noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
        return brightness(images + 0.05 * noise)

    def search(attack, prepared, aims, wanted, **options):
        images = np.where(wanted[:, None, None, None], 1.0, prepared.images)
        found = {"images": images.astype(np.float32), "restart": np.zeros(len(wanted), int)}
        return type("Found", (), found)

    monkeypatch.setattr(evaluation.search, "search", search)
    images = np.full((10, 6, 6, 1), 0.25, np.float32)
    function = Stochastic(jax.tree_util.Partial(noisy), 4)
    options = {"key": jax.random.key(0), "num_images": 6, "execution": Execution(8)}
    result = evaluation.sanity(function, images, np.zeros(10, int), 0.1, **options)
    assert result["verdict"] == "sound" and result["n"] == 6
    checks = by_name(result)
    assert checks["same answer twice"]["passed"] is None
    assert checks["finite differences"]["passed"]


def test_progress_is_told(monkeypatch):
    told = []

    def search(attack, prepared, *_, execution, **others):
        execution.progress("", 1, 2)
        found = {"images": prepared.images, "restart": np.zeros(2, int)}
        return type("Found", (), found)

    monkeypatch.setattr(evaluation.search, "search", search)
    images = np.full((2, 6, 6, 1), 0.25, np.float32)
    evaluation.sanity(
        brightness,
        images,
        np.zeros(2, int),
        0.1,
        key=jax.random.key(0),
        execution=Execution(progress=lambda *one: told.append(one)),
    )
    names, done, total = zip(*told, strict=True)
    # Of each of two images: 2 looks, 4 gradients, 32 differences; 5 times 101 questions of APGD and
    # once 11, 50 of noise and 301 of Square.
    assert set(total) == {2 * 905} and done[-1] == 2 * 905
    assert list(dict.fromkeys(names)) == [
        *("same answer twice", "gradients", "white box", "more steps", "larger epsilon"),
        *("unbounded attack", "random noise", "black box"),
    ]
    assert list(done) == sorted(done) and len(set(done)) > 20
    assert max(np.diff(done)) == 301  # Square, told of half way


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epsilon": 0.0}, "`epsilon` must be a finite number above 0"),
        ({"epsilon": 8.0}, "`epsilon` must be .* at most 1, got 8.0"),
        ({"norm": "l3"}, "`norm` must be one of"),
        ({"num_images": 0}, "`num_images` must be at least 1"),
        ({"labels": np.array([7])}, "`labels` must lie in 0 .. 1"),
        ({"execution": Execution(path="a")}, "`execution.path` must be None for `sanity`, got 'a'"),
        (
            {"execution": Execution(search_type="bfloat16")},
            "`execution.search_type` must be 'float32' for `sanity`.*checks are of the classifier in",
        ),
    ],
)
def test_wrong_input(options, message):
    settings = {"epsilon": 0.1, "labels": np.zeros(1, int)} | options
    with pytest.raises(ValueError, match=message):
        evaluation.sanity(
            brightness, np.full((1, 6, 6, 1), 0.25, np.float32), key=jax.random.key(0), **settings
        )
