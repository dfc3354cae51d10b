"""Networks: sizes, the Classifier, imported weights."""

import json
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_zoo
from small_networks import COUNTS, SMALL

from jaxrobust import compilation, evaluation, models
from jaxrobust.models import torch_layouts

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def test_every_model_is_counted():
    assert set(COUNTS) == set(models.MODELS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_and_output_shape(name):
    network = models.create(name)
    variables = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name]
    assert jax.eval_shape(network.apply, variables, IMAGES).shape == (2, 10)
    seven = models.create(name, num_classes=7)
    variables = jax.eval_shape(seven.init, jax.random.key(0), IMAGES)
    assert jax.eval_shape(seven.apply, variables, IMAGES).shape == (2, 7)


# simple_cnn's training pass is random (dropout); its blocks are those of cnn.
@pytest.mark.parametrize("name", sorted(set(SMALL) - {"simple_cnn", "photo_cnn", "resnet34"}))
def test_folded_evaluation_equals_batch_norm(name):
    """With the batch's own statistics stored, evaluation gives what training gives."""
    network = models.create(name, **SMALL[name])
    images = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
    variables = network.init(jax.random.key(1), images)

    @jax.jit
    def update(variables):
        logits, updated = network.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return logits, variables | updated

    for _ in range(200):  # a moving average with momentum .9 has converged to 1e-9
        logits, variables = update(variables)
    # Narrow layers of little variance magnify rounding: in float64 mobilenet_v2 differs by 2e-7.
    np.testing.assert_allclose(network.apply(variables, images), logits, atol=3e-4)


def test_create_returns_one_object_for_one_network():
    assert models.create("cnn") is models.create("cnn", 10)
    assert models.create("cnn", widths=[8] * 5) is models.create("cnn", widths=(8,) * 5)


def test_a_created_network_within_another_module():
    """It is shared, so it must not belong to the first module that calls it."""

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            return models.create("mlp", 3, widths=(4,)).copy()(images, train)

    first, second = (Outer().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    assert list(first["params"]) == ["MLP_0"]
    assert models.create("mlp", 3, widths=(4,)).parent is None


def test_create_errors():
    with pytest.raises(ValueError, match=r"`name` must be one of .*'cnn'.* got 'vgg'"):
        models.create("vgg")
    with pytest.raises(TypeError, match="'cnn' has no size `depth`; its sizes are widths"):
        models.create("cnn", depth=3)
    with pytest.raises(TypeError, match="`widths` must be a sequence of integers, got 64"):
        models.create("mlp", widths=64)
    with pytest.raises(ValueError, match="`widths` must be at least 1, got 0"):
        models.create("mlp", widths=(8, 0))
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, got 1"):
        models.create("cnn", num_classes=1)
    with pytest.raises(TypeError, match="`stem_width` must be an integer, got 'wide'"):
        models.create("resnet50", stem_width="wide")
    with pytest.raises(ValueError, match="`bottleneck` must be one of"):
        models.create("resnet50", bottleneck=3)
    with pytest.raises(ValueError, match="`stem_shortcut` must be one of"):
        models.create("resnet18", stem_shortcut=3)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("resnet_small", {"widths": (8, 8)}, "`widths` must have 3 entries, one for each stage"),
        (
            "resnet50",
            {"inner_widths": (8,) * 16},
            "`inner_widths` must have 32 entries, 2 for each",
        ),
        ("vgg19", {"widths": (8,)}, "`widths` must have 16 entries, one for each convolution"),
        ("mobilenet_v1", {"widths": (8,)}, "`widths` must have 14 entries, the stem and 13"),
        ("mobilenet_v2", {"widths": (8,)}, "`widths` must have 9 entries"),
        ("mobilenet_v2", {"inner_widths": (8,)}, "`inner_widths` must have 17 entries"),
        ("mobilenet_v2", {"strides": (2,)}, "`strides` must have 8 entries"),
        ("densenet121", {"widths": (8,)}, "`widths` must have 58 entries, one for each layer"),
        ("densenet121", {"transition_widths": (8,)}, "`transition_widths` must have 3 entries"),
        (
            "resnet18",
            {"stem_width": 8, "stem_shortcut": False},
            "`stem_width` must be 64, the width of the first stage, if `stem_shortcut` is False, got 8",
        ),
    ],
)
def test_sizes_that_do_not_fit_together(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(models.create(name, **sizes).init, jax.random.key(0), IMAGES)


def test_strides_of_mobilenet_v2_shrink_the_maps():
    narrow = {"widths": (4,) * 9, "strides": (2, 1, 1, 2, 2, 1, 2, 1)}
    network, images = models.create("mobilenet_v2", **narrow), jnp.ones((1, 32, 32, 3))

    def run():
        variables = network.init(jax.random.key(0), images)
        return variables | network.apply(variables, images, capture_intermediates=True)[1]

    made = jax.eval_shape(run)
    maps = made["intermediates"]
    sides = [maps[name]["__call__"][0].shape[1] for name in ("stem", "stage_2_block_0", "last")]
    assert sides == [16, 8, 2]
    whole = jax.eval_shape(
        models.create("mobilenet_v2", widths=narrow["widths"]).init, jax.random.key(0), IMAGES
    )
    assert made["params"] == whole["params"]


@pytest.mark.parametrize(
    "name",
    ["resnet_small", "resnet50", "preact_resnet18", "wide_resnet", "mobilenet_v2", "densenet121"],
)
def test_sizes_that_follow_from_others_are_fields_too(name):
    """A network whose inner widths are spelled out is the same network."""
    network = models.create(name)
    variables = jax.eval_shape(network.init, jax.random.key(0), IMAGES)

    def width(path):
        tree = variables["params"]
        for part in path.split("/"):
            tree = tree[part]
        return tree["kernel"].shape[-1]

    spelled = {"widths": tuple(network.widths)}
    if name.startswith(("resnet", "preact", "wide")):
        inner = ("conv_0", "conv_1")[: 2 if name == "resnet50" else 1]
        stem = "stem/conv" if name.startswith("resnet") else "stem"
        blocks = [k for k in variables["params"] if k.startswith("stage")]
        blocks.sort(key=lambda k: [int(part) for part in k.split("_") if part.isdigit()])
        spelled["inner_widths"] = [width(f"{b}/{conv}/conv") for b in blocks for conv in inner]
        spelled["stem_width"] = width(stem)
    elif name == "mobilenet_v2":
        sizes = enumerate((1, 2, 3, 4, 3, 3, 1))
        blocks = [f"stage_{stage}_block_{block}" for stage, size in sizes for block in range(size)]
        spelled["inner_widths"] = [width(f"{block}/expand/conv") for block in blocks]
    elif name == "densenet121":
        sizes = enumerate((6, 12, 24, 16))
        layers = [f"stage_{stage}_layer_{layer}" for stage, size in sizes for layer in range(size)]
        spelled["inner_widths"] = [width(f"{layer}/conv_0/conv") for layer in layers]
        spelled["transition_widths"] = [width(f"transition_{stage}") for stage in (1, 2, 3)]
    same = models.create(name, **spelled)
    again = jax.eval_shape(same.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, again)


def test_reference_logits(reference, reference_classifier):
    images = jnp.asarray(reference["images"], jnp.float32) / 255
    logits = compilation.jit(lambda c, x: c(x))(reference_classifier, images)
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)
    assert int((jnp.argmax(logits, 1) == reference["labels"]).sum()) == 41


