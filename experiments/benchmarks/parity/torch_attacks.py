"""The attacks of three PyTorch libraries, each with the settings of its paper rather than its defaults.

Where a library's default differs from the paper, the difference is said where it is undone. An attack
here is a function without arguments that returns the attacked images: what it takes to build it does
not count towards its time.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

Run = Callable[[], torch.Tensor]
LIBRARIES = ("torchattacks", "art", "foolbox")


def build(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, request: dict) -> Run:
    """The attack that a request asks for.

    Args:
      model: Images float32 [B, C, H, W] in [0, 1] -> logits [B, K].
      images: What to attack.
      labels: int64 [B].
      request: {"library", "attack", "norm" ("linf", "l2", "l1"), "epsilon"} and settings.

    Raises:
      ValueError: An attack that the library does not have, or not in this norm.
    """
    library, name = request["library"], request["attack"]
    if library == "torchattacks":
        return functools.partial(_torchattacks(model, request), images, labels)
    if library == "art":
        attack = _art(model, images, request)
        arrays = images.contiguous().cpu().numpy(), labels.cpu().numpy()
        return lambda: torch.from_numpy(attack.generate(*arrays).astype(np.float32))
    if library == "foolbox":
        return _foolbox(model, images, labels, request)
    raise ValueError(f"`library` must be one of {LIBRARIES}, got {library!r} ({name}).")


def _torchattacks(model: nn.Module, request: dict) -> Callable[..., torch.Tensor]:
    import torchattacks

    name, epsilon, norm = request["attack"], request.get("epsilon"), request["norm"]
    steps, seed = request.get("num_steps", 100), request.get("seed", 0)
    restarts, queries = request.get("num_restarts", 1), request.get("num_queries", 5000)
    if norm == "l1":
        raise ValueError(f"torchattacks has no {name} in l1.")
    common = {"eps": epsilon, "norm": {"linf": "Linf", "l2": "L2"}[norm], "seed": seed}

    def one(attack: str) -> Any:
        """Its number of steps is 10 by default, within AutoAttack too; the paper's is 100."""
        if attack == "APGD":
            loss = request.get("loss", "ce")
            return torchattacks.APGD(model, steps=steps, n_restarts=restarts, loss=loss, **common)
        if attack == "APGDT":
            return torchattacks.APGDT(model, steps=steps, n_restarts=1, n_classes=10, **common)
        if attack in ("FAB", "FABT"):
            targets = {"multi_targeted": attack == "FABT", "n_classes": 10}
            runs = 1 if attack == "FABT" else restarts
            return torchattacks.FAB(model, steps=steps, n_restarts=runs, **targets, **common)
        # By default it rescales the schedule of window sizes to the queries; AutoAttack does not.
        return torchattacks.Square(model, n_queries=queries, resc_schedule=False, **common)

    if name == "AutoAttack":  # standard
        return torchattacks.MultiAttack([one(n) for n in ("APGD", "APGDT", "FABT", "Square")])
    if name in ("APGD", "APGDT", "FAB", "FABT", "Square"):
        return one(name)
    size = request.get("step_size", (epsilon or 0.0) / 10)
    torch.manual_seed(seed)
    if name == "PGD" and norm == "linf":
        return torchattacks.PGD(model, eps=epsilon, alpha=size, steps=steps)
    if name == "PGD":
        return torchattacks.PGDL2(model, eps=epsilon, alpha=size, steps=steps)
    if name == "MIFGSM" and norm == "linf":
        decay = request.get("decay", 1.0)
        return torchattacks.MIFGSM(model, eps=epsilon, alpha=size, steps=steps, decay=decay)
    raise ValueError(f"torchattacks has no {name} in {norm}.")


def _art(model: nn.Module, images: torch.Tensor, request: dict) -> Any:
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    name, epsilon = request["attack"], request.get("epsilon") or 0.0
    norm: Any = {"linf": np.inf, "l2": 2, "l1": 1}[request["norm"]]
    steps, queries = request.get("num_steps", 100), request.get("num_queries", 5000)
    restarts = request.get("num_restarts", 1)
    batch_size, quiet = request.get("batch_size", 256), {"verbose": False}
    shape, device = tuple(images.shape[1:]), "gpu" if images.is_cuda else "cpu"
    np.random.seed(request.get("seed", 0))  # noqa: NPY002 (the generator that ART uses)
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type=device
    )

    losses = {"ce": "cross_entropy", "dlr": "difference_logits_ratio"}
    if name == "AutoProjectedGradientDescent":
        return evasion.AutoProjectedGradientDescent(
            classifier,
            norm=norm,
            eps=epsilon,
            # By default 0.1; the paper starts with 2 epsilon (l1: epsilon).
            eps_step=epsilon * (1 if norm == 1 else 2),
            max_iter=steps,
            nb_random_init=restarts,
            batch_size=batch_size,
            loss_type=losses[request.get("loss", "ce")],
            **quiet,
        )
    if name == "SquareAttack":
        return evasion.SquareAttack(
            classifier,
            norm=norm,
            eps=epsilon,
            max_iter=queries,
            nb_restarts=restarts,
            batch_size=batch_size,
            **quiet,
        )
    if name == "DeepFool":  # its overshoot is 1e-6 by default
        return evasion.DeepFool(classifier, steps, request["overshoot"], 10, batch_size, **quiet)
    raise ValueError(f"ART has no {name} here.")


def _foolbox(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, request: dict
) -> Callable[[], torch.Tensor]:
    import foolbox

    name, steps = request["attack"], request.get("num_steps", 50)
    attack: Any
    if name == "L2CarliniWagnerAttack":
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=request.get("num_searches", 9),
            steps=request.get("num_iterations", 1000),
            stepsize=request.get("learning_rate", 0.01),
            initial_const=request.get("initial_constant", 1e-3),
            # By default it stops a search early; here it takes the same number of steps as ours.
            abort_early=request.get("abort_early", False),
        )
    elif name in ("L2DeepFoolAttack", "LinfDeepFoolAttack"):
        overshoot = request["overshoot"]
        attack = getattr(foolbox.attacks, name)(steps=steps, candidates=10, overshoot=overshoot)
    else:
        raise ValueError(f"foolbox has no {name} here.")
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
    return lambda: attack(bounded, images, labels, epsilons=None)[0]
