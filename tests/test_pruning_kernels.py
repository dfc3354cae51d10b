"""Which weights are kernels: by name, by a function, by the program; of any framework's weights."""

import equinox as eqx
import flax.linen as nn
import frameworks
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrobust import programs, pruning
from jaxrobust.pruning.masks import named_leaves

IMAGES = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
KEY = jax.random.key(0)


class Partitioned(nn.Module):
    """Its first kernel is boxed."""

    @nn.compact
    def __call__(self, images):
        boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        hidden = nn.relu(nn.Dense(8, kernel_init=boxed, name="hidden")(images.mean((1, 2))))
        return nn.Dense(2, name="head")(hidden)


def boxed():
    weights = Partitioned().init(KEY, IMAGES)
    assert isinstance(weights["params"]["hidden"]["kernel"], nn.Partitioned)
    return Partitioned().apply, weights, ("params/head/kernel", "params/hidden/kernel")


def of_haiku():
    def network(images):
        return hk.nets.MLP([8, 2], name="mlp")(images.mean((1, 2)))

    transformed = hk.without_apply_rng(hk.transform(network))
    weights = transformed.init(KEY, IMAGES)
    return transformed.apply, weights, ("mlp/~/linear_0/w", "mlp/~/linear_1/w")


def of_equinox():
    model = eqx.nn.MLP(3, 2, 8, 1, key=KEY)
    paths = ("layers/0/weight", "layers/1/weight")
    return lambda model, images: jax.vmap(model)(images.mean((1, 2))), model, paths


def nnx_model():
    return frameworks.in_nnx(frameworks.linen_variables(IMAGES))


NNX_PATHS = (
    *(f"blocks/{path}/kernel" for path in ("0/convs/0", "0/convs/1")),
    *(f"blocks/1/convs/{index}/kernel" for index in range(3)),
    *("head/kernel", "stem/kernel"),
)


def of_nnx():
    return lambda model, images: model(images), nnx_model(), NNX_PATHS


def of_nnx_state():
    graph, state = nnx.split(nnx_model())
    return lambda state, images: nnx.merge(graph, state)(images), state, NNX_PATHS


WEIGHTS = {
    "boxed": boxed,
    "haiku": of_haiku,
    "equinox": of_equinox,
    "nnx": of_nnx,
    "nnx state": of_nnx_state,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_every_framework_are_pruned(name):
    function, weights, paths = WEIGHTS[name]()
    assert pruning.kernel_paths(weights) == paths
    program = pruning.channel_groups(function, weights, IMAGES).kernels
    assert sorted(kernel.path for kernel in program) == sorted(paths)
    leaves = dict(named_leaves(weights))
    total = sum(leaves[path].size for path in paths)
    one = paths[0]
    for kernels, chosen in (
        (None, paths),
        (program, paths),
        (lambda path, _: path == one, (one,)),
        ([one], (one,)),
    ):
        masks = pruning.global_magnitude(weights, 0.5, kernels=kernels)
        assert jax.tree.structure(masks) == jax.tree.structure(weights)
        pruned = pruning.apply_masks(weights, masks)
        assert type(pruned) is type(weights)
        after = dict(named_leaves(pruned))
        size = sum(leaves[path].size for path in chosen)
        threshold = np.median(np.concatenate([np.abs(leaves[path]).ravel() for path in chosen]))
        for path, leaf in leaves.items():
            if path in chosen:
                kept = np.where(np.abs(leaf) > threshold, leaf, 0)
                np.testing.assert_array_equal(after[path], kept)
            elif hasattr(leaf, "shape"):
                assert jnp.array_equal(after[path], leaf), path
            else:
                assert after[path] is leaf
        assert pruning.sparsity_of(pruned, kernels=kernels) == round(size / 2) / size
        assert pruning.sparsity_of(masks) == round(size / 2) / total
        layers = pruning.layer_sparsity(weights, masks, kernels=kernels)
        assert tuple(layers) == chosen
        for other in (
            pruning.layerwise_magnitude(weights, 0.5, kernels=kernels),
            pruning.random(KEY, weights, 0.5, kernels=kernels),
        ):
            assert pruning.sparsity_of(other, kernels=kernels) == pytest.approx(0.5, abs=0.01)
    for constraint in (pruning.Irregular(), pruning.Irregular(kernels=program)):
        assert pruning.sparsity_of(constraint.masks(weights, 0.5)) == pytest.approx(0.5, abs=0.01)
    counts = pruning.parameter_counts(pruning.apply_masks(weights, masks))
    arrays = [leaf.size for leaf in leaves.values() if hasattr(leaf, "shape")]
    assert counts["size"] == sum(arrays)
    assert jnp.all(jnp.isfinite(function(pruned, IMAGES)))


@pytest.mark.parametrize("name", WEIGHTS)
def test_int8_of_every_framework(name):
    function, weights, paths = WEIGHTS[name]()
    program = pruning.channel_groups(function, weights, IMAGES).kernels
    leaves = dict(named_leaves(weights))
    expected = function(weights, IMAGES)
    for kernels in (None, program):
        quantized = pruning.quantize(weights, kernels=kernels)
        found = jax.tree_util.tree_leaves_with_path(
            quantized, is_leaf=lambda leaf: isinstance(leaf, pruning.QuantizedKernel)
        )
        of = {
            "/".join(programs.words(path)): leaf.values
            for path, leaf in found
            if isinstance(leaf, pruning.QuantizedKernel)
        }
        assert set(of) == set(paths)
        logits = function(pruning.dequantize(quantized), IMAGES)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=0.06 * float(abs(expected).max()))
        # Every channel that a kernel makes uses the whole range, whichever axis it is on.
        for kernel in program:
            others = tuple(a for a in range(of[kernel.path].ndim) if a not in kernel.outputs)
            assert (np.abs(of[kernel.path]).max(others) == 127).all()
        restored = dict(named_leaves(pruning.dequantize(quantized)))
        assert all(restored[path].shape == leaves[path].shape for path in paths)


