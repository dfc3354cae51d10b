"""The PyTorch side of training_throughput.py: runs in an environment of its own, without jaxrobust.

Builds a network with random weights, writes them with a batch of images to a file, then takes the same
steps of training from those weights for every line it is sent, and answers with the seconds taken.
"""

import copy
import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.benchmarks.torch_networks import Normalised, ResNetSmall, SimpleCNN


def ascend(
    classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor, settings: dict
) -> torch.Tensor:
    """PGD from the images themselves, on the network in evaluation mode."""
    classifier.eval()
    epsilon, points = settings["epsilon"], images
    for _ in range(settings["pgd_steps"]):
        points = points.detach().requires_grad_()
        loss = functional.cross_entropy(classifier(points), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = points.detach() + settings["step_size"] * gradient.sign()
        points = (images + (points - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    classifier.train()
    return points.detach()


def main() -> None:
    """Serves one benchmark: settings as JSON in the first line, then a line per run."""
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(settings["num_threads"])
    networks: dict[str, type[nn.Module]] = {"simple_cnn": SimpleCNN, "resnet_small": ResNetSmall}
    network = networks[settings["model"]]()
    images = torch.rand(settings["batch_size"], 3, 32, 32)
    labels = torch.arange(settings["batch_size"]) % 10
    np.savez(
        settings["path"],
        **{f"weights/{k}": v.numpy() for k, v in network.state_dict().items()},
        images=images.permute(0, 2, 3, 1).numpy(),
        labels=labels.numpy(),
    )
    images = images.contiguous(memory_format=torch.channels_last)
    start_weights = copy.deepcopy(network.state_dict())
    classifier = Normalised(network, settings["mean"], settings["std"])
    classifier = classifier.to(memory_format=torch.channels_last)
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        network.load_state_dict(start_weights)
        classifier.train()
        optimizer = torch.optim.SGD(
            classifier.parameters(),
            settings["learning_rate"],
            0.9,
            nesterov=True,
            weight_decay=5e-4,
        )
        start = time.perf_counter()
        for _ in range(settings["steps"]):
            points = (
                ascend(classifier, images, labels, settings) if settings["pgd_steps"] else images
            )
            optimizer.zero_grad()
            loss = functional.cross_entropy(classifier(points), labels)
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "loss": loss.item()}), flush=True)


if __name__ == "__main__":
    main()
