"""The attacks of three PyTorch libraries, by the names of their classes and arguments."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn


def build(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, request: dict[str, Any]
) -> Callable[[], torch.Tensor]:
    """Builds an attack: a function that returns the attacked images, so building it is not timed.

    `request` has "library" (torchattacks, art or foolbox), "attacks", a list of (class, arguments), and
    a "seed". Only torchattacks can have several attacks; each is made on the images that withstood
    those before it.
    """
    library, seed = request["library"], request.get("seed")
    if seed is not None:
        torch.manual_seed(seed)
    if library == "torchattacks":
        import torchattacks

        made = [_make(torchattacks, one, seed or 0, model) for one in request["attacks"]]
        attack = made[0] if len(made) == 1 else torchattacks.MultiAttack(made)
        return functools.partial(attack, images, labels)
    (only,) = request["attacks"]
    if library == "art":
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        np.random.seed(seed or 0)  # noqa: NPY002 (the generator that ART uses)
        device = {"clip_values": (0.0, 1.0), "device_type": "gpu" if images.is_cuda else "cpu"}
        shape = tuple(images.shape[1:])
        classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **device)
        attack = _make(evasion, only, seed, classifier, verbose=False)
        arrays = images.contiguous().cpu().numpy(), labels.cpu().numpy()
        return lambda: torch.from_numpy(attack.generate(*arrays).astype(np.float32))
    import foolbox

    attack = _make(foolbox.attacks, only, seed)
    bounded = foolbox.PyTorchModel(model, (0, 1), images.device)
    return lambda: attack(bounded, images, labels, epsilons=None)[0]


def _make(
    library: Any, chosen: tuple[str, dict[str, Any]], seed: Any, *model: Any, **more: Any
) -> Any:
    name, arguments = chosen
    kind = getattr(library, name)
    if "seed" in inspect.signature(kind).parameters:
        more["seed"] = seed
    return kind(*model, **arguments, **more)
