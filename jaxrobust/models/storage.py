r"""The file format of saved models: a JSON header and arrays, which are stored without their zeros.

Every array is stored bit for bit in the smallest of three encodings, or densely on request, for a
comparison of sizes. Numbers are little endian; nothing in a file is ever executed.

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

`jaxrobust.models.saving` describes `network`, `mean`, `std` and `class_names`. `masks` has entries like
those of `leaves`; their arrays follow after those of `leaves`. Files of version 1, written by
`pruning.save_sparse` of earlier releases, have none of these five. A leaf of type "array" has one
array, and "quantized" has two (the values and the scale of a `QuantizedKernel`); "empty", an empty
dict, and "none", Python's None, have no array. Paths have at most 64 keys, which are strings or
integers; headers have at most 2^26 bytes. `offset` is counted from the start of the payload, `nbytes`
is the size of the data and `crc32` their CRC-32. The data of an array of n elements of b bytes, in C
order, of which z are not zero, are (`jaxrobust.models.encoding`):

    dense         n b bytes: the elements
    bitmask       ceil(n / 8) bytes: a bit for each element, the first one in the lowest bit of the
                  first byte, set where the element is stored, padded with 0; then z b bytes: those
                  elements, in order. Boolean arrays have only the bits
    bitmask-zlib  the same with the bits as a zlib stream of `mask_nbytes` bytes. Chosen only if it
                  makes the array at least 5 % smaller: at high sparsity, or if whole channels are 0

An element is zero if all its bits are, so that -0.0 is stored. Sparse encodings are chosen if they are
smaller; for float32, from a sparsity of about 3.2 % on.
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
    """Writes a file atomically: if the process is killed, the old file remains.

    The content is put together in memory first, which needs the size of the file besides the arrays.

    Args:
      path: The path of the file. Its folder is created if it does not exist; an existing file is
        replaced.
      facts: JSON values for the header.
      weights: Nested dicts, with strings and integers as keys, of arrays, `QuantizedKernel` and None.
      masks: Such dicts of boolean arrays, or None. They are always stored as bits.
      sparse: Whether zeros may be left out of the weights.

    Returns:
      The size of the file in bytes.

    Raises:
      TypeError: A leaf is not an array, an array has an unsupported type, an int8 kernel has another
        scale than `jaxrobust.pruning.quantize` makes, or a key is neither a string nor an integer.
      ValueError: There are more than 64 levels, an array has more than 32 axes, or the header is larger
        than 64 MiB.
    """
    payload: list[bytes] = []
    content = {"version": VERSION, **facts, "leaves": _encoded(weights, payload, sparse)}
    if masks is not None:
        content["masks"] = _encoded(masks, payload, True)
    header = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"`metadata` and paths must have at most {_LONGEST_HEADER} bytes, got {len(header)}."
        )
    prefix = _PREFIX.pack(_MAGIC, len(header), _header_crc(header))
    with files.replace(Path(path)) as file:
        file.writelines([prefix, header, *payload])
    return len(prefix) + len(header) + sum(map(len, payload))


def read(path: str | os.PathLike[str], max_nbytes: int) -> tuple[dict[str, Any], Any, Any]:
    """Reads a file of `write`, bit for bit.

    Untrusted files are safe: nothing in them is executed, every byte is covered by a checksum, and the
    size of the decoded arrays is checked before anything is decoded.

    Arrays are decoded one by one. Peak memory is that of all decoded arrays, plus twice that of the
    largest one and a byte for each of its elements. Before that, it is about 25 times the size of the
    header, which is a few KiB for a usual network and at most 64 MiB.

    Args:
      path: The path of the file.
      max_nbytes: The largest number of bytes of the decoded arrays.

    Returns:
      (facts, weights, masks): the header without its leaves; nested dicts of JAX arrays,
      `QuantizedKernel` and None; and masks or None. Arrays of 64 bits are numpy arrays unless
      jax_enable_x64 is set, because JAX would cut them to 32 bits.

    Raises:
      FileNotFoundError: The file does not exist.
      ValueError: The file is of another kind or version, is damaged or cut short, is larger than
        `max_nbytes`, or has a header of more than 64 MiB.
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
    """An intact file is not loaded; the message says why, as the end of a sentence."""


def _header_crc(header: bytes) -> int:
    return zlib.crc32(header, zlib.crc32(struct.pack("<I", len(header))))


