"""Blocks of networks that others published, written with the layers of linen; more of frameworks.py."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def _norm() -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True)


def resnext(x: Any) -> Any:
    """A bottleneck with grouped convolutions."""
    x = nn.relu(_norm()(nn.Conv(16, (3, 3), (2, 2), 1)(x)))
    y = nn.relu(_norm()(nn.Conv(8, (1, 1), use_bias=False)(x)))
    y = nn.relu(_norm()(nn.Conv(8, (3, 3), padding=1, feature_group_count=4)(y)))
    return nn.relu(x + _norm()(nn.Conv(16, (1, 1), use_bias=False)(y)))


def mbconv(x: Any) -> Any:
    """EfficientNet's: swish, depthwise, squeeze and excite."""
    x = nn.swish(_norm()(nn.Conv(8, (3, 3), (2, 2))(x)))
    y = nn.swish(_norm()(nn.Conv(24, (1, 1))(x)))
    y = nn.swish(_norm()(nn.Conv(24, (5, 5), feature_group_count=24)(y)))
    squeezed = nn.swish(nn.Dense(4)(y.mean((1, 2), keepdims=True)))
    y = y * nn.sigmoid(nn.Dense(24)(squeezed))
    return x + _norm()(nn.Conv(8, (1, 1))(y))


def mobilenet_v3(x: Any) -> Any:
    """hard_swish and hard_sigmoid."""
    x = nn.hard_swish(_norm()(nn.Conv(8, (3, 3), (2, 2))(x)))
    y = nn.hard_swish(_norm()(nn.Conv(8, (3, 3), (2, 2), feature_group_count=8)(x)))
    y = y * nn.hard_sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(y.mean((1, 2), keepdims=True)))))
    return nn.Conv(8, (1, 1))(y)


def inception(x: Any) -> Any:
    """Branches with long kernels and with pooling."""
    x = nn.relu(nn.Conv(8, (3, 3), (2, 2), "VALID")(x))
    long = nn.relu(nn.Conv(6, (7, 1))(nn.relu(nn.Conv(6, (1, 7))(x))))
    pooled = nn.Conv(6, (1, 1))(nn.avg_pool(x, (3, 3), (1, 1), "SAME"))
    largest = nn.max_pool(x, (3, 3), (1, 1), "SAME")
    return jnp.concatenate([long, pooled, largest], -1)


def convmixer(x: Any) -> Any:
    """Patches, GELU before BatchNorm, even kernels."""
    x = _norm()(nn.gelu(nn.Conv(8, (4, 4), (4, 4))(x)))
    x = x + _norm()(nn.gelu(nn.Conv(8, (4, 4), feature_group_count=8)(x)))
    return _norm()(nn.gelu(nn.Conv(8, (1, 1))(x)))


def atrous_pyramid(x: Any) -> Any:
    """One image seen at several dilations, and as a whole."""
    x = nn.relu(nn.Conv(8, (3, 3), (2, 2))(x))
    seen = [nn.relu(nn.Conv(4, (3, 3), kernel_dilation=rate)(x)) for rate in (1, 2, 3)]
    whole = nn.relu(nn.Conv(4, (1, 1))(x.mean((1, 2), keepdims=True)))
    seen.append(jnp.broadcast_to(whole, (*x.shape[:3], 4)))
    return nn.Conv(8, (1, 1))(jnp.concatenate(seen, -1))


def preactivation(x: Any) -> Any:
    """A block of WideResNet: BatchNorm and ReLU before each convolution, one ReLU for both ways."""
    x = nn.Conv(8, (3, 3), use_bias=False)(x)
    y = nn.relu(_norm()(x))
    shortcut = nn.Conv(12, (1, 1), (2, 2), use_bias=False)(y)
    y = nn.relu(_norm()(nn.Conv(12, (3, 3), (2, 2), use_bias=False)(y)))
    return nn.relu(_norm()(shortcut + nn.Conv(12, (3, 3), use_bias=False)(y)))


def ghost(x: Any) -> Any:
    """Half of the channels are made of the others by a depthwise convolution."""
    x = nn.relu(_norm()(nn.Conv(6, (1, 1))(x)))
    cheap = nn.relu(_norm()(nn.Conv(6, (3, 3), feature_group_count=6)(x)))
    return jnp.concatenate([x, cheap], -1)


def blur(x: Any) -> Any:
    """Max pooling at every pixel, a fixed low-pass filter with a stride."""
    x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (1, 1))
    taps = jnp.array([1.0, 2.0, 1.0], x.dtype) / 4
    kernel = jnp.tile((taps[:, None] * taps)[:, :, None, None], (1, 1, 1, 8))
    filtered = nn.Conv(
        *(8, (3, 3), (2, 2)),
        use_bias=False,
        feature_group_count=8,
        kernel_init=lambda *_: kernel,
    )
    return filtered(x)


def pixel_shuffle(x: Any) -> Any:
    """Channels become pixels; a transposed convolution whose kernel is transposed too."""
    x = nn.relu(nn.Conv(16, (3, 3), (2, 2))(x))
    batch, height, width, _ = x.shape
    y = x.reshape(batch, height, width, 2, 2, 4).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(batch, 2 * height, 2 * width, 4)
    z = nn.ConvTranspose(4, (4, 4), (2, 2), "VALID", transpose_kernel=True)(x)
    return nn.relu(nn.Conv(8, (3, 3))(y + z[:, 1:-1, 1:-1]))


def res2net(x: Any) -> Any:
    """Channels are split, and each part sees the one before."""
    x = nn.relu(_norm()(nn.Conv(12, (1, 1))(x)))
    first, second, third = jnp.split(x, 3, -1)
    second = nn.relu(_norm()(nn.Conv(4, (3, 3))(second)))
    third = nn.relu(_norm()(nn.Conv(4, (3, 3))(third + second)))
    return nn.relu(x + nn.Conv(12, (1, 1))(jnp.concatenate([first, second, third], -1)))


def multiplier(x: Any) -> Any:
    """A depthwise convolution with two kernels for each channel, PReLU, a scaled branch."""
    x = nn.PReLU()(nn.Conv(6, (3, 3), (2, 2))(x))
    y = nn.relu6(nn.Conv(12, (3, 3), feature_group_count=6)(x) * 0.5 + 1.0)
    return jnp.concatenate([x, x], -1) - y


BLOCKS: dict[str, Callable[[Any], Any]] = {
    body.__name__: body
    for body in (
        resnext,
        mbconv,
        mobilenet_v3,
        inception,
        convmixer,
        atrous_pyramid,
        preactivation,
        ghost,
        blur,
        pixel_shuffle,
        res2net,
        multiplier,
    )
}