def test_reference_on_the_photographs(shared, reference, reference_classifier):
    from jaxrobust import data

    dataset = data.load("sports10", shared / "data" / "sports10")
    logits = evaluation.logits(reference_classifier, dataset.test.images)
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)
    assert int((logits.argmax(1) == dataset.test.labels).sum()) == 41


def torch_state_dict(name: str) -> dict[str, np.ndarray]:
    """Random weights under PyTorch's names, with its shapes, made from the layouts."""
    network = models.create(name)
    shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    generator = np.random.default_rng(0)
    state = {}
    for layer in torch_layouts.layout(name, network):
        tree = shapes["params"]
        for part in layer.ours.split("/"):
            tree = tree[part]
        if layer.kind == "bn":
            for suffix in ("weight", "bias", "running_mean", "running_var"):
                state[f"{layer.theirs}.{suffix}"] = generator.random(tree["scale"].shape)
            state[f"{layer.theirs}.num_batches_tracked"] = np.int64(7)
            continue
        kernel = tree["kernel"].shape
        order = (3, 2, 0, 1) if len(kernel) == 4 else (1, 0)
        state[f"{layer.theirs}.weight"] = generator.normal(size=[kernel[i] for i in order])
        if "bias" in tree:
            state[f"{layer.theirs}.bias"] = generator.normal(size=tree["bias"].shape)
    return state


@pytest.mark.parametrize("name", sorted(torch_layouts.NAMES))
def test_from_torch_fills_every_variable(name):
    variables = models.from_torch(name, torch_state_dict(name))
    network = models.create(name)
    expected = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, expected)


