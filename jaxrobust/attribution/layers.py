"""Finds the layers of any network: their names, and which of them are maps of an image.

The network is not changed. The program that jax traces is read instead, whatever framework it comes
from: the result of any operation can be read, and the rest of the network can be differentiated with
respect to it.

A layer of flax.linen or haiku, or an operation in a `jax.named_scope`, has the path of its module:
"block_0/conv" is the result of that module, and "block_0" is the result of the whole block, with its
residual sum and activation. In nnx, equinox and plain functions a layer has the common path of the
weights that it uses. An operation without a name is called after the layer before it and what it does:
"blocks/0/conv2:add", "blocks/0/conv2:relu", and ":add_1" for a second one. Before the first layer that
is "images". A layer that is called several times stands for its last call.
"""

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation, programs
from jaxrobust.attribution import cuts, positions
from jaxrobust.attribution.views import View, view_of
from jaxrobust.programs import naming, operations
from jaxrobust.programs.lines import Line, Lines, Value, lines_of
from jaxrobust.programs.tracing import Code, Program
from jaxrobust.types import LogitsFn, Stochastic


@dataclasses.dataclass(frozen=True)
class Layer:
    """The output of a layer for one image.

    Attributes:
      name: The name of the layer, such as "block_0/conv".
      shape: The shape of the output for one image, without the batch.
      dtype: The type of the output.
      view: How to read a map from the output; None if it is not a map of one image.
      reason: Why it is not a map of one image; "" if it is one.
      value: The value in the traced program that holds the output.
      is_learned: Whether the layer comes after a convolution or a matrix product with weights. The
        normalisation of images, for example, does not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    view: View | None
    reason: str
    value: Value
    is_learned: bool


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers of a network; `print` shows them as a table.

    Attributes:
      layers: The layers in the order in which they finish.
      default: The name of the layer that class activation maps use by default; None if no layer fits.
    """

    layers: tuple[Layer, ...]
    default: str | None

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __str__(self) -> str:
        rows = [("layer", "output", "map")]
        for layer in self.layers:
            shape = f"{layer.dtype}[{','.join(map(str, layer.shape))}]"
            seen = f"no: {layer.reason}" if layer.view is None else str(layer.view)
            if layer.view is not None and not layer.is_learned:
                seen += " (before all weights)"
            rows.append((layer.name, shape, seen + " (default)" * (layer.name == self.default)))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{name:{widths[0]}}  {shape:{widths[1]}}  {seen}" for name, shape, seen in rows]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def layers(function: LogitsFn, images: Any) -> Layers:
    """Lists the layers of any network, and says which of them are maps of one image.

    A layer is a map if its axes are the batch, rows, columns and channels, with the last three in any
    order, or the batch, tokens and channels, where the tokens form a grid, perhaps with other tokens
    before or after it. This is found by following positions through all operations, starting at the
    image. The network is traced but not computed.

    By default class activation maps use the last layer that is a map, through which the whole
    computation goes, and of which more than one position is read. In a residual network this is the
    last sum after its activation; in a vision transformer with a class token it is the input of the
    last block. Layers before the first convolution or matrix product are never the default.

    Args:
      function: Images [B, H, W, C] -> logits [B, K], in any framework.
      images: [B, H, W, C] in [0, 1], or a `jax.ShapeDtypeStruct`; only the shape matters.

    Returns:
      Layers, in the order in which they finish: all operations that have a name of their own, and of
      the others those whose results are maps.

    Raises:
      TypeError: The function cannot be called or traced or is `Stochastic`, or `images` is not an
        array.
      ValueError: `images` or the logits have another shape, or the module is in training mode.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> weights = {"conv": {"w": jnp.ones((4, 3, 3, 3))}, "head": {"w": jnp.ones((4, 2))}}
      >>> def logits(images):
      ...     x, kernel = images.transpose(0, 3, 1, 2), weights["conv"]["w"]
      ...     features = jax.lax.conv(x, kernel, (2, 2), "SAME")
      ...     return jax.nn.relu(features).mean((2, 3)) @ weights["head"]["w"]
      >>> print(layers(logits, jnp.ones((1, 8, 8, 3))))
      layer      output          map
      -------------------------------------------------------------------------
      conv       float32[4,4,4]  4 x 4
      conv:relu  float32[4,4,4]  4 x 4 (default)
      head       float32[2]      no: its entries have no positions of their own
    """
    compilation.check_callable(function)
    wanted = "`images` must be an array or a jax.ShapeDtypeStruct [B, H, W, C]"
    if not hasattr(images, "shape"):
        raise TypeError(f"{wanted}, got {type(images).__name__}.")
    if len(images.shape) != 4:
        raise ValueError(f"{wanted}, got {images.shape}.")
    return layers_of(function, program_of(function, images.shape[1:]))


