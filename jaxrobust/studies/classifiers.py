"""The classifier that a command line names: a file or a run of ours, or anybody's Python function."""

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import compilation, models, programs, pruning, training
from jaxrobust.evaluation.search import prepare
from jaxrobust.pruning.quantization import QuantizedKernel
from jaxrobust.types import LogitsFn

_NEEDED = (
    'their metadata must say {"model": ..., "num_classes": ..., "mean": ..., "std": ...} and, where '
    'the network has other sizes than its own, "sizes"'
)


def load_classifier(name: str, weights: str = "last") -> LogitsFn:
    """A function from images to logits, by its name on a command line.

    Args:
      name: A folder of `jaxrobust.training.fit` or `save_variables`, a file of
        `jaxrobust.pruning.save_sparse`, or "module:function", a Python function without arguments that
        returns the LogitsFn. Saved weights must be of a network of `jaxrobust.models.create`, and
        their metadata have its arguments: "model", "num_classes", "sizes" (where they are not the
        network's own), "mean" and "std".
      weights: "last" or "best", of a run of `fit`.

    Returns:
      Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].

    Raises:
      FileNotFoundError: No such file.
      ValueError: A file that is none of these, a network that cannot be made of it, or a function
        that cannot be imported, raises an error or returns something else.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "settings.json").is_file():
            variables, settings = training.load_run(path, weights)
            return _built(name, variables, _of_run(name, settings))
        try:
            variables, metadata = training.load_variables(path)
        except Exception as error:  # Orbax has errors of many classes
            raise ValueError(
                f"{name!r} is neither a run of jaxrobust.training.fit nor a saved model."
            ) from error
        return _built(name, variables, metadata)
    if path.is_file():
        variables, metadata = pruning.load_sparse(path)
        return _built(name, variables, metadata)
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise FileNotFoundError(
            f"`model` must be a folder of a training run, a saved model or module:function, got "
            f"{name!r}, which does not exist."
        )
    return _called(name, module, function)


def check_classifier(logits_fn: LogitsFn, name: str, image_shape: tuple[int, ...]) -> int:
    """How many classes it tells apart, found out without computing anything.

    Args:
      logits_fn: Of `load_classifier`.
      name: As given to it.
      image_shape: (H, W, C).

    Raises:
      ValueError: It does not take such images, or does not return logits [B, K].
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    try:
        return programs.logits_shape(logits_fn, image)[1]
    except Exception as error:
        if "`logits_fn`" in str(error):  # the library's own words for what is wrong
            raise ValueError(f"{name!r} cannot be evaluated: {error}") from error
        raise ValueError(
            f"{name!r} raises an error for images of shape {tuple(image_shape)}: {_words(error)}"
        ) from error


def describe_inputs(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """What a run is of: fingerprints for `open_run`, and the logits float32 [N, K] of the images.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C].
      labels: int [N].

    Raises:
      TypeError, ValueError: Images, labels or logits that nothing can be made of.
    """
    clean = prepare(logits_fn, images, labels)
    identity = programs.fingerprint(logits_fn, clean.one_image)
    parts = {"images": clean.images, "labels": clean.labels}
    fingerprints = {name: training.describe(array) for name, array in parts.items()}
    return fingerprints | identity, clean.clean_logits


def num_parameters(logits_fn: LogitsFn) -> int | None:
    """How many weights a classifier has; None for a function that does not show them."""
    if isinstance(logits_fn, models.Classifier):
        return sum(leaf.size for leaf in jax.tree.leaves(logits_fn.variables["params"]))
    leaves = jax.tree.leaves(compilation.as_pytree(logits_fn))
    return sum(np.size(leaf) for leaf in leaves) or None


def _of_run(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `save_variables` would have been given as metadata, from the settings of a run."""
    described = dict(settings["model"])
    kind = described.pop("type")
    for model, network in models.MODELS.items():
        if kind == f"{type(network).__module__}.{type(network).__qualname__}":
            facts = {"model": model, "num_classes": described.pop("num_classes")}
            return facts | {"sizes": described, "mean": settings["mean"], "std": settings["std"]}
    raise ValueError(
        f"{name!r} is a run of {kind}, which is no network of jaxrobust.models; name a "
        "module:function that returns it as a jaxrobust.models.Classifier."
    )


def _built(name: str, variables: Any, metadata: Mapping[str, Any]) -> LogitsFn:
    missing = [key for key in ("model", "num_classes", "mean", "std") if key not in metadata]
    if missing:
        raise ValueError(f"The weights at {name!r} lack {', '.join(missing)}: {_NEEDED}.")
    try:
        sizes = dict(metadata.get("sizes") or {})
        network = models.create(metadata["model"], metadata["num_classes"], **sizes)
        mean = np.asarray(metadata["mean"], np.float32)
        std = np.asarray(metadata["std"], np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"No network can be made of {name!r}: {error} ({_NEEDED}.)") from error
    leaves = jax.tree.leaves(variables, is_leaf=lambda leaf: isinstance(leaf, QuantizedKernel))
    quantised = any(isinstance(leaf, QuantizedKernel) for leaf in leaves)
    apply = pruning.quantized_apply(network.apply) if quantised else network.apply
    return models.Classifier(apply, variables, mean, std)


def _called(name: str, module: str, function: str) -> LogitsFn:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"The module of {name!r} cannot be imported: {_words(error)}. It must be in this folder or "
            "on PYTHONPATH."
        ) from error
    try:
        for part in function.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ValueError(f"{name!r}: the module {module!r} has no {function!r}.") from error
    if not callable(found):
        raise ValueError(f"{name!r} must be a function, got {type(found).__name__}.")
    try:
        logits_fn = found()
    except Exception as error:
        raise ValueError(
            f"{name!r}, called without arguments to get the classifier, raised {_words(error)}. It "
            "must be a function that returns it: `def load(): return logits_fn`."
        ) from error
    if not callable(logits_fn):
        raise ValueError(
            f"{name!r} must return a function from images to logits, got "
            f"{type(logits_fn).__name__}."
        )
    return logits_fn


def _words(error: Exception) -> str:
    """Somebody else's error in a line: its class, its first line and where it was raised."""
    first = (str(error).strip().splitlines() or [""])[0]
    # Where the user's code is, not the depths of a library that it calls.
    others = ("site-packages", "<frozen", sysconfig.get_path("stdlib"), __file__)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in others):
            return f"{type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {first}"
