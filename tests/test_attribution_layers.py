"""Layers of any framework: names, which are maps of one image, and maps of them against plain jax."""

import equinox as eqx
import flax.linen as nn
import frameworks
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted, num_compiled
from jax.tree_util import Partial
from maps_by_hand import by_hand, enlarged

from jaxrobust import attribution, models, studies
from jaxrobust.attribution import METHODS

IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
VARIABLES = frameworks.linen_variables(IMAGES)
LABELS = jnp.array([1, 3])
OF_LAYERS = sorted(name for name, method in METHODS.items() if method.needs_layer)


def views(function, images=IMAGES):
    """Of each layer rows and columns, or None."""
    found = attribution.layers(function, images)
    return {layer.name: layer.view and layer.view.size for layer in found}


def reason(function, name, images=IMAGES):
    return next(one.reason for one in attribution.layers(function, images) if one.name == name)


# The residual network, in every framework.

FUNCTIONS = {
    "linen": (frameworks.linen(VARIABLES), "LinenBlock_0", "LinenBlock_1"),
    "nnx": (frameworks.in_nnx(VARIABLES), "blocks/0/norms/1:relu", "blocks/1/norms/2:relu"),
    "equinox": (frameworks.in_equinox(VARIABLES), "model/norms/2:relu", "model/norms/5:relu"),
    "plain": (frameworks.plain(VARIABLES), "layers/2:relu", "layers/5:relu"),
}


def after_blocks(x):
    """What the linen network's blocks return, computed without reading any program."""
    variables = {"params": VARIABLES["params"], "batch_stats": VARIABLES["batch_stats"]}
    _, state = frameworks.LinenResNet().apply(variables, x, capture_intermediates=True)
    return [state["intermediates"][f"LinenBlock_{index}"]["__call__"][0] for index in range(2)]


def head(x):
    dense = VARIABLES["params"]["Dense_0"]
    return x.mean((1, 2)) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize("framework", FUNCTIONS)
def test_the_same_network_has_the_same_maps_in_every_framework(framework):
    function, first, last = FUNCTIONS[framework]
    assert attribution.layers(function, IMAGES).default == last
    block = after_blocks(IMAGES)[1]
    expected = enlarged(by_hand(head, block, LABELS, (8, 8)), (16, 16))
    found = attribution.grad_cam(function, IMAGES, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(found.max()) > 0
    early = attribution.grad_cam(function, IMAGES, LABELS, layer=first)
    of_linen = attribution.grad_cam(FUNCTIONS["linen"][0], IMAGES, LABELS, layer="LinenBlock_0")
    np.testing.assert_allclose(early, of_linen, atol=1e-6)


def test_the_sum_of_a_residual_block_is_not_its_branch():
    function = FUNCTIONS["linen"][0]
    branch = attribution.grad_cam(function, IMAGES, LABELS, layer="LinenBlock_1/BatchNorm_1")
    shortcut = attribution.grad_cam(function, IMAGES, LABELS, layer="LinenBlock_1/BatchNorm_2")
    whole = attribution.grad_cam(function, IMAGES, LABELS)
    assert float(jnp.abs(whole - branch).max()) > 1e-4 < float(jnp.abs(whole - shortcut).max())


@pytest.mark.parametrize("name", OF_LAYERS)
def test_all_maps_are_the_same_in_every_framework(name):
    maps = [METHODS[name](None, function, IMAGES, LABELS) for function, *_ in FUNCTIONS.values()]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], rtol=1e-3, atol=1e-5)


def test_haiku():
    def forward(images):
        hidden = jax.nn.relu(hk.Conv2D(4, 3, name="first")(images))
        return hk.Linear(5, name="last")(hidden.mean((1, 2)))

    network = hk.without_apply_rng(hk.transform(forward))
    variables = network.init(jax.random.key(0), IMAGES)
    function = Partial(network.apply, variables)
    found = views(function)
    assert found["first"] == found["first:relu"] == (16, 16) and found["last"] is None
    assert attribution.layers(function, IMAGES).default == "first:relu"
    assert attribution.grad_cam(function, IMAGES).shape == (2, 16, 16)


def one_at_a_time(function):
    return jax.vmap(lambda image: function(image[None])[0])


