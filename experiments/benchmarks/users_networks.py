"""The networks of layers.json as users of each framework would write them, with PyTorch's weights.

Each function takes (name, PyTorch's weights) and returns logits_fn. The layers are those of the
framework; nothing in them is from jaxrobust.
"""

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from experiments.benchmarks.harness import IMAGENET_MEAN, IMAGENET_STD

_TABLE = json.loads(Path(__file__).with_name("layers.json").read_text(encoding="utf-8"))
_MEAN, _STD = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
Arrays = dict[str, Any]
Weights = dict[str, np.ndarray]
LogitsFn = Callable[[Any], Any]


def _layers(name: str) -> Any:
    return next(entry["layers"] for entry in _TABLE if entry["architecture"] == name)


def arrays_of(weights: Weights) -> list[Arrays]:
    """Returns the layers of a state dict in order, with HWIO kernels and the names of flax."""
    names = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    found: list[Arrays] = []
    for _, entries in itertools.groupby(weights.items(), lambda item: item[0].rpartition(".")[0]):
        layer = {path.rpartition(".")[2]: jnp.asarray(array) for path, array in entries}
        layer.pop("num_batches_tracked", None)
        layer = {names.get(leaf, leaf): array for leaf, array in layer.items()}
        if "mean" in layer:
            layer["scale"] = layer.pop("kernel")
        else:
            order = (2, 3, 1, 0) if layer["kernel"].ndim == 4 else (1, 0)
            layer["kernel"] = layer["kernel"].transpose(order)
        found.append(layer)
    return found


def _pad(x: Any, extra: int) -> Any:
    return jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (extra, extra)))


def _max(x: Any, size: int, stride: int, pad: int) -> Any:
    return nn.max_pool(x, (size, size), (stride, stride), ((pad, pad), (pad, pad)))