TORCH_SIZES = {
    "resnet18": {"widths": torch_zoo.WIDTHS},
    "resnet34": {"stage_sizes": (3, 1, 1, 1), "widths": torch_zoo.WIDTHS},
    "resnet50": {"stage_sizes": (1, 2, 1, 1), "widths": (32, 48, 64, 96), "stem_width": 8},
    "preact_resnet18": {"widths": torch_zoo.WIDTHS},
    "preact_resnet18, raw": {"widths": torch_zoo.WIDTHS, "raw_shortcut": True},
    "preact_resnet18, no final": {
        "widths": torch_zoo.WIDTHS,
        "stage_sizes": (1, 1, 1, 1),
        "final_norm": False,
    },
    "wide_resnet": {"stage_sizes": (2, 2, 2), "widths": (12, 16, 24), "stem_width": 8},
    "vgg19": {"widths": (8, 8, 12, 12, *(16,) * 4, *(24,) * 8)},
    "mobilenet_v1": {"widths": tuple(range(8, 22))},
    "mobilenet_v2": {"widths": (8, 4, 6, 8, 9, 10, 11, 12, 16)},
    "densenet121": {"stage_sizes": (1, 2, 1, 2), "widths": (4,) * 6, "stem_width": 8},
}


@pytest.mark.parametrize("name", TORCH_SIZES)
def test_networks_compute_what_those_of_pytorch_do(name):
    """Logits that PyTorch computed from the same weights (torch_zoo.py)."""
    path = Path(__file__).with_name("torch_zoo.json")
    known = json.loads(path.read_text())[name]
    state = torch_zoo.weights({key: tuple(shape) for key, shape in known["shapes"].items()})
    model, sizes = name.split(",")[0], TORCH_SIZES[name]
    variables = models.from_torch(model, state, **sizes)
    network = models.create(model, **sizes)
    logits = compilation.jit(network.apply)(variables, torch_zoo.images())
    expected = np.array(known["logits"])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * expected.std())


def test_wide_resnets_carry_layers_that_are_never_called():
    state = torch_state_dict("wide_resnet")
    unused = {"sub_block1.layer.0.conv1.weight": np.zeros((16, 16, 3, 3))}
    models.from_torch("wide_resnet", state | unused)


def test_from_torch_reorders_the_rows_behind_a_flatten():
    state = torch_state_dict("mlp")
    variables = models.from_torch("mlp", state)
    image = np.random.default_rng(1).normal(size=(32, 32, 3)).astype(np.float32)
    theirs = state["layers.0.weight"] @ image.transpose(2, 0, 1).ravel() + state["layers.0.bias"]
    dense = variables["params"]["block_0"]["dense"]
    np.testing.assert_allclose(
        image.ravel() @ dense["kernel"] + dense["bias"], theirs, rtol=1e-3, atol=1e-3
    )


def test_from_torch_knows_other_names_of_the_same_layers():
    state = torch_state_dict("resnet18")
    renamed = {
        "module." + key.replace("shortcut", "downsample").replace("fc.", "linear."): value
        for key, value in state.items()
    }
    chex.assert_trees_all_equal(
        models.from_torch("resnet18", state), models.from_torch("resnet18", renamed)
    )
    state = torch_state_dict("mobilenet_v1")
    renamed = {key.replace("linear.", "fc."): value for key, value in state.items()}
    models.from_torch("mobilenet_v1", renamed)


def test_from_torch_lists_what_is_wrong():
    state = torch_state_dict("cnn")
    del state["features.0.bias"], state["classifier.3.weight"]
    state["extra"] = np.zeros(3)
    with pytest.raises(ValueError, match="3 problems") as error:
        models.from_torch("cnn", state)
    for part in ("missing features.0.bias", "missing classifier.3.weight", "unexpected extra"):
        assert part in str(error.value)
    state = torch_state_dict("cnn")
    state["features.3.weight"] = np.zeros((32, 16, 3, 3))
    del state["features.0.bias"]
    with pytest.raises(ValueError, match=r"features.3.weight .*\(3, 3, 16, 32\).*\(3, 3, 32, 32\)"):
        models.from_torch("cnn", state)


def test_classifier_refuses_bytes_and_single_images():
    classifier = models.Classifier(lambda variables, x: x, None)
    with pytest.raises(TypeError, match="divide uint8 images by 255"):
        classifier(np.zeros((1, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r"must be \[B, H, W, C\], got shape \(4, 4, 3\)"):
        classifier(jnp.zeros((4, 4, 3)))


def test_classifier_takes_its_normalisation_in_any_form():
    apply_fn = lambda variables, x: x.sum((1, 2)) * variables  # noqa: E731
    images = jnp.full((1, 2, 2, 3), 0.5)
    for mean, std in ((0.5, 0.25), (np.full(3, 0.5), np.full(3, 0.25))):
        classifier = models.Classifier(apply_fn, jnp.float32(2), mean, std)
        np.testing.assert_allclose(classifier(images), 0.0)
        np.testing.assert_allclose(classifier(images + 0.25), np.full((1, 3), 8.0))
