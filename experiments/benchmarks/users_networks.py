"""Networks as users of each framework write them, with the weights of PyTorch's (torch_networks.py).

Each is a function of (name, PyTorch's weights); nothing of jaxrobust is in them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from experiments.benchmarks.sizes import MOBILE_STAGES, RESNET50_STAGES

MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)
_STAGES = ((64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1))
Layer = dict[str, np.ndarray]
LogitsFn = Callable[[Any], Any]


def layers_of(weights: dict[str, np.ndarray]) -> list[Layer]:
    """The layers of a state dict in their order: HWIO kernels, the names of linen."""
    names = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    found: list[Layer] = []
    for _, entries in itertools.groupby(weights.items(), lambda item: item[0].rpartition(".")[0]):
        layer = {
            names.get(leaf, leaf): array
            for path, array in entries
            if (leaf := path.rpartition(".")[2]) != "num_batches_tracked"
        }
        if "mean" in layer:
            layer["scale"] = layer.pop("kernel")
        else:
            order = (2, 3, 1, 0) if layer["kernel"].ndim == 4 else (1, 0)
            layer["kernel"] = layer["kernel"].transpose(order)
        found.append(layer)
    return found


def in_lax(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """ResNet-20 of jax.lax, as a closure over its weights."""
    layers: list[Any] = [jax.tree.map(jnp.asarray, layer) for layer in layers_of(weights)]

    def conv(x: Any, layer: Any, stride: int = 1) -> Any:
        return lax.conv_general_dilated(
            x,
            layer["kernel"],
            (stride, stride),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def logits_fn(images: Any) -> Any:
        stem, *pairs, head = layers
        x = jax.nn.relu(conv((images - MEAN) / STD, stem))
        for first, second in zip(pairs[::2], pairs[1::2], strict=True):
            inputs, outputs = first["kernel"].shape[2:]
            y = conv(jax.nn.relu(conv(x, first, outputs // inputs)), second)
            if inputs != outputs:
                extra = ((0, 0), (0, 0), (0, 0), (inputs // 2, inputs // 2))
                x = jnp.pad(x[:, ::2, ::2], extra)
            x = jax.nn.relu(x + 0.5 * y)
        return x.mean((1, 2)) @ head["kernel"]

    return logits_fn


class _LinenBlock(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        conv = functools.partial(nn.Conv, self.features, use_bias=False)
        norm = functools.partial(nn.BatchNorm, use_running_average=True)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv((3, 3), strides, 1)(x)))
        y = norm()(conv((3, 3), (1, 1), 1)(y))
        if x.shape != y.shape:
            x = norm()(conv((1, 1), strides, 0)(x))
        return nn.relu(x + y)


class _LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, images: Any) -> Any:
        x = nn.Conv(64, (3, 3), padding=1, use_bias=False)((images - MEAN) / STD)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        for _, features, stride in _STAGES:
            x = _LinenBlock(features, stride)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def in_linen(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """resnet_small of linen's own layers."""
    module, left = _LinenResNet(), iter(layers_of(weights))
    params: dict[str, Any] = {}
    statistics: dict[str, Any] = {}

    def put(block: str | None, count: int) -> None:
        of_block = params if block is None else params.setdefault(block, {})
        moments = statistics if block is None else statistics.setdefault(block, {})
        for index in range(count):
            of_block[f"Conv_{index}"] = {"kernel": next(left)["kernel"]}
            norm = next(left)
            of_block[f"BatchNorm_{index}"] = {word: norm[word] for word in ("scale", "bias")}
            moments[f"BatchNorm_{index}"] = {word: norm[word] for word in ("mean", "var")}

    put(None, 1)
    for index, (inputs, outputs, _) in enumerate(_STAGES):
        put(f"_LinenBlock_{index}", 2 + (inputs != outputs))
    params["Dense_0"] = next(left)
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": statistics})
    return jax.tree_util.Partial(module.apply, variables)


