"""The PyTorch side of the comparison: runs in an environment of its own, without jaxrobust.

One JSON object a line, in and out. The first names the network and is answered with versions:

    {"network": "reference.npz", "num_threads": 2}

Each of the others asks for one attack on some of the network's images (all, without "indices"):

    {"library": "torchattacks", "attack": "APGD", "norm": "linf", "epsilon": 0.03, "indices": [0, 1]}

and is answered with what holds of the images that came back, whatever the library says about them:

    {"robust": [true, false], "fooled": ..., "l2": ..., "linf": ..., "l1": ..., "outside": 0,
     "seconds": 1.2}

An image is robust where the clean one is right and the returned one is right as well, or lies outside
the ball or of [0, 1]. "outside" counts those that fool but lie there. An attack that breaks answers
{"error": ...}.
"""

import contextlib
import importlib.metadata
import json
import sys
import time
import traceback
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.benchmarks.parity import torch_attacks
from experiments.benchmarks.torch_networks import CNN, Normalised, Relaid, ResNetSmall

_ARCHITECTURES: dict[str, Any] = {"cnn": CNN, "resnet_small": ResNetSmall}
_PACKAGES = ("torch", "torchattacks", "adversarial-robustness-toolbox", "foolbox")
_INSIDE = 1e-5  # of epsilon: the tolerance of the ball
_BOX = 1e-6


def load(path: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, float]:
    """The network of an .npz file (export.py beside this one), frozen, in evaluation mode.

    Returns:
      (classifier, images float32 [N, C, H, W], labels int64 [N], the largest difference of its logits
      from the file's).
    """
    with np.load(path, allow_pickle=False) as archive:
        data = dict(archive)
    network = _ARCHITECTURES[str(data["architecture"])](tuple(data["widths"].tolist()))
    prefix = "weights/"
    weights = {k[len(prefix) :]: torch.from_numpy(v) for k, v in data.items() if prefix in k}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path} lacks {missing} and has {unexpected} besides.")
    model = Relaid(Normalised(network, data["mean"].tolist(), data["std"].tolist()))
    model = model.eval().requires_grad_(False)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        difference = (model(images) - torch.from_numpy(data["logits"])).abs().max().item()
    return model, images, torch.from_numpy(data["labels"]).long(), difference


def judge(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    found: torch.Tensor,
    request: dict[str, Any],
) -> dict[str, Any]:
    """What holds of the images that an attack returned."""
    difference = (found.double() - clean.double()).flatten(1)
    norms = {
        "linf": difference.abs().amax(1),
        "l2": difference.square().sum(1).sqrt(),
        "l1": difference.abs().sum(1),
    }
    with torch.no_grad():
        right = model(clean).argmax(1) == labels
        logits = model(found.float())
    fooled = (logits.argmax(1) != labels) & logits.isfinite().all(1)
    inside = (found >= -_BOX).flatten(1).all(1) & (found <= 1 + _BOX).flatten(1).all(1)
    if request.get("epsilon") is not None:
        inside &= norms[request["norm"]] <= request["epsilon"] * (1 + _INSIDE)
    return {
        "robust": (right & ~(fooled & inside)).tolist(),
        "fooled": fooled.tolist(),
        "outside": int((fooled & ~inside).sum()),
        **{name: values.tolist() for name, values in norms.items()},
    }


def answer(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, request: dict[str, Any]
) -> dict[str, Any]:
    """Runs one attack and judges it."""
    rows = torch.tensor(request.get("indices", range(len(images))))
    clean, truth = images[rows], labels[rows]
    run = torch_attacks.build(model, clean.clone(), truth, request)
    start = time.perf_counter()
    found = run()
    seconds = time.perf_counter() - start
    model.eval()  # whatever the library left it in
    return judge(model, clean, truth, found.detach(), request) | {"seconds": seconds}


def main() -> None:
    """Serves one network."""
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["num_threads"])
    torch.manual_seed(0)
    model, images, labels, difference = load(settings["network"])
    hello = {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "num_images": len(images),
        "logits_difference": difference,
    }
    if difference > 1e-4:
        hello["error"] = f"The logits differ by {difference:.2g} from those in the file."
    print(json.dumps(hello), flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print
            try:
                reply = answer(model, images, labels, json.loads(line))
            except Exception as error:  # one that breaks must not end the others
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
