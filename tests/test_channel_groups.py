"""Groups of channels are found in any network, and what they say holds: masked equals shrunk."""

import functools
import itertools

import bodies
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import BLOCKS
from flax import nnx
from frameworks import LINEN, OfLayers, perturbed

from jaxrobust import models, pruning

IMAGES = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))


@pytest.mark.parametrize("framework", ["linen", "nnx", "equinox"])
@pytest.mark.parametrize("name", bodies.BODIES)
def test_groups_are_found_and_masked_is_shrunk(name, framework, monkeypatch):
    _, sizes, coupled = bodies.BODIES[name]
    function, weights = bodies.built(framework, name, IMAGES)
    bodies.loose(monkeypatch)
    weights = jax.tree.map(lambda leaf: leaf, weights)
    groups = pruning.channel_groups(function, weights, IMAGES)
    layers = {group.removeprefix("layers/").replace(".", "/"): one for group, one in groups.items()}
    assert {layer: one.size for layer, one in layers.items()} == sizes
    assert tuple(layer for layer, one in layers.items() if one.coupled) == coupled
    moved, random = perturbed(weights), np.random.default_rng(0)
    for group, one in groups.items():
        count = random.integers(1, one.size)
        keep = {group: np.sort(random.choice(one.size, count, replace=False))}
        masks = pruning.filter_masks(moved, groups, keep)
        masked = function(pruning.apply_masks(moved, masks), IMAGES)
        small = pruning.shrink(moved, groups, keep)
        if framework == "nnx" and name == "group_norm" and one.coupled:
            small.layers["norm"].group_size = len(
                keep[group]
            )  # an attribute that says the old width
        shrunk = function(small, IMAGES)
        difference = float(jnp.abs(masked - shrunk).max() / jnp.abs(masked).max())
        assert difference < 1e-5 or one.coupled, group
        assert np.array_equal(pruning.kept_filters(masks, groups)[group], keep[group])
    if framework != "linen" and not coupled:
        pruning.check_shrinking(function, moved, groups, IMAGES, tolerance=1e-4)


# In these the code says a width itself: a depthwise convolution's groups, the shape of a reshape.
WITH_WIDTHS = {
    *("mobilenet_v2", "shufflenet", "convnext", "mixer", "vit", "windows", "mbconv"),
    *("mobilenet_v3", "convmixer", "ghost", "blur", "pixel_shuffle", "atrous_pyramid"),
    *("squeeze_and_excite", "multiplier"),
}


@pytest.mark.parametrize("name", [*LINEN, *BLOCKS])
def test_blocks_that_others_published(name, monkeypatch):
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    module = OfLayers((LINEN | BLOCKS)[name])
    variables = perturbed(jax.jit(module.init)(jax.random.key(0), images))
    groups = pruning.channel_groups(module.apply, variables, images)
    bodies.loose(monkeypatch)
    agree, random = [], np.random.default_rng(0)
    for group, one in groups.items():
        count = random.integers(1, one.size)
        keep = {group: np.sort(random.choice(one.size, count, replace=False))}
        masks = pruning.filter_masks(variables, groups, keep)
        masked = module.apply(pruning.apply_masks(variables, masks), images)
        try:
            shrunk = module.apply(pruning.shrink(variables, groups, keep), images)
        except (AssertionError, TypeError, ValueError):
            assert name in WITH_WIDTHS
            continue
        difference = float(jnp.abs(masked - shrunk).max() / jnp.abs(masked).max())
        assert difference < 1e-5 or one.coupled, group
        agree.append(group)
    assert agree or name in ("multiplier", "ghost", "blur", "windows")