def program_of(function: LogitsFn, image_shape: Sequence[int]) -> Program:
    """Traces a classifier for one image.

    Args:
      function: Images [B, H, W, C] -> logits [B, K].
      image_shape: (H, W, C).

    Raises:
      TypeError: The classifier is `Stochastic`.
    """
    program = programs.as_argument(function, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    if isinstance(program, Stochastic):
        raise TypeError(
            "`logits_fn` must not be a `Stochastic` for class activation maps, which need a classifier "
            "without a key: pass `lambda images: function(keys, images)` with keys of your own."
        )
    return program


_known: "weakref.WeakKeyDictionary[Code, dict[tuple, Layers]]" = weakref.WeakKeyDictionary()


def layers_of(function: LogitsFn, program: Program) -> Layers:
    """Returns the layers of a function that has been traced for one image.

    Args:
      function: The function from which the program was traced.
      program: The program, as `program_of` returns it.
    """
    paths = naming.weight_paths(function, program)[0]
    known = _known.setdefault(program.code, {})
    if paths not in known:
        known[paths] = _read(lines_of(program), paths)
    return known[paths]


def chosen(found: Layers, name: str | None, *, as_tokens: bool = False) -> Layer:
    """Returns the layer with a name, or the default one.

    Args:
      found: All layers.
      name: The name, or None for the default.
      as_tokens: Whether any layer of shape [T, C] is allowed, because the user turns it into a map.

    Raises:
      TypeError: The name is not a string.
      ValueError: There is no such layer, or it is not a map. The message says why, and which layers can
        be used.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"`layer` must be the name of a layer or None, got {type(name).__name__}.")
    name = found.default if name is None else name
    if name is None:
        described = "; ".join(
            f"{layer.name} {list(layer.shape)}: {layer.reason or 'a map'}" for layer in found
        )
        raise ValueError(
            "The network has no layer that is a map of one image, comes after a convolution or a "
            "matrix product, is read at more than one position, and through which the whole "
            "computation goes. Class activation maps need one: name a `layer`, with `reshape` for "
            f"tokens. The layers are: {described or 'none'}."
        )
    # If the one that is named will not do, the message says why and names those that will.
    by_name = {layer.name: layer for layer in found}
    layer = by_name.get(name)
    if layer is not None and _will_do(layer, as_tokens):
        return layer
    if layer is None:
        reason = "is not a layer of the network"
    elif as_tokens:
        reason = f"has the output {list(layer.shape)}, and `reshape` is for tokens [T, C]"
    else:
        shape = list(layer.shape)
        reason = f"has the output {shape}, which is not a map of one image: {layer.reason}"
    fits = [one for one in found if _will_do(one, as_tokens)]
    fits = [one for one in fits if one.is_learned] or fits
    named = [one for one in fits if ":" not in one.name or one.name == found.default] or fits
    described = ", ".join(f"{one.name} {list(one.shape)}" for one in named) or "there is none"
    raise ValueError(
        f"`layer` {name!r} {reason}; choose one of: {described}. `attribution.layers` lists all."
    )


def _will_do(layer: Layer, as_tokens: bool) -> bool:
    """Says whether a layer is a map, or is tokens."""
    if layer.view is None:
        return as_tokens and len(layer.shape) == 2
    return not as_tokens or len(layer.view.axes) == 2


class _Sources(NamedTuple):
    """Which values depend on the images, and on which arrays the other values depend."""

    used: set[Value]
    arrays: dict[Value, frozenset[int]]


def _sources(lines: Lines) -> _Sources:
    used, arrays = {*lines.inputs}, {one: frozenset([at]) for at, one in enumerate(lines.arrays)}
    nothing, carried = frozenset[int](), dict[Value, frozenset[int]]()

    def follow(line: Line) -> None:
        again = True
        while again:
            for one in line.within:
                follow(one)
            # The next round takes what a round makes.
            again = False
            for _, taken, made in positions.carried(line):
                if not isinstance(made, Value) or taken in used:
                    continue
                before = carried.get(taken, nothing)
                carried[taken] = before | arrays.get(made, nothing)
                again = again or made in used or carried[taken] != before
                used.update({taken} if made in used else ())
        operands = [one for one in (*line.operands, *line.arrays) if isinstance(one, Value)]
        if used.intersection(operands):
            used.update(line.results)
            return
        of_all = nothing.union(*(arrays.get(one, nothing) for one in operands))
        arrays.update({result: of_all | carried.get(result, nothing) for result in line.results})

    for line in lines.lines:
        follow(line)
    return _Sources(used, {one: found for one, found in arrays.items() if one not in used})


def _read(lines: Lines, paths: Sequence[str]) -> Layers:
    """The table of layers."""
    sources = _sources(lines)
    places = cuts.alive(lines.lines, lines.outputs)
    places = [place for place in places if sources.used & {*lines.lines[place].results}]
    weights = {one for one, indices in sources.arrays.items() if indices}
    follower = positions.Follower(lines, sources.used, weights)
    stand = follower.run()
    learned = _learned(lines, sources)
    rows = []
    for name, value in _names(lines, places, sources, paths):
        shape = lines.shapes[value.number]
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            continue
        view = view_of(tuple(shape.shape), stand.get(value))
        if isinstance(view, str) and ":" in name and len(shape.shape) != 3:
            continue
        of_one = tuple(shape.shape[1:]) if shape.shape[:1] == (1,) else tuple(shape.shape)
        reason, seen = (view, None) if isinstance(view, str) else ("", view)
        rows.append(Layer(name, of_one, str(shape.dtype), seen, reason, value, value in learned))
    return Layers(tuple(rows), _default(lines, places, sources, rows, follower))


def _learned(lines: Lines, sources: _Sources) -> set[Value]:
    """The values that come after a convolution or a matrix product with weights."""
    learned = set[Value]()
    for line in positions.flat(lines.lines):
        operands = {one for one in line.operands if isinstance(one, Value)}
        named = positions.name_of(line) in ("conv_general_dilated", "dot_general")
        known = named and all(sources.arrays.get(one, True) for one in operands)
        if operands & learned or (known and operands & sources.used):
            learned.update(line.results)
    return learned


def _default(
    lines: Lines,
    places: Sequence[int],
    sources: _Sources,
    rows: Sequence[Layer],
    follower: positions.Follower,
) -> str | None:
    everything_through = cuts.cuts(lines, sources.used, places)
    entries = cuts.read_entries(lines, sources.used, follower.chosen)
    for layer in reversed(rows):
        if layer.view is None or not layer.is_learned or layer.value not in everything_through:
            continue
        everything = [np.ones(size, bool) for size in lines.shapes[layer.value.number].shape]
        if layer.view.num_read(entries.get(layer.value, everything)) > 1:
            return layer.name
    return None


def _names(
    lines: Lines, places: Sequence[int], sources: _Sources, paths: Sequence[str]
) -> list[tuple[str, Value]]:
    """The names of values, in the order in which they are computed."""
    scopes = _scopes(lines, places, paths)
    parents = {scope[:end] for scope in scopes.values() for end in range(len(scope))}
    modules = _modules(lines, places, scopes)
    own = dict[str, Value]()
    order = {one: place for place in places for one in lines.lines[place].results}
    labels: dict[int, str] = {}
    for place in places:
        line, scope = lines.lines[place], scopes[place]
        label = "/".join(scope) if scope not in parents else ""
        if not scope:
            label = _of_weights(line, sources, paths)
            if label:
                own[label] = line.results[0]
        if label:
            labels[place] = label
    named = {**own, **modules}
    found = list(named.items())
    found += _unnamed(lines, places, labels, set(named.values()), sources)
    # The whole of a block comes behind its last part.
    return sorted(found, key=lambda pair: (order[pair[1]], -pair[0].count("/")))


def _scopes(
    lines: Lines, places: Sequence[int], paths: Sequence[str]
) -> dict[int, tuple[str, ...]]:
    """The path of each line, without the class of the network that linen begins all paths with.

    A method of a linen module, "encoder.encode", stands for its module.
    """
    split = {
        place: tuple(lines.lines[place].names.split("/")) if lines.lines[place].names else ()
        for place in places
    }
    known = {word for path in paths for word in path.split("/")}
    scoped = [words for words in split.values() if words]
    if len({_module(words[0], known) for words in scoped}) != 1 or max(map(len, scoped)) == 1:
        return split
    for place, words in split.items():
        modules = [_module(word, known) for word in words]
        pairs = zip(words[1:], modules[1:], modules, strict=False)
        # A module's calls of its own methods add nothing to the path.
        split[place] = tuple(one for word, one, last in pairs if word == one or one != last)
    return split


def _module(word: str, known: set[str]) -> str:
    """The module of "encoder.encode"; one that is called "layer1.0" has weights or a number."""
    while word not in known and (parts := word.rpartition("."))[0] and parts[2].isidentifier():
        word = parts[0]
    return word


def _modules(
    lines: Lines, places: Sequence[int], scopes: dict[int, tuple[str, ...]]
) -> dict[str, Value]:
    """The value that each module returns: its last result that is used outside."""
    users: dict[Value, list[tuple[str, ...] | None]] = {
        one: [None] for one in lines.outputs if isinstance(one, Value)
    }
    for place in places:
        for one in lines.lines[place].operands:
            if isinstance(one, Value):
                users.setdefault(one, []).append(scopes[place])
    found: dict[str, Value] = {}
    for place in places:
        scope = scopes[place]
        for end in range(1, len(scope) + 1):
            for one in lines.lines[place].results:
                if any(user is None or user[:end] != scope[:end] for user in users.get(one, ())):
                    found["/".join(scope[:end])] = one
    return found


def _of_weights(line: Line, sources: _Sources, paths: Sequence[str]) -> str:
    """The common path of the weights that a line uses."""
    operands = [one for one in (*line.operands, *line.arrays) if isinstance(one, Value)]
    indices = frozenset[int]().union(*(sources.arrays.get(one, frozenset()) for one in operands))
    words = [paths[index] for index in sorted(indices)]
    return naming.layer_of([word for word in words if not word.startswith("constant_")])


def _unnamed(
    lines: Lines,
    places: Sequence[int],
    labels: dict[int, str],
    named: set[Value],
    sources: _Sources,
) -> list[tuple[str, Value]]:
    """Names of operations without a name: that of the layer before, and what the operation does."""
    open_calls = {call for place in labels for call in lines.lines[place].calls}
    found, last, counts = list[tuple[str, Value]](), "images", dict[str, int]()
    for place in places:
        line = lines.lines[place]
        if place in labels:
            last = labels[place]
            continue
        # For a function such as jax.nn.gelu, only its result is named.
        closed = [lines.calls[call] for call in line.calls if call not in open_calls]
        (value,) = line.results[:1]
        if closed and value not in closed[0].results:
            continue
        name = closed[0].name if closed else _function(line)
        if value in named or (not closed and name in operations.MOVES | operations.REDUCTIONS):
            continue
        label = f"{last}:{name.strip('_')}"
        counts[label] = counts.get(label, 0) + 1
        found.append((label if counts[label] == 1 else f"{label}_{counts[label] - 1}", value))
    return found


def _function(line: Line) -> str:
    """The name of an operation, or of the function if it has a derivative of its own."""
    called = getattr(line.what, "params", {}).get("call_jaxpr")
    if called is not None:
        return str(called.jaxpr.debug_info.func_name)
    primitive = getattr(getattr(line.what, "equation", line.what), "primitive", None)
    return "function" if primitive is None else str(primitive.name)
