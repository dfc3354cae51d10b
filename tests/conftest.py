"""What tests share: real data and reference values, where they are."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxrobust import models

# Decoded images of tests do not belong into the user's cache. Scripts under test inherit it.
os.environ.setdefault("JAXROBUST_CACHE", tempfile.mkdtemp(prefix="jaxrobust-tests-"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a broken change should show in seconds."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and reference values; tests that need it skip without it."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("JAXROBUST_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set JAXROBUST_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def reference(shared: Path) -> dict[str, np.ndarray]:
    """The independently trained network's images, labels and logits."""
    return dict(np.load(shared / "reference" / "sports10_cnn" / "valid.npz"))


@pytest.fixture(scope="session")
def reference_classifier(shared: Path) -> models.Classifier:
    """The independently trained network."""
    state_dict = dict(np.load(shared / "reference" / "sports10_cnn" / "state_dict.npz"))
    variables = models.from_torch("cnn", state_dict)
    return models.Classifier(models.create("cnn").apply, variables, IMAGENET_MEAN, IMAGENET_STD)
