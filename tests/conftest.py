"""What tests share: real data and reference values, where they are."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import nightly
import numpy as np
import pytest

from jaxrobust import compilation, models

# What one test or one worker has compiled is not compiled again by another, nor by scripts under test.
# The first process makes the folder and removes it, unless who runs the tests has named one to keep.
_MADE = None if "JAX_COMPILATION_CACHE_DIR" in os.environ else tempfile.mkdtemp(prefix="jaxrobust-")
for _name, _value in {
    "compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", _MADE),
    "persistent_cache_min_compile_time_secs": 0,
    "persistent_cache_min_entry_size_bytes": -1,
}.items():
    os.environ[f"JAX_{_name.upper()}"] = str(_value)  # of workers and scripts
    jax.config.update(f"jax_{_name}", _value)

# LLVM's optimisations are left out, here and in scripts under test: compiling takes most of the time of
# the tests. XLA's own are all there. `test_quickstart_quick` runs without this, as users do.
_QUICK = " --xla_backend_optimization_level=0"
OWN_XLA_FLAGS = os.environ.get("XLA_FLAGS", "").replace(_QUICK, "")
os.environ["XLA_FLAGS"] = OWN_XLA_FLAGS + _QUICK


# Programs with convolutions of oneDNN cannot be shared, because jaxlib cannot write them to a file.
# Tests that compare both turn it on. To run all tests with it, set JAXROBUST_ONEDNN=1.
os.environ.setdefault("JAXROBUST_ONEDNN", "0")

# Where the tests run in the background Ctrl-C is ignored, and would be by those who press it here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """The fast tests, unless others are asked for."""
    if not config.option.markexpr:
        config.option.markexpr = "not nightly"


def pytest_unconfigure() -> None:
    """The cache of this run is removed by the process that made it."""
    if _MADE is not None:
        shutil.rmtree(_MADE, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: a broken change should show in seconds. Then the longest: none ends last.

    A mark may say how long a test takes: `slow(90)`, in seconds.
    """
    for item in items:
        if nightly.is_nightly(item):
            item.add_marker(pytest.mark.nightly)

    if not any("::" in name for name in config.args):  # whole files
        nightly.check(items)

    def length(item: pytest.Item) -> tuple[bool, float]:
        mark = item.get_closest_marker("slow")
        return mark is not None, -mark.args[0] if mark is not None and mark.args else 0.0

    items.sort(key=length)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images of tests stay out of the user's cache; scripts under test inherit this."""
    os.environ["JAXROBUST_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("JAXROBUST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Compiled programs of one file of tests are let go before the next.

    Each takes memory maps, of which the system gives a process 65,530: thousands of programs end in a
    crash of the compiler.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def unchanged_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`studies.run_script` changes nothing of this process, in which it is to run nothing."""
    for changed in ("use_every_core", "keep_programs", "keep_memory"):
        monkeypatch.setattr(compilation, changed, lambda: None)


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
