"""Networks written once and built in linen, nnx and equinox, none of which knows its widths twice.

A body calls `layer(name, kind, x, ...)`. What is built in nnx and equinox reads its widths from its
weights; of linen the check of shapes is left out, which is all that ties it to its attributes.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

Layer = Callable[..., Any]


def squeezenet(layer: Layer, x: Any) -> Any:
    """Fire modules: branches that are concatenated."""
    x = jax.nn.relu(layer("stem", "conv", x, 8, 3))
    for index in (0, 1):
        squeezed = jax.nn.relu(layer(f"fire_{index}/squeeze", "conv", x, 4, 1))
        branches = [
            jax.nn.relu(layer(f"fire_{index}/left", "conv", squeezed, 6, 1)),
            jax.nn.relu(layer(f"fire_{index}/right", "conv", squeezed, 8, 3)),
        ]
        x = jnp.concatenate(branches, -1)
    return layer("head", "dense", x.mean((1, 2)), 5)


def residual(layer: Layer, x: Any) -> Any:
    """BatchNorm, a skip, a shortcut convolution."""
    x = jax.nn.relu(layer("norm", "batch_norm", layer("stem", "conv", x, 8, 3)))
    y = jax.nn.relu(layer("norm_0", "batch_norm", layer("conv_0", "conv", x, 6, 3)))
    x = jax.nn.relu(x + layer("norm_1", "batch_norm", layer("conv_1", "conv", y, 8, 3)))
    y = jax.nn.relu(layer("conv_2", "conv", x, 12, 3))
    x = layer("conv_3", "conv", y, 10, 3) + layer("shortcut", "conv", x, 10, 1)
    return layer("head", "dense", jax.nn.relu(x).mean((1, 2)), 5)


def resnext(layer: Layer, x: Any) -> Any:
    """A bottleneck with grouped convolutions."""
    x = jax.nn.relu(layer("stem", "conv", x, 8, 3))
    y = jax.nn.relu(layer("reduce", "conv", x, 12, 1))
    y = jax.nn.relu(layer("grouped", "conv", y, 16, 3, 4))
    x = jax.nn.relu(x + layer("expand", "conv", y, 8, 1))
    return layer("head", "dense", x.mean((1, 2)), 5)


def squeeze_and_excite(layer: Layer, x: Any) -> Any:
    """Channels weighed by what is in the image; the sigmoid of nothing is one half."""
    x = jax.nn.swish(layer("stem", "conv", x, 8, 3))
    squeezed = jax.nn.relu(layer("squeeze", "dense", x.mean((1, 2)), 4))
    x = x * jax.nn.sigmoid(layer("excite", "dense", squeezed, 8))[:, None, None]
    return layer("head", "dense", jax.nn.relu(layer("conv", "conv", x, 6, 3)).mean((1, 2)), 5)


def not_zero(layer: Layer, x: Any) -> Any:
    """Channels that are not zero where their filters are."""
    x = jax.nn.sigmoid(layer("stem", "conv", x, 8, 3))
    x = jnp.exp(layer("conv_0", "conv", x, 6, 3)) + 0.5
    x = jnp.cos(layer("norm", "batch_norm", layer("conv_1", "conv", x, 6, 3)))
    return layer("head", "dense", x.reshape(len(x), -1), 5)


def flattened(layer: Layer, x: Any) -> Any:
    """A flatten of two branches at four by four positions."""
    left = jax.nn.relu(layer("left", "conv", x, 6, 3))
    right = jax.nn.relu(layer("right", "conv", x, 4, 3))
    x = jnp.concatenate([left, right], -1)[:, ::2, ::2]
    hidden = jax.nn.relu(layer("hidden", "dense", x.reshape(len(x), -1), 12))
    return layer("head", "dense", hidden, 5)


def pixel_shuffle(layer: Layer, x: Any) -> Any:
    """Channels become pixels, in the order of TensorFlow and in that of PyTorch."""
    for index in (0, 1):
        y = layer(f"wide_{index}", "conv", x, 24, 3)
        batch, height, width, channels = y.shape
        if index == 0:
            y = y.reshape(batch, height, width, 2, 2, channels // 4)
            y = y.transpose(0, 1, 3, 2, 4, 5)
        else:
            y = y.reshape(batch, height, width, channels // 4, 2, 2)
            y = y.transpose(0, 1, 4, 2, 5, 3)
        x = jax.nn.relu(y.reshape(batch, 2 * height, 2 * width, channels // 4))
    return layer("head", "dense", layer("last", "conv", x, 8, 3).mean((1, 2)), 5)


def unet_encoder(layer: Layer, x: Any) -> Any:
    """Pooling, the way back up, a skip, layers that are used twice and one that is not used."""
    first = jax.nn.relu(layer("first", "conv", x, 8, 3))
    small = first.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
    second = jax.nn.relu(layer("second", "conv", small, 12, 3))
    second = jax.nn.relu(layer("twice", "conv", second, 12, 3))
    second = jax.nn.relu(layer("twice", "conv", second, 12, 3))
    up = jnp.repeat(jnp.repeat(second, 2, 1), 2, 2)
    layer("idle", "conv", second, 4, 3)
    last = jax.nn.relu(layer("last", "conv", jnp.concatenate([first, up], -1), 6, 3))
    return layer("head", "dense", last.mean((1, 2)), 5)


def group_norm(layer: Layer, x: Any) -> Any:
    """A step of GroupNorm is one channel of each group."""
    x = jax.nn.relu(layer("norm", "group_norm", layer("stem", "conv", x, 12, 3), 4))
    x = jax.nn.relu(layer("conv", "conv", x, 6, 3))
    return layer("head", "dense", x.mean((1, 2)), 5)


def mixer(layer: Layer, x: Any) -> Any:
    """Tokens and channels in turns."""
    x = layer("patches", "conv", x, 8, 4, 1, 4)
    x = x.reshape(len(x), -1, x.shape[-1])
    y = layer("norm_0", "layer_norm", x).swapaxes(1, 2)
    y = jax.nn.gelu(layer("tokens_0", "dense", y, 6))
    x = x + layer("tokens_1", "dense", y, x.shape[1]).swapaxes(1, 2)
    y = jax.nn.gelu(layer("channels_0", "dense", layer("norm_1", "layer_norm", x), 12))
    x = x + layer("channels_1", "dense", y, 8)
    return layer("head", "dense", x.mean(1), 5)


def _attention(layer: Layer, name: str, x: Any, dim: int = 4) -> Any:
    query, key, value = (
        layer(f"{name}/{word}", "dense", x, 3 * dim) for word in ("query", "key", "value")
    )
    query, key, value = (y.reshape(*y.shape[:2], -1, dim) for y in (query, key, value))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(dim))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return layer(f"{name}/out", "dense", y.reshape(*y.shape[:2], -1), 8)


def vit(layer: Layer, x: Any) -> Any:
    """Patches, places, heads, a hidden width."""
    x = layer("patches", "conv", x, 8, 4, 1, 4)
    x = x.reshape(len(x), -1, x.shape[-1])
    x = x + _attention(layer, "attention", layer("norm_0", "layer_norm", x))
    y = jax.nn.gelu(layer("hidden", "dense", layer("norm_1", "layer_norm", x), 16))
    x = x + layer("out", "dense", y, 8)
    return layer("head", "dense", layer("norm_2", "layer_norm", x)[:, 0], 5)


def windows(layer: Layer, x: Any) -> Any:
    """Attention in shifted windows, as Swin's."""
    x = layer("patches", "conv", x, 8, 2, 1, 2)
    batch, height, width, channels = x.shape
    y = jnp.roll(x, (1, 1), (1, 2))
    y = y.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    y = _attention(layer, "attention", y.reshape(-1, 4, channels))
    y = y.reshape(batch, height // 2, width // 2, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    x = x + jnp.roll(y.reshape(batch, height, width, channels), (-1, -1), (1, 2))
    return layer("head", "dense", jax.nn.relu(x).mean((1, 2)), 5)


def convnext(layer: Layer, x: Any) -> Any:
    """LayerNorm, a hidden width of four times the channels, a block that is scaled."""
    x = layer("norm_0", "layer_norm", layer("patches", "conv", x, 8, 4, 1, 4))
    y = layer("norm_1", "layer_norm", layer("wide", "conv", x, 8, 3))
    y = layer("out", "dense", jax.nn.gelu(layer("hidden", "dense", y, 16)), 8)
    return layer("head", "dense", (x + 0.5 * y).mean((1, 2)), 5)


# Of each body its groups: sizes in the order of use, and which of them something couples.
BODIES: dict[str, tuple[Callable[[Layer, Any], Any], dict[str, int], tuple[str, ...]]] = {
    "squeezenet": (
        squeezenet,
        {
            "stem": 8,
            "fire_0/squeeze": 4,
            "fire_0/left": 6,
            "fire_0/right": 8,
            "fire_1/squeeze": 4,
            "fire_1/left": 6,
            "fire_1/right": 8,
        },
        (),
    ),
    "residual": (residual, {"stem": 8, "conv_0": 6, "conv_2": 12, "conv_3": 10}, ()),
    "resnext": (resnext, {"stem": 8, "reduce": 3, "grouped": 4}, ()),
    "squeeze_and_excite": (squeeze_and_excite, {"stem": 8, "squeeze": 4, "conv": 6}, ()),
    "not_zero": (not_zero, {"stem": 8, "conv_0": 6, "conv_1": 6}, ()),
    "flattened": (flattened, {"left": 6, "right": 4, "hidden": 12}, ()),
    "pixel_shuffle": (pixel_shuffle, {"wide_0": 6, "wide_1": 6, "last": 8}, ()),
    "unet_encoder": (unet_encoder, {"first": 8, "second": 12, "last": 6}, ()),
    "group_norm": (group_norm, {"stem": 3, "conv": 6}, ("stem",)),
    "mixer": (mixer, {"patches": 8, "tokens_0": 6, "channels_0": 12}, ("patches",)),
    "vit": (vit, {"patches": 8, "attention/query": 3, "hidden": 16}, ("patches",)),
    "windows": (windows, {"patches": 8, "attention/query": 3}, ()),
    "convnext": (convnext, {"patches": 8, "wide": 8, "hidden": 16}, ("patches", "wide")),
}


class Linen(nn.Module):
    """A body in linen."""

    body: Callable[[Layer, Any], Any]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        made: dict[str, nn.Module] = {}

        def layer(name: str, kind: str, x: Any, features: int = 0, *sizes: int) -> Any:
            if name not in made:
                word = name.replace("/", ".")
                if kind == "conv":
                    size, groups, stride = (*sizes, 1, 1)[:3]
                    made[name] = nn.Conv(
                        features,
                        (size, size),
                        (stride, stride),
                        "SAME" if stride == 1 else "VALID",
                        feature_group_count=groups,
                        name=word,
                    )
                elif kind == "dense":
                    made[name] = nn.Dense(features, name=word)
                elif kind == "batch_norm":
                    made[name] = nn.BatchNorm(use_running_average=True, name=word)
                elif kind == "group_norm":
                    made[name] = nn.GroupNorm(features, name=word)
                else:
                    made[name] = nn.LayerNorm(name=word)
            return made[name](x)

        return self.body(layer, x)


class Nnx(nnx.Module):
    """A body in nnx."""

    def __init__(self, body: Callable[[Layer, Any], Any], images: Any) -> None:
        self.body = body
        self.layers = nnx.Dict({})
        rngs = nnx.Rngs(0)

        def make(kind: str, inputs: int, features: int, sizes: tuple[int, ...]) -> nnx.Module:
            if kind == "conv":
                size, groups, stride = (*sizes, 1, 1)[:3]
                return nnx.Conv(
                    inputs,
                    features,
                    (size, size),
                    strides=stride,
                    padding="SAME" if stride == 1 else "VALID",
                    feature_group_count=groups,
                    rngs=rngs,
                )
            if kind == "dense":
                return nnx.Linear(inputs, features, rngs=rngs)
            if kind == "batch_norm":
                return nnx.BatchNorm(inputs, use_running_average=True, rngs=rngs)
            if kind == "group_norm":
                return nnx.GroupNorm(inputs, features, rngs=rngs)
            return nnx.LayerNorm(inputs, rngs=rngs)

        def layer(name: str, kind: str, x: Any, features: int = 0, *sizes: int) -> Any:
            word = name.replace("/", ".")
            if word not in self.layers:
                self.layers[word] = make(kind, x.shape[-1], features, sizes)
            return self.layers[word](x)

        body(layer, images)

    def __call__(self, x: Any) -> Any:
        return self.body(lambda name, kind, x, *_: self.layers[name.replace("/", ".")](x), x)


class Equinox(eqx.Module):
    """A body in equinox, whose layers take one image with its channels first."""

    body: Any = eqx.field(static=True)
    layers: dict[str, Any]

    def __init__(self, body: Callable[[Layer, Any], Any], images: Any) -> None:
        self.body, self.layers = body, {}
        keys = iter(jax.random.split(jax.random.key(0), 50))

        def make(kind: str, inputs: int, features: int, sizes: tuple[int, ...]) -> Any:
            if kind == "conv":
                size, groups, stride = (*sizes, 1, 1)[:3]
                padding = size // 2 if stride == 1 else 0
                return eqx.nn.Conv2d(
                    inputs, features, size, stride, padding, groups=groups, key=next(keys)
                )
            if kind == "dense":
                return eqx.nn.Linear(inputs, features, key=next(keys))
            if kind == "batch_norm":
                return {
                    "scale": jnp.ones(inputs),
                    "bias": jnp.ones(inputs) / 9,
                    "mean": jnp.ones(inputs) / 7,
                    "var": jnp.ones(inputs),
                }
            return {"scale": jnp.ones(inputs), "bias": jnp.ones(inputs) / 9}

        def layer(name: str, kind: str, x: Any, features: int = 0, *sizes: int) -> Any:
            if name not in self.layers:
                self.layers[name] = make(kind, x.shape[-1], features, sizes)
            return self.call(name, kind, x, features)

        body(layer, images)

    def call(self, name: str, kind: str, x: Any, groups: int = 0) -> Any:
        layer = self.layers[name]
        if kind == "conv":
            return jnp.moveaxis(jax.vmap(layer)(jnp.moveaxis(x, -1, 1)), 1, -1)
        if kind == "dense":
            flat = jax.vmap(layer)(x.reshape(-1, x.shape[-1]))
            return flat.reshape(*x.shape[:-1], -1)
        if kind == "batch_norm":
            return (x - layer["mean"]) * jax.lax.rsqrt(layer["var"] + 1e-5) * layer[
                "scale"
            ] + layer["bias"]
        y = x.reshape(*x.shape[:-1], groups, -1) if kind == "group_norm" else x[..., None, :]
        axes = (1, 2, -1) if kind == "group_norm" else -1
        mean, var = y.mean(axes, keepdims=True), y.var(axes, keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(x.shape)
        return y * layer["scale"] + layer["bias"]

    def __call__(self, x: Any) -> Any:
        return self.body(lambda name, kind, x, *sizes: self.call(name, kind, x, *sizes[:1]), x)


def built(framework: str, name: str, images: Any) -> tuple[Callable[[Any, Any], Any], Any]:
    """(a function of weights and images, weights) of a body."""
    body = BODIES[name][0]
    if framework == "linen":
        module = Linen(body)
        return module.apply, module.init(jax.random.key(0), images)
    made = {"nnx": Nnx, "equinox": Equinox}[framework](body, images)
    return _call, made


def _call(model: Any, images: Any) -> Any:
    return model(images)


def loose(monkeypatch: Any) -> None:
    """Takes from linen the check that a parameter has the shape that the attributes say."""
    param = nn.Module.param

    def given(self: Any, name: str, *arguments: Any, **options: Any) -> Any:
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return param(self, name, *arguments, **options)

    monkeypatch.setattr(nn.Module, "param", given)
