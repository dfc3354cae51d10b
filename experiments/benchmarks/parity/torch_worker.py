"""The PyTorch side of the comparison: runs in an environment of its own, without jaxrobust.

One JSON object a line, in and out. The first names the network and is answered with the device:

    {"network": "reference.npz", "num_threads": 2, "device": "cpu", "tolerance": 1e-4}

Each of the others asks for one attack on some of the network's images (all, without "indices"):

    {"library": "torchattacks", "attack": "APGD", "norm": "linf", "epsilon": 0.03, "indices": [0, 1]}

or to judge images that were made elsewhere, float32 [B, H, W, C] in a .npy file:

    {"judge": "images.npy", "norm": "linf", "epsilon": 0.03, "indices": [0, 1]}

and is answered with what holds of the images, whatever a library says about them ("seconds" for an
attack alone):

    {"robust": [true, false], "fooled": ..., "l2": ..., "linf": ..., "l1": ..., "outside": 0,
     "seconds": 1.2}

An image is robust where the clean one is right and the returned one is right as well, or lies outside
the ball or of [0, 1]. "outside" counts those that fool but lie there. An attack that breaks answers
{"error": ...}.
"""

import contextlib
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
_INSIDE = 1e-5  # of epsilon: the tolerance of the ball
_BOX = 1e-6


def load(path: str, device: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor, float]:
    """The network of an .npz file (export.py beside this one), frozen, in evaluation mode.

    Returns:
      (classifier, images float32 [N, C, H, W], labels int64 [N], the largest difference of its logits
      from the file's).
    """
    with np.load(path, allow_pickle=False) as archive:
        data = dict(archive)
    network = _ARCHITECTURES[str(data["architecture"])](tuple(data["widths"].tolist()))
    prefix = "weights/"
    weights = {
        k[len(prefix) :]: torch.from_numpy(v) for k, v in data.items() if k.startswith(prefix)
    }
    missing, unexpected = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(f"{path} lacks {missing} and has {unexpected} besides.")
    model = Relaid(Normalised(network, data["mean"].tolist(), data["std"].tolist()))
    model = model.eval().requires_grad_(False).to(device)
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous().to(device)
    with torch.no_grad():
        difference = (model(images).cpu() - torch.from_numpy(data["logits"])).abs().max().item()
    return model, images, torch.from_numpy(data["labels"]).long().to(device), difference


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
    """Runs one attack and judges it, or judges what another side has made."""
    rows = torch.tensor(request.get("indices", range(len(images))))
    clean, truth = images[rows], labels[rows]
    if "judge" in request:
        made = torch.from_numpy(np.load(request["judge"])).permute(0, 3, 1, 2)
        return judge(model, clean, truth, made.contiguous().to(clean.device), request)
    run = torch_attacks.build(model, clean.clone(), truth, request)
    _finish(clean)
    start = time.perf_counter()
    found = run()
    _finish(clean)
    seconds = time.perf_counter() - start
    model.eval()  # whatever the library left it in
    found = found.detach().to(clean.device)
    return judge(model, clean, truth, found, request) | {"seconds": seconds}


def _finish(images: torch.Tensor) -> None:
    """Waits for a GPU: it returns before it has computed."""
    if images.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Serves one network."""
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["num_threads"])
    torch.manual_seed(0)
    device = settings["device"]
    if device == "cuda" and not torch.cuda.is_available():
        words = (
            "jax computes on a GPU and this PyTorch cannot; set JAX_PLATFORMS=cpu, or install one."
        )
        print(json.dumps({"error": words}), flush=True)
        return
    model, images, labels, difference = load(settings["network"], device)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    hello = {
        "device": name,
        "num_threads": torch.get_num_threads(),
        "logits_difference": difference,
    }
    if difference > settings["tolerance"]:
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
