"""Loads the classifier that a command line names: a saved model, a training run or a function."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import compilation, models, programs, training
from jaxrobust.evaluation.search import prepare
from jaxrobust.models.building import error_words, imported
from jaxrobust.types import LogitsFn


def load_model(name: str, weights: str = "last") -> models.Saved:
    """Loads the classifier that a command line names.

    This can run code: "module:function" is imported and called, and so is the Python function that a
    saved model names if its network is not one of `jaxrobust.models.create`. Load only files that you
    trust.

    Args:
      name: A folder of `jaxrobust.training.fit`, a file of `jaxrobust.models.save`, or
        "module:function", a Python function without arguments that returns the LogitsFn. The network of
        a training run must be one of `jaxrobust.models.create`.
      weights: "last" or "best", the weights to load from a training run.

    Returns:
      The classifier, images float32 [B, H, W, C] in [0, 1] -> logits [B, K], and what was saved with
      it, such as the names of the classes.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: The file or folder is of another kind, its network cannot be built, or the function
        cannot be imported, raises an error or does not return a function.
    """
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    path = Path(name).expanduser()
    if path.is_dir():
        return models.Saved(_of_folder(path, weights))
    if path.is_file():
        return models.load(path, trust=True)
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise FileNotFoundError(
            f"`model` must be the folder of a training run, a saved model or module:function, got "
            f"{name!r}, which does not exist."
        )
    return models.Saved(_called(name))


def check_classifier(logits_fn: LogitsFn, name: str, image_shape: tuple[int, ...]) -> int:
    """Checks that a classifier takes images of a shape, without computing anything.

    Args:
      logits_fn: The classifier, as `load_model` returns it.
      name: The name that `load_model` was given, for the message.
      image_shape: (H, W, C).

    Returns:
      The number of classes.

    Raises:
      ValueError: The classifier does not take such images, or does not return logits [B, K].
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    try:
        return programs.logits_shape(logits_fn, image)[1]
    except Exception as error:
        if "`logits_fn`" in str(error):  # an error message of this library
            raise ValueError(f"{name!r} cannot be evaluated: {error}") from error
        raise ValueError(
            f"{name!r} raises an error for images of shape {tuple(image_shape)}: {error_words(error)}"
        ) from error


def describe_inputs(
    logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Describes the inputs of a run, so that `start` can tell whether they have changed.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C].
      labels: int [N].

    Returns:
      (fingerprints of the classifier, the images and the labels; the logits of the images, float32
      [N, K]).

    Raises:
      TypeError: The images, labels or logits have the wrong type.
      ValueError: The images, labels or logits have the wrong shape or values.
    """
    clean = prepare(logits_fn, images, labels)
    identity = programs.fingerprint(logits_fn, clean.one_image)
    parts = {"images": clean.images, "labels": clean.labels}
    fingerprints = {name: training.describe(array) for name, array in parts.items()}
    return fingerprints | identity, clean.clean_logits


def num_parameters(logits_fn: LogitsFn) -> int | None:
    """Counts the weights of a classifier; None for a function whose weights are not visible."""
    if isinstance(logits_fn, models.Classifier):  # the mean and the deviation are not counted
        weights = logits_fn.variables
        if isinstance(weights, Mapping) and "params" in weights:  # nor are running statistics
            weights = weights["params"]
    else:
        weights = compilation.as_pytree(logits_fn)
    return sum(np.size(leaf) for leaf in jax.tree.leaves(weights)) or None


def _of_folder(folder: Path, weights: str) -> models.Classifier:
    """Loads the network of a run of `fit`."""
    if not (folder / "settings.json").is_file():
        if (folder / "_CHECKPOINT_METADATA").is_file():
            raise ValueError(
                f"{str(folder)!r} is a checkpoint of orbax, as training.save_variables of earlier "
                "releases wrote: read its weights with orbax.checkpoint, and save models.Classifier("
                "network.apply, weights, mean, std) with jaxrobust.models.save. (For a training run, "
                "give the run's own folder.)"
            )
        raise ValueError(f"{str(folder)!r} is not the folder of a run of jaxrobust.training.fit.")
    variables, settings = training.load_run(folder, weights)
    described = dict(settings["model"])
    kind = described.pop("type")
    for model, network in models.MODELS.items():
        if kind == f"{type(network).__module__}.{type(network).__qualname__}":
            made = models.create(model, **described)
            mean, std = (np.asarray(settings[name], np.float32) for name in ("mean", "std"))
            return models.Classifier(made.apply, variables, mean, std)
    raise ValueError(
        f"{str(folder)!r} is a run of {kind}, which is not a network of jaxrobust.models; save what "
        "`fit` returns with jaxrobust.models.save, or name a module:function that returns it as a "
        "jaxrobust.models.Classifier."
    )


def _called(name: str) -> LogitsFn:
    function = imported(name)
    try:
        logits_fn = function()
    except Exception as error:
        raise ValueError(
            f"{name!r}, called without arguments to get the classifier, raised {error_words(error)}. "
            "It must be a function that returns the classifier: `def load(): return logits_fn`."
        ) from error
    if not callable(logits_fn):
        raise ValueError(
            f"{name!r} must return a function from images to logits, got {type(logits_fn).__name__}."
        )
    return logits_fn
