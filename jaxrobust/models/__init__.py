"""Networks, the `Classifier` around them, saving and loading, and import of PyTorch weights."""

from jaxrobust.models.classifier import Classifier
from jaxrobust.models.convolutional import CNN, MLP, SimpleCNN
from jaxrobust.models.residual import ResNet
from jaxrobust.models.saving import Saved, load, save
from jaxrobust.models.torch_weights import from_torch
from jaxrobust.models.widths import resized
from jaxrobust.models.zoo import MODELS, create

__all__ = [
    "CNN",
    "MLP",
    "MODELS",
    "Classifier",
    "ResNet",
    "Saved",
    "SimpleCNN",
    "create",
    "from_torch",
    "load",
    "resized",
    "save",
]