def test_an_embedding_is_pruned_by_a_function():
    """A table has no name that all have, and only its owner knows whether it is to be pruned."""
    table = jax.random.normal(KEY, (9, 4))
    params = {"words": {"embedding": table}, "head": {"kernel": jnp.ones((4, 2))}}
    kernels = lambda path, array: path.endswith("embedding") and array.ndim == 2  # noqa: E731
    assert pruning.kernel_paths(params) == ("head/kernel",)
    assert pruning.kernel_paths(params, kernels) == ("words/embedding",)
    masks = pruning.layerwise_magnitude(params, 0.25, kernels=kernels)
    assert int((~masks["words"]["embedding"]).sum()) == 9 and masks["head"]["kernel"].all()
    assert pruning.sparsity_of(masks, kernels=kernels) == 0.25
    assert pruning.quantize(params, kernels=kernels)["words"]["embedding"].scale.shape == (4,)
    rows = pruning.sensitivity(
        params,
        [0.5],
        lambda pruned: pruning.sparsity_of(pruned, kernels=kernels),
        kernels=kernels,
    )
    assert rows == [{"layer": "words/embedding", "sparsity": 0.5, "score": 0.5}]


def test_kernels_that_are_not_there():
    params = {"head": {"kernel": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match="got 'tail/kernel'; the weights are head/k"):
        pruning.global_magnitude(params, 0.5, kernels=["tail/kernel"])
    for use in (
        lambda kernels: pruning.global_magnitude(params, 0.5, kernels=kernels),
        lambda kernels: pruning.layer_sparsity(params, kernels=kernels),
        lambda kernels: pruning.quantize(params, kernels=kernels),
    ):
        with pytest.raises(ValueError, match="must have kernels.* or those that `kernels` names"):
            use(lambda path, array: False)
    with pytest.raises(ValueError, match="must have kernels"):
        pruning.global_magnitude({"head": {"bias": jnp.ones(2)}}, 0.5)
    # What was found for whole variables serves their parameters too.
    assert pruning.kernel_paths(params, ["params/head/kernel"]) == ("head/kernel",)


class Attention(nn.Module):
    """One layer of attention over the rows of an image."""

    @nn.compact
    def __call__(self, images):
        rows = nn.Dense(12, name="embed")(images.mean(2))
        rows = rows + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(rows)
        return nn.Dense(2, name="head")(rows.mean(1))


def test_n_of_m_along_what_attention_reads():
    variables = Attention().init(KEY, IMAGES)
    params = variables["params"]
    kernels = pruning.channel_groups(Attention().apply, variables, IMAGES).kernels
    of = {kernel.path.removeprefix("params/"): kernel for kernel in kernels}
    assert of["attention/query/kernel"][1:3] == ((0,), (1, 2))  # [in, heads, dim]
    assert of["attention/out/kernel"][1:3] == ((0, 1), (2,))  # [heads, dim, features]
    masks = pruning.NofM(1, 4, kernels=kernels).masks(params, 0.25, exclude=("embed", "head"))
    for name, columns in (("query", (12, 12)), ("key", (12, 12)), ("out", (12, 12))):
        mask = np.asarray(masks["attention"][name]["kernel"]).reshape(columns)
        weights = np.abs(params["attention"][name]["kernel"]).reshape(columns)
        assert (mask.reshape(3, 4, 12).sum(1) == 1).all()
        largest = weights.reshape(3, 4, 12).argmax(1)
        assert (mask.reshape(3, 4, 12).argmax(1) == largest).all()
    with pytest.raises(ValueError, match=r"which axes attention/key/kernel of shape \(12, 2, 6\)"):
        pruning.NofM(1, 4).masks(params, 0.25, exclude=("attention/out", "embed", "head"))


def test_sets_know_the_layout_of_equinox():
    """[output, input, height, width], by its name alone or by the program."""
    conv = eqx.nn.Conv2d(8, 6, 3, key=KEY)
    head = eqx.nn.Linear(6, 2, key=KEY)
    function = lambda weights, images: jax.vmap(  # noqa: E731
        lambda image: weights[1](jax.nn.relu(weights[0](image)).mean((1, 2)))
    )(images.transpose(0, 3, 1, 2))
    weights = conv, head
    program = pruning.channel_groups(function, weights, jnp.ones((1, 8, 8, 8))).kernels
    assert [kernel[1:3] for kernel in program] == [((1,), (0,)), ((1,), (0,))]
    for kernels in (None, program):
        masks = pruning.NofM(1, 4, kernels=kernels).masks(weights, 0.25)[0].weight
        assert (masks.reshape(6, 2, 4, 3, 3).sum(2) == 1).all()
        masks = pruning.Redundant(kernels=kernels).masks(weights, 0.5, exclude=("1",))[0].weight
        filters = np.asarray(masks).reshape(6, -1)
        assert (filters.all(1) | ~filters.any(1)).all() and filters.all(1).sum() == 3


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


class Fire(nn.Module):
    """Its expanding convolutions come after the squeezing one, and before it by their names."""

    @nn.compact
    def __call__(self, images):
        squeezed = nn.relu(nn.Conv(4, (1, 1), name="squeeze")(images))
        sides = [nn.Conv(4, (1, 1), name=name)(squeezed) for name in ("left", "right")]
        return nn.relu(jnp.concatenate(sides, -1))


class Squeezing(nn.Module):
    @nn.compact
    def __call__(self, images):
        features = nn.Conv(4, (1, 1), name="stem")(images)
        for index in range(2):
            features = Fire(name=f"fire_{index}")(features)
        return nn.Dense(2, name="head")(features.mean((1, 2)))


def test_funnel_takes_the_order_of_use():
    variables = Squeezing().init(KEY, IMAGES)
    groups = pruning.channel_groups(Squeezing().apply, variables, IMAGES)
    paths = pruning.kernel_paths(variables["params"])
    fires = [f"fire_{index}/{name}" for index in range(2) for name in ("squeeze", "left", "right")]
    expected = [[f"{layer}/kernel"] for layer in ("stem", *fires, "head")]
    assert pruning.Funnel(kernels=groups.kernels).layers(paths) == expected
    assert pruning.Funnel().layers(paths) != expected
    # Most of the weights are where the names would not put them.
    params = jax.tree.map(lambda leaf: 0.1 * leaf, variables["params"])
    params["fire_0"]["squeeze"]["kernel"] *= 100
    masks = pruning.Funnel(kernels=groups.kernels).masks(params, 0.4, exclude=("stem", "head"))
    rows = pruning.layer_sparsity(params, masks)
    densities = [
        rows[f"{layer}/kernel"]["kept"] / rows[f"{layer}/kernel"]["size"] for layer in fires
    ]
    assert densities == sorted(densities, reverse=True) and densities[0] > densities[1]
    order = tuple(f"{layer}/kernel" for layer in fires)
    same = pruning.Funnel(order=order).masks(params, 0.4, exclude=("stem", "head"))
    jax.tree.map(np.testing.assert_array_equal, masks, same)


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
    [(Plain(), 4), (Plain("gelu"), 4), (Plain("sigmoid"), 8), (Plain(affine=False), 8)],
    ids=["relu", "gelu", "sigmoid", "statistics alone"],
)
def test_filters_that_redundant_removes_leave_the_network(network, kept):
    """Where a removed filter makes zeros; behind a sigmoid or a running mean it does not."""
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    variables = network.init(KEY, images)
    keys = iter(jax.random.split(KEY, 99))
    variables = jax.tree.map(lambda leaf: jax.random.uniform(next(keys), leaf.shape), variables)
    groups = pruning.channel_groups(network.apply, variables, images)
    masks = pruning.Redundant(kernels=groups.kernels).masks(
        variables["params"], 0.5, exclude=("head",)
    )
    keep = pruning.kept_filters(masks, groups)
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
