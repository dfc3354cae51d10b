"""Which filters leave a network after masks have removed their weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import pruning

KEY = jax.random.key(0)
NHWC = ("NHWC", "HWIO", "NHWC")


class Plain(nn.Module):
    """Two convolutions with BatchNorm, in which nothing is added."""

    activation: str = "relu"
    affine: bool = True

    @nn.compact
    def __call__(self, images, train=False):
        for name in "ab":
            images = nn.Conv(8, (3, 3), name=f"conv_{name}")(images)
            images = nn.BatchNorm(
                use_running_average=not train,
                use_scale=self.affine,
                use_bias=self.affine,
                name=f"bn_{name}",
            )(images)
            images = getattr(nn, self.activation)(images)
        return nn.Dense(2, name="head")(images.mean((1, 2)))


@pytest.mark.parametrize(
    ("network", "kept"),
    [(Plain(), 4), (Plain("gelu"), 4), (Plain("sigmoid"), 8), (Plain("gelu", affine=False), 8)],
    ids=["relu", "gelu", "sigmoid", "statistics alone"],
)
def test_filters_that_redundant_removes_leave_the_network(network, kept):
    """Where a removed filter makes zeros; behind a sigmoid or a running mean it does not."""
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    variables = network.init(KEY, images)
    keys = iter(jax.random.split(KEY, 99))
    variables = jax.tree.map(lambda leaf: jax.random.uniform(next(keys), leaf.shape), variables)
    # Not so small a variance that gelu makes almost 0 of a normalised 0.
    for norm in variables["batch_stats"].values():
        norm["var"] = 0.5 + norm["var"]
    groups = pruning.channel_groups(network.apply, variables, images)
    masks = pruning.Redundant(kernels=groups.kernels).masks(
        variables["params"], 0.5, exclude=("head",)
    )
    with pytest.raises(
        ValueError, match="`weights` must be those .* without batch_stats/bn_a/mean"
    ):
        pruning.kept_filters(masks, groups, variables["params"])
    keep = pruning.kept_filters(masks, groups, variables)
    assert {name: len(one) for name, one in keep.items()} == {"conv_a": kept, "conv_b": kept}
    masked = {**variables, "params": pruning.apply_masks(variables["params"], masks)}
    small = pruning.shrink(masked, groups, keep)

    def logits(variables):
        hidden = images
        for name in "ab":
            layers, statistics = variables["params"], variables["batch_stats"][f"bn_{name}"]
            conv, norm = layers[f"conv_{name}"], layers.get(f"bn_{name}", {})
            hidden = jax.lax.conv_general_dilated(
                hidden, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            hidden = hidden + conv["bias"] - statistics["mean"]
            hidden = hidden * norm.get("scale", 1.0) / jnp.sqrt(statistics["var"] + 1e-5)
            hidden = getattr(nn, network.activation)(hidden + norm.get("bias", 0.0))
        head = variables["params"]["head"]
        return hidden.mean((1, 2)) @ head["kernel"] + head["bias"]

    np.testing.assert_allclose(logits(masked), network.apply(masked, images), rtol=1e-4)
    np.testing.assert_allclose(logits(small), logits(masked), rtol=1e-4)


class Depthwise(nn.Module):
    """A depthwise convolution, whose channels another convolution makes first."""

    @nn.compact
    def __call__(self, images, train=False):
        for name, groups in {"expand": 1, "depth": 8}.items():
            images = nn.Conv(8, (3, 3), feature_group_count=groups, use_bias=False, name=name)(
                images
            )
            images = nn.BatchNorm(use_running_average=not train, name=f"bn_{name}")(images)
            images = nn.relu(images)
        return nn.Dense(2, name="head")(images.mean((1, 2)))


def test_channels_leave_one_by_one_where_a_depthwise_filter_is_empty():
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8)
    variables = Depthwise().init(KEY, images)
    params = variables["params"]
    groups = pruning.channel_groups(Depthwise().apply, variables, images)
    mask = jnp.ones((3, 3, 1, 8), bool).at[..., :4].set(False)
    masks = pruning.with_followers(params, {"depth/kernel": mask}, groups.kernels)
    assert pruning.kept_filters(masks, groups, variables)["expand"].tolist() == [4, 5, 6, 7]
    # A shift that stays makes more than 0 of one of them.
    masks["bn_depth"]["bias"] = masks["bn_depth"]["bias"].at[1].set(True)
    params["bn_depth"]["bias"] = params["bn_depth"]["bias"].at[1].set(0.1)
    assert pruning.kept_filters(masks, groups, variables)["expand"].tolist() == [1, 4, 5, 6, 7]


def dense(**layers):
    """Random weights of some shapes."""
    keys = jax.random.split(KEY, len(layers))
    return {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, layers.items(), strict=True)}


def left(logits, weights, emptied):
    """The channels that stay if masks remove some filters; those that go have no effect."""
    groups = pruning.channel_groups(logits, weights, jnp.ones((1, 4, 4, 3)))
    masks = pruning.keep_all(weights)
    masks = {
        **masks,
        **{n: masks[n].at[(..., some) if some else ()].set(False) for n, some in emptied.items()},
    }
    keep = pruning.kept_filters(masks, groups, weights)
    masked = pruning.apply_masks(weights, masks)
    small = pruning.apply_masks(masked, pruning.filter_masks(masked, groups, keep))
    for images in (jnp.ones((1, 4, 4, 3)), jax.random.normal(KEY, (16, 4, 4, 3))):
        np.testing.assert_allclose(logits(small, images), logits(masked, images), rtol=1e-5)
    return {name: one.tolist() for name, one in keep.items()}


def test_a_channel_that_another_kernel_makes_too_stays_though_it_is_0_on_random_images():
    weights = dense(a=(3, 8), b=(3, 8), head=(8, 5))
    weights["b"] = weights["b"].at[:, 1].set(-jnp.abs(weights["b"][:, 1]))

    def logits(weights, images):
        means = images.mean((1, 2))
        return (jax.nn.relu(means @ weights["a"]) + jax.nn.relu(means @ weights["b"])) @ weights[
            "head"
        ]

    assert left(logits, weights, {"a": [1]})["a"] == [*range(8)]
    assert left(logits, weights, {"a": [1, 2], "b": [2]})["a"] == [
        0,
        1,
        3,
        4,
        5,
        6,
        7,
    ]


def test_a_channel_to_which_an_empty_depthwise_filter_adds_stays():
    weights = dense(a=(1, 1, 3, 4), depth=(3, 3, 1, 4), head=(4, 5))
    weights["a"] = weights["a"].at[..., 1].set(-jnp.abs(weights["a"][..., 1]))

    def logits(weights, images):
        first = jax.lax.conv_general_dilated(
            images, weights["a"], (1, 1), "SAME", dimension_numbers=NHWC
        )
        first = jax.nn.relu(first)
        second = jax.lax.conv_general_dilated(
            first, weights["depth"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4
        )
        return (first + second).mean((1, 2)) @ weights["head"]

    assert left(logits, weights, {"depth": [1]})["a"] == [0, 1, 2, 3]


def test_channels_that_have_an_effect_together_stay():
    weights = dense(a=(3, 8), b=(8, 8), head=(8, 5))
    weights |= {"b": jnp.full((8, 8), 40.0), "a": weights["a"].at[:, 7].set(-20.0)}

    def logits(weights, images):
        hidden = jax.nn.sigmoid(images.mean((1, 2)) @ weights["a"])
        return jax.nn.relu6(1000 * jnp.abs(hidden @ weights["b"])) @ weights["head"]

    assert len(left(logits, weights, {"a": [*range(7)]})["a"]) > 1


def test_a_large_logit_hides_no_effect_and_a_masked_scalar_has_none():
    weights = dense(a=(3, 8), head=(8, 5)) | {"shift": jnp.ones(())}

    def of_four(weights, images):
        hidden = jax.nn.sigmoid(images.mean((1, 2)) @ weights["a"])
        return jnp.where(jnp.arange(5) < 4, hidden @ weights["head"], -1e9)

    def shifted(weights, images):
        hidden = images.mean((1, 2)) @ weights["a"] - 10 * weights["shift"] + 0.5
        return jax.nn.relu(hidden) @ weights["head"]

    assert left(of_four, weights, {"a": [1, 2]})["a"] == [*range(8)]
    assert left(shifted, weights, {"a": [1, 2], "shift": None})["a"] == [*range(8)]


def test_a_channel_stays_that_one_weight_reads_into_a_unit_that_is_0_on_random_images():
    weights = dense(a=(3, 8), b=(8, 8), head=(8, 5))
    weights["b"] = jnp.diag(jnp.abs(jnp.diag(weights["b"])))

    def logits(weights, images):
        means = images.mean((1, 2))
        hidden = jax.nn.sigmoid(means @ weights["a"]) @ weights["b"]
        low = jnp.where(jnp.arange(8) == 1, 60 * means[:, :1] - 50, 0.0)
        return jax.nn.relu(hidden + low) @ weights["head"]

    groups = pruning.channel_groups(logits, weights, jnp.ones((1, 4, 4, 3)))
    masks = {**pruning.keep_all(weights), "b": weights["b"] != 0}
    masks["a"] = masks["a"].at[:, 1].set(False)
    assert pruning.kept_filters(masks, groups, weights)["a"].tolist() == [*range(8)]


def test_integer_examples_are_tried_out_on_images_that_are_not_0():
    weights = dense(a=(3, 8), head=(8, 5))

    def logits(weights, images):
        means = images.astype(jnp.float32).mean((1, 2)) / 255
        return jax.nn.relu(means @ weights["a"] + means[:, :1]) @ weights["head"]

    groups = pruning.channel_groups(logits, weights, jnp.zeros((1, 4, 4, 3), jnp.uint8))
    masks = {**pruning.keep_all(weights), "a": jnp.ones((3, 8), bool).at[:, 1].set(False)}
    assert pruning.kept_filters(masks, groups, weights)["a"].tolist() == [*range(8)]


def test_one_channel_of_a_group_without_effect_stays():
    def logits(weights, images):
        hidden = jax.lax.conv_general_dilated(
            images, weights["a"], (1, 1), "SAME", dimension_numbers=NHWC
        )
        hidden = jax.lax.conv_general_dilated(
            hidden, weights["depth"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=4
        )
        both = images.mean((1, 2)) @ weights["b"] + hidden.mean((1, 2)) @ weights["c"]
        return both @ weights["head"]

    weights = dense(a=(1, 1, 3, 4), depth=(3, 3, 1, 4), b=(3, 6), c=(4, 6), head=(6, 5))
    assert left(logits, weights, {"a": [1, 2, 3], "depth": [0, 2, 3]})["a"] == [0]


def test_a_width_that_is_used_as_a_number_is_refused():
    def logits(weights, images):
        hidden = jax.nn.relu(images.mean((1, 2)) @ weights["a"])
        return hidden @ weights["head"] * hidden.shape[-1] ** -0.5

    weights = dense(a=(3, 8), head=(8, 5))
    groups = pruning.channel_groups(logits, weights, jnp.ones((1, 4, 4, 3)))
    with pytest.raises(ValueError, match="it uses a width as a number, for example to scale"):
        pruning.shrink(weights, groups, {"a": [0, 2, 3]})


def test_one_group_leaves_without_the_other():
    def logits(weights, images):
        hidden = jax.nn.relu(images.mean((1, 2)) @ weights["a"])
        return jax.nn.sigmoid(hidden @ weights["b"]) @ weights["head"]

    keep = left(logits, dense(a=(3, 8), b=(8, 8), head=(8, 5)), {"a": [1], "b": [1]})
    assert [len(keep["a"]), len(keep["b"])] == [7, 8]


def test_masks_of_a_whole_module_keep_statistics_and_let_filters_go():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.bn = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, images):
            return self.head(nnx.relu(self.bn(self.a(images))).mean((1, 2)))

    module = Net(nnx.Rngs(0))
    module.eval()
    groups = pruning.channel_groups(lambda net, x: net(x), module, jnp.ones((2, 8, 8, 3)))
    masks = pruning.Redundant(kernels=groups.kernels).masks(module, 0.5, exclude=("head",))
    assert len(pruning.kept_filters(masks, groups, module)["a"]) == 4


def blurred(h):
    taps = jnp.full((3, 3, 1, 8), 1 / 9)
    return jax.lax.conv_general_dilated(
        h, taps, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=8
    )


def normalised(h, axes):
    centred = h - h.mean(axes, keepdims=True)
    return centred / jnp.sqrt(1e-5 + (centred**2).mean(axes, keepdims=True))


SILENT = {
    # What becomes of the output h [B, 4, 4, 8] of a convolution, with other weights w and the images x,
    # and whether a filter of zeros makes zeros.
    "relu": (lambda h, w, x: jax.nn.relu(h), True),
    "relu6": (lambda h, w, x: jax.nn.relu6(h), True),
    "hard_tanh": (lambda h, w, x: jax.nn.hard_tanh(h), True),
    "gelu": (lambda h, w, x: jax.nn.gelu(h), True),
    "prelu": (lambda h, w, x: jnp.where(h > 0, h, w["b"] * h), True),
    "bias": (lambda h, w, x: jax.nn.relu(h + w["bias"]), True),
    "over positions": (lambda h, w, x: normalised(h, (1, 2)), True),
    "pooled": (lambda h, w, x: jax.lax.cumsum(h, 1), True),
    "sigmoid": (lambda h, w, x: jax.nn.sigmoid(h), False),
    "softplus": (lambda h, w, x: jax.nn.softplus(h), False),
    "blurred sigmoid": (lambda h, w, x: blurred(jax.nn.sigmoid(h)), False),
    "one bias": (lambda h, w, x: jax.nn.relu(h + w["b"]), False),
    "bias of one": (lambda h, w, x: jax.nn.relu(h + w["b"].reshape(1)), False),
    "positions": (lambda h, w, x: jax.nn.relu(h + w["positions"]), False),
    "numbered": (lambda h, w, x: h + jnp.arange(4.0)[:, None, None], False),
    "images": (lambda h, w, x: h + x[..., :1], False),
    "chosen": (lambda h, w, x: jnp.where(h > 0.1, h, w["b"]), False),
    "above": (lambda h, w, x: jnp.maximum(h, 0.1), False),
    "padded": (
        lambda h, w, x: jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0),
        False,
    ),
    "power": (lambda h, w, x: h**0 + h, False),
    "logs": (lambda h, w, x: jax.lax.cumlogsumexp(h, 1), False),
    "over channels": (lambda h, w, x: normalised(h, (3,)), False),
    # Zeros go in and come out of these, but how many there are counts.
    "mean": (lambda h, w, x: h * jax.nn.sigmoid(h.mean(-1, keepdims=True)), False),
    "largest": (lambda h, w, x: h * jax.nn.sigmoid(h.max(-1, keepdims=True)), False),
    "rms": (lambda h, w, x: h / jnp.sqrt((h**2).mean(-1, keepdims=True) + 1e-5), False),
    "not a number": (lambda h, w, x: jnp.where(h == 0, jnp.nan, h), False),
    "as shift": (lambda h, w, x: h + w["head"].mean(1), False),
}


@pytest.mark.parametrize("name", SILENT)
def test_only_filters_without_effect_leave_the_network(name):
    change, silent = SILENT[name]

    def logits(weights, images):
        made = jax.lax.conv_general_dilated(
            images, weights["kernel"], (1, 1), "SAME", dimension_numbers=NHWC
        )
        return change(made, weights, images).mean((1, 2)) @ weights["head"]

    shapes = {"kernel": (3, 3, 3, 8), "head": (8, 5), "b": (), "bias": (8,), "positions": (4, 4, 1)}
    keys = jax.random.split(KEY, len(shapes))
    weights = {n: jax.random.uniform(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    images = jax.random.uniform(KEY, (2, 4, 4, 3))
    groups = pruning.channel_groups(logits, weights, images)
    masks = pruning.Redundant(kernels=groups.kernels).masks(weights, 0.5, exclude=("head",))
    assert len(pruning.kept_filters(masks, groups)["kernel"]) == 8
    keep = pruning.kept_filters(masks, groups, weights)
    assert len(keep["kernel"]) == (4 if silent else 8)
    masked = pruning.apply_masks(weights, masks)
    without = pruning.apply_masks(masked, pruning.filter_masks(masked, groups, keep))
    np.testing.assert_allclose(logits(without, images), logits(masked, images), rtol=1e-5)
    # Masks that remove what reads a channel say all by themselves.
    both = pruning.filter_masks(weights, groups, {"kernel": [1, 4, 5]})
    for given in ((), (weights,)):
        assert pruning.kept_filters(both, groups, *given)["kernel"].tolist() == [1, 4, 5]


def test_filters_that_a_kernel_makes_again_transposed_stay():
    def logits(weights, images):
        hidden = jax.nn.relu(images.mean((1, 2)) @ weights["a"])
        hidden = jax.nn.relu(hidden @ weights["kernel"])
        return hidden @ weights["kernel"].T @ weights["head"]

    shapes = {"a": (3, 8), "kernel": (8, 8), "head": (8, 5)}
    keys = jax.random.split(KEY, len(shapes))
    weights = {n: jax.random.uniform(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    groups = pruning.channel_groups(logits, weights, jnp.ones((2, 4, 4, 3)))
    masks = pruning.keep_all(weights)
    masks["a"] = masks["a"].at[:, 1].set(False)
    keep = pruning.kept_filters(masks, groups, weights)
    assert {name: len(one) for name, one in keep.items()} == groups.sizes
