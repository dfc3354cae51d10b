"""How a saved network is built: a function, "module:function", and its JSON arguments."""

import dataclasses
import importlib
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.core import meta

import jaxrobust
from jaxrobust import checks
from jaxrobust.models.classifier import Classifier
from jaxrobust.models.storage import Key, words
from jaxrobust.models.zoo import arguments_of
from jaxrobust.types import QuantizedKernel

CREATE = "jaxrobust.models:create"
_NOT_SIZES = ("parent", "name")


class Build(NamedTuple):
    """How a network is built.

    Attributes:
      function: "module:function", a function or class that returns a linen module, a Classifier or
        another callable pytree.
      sizes: Its keyword arguments, as JSON. Lists are passed as tuples.
    """

    function: str
    sizes: dict[str, Any]

    def __call__(self, function: Callable[..., Any] | None = None) -> Any:
        """Calls the function, or the given one instead of it, and returns its result.

        Raises:
          ValueError: It cannot be imported, raises an error, or does not return a callable.
        """
        called = imported(self.function) if function is None else function
        try:
            built = called(**{name: _frozen(value) for name, value in self.sizes.items()})
        except Exception as error:  # of somebody else's code
            raise ValueError(
                f"`build` {self.function!r}, called with {self.sizes}, raised {error_words(error)}"
            ) from error
        if not callable(built):
            raise ValueError(
                f"`build` {self.function!r} must return a linen module, a Classifier or another "
                f"callable pytree, got {type(built).__name__}."
            )
        return built


def imported(name: str) -> Callable[..., Any]:
    """Imports the function "module:function". Importing a module executes it.

    Raises:
      ValueError: There is no such module or function, or it is not a function.

    Example:
      >>> imported("jaxrobust.models:create").__name__
      'create'
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"A function must be named 'module:function', got {name!r}.")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ValueError(
            f"The module of {name!r} cannot be imported: {error_words(error)}. It must be in the "
            "current folder or on PYTHONPATH."
        ) from error
    try:
        for part in function.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ValueError(f"{name!r}: the module {module!r} has no {function!r}.") from error
    if not callable(found):
        raise ValueError(f"{name!r} must be a function, got {type(found).__name__}.")
    return found


def error_words(error: Exception) -> str:
    """Describes an error of a user's code in a line: its class, first line and origin."""
    first = (str(error).strip().splitlines() or [""])[0]
    # Where the user's code is, not the depths of a library that it calls.
    ours = str(Path(jaxrobust.__file__).parent)
    others = ("site-packages", "<frozen", sysconfig.get_path("stdlib"), ours)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in others):
            return f"{type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {first}"


def module_of(model: Any) -> nn.Module | None:
    """Returns the linen module whose `apply` a Classifier calls; None for everything else."""
    function = model.apply_fn if isinstance(model, Classifier) else None
    module = getattr(function, "__self__", None)
    return module if isinstance(module, nn.Module) and function == module.apply else None


def build_of(module: nn.Module) -> Build:
    """Returns how a linen module is built: by `jaxrobust.models.create`, or by its class.

    Raises:
      TypeError: The class cannot be imported by its name, or its fields are not JSON.
    """
    arguments = arguments_of(module)
    if arguments is not None:
        return Build(CREATE, checks.json_object("model", arguments))
    kind = type(module)
    function = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise TypeError(
            f"The class of `model` must be importable by another program, got {function!r}: move it to "
            "a module."
        )
    try:
        build = Build(function, _sizes_of(module))
        unlike = _unlike(module, build())
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`model` is a {kind.__name__} that cannot be rebuilt from its fields: {error} Give "
            "`build='module:function'`, a function that returns it."
        ) from error
    if unlike:
        raise TypeError(
            f"`model` is a {kind.__name__} that differs from the one rebuilt from its fields, "
            f"{build.sizes}: {unlike}. Give `build='module:function'`, a function that returns it."
        )
    return build


def _sizes_of(module: Any) -> dict[str, Any]:
    """Returns the fields of a linen module that differ from the defaults of its class."""
    fields = {
        f.name: getattr(module, f.name)
        for f in dataclasses.fields(module)
        if f.name not in _NOT_SIZES and not _is_equal(getattr(module, f.name), f.default)
    }
    return checks.json_object("model", fields)