class Stages(nn.Module):
    """Two convolutions on the images, a stride, a gate, tokens that are mixed, a shared kernel."""

    @nn.compact
    def __call__(self, x):
        patches = nn.Conv(6, (2, 2), (2, 2), name="patches")(x)
        beside = nn.Conv(4, (1, 1), name="beside")(x)
        both = jnp.concatenate([beside, x], axis=-1)
        wide = nn.relu(nn.Conv(5, (3, 3), name="again")(both))  # images come in beside channels
        down = nn.relu(nn.Conv(6, (3, 3), (2, 2), name="down")(wide)) + patches
        gate = nn.sigmoid(
            nn.Dense(6, name="gate")(nn.relu(nn.Dense(3, name="squeeze")(down.mean((1, 2)))))
        )
        tokens = (down * gate[:, None, None]).reshape(len(x), -1, 6)
        mixed = nn.relu(nn.Dense(7, name="mix")(tokens.swapaxes(1, 2)))
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(8, name="hidden")(mixed.mean(2))))


def test_first_and_downsampling_layers_are_known():
    module = Stages()
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    groups = pruning.channel_groups(module.apply, shapes, IMAGES)
    kernels = {kernel.path.split("/")[1]: kernel for kernel in groups.kernels}
    assert {n for n, kernel in kernels.items() if kernel.is_first} == {"patches", "beside", "again"}
    assert {n for n, kernel in kernels.items() if kernel.is_strided} == {"patches", "down"}
    assert groups.first_layers == ("patches", "beside", "again")
    assert groups.downsampling_layers == ("patches",)  # with "down", to which they are added
    assert {"squeeze", "hidden"} <= set(groups)


@pytest.mark.parametrize("framework", ["nnx", "equinox", "plain"])
def test_first_layers_of_other_frameworks(framework):
    function, weights = {
        "nnx": lambda: (
            lambda net, x: net(x),
            nnx.Sequential(
                nnx.Conv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0)),
                jax.nn.relu,
                nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(1)),
                lambda x: x.mean((1, 2)),
                nnx.Linear(6, 2, rngs=nnx.Rngs(2)),
            ),
        ),
        "equinox": lambda: (
            lambda net, x: jax.vmap(net)(x.transpose(0, 3, 1, 2)),
            eqx.nn.Sequential(
                [
                    eqx.nn.Conv2d(3, 4, 3, 2, key=jax.random.key(0)),
                    eqx.nn.Lambda(jax.nn.relu),
                    eqx.nn.Conv2d(4, 6, 3, key=jax.random.key(1)),
                    eqx.nn.Lambda(lambda x: x.mean((1, 2))),
                    eqx.nn.Linear(6, 2, key=jax.random.key(2)),
                ]
            ),
        ),
        "plain": lambda: (
            lambda w, x: (
                jax.nn.relu(jax.nn.relu((x - 0.5).reshape(len(x), -1) @ w[0]) @ w[1]) @ w[2]
            ),
            [jnp.ones((192, 4)), jnp.ones((4, 6)), jnp.ones((6, 2))],
        ),
    }[framework]()
    groups = pruning.channel_groups(function, weights, IMAGES)
    assert list(groups.sizes.values()) == [4, 6]
    assert groups.first_layers == (next(iter(groups)),)
    assert groups.downsampling_layers == (() if framework == "plain" else groups.first_layers)


class Attending(nn.Module):
    """Attention as linen has it: heads and what they see are axes of their own."""

    heads: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), name="patches")(x).reshape(len(x), -1, 8)
        x = x + self.param("places", nn.initializers.normal(), (1, x.shape[1], 8))
        token = self.param("token", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 8)), x], 1)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=4 * self.heads, out_features=8, name="attention"
        )
        return nn.Dense(5, name="head")((x + attention(x, x))[:, 0])


