"""Networks by what builds them: "module:function" and the JSON to call it with."""

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
      function: "module:function" of what returns it: a linen module, a Classifier, or another callable
        pytree. A linen class does.
      sizes: What it is called with, by keyword: JSON, whose lists it gets as tuples.
    """

    function: str
    sizes: dict[str, Any]

    def __call__(self, function: Callable[..., Any] | None = None) -> Any:
        """What the function, or another one in its place, returns.

        Raises:
          ValueError: It cannot be imported, raises an error, or returns what cannot be called.
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
    """The function that "module:function" names. Importing a module executes it.

    Raises:
      ValueError: No such module or function, or something that is none.

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
            f"The module of {name!r} cannot be imported: {error_words(error)}. It must be in this "
            "folder or on PYTHONPATH."
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
    """Somebody else's error in a line: its class, its first line and where it was raised."""
    first = (str(error).strip().splitlines() or [""])[0]
    # Where the user's code is, not the depths of a library that it calls.
    ours = str(Path(jaxrobust.__file__).parent)
    others = ("site-packages", "<frozen", sysconfig.get_path("stdlib"), ours)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in others):
            return f"{type(error).__name__}: {first} ({Path(frame.filename).name}, line {frame.lineno})"
    return f"{type(error).__name__}: {first}"


def module_of(model: Any) -> nn.Module | None:
    """The linen module whose `apply` a Classifier calls; None of everything else."""
    function = model.apply_fn if isinstance(model, Classifier) else None
    module = getattr(function, "__self__", None)
    return module if isinstance(module, nn.Module) and function == module.apply else None


def build_of(module: nn.Module) -> Build:
    """How a linen module is built: by `jaxrobust.models.create`, or by its class.

    Raises:
      TypeError: A class that cannot be imported by its name, or fields that are not JSON.
    """
    arguments = arguments_of(module)
    if arguments is not None:
        return Build(CREATE, checks.json_object("model", arguments))
    kind = type(module)
    function = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        raise TypeError(
            f"`model` is of a class that no other program can import, {function!r}: move it to a "
            "module of its own."
        )
    try:
        build = Build(function, _sizes_of(module))
        unlike = _unlike(module, build())
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`model` is a {kind.__name__} that its fields do not build: {error} Give "
            "`build='module:function'`, a function that returns it."
        ) from error
    if unlike:
        raise TypeError(
            f"`model` is a {kind.__name__} that its fields build otherwise, {build.sizes}: {unlike}. "
            "Give `build='module:function'`, a function that returns it."
        )
    return build


def _sizes_of(module: Any) -> dict[str, Any]:
    """The fields of a linen module that are not their class's own."""
    fields = {
        f.name: getattr(module, f.name)
        for f in dataclasses.fields(module)
        if f.name not in _NOT_SIZES and not _is_equal(getattr(module, f.name), f.default)
    }
    return checks.json_object("model", fields)


