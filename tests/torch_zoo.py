"""Logits of small networks in PyTorch, to which those of jaxrobust are compared (test_models.py).

    python tests/torch_zoo.py > tests/torch_zoo.json

Runs where torch is, without jaxrobust. The networks are written anew after the implementations that
checkpoints for CIFAR come from, in small sizes; weights and images are drawn by `weights` and `images`,
which the test calls too.
"""

import json
import zlib

import numpy as np

WIDTHS = (8, 12, 16, 24)


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict of these shapes; every array depends on its name alone."""
    state = {}
    for name, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) > 1:
            value = random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            value = random.uniform(0.5, 2, size=shape)
        else:
            value = random.normal(size=shape) * 0.3
        state[name] = value.astype(np.float32)
    return state


def images() -> np.ndarray:
    """float32 [2, 32, 32, 3]."""
    return np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)


def main() -> None:
    """Prints {network: {"shapes": of its state dict, "logits": [2][10]}}."""
    import torch
    from torch import nn
    from torch.nn.functional import avg_pool2d, relu

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)

    def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        if stride == 1 and inputs == outputs:
            return nn.Sequential()
        return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    class Basic(nn.Module):
        expansion = 1

        def __init__(self, inputs: int, planes: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = conv(planes, planes, 3), nn.BatchNorm2d(planes)
            self.shortcut = shortcut(inputs, planes, stride)

        def forward(self, x):
            out = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
            return relu(out + self.shortcut(x))

    class Bottleneck(nn.Module):
        expansion = 4

        def __init__(self, inputs: int, planes: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, planes, 1), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
            self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
            self.shortcut = shortcut(inputs, 4 * planes, stride)

        def forward(self, x):
            out = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
            return relu(self.bn3(self.conv3(out)) + self.shortcut(x))

    class PreAct(nn.Module):
        expansion, raw = 1, False

        def __init__(self, inputs: int, planes: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, planes, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes, 3)
            if stride != 1 or inputs != planes:
                self.shortcut = nn.Sequential(conv(inputs, planes, 1, stride))

        def forward(self, x):
            out = relu(self.bn1(x))
            skip = self.shortcut(x if self.raw else out) if hasattr(self, "shortcut") else x
            return self.conv2(relu(self.bn2(self.conv1(out)))) + skip

    class RawPreAct(PreAct):
        raw = True

    class ResNet(nn.Module):
        def __init__(self, block: type, sizes: tuple[int, ...], final: bool | None = None) -> None:
            super().__init__()
            self.final, inputs = final, WIDTHS[0]
            self.conv1 = conv(3, inputs, 3)
            if final is None:
                self.bn1 = nn.BatchNorm2d(inputs)
            for stage, (planes, size) in enumerate(zip(WIDTHS, sizes, strict=True)):
                blocks = []
                for index in range(size):
                    blocks.append(block(inputs, planes, 2 if stage and index == 0 else 1))
                    inputs = planes * block.expansion
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            if final:
                self.bn = nn.BatchNorm2d(inputs)
            self.linear = nn.Linear(inputs, 10)

        def forward(self, x):
            out = self.conv1(x)
            out = relu(self.bn1(out)) if self.final is None else out
            out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
            out = relu(self.bn(out)) if self.final else out
            return self.linear(avg_pool2d(out, 4).flatten(1))

    class WideBlock(nn.Module):
        def __init__(self, inputs: int, planes: int, stride: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, planes, 3, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes, 3)
            self.convShortcut = None if inputs == planes else conv(inputs, planes, 1, stride)

        def forward(self, x):
            out = relu(self.bn1(x))
            skip = x if self.convShortcut is None else self.convShortcut(out)
            return self.conv2(relu(self.bn2(self.conv1(out)))) + skip

    class WideStage(nn.Module):
        def __init__(self, inputs: int, planes: int, stride: int) -> None:
            super().__init__()
            blocks = WideBlock(inputs, planes, stride), WideBlock(planes, planes, 1)
            self.layer = nn.Sequential(*blocks)

        def forward(self, x):
            return self.layer(x)

    class WideResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stem, first, second, third = WIDTHS
            self.conv1 = conv(3, stem, 3)
            self.block1 = WideStage(stem, first, 1)
            self.block2 = WideStage(first, second, 2)
            self.block3 = WideStage(second, third, 2)
            self.bn1, self.fc = nn.BatchNorm2d(third), nn.Linear(third, 10)

        def forward(self, x):
            out = relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
            return self.fc(avg_pool2d(out, 8).flatten(1))

    class VGG(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers, inputs = [], 3
            for width in (8, 8, "M", 12, 12, "M", *[16] * 4, "M", *[24] * 4, "M", *[24] * 4, "M"):
                if width == "M":
                    layers.append(nn.MaxPool2d(2, 2))
                    continue
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            self.features, self.classifier = nn.Sequential(*layers), nn.Linear(inputs, 10)

        def forward(self, x):
            return self.classifier(self.features(x).flatten(1))

    class Separable(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, inputs, 3, stride, inputs), nn.BatchNorm2d(inputs)
            self.conv2, self.bn2 = conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)

        def forward(self, x):
            return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))

    class MobileNetV1(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(3, 8, 3), nn.BatchNorm2d(8)
            strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
            blocks = [Separable(8 + i, 9 + i, stride) for i, stride in enumerate(strides)]
            self.layers, self.linear = nn.Sequential(*blocks), nn.Linear(21, 10)

        def forward(self, x):
            out = self.layers(relu(self.bn1(self.conv1(x))))
            return self.linear(avg_pool2d(out, 2).flatten(1))

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
            super().__init__()
            inner, self.stride = expansion * inputs, stride
            self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = conv(inner, inner, 3, stride, inner), nn.BatchNorm2d(inner)
            self.conv3, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
            if stride == 1:
                self.shortcut = shortcut(inputs, outputs, 1)

        def forward(self, x):
            out = relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))
            out = self.bn3(self.conv3(out))
            return out + self.shortcut(x) if self.stride == 1 else out

    class MobileNetV2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1, inputs, blocks = conv(3, 8, 3), nn.BatchNorm2d(8), 8, []
            sizes, strides = (1, 2, 3, 4, 3, 3, 1), (1, 1, 2, 2, 1, 2, 1)
            for width, size, first in zip((4, 6, 8, 9, 10, 11, 12), sizes, strides, strict=True):
                for index in range(size):
                    expansion = 1 if width == 4 else 6
                    blocks.append(Inverted(inputs, width, expansion, first if index == 0 else 1))
                    inputs = width
            self.layers = nn.Sequential(*blocks)
            self.conv2, self.bn2 = conv(12, 16, 1), nn.BatchNorm2d(16)
            self.linear = nn.Linear(16, 10)

        def forward(self, x):
            out = relu(self.bn2(self.conv2(self.layers(relu(self.bn1(self.conv1(x)))))))
            return self.linear(avg_pool2d(out, 4).flatten(1))

    class DenseLayer(nn.Module):
        def __init__(self, inputs: int, growth: int) -> None:
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 4 * growth, 1)
            self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

        def forward(self, x):
            out = self.conv2(relu(self.bn2(self.conv1(relu(self.bn1(x))))))
            return torch.cat([out, x], 1)

    class Transition(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.bn, self.conv = nn.BatchNorm2d(inputs), conv(inputs, outputs, 1)

        def forward(self, x):
            return avg_pool2d(self.conv(relu(self.bn(x))), 2)

    class DenseNet(nn.Module):
        def __init__(self, sizes: tuple[int, ...] = (1, 2, 1, 2), growth: int = 4) -> None:
            super().__init__()
            channels = 2 * growth
            self.conv1 = conv(3, channels, 3)
            for stage, size in enumerate(sizes, start=1):
                layers = [DenseLayer(channels + growth * i, growth) for i in range(size)]
                setattr(self, f"dense{stage}", nn.Sequential(*layers))
                channels += growth * size
                if stage < len(sizes):
                    setattr(self, f"trans{stage}", Transition(channels, channels // 2))
                    channels //= 2
            self.bn, self.linear = nn.BatchNorm2d(channels), nn.Linear(channels, 10)

        def forward(self, x):
            out = self.trans1(self.dense1(self.conv1(x)))
            out = self.dense4(self.trans3(self.dense3(self.trans2(self.dense2(out)))))
            return self.linear(avg_pool2d(relu(self.bn(out)), 4).flatten(1))

    networks = {
        "resnet18": ResNet(Basic, (2, 2, 2, 2)),
        "resnet34": ResNet(Basic, (3, 1, 1, 1)),
        "resnet50": ResNet(Bottleneck, (1, 2, 1, 1)),
        "preact_resnet18": ResNet(PreAct, (2, 2, 2, 2), True),
        "preact_resnet18, raw": ResNet(RawPreAct, (2, 2, 2, 2), True),
        "preact_resnet18, no final": ResNet(PreAct, (1, 1, 1, 1), False),
        "wide_resnet": WideResNet(),
        "vgg19": VGG(),
        "mobilenet_v1": MobileNetV1(),
        "mobilenet_v2": MobileNetV2(),
        "densenet121": DenseNet(),
    }
    found = {}
    for name, network in networks.items():
        state = network.state_dict()
        shapes = {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k}
        drawn = {k: torch.from_numpy(v) for k, v in weights(shapes).items()}
        network.load_state_dict(drawn, strict=False)
        with torch.no_grad():
            logits = network.eval()(torch.from_numpy(images()).permute(0, 3, 1, 2))
        rounded = [[round(float(x), 5) for x in row] for row in logits]
        found[name] = {"shapes": shapes, "logits": rounded}
    rows = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in found.items()]
    print("{\n" + ",\n".join(rows) + "\n}")


if __name__ == "__main__":
    main()