def test_one_unit_of_attention_is_a_head():
    module = Attending()
    variables = perturbed(module.init(jax.random.key(0), IMAGES))
    groups = pruning.channel_groups(module.apply, variables, IMAGES)
    assert groups.sizes == {"patches": 8, "attention/query": 3}
    places = {(place.path, place.axis) for place in groups["attention/query"].places}
    kernels = {(f"params/attention/{word}/kernel", 1) for word in ("query", "key", "value")}
    biases = {(f"params/attention/{word}/bias", 0) for word in ("query", "key", "value")}
    assert places == kernels | biases | {("params/attention/out/kernel", 0)}
    assert "width of heads" in groups.refused["params/attention/value/kernel", 2]
    assert "product of two activations" in groups.refused["params/attention/query/kernel", 2]
    keep = {"attention/query": [0, 2]}
    masks = pruning.filter_masks(variables, groups, keep)
    masked = module.apply(pruning.apply_masks(variables, masks), IMAGES)
    shrunk = Attending(2).apply(pruning.shrink(variables, groups, keep), IMAGES)
    np.testing.assert_allclose(shrunk, masked, rtol=0, atol=1e-5)
    kernels = {kernel.path: kernel for kernel in groups.kernels}
    assert kernels["params/attention/out/kernel"].inputs == (0, 1)
    assert kernels["params/attention/out/kernel"].outputs == (2,)
    assert kernels["params/attention/key/kernel"].outputs == (1, 2)


@pytest.mark.parametrize("framework", ["nnx", "equinox"])
def test_heads_of_the_attention_that_frameworks_have(framework):
    tokens = jax.random.normal(jax.random.key(1), (2, 6, 6, 8))
    if framework == "nnx":
        attention = nnx.MultiHeadAttention(3, 8, 12, decode=False, rngs=nnx.Rngs(0))
        head = nnx.Linear(8, 5, rngs=nnx.Rngs(1))

        def function(weights, x):
            x = x.reshape(len(x), -1, 8)
            return weights[1]((x + weights[0](x)).mean(1))
    else:
        keys = jax.random.split(jax.random.key(0))
        attention = eqx.nn.MultiheadAttention(3, 8, qk_size=4, vo_size=4, key=keys[0])
        head = eqx.nn.Linear(8, 5, key=keys[1])

        def function(weights, x):
            x = x.reshape(len(x), -1, 8)
            seen = jax.vmap(lambda y: weights[0](y, y, y))(x)
            return jax.vmap(weights[1])((x + seen).mean(1))

    groups = pruning.channel_groups(function, (attention, head), tokens)
    (size,) = groups.sizes.values()
    assert size == 3
    (group,) = groups.values()
    assert sum(place.is_made for place in group.places) == 3


def test_statistics_of_a_coupled_group_are_of_what_is_left():
    """LayerNorm over three of four channels, written out."""

    def function(weights, x):
        x = x.mean((1, 2)) @ weights["stem"]["kernel"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x @ weights["head"]["kernel"]

    stem, head = (jax.random.normal(jax.random.key(seed), (4, 4)) for seed in (0, 1))
    weights = {"stem": {"kernel": stem[:3]}, "head": {"kernel": head}}
    groups = pruning.channel_groups(function, weights, IMAGES)
    assert "mean" in groups["stem"].coupled and "mean" in str(groups)
    small = pruning.shrink(weights, groups, {"stem": [0, 1, 3]})
    left = np.asarray(IMAGES.mean((1, 2)) @ stem[:3])[:, [0, 1, 3]]
    left = (left - left.mean(1, keepdims=True)) / np.sqrt(left.var(1, keepdims=True) + 1e-6)
    expected = left @ np.asarray(head)[[0, 1, 3]]
    np.testing.assert_allclose(function(small, IMAGES), expected, rtol=0, atol=1e-5)


def dense(*sizes, seed=0):
    """Weights of layers "a", "b", ...: [sizes[0], sizes[1]], ..."""
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    pairs = itertools.pairwise(sizes)
    return {
        "abcdefg"[index]: {"kernel": jax.random.normal(keys[index], pair)}
        for index, pair in enumerate(pairs)
    }


CODE_OF_ITS_OWN = {
    "an array that the code holds": lambda x, y: y * np.cos(np.arange(6.0)),
    "the code cuts it at a place": lambda x, y: jnp.concatenate([y[:, :2], y[:, 2:]], -1),
    "`sort` reads it": lambda x, y: jnp.sort(y, -1),
    "`cumsum` reads neighbouring": lambda x, y: jnp.cumsum(y, -1),
    "an axis of the images": lambda x, y: y + x.reshape(len(x), -1)[:, :6],
    "product of two activations": lambda x, y: y * (y @ y.T).mean(),
}


@pytest.mark.parametrize("why", CODE_OF_ITS_OWN)
def test_what_cannot_be_pruned_is_named_with_the_reason(why):
    weights = dense(3, 6, 5)

    def function(weights, x):
        y = CODE_OF_ITS_OWN[why](x, x.mean((1, 2)) @ weights["a"]["kernel"])
        return y @ weights["b"]["kernel"]

    groups = pruning.channel_groups(function, weights, IMAGES)
    assert not groups
    assert why in groups.refused["a/kernel", 1] and why in str(groups)


def test_halves_that_the_code_splits_go_together():
    weights = dense(3, 8, 8, 5)
    weights["b"]["kernel"] = weights["b"]["kernel"][:4]

    def function(weights, x):
        value, gate = jnp.split(x.mean((1, 2)) @ weights["a"]["kernel"], 2, -1)
        return (value * jax.nn.sigmoid(gate)) @ weights["b"]["kernel"] @ weights["c"]["kernel"]

    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 4, "b": 8}
    assert groups["a"].places[0].indices.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    pruning.check_shrinking(function, weights, groups, IMAGES)


