"""What scales and shifts the filters of a kernel and goes with them, and which filters can go."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import pruning

KEY = jax.random.key(0)


class Residual(nn.Module):
    """Two convolutions with BatchNorm, of which the second adds to the first, and a third without."""

    @nn.compact
    def __call__(self, images, train=False):
        def block(inputs, name):
            made = nn.Conv(8, (3, 3), use_bias=False, name=f"conv_{name}")(inputs)
            return nn.BatchNorm(use_running_average=not train, name=f"bn_{name}")(made)

        first = nn.relu(block(images, "a"))
        both = nn.relu(first + block(first, "b"))
        last = nn.relu(nn.Conv(8, (1, 1), use_bias=False, name="conv_c")(both))
        return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(last).mean((1, 2)))


class ResidualInNNX(nnx.Module):
    def __init__(self, rngs):
        self.a = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.b = nnx.Conv(8, 8, (3, 3), use_bias=False, rngs=rngs)
        self.bn = nnx.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, images):
        first = nnx.relu(self.a(images))
        return self.head(nnx.relu(first + self.bn(self.b(first))).mean((1, 2)))


def test_followers_of_a_kernel_scale_and_shift_its_channels_alone():
    images = jnp.ones((2, 8, 8, 3))
    variables = Residual().init(KEY, images)
    kernels = pruning.channel_groups(Residual().apply, variables, images).kernels
    followers = {kernel.path.split("/")[1]: set(kernel.followers) for kernel in kernels}
    assert followers == {
        "conv_a": {"params/bn_a/scale", "params/bn_a/bias"},
        "conv_b": {"params/bn_b/scale", "params/bn_b/bias"},
        "conv_c": set(),  # a ReLU comes before the normalisation
        "head": {"params/head/bias"},
    }
    module = ResidualInNNX(nnx.Rngs(0))
    module.eval()
    found = pruning.channel_groups(lambda model, images: model(images), module, images).kernels
    assert [{path.split("/")[-1] for path in kernel.followers} for kernel in found] == [
        {"bias"},
        {"scale", "bias"},  # not the running statistics, which are no weights
        {"bias"},
    ]


COMBINED = {
    # How the output [B, 4, 4, 4] of a convolution, h, is combined with a vector v of length 4, and with
    # other images, o. What is not a scale or a shift of each channel is no follower.
    "factor": (lambda h, v, o: h * v, True),
    "summand": (lambda h, v, o: h + v, True),
    "double": (lambda h, v, o: h * (2.0 * v), True),
    "half": (lambda h, v, o: h * (v / 2.0), True),
    "twice": (lambda h, v, o: (h * v + v) * v, True),
    "divisor": (lambda h, v, o: h / (v + 2.0), False),
    "subtrahend": (lambda h, v, o: h - v, False),
    "raw divisor": (lambda h, v, o: h / v, False),
    "subtrahend of a constant": (lambda h, v, o: h + (1.0 - v), False),
    "exponential": (lambda h, v, o: h * jnp.exp(v), False),
    "mean": (lambda h, v, o: h * v.mean(), False),
    "softmax": (lambda h, v, o: h * jax.nn.softmax(v), False),
    "reversed": (lambda h, v, o: h + v[::-1], False),
    "along rows": (lambda h, v, o: h + v[:, None, None], False),
    "shuffled": (
        lambda h, v, o: h.reshape(*h.shape[:3], 2, 2).swapaxes(3, 4).reshape(h.shape) * v,
        False,
    ),
    "behind a ReLU": (lambda h, v, o: jax.nn.relu(h) * v, False),
    "of others too": (lambda h, v, o: h * v + o * v, False),
    "behind a sum": (lambda h, v, o: (h + o) * v, False),
    "of an inverse": (lambda h, v, o: (1.0 / h) * v, False),
    "relative to its length": (lambda h, v, o: h * (v / jnp.sqrt((v * v).sum())), False),
    "times its softmax": (lambda h, v, o: h * (v * jax.nn.softmax(v)), False),
    "by itself": (lambda h, v, o: h * (v / v), False),
    "in a loop, of others too": (
        lambda h, v, o: h * v + o * jax.lax.fori_loop(0, 2, lambda _, u: u * 2.0, v),
        False,
    ),
    "and decides about a branch": (
        lambda h, v, o: h * v + jax.lax.cond(v.sum() > 0, lambda: o, lambda: o * 2.0),
        False,
    ),
    "and decides about rounds": (
        lambda h, v, o: (
            h * v
            + jax.lax.while_loop(
                lambda c: c[0] < v.sum(), lambda c: (c[0] + 1.0, c[1] * 0.5), (0.0, o)
            )[1]
        ),
        False,
    ),
    "or stands in a branch": (
        lambda h, v, o: (
            h * v + jax.lax.cond(o.sum() > 0, lambda: o, lambda: jnp.broadcast_to(v, o.shape))
        ),
        False,
    ),
    "and is handed from place to place in a loop": (
        lambda h, v, o: (
            h * v
            + o
            * jax.lax.fori_loop(
                0, 3, lambda _, c: (c[1], c[2], c[3], c[3]), (1.0, 1.0, 1.0, v.sum())
            )[0]
        ),
        False,
    ),
    "squared": (lambda h, v, o: h * (v * v), False),
    "along channels and rows": (lambda h, v, o: h * v * v[:, None], False),
    "along an axis of its own": (lambda h, v, o: (h * v)[..., None] * v, False),
    "after what is compiled for the platform": (
        lambda h, v, o: (
            jax.lax.platform_dependent(h, cpu=lambda x: x * 2.0, default=lambda x: x) * v
        ),
        True,
    ),
    "in a branch, of others too": (
        lambda h, v, o: h * v + o * jax.lax.cond(o.sum() > 0, lambda: v, lambda: v * 2.0),
        False,
    ),
    "and something else in later rounds": (
        lambda h, v, o: jax.lax.fori_loop(
            0, 2, lambda _, c: (c[0] + h * c[1], c[1] + 1.0), (jnp.zeros_like(h), v)
        )[0],
        False,
    ),
    "of each row of a scan": (
        lambda h, v, o: jax.lax.scan(lambda c, row: (c, row * v), 0.0, h)[1],
        False,
    ),
    "of every round": (
        lambda h, v, o: jax.lax.fori_loop(0, 2, lambda _, x: jax.nn.relu(x * v), h),
        False,
    ),
}


@pytest.mark.parametrize("name", COMBINED)
def test_what_follows_a_kernel(name):
    combine, follows = COMBINED[name]

    def logits(weights, images):
        made, others = (
            jax.lax.conv_general_dilated(
                images, weights[kernel], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            for kernel in ("kernel", "other")
        )
        return jax.nn.relu(combine(made, weights["v"], others)).mean((1, 2)) @ weights["head"]

    shapes = {"kernel": (3, 3, 3, 4), "other": (3, 3, 3, 4), "v": (4,), "head": (4, 2)}
    weights = {key: jnp.ones(shape) for key, shape in shapes.items()}
    kernels = pruning.channel_groups(logits, weights, jnp.ones((2, 4, 4, 3))).kernels
    found = {kernel.path: kernel.followers for kernel in kernels}
    assert found["kernel"] == (("v",) if follows else ())
    assert not found.get("other") and not found.get("head")


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (4, 1, 1)], ids=["haiku", "equinox"])
def test_vectors_with_axes_of_length_1_follow_too(shape):
    def logits(weights, images):
        made = images @ weights["kernel"]
        if len(shape) == 3:  # channels first, image by image
            made = (made.transpose(0, 3, 1, 2) * weights["v"]).transpose(0, 2, 3, 1)
        else:
            made = made * weights["v"]
        return jax.nn.relu(made).mean((1, 2)) @ weights["head"]

    weights = {"kernel": jnp.ones((3, 4)), "v": jnp.ones(shape), "head": jnp.ones((4, 2))}
    kernels = pruning.channel_groups(logits, weights, jnp.ones((2, 4, 4, 3))).kernels
    assert {kernel.path: kernel.followers for kernel in kernels} == {"kernel": ("v",), "head": ()}
    weights["kernel"] = weights["kernel"].at[:, 0].set(0.0)
    masks = pruning.Redundant(kernels=kernels).masks(weights, 0.75, exclude=("head",))
    assert masks["v"].shape == shape and not masks["v"].ravel()[0] and masks["v"].sum() == 3


@pytest.mark.parametrize(
    "scaled", [lambda g, k: g * k, lambda g, k: k * g, lambda g, k: g * (k / jnp.linalg.norm(k))]
)
def test_vectors_follow_a_kernel_that_is_scaled_itself(scaled):
    def logits(weights, images):
        made = images.mean((1, 2)) @ scaled(weights["g"], weights["kernel"]) + weights["v"]
        return jax.nn.relu(made) @ weights["head"]

    shapes = {"g": (4,), "kernel": (3, 4), "v": (4,), "head": (4, 2)}
    weights = {key: jnp.ones(shape) for key, shape in shapes.items()}
    kernels = pruning.channel_groups(logits, weights, jnp.ones((2, 4, 4, 3))).kernels
    assert {kernel.path: kernel.followers for kernel in kernels} == {"kernel": ("v",), "head": ()}


def transposed_too(weights, images):
    hidden = images.mean((1, 2)) @ weights["first"]
    hidden = hidden + jax.nn.relu(hidden @ weights["kernel"] + weights["a"])
    return (hidden + jax.nn.relu(hidden @ weights["kernel"].T + weights["v"])) @ weights["head"]


def the_last_transposed_too(weights, images):
    return transposed_too({**weights, "kernel": weights["z"]}, images)


def transposed_and_scaled(weights, images):
    hidden = images.mean((1, 2)) @ weights["first"]
    hidden = hidden + jax.nn.relu(hidden @ weights["kernel"] + weights["a"])
    scaled = (weights["z"][0][:, None] * weights["kernel"]).T
    return (hidden + jax.nn.relu(hidden @ scaled + weights["v"])) @ weights["head"]


def of_two_axes(weights, images):
    made = jnp.einsum("bhwc,cde->bhwde", images, weights["cube"])
    return jax.nn.relu(made * weights["v"]).mean((1, 2)).sum(1) @ weights["head"]


def grouped(weights, images):
    made = jax.lax.conv_general_dilated(
        jax.nn.relu(images @ weights["first"]),
        weights["kernel"].reshape(2, 1, 2, 4),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
    )
    return jax.nn.relu(made * weights["v"]).mean((1, 2)) @ weights["head"]


@pytest.mark.parametrize(
    "logits",
    [transposed_too, the_last_transposed_too, transposed_and_scaled, of_two_axes, grouped],
)
def test_what_does_not_follow_every_use_of_a_kernel(logits):
    shapes = {"first": (4, 4), "kernel": (4, 4), "a": (4,), "v": (4,), "head": (4, 2), "z": (4, 4)}
    shapes["cube"] = (4, 2, 4)
    weights = {key: jnp.ones(shape) for key, shape in shapes.items()}
    kernels = pruning.channel_groups(logits, weights, jnp.ones((2, 4, 4, 4))).kernels
    assert kernels and not any("v" in kernel.followers for kernel in kernels)


def test_a_scale_that_two_kernels_share_follows_neither():
    module = ResidualInNNX(nnx.Rngs(0))
    module.eval()
    module.b.bias = module.a.bias
    found = pruning.channel_groups(
        lambda model, images: model(images), module, jnp.ones((2, 8, 8, 3))
    )
    followers = {kernel.path.split("/")[0]: kernel.followers for kernel in found.kernels}
    assert followers == {
        "a": (),
        "b": ("bn/bias", "bn/scale"),
        "head": ("head/bias",),
    }


def test_redundant_removes_scale_and_shift_with_a_filter():
    images = jnp.ones((2, 8, 8, 3))
    variables = Residual().init(KEY, images)
    kernels = pruning.channel_groups(Residual().apply, variables, images).kernels
    params = variables["params"]
    masks = pruning.Redundant(kernels=kernels).masks(params, 0.5, exclude=("head",))
    for name in "ab":
        stays = np.asarray(masks[f"conv_{name}"]["kernel"]).any((0, 1, 2))
        assert stays.sum() == 4
        for leaf in ("scale", "bias"):
            np.testing.assert_array_equal(masks[f"bn_{name}"][leaf], stays)
    for alone in (masks["norm"], masks["head"], pruning.Redundant().masks(params, 0.5)["bn_a"]):
        assert all(np.asarray(leaf).all() for leaf in jax.tree.leaves(alone))
    # A removed filter makes zeros, whatever its running statistics are.
    removed = pruning.apply_masks(params, masks)
    _, seen = Residual().apply(
        variables | {"params": removed}, images, capture_intermediates=True, mutable="intermediates"
    )
    made = np.asarray(seen["intermediates"]["bn_b"]["__call__"][0])
    np.testing.assert_array_equal(made.any((0, 1, 2)), np.asarray(masks["bn_b"]["scale"]))


def test_followers_of_empty_filters():
    """Two output axes in any order, the same axis counted from the end, and two kernels for one."""
    stays = np.array([[False, False, False], [True, True, False]])
    params = {"a": jnp.ones((4, 2, 3)), "b": jnp.ones((2, 3)), "v": jnp.ones((2, 3))}
    masks = {"a": jnp.broadcast_to(stays, (4, 2, 3)), "b": jnp.ones((2, 3), bool)}
    for outputs in ((1, 2), (2, 1), (-1, -2)):
        known = (pruning.Kernel("a", (0,), outputs, followers=("v",)),)
        found = pruning.with_followers(params, masks, known)
        np.testing.assert_array_equal(found["v"], stays)
        np.testing.assert_array_equal(found["a"], masks["a"])
    both = (*known, pruning.Kernel("b", (), (0, 1), followers=("v",)))
    alone = {"a": masks["a"]}  # b may have no mask, because it is excluded
    for given in (masks, alone):
        for order in (both, both[::-1]):
            assert pruning.with_followers(params, given, order)["v"].all()
    lost = {"a": masks["a"], "b": jnp.asarray(stays)}
    np.testing.assert_array_equal(pruning.with_followers(params, lost, both)["v"], stays)
    last = {"a": jnp.ones((4, 2, 3), bool), "b": jnp.asarray(stays)}
    assert pruning.with_followers(params, last, both)["v"].all()
    assert pruning.with_followers(params, masks)["v"].all()
    for outputs in ((), (5,), (0,)):
        wrong = (pruning.Kernel("a", (), outputs, followers=("v",)),)
        with pytest.raises(ValueError, match="`kernels` must give (axes of a|a of shape)"):
            pruning.with_followers(params, masks, wrong)
    with pytest.raises(ValueError, match="`masks` must have paths .* such as 'a', got 'c'"):
        pruning.with_followers(params, {"c": masks["a"]}, known)
    with pytest.raises(ValueError, match="must have the shapes of the parameters"):
        pruning.with_followers(params, {"a": masks["b"]}, known)
    with pytest.raises(TypeError, match="must be boolean"):
        pruning.with_followers(params, {"a": params["a"]}, known)


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


def test_one_group_leaves_without_the_other():
    def logits(weights, images):
        hidden = jax.nn.relu(images.mean((1, 2)) @ weights["a"])
        return jax.nn.sigmoid(hidden @ weights["b"]) @ weights["head"]

    shapes = {"a": (3, 8), "b": (8, 8), "head": (8, 5)}
    keys = jax.random.split(KEY, len(shapes))
    weights = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    groups = pruning.channel_groups(logits, weights, jnp.ones((2, 4, 4, 3)))
    masks = pruning.keep_all(weights)
    masks = {**masks, **{name: masks[name].at[:, 1].set(False) for name in "ab"}}
    keep = pruning.kept_filters(masks, groups, weights)
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


NHWC = ("NHWC", "HWIO", "NHWC")
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
