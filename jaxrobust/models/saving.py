"""A model as one file that says what it is: its network, weights, normalisation, classes and masks.

`jaxrobust.models.storage` describes the bytes. Besides the arrays the header says

    "network": {"build": "jaxrobust.models:create", "sizes": {"name": "cnn", "num_classes": 10}}
    "mean", "std": of the Classifier, numbers or lists; null of another callable pytree
    "class_names": a list of strings, perhaps empty
    "metadata": a JSON object, the user's own

and the arrays are called by their path in the pytree: "params", "head", "kernel". To build the network
its function is called with the sizes by keyword.
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
    """What `load` found in a file.

    Attributes:
      classifier: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A Classifier, or the callable
        pytree that was saved; an nnx module is in evaluation mode.
      class_names: As given to `save`; () if none were.
      masks: As given to `save`, in the structure of the classifier's weights, which
        `jaxrobust.pruning.apply_masks` takes; in nested dicts if they were of some of them; None if
        none were given.
      metadata: As given to `save`, as JSON has it.
    """

    classifier: Any
    class_names: tuple[str, ...] = ()
    masks: Masks | None = None
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

    `load` gives it back bit for bit, and every script takes the file as its model. The file is written
    whole or not at all: a kill leaves the old one. Its content is put together in memory first.

    A Classifier of a linen module, `Classifier(network.apply, variables, mean, std)`, needs nothing
    more. A network of `create` is saved by its name and sizes, shrunk ones and those in int8
    (`jaxrobust.pruning.quantize`) too, another module by its class, which can be imported, and its
    fields, if they are JSON. Everything else needs a function of yours that builds one like it.

    Args:
      path: Of the file; its folder is made where it is missing, a file there is replaced.
      model: A Classifier, or another callable pytree that has its weights as leaves and is in
        evaluation mode: an nnx or equinox module, `jax.tree_util.Partial(apply, weights)`. Pruned
        weights must be 0 (`jaxrobust.pruning.apply_masks`): `masks` are not applied.
      build: "module:function" of what returns a fresh `model`, or its linen module. `load` puts the
        saved arrays in it path by path, whatever their shapes are. It is called now too, to compare.
      sizes: JSON, with which `build` is called by keyword; lists come as tuples.
      class_names: K names, or none.
      masks: Of the structure of the weights, or of their "params": nested dicts or a module with
        boolean leaves, stored as bits. They may lack some.
      metadata: A JSON object, for your own use. Arrays become lists.
      sparse: False stores every weight: a dense file of the same format, to compare with.

    Returns:
      The file's size in bytes.

    Raises:
      TypeError: A model that needs `build`, or holds something else than None and arrays of types
        that the format knows; masks that are not boolean; metadata that JSON cannot hold.
      ValueError: A `build` that does not fit, with the first path that differs; masks that do not fit
        the weights; more or fewer names than a network of `create` has classes; metadata with NaN, for
        which JSON has no word; more than 64 levels; a header of more than 64 MiB.

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
    """Loads a model that `save` saved, bit for bit.

    Safe on files from anywhere as long as `trust` is False: nothing in them is executed, every byte is
    covered by a checksum, sizes are checked before anything is decoded, and the network is made by
    `jaxrobust.models.create`. A file of another network names a function, and what to call it with;
    that may be any function of any module, so a file from a stranger could run any program. `trust`
    what you or people you know have saved, or pass the function yourself as `build`.

    Args:
      path: Of the file. Files of save_sparse, of earlier releases, are loaded too.
      build: The function to call in the place of the one that the file names, with the saved sizes.
      trust: Whether the function that the file names may be imported and called.
      max_nbytes: The most bytes that the decoded arrays may take, 2 GiB by default: a small file can
        hold a huge array of zeros.

    Returns:
      The classifier and what was saved with it. Arrays of 64 bits are numpy arrays unless
      jax_enable_x64 is set, because JAX would cut them to 32.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Another file, of another version, damaged, cut short, larger than `max_nbytes`; a
        network that is not trusted, cannot be built, or is not the one that was saved. The message says
        which.
    """
    facts, weights, masks = storage.read(path, max_nbytes)
    if facts["version"] == 1:
        facts = _of_version_1(path, facts, build)
    network = _network(path, facts)
    if build is None and network.function != CREATE and not trust:
        raise ValueError(
            f"{path} names {network.function!r} to build its network, called with {network.sizes}. If "
            "you trust the file, `load(path, trust=True)` calls it; `load(path, build=function)` calls "
            "yours in its place."
        )
    try:
        classifier = _assembled(network(build), network, weights, facts)
    except ValueError as error:
        raise ValueError(f"No network can be made of {path}: {error}") from error
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
            raise TypeError("`sizes` are those that `build` is called with, which is None.")
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
            "`model` must have its weights as leaves, got a function without any: what it closes over "
            "is not seen. jax.tree_util.Partial(apply, weights) shows them."
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
    """Masks in nested dicts by the paths of the weights that they are of."""
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
    """The pytrees that masks may be of: all weights of a model, and parts of it that are trained."""
    whole = contents_of(model)
    found = [whole]
    if isinstance(whole, jax.tree_util.Partial):
        found += [*whole.args, *whole.keywords.values()]
    elif type(whole) in (list, tuple):
        found += whole
    return found + [one["params"] for one in found if isinstance(one, Mapping) and "params" in one]


def _misfits(given: Mapping[tuple[Key, ...], Any], weights: Any) -> list[str]:
    """What keeps masks from being of these weights, as sentences, the worst first."""
    shapes = {
        path: np.shape(leaf.values if is_quantized(leaf) else leaf)
        for whole in (False, True)
        for path, leaf in keyed_leaves(weights, whole)
    }
    unknown = [
        f"`masks` must have the structure of the weights, which have nothing at {words(path)}."
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
    """Masks in the structure of the weights that they are of, or as they are."""
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
    """Mean or deviation as JSON, exactly as the Classifier computes with it."""
    if value is None:
        return None
    array = np.asarray(value, np.float32)
    return array if array.ndim == 0 else array.reshape(-1)


def _network(path: Any, facts: Mapping[str, Any]) -> Build:
    """How the network is built; everything in the header is looked at here."""
    network: Any = facts.get("network")
    named = isinstance(network, dict) and isinstance(network.get("build"), str)
    named = named and isinstance(network.get("sizes"), dict)
    names = facts.get("class_names")
    named = named and isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or not all(map(_is_normalisation, (facts.get("mean"), facts.get("std")))):
        raise ValueError(f"{path} is damaged: its header does not say what its network is.")
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
            f"`build` {network.function!r} must return a Classifier, which was saved, got "
            f"{type(built).__name__}."
        )
    model: LogitsFn = evaluating(filled(built, weights, network.function))
    return model


def _of_version_1(path: Any, facts: Mapping[str, Any], build: Any) -> dict[str, Any]:
    """The facts of a file of `pruning.save_sparse`, which are in its metadata."""
    metadata = facts["metadata"]
    needed = () if build is not None else ("model", "num_classes", "mean", "std")
    missing = [key for key in needed if key not in metadata]
    if missing:
        raise ValueError(
            f"{path} is a file of pruning.save_sparse, whose metadata lack {', '.join(missing)}: build "
            "its network yourself, `load(path, build=function)`, and save it by `models.save`."
        )
    sizes = metadata.get("sizes") or {}
    if build is None and isinstance(sizes, dict):
        sizes = {"name": metadata["model"], "num_classes": metadata["num_classes"], **sizes}
    found = {"mean": metadata.get("mean"), "std": metadata.get("std"), "metadata": metadata}
    found |= {"class_names": metadata.get("class_names") or []}
    return found | {"network": {"build": CREATE, "sizes": sizes}}
