"""Networks as users write them, in each framework: nothing of this package in them."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

MEAN = np.array([0.49, 0.48, 0.45], np.float32).reshape(1, 1, 1, 3)
STD = np.array([0.2, 0.21, 0.22], np.float32).reshape(1, 1, 1, 3)
WIDTHS = (8, 16)


def perturbed(tree: Any) -> Any:
    """All arrays a little off what they start from, statistics too."""
    leaves, structure = jax.tree.flatten(tree)
    random = np.random.default_rng(0)

    def moved(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        factor = 1 + 0.1 * random.standard_normal(leaf.shape)
        # Kernels keep their mean: many layers of positive ones would leave nothing finite.
        return (leaf * factor + (0.01 if leaf.ndim < 2 else 0.0)).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [moved(leaf) for leaf in leaves])


class LinenBlock(nn.Module):
    """A basic residual block."""

    features: int
    stride: int
    kind: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        conv = functools.partial(nn.Conv, self.features, use_bias=False, dtype=self.kind)
        norm = functools.partial(nn.BatchNorm, use_running_average=True, dtype=self.kind)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv((3, 3), strides, 1)(x)))
        y = norm()(conv((3, 3), (1, 1), 1)(y))
        if x.shape[-1] != self.features or self.stride > 1:
            x = norm()(conv((1, 1), strides, 0)(x))
        return nn.relu(x + y)


class LinenResNet(nn.Module):
    """A stem and two blocks."""

    kind: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = (x - MEAN) / STD
        x = nn.Conv(WIDTHS[0], (3, 3), padding=1, use_bias=False, dtype=self.kind)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, dtype=self.kind)(x))
        for index, width in enumerate(WIDTHS):
            x = LinenBlock(width, 1 + index, self.kind)(x)
        return nn.Dense(5, dtype=self.kind)(x.mean((1, 2)))


class OfLayers(nn.Module):
    """Any function of images, with the layers of linen."""

    body: Callable[[Any], Any]
    kind: Any = None

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = (x - MEAN) / STD
        return nn.Dense(5)(self.body(x if self.kind is None else x.astype(self.kind)).mean((1, 2)))


def _norm() -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True)


def vgg(x: Any) -> Any:
    """Convolutions with biases and max pooling."""
    for width in WIDTHS:
        x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
    return x


def stem_of_resnet50(x: Any) -> Any:
    """Stride 2, overlapping pooling, a bottleneck."""
    x = nn.relu(_norm()(nn.Conv(8, (7, 7), (2, 2), 3, use_bias=False)(x)))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    y = nn.relu(_norm()(nn.Conv(4, (1, 1), use_bias=False)(x)))
    y = nn.relu(_norm()(nn.Conv(4, (3, 3), use_bias=False)(y)))
    return nn.relu(x + _norm()(nn.Conv(8, (1, 1), use_bias=False)(y)))


def mobilenet_v2(x: Any) -> Any:
    """Inverted residuals with ReLU6 and depthwise convolutions, "SAME" with a stride."""
    x = nn.relu6(_norm()(nn.Conv(8, (3, 3), (2, 2))(x)))
    y = nn.relu6(_norm()(nn.Conv(16, (1, 1))(x)))
    y = nn.relu6(_norm()(nn.Conv(16, (3, 3), feature_group_count=16)(y)))
    x = x + _norm()(nn.Conv(8, (1, 1))(y))
    y = nn.relu6(
        _norm()(nn.Conv(16, (5, 5), (2, 2), feature_group_count=16)(nn.Conv(16, (1, 1))(x)))
    )
    return _norm()(nn.Conv(12, (1, 1))(y))


def squeezenet(x: Any) -> Any:
    """A fire module: branches that are concatenated."""
    x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
    squeezed = nn.relu(nn.Conv(4, (1, 1))(x))
    branches = [nn.relu(nn.Conv(8, (k, k))(squeezed)) for k in (1, 3)]
    return nn.max_pool(jnp.concatenate(branches, -1), (3, 3), (2, 2))


def shufflenet(x: Any) -> Any:
    """Grouped convolutions and a channel shuffle."""
    x = nn.relu(nn.Conv(12, (3, 3))(x))
    y = nn.relu(_norm()(nn.Conv(12, (1, 1), feature_group_count=3)(x)))
    y = y.reshape(*y.shape[:3], 3, 4).swapaxes(3, 4).reshape(y.shape)
    y = _norm()(nn.Conv(12, (3, 3), (2, 2), feature_group_count=12)(y))
    return nn.relu(jnp.concatenate([y, nn.avg_pool(x, (2, 2), (2, 2))], -1))


def unet(x: Any) -> Any:
    """Down, up by a transposed convolution, a skip connection."""
    first = nn.relu(nn.Conv(8, (3, 3))(x))
    second = nn.relu(nn.Conv(12, (3, 3))(nn.max_pool(first, (2, 2), (2, 2))))
    up = nn.ConvTranspose(8, (2, 2), (2, 2))(second)
    wide = nn.ConvTranspose(8, (3, 3), (2, 2), use_bias=False)(second)
    return nn.relu(nn.Conv(8, (3, 3))(jnp.concatenate([first, up, wide], -1)))


def convnext(x: Any) -> Any:
    """Patches, a wide depthwise convolution, LayerNorm, GELU, a scale of channels."""
    x = nn.LayerNorm()(nn.Conv(8, (4, 4), (4, 4))(x))
    y = nn.LayerNorm()(nn.Conv(8, (7, 7), feature_group_count=8)(x))
    return x + 0.5 * nn.Dense(8)(nn.gelu(nn.Dense(16)(y)))


def squeeze_and_excite(x: Any) -> Any:
    """Channels weighed by what is in the image; swish, GroupNorm."""
    x = nn.swish(nn.GroupNorm(4)(nn.Conv(8, (3, 3))(x)))
    weights = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
    x = x * weights[:, None, None]
    return nn.leaky_relu(nn.Conv(8, (3, 3), (2, 2), kernel_dilation=1)(x))


def dilated(x: Any) -> Any:
    """As for segmentation."""
    x = nn.relu(nn.Conv(8, (3, 3), kernel_dilation=2)(x))
    return nn.elu(_norm()(nn.Conv(8, (3, 3), kernel_dilation=(3, 2), padding="VALID")(x)))


def densenet(x: Any) -> Any:
    """BatchNorm before convolutions, concatenation, average pooling."""
    x = nn.Conv(8, (3, 3))(x)
    for _ in range(2):
        x = jnp.concatenate([x, nn.Conv(4, (3, 3))(nn.relu(_norm()(x)))], -1)
    return nn.avg_pool(nn.Conv(8, (1, 1))(x), (2, 2), (2, 2))


def mixer(x: Any) -> Any:
    """Tokens and channels in turns."""
    x = nn.Conv(8, (4, 4), (4, 4))(x)
    x = x.reshape(len(x), -1, 8)
    y = nn.LayerNorm()(x).swapaxes(1, 2)
    x = x + nn.Dense(x.shape[1])(nn.gelu(nn.Dense(12)(y))).swapaxes(1, 2)
    return x[:, :, None]


def vit(x: Any) -> Any:
    """Patches, a class token, self-attention."""
    x = nn.Conv(8, (4, 4), (4, 4))(x).reshape(len(x), -1, 8)
    x = jnp.concatenate([jnp.ones((len(x), 1, 8)), x], 1)
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(2)(y, y)
    return (x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x)))))[:, :, None]


def windows(x: Any) -> Any:
    """Attention in shifted windows, as Swin's."""
    x = jnp.roll(nn.Conv(8, (2, 2), (2, 2))(x), (1, 1), (1, 2))
    batch, height, width, channels = x.shape
    y = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(-1, 4, channels)
    y = nn.MultiHeadDotProductAttention(2)(y, y)
    y = y.reshape(batch, height // 2, width // 2, 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x + jnp.roll(y.reshape(x.shape), (-1, -1), (1, 2))


def shared_convolution(x: Any) -> Any:
    """One convolution whose value is used in three places, before and after its ReLU."""
    x = nn.Conv(8, (3, 3))(x)
    scaled = 2.0 * x - 1.0
    return nn.relu(x) + scaled + jnp.tanh(x)


def explicit_padding(x: Any) -> Any:
    """Zeros laid by hand, as in networks that came from PyTorch."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = nn.relu(_norm()(nn.Conv(8, (3, 3), (2, 2), "VALID")(x)))
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=-jnp.inf)
    return nn.max_pool(x, (2, 2), (2, 2))


LINEN = {
    body.__name__: body
    for body in (
        vgg,
        stem_of_resnet50,
        mobilenet_v2,
        squeezenet,
        shufflenet,
        unet,
        convnext,
        squeeze_and_excite,
        dilated,
        densenet,
        mixer,
        vit,
        windows,
        shared_convolution,
        explicit_padding,
    )
}


def of_layers(body: Callable[[Any], Any], image: Any, kind: Any = None) -> Any:
    """A callable pytree: images -> logits, computed in a type of less than 32 bits if one is given."""
    variables = perturbed(jax.jit(OfLayers(body).init)(jax.random.key(0), image[:1]))
    if kind is not None:
        variables = jax.tree.map(lambda leaf: leaf.astype(kind), variables)
    return jax.tree_util.Partial(OfLayers(body, kind).apply, variables)


def linen_variables(image: Any) -> Any:
    """Of `LinenResNet`."""
    return perturbed(jax.jit(LinenResNet().init)(jax.random.key(0), image[:1]))


def linen(variables: Any, kind: Any = None) -> Any:
    """The ResNet in linen."""
    return jax.tree_util.Partial(LinenResNet(kind).apply, variables)


def layers_of(variables: Any) -> list[dict[str, Any]]:
    """Convolutions and norms of the ResNet in the order in which they are used, and the dense layer."""
    params, statistics = variables["params"], variables["batch_stats"]

    def pairs(params: Any, statistics: Any, count: int) -> list[dict[str, Any]]:
        return [
            {
                "kernel": params[f"Conv_{index}"]["kernel"],
                **params[f"BatchNorm_{index}"],
                **statistics[f"BatchNorm_{index}"],
            }
            for index in range(count)
        ]

    found = pairs(params, statistics, 1)
    for index in range(len(WIDTHS)):
        name = f"LinenBlock_{index}"
        found += pairs(params[name], statistics[name], 2 + (index > 0))
    return [*found, params["Dense_0"]]


def plain(variables: Any) -> Callable[[Any], Any]:
    """The same ResNet in jax.lax, as a closure."""
    layers = layers_of(variables)

    def conv_norm(x: Any, layer: dict[str, Any], stride: int = 1) -> Any:
        padding = [(layer["kernel"].shape[0] // 2,) * 2] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), padding, dimension_numbers=numbers
        )
        factor = layer["scale"] / jnp.sqrt(layer["var"] + 1e-5)
        return (x - layer["mean"]) * factor + layer["bias"]

    def function(x: Any) -> Any:
        left = iter(layers)
        x = jax.nn.relu(conv_norm((x - MEAN) / STD, next(left)))
        for index in range(len(WIDTHS)):
            y = jax.nn.relu(conv_norm(x, next(left), 1 + index))
            y = conv_norm(y, next(left))
            x = jax.nn.relu((conv_norm(x, next(left), 2) if index else x) + y)
        head = next(left)
        return x.mean((1, 2)) @ head["kernel"] + head["bias"]

    return function


class NnxBlock(nnx.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, features: int, stride: int, rngs: nnx.Rngs) -> None:
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.convs = nnx.List(
            [
                conv(inputs, features, (3, 3), strides=stride, padding=1),
                conv(features, features, (3, 3), padding=1),
            ]
        )
        if stride > 1:
            self.convs.append(conv(inputs, features, (1, 1), strides=stride, padding=0))
        self.norms = nnx.List(
            [
                nnx.BatchNorm(features, use_running_average=True, rngs=rngs)
                for _ in range(len(self.convs))
            ]
        )

    def __call__(self, x: Any) -> Any:
        y = nnx.relu(self.norms[0](self.convs[0](x)))
        y = self.norms[1](self.convs[1](y))
        if len(self.convs) > 2:
            x = self.norms[2](self.convs[2](x))
        return nnx.relu(x + y)


class NnxResNet(nnx.Module):
    """The same ResNet in nnx."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, WIDTHS[0], (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTHS[0], use_running_average=True, rngs=rngs)
        pairs = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.blocks = nnx.List([NnxBlock(*pair, 1 + i, rngs) for i, pair in enumerate(pairs)])
        self.head = nnx.Linear(WIDTHS[-1], 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.norm(self.stem((x - MEAN) / STD)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def in_nnx(variables: Any) -> NnxResNet:
    """With these weights."""
    model = NnxResNet(nnx.Rngs(0))
    *layers, head = layers_of(variables)
    pairs = [(model.stem, model.norm)]
    for block in model.blocks:
        pairs += zip(block.convs, block.norms, strict=True)
    for (conv, norm), layer in zip(pairs, layers, strict=True):
        conv.kernel[...] = layer["kernel"]
        for name in ("scale", "bias", "mean", "var"):
            getattr(norm, name)[...] = layer[name]
    model.head.kernel[...], model.head.bias[...] = head["kernel"], head["bias"]
    model.eval()
    return model


class EquinoxNorm(eqx.Module):
    """BatchNorm in evaluation mode, as those write it who want no state."""

    scale: Any
    shift: Any

    def __call__(self, x: Any) -> Any:
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class EquinoxResNet(eqx.Module):
    """The same ResNet in equinox: one image, channels first."""

    convs: list
    norms: list
    head: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        left = iter(zip(self.convs, self.norms, strict=True))

        def conv_norm(x: Any) -> Any:
            conv, norm = next(left)
            return norm(conv(x))

        x = jax.nn.relu(conv_norm(x))
        for index in range(len(WIDTHS)):
            y = conv_norm(jax.nn.relu(conv_norm(x)))
            x = jax.nn.relu((conv_norm(x) if index else x) + y)
        return self.head(x.mean((1, 2)))


def in_equinox(variables: Any) -> Callable[[Any], Any]:
    """With these weights, for a batch of images [B, H, W, C]."""
    *layers, head = layers_of(variables)
    strides = [1, 1, 1, 2, 1, 2]
    convs, norms = [], []
    for layer, stride in zip(layers, strides, strict=True):
        kernel = jnp.transpose(layer["kernel"], (3, 2, 0, 1))
        size = kernel.shape[2]
        conv = eqx.nn.Conv2d(
            *(kernel.shape[1], kernel.shape[0], size, stride, size // 2),
            use_bias=False,
            key=jax.random.key(0),
        )
        convs.append(eqx.tree_at(lambda conv: conv.weight, conv, kernel))
        factor = layer["scale"] / jnp.sqrt(layer["var"] + 1e-5)
        norms.append(EquinoxNorm(factor, layer["bias"] - layer["mean"] * factor))
    linear = eqx.nn.Linear(WIDTHS[-1], 5, key=jax.random.key(0))
    linear = eqx.tree_at(
        lambda linear: (linear.weight, linear.bias), linear, (head["kernel"].T, head["bias"])
    )
    model = EquinoxResNet(convs, norms, linear)
    return lambda images: jax.vmap(model)(((images - MEAN) / STD).transpose(0, 3, 1, 2))


class EquinoxPools(eqx.Module):
    """Pooling of equinox has five axes."""

    conv: eqx.nn.Conv2d
    most: eqx.nn.MaxPool2d
    mean: eqx.nn.AvgPool2d
    head: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        x = self.mean(self.most(jax.nn.relu(self.conv(x))))
        return self.head(x.max((1, 2)))


def equinox_pools() -> Callable[[Any], Any]:
    """For a batch of images [B, H, W, C]."""
    keys = jax.random.split(jax.random.key(0))
    model = EquinoxPools(
        eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.AvgPool2d(3, 1, padding=1),
        eqx.nn.Linear(8, 5, key=keys[1]),
    )
    return lambda images: jax.vmap(model)(images.transpose(0, 3, 1, 2))
