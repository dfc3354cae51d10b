"""Networks of jaxrobust in PyTorch, for processes that run in an environment without jaxrobust.

Their state dicts have the names and layouts of `jaxrobust.models.torch_layouts`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from experiments.benchmarks.sizes import MOBILE_STAGES, RESNET50_STAGES


class CNN(nn.Module):
    """cnn of jaxrobust, in PyTorch."""

    def __init__(self, widths: Sequence[int] = (32, 32, 64, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            if index in (1, 3, 4):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(widths[-1]),
            nn.Linear(widths[-1], 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class SimpleCNN(nn.Module):
    """simple_cnn of jaxrobust, in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate([(3, 32), (32, 64), (64, 128)]):
            pool = nn.MaxPool2d(2) if index < 2 else nn.AdaptiveAvgPool2d(4)
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), pool]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(2048, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(features)) + self.shortcut(x))


class ResNetSmall(nn.Module):
    """resnet_small of jaxrobust, and resnet18 with a fourth width, in PyTorch."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.num_stages = len(widths)
        for stage, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            first = Block(inputs, outputs, 2 if stage else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, Block(outputs, outputs, 1)))
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.bn1(self.conv1(x)))
        for stage in range(self.num_stages):
            features = self.get_submodule(f"layer{stage + 1}")(features)
        return self.fc(features.mean((2, 3)))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.changes = inputs != outputs
        if self.changes:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = torch.relu(self.bn1(x))
        features = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return features + (self.convShortcut(active) if self.changes else x)


class WideResNet(nn.Module):
    """wide_resnet of jaxrobust, WRN-28-10, in PyTorch."""

    def __init__(self, widths: Sequence[int] = (160, 320, 640)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        for stage, (inputs, outputs) in enumerate(zip((16, *widths), widths, strict=False)):
            blocks = [PreActBlock(inputs, outputs, 2 if stage else 1)]
            blocks += [PreActBlock(outputs, outputs, 1) for _ in range(3)]
            layers = nn.ModuleDict({"layer": nn.Sequential(*blocks)})
            self.add_module(f"block{stage + 1}", layers)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv1(x)
        for stage in range(3):
            features = self.get_submodule(f"block{stage + 1}.layer")(features)
        return self.fc(torch.relu(self.bn1(features)).mean((2, 3)))


class Bottleneck(nn.Module):
    """A block of ResNet-50."""

    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.bn1(self.conv1(x)))
        features = torch.relu(self.bn2(self.conv2(features)))
        return torch.relu(self.bn3(self.conv3(features)) + self.downsample(x))


class ResNet50(nn.Module):
    """For images of 224 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        inputs = 64
        for stage, count in enumerate(RESNET50_STAGES):
            for block in range(count):
                inner = 64 * 2**stage
                blocks.append(Bottleneck(inputs, inner, 2 if stage and not block else 1))
                inputs = 4 * inner
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.pool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.blocks(features).mean((2, 3)))


class ResNet20(nn.Module):
    """Without BatchNorm: halved branches, shortcuts that are padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        pairs = []
        for stage in range(3):
            for block in range(3):
                width, halves = 16 * 2**stage, stage > 0 and block == 0
                first = nn.Conv2d(width // (1 + halves), width, 3, 1 + halves, 1, bias=False)
                pairs += [first, nn.Conv2d(width, width, 3, 1, 1, bias=False)]
        self.pairs = nn.ModuleList(pairs)
        self.head = nn.Linear(64, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for first, second in zip(self.pairs[::2], self.pairs[1::2], strict=True):
            y = second(torch.relu(first(x)))
            if y.shape[1] != x.shape[1]:
                extra = x.shape[1] // 2
                x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
            x = torch.relu(x + 0.5 * y)
        return self.head(x.mean((2, 3)))


class VGGSmall(nn.Module):
    """Pairs of convolutions with biases, max pooling after each pair, no BatchNorm."""

    def __init__(self, widths: Sequence[int] = (64, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths), widths, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU()]
            layers += [nn.Conv2d(outputs, outputs, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Inverted(nn.Module):
    """Of MobileNetV2, with ReLU6."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion

        def layer(
            inputs: int, outputs: int, size: int, stride: int, groups: int
        ) -> list[nn.Module]:
            conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
            return [conv, nn.BatchNorm2d(outputs)]

        self.layers = nn.Sequential(
            *(*layer(inputs, inner, 1, 1, 1), nn.ReLU6()),
            *(*layer(inner, inner, 3, stride, inner), nn.ReLU6()),
            *layer(inner, outputs, 1, 1, 1),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNetV2(nn.Module):
    """For images of 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 32, 3, 1, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
        ]
        before = 32
        for expansion, width, count, stride in MOBILE_STAGES:
            for block in range(count):
                layers.append(Inverted(before, width, expansion, 1 if block else stride))
                before = width
        layers += [nn.Conv2d(before, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(1280, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Normalised(nn.Module):
    """Pixels in [0, 1] to logits."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


class ChannelsLast(torch.autograd.Function):
    """Puts a batch into the layout that convolutions are fastest in, and its gradient back.

    Libraries call `view` on images and gradients, which fails in any layout but the plain one.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


class Relaid(nn.Module):
    """A network that takes and gives plain layouts, and computes in the other one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(ChannelsLast.apply(x))
