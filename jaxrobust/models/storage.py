r"""One file of facts and arrays, smaller by what is zero, that comes back bit for bit.

Every array is stored in the smallest of three encodings, or densely on request, so that files of
pruned and of dense networks compare. Numbers are little endian; nothing in a file is ever executed.

    offset  bytes  content
    0       8      89 4A 52 50 0D 0A 1A 0A ("\x89JRP\r\n\x1a\n", which text mode would damage)
    8       4      uint32, length L of the header
    12      4      uint32, CRC-32 of bytes 8 .. 11 followed by the header
    16      L      the header: JSON in UTF-8
    16 + L         the payload: the arrays' data, one after another, up to the end of the file

The header:

    {"version": 2, "metadata": {...}, "leaves": [
      {"path": ["params", "head", "kernel"], "type": "array", "arrays": [
        {"dtype": "float32", "shape": [128, 10], "encoding": "bitmask",
         "offset": 0, "nbytes": 1184, "mask_nbytes": 160, "crc32": 305419896}]}],
     "network": {...}, "mean": [...], "std": [...], "class_names": [...], "masks": [...]}

`jaxrobust.models.saving` says what `network`, `mean`, `std` and `class_names` are; files of version 1,
of `pruning.save_sparse` in earlier releases, have none of them, nor `masks`, which are leaves like
those of `leaves` and lie after them. A leaf of type "array" has one array, "quantized" has two (a
`QuantizedKernel`'s values and scale); "empty", an empty dict, and "none", Python's None, have no array.
Paths have at most 64 keys, strings or integers, headers at most 2^26 bytes. `offset` is from the start
of the payload, `nbytes` of the whole data, `crc32` its CRC-32. The data of an array of n elements of b
bytes, in C order, of which z are not zero (`jaxrobust.models.encoding`):

    dense         n b bytes: the elements
    bitmask       ceil(n / 8) bytes: a bit for each element, the first one in the lowest bit of the
                  first byte, set where the element is stored, padded with 0; then z b bytes: those
                  elements, in order; of booleans the bits alone, for they say all
    bitmask-zlib  the same with the bits as a zlib stream of `mask_nbytes` bytes. Chosen only where the
                  array gets at least 5 % smaller: at high sparsity, or where whole channels are gone

An element is zero if all its bits are: -0.0 is stored. Sparse encodings are chosen where they are
smaller: of float32, from a sparsity of about 3.2 % on.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, files
from jaxrobust.models.encoding import DamagedError, Spec, decode, encode, parse, require
from jaxrobust.types import QuantizedKernel

VERSION = 2

_MAGIC = b"\x89JRP\r\n\x1a\n"
_PREFIX = struct.Struct("<8sII")
_LONGEST_HEADER = 2**26  # parsed it takes some 25 times as much memory
_DEEPEST = 64  # keys in a path: more would be an attack on the recursion of whoever reads it
_ARRAYS_OF = {"array": 1, "quantized": 2, "empty": 0, "none": 0}

Key = str | int


def write(
    path: str | os.PathLike[str], facts: Mapping[str, Any], weights: Any, masks: Any, sparse: bool
) -> int:
    """Writes a file, whole or not at all: a kill leaves the old one.

    Its content is put together in memory first, which takes the file's size besides the arrays.

    Args:
      path: Of the file; its folder is made where it is missing, a file there is replaced.
      facts: JSON, for the header.
      weights: Nested dicts, with strings and integers as keys, of arrays, `QuantizedKernel` and None.
      masks: Such dicts of boolean arrays, or None. They are always stored as bits.
      sparse: Whether zeros may be left out of the weights.

    Returns:
      The file's size in bytes.

    Raises:
      TypeError: What is no array, an array of a type that the format does not know, a kernel in int8
        with another scale than `jaxrobust.pruning.quantize` gives it, other keys.
      ValueError: More than 64 levels; an array of more than 32 axes; a header of more than 64 MiB.
    """
    payload: list[bytes] = []
    content = {"version": VERSION, **facts, "leaves": _encoded(weights, payload, sparse)}
    if masks is not None:
        content["masks"] = _encoded(masks, payload, True)
    header = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"`metadata` and paths must fit into {_LONGEST_HEADER} bytes, got {len(header)}."
        )
    prefix = _PREFIX.pack(_MAGIC, len(header), _header_crc(header))
    with files.replace(Path(path)) as file:
        file.writelines([prefix, header, *payload])
    return len(prefix) + len(header) + sum(map(len, payload))


def read(path: str | os.PathLike[str], max_nbytes: int) -> tuple[dict[str, Any], Any, Any]:
    """Reads what `write` wrote, bit for bit.

    Safe on files from anywhere: nothing in them is executed, every byte is covered by a checksum,
    and the size of what it decodes to is checked before any of it is.

    Arrays are decoded one by one. Peak memory is that of all decoded arrays, twice that of the largest
    besides, and a byte for each of its elements; before that, some 25 times the header's size, which
    may be 64 MiB at most and is a few KiB in what `write` makes of a usual network.

    Args:
      path: Of the file.
      max_nbytes: The most bytes that the decoded arrays may take.

    Returns:
      (facts, weights, masks): the header without its leaves, nested dicts of JAX arrays,
      `QuantizedKernel` and None, and masks or None. Arrays of 64 bits are numpy arrays unless
      jax_enable_x64 is set, because JAX would cut them to 32.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Another file, of another version, damaged, cut short, larger than `max_nbytes`, or
        with a header of more than 64 MiB; the message says which.
    """
    checks.integer("max_nbytes", max_nbytes, minimum=0)
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_PREFIX.size)
        if start[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{path} is not a file of jaxrobust.models.save.")
        try:
            return _read(file, start, size, max_nbytes)
        except DamagedError as error:
            raise ValueError(f"{path} is damaged or cut short: {error}.") from None
        except _RefusedError as error:
            raise ValueError(f"{path} {error}.") from None


class _RefusedError(Exception):
    """Why a whole file is not loaded, as a sentence about it."""


def _header_crc(header: bytes) -> int:
    return zlib.crc32(header, zlib.crc32(struct.pack("<I", len(header))))


def _encoded(tree: Any, payload: list[bytes], sparse: bool) -> list[dict[str, Any]]:
    """The leaves for the header; their data are added to the payload."""
    leaves = []
    offset = sum(map(len, payload))
    for keys, kind, arrays in _leaves(tree):
        described = []
        for array in arrays:
            entry, data = encode(words(keys), array, sparse)
            described.append(entry | {"offset": offset, "nbytes": len(data)})
            try:
                parse(described[-1])
            except DamagedError as error:
                raise ValueError(
                    f"`model` must hold arrays that the format can describe, and {error} at "
                    f"{words(keys)}: its shape is {np.shape(array)}."
                ) from None
            payload.append(data)
            offset += len(data)
        leaves.append({"path": list(keys), "type": kind, "arrays": described})
    return leaves


def words(keys: tuple[Key, ...]) -> str:
    """A path of the format for messages: "params/head/kernel"."""
    return "/".join(map(str, keys))


def _leaves(tree: Any, keys: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], str, tuple]]:
    """(keys, type, arrays) of every leaf, sorted: equal weights make equal files."""
    if isinstance(tree, Mapping):
        if len(keys) == _DEEPEST and tree:
            raise ValueError(f"`model` is nested more than {_DEEPEST} deep.")
        if not tree:
            yield keys, "empty", ()
        for key in tree:
            if not _is_key(key):
                raise TypeError(f"`model` must have strings or integers as keys, got {key!r}.")
        for key in sorted(tree, key=lambda key: (isinstance(key, str), key)):
            yield from _leaves(tree[key], (*keys, key))
    elif not keys:
        raise TypeError(f"`model` must have its weights in dicts, got {type(tree).__name__}.")
    elif tree is None:
        yield keys, "none", ()
    elif isinstance(tree, QuantizedKernel):
        if not _is_kernel(tree.values, tree.scale):
            raise TypeError(
                "`model` must hold kernels in int8 as `jaxrobust.pruning.quantize` makes them, int8 "
                "values and a float32 scale for each channel of one axis, got "
                f"{_described(tree.values)} and {_described(tree.scale)} at {words(keys)}: give it "
                "such values and such a scale, `QuantizedKernel(values, scale.astype(jnp.float32))`."
            )
        yield keys, "quantized", (tree.values, tree.scale)
    elif isinstance(tree, jax.Array | np.ndarray):
        yield keys, "array", (tree,)
    else:
        raise TypeError(f"`model` must hold arrays, got {type(tree).__name__} at {words(keys)}.")


def _is_key(key: Any) -> bool:
    return type(key) is str or type(key) is int


def _read(file: Any, start: bytes, size: int, max_nbytes: int) -> tuple[dict[str, Any], Any, Any]:
    facts, payload_nbytes = _header(file, start, size)
    leaves, masks = (
        None if listed is None else _parsed(listed)
        for listed in (facts.pop("leaves", None), facts.pop("masks", None))
    )
    require(leaves is not None, "its header lacks entries")
    specs = [spec for _, _, group in [*(leaves or ()), *(masks or ())] for spec in group]
    end = 0
    for spec in specs:
        require(spec.offset == end, "its arrays do not follow one another")
        end += spec.nbytes
    require(end == payload_nbytes, "its size is not the one in its header")
    # Before any of it is allocated.
    decoded = sum(spec.size * spec.dtype.itemsize for spec in specs)
    if decoded > max_nbytes:
        raise _RefusedError(f"decodes to {decoded} bytes, and `max_nbytes` is {max_nbytes}")
    trees = [None if group is None else _decoded(file, group) for group in (leaves, masks)]
    return facts, trees[0], trees[1]


def _header(file: Any, start: bytes, size: int) -> tuple[dict[str, Any], int]:
    """What the header says, and how many bytes come after it."""
    require(len(start) == _PREFIX.size, "it ends before its header")
    _, length, checksum = _PREFIX.unpack(start)
    require(length <= size - _PREFIX.size, "it ends inside its header")
    if length > _LONGEST_HEADER:
        raise _RefusedError(f"has a header of {length} bytes, more than {_LONGEST_HEADER}")
    header = file.read(length)
    require(_header_crc(header) == checksum, "its header does not match its checksum")
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise DamagedError("its header is no JSON") from error
    require(isinstance(content, dict), "its header is no object")
    version = content.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise _RefusedError(
            f"is of format version {version!r}; this release reads 1 and {VERSION}: load it "
            "with the one that wrote it"
        )
    require(isinstance(content.get("metadata"), dict), "its header lacks entries")
    return content, size - _PREFIX.size - length


def _parsed(leaves: Any) -> list[tuple[list[Key], str, list[Spec]]]:
    require(isinstance(leaves, list), "its header lacks entries")
    return [_leaf(leaf) for leaf in leaves]


def _leaf(leaf: Any) -> tuple[list[Key], str, list[Spec]]:
    require(isinstance(leaf, dict), "a leaf is no object")
    keys, kind, arrays = leaf.get("path"), leaf.get("type"), leaf.get("arrays")
    require(
        isinstance(keys, list) and len(keys) <= _DEEPEST and all(map(_is_key, keys)),
        "a path is no list of names",
    )
    require(isinstance(kind, str) and kind in _ARRAYS_OF, f"a leaf is of the type {kind!r}")
    require(
        isinstance(arrays, list) and len(arrays) == _ARRAYS_OF[kind], f"{keys} lacks its arrays"
    )
    return keys, kind, [parse(entry) for entry in arrays]


def _decoded(file: Any, leaves: list[tuple[list[Key], str, list[Spec]]]) -> dict[Key, Any]:
    tree: dict[Key, Any] = {}
    for keys, kind, group in leaves:
        _place(tree, keys, kind, [decode(file.read(spec.nbytes), spec) for spec in group])
    return tree


def _place(tree: dict[Key, Any], keys: list[Key], kind: str, arrays: list[np.ndarray]) -> None:
    if not keys:
        require(kind == "empty" and not tree, "a leaf has no path")
        return
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        require(isinstance(tree, dict), f"the path {keys} leads through an array")
    require(keys[-1] not in tree, f"the path {keys} is taken twice")
    if kind in ("empty", "none"):
        tree[keys[-1]] = {} if kind == "empty" else None
    elif kind == "array":
        tree[keys[-1]] = _on_device(arrays[0])
    else:
        values, scale = arrays
        require(_is_kernel(values, scale), f"{keys} is no quantised kernel")
        tree[keys[-1]] = QuantizedKernel(_on_device(values), _on_device(scale))


def _is_kernel(values: Any, scale: Any) -> bool:
    """Whether they are the parts of a `QuantizedKernel`, on saving as on loading."""
    if not all(isinstance(part, jax.Array | np.ndarray) for part in (values, scale)):
        return False
    # By name: the byte order of what is saved is nobody's concern.
    fits = (values.dtype.name, scale.dtype.name) == ("int8", "float32")
    return fits and values.ndim >= 1 and _is_scale(scale.shape, values.shape)


def _described(array: Any) -> str:
    is_array = isinstance(array, jax.Array | np.ndarray)
    return f"{array.dtype}{list(array.shape)}" if is_array else type(array).__name__


def _is_scale(scale: tuple[int, ...], values: tuple[int, ...]) -> bool:
    """Whether there is one for each channel: of the last axis, or of another one."""
    if scale == values[-1:]:
        return True
    wide = [length for length in scale if length > 1]
    pairs = zip(scale, values, strict=False)
    return len(scale) == len(values) and len(wide) <= 1 and all(a in (1, b) for a, b in pairs)


def _on_device(array: np.ndarray) -> Any:
    # The type that JAX would make of it, known without making it.
    return jnp.asarray(array) if jnp.result_type(array) == array.dtype else array
