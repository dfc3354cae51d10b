"""Data sets in memory, and their augmentation inside jit.

`load` returns a `Dataset`: two splits of uint8 images with their labels. Put a split on the device
once, then index it, convert it to [0, 1] and augment it there, which is faster than on the host.
"""

from jaxrobust.data import augment
from jaxrobust.data.dataset import Dataset, SkippedFile, Split
from jaxrobust.data.erasing import Erasing
from jaxrobust.data.folds import stratified_folds
from jaxrobust.data.image_files import read_image
from jaxrobust.data.loading import NAMES, load
from jaxrobust.data.resizing import Resized

__all__ = [
    "NAMES",
    "Dataset",
    "Erasing",
    "Resized",
    "SkippedFile",
    "Split",
    "augment",
    "load",
    "read_image",
    "stratified_folds",
]