def _is_equal(left: Any, right: Any) -> bool:
    """Whether a network computes the same with either value: a list equals a tuple."""
    if left is right:
        return True
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_is_equal(left[k], right[k]) for k in left)
    if type(left) in (list, tuple) and type(right) in (list, tuple):
        return len(left) == len(right) and all(map(_is_equal, left, right))
    if isinstance(left, tuple) and type(left) is not type(right):
        return False  # one with names, whose fields a plain one lacks
    # An array is no list: it is added and multiplied otherwise.
    shapes = [one.shape for one in (left, right) if isinstance(one, np.ndarray | jax.Array)]
    if any(shapes) and len(shapes) != 2:
        return False
    if len(shapes) == 2:
        same = left.dtype == right.dtype and shapes[0] == shapes[1]
        return same and np.asarray(left).tobytes() == np.asarray(right).tobytes()
    try:
        return bool(left == right)
    except (TypeError, ValueError):
        return False


def _frozen(value: Any) -> Any:
    """Replaces the lists of a JSON value by tuples, at any depth."""
    if isinstance(value, dict):
        return {name: _frozen(entry) for name, entry in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def check_built(model: Any, built: Any, name: str) -> None:
    """Raises ValueError unless the arrays of a model can be put into what was built.

    Args:
      model: A Classifier or another callable pytree.
      built: What its `build` function returned.
      name: The name of that function.
    """
    if isinstance(built, nn.Module):
        unlike = _unlike(module_of(model), built)
        if unlike:
            raise ValueError(f"`build` {name!r} must return the linen module of `model`: {unlike}.")
        return
    # Anything else must be of the same kind, with the same function, if it says one.
    if isinstance(built, Classifier) != isinstance(model, Classifier):
        raise ValueError(
            f"`build` {name!r} must return a {type(model).__name__}, like `model`, got a "
            f"{type(built).__name__}."
        )
    if isinstance(model, Classifier):
        functions = [getattr(one.apply_fn, "__qualname__", None) for one in (model, built)]
        if functions[0] != functions[1]:
            raise ValueError(
                f"`build` {name!r} must return a Classifier of {functions[0]}, got {functions[1]}."
            )
    # Then all that is no array must be equal, with the model's arrays put in.
    ours, theirs = contents_of(model), contents_of(built)
    filled(theirs, arrays_of(ours), name)
    if _said(ours) != _said(theirs):
        raise ValueError(
            f"`build` {name!r} must return a model that differs from `model` only in its arrays, but a "
            "static field, such as a stride or a number of heads, differs. Give the arguments `sizes=` "
            "with which the module of `model` was created; for one that `shrink` returned these are "
            "those of the original, whose numbers it keeps."
        )
    numbers, others = _numbers_of(ours), _numbers_of(theirs)
    for path in sorted(numbers.keys() | others.keys(), key=str):
        if numbers.get(path) != others.get(path):
            raise ValueError(
                f"`build` {name!r} must return a model that differs from `model` only in its arrays, "
                f"got {others.get(path)!r} at {words(path)} instead of {numbers.get(path)!r}."
            )


def _said(tree: Any) -> Any:
    """Returns the static part of a pytree in evaluation mode; the tree is not changed."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_quantized)
    return jax.tree.structure(
        evaluating(jax.tree.unflatten(structure, leaves)), is_leaf=is_quantized
    )


def _unlike(module: Any, built: Any) -> str | None:
    """Describes how the linen module of a model differs from another, as the end of a sentence."""
    if type(module) is not type(built):
        found = "nothing of linen" if module is None else f"a {type(module).__name__}"
        return f"that is {found}, got a {type(built).__name__}"
    for field in dataclasses.fields(built):
        ours, theirs = (getattr(one, field.name, None) for one in (module, built))
        if field.name not in _NOT_SIZES and not _is_equal(ours, theirs):
            return f"its {field.name} is {ours!r}, got {theirs!r}"
    return None


def arrays_of(tree: Any) -> dict[Key, Any]:
    """Returns the arrays of a pytree as nested dicts by their paths; int8 kernels stay as they are.

    PRNG keys are left out, because they are not weights.

    Example:
      >>> arrays_of(jax.tree_util.Partial(len, [np.int8([1]), {"scale": np.int8([2])}]))
      {0: {0: {0: array([1], dtype=int8), 1: {'scale': array([2], dtype=int8)}}}}
    """
    return nested((path, leaf) for path, leaf in keyed_leaves(tree) if _is_array(leaf))


def nested(leaves: Iterable[tuple[tuple[Key, ...], Any]]) -> dict[Key, Any]:
    """Puts leaves at their paths in nested dicts.

    Raises:
      TypeError: A leaf has no path, because it is the whole tree.
    """
    tree: dict[Key, Any] = {}
    for path, leaf in leaves:
        if not path:
            raise TypeError(
                "`model` must have its weights in a container such as a dict, got a single array."
            )
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def filled(tree: Any, arrays: Mapping[Key, Any], name: str) -> Any:
    """Replaces the arrays of a pytree by others, of any shapes and types, at the same paths.

    Raises:
      ValueError: The paths differ; the message names the first one.
    """
    stored = {path: leaf for path, leaf in walked(arrays) if leaf is not None}
    leaves = keyed_leaves(tree)
    places = {path for path, leaf in leaves if _is_array(leaf)}
    unlike = sorted(stored.keys() ^ places, key=str)
    if unlike:
        where = "has no array" if unlike[0] in stored else "has an array, and `model` has none,"
        raise ValueError(
            f"`build` {name!r} must return a model with the structure of `model`; what it returned "
            f"{where} at {words(unlike[0])}."
        )
    treedef = jax.tree.structure(tree, is_leaf=is_quantized)
    return jax.tree.unflatten(treedef, [stored.get(path, leaf) for path, leaf in leaves])


def contents_of(model: Any) -> Any:
    """Returns the pytree of a model's weights, without the boxes of flax's partitioning."""
    if not isinstance(model, Classifier):
        return model
    return meta.unbox(model.variables) if isinstance(model.variables, Mapping) else model.variables


def evaluating(tree: Any) -> Any:
    """Sets an nnx module to evaluation mode, in place; returns everything else unchanged."""
    if any(base.__module__.startswith("flax.nnx") for base in type(tree).__mro__):
        tree.eval()
    return tree


def walked(
    tree: Mapping[Key, Any], path: tuple[Key, ...] = ()
) -> list[tuple[tuple[Key, ...], Any]]:
    """Returns the leaves of nested dicts with their paths; None is a leaf."""
    found: list[tuple[tuple[Key, ...], Any]] = []
    for key, child in tree.items():
        inside = (*path, key)
        found += walked(child, inside) if isinstance(child, Mapping) else [(inside, child)]
    return found


def keyed_leaves(tree: Any, whole: bool = True) -> list[tuple[tuple[Key, ...], Any]]:
    """Returns the leaves of a pytree with their paths in the form of the file format.

    Args:
      tree: Any pytree; None is not a leaf.
      whole: Whether an int8 kernel is one leaf, and not two (values and scale) as for jax.
    """
    is_leaf = is_quantized if whole else None
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(tuple(map(_key, path)), leaf) for path, leaf in leaves]


def _numbers_of(tree: Any) -> dict[tuple[Key, ...], Any]:
    """Returns the leaves other than arrays that can be compared; functions cannot."""
    named = keyed_leaves(tree)
    return {
        path: leaf for path, leaf in named if isinstance(leaf, bool | int | float | complex | str)
    }


def _key(key: Any) -> Key:
    """Returns a key of a jax path in the form of the file format."""
    for attribute in ("key", "idx", "name"):
        found = getattr(key, attribute, None)
        if type(found) is str or type(found) is int:
            return found
    return str(key)


def is_quantized(node: Any) -> bool:
    """Whether a node is an int8 kernel."""
    return isinstance(node, QuantizedKernel)


def _is_array(leaf: Any) -> bool:
    if is_quantized(leaf):
        return True
    is_array = isinstance(leaf, jax.Array | np.ndarray)
    return is_array and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