@pytest.mark.parametrize(
    "wrapped",
    [jax.checkpoint, jax.jit, one_at_a_time, lambda f: jax.checkpoint(one_at_a_time(f))],
    ids=["remat", "jit", "vmap", "both"],
)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_transformed_networks(wrapped, framework):
    function, *_, last = FUNCTIONS[framework]
    expected = attribution.grad_cam(function, IMAGES, LABELS)
    changed = wrapped(lambda x: function(x))
    assert attribution.layers(changed, IMAGES).default.endswith(last.split("/")[-1])
    found = attribution.grad_cam(changed, IMAGES, LABELS)
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Remat(nn.Module):
    """Blocks under nn.remat."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(frameworks.LinenBlock)(8, 1, name="block")(x)
        return nn.Dense(5, name="head")(x.mean((1, 2)))


def test_nn_remat():
    variables = Remat().init(jax.random.key(0), IMAGES)
    function = Partial(Remat().apply, variables)
    assert attribution.layers(function, IMAGES).default == "block"
    found = attribution.grad_cam(function, IMAGES, LABELS)

    def block(x):
        inner = {key: value["block"] for key, value in variables.items() if "block" in value}
        return frameworks.LinenBlock(8, 1).apply(inner, x)

    def rest(x):
        return nn.Dense(5).apply({"params": variables["params"]["head"]}, x.mean((1, 2)))

    expected = by_hand(rest, block(IMAGES), LABELS, (16, 16))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    inner = attribution.grad_cam(function, IMAGES, LABELS, layer="block/Conv_0")
    assert inner.shape == (2, 16, 16) and float(inner.max()) > 0


def in_type(framework, kind):
    """A small network that computes in a type."""
    variables = jax.tree.map(lambda leaf: leaf.astype(kind), VARIABLES)
    if framework == "linen":
        return frameworks.linen(variables, kind)
    if framework == "nnx":
        return frameworks.in_nnx(variables)
    if framework == "equinox":
        keys = jax.random.split(jax.random.key(0))
        layers = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]), eqx.nn.Linear(8, 5, key=keys[1])
        conv, linear = jax.tree.map(lambda leaf: leaf.astype(kind), layers)
        one = jax.vmap(lambda x: linear(jax.nn.relu(conv(x)).mean((1, 2))))
        return lambda images: one(images.transpose(0, 3, 1, 2).astype(kind))
    shapes = ((8, 3, 3, 3), (8, 5))
    kernel, dense = (jax.random.normal(jax.random.key(0), s).astype(kind) for s in shapes)

    def function(images):
        x = jax.lax.conv(images.astype(kind).transpose(0, 3, 1, 2), kernel, (2, 2), "SAME")
        return jax.nn.relu(x).mean((2, 3)) @ dense

    return function


@pytest.mark.parametrize("framework", FUNCTIONS)
def test_bfloat16(framework):
    whole, half = (in_type(framework, kind) for kind in (jnp.float32, jnp.bfloat16))
    expected = attribution.grad_cam(whole, IMAGES, LABELS)
    found = attribution.grad_cam(half, IMAGES, LABELS)
    assert found.dtype == jnp.float32 and float(found.max()) > 0
    assert np.corrcoef(np.ravel(found), np.ravel(expected))[0, 1] > 0.98


# Transformers.


class Vit(nn.Module):
    """A vision transformer of two blocks, read at its class token or at the mean of all."""

    heads: int = 4
    patch: int = 1
    read: str = "class"

    def setup(self):
        self.embed = nn.Conv(16, (self.patch,) * 2, (self.patch,) * 2)
        self.cls = self.param("cls", nn.initializers.normal(), (1, 1, 16))
        self.norms = [nn.LayerNorm() for _ in range(5)]
        self.attentions = [nn.MultiHeadDotProductAttention(self.heads) for _ in range(2)]
        self.wide = [nn.Dense(32) for _ in range(2)]
        self.narrow = [nn.Dense(16) for _ in range(2)]
        self.head = nn.Dense(3)

    def tokens(self, x):
        x = self.embed(x)
        x = x.reshape(len(x), -1, 16)
        if self.read == "class":
            x = jnp.concatenate([jnp.broadcast_to(self.cls, (len(x), 1, 16)), x], 1)
        return x

    def block(self, x, index):
        y = self.norms[2 * index](x)
        x = x + self.attentions[index](y, y)
        return x + self.narrow[index](nn.gelu(self.wide[index](self.norms[2 * index + 1](x))))

    def logits(self, x):
        x = self.norms[4](x)
        return self.head(x[:, 0] if self.read == "class" else x.mean(1))

    def __call__(self, x):
        return self.logits(self.block(self.block(self.tokens(x), 0), 1))


def transformer(images, **options):
    network = Vit(**options)
    return network, network.init(jax.random.key(0), images)


SMALL = jax.random.uniform(jax.random.key(2), (2, 8, 8, 3))


def test_a_class_token_is_read_behind_the_last_block_and_all_tokens_before():
    """The default is what enters the last block, with the class token left out."""
    network, variables = transformer(SMALL)
    classifier = Partial(network.apply, variables)
    labels = jnp.array([2, 0])
    tokens = network.apply(variables, SMALL, method=lambda m, x: m.block(m.tokens(x), 0))

    def rest(x):
        return network.apply(variables, x, method=lambda m, x: m.logits(m.block(x, 1)))

    found = attribution.grad_cam(classifier, SMALL, labels)
    np.testing.assert_allclose(found, by_hand(rest, tokens, labels, (8, 8)), atol=1e-6)
    assert float(found.max()) > 0
    assert attribution.layers(classifier, SMALL).default == "narrow_0:add"


@pytest.mark.parametrize(
    "read",
    [
        lambda x: jnp.take(x, 0, axis=1),
        lambda x: jax.lax.dynamic_index_in_dim(x, 0, 1, keepdims=False),
        lambda x: jnp.split(x, [1], axis=1)[0][:, 0],
        lambda x: x.transpose(1, 0, 2)[:1].reshape(len(x), -1),
    ],
    ids=["take", "dynamic", "split", "reshape"],
)
def test_however_the_class_token_is_read(read):
    network, variables = transformer(SMALL)

    def function(images):
        x = network.apply(variables, images, method="tokens")
        x = network.apply(variables, x, 0, method="block")
        x = network.apply(variables, x, 1, method="block")
        return read(x)[:, :3]

    assert attribution.layers(function, SMALL).default == "narrow_0:add"
    assert float(attribution.grad_cam(function, SMALL).max()) > 0


def test_without_a_class_token_the_last_value_of_all_is_the_default():
    network, variables = transformer(SMALL, read="mean")
    classifier = Partial(network.apply, variables)
    assert attribution.layers(classifier, SMALL).default == "norms_4"


@pytest.mark.parametrize("shape", [(8, 8), (4, 12)])
def test_heads_are_no_map(shape):
    images = SMALL[:, : shape[0]] if shape[0] == 8 else jnp.ones((2, 4, 12, 3))
    network, variables = transformer(images)
    classifier = Partial(network.apply, variables)
    found = views(classifier, images)
    for word in ("query", "key", "value"):
        assert found[f"attentions_0/{word}"] is None
    assert found["attentions_0"] == found["norms_1"] == found["embed"] == shape
    assert "attention heads" in reason(classifier, "attentions_1/value", images)
    with pytest.raises(
        ValueError, match=r"value' has the output \[\d+, 4, 4\], .* heads are; .* embed"
    ):
        attribution.grad_cam(classifier, images, layer="attentions_1/value")


@pytest.mark.parametrize("name", OF_LAYERS)
@pytest.mark.parametrize("place", [(0, 7), (5, 2)])
def test_evidence_is_drawn_where_it_is(name, place):
    """One bright pixel, in a ViT whose tokens all count alike."""
    network, variables = transformer(SMALL, read="mean")
    params = dict(variables["params"])
    params["embed"] = {"kernel": jnp.ones((1, 1, 3, 16)) * jnp.arange(16), "bias": jnp.zeros(16)}
    params["head"] = {"kernel": jnp.ones((16, 3)) * jnp.array([1.0, -1.0, 0]), "bias": jnp.zeros(3)}
    params["norms_4"] = {"scale": jnp.ones(16) * jnp.arange(16), "bias": jnp.zeros(16)}
    image = jnp.zeros((1, 8, 8, 3)).at[0, *place].set(1.0)
    classifier = Partial(network.apply, {"params": params})
    maps = METHODS[name](None, classifier, image, jnp.array([0]), layer="embed")
    if name in ("grad_cam", "eigen_cam", "score_cam", "hires_cam") and float(maps.max()) == 0:
        maps = METHODS[name](None, classifier, image, jnp.array([1]), layer="embed")
    assert np.unravel_index(np.argmax(maps[0]), (8, 8)) == place


class Windowed(nn.Module):
    """Attention in shifted windows as Swin's, put back and added; `whole` says what is read."""

    whole: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (1, 1), name="embed")(x)
        batch, height, width, channels = x.shape
        y = jnp.roll(x, (-2, -2), (1, 2)).reshape(batch, height // 4, 4, width // 4, 4, channels)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, channels)
        y = nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        if not self.whole:
            y = nn.Dense(3, name="head")(nn.relu(nn.Dense(8, name="last")(y)).mean(1))
            return y.reshape(batch, -1, 3).mean(1)
        y = y.reshape(batch, height // 4, width // 4, 4, 4, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x + jnp.roll(y.reshape(x.shape), (2, 2), (1, 2))
        parts = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
        merged = nn.Dense(8, name="merge")(jnp.concatenate(parts, -1))
        return nn.Dense(3, name="head")(nn.relu(nn.LayerNorm(name="norm")(merged)).mean((1, 2)))


def test_windows_are_no_map_until_they_are_put_back():
    network = Windowed()
    classifier = Partial(network.apply, network.init(jax.random.key(0), SMALL))
    found = views(classifier, SMALL)
    assert found["attention"] is found["attention/value"] is None
    assert found["embed"] == found["attention/out:add"] == (8, 8)
    assert found["merge"] == found["norm:relu"] == (4, 4)
    assert attribution.layers(classifier, SMALL).default == "norm:relu"
    message = (
        r"'attention' has the output \[4, 16, 8\], .* leading axis .* windows .* one of: .*embed"
    )
    with pytest.raises(ValueError, match=message):
        attribution.grad_cam(classifier, SMALL, layer="attention")


@pytest.mark.parametrize("name", ["grad_cam", "layer_cam", "eigen_cam"])
def test_evidence_outside_the_first_window_is_seen(name):
    """Of a network that never leaves its windows the last map is what enters them."""
    network = Windowed(whole=False)
    variables = network.init(jax.random.key(0), SMALL)
    classifier = Partial(network.apply, variables)
    assert attribution.layers(classifier, SMALL).default == "embed"
    image = jnp.zeros((1, 8, 8, 3)).at[0, 7, 6].set(1.0)
    maps = [METHODS[name](None, classifier, image, jnp.array([label]))[0] for label in range(3)]
    largest = max(maps, key=lambda one: float(one.max()))
    assert np.unravel_index(np.argmax(largest), (8, 8)) == (7, 6)


def test_tokens_by_reshape():
    network, variables = transformer(SMALL)
    classifier = Partial(network.apply, variables)
    expected = attribution.grad_cam(classifier, SMALL, layer="norms_1")
    for reshape in ((8, 8), lambda tokens: tokens[1:].reshape(8, 8, -1)):
        for name in OF_LAYERS:
            found = METHODS[name](None, classifier, SMALL, layer="norms_1", reshape=reshape)
            assert found.shape == (2, 8, 8)
        found = attribution.grad_cam(classifier, SMALL, layer="norms_1", reshape=reshape)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    wrong = [
        ({"reshape": (9, 9)}, ValueError, "of at most 65 tokens, .* got 9 \\* 9"),
        ({"reshape": 8}, TypeError, "`reshape` must be a function .* got 8"),
        ({"reshape": (8, 8, 1)}, ValueError, "`reshape` must be .* got \\(8, 8, 1\\)"),
        (
            {"reshape": lambda tokens: tokens},
            ValueError,
            r"must return \[H', W', C'\] .* \(65, 16\)",
        ),
        ({"reshape": (8, 8), "layer": "embed"}, ValueError, r"`reshape` is for tokens \[T, C\]"),
    ]
    for options, error, message in wrong:
        with pytest.raises(error, match=message):
            attribution.grad_cam(classifier, SMALL, **{"layer": "norms_1", **options})


def test_tokens_that_cannot_be_followed_need_reshape():
    weights = {"embed": jnp.ones((3, 4)), "head": jnp.arange(8.0).reshape(4, 2)}

    def function(weights, images):
        tokens = images.reshape(len(images), -1, 3) @ weights["embed"]
        return jnp.cumsum(tokens, 1).mean(1) @ weights["head"]

    classifier = Partial(function, weights)
    assert attribution.layers(classifier, SMALL).default == "embed"
    assert "not known" in reason(classifier, "embed:cumsum", SMALL)
    with pytest.raises(ValueError, match="where its entries stand in the image is not known"):
        attribution.grad_cam(classifier, SMALL, layer="embed:cumsum")
    found = attribution.grad_cam(classifier, SMALL, layer="embed:cumsum", reshape=(8, 8))
    assert found.shape == (2, 8, 8) and float(found.max()) > 0


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        return x + nn.MultiHeadDotProductAttention(2)(y, y), None


class Scanned(nn.Module):
    """Blocks in nn.scan."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (4, 4), (4, 4), name="embed")(x).reshape(len(x), -1, 8)
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Block, length=2, **options)(name="blocks")(x, None)
        return nn.Dense(5, name="head")(nn.relu(x).mean(1))


def test_what_goes_into_a_scan_and_comes_out_of_it():
    classifier = Partial(Scanned().apply, Scanned().init(jax.random.key(0), IMAGES))
    found = attribution.layers(classifier, IMAGES)
    assert found.default == "blocks:relu" and views(classifier)["blocks"] == (4, 4)
    assert not any("LayerNorm" in layer.name for layer in found)
    assert float(attribution.grad_cam(classifier, IMAGES).max()) > 0


# What is followed on the way.


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_images_that_are_resized_first(method):
    inner = FUNCTIONS["linen"][0]

    def function(images):
        return inner(jax.image.resize(images, (len(images), 32, 32, 3), method))

    found = views(function)
    assert attribution.layers(function, IMAGES).default == "LinenBlock_1"
    assert found["LinenBlock_1"] == (16, 16)


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("vgg", "Conv_1:reduce_window_max"),
        ("explicit_padding", "BatchNorm_0:reduce_window_max"),
        ("unet", "Conv_2:relu"),
        ("densenet", "Conv_3:div"),
        ("squeeze_and_excite", "Conv_1:leaky_relu"),
        ("mixer", "Dense_1:add"),
    ],
)
def test_the_default_of_many_networks(name, default):
    function = frameworks.of_layers(frameworks.LINEN[name], IMAGES)
    assert attribution.layers(function, IMAGES).default == default
    assert attribution.grad_cam(function, IMAGES).shape == (2, 16, 16)


def test_what_is_turned_round_is_turned_back():
    """Axes in another order are put in order; rows that run backwards are no map."""
    weights = jax.random.normal(jax.random.key(0), (3, 3, 3, 4))

    def function(turned, images):
        x = jax.lax.conv_general_dilated(
            images, weights, (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        with jax.named_scope("turned"):
            x = turned(x)
        return x.sum((1, 2, 3))[:, None] * jnp.ones(2)

    def with_(turned):
        return lambda images: function(turned, images)

    straight = attribution.layer_cam(with_(lambda x: 2.0 * x), IMAGES, LABELS[:2] % 2, "turned")
    for axes in ((0, 3, 1, 2), (0, 2, 1, 3), (0, 2, 3, 1)):
        classifier = with_(lambda x, axes=axes: 2.0 * x.transpose(axes))
        found = attribution.layer_cam(classifier, IMAGES, LABELS % 2, "turned")
        np.testing.assert_allclose(found, straight, rtol=1e-5, atol=1e-6)
    assert "do not run in order" in reason(with_(lambda x: 2.0 * x[:, ::-1]), "turned")


def test_names_of_equal_networks_are_their_own():
    def named(name):
        def function(images):
            with jax.named_scope(name):
                x = jnp.tanh(images @ jnp.ones((3, 2)))
            return x.mean((1, 2))

        return function

    functions = [named("one"), named("other")]
    found = [[layer.name for layer in attribution.layers(one, IMAGES)] for one in functions]
    assert found[0] == ["one"] and found[1] == ["other"]


def test_called_again_nothing_is_traced_or_compiled():
    def apply(variables, images):
        return frameworks.LinenResNet().apply(variables, images)

    counted = Counted(apply)
    for name in OF_LAYERS:
        for labels in (None, LABELS):
            METHODS[name](None, Partial(counted, VARIABLES), IMAGES, labels, reshape=None)
    traces, compiled = len(counted.traces), num_compiled()
    other = jax.tree.map(lambda leaf: 2 * leaf, VARIABLES)
    compiled_by_hand = num_compiled() - compiled
    for name in OF_LAYERS:
        for labels in (None, LABELS):
            METHODS[name](None, Partial(counted, other), IMAGES, labels)
    assert len(counted.traces) == traces and num_compiled() == compiled + compiled_by_hand


def test_inside_compiled_code():
    function = FUNCTIONS["linen"][0]
    expected = attribution.grad_cam(function, IMAGES, LABELS)
    compiled = jax.jit(lambda function, x: attribution.grad_cam(function, x, LABELS))
    np.testing.assert_allclose(compiled(function, IMAGES), expected, atol=1e-6)


def test_studies_take_the_same_default():
    network, variables = transformer(SMALL)
    classifier = Partial(network.apply, variables)
    (entry, *_) = studies.explanations(
        classifier, SMALL, np.array([0, 1]), [0, 1], model="vit", class_names=["a", "b", "c"]
    )
    assert entry["layer"] == "narrow_0:add"


# Names and lists.


class Dotted(nn.Module):
    """Blocks with dots in their names, of which a method is called."""

    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = Coded(name=name).encode(x)
        return nn.Dense(2, name="head")(x.mean((1, 2)))


class Coded(nn.Module):
    @nn.compact
    def encode(self, x):
        return nn.relu(nn.Conv(4, (3, 3), name="conv.a")(x))


@pytest.mark.parametrize("names", [("layer1.0", "layer1.1"), ("a.b", "a.c"), ("one", "one.2.x")])
def test_dots_in_names_of_modules(names):
    network = Dotted(names)
    classifier = Partial(network.apply, network.init(jax.random.key(0), IMAGES))
    found = [layer.name for layer in attribution.layers(classifier, IMAGES)]
    expected = [part for name in names for part in (f"{name}/conv.a", name)]
    assert found == [*expected, "head"]
    assert attribution.grad_cam(classifier, IMAGES, layer=names[0]).shape == (2, 16, 16)


def test_modules_without_weights_are_told_apart_by_numbers():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), name="conv")(x)
            for name in ("act.0", "act.1"):
                x = Doubled(name=name)(x)
            return nn.Dense(2, name="head")(x.mean((1, 2)))

    class Doubled(nn.Module):
        def __call__(self, x):
            return 2 * jnp.tanh(x)

    classifier = Partial(Plain().apply, Plain().init(jax.random.key(0), IMAGES))
    found = [layer.name for layer in attribution.layers(classifier, IMAGES)]
    assert found == ["conv", "act.0", "act.1", "head"]


def test_what_comes_before_all_weights_is_not_proposed():
    classifier = models.Classifier(
        frameworks.LinenResNet().apply, VARIABLES, np.float32([0.5, 0.4, 0.3]), np.full(3, 0.2)
    )
    found = attribution.layers(classifier, IMAGES)
    before = [layer.name for layer in found if layer.view and not layer.is_learned]
    assert before and all(name.startswith("mean") for name in before)
    assert str(found).count("16 x 16 (before all weights)") == len(before)
    with pytest.raises(ValueError, match="choose one of: ") as error:
        attribution.grad_cam(classifier, IMAGES, layer="nowhere")
    assert " mean" not in str(error.value) and "LinenBlock_0" in str(error.value)
    assert attribution.grad_cam(classifier, IMAGES, layer=before[0]).shape == (2, 16, 16)


def test_without_a_convolution_what_there_is_is_proposed():
    def function(images):
        return jnp.tanh(images).mean((1, 2))

    with pytest.raises(ValueError, match=r"choose one of: images:tanh \[16, 16, 3\]"):
        attribution.grad_cam(function, IMAGES, layer="nowhere")
