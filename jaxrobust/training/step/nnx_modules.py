"""Splits flax nnx modules into what training needs: nested dicts of arrays, and a function of them.

A module is never changed: what is filled, called or returned is a copy. Only the functions here import
`flax.nnx`, and only when they are given a module.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.types import Array, PyTree, as_key


def is_nnx(value: Any) -> bool:
    """Whether a value is an nnx module or an nnx.State; False for all if nnx is not imported."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Module | nnx.State)


def collections(tree: Any) -> dict[str, PyTree]:
    """Returns the arrays of a module or an nnx.State as {"params": ..., "batch_stats": ...}.

    Args:
      tree: The module or State. Every nnx.Param is a parameter. Every other variable is state, except
        the streams of random numbers and sown intermediates. Arrays outside variables are constants.

    Returns:
      Nested dicts that follow the paths of the attributes; indices of lists become strings. Without
      state there is no "batch_stats".

    Raises:
      ValueError: The State holds bare arrays, which do not say what is trained.

    Example:
      >>> from flax import nnx
      >>> jax.tree.map(jnp.shape, collections(nnx.List([nnx.Linear(3, 2, rngs=nnx.Rngs(0))])))
      {'params': {'0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    from flax import nnx

    found: dict[str, PyTree] = {"params": {}, "batch_stats": {}}
    flat = _flat(tree)
    if isinstance(tree, nnx.State) and not any(isinstance(leaf, nnx.Variable) for _, leaf in flat):
        raise ValueError(
            "An nnx.State must hold variables, which say what is trained, got one of bare arrays: "
            "take nnx.state(module)."
        )
    for path, leaf in flat:
        name = _collection(leaf)
        if name is not None:
            _put(found[name], path, leaf.get_value())
    return {name: tree for name, tree in found.items() if tree or name == "params"}


def with_variables(module: Any, variables: Mapping[str, PyTree]) -> Any:
    """Returns a copy of a module with other variables, in evaluation mode.

    Args:
      module: The module, which is not changed. The copy keeps its streams of random numbers.
      variables: {"params": ..., "batch_stats": ...}, as `collections` returns them.
    """
    from flax import nnx

    graph, _ = nnx.split(module)
    filled = [(path, _value(path, leaf, variables)) for path, leaf in _flat(module)]
    made = nnx.merge(graph, nnx.from_flat_state(filled))
    made.eval()
    return made


def described(module: Any) -> Iterator[tuple[str, Any]]:
    """Yields (path, value) for all attributes of a module, independent of its mode.

    A variable is described by its class, type and shape.
    """
    from flax import nnx

    for path, value in nnx.iter_graph(_bare(module)):
        if any(str(part).startswith("_pytree__") for part in path):
            continue
        if isinstance(value, nnx.Variable):
            kind = type(value)
            shapes = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", value.get_value())
            value = f"{kind.__module__}.{kind.__qualname__} {shapes}"
        yield "/".join(map(str, path)), type(value) if isinstance(value, nnx.Pytree) else value


@dataclasses.dataclass(frozen=True, eq=False)
class NnxFunction:
    """A module without its variables; two of the same structure are equal.

    Attributes:
      graph: The nnx.GraphDef of the module in evaluation mode.
      leaves: ((path, kind), ...). The kind is the collection that holds the value, "params" or
        "batch_stats"; or a stream of random numbers; or a constant.
    """

    graph: Any
    leaves: tuple[tuple[tuple[Any, ...], Any], ...]

    @staticmethod
    def of(module: Any) -> "NnxFunction":
        """Splits the variables off a module."""
        from flax import nnx

        copy, leaves = _bare(module), []
        for path, leaf in _flat(copy):
            kind: Any = _collection(leaf)
            if kind is None and _is_random(leaf):
                kind = _Random(_is_key(_array(leaf)), _array(leaf).shape)
            elif kind is None:
                value = np.asarray(leaf)
                kind = _Constant(value.dtype, value.shape, value.tobytes())
            leaves.append((path, kind))
        return NnxFunction(nnx.split(copy)[0], tuple(leaves))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NnxFunction):
            return False
        return bool(self.leaves == other.leaves and self.graph == other.graph)

    def __hash__(self) -> int:
        # An nnx.GraphDef cannot be hashed where an attribute is a list.
        return hash(self.leaves)

    def apply(
        self, variables: Mapping[str, PyTree], images: Array, train: bool, rngs: Mapping[str, Array]
    ) -> tuple[Any, PyTree]:
        """Returns (logits, the new state), in the mode that the module's `train()` or `eval()` sets.

        Every stream of random numbers starts anew with its own key, made from the "dropout" key.
        """
        from flax import nnx

        key = rngs.get("dropout")
        key = as_key(jax.random.key(0)) if key is None else key
        filled = []
        for number, (path, kind) in enumerate(self.leaves):
            if isinstance(kind, _Random):
                filled.append((path, kind.begun(jax.random.fold_in(key, number))))
            elif isinstance(kind, _Constant):
                filled.append((path, kind.value()))
            else:
                filled.append((path, _at(variables[kind], path)))
        module = nnx.merge(self.graph, nnx.from_flat_state(filled))
        (module.train if train else module.eval)()
        logits = module(images)
        state: dict[str, PyTree] = {}
        names = {path for path, kind in self.leaves if kind == "batch_stats"}
        for path, leaf in _flat(module):
            if path in names:
                _put(state, path, leaf.get_value())
        return logits, state


@dataclasses.dataclass(frozen=True)
class _Random:
    """The key or the counter of a stream of random numbers."""

    is_key: bool
    shape: tuple[int, ...]

    def begun(self, key: Array) -> Array:
        """Returns the initial value of the stream."""
        if not self.is_key:
            return jnp.zeros(self.shape, jnp.uint32)
        return jax.random.split(key, self.shape) if self.shape else key


@dataclasses.dataclass(frozen=True)
class _Constant:
    """An array that is not in a variable."""

    dtype: Any
    shape: tuple[int, ...]
    content: bytes

    def value(self) -> Array:
        """Returns the array."""
        return jnp.asarray(np.frombuffer(self.content, self.dtype).reshape(self.shape))


def _bare(module: Any) -> Any:
    """Returns a copy in evaluation mode, without sown intermediates."""
    from flax import nnx

    copy = nnx.clone(module)
    nnx.pop(copy, nnx.Intermediate)
    copy.eval()
    return copy


def _flat(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Returns (path, variable or array) for each leaf of a module or a State."""
    from flax import nnx

    state = tree if isinstance(tree, nnx.State) else nnx.state(tree)
    return list(nnx.to_flat_state(state))