def resnet50(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """ResNet-50 for images of 224 pixels, as a function of its layers in jax.lax."""
    layers = jax.tree.map(jnp.asarray, layers_of(weights))
    return jax.tree_util.Partial(_resnet50, layers)


def _resnet50(layers: Any, images: Any) -> Any:
    *layers, head = layers
    left = iter(zip(layers[::2], layers[1::2], strict=True))

    def conv_norm(x: Any, stride: int = 1) -> Any:
        conv, norm = next(left)
        pad = len(conv["kernel"]) // 2
        x = lax.conv_general_dilated(
            x,
            conv["kernel"],
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        scale = norm["scale"] * lax.rsqrt(norm["var"] + 1e-5)
        return (x - norm["mean"]) * scale + norm["bias"]

    x = (images - MEAN.astype(images.dtype)) / STD.astype(images.dtype)
    x = jax.nn.relu(conv_norm(x, 2))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, count in enumerate(RESNET50_STAGES):
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = jax.nn.relu(conv_norm(x))
            y = conv_norm(jax.nn.relu(conv_norm(y, stride)))
            x = jax.nn.relu((x if block else conv_norm(x, stride)) + y)
    return x.mean((1, 2)) @ head["kernel"] + head["bias"]


class _NnxBlock(nnx.Module):
    def __init__(self, inputs: int, features: int, stride: int, rngs: nnx.Rngs) -> None:
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        norm = functools.partial(nnx.BatchNorm, features, rngs=rngs)
        self.conv_0 = conv(inputs, features, (3, 3), strides=stride, padding=1)
        self.norm_0 = norm()
        self.conv_1, self.norm_1 = conv(features, features, (3, 3), padding=1), norm()
        self.projected = inputs != features
        if self.projected:
            self.conv_2 = conv(inputs, features, (1, 1), strides=stride, padding=0)
            self.norm_2 = norm()

    def __call__(self, x: Any) -> Any:
        y = nnx.relu(self.norm_0(self.conv_0(x)))
        y = self.norm_1(self.conv_1(y))
        return nnx.relu((self.norm_2(self.conv_2(x)) if self.projected else x) + y)


class _NnxResNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 64, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.blocks = nnx.List([_NnxBlock(*sizes, rngs) for sizes in _STAGES])
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        x = nnx.relu(self.norm(self.conv((images - MEAN) / STD)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class _NnxInverted(nnx.Module):
    def __init__(
        self, inputs: int, outputs: int, expansion: int, stride: int, rngs: nnx.Rngs
    ) -> None:
        inner = inputs * expansion
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.expand, self.norm_0 = conv(inputs, inner, (1, 1)), nnx.BatchNorm(inner, rngs=rngs)
        self.depthwise = conv(
            inner, inner, (3, 3), strides=stride, padding=1, feature_group_count=inner
        )
        self.norm_1 = nnx.BatchNorm(inner, rngs=rngs)
        self.project, self.norm_2 = conv(inner, outputs, (1, 1)), nnx.BatchNorm(outputs, rngs=rngs)
        self.adds = stride == 1 and inputs == outputs

    def __call__(self, x: Any) -> Any:
        y = nnx.relu6(self.norm_0(self.expand(x)))
        y = nnx.relu6(self.norm_1(self.depthwise(y)))
        y = self.norm_2(self.project(y))
        return x + y if self.adds else y


class _NnxMobileNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 32, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        blocks, before = [], 32
        for expansion, width, count, stride in MOBILE_STAGES:
            for block in range(count):
                stride_here = 1 if block else stride
                blocks.append(_NnxInverted(before, width, expansion, stride_here, rngs))
                before = width
        self.blocks = nnx.List(blocks)
        self.last = nnx.Conv(before, 1280, (1, 1), use_bias=False, rngs=rngs)
        self.last_norm = nnx.BatchNorm(1280, rngs=rngs)
        self.head = nnx.Linear(1280, 10, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        x = nnx.relu6(self.norm(self.stem((images - MEAN) / STD)))
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu6(self.last_norm(self.last(x))).mean((1, 2)))


def _nnx_layers(module: Any) -> Iterator[Any]:
    for value in module if isinstance(module, nnx.List) else vars(module).values():
        if isinstance(value, nnx.Conv | nnx.BatchNorm | nnx.Linear):
            yield value
        elif isinstance(value, nnx.Module | nnx.List):
            yield from _nnx_layers(value)


def in_nnx(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """resnet_small or MobileNetV2 in nnx."""
    kind = {"resnet_small": _NnxResNet, "mobilenet_v2": _NnxMobileNet}[name]
    model = kind(nnx.Rngs(0))
    for layer, arrays in zip(_nnx_layers(model), layers_of(weights), strict=True):
        for word, array in arrays.items():
            getattr(layer, word)[...] = jnp.asarray(array)
    model.eval()
    return model


class _EquinoxNorm(eqx.Module):
    mean: Any
    var: Any
    scale: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        mean, var, scale, bias = (
            part[:, None, None] for part in (self.mean, self.var, self.scale, self.bias)
        )
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


class _EquinoxResNet(eqx.Module):
    convs: list[eqx.nn.Conv2d]
    norms: list[_EquinoxNorm]
    head: eqx.nn.Linear

    def __call__(self, image: Any) -> Any:
        left = iter(zip(self.convs, self.norms, strict=True))

        def conv_norm(x: Any) -> Any:
            conv, norm = next(left)
            return norm(conv(x))

        x = jax.nn.relu(conv_norm(image))
        for inputs, outputs, _ in _STAGES:
            y = conv_norm(jax.nn.relu(conv_norm(x)))
            x = jax.nn.relu((x if inputs == outputs else conv_norm(x)) + y)
        return self.head(x.mean((1, 2)))


def in_equinox(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """resnet_small in equinox: channels first, one image at a time under vmap."""
    *layers, dense = [jax.tree.map(jnp.asarray, layer) for layer in layers_of(weights)]
    strides = [1]
    for inputs, outputs, stride in _STAGES:
        strides += [stride, 1, *([stride] if inputs != outputs else [])]
    convs = []
    for layer, stride in zip(layers[::2], strides, strict=True):
        size, _, inputs, outputs = layer["kernel"].shape
        conv = eqx.nn.Conv2d(
            inputs, outputs, size, stride, size // 2, use_bias=False, key=jax.random.key(0)
        )
        kernel = layer["kernel"].transpose(3, 2, 0, 1)
        convs.append(eqx.tree_at(lambda conv: conv.weight, conv, kernel))
    head = eqx.nn.Linear(256, 10, key=jax.random.key(0))
    head = eqx.tree_at(lambda h: (h.weight, h.bias), head, (dense["kernel"].T, dense["bias"]))
    model = _EquinoxResNet(convs, [_EquinoxNorm(**layer) for layer in layers[1::2]], head)
    return lambda images: jax.vmap(model)(((images - MEAN) / STD).transpose(0, 3, 1, 2))


def in_haiku(name: str, weights: dict[str, np.ndarray]) -> LogitsFn:
    """VGG in haiku."""
    layers = layers_of(weights)

    def forward(images: Any) -> Any:
        x = (images - MEAN) / STD
        for index, layer in enumerate(layers[:-1]):
            x = jax.nn.relu(hk.Conv2D(layer["kernel"].shape[-1], 3)(x))
            if index % 2:
                x = hk.max_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return hk.Linear(10)(x.mean((1, 2)))

    network: Any = hk.without_apply_rng(hk.transform(forward))
    names = ["conv2_d", *(f"conv2_d_{index}" for index in range(1, len(layers) - 1)), "linear"]
    variables = {
        name: {"w": jnp.asarray(layer["kernel"]), "b": jnp.asarray(layer["bias"])}
        for name, layer in zip(names, layers, strict=True)
    }
    return jax.tree_util.Partial(network.apply, variables)
