"""The networks of layers.json in PyTorch, for a process without jaxrobust.

A layer in that file is its kind followed by its sizes, which are the arguments in `_KINDS`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

_TABLE = json.loads(Path(__file__).with_name("layers.json").read_text(encoding="utf-8"))


class Residual(nn.Module):
    """A branch added to a shortcut or, if that is empty, to the input; `start` precedes both."""

    def __init__(self, start: list, branch: list, shortcut: list, scale: float = 1) -> None:
        super().__init__()
        self.start, self.branch, self.shortcut = build(start), build(branch), build(shortcut)
        self.scale, self.changes = scale, bool(shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = self.start(x)
        y = self.branch(active) if self.scale == 1 else self.scale * self.branch(active)
        return y + (self.shortcut(active) if self.changes else x)


class Pad(nn.Module):
    """Keeps every second pixel, and adds `extra` channels of zeros before and after the others."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))


def _conv(
    inputs: int, outputs: int, size: int, stride: int, groups: int, bias: bool = False
) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


_KINDS: dict[str, Callable[..., nn.Module]] = {
    "conv": _conv,
    "norm": nn.BatchNorm2d,
    "norm1d": nn.BatchNorm1d,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "max": nn.MaxPool2d,
    "average": nn.AdaptiveAvgPool2d,
    "flatten": nn.Flatten,
    "dropout": nn.Dropout,
    "dense": nn.Linear,
    "pad": Pad,
    "residual": Residual,
}


def build(layers: Sequence[Sequence[Any]]) -> nn.Sequential:
    """Builds a network of layers in sequence."""
    return nn.Sequential(*(_KINDS[kind](*sizes) for kind, *sizes in layers))


class Block(nn.Module):
    """A block of a vision transformer: attention and two dense layers, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense1, self.dense2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.dense2(nn.functional.gelu(self.dense1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """ViT-S/16: patches of 16x16 pixels of images of 224x224, and a class token (arXiv:2010.11929)."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 197, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def create(architecture: str, widths: Sequence[int] = ()) -> nn.Module:
    """Returns a network with random weights; without widths, the first of that name."""
    if architecture == "vit_small":
        return VisionTransformer()
    for entry in _TABLE:
        if entry["architecture"] == architecture and list(widths) in ([], entry["widths"]):
            return build(entry["layers"])
    raise ValueError(f"layers.json has no {architecture!r} of widths {list(widths)}.")


class ChannelsLast(torch.autograd.Function):
    """Converts a batch to the layout in which convolutions are fastest, and its gradient back.

    Libraries call `view` on images and gradients, which fails in any layout but the plain one.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.plain = x.is_contiguous()
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous() if ctx.plain else gradients[0]


class Classifier(nn.Module):
    """Maps images float32 [B, C, H, W] in [0, 1] to logits float32 [B, K].

    The network computes in the type of `mean`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = ChannelsLast.apply(x.to(self.mean.dtype))
        return self.network((x - self.mean) / self.std).float()
