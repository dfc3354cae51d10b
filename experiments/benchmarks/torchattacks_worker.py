"""The PyTorch side of attack_throughput.py and any_network.py.

It runs in an environment of its own, without jaxrobust. It builds a network with random weights, writes
them with a batch of images to a file, then runs PGD once for every line that it is sent and answers
with the seconds taken.
"""

import json
import sys
import time

import numpy as np
import torch
import torchattacks
from torch import nn

from experiments.benchmarks.torch_networks import (
    MobileNetV2,
    Normalised,
    ResNet20,
    ResNetSmall,
    SimpleCNN,
    VGGSmall,
)

NETWORKS: dict[str, type[nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "resnet_small": ResNetSmall,
    "resnet20": ResNet20,
    "vgg": VGGSmall,
    "mobilenet_v2": MobileNetV2,
}


def main() -> None:
    """Serves one benchmark: settings as JSON in the first line, then a line per run."""
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(settings["num_threads"])
    network = NETWORKS[settings["model"]]()
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