def test_loops_choices_checkpoints_and_rules():
    weights = dense(3, 6, 6, 5) | {"loop": jax.random.normal(jax.random.key(3), (4, 6, 6))}

    @jax.custom_jvp
    def smooth(x):
        return jnp.tanh(x)

    smooth.defjvp(lambda primals, tangents: (smooth(*primals), tangents[0]))

    def function(weights, x):
        y = jax.checkpoint(lambda y: smooth(y @ weights["a"]["kernel"]))(x.mean((1, 2)))
        y, _ = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w) + y, None), y, weights["loop"])
        y = jax.lax.fori_loop(0, 3, lambda _, y: 0.5 * y, y)
        y = jax.lax.cond(x.mean() > 0.5, lambda y: jnp.sin(y), lambda y: -y, y)
        return jax.nn.relu(y @ weights["b"]["kernel"]) @ weights["c"]["kernel"]

    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 6, "b": 6}
    assert {(p.path, p.axis) for p in groups["a"].places} == {
        *(("a/kernel", 1), ("loop", 1), ("loop", 2), ("b/kernel", 0))
    }
    pruning.check_shrinking(function, weights, groups, IMAGES, tolerance=1e-4)


def test_layers_that_are_not_used_and_channels_that_nothing_reads():
    weights = dense(3, 6, 5) | {"idle": {"kernel": jnp.ones((4, 4))}}

    def function(weights, x):
        return jax.nn.relu(x.mean((1, 2)) @ weights["a"]["kernel"]) @ weights["b"]["kernel"]

    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 6}
    assert groups.refused["idle/kernel", 0] == "the function does not use it"
    small = pruning.shrink(weights, groups, {"a": [5]})
    assert small["idle"]["kernel"].shape == (4, 4)


def test_the_order_of_kernels_is_the_order_of_use():
    function, weights = bodies.built("linen", "squeezenet", IMAGES)
    order = [kernel.path for kernel in pruning.channel_groups(function, weights, IMAGES).kernels]
    layers = ["stem", "fire_0.squeeze", "fire_0.left", "fire_0.right", "fire_1.squeeze"]
    assert order[:5] == [f"params/{layer}/kernel" for layer in layers]


def test_the_largest_network_of_the_zoo_has_the_groups_of_its_paper():
    network = models.create("resnet50")
    shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
    groups = pruning.channel_groups(network.apply, shapes, IMAGES)
    assert len(groups) == 1 + 4 + 2 * 16
    assert sum(groups.sizes.values()) == 64 + 256 + 512 + 1024 + 2048 + 2 * (
        3 * 64 + 4 * 128 + 6 * 256 + 3 * 512
    )


