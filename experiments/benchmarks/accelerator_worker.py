"""The PyTorch side of accelerator.py: answers each line of JSON with one of its own."""

import contextlib
import json
import sys
import time
from typing import Any

import numpy as np
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from experiments.benchmarks.torch_networks import Normalised, ResNet50, ResNetSmall, WideResNet

NETWORKS: dict[str, Any] = {
    "resnet18": lambda: ResNetSmall((64, 128, 256, 512)),
    "resnet_small": ResNetSmall,
    "wide_resnet": WideResNet,
    "resnet50": ResNet50,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Cast(nn.Module):
    """A classifier that computes in another type, channels last."""

    def __init__(self, network: nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.network, self.kind = network.to(kind), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images float32 [B, C, H, W] -> logits float32 [B, K]."""
        x = x.to(self.kind).contiguous(memory_format=torch.channels_last)
        return self.network(x).float()


def done() -> None:
    """Waits until the device has computed everything."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Side:
    """What has been asked for so far."""

    def network(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Builds a network with a batch of images, writes both, or reads weights that are there."""
        torch.manual_seed(0)
        kind = torch.bfloat16 if ask["precision"] == "bfloat16" else torch.float32
        exact = ask["precision"] == "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not exact
        network = NETWORKS[ask["name"]]().to(DEVICE)
        side = ask["side"]
        if ask.get("weights"):
            with np.load(ask["weights"]) as file:
                arrays = {k: torch.from_numpy(file[k]) for k in file.files}
            images, labels = arrays.pop("images"), arrays.pop("labels")
            found = {k.removeprefix("weights/"): v for k, v in arrays.items()}
            missing, unknown = network.load_state_dict(found, strict=False)
            missing = [name for name in missing if not name.endswith("num_batches_tracked")]
            if missing or unknown:
                raise ValueError(f"The weights lack {missing} and have {unknown} besides.")
        else:
            network.train()
            with torch.no_grad():  # running statistics away from 0 and 1
                for _ in range(3):
                    network(torch.randn(16, 3, side, side, device=DEVICE))
            images, labels = torch.rand(ask["batch_size"], 3, side, side), None
        classifier = Normalised(network, ask["mean"], ask["std"]).to(DEVICE).eval()
        self.images = images.to(DEVICE)
        few = self.images[:32]
        with torch.no_grad():
            logits = classifier(few)
            answers = torch.cat([classifier(part) for part in self.images.split(256)]).argmax(1)
        self.labels = answers if labels is None else labels.long().to(DEVICE)
        if not ask.get("weights"):
            np.savez(
                ask["path"],
                **{f"weights/{k}": v.cpu().numpy() for k, v in network.state_dict().items()},
                images=self.images.permute(0, 2, 3, 1).cpu().numpy(),
                labels=self.labels.cpu().numpy(),
                logits=logits.float().cpu().numpy(),
            )
        classifier.requires_grad_(False)
        self.eager = Cast(classifier.to(memory_format=torch.channels_last), kind)
        return {"torch": torch.__version__, "device": DEVICE}

    def attack(self, ask: dict[str, Any]) -> dict[str, Any]:
        """One attack on all images, a batch at a time."""
        classifier = torch.compile(self.eager) if ask["compiled"] else self.eager
        epsilon, steps = ask["epsilon"], ask["num_steps"]
        attack: Any
        if ask["attack"] == "PGD":
            attack = torchattacks.PGD(classifier, epsilon, epsilon / 4, steps)
        elif ask["attack"] == "APGD":
            attack = torchattacks.APGD(classifier, eps=epsilon, steps=steps)
        else:
            attack = torchattacks.AutoAttack(classifier, eps=epsilon, n_classes=10)
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        size, seconds = ask["batch_size"], []
        for _ in range(ask["rounds"]):
            done()
            start = time.perf_counter()
            parts = zip(self.images.split(size), self.labels.split(size), strict=True)
            found = torch.cat([attack(images, labels) for images, labels in parts])
            done()
            seconds.append(time.perf_counter() - start)
        with torch.no_grad():
            answers = torch.cat([self.eager(part) for part in found.split(size)]).argmax(1)
        memory = torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None
        robust = int((answers == self.labels).sum())
        return {"seconds": seconds, "robust": robust, "memory": memory}

    def train(self, ask: dict[str, Any]) -> dict[str, Any]:
        """Steps of SGD on images that PGD has made with the network in evaluation mode."""
        network = NETWORKS[ask["name"]]().to(DEVICE)
        whole = Normalised(network, ask["mean"], ask["std"]).to(DEVICE)
        whole = whole.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(whole.parameters(), 0.1, 0.9, nesterov=True, weight_decay=5e-4)
        classifier = torch.compile(whole) if ask["compiled"] else whole
        narrow = ask["precision"] == "bfloat16"
        images = torch.rand(ask["batch_size"], 3, ask["side"], ask["side"], device=DEVICE)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.arange(ask["batch_size"], device=DEVICE) % 10
        epsilon, seconds = ask["epsilon"], []

        def loss_of(points: torch.Tensor) -> torch.Tensor:
            context: Any = contextlib.nullcontext()
            if narrow:
                context = torch.autocast(DEVICE, torch.bfloat16)
            with context:
                return functional.cross_entropy(classifier(points).float(), labels)

        for _ in range(ask["num_steps"]):
            done()
            start = time.perf_counter()
            whole.eval()
            points = images
            for _ in range(ask["pgd_steps"]):
                points = points.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss_of(points), points)
                points = points.detach() + epsilon / 4 * gradient.sign()
                points = (images + (points - images).clamp(-epsilon, epsilon)).clamp(0, 1)
            whole.train()
            optimizer.zero_grad()
            loss_of(points.detach()).backward()
            optimizer.step()
            done()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}


def main() -> None:
    """Serves until it is killed."""
    side = Side()
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            answer = getattr(side, ask["do"])(ask)
        except Exception as error:  # the other side goes on with what is left
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