# Layers without weights. Images may be [B, H, W, C] or [C, H, W].
_PLAIN: dict[str, Callable[..., Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "max": _max,
    "average": lambda x, _: x.mean((1, 2)),
    "flatten": lambda x: x,
    "pad": _pad,
}


def _evaluate(layers: Sequence[Any], x: Any, layer: Callable[[str, Any, Any], Any]) -> Any:
    """Evaluates layers; `layer`, (kind, sizes, x) -> y, evaluates those with weights."""
    for kind, *sizes in layers:
        if kind == "residual":
            start, branch, shortcut, *scale = sizes
            active = _evaluate(start, x, layer)
            y = _evaluate(branch, active, layer)
            x = _evaluate(shortcut, active, layer) if shortcut else x
            x = x + (scale[0] * y if scale else y)
        elif kind in _PLAIN:
            x = _PLAIN[kind](x, *sizes)
        else:
            x = layer(kind, sizes, x)
    return x


def _with_weights(layers: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yields (kind, sizes) of the layers that have weights, in PyTorch's order."""
    for kind, *sizes in layers:
        if kind == "residual":
            for part in sizes[:3]:
                yield from _with_weights(part)
        elif kind not in _PLAIN:
            yield kind, sizes


def _made(layers: Sequence[Any], weights: Weights, make: Callable[..., Any]) -> list[Any]:
    """Calls `make` with (kind, sizes, arrays) of every layer that has weights."""
    pairs = zip(_with_weights(layers), arrays_of(weights), strict=True)
    return [make(kind, sizes, own) for (kind, sizes), own in pairs]


def _in_lax(layers: Any, arrays: list[Arrays], images: Any) -> Any:
    left = iter(arrays)

    def layer(kind: str, sizes: Any, x: Any) -> Any:
        own = next(left)
        if kind == "norm":
            return (x - own["mean"]) * (own["scale"] * lax.rsqrt(own["var"] + 1e-5)) + own["bias"]
        if kind == "dense":
            y = x @ own["kernel"]
        else:
            _, _, size, stride, groups, *_ = sizes
            form: Any = {"feature_group_count": groups}
            form["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
            pads = ((size // 2, size // 2),) * 2
            y = lax.conv_general_dilated(x, own["kernel"], (stride, stride), pads, **form)
        return y + own["bias"] if "bias" in own else y

    mean, std = _MEAN.astype(images.dtype), _STD.astype(images.dtype)
    return _evaluate(layers, (images - mean) / std, layer)


def of_arrays(name: str, weights: Weights) -> LogitsFn:
    """Returns a function in jax.lax, with its weights as arguments."""
    return jax.tree_util.Partial(functools.partial(_in_lax, _layers(name)), arrays_of(weights))


def in_lax(name: str, weights: Weights) -> LogitsFn:
    """Returns the same function as a closure over its weights."""
    network = of_arrays(name, weights)
    return lambda images: network(images)


def in_linen(name: str, weights: Weights) -> LogitsFn:
    """Returns a module of linen's own layers, whose names are their numbers."""
    layers = _layers(name)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, images: Any) -> Any:
            numbers = map(str, itertools.count())

            def layer(kind: str, sizes: Any, x: Any) -> Any:
                named: Any = {"name": next(numbers)}
                if kind == "norm":
                    return nn.BatchNorm(use_running_average=True, **named)(x)
                if kind == "dense":
                    return nn.Dense(sizes[1], **named)(x)
                _, features, size, stride, *_ = sizes
                window: Any = {"strides": stride, "padding": size // 2, "use_bias": False}
                return nn.Conv(features, (size, size), **window, **named)(x)

            return _evaluate(layers, (images - _MEAN) / _STD, layer)

    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for number, own in enumerate(arrays_of(weights)):
        moments = {leaf: own.pop(leaf) for leaf in ("mean", "var") if leaf in own}
        variables["params"][str(number)] = own
        variables["batch_stats"][str(number)] = moments
    return jax.tree_util.Partial(Network().apply, variables)


def in_nnx(name: str, weights: Weights) -> LogitsFn:
    """Returns a module of nnx' own layers."""
    layers, rngs = _layers(name), nnx.Rngs(0)

    def made(kind: str, sizes: Any, own: Arrays) -> Any:
        if kind == "norm":
            part: Any = nnx.BatchNorm(*sizes, rngs=rngs)
        elif kind == "dense":
            part = nnx.Linear(*sizes, rngs=rngs)
        else:
            inputs, outputs, size, stride, groups = sizes
            window: Any = {"strides": stride, "padding": size // 2, "feature_group_count": groups}
            part = nnx.Conv(inputs, outputs, (size, size), use_bias=False, rngs=rngs, **window)
        for leaf, array in own.items():
            getattr(part, leaf)[...] = array
        return part

    class Network(nnx.Module):
        def __init__(self) -> None:
            self.parts = nnx.List(_made(layers, weights, made))

        def __call__(self, images: Any) -> Any:
            left = iter(self.parts)
            return _evaluate(layers, (images - _MEAN) / _STD, lambda _, __, x: next(left)(x))

    model = Network()
    model.eval()
    return model


class _EquinoxNorm(eqx.Module):
    mean: Any
    var: Any
    scale: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        parts = self.mean, self.var, self.scale, self.bias
        mean, var, scale, bias = (part[:, None, None] for part in parts)
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def in_equinox(name: str, weights: Weights) -> LogitsFn:
    """Returns a module of equinox, with channels first and one image at a time under vmap."""
    layers, key = _layers(name), jax.random.key(0)

    def made(kind: str, sizes: Any, own: Arrays) -> Any:
        if kind == "norm":
            return _EquinoxNorm(**own)
        if kind == "dense":
            dense = eqx.nn.Linear(*sizes, key=key)
            new = own["kernel"].T, own["bias"]
            return eqx.tree_at(lambda dense: (dense.weight, dense.bias), dense, new)
        inputs, outputs, size, stride, _ = sizes
        conv = eqx.nn.Conv2d(inputs, outputs, size, stride, size // 2, use_bias=False, key=key)
        return eqx.tree_at(lambda conv: conv.weight, conv, own["kernel"].transpose(3, 2, 0, 1))

    class Network(eqx.Module):
        parts: list[Any]

        def __call__(self, image: Any) -> Any:
            left = iter(self.parts)
            return _evaluate(layers, image, lambda _, __, x: next(left)(x))

    model = Network(_made(layers, weights, made))
    return lambda images: jax.vmap(model)(((images - _MEAN) / _STD).transpose(0, 3, 1, 2))


def in_haiku(name: str, weights: Weights) -> LogitsFn:
    """Returns a function of haiku's layers, with biases and without BatchNorm."""
    layers, arrays = _layers(name), arrays_of(weights)

    def layer(kind: str, sizes: Any, x: Any) -> Any:
        return hk.Linear(sizes[1])(x) if kind == "dense" else hk.Conv2D(sizes[1], sizes[2])(x)

    def forward(images: Any) -> Any:
        return _evaluate(layers, (images - _MEAN) / _STD, layer)

    network: Any = hk.without_apply_rng(hk.transform(forward))
    names = ["conv2_d", *(f"conv2_d_{index}" for index in range(1, len(arrays) - 1)), "linear"]
    renamed = [{"w": own["kernel"], "b": own["bias"]} for own in arrays]
    return jax.tree_util.Partial(network.apply, dict(zip(names, renamed, strict=True)))


class _Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y)
        y = nn.Dense(4 * x.shape[-1], name="dense1")(nn.LayerNorm(epsilon=1e-6, name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="dense2")(jax.nn.gelu(y, approximate=False))


class _VisionTransformer(nn.Module):
    width: int = 384
    depth: int = 12
    heads: int = 6

    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = nn.Conv(self.width, (16, 16), (16, 16), padding="VALID", name="patches")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        positions = self.param("positions", nn.initializers.zeros, (1, x.shape[1] + 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], 1) + positions
        for index in range(self.depth):
            x = _Block(self.heads, name=f"blocks.{index}")(x)
        return nn.Dense(1000, name="head")(nn.LayerNorm(epsilon=1e-6, name="norm")(x)[:, 0])


def vit_in_linen(name: str, weights: Weights) -> LogitsFn:
    """Returns ViT-S/16 of linen's own layers."""
    network = _VisionTransformer()
    heads = network.heads
    params: dict[str, Any] = {}
    for path, array in weights.items():
        place, _, leaf = path.rpartition(".")
        if not place:  # the class token and the positions
            params[leaf] = array
            continue
        block, _, part = place.rpartition(".")
        own = params.setdefault(block, {}) if block else params
        is_kernel = leaf == "weight" and not part.startswith("norm")
        value = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0)) if is_kernel else array
        named = "kernel" if is_kernel else "scale" if leaf == "weight" else "bias"
        if part == "qkv":
            thirds = np.split(value, 3, axis=-1)
            for third, one in zip(("query", "key", "value"), thirds, strict=True):
                layer = own.setdefault("attention", {}).setdefault(third, {})
                layer[named] = one.reshape(*one.shape[:-1], heads, -1)
        elif part == "out":
            layer = own.setdefault("attention", {}).setdefault("out", {})
            layer[named] = value.reshape(heads, -1, value.shape[-1]) if is_kernel else value
        else:
            own.setdefault(part, {})[named] = value
    apply = functools.partial(_normalised, network)
    return jax.tree_util.Partial(apply, {"params": jax.tree.map(jnp.asarray, params)})


def _normalised(network: nn.Module, variables: Any, images: Any) -> Any:
    return network.apply(variables, (images - _MEAN) / _STD)