def _collection(leaf: Any) -> str | None:
    """Returns the collection of a leaf; None if it is neither a parameter nor state."""
    from flax import nnx

    if isinstance(leaf, nnx.Intermediate) or not isinstance(leaf, nnx.Variable) or _is_random(leaf):
        return None
    return "params" if isinstance(leaf, nnx.Param) else "batch_stats"


def _is_random(leaf: Any) -> bool:
    """Whether a leaf belongs to a stream of random numbers, or is a PRNG key."""
    from flax import nnx

    return isinstance(leaf, nnx.RngState) or _is_key(_array(leaf))


def _is_key(value: Any) -> bool:
    dtype = getattr(value, "dtype", np.dtype(bool))
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def _array(leaf: Any) -> Any:
    return leaf.get_value() if hasattr(leaf, "get_value") else leaf


def _value(path: tuple[Any, ...], leaf: Any, variables: Mapping[str, PyTree]) -> Any:
    name = _collection(leaf)
    return _array(leaf) if name is None else _at(variables[name], path)


def _at(tree: PyTree, path: tuple[Any, ...]) -> Any:
    for name in path:
        tree = tree[str(name)]
    return tree


def _put(tree: dict[str, PyTree], path: tuple[Any, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(str(name), {})
    tree[str(path[-1])] = value
