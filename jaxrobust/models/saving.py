"""Saves and loads a model in one file: its network, weights, normalisation, class names and masks.

`jaxrobust.models.storage` describes the bytes. Besides the arrays the header has

    "network": {"build": "jaxrobust.models:create", "sizes": {"name": "cnn", "num_classes": 10}}
    "mean", "std": those of the Classifier, numbers or lists; null for another callable pytree
    "class_names": a list of strings, which may be empty
    "metadata": a JSON object of the user

The arrays are named by their path in the pytree: "params", "head", "kernel". The network is built by
calling its function with the sizes as keyword arguments.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from jaxrobust import checks, compilation
from jaxrobust.models import storage
from jaxrobust.models.building import (
    CREATE,
    Build,
    arrays_of,
    build_of,
    check_built,
    contents_of,
    evaluating,
    filled,
    is_quantized,
    keyed_leaves,
    module_of,
    nested,
    walked,
)
from jaxrobust.models.classifier import Classifier
from jaxrobust.models.storage import Key, words
from jaxrobust.models.zoo import arguments_of
from jaxrobust.types import LogitsFn, Masks


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """A loaded model.

    Attributes:
      classifier: The model, images float32 [B, H, W, C] in [0, 1] -> logits [B, K]: a Classifier, or
        the callable pytree that was saved. An nnx module is in evaluation mode.
      class_names: The names of the classes that were given to `save`, or ().
      masks: The masks that were given to `save`, or None. They have the structure of the classifier's
        weights, as `jaxrobust.pruning.apply_masks` takes them; masks of only some of the weights are
        nested dicts.
      metadata: The JSON object that was given to `save`, or {}.
    """

    classifier: Any
    class_names: tuple[str, ...] = ()
    masks: Masks | None = dataclasses.field(default=None, repr=False)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def save(
    path: str | os.PathLike[str],
    model: LogitsFn,
    *,
    build: str | None = None,
    sizes: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    masks: Masks | None = None,
    metadata: Mapping[str, Any] | None = None,
    sparse: bool = True,
) -> int:
    """Saves a model in one file, without the weights that are zero.

    `load` restores it bit for bit, and every command line takes the file as a model. The file is
    written atomically: if the process is killed, the old file remains. Its content is put together in
    memory first.

    A Classifier of a linen module, `Classifier(network.apply, variables, mean, std)`, needs no further
    argument. A network of `create`, also a shrunk or int8 one (`jaxrobust.pruning.quantize`), is saved
    by its name and sizes; another linen module by its class, which must be importable, and its fields,
    which must be JSON. Every other model needs a function that builds one like it, `build`.

    Args:
      path: The path of the file. Its folder is created if it does not exist; an existing file is
        replaced.
      model: A Classifier, or another callable pytree with its weights as leaves, in evaluation mode: an
        nnx or equinox module, or `jax.tree_util.Partial(apply, weights)`. Pruned weights must be 0
        (`jaxrobust.pruning.apply_masks`): `masks` are not applied.
      build: "module:function", a function that returns a new `model`, or its linen module. `load` puts
        the saved arrays into the result by their paths, whatever their shapes are. `save` calls it too,
        to compare the result with `model`.
      sizes: The keyword arguments of `build`, as JSON; lists are passed as tuples.
      class_names: The names of the K classes, or ().
      masks: Boolean masks with the structure of the weights, or of their "params": nested dicts or a
        module. They may cover only some of the weights, and are stored as bits.
      metadata: A JSON object for your own use. Arrays become lists.
      sparse: Whether zeros may be left out. False stores every weight, for a comparison of sizes.

    Returns:
      The size of the file in bytes.

    Raises:
      TypeError: The model needs `build`, or has leaves other than None and arrays of supported types;
        or the masks are not boolean; or the metadata are not JSON.
      ValueError: The result of `build` differs from the model (the message names the first path); the
        masks do not match the weights; a network of `create` has another number of classes than there
        are names; the metadata contain NaN, which JSON does not have; there are more than 64 levels; or
        the header is larger than 64 MiB.

    Example:
      >>> import tempfile
      >>> import jax, jax.numpy as jnp
      >>> from jaxrobust import models
      >>> network = models.create("mlp", num_classes=3, widths=(8,))
      >>> variables = network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> classifier = models.Classifier(network.apply, variables, mean=0.5, std=0.25)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     nbytes = models.save(f"{folder}/mlp.jrw", classifier, class_names=("a", "b", "c"))
      ...     saved = models.load(f"{folder}/mlp.jrw")
      >>> images = jnp.ones((1, 8, 8, 1))
      >>> saved.class_names, bool((saved.classifier(images) == classifier(images)).all())
      (('a', 'b', 'c'), True)
    """
    compilation.check_callable(model, "model")
    network = _build(model, build, sizes)
    mean, std = (model.mean, model.std) if isinstance(model, Classifier) else (None, None)
    _check_names(class_names, model)
    facts = {
        "network": {"build": network.function, "sizes": network.sizes},
        **checks.json_object("model", {"mean": _plain(mean), "std": _plain(std)}),
        "class_names": list(class_names),
        "metadata": checks.json_object("metadata", {} if metadata is None else metadata),
    }
    return storage.write(path, facts, _weights(model), _checked(masks, model), sparse)


def load(
    path: str | os.PathLike[str],
    *,
    build: Callable[..., Any] | None = None,
    trust: bool = False,
    max_nbytes: int = 2**31,
) -> Saved:
    """Loads a model from a file of `save`, bit for bit.

    Untrusted files are safe as long as `trust` is False: nothing in them is executed, every byte is
    covered by a checksum, sizes are checked before anything is decoded, and the network is made by
    `jaxrobust.models.create`. The file of another network names a function and its arguments. It may
    be any function of any module, so that a malicious file could run any program. Set `trust` only for
    files that you or people you know have saved, or pass the function yourself as `build`.

    Args:
      path: The path of the file. Files of `save_sparse` of earlier releases can be loaded too.
      build: A function to call with the saved sizes instead of the one that the file names.
      trust: Whether the function that the file names may be imported and called.
      max_nbytes: The largest number of bytes of the decoded arrays, by default 2 GiB: a small file can
        contain a huge array of zeros.

    Returns:
      The classifier and what was saved with it. Arrays of 64 bits are numpy arrays unless
      jax_enable_x64 is set, because JAX would cut them to 32 bits.

    Raises:
      FileNotFoundError: The file does not exist.
      ValueError: The file is of another kind or version, is damaged or cut short, or is larger than
        `max_nbytes`; or the network is not trusted, cannot be built, or is not the one that was saved.
    """
    facts, weights, masks = storage.read(path, max_nbytes)
    if facts["version"] == 1:
        facts = _of_version_1(path, facts, build)
    network = _network(path, facts)
    if build is None and network.function != CREATE and not trust:
        raise ValueError(
            f"{path} asks to build its network with {network.function!r}, called with {network.sizes}. "
            "If you trust the file, use `load(path, trust=True)`; or give your own function, "
            "`load(path, build=function)`."
        )
    try:
        classifier = _assembled(network(build), network, weights, facts)
    except ValueError as error:
        raise ValueError(f"The network of {path} cannot be built: {error}") from error
    masks = None if masks is None else _like_weights(masks, classifier)
    return Saved(classifier, tuple(facts["class_names"]), masks, facts["metadata"])


def _build(model: Any, function: str | None, sizes: Mapping[str, Any] | None) -> Build:
    if isinstance(model, nn.Module):
        raise TypeError(
            f"`model` is a {type(model).__name__} without its weights: pass "
            "models.Classifier(network.apply, variables, mean, std)."
        )
    if function is None:
        if sizes is not None:
            raise TypeError("`sizes` must be None without `build`, whose arguments they are.")
        module = module_of(model)
        if module is None:
            raise TypeError(
                "`model` must be models.Classifier(network.apply, variables, mean, std) of a linen "
                f"network, or come with `build='module:function'`, a function that returns a "
                f"{type(model).__name__} like it; got neither."
            )
        return build_of(module)
    if not isinstance(function, str):
        raise TypeError(f"`build` must be 'module:function', got {type(function).__name__}.")
    build = Build(function, checks.json_object("sizes", {} if sizes is None else sizes))
    check_built(model, build(), function)
    return build


def _weights(model: Any) -> Any:
    weights = contents_of(model)
    if module_of(model) is not None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"`variables` must be nested dicts, got {type(weights).__name__}.")
        return weights  # with empty dicts, which are no leaves
    arrays = arrays_of(weights)
    if not arrays:
        raise TypeError(
            "`model` must be a pytree with its weights as leaves, got a function without leaves: what "
            "is in its closure cannot be saved. Use jax.tree_util.Partial(apply, weights)."
        )
    return arrays


def _check_names(names: Any, model: Any) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`class_names` must be a sequence of strings, got {names!r}.")
    module = module_of(model)
    known = None if module is None else arguments_of(module)
    if known is not None and len(names) not in (0, known["num_classes"]):
        raise ValueError(
            f"`class_names` must name the {known['num_classes']} classes of `model`, or none, got "
            f"{len(names)} names."
        )


def _checked(masks: Any, model: Any) -> Any:
    """Returns masks in nested dicts by the paths of their weights."""
    if masks is None:
        return None
    given = dict(keyed_leaves(meta.unbox(masks) if isinstance(masks, Mapping) else masks, False))
    if () in given:
        raise TypeError("`masks` must have the structure of the weights, got a single leaf.")
    for path, mask in given.items():
        found = getattr(mask, "dtype", type(mask).__name__)
        if found != np.bool_ and not isinstance(mask, bool):
            raise TypeError(f"`masks` must hold boolean arrays, got {found} at {words(path)}.")
    misfits = [_misfits(given, weights) for weights in _weights_of(model)]
    if all(misfits):
        # Of those weights that they come closest to.
        raise ValueError(min(misfits, key=len)[0])
    return nested((path, np.asarray(mask)) for path, mask in given.items())


def _weights_of(model: Any) -> list[Any]:
    """Returns the pytrees that masks may match: all weights of a model, and its parameters."""
    whole = contents_of(model)
    found = [whole]
    if isinstance(whole, jax.tree_util.Partial):
        found += [*whole.args, *whole.keywords.values()]
    elif type(whole) in (list, tuple):
        found += whole
    return found + [one["params"] for one in found if isinstance(one, Mapping) and "params" in one]


def _misfits(given: Mapping[tuple[Key, ...], Any], weights: Any) -> list[str]:
    """Returns why masks do not match these weights, as sentences, the worst first."""
    shapes = {
        path: np.shape(leaf.values if is_quantized(leaf) else leaf)
        for whole in (False, True)
        for path, leaf in keyed_leaves(weights, whole)
    }
    unknown = [
        f"`masks` must have the structure of the weights, which have no array at {words(path)}."
        for path in given
        if path not in shapes
    ]
    return unknown + [
        f"`masks` must have the shapes of the weights, got {np.shape(mask)} for {shapes[path]} at "
        f"{words(path)}."
        for path, mask in given.items()
        if path in shapes and np.shape(mask) != shapes[path]
    ]


def _like_weights(masks: Mapping[Any, Any], model: Any) -> Masks:
    """Returns masks in the structure of their weights, or unchanged."""
    given = dict(walked(masks))
    for weights in _weights_of(model):
        if _misfits(given, weights):
            continue
        for whole in (True, False):
            leaves = keyed_leaves(weights, whole)
            missing = {path for path, _ in leaves} - given.keys()
            known = given.keys() <= {path for path, _ in leaves}
            # A module cannot do without the masks that are missing: they keep their weights.
            if known and not (missing and isinstance(weights, Mapping)):
                structure = jax.tree.structure(weights, is_leaf=is_quantized if whole else None)
                return jax.tree.unflatten(structure, [_mask(given, *one) for one in leaves])
        return masks
    return masks


def _mask(given: Mapping[Any, Any], path: tuple[Key, ...], leaf: Any) -> Any:
    shape = np.shape(leaf.values if is_quantized(leaf) else leaf)
    return given[path] if path in given else jnp.ones(shape, bool)


def _plain(value: Any) -> Any:
    """Returns the mean or the standard deviation as JSON, with the exact value."""
    if value is None:
        return None
    array = np.asarray(value, np.float32)
    return array if array.ndim == 0 else array.reshape(-1)


def _network(path: Any, facts: Mapping[str, Any]) -> Build:
    """Returns how the network is built, after checking the whole header."""
    network: Any = facts.get("network")
    named = isinstance(network, dict) and isinstance(network.get("build"), str)
    named = named and isinstance(network.get("sizes"), dict)
    names = facts.get("class_names")
    named = named and isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or not all(map(_is_normalisation, (facts.get("mean"), facts.get("std")))):
        raise ValueError(f"{path} is damaged: its header does not describe its network.")
    return Build(network["build"], network["sizes"])


def _is_normalisation(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return value is None or all(
        type(one) is float or (type(one) is int and abs(one) < 2**24) for one in numbers
    )


def _assembled(
    built: Any, network: Build, weights: Mapping[Any, Any], facts: Mapping[str, Any]
) -> LogitsFn:
    known = {name: facts[name] for name in ("mean", "std") if facts.get(name) is not None}
    if isinstance(built, nn.Module):
        built = Classifier(built.apply, weights)
    if isinstance(built, Classifier):
        if module_of(built) is None:
            weights = evaluating(filled(contents_of(built), weights, network.function))
        arrays: dict[str, Any] = {n: np.asarray(value, np.float32) for n, value in known.items()}
        return dataclasses.replace(built, variables=weights, **arrays)
    if known:
        raise ValueError(
            f"`build` {network.function!r} must return a Classifier, like the one that was saved, got "
            f"{type(built).__name__}."
        )
    model: LogitsFn = evaluating(filled(built, weights, network.function))
    return model


def _of_version_1(path: Any, facts: Mapping[str, Any], build: Any) -> dict[str, Any]:
    """Returns the header of a file of `pruning.save_sparse`, which has it in its metadata."""
    metadata = facts["metadata"]
    needed = () if build is not None else ("model", "num_classes", "mean", "std")
    missing = [key for key in needed if key not in metadata]
    if missing:
        raise ValueError(
            f"{path} is a file of pruning.save_sparse, whose metadata lack {', '.join(missing)}: load "
            "it with `load(path, build=function)`, and save it again with `models.save`."
        )
    sizes = metadata.get("sizes") or {}
    if build is None and isinstance(sizes, dict):
        sizes = {"name": metadata["model"], "num_classes": metadata["num_classes"], **sizes}
    found = {"mean": metadata.get("mean"), "std": metadata.get("std"), "metadata": metadata}
    found |= {"class_names": metadata.get("class_names") or []}
    return found | {"network": {"build": CREATE, "sizes": sizes}}