def test_errors():
    weights = dense(3, 6, 5)

    def function(weights, x):
        return jax.nn.relu(x.mean((1, 2)) @ weights["a"]["kernel"]) @ weights["b"]["kernel"]

    groups = pruning.channel_groups(function, weights, IMAGES)
    with pytest.raises(TypeError, match="`function` must be callable"):
        pruning.channel_groups(3, weights, IMAGES)
    classifier = models.Classifier(function, weights)
    with pytest.raises(TypeError, match="`function` must take .*: give its `apply_fn`"):
        pruning.channel_groups(classifier, weights, IMAGES)
    with pytest.raises(TypeError, match="`groups` must be the ChannelGroups of the network"):
        pruning.shrink(weights, {}, {})
    with pytest.raises(ValueError, match="`groups` must be of this network"):
        pruning.shrink(dense(3, 7, 5), groups, {})
    with pytest.raises(
        ValueError, match="`keep` must name groups of the network, got 'c'; the groups are 'a'"
    ):
        pruning.shrink(weights, groups, {"c": [0]})
    with pytest.raises(ValueError, match=r"at least one of the channels 0 \.\. 5 of 'a'"):
        pruning.shrink(weights, groups, {"a": [6]})


def two_layers(between, widths=(3, 8, 5)):
    """A function of two dense layers with something between them, and its weights."""

    def function(weights, x):
        y = between(x.mean((1, 2)) @ weights["a"]["kernel"], weights)
        return y @ weights["b"]["kernel"]

    return function, dense(*widths)


def shuffled(y, _):
    return y.reshape(len(y), 2, -1).swapaxes(1, 2).reshape(len(y), -1)


def swapped(y, _):
    return y.reshape(len(y), -1, 2)[..., ::-1].reshape(len(y), -1)


@pytest.mark.parametrize("between", [shuffled, swapped])
def test_shares_that_the_code_permutes_go_by_whole_steps(between):
    function, weights = two_layers(between)
    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 4}
    random = np.random.default_rng(0)
    for count in (1, 2, 3):
        keep = {"a": np.sort(random.choice(4, count, replace=False))}
        masked = function(
            pruning.apply_masks(weights, pruning.filter_masks(weights, groups, keep)), IMAGES
        )
        small = pruning.shrink(weights, groups, keep)
        np.testing.assert_allclose(function(small, IMAGES), masked, rtol=0, atol=1e-5)


def test_a_number_of_heads_that_the_code_holds_is_refused_when_weights_shrink():
    tokens = jax.random.normal(jax.random.key(1), (2, 3, 3, 8))
    weights = {
        n: {"kernel": jax.random.normal(jax.random.key(i), (8, 16))} for i, n in enumerate("qkv")
    }
    weights["out"] = {"kernel": jax.random.normal(jax.random.key(5), (16, 5))}

    def function(weights, x, heads=4):
        x = x.reshape(len(x), -1, 8)
        q, k, v = ((x @ weights[n]["kernel"]).reshape(len(x), 9, heads, -1) for n in "qkv")
        seen = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)), v)
        return seen.reshape(len(x), 9, -1).mean(1) @ weights["out"]["kernel"]

    groups = pruning.channel_groups(function, weights, tokens)
    assert groups.sizes == {"q": 4}
    with pytest.raises(ValueError, match="`keep` does not match the code.*number of heads"):
        pruning.shrink(weights, groups, {"q": [0, 1]})
    small = pruning.shrink(weights, groups, {"q": [0, 2]}, check=False)
    masks = pruning.filter_masks(weights, groups, {"q": [0, 2]})
    masked = function(pruning.apply_masks(weights, masks), tokens)
    np.testing.assert_allclose(function(small, tokens, heads=2), masked, rtol=0, atol=1e-5)