def _is_equal(left: Any, right: Any) -> bool:
    """Whether a network computes the same with either: lists are as good as tuples."""
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
    """JSON with tuples for its lists, at any depth."""
    if isinstance(value, dict):
        return {name: _frozen(entry) for name, entry in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def check_built(model: Any, built: Any, name: str) -> None:
    """Raises ValueError unless the arrays of a model can be put in what was built."""
    if isinstance(built, nn.Module):
        unlike = _unlike(module_of(model), built)
        if unlike:
            raise ValueError(f"`build` {name!r} must return the linen module of `model`: {unlike}.")
        return
    # Anything else must be of the same kind, with the same function, if it says one.
    if isinstance(built, Classifier) != isinstance(model, Classifier):
        raise ValueError(
            f"`build` {name!r} must return what `model` is, a {type(model).__name__}, got a "
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
            f"`build` {name!r} must return `model` but for its arrays: what they say besides, a stride "
            "or a number of groups or heads for example, differs. Give `sizes=` to make them equal."
        )
    numbers, others = _numbers_of(ours), _numbers_of(theirs)
    for path in sorted(numbers.keys() | others.keys(), key=str):
        if numbers.get(path) != others.get(path):
            raise ValueError(
                f"`build` {name!r} must return `model` but for its arrays, got {others.get(path)!r} at "
                f"{words(path)} in the place of {numbers.get(path)!r}."
            )


def _said(tree: Any) -> Any:
    """What a pytree says besides its arrays, in evaluation mode; the tree itself stays as it is."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_quantized)
    return jax.tree.structure(
        evaluating(jax.tree.unflatten(structure, leaves)), is_leaf=is_quantized
    )


def _unlike(module: Any, built: Any) -> str | None:
    """What tells a model's linen module from another one, as the end of a sentence."""
    if type(module) is not type(built):
        found = "nothing of linen" if module is None else f"a {type(module).__name__}"
        return f"that is {found}, got a {type(built).__name__}"
    for field in dataclasses.fields(built):
        ours, theirs = (getattr(one, field.name, None) for one in (module, built))
        if field.name not in _NOT_SIZES and not _is_equal(ours, theirs):
            return f"its {field.name} is {ours!r}, got {theirs!r}"
    return None


def arrays_of(tree: Any) -> dict[Key, Any]:
    """The arrays of a pytree as nested dicts by their path, kernels in int8 as they are.

    Keys of random numbers are left out: they are no weights.

    Example:
      >>> arrays_of(jax.tree_util.Partial(len, [np.int8([1]), {"scale": np.int8([2])}]))
      {0: {0: {0: array([1], dtype=int8), 1: {'scale': array([2], dtype=int8)}}}}
    """
    return nested((path, leaf) for path, leaf in keyed_leaves(tree) if _is_array(leaf))


def nested(leaves: Iterable[tuple[tuple[Key, ...], Any]]) -> dict[Key, Any]:
    """Leaves at their paths in nested dicts.

    Raises:
      TypeError: A leaf without a path, which is the whole tree.
    """
    tree: dict[Key, Any] = {}
    for path, leaf in leaves:
        if not path:
            raise TypeError(
                "`model` must have its weights in a container, a dict for example, got a single array."
            )
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def filled(tree: Any, arrays: Mapping[Key, Any], name: str) -> Any:
    """A pytree with other arrays, of any shapes and types, at its paths.

    Raises:
      ValueError: Its paths are not those of the arrays; the message says the first one.
    """
    stored = {path: leaf for path, leaf in walked(arrays) if leaf is not None}
    leaves = keyed_leaves(tree)
    places = {path for path, leaf in leaves if _is_array(leaf)}
    unlike = sorted(stored.keys() ^ places, key=str)
    if unlike:
        where = "has no array" if unlike[0] in stored else "has an array, and `model` none,"
        raise ValueError(
            f"`build` {name!r} must return the structure of `model`; what it returns {where} at "
            f"{words(unlike[0])}."
        )
    treedef = jax.tree.structure(tree, is_leaf=is_quantized)
    return jax.tree.unflatten(treedef, [stored.get(path, leaf) for path, leaf in leaves])


def contents_of(model: Any) -> Any:
    """The pytree that holds a model's weights, without the boxes that say how devices share them."""
    if not isinstance(model, Classifier):
        return model
    return meta.unbox(model.variables) if isinstance(model.variables, Mapping) else model.variables


def evaluating(tree: Any) -> Any:
    """An nnx module in evaluation mode, changed in its place; everything else as it is."""
    if any(base.__module__.startswith("flax.nnx") for base in type(tree).__mro__):
        tree.eval()
    return tree


def walked(
    tree: Mapping[Key, Any], path: tuple[Key, ...] = ()
) -> list[tuple[tuple[Key, ...], Any]]:
    """The leaves of nested dicts with their paths; None is one."""
    found: list[tuple[tuple[Key, ...], Any]] = []
    for key, child in tree.items():
        inside = (*path, key)
        found += walked(child, inside) if isinstance(child, Mapping) else [(inside, child)]
    return found


def keyed_leaves(tree: Any, whole: bool = True) -> list[tuple[tuple[Key, ...], Any]]:
    """The leaves of a pytree with their paths as the format has them.

    Args:
      tree: Any pytree; None is no leaf.
      whole: Whether a kernel in int8 is one leaf, not the two that jax sees in it.
    """
    is_leaf = is_quantized if whole else None
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(tuple(map(_key, path)), leaf) for path, leaf in leaves]


def _numbers_of(tree: Any) -> dict[tuple[Key, ...], Any]:
    """Of the leaves that are no arrays those that can be compared: equal functions need not be."""
    named = keyed_leaves(tree)
    return {
        path: leaf for path, leaf in named if isinstance(leaf, bool | int | float | complex | str)
    }


def _key(key: Any) -> Key:
    """A key of jax as the format has it."""
    for attribute in ("key", "idx", "name"):
        found = getattr(key, attribute, None)
        if type(found) is str or type(found) is int:
            return found
    return str(key)


def is_quantized(node: Any) -> bool:
    """Whether it is a kernel in int8."""
    return isinstance(node, QuantizedKernel)


def _is_array(leaf: Any) -> bool:
    if is_quantized(leaf):
        return True
    is_array = isinstance(leaf, jax.Array | np.ndarray)
    return is_array and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
