"""Exported classifiers: another process with jax alone, any batch size, gradients, both platforms."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import SMALL

from jaxrobust import attacks, compilation, export, models, pruning

IMAGES = jax.random.uniform(jax.random.key(1), (3, 16, 16, 3))

# What a stranger writes who has the file alone.
STRANGER = """
import pathlib, sys, jax, numpy as np
file, images, outputs = sys.argv[1:]
logits_fn = jax.export.deserialize(pathlib.Path(file).read_bytes()).call
images = np.load(images)
gradient = jax.grad(lambda x: logits_fn(x)[:, 0].sum())(images)
np.savez(outputs, logits=logits_fn(images), one=logits_fn(images[:1]), gradient=gradient)
print(*{name.split(".")[0] for name in sys.modules})
"""


apply = jax.jit(lambda classifier, images: classifier(images))


def classifier_of(name, key=0):
    network = models.create(name, **SMALL[name])
    variables = jax.jit(network.init)(jax.random.key(key), IMAGES)
    return models.Classifier(network.apply, variables, 0.4, 0.25)


def shrunk_classifier(name):
    dense = classifier_of(name)
    network = models.create(name, **SMALL[name])
    groups = pruning.channel_groups(network.apply, dense.variables, IMAGES)
    scores = pruning.filter_scores(dense.variables, groups)
    keep = pruning.keep_filters(scores, 0.5, min_filters=2)
    small = pruning.shrink(dense.variables, groups, keep)
    return models.Classifier(models.resized(network, small).apply, small, 0.4, 0.25)


def test_a_shrunk_classifier_runs_in_a_process_with_jax_alone(tmp_path):
    classifier = shrunk_classifier("resnet18")
    file = tmp_path / "small.jaxexport"
    size = export.save(file, classifier, (16, 16, 3))
    assert size == file.stat().st_size
    dense = export.save(tmp_path / "dense", classifier_of("resnet18"), (16, 16, 3), vjp_order=0)
    assert export.save(tmp_path / "small", classifier, (16, 16, 3), vjp_order=0) < dense
    np.save(tmp_path / "images.npy", IMAGES)
    paths = [str(file), str(tmp_path / "images.npy"), str(tmp_path / "outputs.npz")]
    loaded = subprocess.check_output([sys.executable, "-c", STRANGER, *paths], text=True).split()
    assert "jax" in loaded and not {"jaxrobust", "flax", "optax"} & set(loaded)
    outputs = np.load(tmp_path / "outputs.npz")
    logits = apply(classifier, IMAGES)
    np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs["one"], logits[:1], rtol=0, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda x: classifier(x)[:, 0].sum()))(IMAGES)
    scale = float(abs(gradient).max())
    np.testing.assert_allclose(outputs["gradient"], gradient, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["simple_cnn", "densenet121"])
def test_exported_networks_for_both_platforms(name, tmp_path):
    """Kernels that are the CPU's own, pooling, flattening, depthwise below: all lower for CUDA."""
    classifier = classifier_of(name)
    export.save(tmp_path / "m", classifier, (16, 16, 3), vjp_order=0)
    exported = jax.export.deserialize((tmp_path / "m").read_bytes())
    assert exported.platforms == ("cpu", "cuda")
    assert str(exported.in_avals[0].shape) == "(b, 16, 16, 3)"
    np.testing.assert_allclose(
        export.load(tmp_path / "m")(IMAGES), apply(classifier, IMAGES), rtol=0, atol=1e-5
    )
    with pytest.raises(ValueError, match="No VJP is available"):
        jax.grad(lambda x: exported.call(x).sum())(IMAGES)