NOT_ZERO = {
    "softplus": lambda w: jax.nn.softplus(w),
    "exp": lambda w: jnp.exp(w),
    "plus": lambda w: w + 1.0,
    "binary": lambda w: jnp.where(w >= 0, 1.0, -1.0),
}


@pytest.mark.parametrize("name", NOT_ZERO)
def test_a_kernel_that_is_not_zero_where_its_weights_are_is_refused(name):
    def function(weights, x):
        y = jax.nn.sigmoid(x.mean((1, 2)) @ weights["a"]["kernel"])
        return y @ NOT_ZERO[name](weights["b"]["kernel"])

    groups = pruning.channel_groups(function, dense(3, 6, 5), IMAGES)
    assert not groups and "is 0 where the weights are" in str(groups)


def test_such_a_kernel_behind_channels_that_are_zero_is_not():
    def function(weights, x):
        y = jax.nn.relu(x.mean((1, 2)) @ weights["a"]["kernel"])
        return y @ jnp.exp(weights["b"]["kernel"])

    weights = dense(3, 6, 5)
    groups = pruning.channel_groups(function, weights, IMAGES)
    pruning.check_shrinking(function, weights, groups, IMAGES)
    assert groups.sizes == {"a": 6}


def test_a_blur_whose_taps_the_code_holds():
    def function(weights, x):
        y = jax.nn.relu(lax_conv(x, weights["a"]["kernel"]))
        taps = jnp.broadcast_to(jnp.ones((3, 3, 1, 1)) / 9, (3, 3, 1, y.shape[-1]))
        y = lax_conv(y, taps, y.shape[-1])
        return y.mean((1, 2)) @ weights["b"]["kernel"]

    weights = {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (3, 3, 3, 6))},
        "b": {"kernel": jax.random.normal(jax.random.key(1), (6, 5))},
    }
    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 6}
    pruning.check_shrinking(function, weights, groups, IMAGES)


def lax_conv(x, kernel, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


OTHER_READERS = {
    "rows": lambda y, w: y + jnp.take(jnp.arange(9.0), (9 * y).astype(int)).sum(-1, keepdims=True),
    "condition": lambda y, w: (
        y * jax.lax.while_loop(lambda s: s < 5 * (y**2).sum(), lambda s: s + 1.0, 1.0)
    ),
    "constant": lambda y, w: y + jnp.asarray(np.ones(8, np.float32)),
}


@pytest.mark.parametrize("name", OTHER_READERS)
def test_what_else_reads_channels_refuses_or_couples_them(name):
    function, weights = two_layers(OTHER_READERS[name])
    groups = pruning.channel_groups(function, weights, IMAGES)
    assert all(one.coupled for one in groups.values())


def test_roles_of_weights_that_a_kernel_is_computed_from():
    def function(weights, x):
        gain, kernel, low = weights["gain"], weights["kernel"], weights["low"]
        y = jax.nn.relu(x.mean((1, 2)) @ (gain * kernel + low["down"] @ low["up"]))
        return y @ weights["head"]

    weights = {
        "gain": jnp.ones(8),
        "kernel": jax.random.normal(jax.random.key(0), (3, 8)),
        "low": {"down": jnp.ones((3, 2)), "up": jnp.ones((2, 8))},
        "head": jax.random.normal(jax.random.key(1), (8, 5)),
    }
    groups = pruning.channel_groups(function, weights, IMAGES)
    kernels = {kernel.path: kernel[1:3] for kernel in groups.kernels}
    assert kernels["kernel"] == ((0,), (1,)) and kernels["head"] == ((0,), (1,))
    assert kernels["low/down"] == ((0,), ()) and kernels["low/up"] == ((), (1,))
    assert "gain" not in kernels
    (group,) = groups.values()
    made = {place.path for place in group.places if place.is_made}
    assert made == {"kernel", "low/up"} and group.size == 8
    pruning.check_shrinking(function, weights, groups, IMAGES)


def test_branches_that_are_stacked_and_weights_that_are_shared():
    shared = jax.random.normal(jax.random.key(0), (6, 6))
    weights = dense(3, 6, 5) | {"c": {"kernel": shared}, "d": {"kernel": shared}}

    def function(weights, x):
        y = x.mean((1, 2)) @ weights["a"]["kernel"]
        left, right = (jnp.tanh(y @ weights[name]["kernel"]) for name in "cd")
        return jnp.stack([left, right], 1).sum(1) @ weights["b"]["kernel"]

    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 6, "c": 6}
    pruning.check_shrinking(function, weights, groups, IMAGES)


