"""PyTorch's side of the benchmarks, which runs in an environment of its own without jaxrobust.

Requests and answers are lines with one JSON object each. "do" in a request names a method of Session;
the other keys are its arguments. A request that fails is answered by {"error": ...}, and the next line
is read.
"""

import contextlib
import copy
import json
import sys
import time
import traceback
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from experiments.benchmarks import torch_attacks, torch_networks

Answer = dict[str, Any]
_INSIDE = 1e-5  # of epsilon: the tolerance of the ball
_BOX = 1e-6


class Session:
    """A network with its images, and the requests that can be made about them."""

    def load(
        self,
        path: str,
        device: str,
        draw: dict[str, Any] | None = None,
        num_threads: int | None = None,
        precision: str | None = None,
        channels_last: bool = False,
    ) -> Answer:
        """Loads a network with its images from a file (network_files.py), or draws and saves them.

        `draw` has "architecture", "mean", "std", "batch_size", the "side" of the images in pixels, and
        "statistics_batch", the size of the batches of noise for BatchNorm's statistics. `precision` is
        "float32", "tf32" or "bfloat16". Not all libraries can take images that are `channels_last`.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("jax uses a GPU, but this PyTorch finds none; set JAX_PLATFORMS=cpu.")
        torch.manual_seed(0)
        torch.set_num_threads(num_threads or torch.get_num_threads())
        if precision is not None:
            allowed = precision != "float32"
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        self.device = torch.device(device)
        data = self._drawn(**draw) if draw else self._read(path)
        model = torch_networks.Classifier(self.network, data["mean"].tolist(), data["std"].tolist())
        model = model.to(self.device).eval().requires_grad_(False)
        images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).to(self.device)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.images = images.contiguous(memory_format=layout)
        with torch.no_grad():
            logits = torch.cat([model(part) for part in self.images.split(256)]).cpu().numpy()
        if draw:
            data |= {"logits": logits, "labels": logits.argmax(1)}
            np.savez(path, **data)
        self.labels = torch.from_numpy(data["labels"]).long().to(self.device)
        self.first_weights = copy.deepcopy(self.network.state_dict())
        self.model = model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self.forms: dict[bool, Any] = {False: self.model}  # and compiled, on the first request
        return {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "num_threads": torch.get_num_threads(),
            "logits_difference": float(np.abs(logits - data["logits"]).max()),
        }

    def _read(self, path: str) -> dict[str, Any]:
        with np.load(path, allow_pickle=False) as archive:
            data = dict(archive)
        self.network = torch_networks.create(str(data["architecture"]), data["widths"].tolist())
        state = self.network.state_dict()
        # Matched by order, because the file has the names of other implementations.
        names = [name for name in state if not name.endswith("num_batches_tracked")]
        weights = [torch.from_numpy(v) for k, v in data.items() if k.startswith("weights/")]
        self.network.load_state_dict(state | dict(zip(names, weights, strict=True)))
        return data

    def _drawn(
        self, architecture: str, batch_size: int, side: int, statistics_batch: int, **pixels: Any
    ) -> dict[str, Any]:
        self.network = torch_networks.create(architecture).to(self.device).train()
        shape = 3, side, side
        with torch.no_grad():  # running statistics away from 0 and 1, so that a wrong import shows
            for _ in range(3 if statistics_batch else 0):
                self.network(torch.randn(statistics_batch, *shape, device=self.device))
        images = torch.rand(batch_size, *shape).permute(0, 2, 3, 1).numpy()
        weights = {f"weights/{k}": v.cpu().numpy() for k, v in self.network.state_dict().items()}
        arrays = {name: np.array(value, np.float32) for name, value in pixels.items()}
        return weights | arrays | {"images": images}

    def attack(self, compiled: bool = False, **request: Any) -> Answer:
        """Runs and judges an attack (torch_attacks.py).

        Adds "seconds" to the verdict and, on a GPU, "memory" in bytes.
        """
        clean, labels = self._chosen(request)
        run = torch_attacks.build(self._form(compiled), clean.clone(), labels, request)
        if clean.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        start = self._time()
        found = run()
        seconds = self._time() - start
        memory = torch.cuda.max_memory_allocated() if clean.is_cuda else None
        self.model.eval()  # the library may have left it in another mode
        return self._judged(found.detach(), request) | {"seconds": seconds, "memory": memory}

    def judge(self, path: str, **request: Any) -> Answer:
        """Judges images that were made elsewhere: float32 [B, H, W, C] in a .npy file."""
        return self._judged(torch.from_numpy(np.load(path)).permute(0, 3, 1, 2), request)

    def _judged(self, found: torch.Tensor, request: dict[str, Any]) -> Answer:
        """Judges the images themselves, whatever a library reports about them.

        An image is robust if the clean image is right, and the returned image is right too or is
        outside the ball or [0, 1]. "outside" counts the images outside that fool the network.
        """
        clean, labels = self._chosen(request)
        found = found.contiguous().to(self.device)
        difference = (found.double() - clean.double()).flatten(1)
        norms = {
            "linf": difference.abs().amax(1),
            "l2": difference.square().sum(1).sqrt(),
            "l1": difference.abs().sum(1),
        }
        with torch.no_grad():
            right = self.model(clean).argmax(1) == labels
            logits = self.model(found.float())
        fooled = (logits.argmax(1) != labels) & logits.isfinite().all(1)
        inside = ((found >= -_BOX) & (found <= 1 + _BOX)).flatten(1).all(1)
        if request.get("epsilon") is not None:
            inside &= norms[request["norm"]] <= request["epsilon"] * (1 + _INSIDE)
        return {
            "robust": (right & ~(fooled & inside)).tolist(),
            "fooled": fooled.tolist(),
            "outside": int((fooled & ~inside).sum()),
            **{name: values.tolist() for name, values in norms.items()},
        }

    def train(self, compiled: bool, **work: Any) -> Answer:
        """Takes steps of SGD from the loaded weights, on labels 0 to 9 in turn.

        PGD starts at the images themselves, with the network in evaluation mode. Returns "seconds" and
        the last "loss".
        """
        self.network.load_state_dict(self.first_weights)
        self.model.requires_grad_(True)
        images, labels = self.images, torch.arange(len(self.images), device=self.device) % 10
        epsilon, narrow = work["epsilon"], work["precision"] == "bfloat16"
        settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
        optimizer = torch.optim.SGD(self.model.parameters(), work["learning_rate"], **settings)

        def loss_of(points: torch.Tensor, reduction: str) -> torch.Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=narrow):
                logits = self._form(compiled)(points)
            return functional.cross_entropy(logits, labels, reduction=reduction)

        start = self._time()
        for _ in range(work["steps"]):
            points = images
            self.model.train(not work["pgd_steps"])
            for _ in range(work["pgd_steps"]):
                points = points.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss_of(points, "sum"), points)
                points = points.detach() + work["step_size"] * gradient.sign()
                points = (images + (points - images).clamp(-epsilon, epsilon)).clamp(0, 1)
            self.model.train()
            optimizer.zero_grad()
            loss = loss_of(points.detach(), "mean")
            loss.backward()
            optimizer.step()
        seconds = self._time() - start
        self.model.requires_grad_(False).eval()
        return {"seconds": seconds, "loss": loss.item()}

    def _chosen(self, request: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        indices = request.get("indices")
        rows = slice(None) if indices is None else torch.tensor(indices, device=self.device)
        return self.images[rows], self.labels[rows]

    def _form(self, compiled: bool) -> Any:
        if compiled not in self.forms:
            self.forms[compiled] = torch.compile(self.model)
        return self.forms[compiled]

    def _time(self) -> float:
        if self.device.type == "cuda":  # calls return before the GPU has finished
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Serves until it is killed."""
    session = Session()
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):  # libraries print to stdout
            try:
                ask = json.loads(line)
                answer = getattr(session, ask.pop("do"))(**ask)
            except Exception as error:  # a request that fails must not end the process
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