def test_depthwise_convolutions_and_their_gradients(tmp_path):
    classifier = classifier_of("mobilenet_v1")
    export.save(tmp_path / "m", classifier, (16, 16, 3), platforms=["cuda", "cpu"])
    logits_fn = export.load(tmp_path / "m")
    logits = apply(classifier, IMAGES)
    np.testing.assert_allclose(logits_fn(IMAGES), logits, rtol=0, atol=1e-5)
    attack = attacks.FGSM(0.1)
    labels = jnp.argmax(logits, 1)
    ours = attack(jax.random.key(0), classifier, IMAGES, labels)
    theirs = attack(jax.random.key(0), logits_fn, IMAGES, labels)
    np.testing.assert_allclose(theirs.images, ours.images, atol=1e-6)


def test_a_library_of_this_machine_alone_is_left_out(tmp_path, monkeypatch):
    """Convolutions by oneDNN are calls that no other machine would know."""
    monkeypatch.delenv("JAXROBUST_ONEDNN", raising=False)
    if not compilation.onednn_types():
        pytest.skip("oneDNN does not work here")
    classifier = classifier_of("vgg19")
    apply(classifier, IMAGES)  # traced with the library before
    export.save(tmp_path / "m", classifier, (16, 16, 3))
    exported = jax.export.deserialize((tmp_path / "m").read_bytes())
    assert "onednn" not in str(exported.mlir_module())
    assert compilation.onednn_types()


def test_errors(tmp_path):
    double = lambda images: images.mean((1, 2))  # noqa: E731
    with pytest.raises(ValueError, match=r"`platforms` must be one of .*'cuda'.* got 'gpu'"):
        export.save(tmp_path / "m", double, (2, 2, 3), platforms=("gpu",))
    with pytest.raises(ValueError, match="`platforms` must be one or more of"):
        export.save(tmp_path / "m", double, (2, 2, 3), platforms="cpu")
    with pytest.raises(ValueError, match=r"`image_shape` must be \(H, W, C\), got \(2, 2\)"):
        export.save(tmp_path / "m", double, (2, 2))
    with pytest.raises(ValueError, match="`vjp_order` must be at least 0"):
        export.save(tmp_path / "m", double, (2, 2, 3), vjp_order=-1)
    with pytest.raises(ValueError, match=r"must return \[B, K\]"):
        export.save(tmp_path / "m", lambda images: images, (2, 2, 3))
    with pytest.raises(TypeError, match="`logits_fn` must be callable, got int"):
        export.save(tmp_path / "m", 3, (2, 2, 3))
    with pytest.raises(
        ValueError, match=r"write `images.shape\[0\]` where it says `len\(images\)`"
    ):
        export.save(tmp_path / "m", lambda images: images.reshape(len(images), -1), (2, 2, 3))
    assert not any(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        export.load(tmp_path / "m")
    (tmp_path / "m").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not an exported classifier"):
        export.load(tmp_path / "m")


def callback(images):
    shape = jax.ShapeDtypeStruct((images.shape[0], 3), jnp.float32)
    return jax.pure_callback(lambda x: np.asarray(x).mean((1, 2)), shape, images)


def halved(images):
    def body(carry):
        return carry[0] + 1, carry[1] / 2

    return jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, images.mean((1, 2))))[1]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.reshape(int(x.shape[0]), -1), "converts the batch size to a number"),
        (lambda x: x.mean((1, 2)) if x.shape[0] > 1 else x[:, 0, 0], "compares it"),
        (lambda x: jnp.stack([one.mean((0, 1)) for one in x]), "loops over the batch"),
        (callback, "must not call back into Python"),
        (halved, "`vjp_order` must be 0 for this `logits_fn`, got 1"),
    ],
    ids=["number", "comparison", "loop", "callback", "while"],
)
def test_what_cannot_be_exported_is_refused_in_our_words(tmp_path, function, words):
    with pytest.raises(ValueError, match=words):
        export.save(tmp_path / "model", function, (4, 4, 3), platforms=("cpu",))
    assert not (tmp_path / "model").exists()
    if function is halved:
        export.save(tmp_path / "model", function, (4, 4, 3), platforms=("cpu",), vjp_order=0)