def test_channels_that_are_repeated():
    function, weights = two_layers(lambda y, _: jnp.tile(y, (1, 2)), (3, 6, 5))
    weights["b"]["kernel"] = jnp.tile(weights["b"]["kernel"], (2, 1))
    groups = pruning.channel_groups(function, weights, IMAGES)
    assert groups.sizes == {"a": 6}
    pruning.check_shrinking(function, weights, groups, IMAGES)


def test_all_collections_but_statistics_are_masked_and_no_other_networks_are_shrunk():
    def function(weights, x):
        y = jax.nn.relu(x.mean((1, 2)) @ weights["params"]["a"])
        return y @ weights["params"]["b"] + y @ weights["extra"]["c"]

    weights = {
        "params": {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 5))},
        "extra": {"c": jnp.ones((8, 5))},
    }
    groups = pruning.channel_groups(function, weights, IMAGES)
    pruning.check_shrinking(function, weights, groups, IMAGES)
    plain, two = dense(3, 8, 5), two_layers(lambda y, _: y)[0]
    groups = pruning.channel_groups(two, plain, IMAGES)
    state = {"student": plain, "teacher": {"z": {"kernel": jnp.ones((8, 5))}}}
    smaller = pruning.shrink_state(state, plain, groups, {"a": [0, 1]})
    assert smaller["student"]["b"]["kernel"].shape == (2, 5)
    assert smaller["teacher"]["z"]["kernel"].shape == (8, 5)


def test_modules_with_leaves_that_are_no_arrays_are_pruned_in_rounds():
    class Net(eqx.Module):
        first: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        last: eqx.nn.Linear

        def __call__(self, x):
            return self.last(self.dropout(jax.nn.relu(self.first(x)), inference=True))

    keys = jax.random.split(jax.random.key(0))
    net = Net(eqx.nn.Linear(3, 8, key=keys[0]), eqx.nn.Dropout(), eqx.nn.Linear(8, 5, key=keys[1]))

    def function(net, x):
        return jax.vmap(net)(x.mean((1, 2)))

    groups, masks = pruning.channel_groups(function, net, IMAGES), None
    for sparsity in (0.25, 0.5):
        masks = pruning.prune_filters(net, sparsity, groups, masks=masks, min_filters=1)
    assert len(pruning.kept_filters(masks, groups)["first"]) == 4


def test_a_kernel_that_is_never_0_reads_channels_that_are():
    """Channels of a convolution are 0 without their weights, whatever reads them; of two such not."""

    def network(weights, images, own=lambda kernel: kernel):
        dims = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        maps = jax.lax.conv_general_dilated(images, weights["a"]["kernel"], (1, 1), "SAME", **dims)
        kernel = jnp.exp(weights["b"]["kernel"])
        return jax.lax.conv_general_dilated(own(maps), kernel, (1, 1), "SAME", **dims).mean((1, 2))

    shapes = {"a": {"kernel": jnp.ones((3, 3, 3, 4))}, "b": {"kernel": jnp.ones((3, 3, 4, 2))}}
    images = jnp.ones((1, 4, 4, 3))
    assert pruning.channel_groups(network, shapes, images).sizes == {"a": 4}
    never = functools.partial(network, own=jnp.exp)
    assert pruning.channel_groups(never, shapes, images).sizes == {}
