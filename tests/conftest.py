"""What tests share: real data and reference values, where they are."""

import fnmatch
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxrobust import models

# LLVM's optimisations are left out, here and in scripts under test: compiling takes most of the time of
# the tests. XLA's own are all there. `test_quickstart_quick` runs without this, as users do.
_QUICK = " --xla_backend_optimization_level=0"
OWN_XLA_FLAGS = os.environ.get("XLA_FLAGS", "").replace(_QUICK, "")
os.environ["XLA_FLAGS"] = OWN_XLA_FLAGS + _QUICK


# Where the tests run in the background Ctrl-C is ignored, and would be by those who press it here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Slow by nature: whole studies, trainings in several processes, tables over all networks or attacks.
# They run by `pytest -m nightly`, and are left out without it.
NIGHTLY = (
    "test_attacks.py::test_works_in_a_gradient_around_it_whatever_computes_convolutions",
    "test_certificates_docs.py::test_certified_is_at_most_robust_and_that_at_most_clean",
    "test_certificates_sound.py::test_the_librarys_networks[[]photo_cnn]",
    "test_certificates_sound.py::test_the_librarys_networks[[]simple_cnn]",
    "test_certificates_sound.py::test_the_other_networks_have_bounds_too*",
    "test_cifar_mlp.py::test_quick_from_end_to_end_resumed_and_refused",
    "test_compression_docs.py::test_the_examples_make_what_the_text_says",
    "test_data_cifar_jpeg.py::test_jpeg_of_the_real_file",
    "test_experiments.py::test_sports10_quick_stopped_and_continued",
    "test_experiments.py::test_train_by_several_methods",
    "test_export.py::test_depthwise_convolutions_and_their_gradients",
    "test_model_invariants.py::*[[]densenet121]",
    "test_model_invariants.py::*[[]mobilenet_v1]",
    "test_model_invariants.py::*[[]mobilenet_v2]",
    "test_model_invariants.py::*[[]photo_cnn]",
    "test_model_invariants.py::*[[]preact_resnet18]",
    "test_model_invariants.py::*[[]resnet18]",
    "test_model_invariants.py::*[[]resnet34]",
    "test_model_invariants.py::*[[]resnet50]",
    "test_model_invariants.py::*[[]vgg19]",
    "test_model_invariants.py::*[[]wide_resnet]",
    "test_models.py::*[[]densenet121]",
    "test_models.py::*[[]mobilenet_v2]",
    "test_models.py::*[[]resnet50]",
    "test_ops.py::test_input_gradients_of_the_networks_equal_plain_ones*[-]*net[_0-9]*[0-9]]",
    "test_ops.py::test_input_gradients_of_the_networks_equal_plain_ones*vgg19]",
    "test_ops.py::test_input_gradients_of_the_networks_equal_plain_ones*wide_resnet]",
    "test_pruned_benchmark.py::test_quick_from_end_to_end_resumed_and_refused",
    "test_pruning_docs.py::test_the_shrunk_network_computes_what_the_masked_one_does",
    "test_pruning_filters.py::*[[]densenet121]",
    "test_pruning_filters.py::*[[]mobilenet_v*]",
    "test_queue.py::test_one_batch_and_the_queue_find_the_same",
    "test_queue.py::test_two_devices_give_the_verdicts_of_one",
    "test_queue.py::test_two_processes_give_the_verdicts_of_one",
    "test_queue.py::test_verdicts_do_not_depend_on_the_lanes[[]None-*]",
    "test_queue.py::test_verdicts_do_not_depend_on_the_lanes[[]groups0-1]",
    "test_report_sections.py::test_the_records_are_folded_with_parts_and_capped",
    "test_robust_compression.py::test_quick_from_end_to_end_resumed_and_refused",
    "test_sports10_published.py::test_the_published_figures_come_out*",
    "test_training_compression.py::test_admm_descends_the_augmented_lagrangian",
    "test_training_compression_fit.py::test_a_run_that_was_stopped_ends_like_one_that_was_not*",
    "test_training_compression_fit.py::test_every_method_ends_at_exactly_its_budget_and_trains[[][rh]*]",
    "test_training_compression_fit.py::test_free_training_and_a_schedule_of_attacks_compress_too",
    "test_training_devices.py::test_devices_and_processes_share_a_batch_and_change_nothing*",
    "test_training_resume.py::test_interrupted_run_says_how_to_go_on_and_does",
    "test_training_resume.py::test_killed_run_ends_like_an_undisturbed_one*",
    "test_users_networks.py::*",
)


def pytest_configure(config: pytest.Config) -> None:
    """The fast tests, unless others are asked for."""
    if not config.option.markexpr:
        config.option.markexpr = "not nightly"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a broken change should show in seconds. Then the longest: none ends last.

    A mark may say how long a test takes: `slow(90)`, in seconds.
    """
    for item in items:
        name = f"{item.path.name}::{item.name}"
        if any(fnmatch.fnmatch(name, pattern) for pattern in NIGHTLY):
            item.add_marker(pytest.mark.nightly)

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
