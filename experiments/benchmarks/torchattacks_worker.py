"""The PyTorch side of attack_throughput.py: runs in an environment of its own, without jaxrobust.

Builds a network with random weights, writes them with a batch of images to a file, then runs PGD once
for every line it is sent and answers with the seconds taken.
"""

import json
import sys
import time

import numpy as np
import torch
import torchattacks
from torch import nn


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
    """resnet_small of jaxrobust, in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(Block(64, 64, 1), Block(64, 64, 1))
        self.layer2 = nn.Sequential(Block(64, 128, 2), Block(128, 128, 1))
        self.layer3 = nn.Sequential(Block(128, 256, 2), Block(256, 256, 1))
        self.fc = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.bn1(self.conv1(x)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean((2, 3)))


class Normalised(nn.Module):
    """Pixels in [0, 1] to logits."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network((x - self.mean) / self.std)


def main() -> None:
    """Serves one benchmark: settings as JSON in the first line, then a line per run."""
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(settings["num_threads"])
    networks: dict[str, type[nn.Module]] = {"simple_cnn": SimpleCNN, "resnet_small": ResNetSmall}
    network = networks[settings["model"]]()
    # Running statistics away from 0 and 1, so that a wrong import shows.
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(64, 3, 32, 32))
    classifier = Normalised(network, settings["mean"], settings["std"]).eval()
    images = torch.rand(settings["batch_size"], 3, 32, 32)
    with torch.no_grad():
        logits = classifier(images)
    labels = logits.argmax(1)
    np.savez(
        settings["path"],
        **{f"weights/{k}": v.numpy() for k, v in network.state_dict().items()},
        images=images.permute(0, 2, 3, 1).numpy(),
        labels=labels.numpy(),
        logits=logits.numpy(),
    )
    classifier.requires_grad_(False)
    classifier = classifier.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    attack = torchattacks.PGD(
        classifier, settings["epsilon"], settings["step_size"], settings["num_steps"]
    )
    versions = {"torch": torch.__version__, "torchattacks": torchattacks.__version__}
    print(json.dumps(versions), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        adversarial = attack(images, labels)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            fooled = (classifier(adversarial).argmax(1) != labels).float().mean().item()
        print(json.dumps({"seconds": seconds, "success": fooled}), flush=True)


if __name__ == "__main__":
    main()
