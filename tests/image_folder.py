"""A small image folder, for the tests of loading."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxrobust import data


def picture(seed: int, size: tuple[int, int] = (6, 6)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def load(root: Path, **options: object) -> data.Dataset:
    return data.load("image_folder", root, **options)


def make(folder: Path) -> Path:
    """Two classes, two images each in train, one each in test; PNG, so that pixels are exact."""
    seed = 0
    for split, count in (("train", 2), ("test", 1)):
        for name in ("cat", "Dog"):
            place = folder / split / name
            place.mkdir(parents=True)
            for index in range(count):
                picture(seed).save(place / f"{index}.png")
                seed += 1
    return folder
