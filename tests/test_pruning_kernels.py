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
    known = pruning.Funnel(order=order, kernels=groups.kernels)
    same = known.masks(params, 0.4, exclude=("stem", "head"))
    jax.tree.map(np.testing.assert_array_equal, masks, same)