def _encoded(tree: Any, payload: list[bytes], sparse: bool) -> list[dict[str, Any]]:
    """Returns the entries of the leaves for the header, and appends their data to the payload."""
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
                    f"`model` must have arrays that the format supports, but {error} at "
                    f"{words(keys)}: its shape is {np.shape(array)}."
                ) from None
            payload.append(data)
            offset += len(data)
        leaves.append({"path": list(keys), "type": kind, "arrays": described})
    return leaves


def words(keys: tuple[Key, ...]) -> str:
    """Returns a path for messages: "params/head/kernel"."""
    return "/".join(map(str, keys))


def _leaves(tree: Any, keys: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], str, tuple]]:
    """Yields (keys, type, arrays) of every leaf, sorted, so that equal weights make equal files."""
    if isinstance(tree, Mapping):
        if len(keys) == _DEEPEST and tree:
            raise ValueError(f"`model` must be nested at most {_DEEPEST} deep.")
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
                "The int8 kernels of `model` must be as `jaxrobust.pruning.quantize` makes them, int8 "
                "values and a float32 scale for each channel of one axis, got "
                f"{_described(tree.values)} and {_described(tree.scale)} at {words(keys)}: convert "
                "them, `QuantizedKernel(values, scale.astype(jnp.float32))`."
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
    require(end == payload_nbytes, "its size differs from the one in its header")
    # Before any of it is allocated.
    decoded = sum(spec.size * spec.dtype.itemsize for spec in specs)
    if decoded > max_nbytes:
        raise _RefusedError(f"decodes to {decoded} bytes, more than `max_nbytes`, {max_nbytes}")
    trees = [None if group is None else _decoded(file, group) for group in (leaves, masks)]
    return facts, trees[0], trees[1]


def _header(file: Any, start: bytes, size: int) -> tuple[dict[str, Any], int]:
    """Returns the header, and the number of bytes after it."""
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
        raise DamagedError("its header is not JSON") from error
    require(isinstance(content, dict), "its header is not an object")
    version = content.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise _RefusedError(
            f"has format version {version!r}; this release reads 1 and {VERSION}: load it "
            "with the release that wrote it"
        )
    require(isinstance(content.get("metadata"), dict), "its header lacks entries")
    return content, size - _PREFIX.size - length


def _parsed(leaves: Any) -> list[tuple[list[Key], str, list[Spec]]]:
    require(isinstance(leaves, list), "its header lacks entries")
    return [_leaf(leaf) for leaf in leaves]


def _leaf(leaf: Any) -> tuple[list[Key], str, list[Spec]]:
    require(isinstance(leaf, dict), "a leaf is not an object")
    keys, kind, arrays = leaf.get("path"), leaf.get("type"), leaf.get("arrays")
    require(
        isinstance(keys, list) and len(keys) <= _DEEPEST and all(map(_is_key, keys)),
        "a path is not a list of names",
    )
    require(isinstance(kind, str) and kind in _ARRAYS_OF, f"a leaf has the type {kind!r}")
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
        require(_is_kernel(values, scale), f"{keys} is not a quantised kernel")
        tree[keys[-1]] = QuantizedKernel(_on_device(values), _on_device(scale))


def _is_kernel(values: Any, scale: Any) -> bool:
    """Whether two arrays are the parts of a `QuantizedKernel`."""
    if not all(isinstance(part, jax.Array | np.ndarray) for part in (values, scale)):
        return False
    # By name: the byte order of what is saved is nobody's concern.
    fits = (values.dtype.name, scale.dtype.name) == ("int8", "float32")
    return fits and values.ndim >= 1 and _is_scale(scale.shape, values.shape)


def _described(array: Any) -> str:
    is_array = isinstance(array, jax.Array | np.ndarray)
    return f"{array.dtype}{list(array.shape)}" if is_array else type(array).__name__


def _is_scale(scale: tuple[int, ...], values: tuple[int, ...]) -> bool:
    """Whether a scale has one entry for each channel, along the last axis or another one."""
    if scale == values[-1:]:
        return True
    wide = [length for length in scale if length > 1]
    pairs = zip(scale, values, strict=False)
    return len(scale) == len(values) and len(wide) <= 1 and all(a in (1, b) for a, b in pairs)


def _on_device(array: np.ndarray) -> Any:
    # The type that JAX would make of it, known without making it.
    return jnp.asarray(array) if jnp.result_type(array) == array.dtype else array
