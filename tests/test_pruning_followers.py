"""What scales and shifts the filters of a kernel, and goes with them."""

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
    given = {**masks, "v": jnp.ones((2, 3), bool).at[1, 0].set(False)}  # of a follower too
    assert pruning.with_followers(params, given, both)["v"].tolist() == given["v"].tolist()
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
