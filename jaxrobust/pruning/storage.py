r"""One file for a network, smaller by what was pruned, that loads back bit for bit.

Every array is stored in the smallest of three encodings, or densely on request, so that files of
pruned and of dense networks compare. Numbers are little endian; nothing in a file is ever executed.

    offset  bytes  content
    0       8      89 4A 52 50 0D 0A 1A 0A ("\x89JRP\r\n\x1a\n", which text mode would damage)
    8       4      uint32, length L of the header
    12      4      uint32, CRC-32 of bytes 8 .. 11 followed by the header
    16      L      the header: JSON in UTF-8
    16 + L         the payload: the arrays' data, one after another, up to the end of the file

The header:

    {"version": 1, "metadata": {...}, "leaves": [
      {"path": ["params", "head", "kernel"], "type": "array", "arrays": [
        {"dtype": "float32", "shape": [128, 10], "encoding": "bitmask",
         "offset": 0, "nbytes": 1184, "mask_nbytes": 160, "crc32": 305419896}]}]}

A leaf of type "array" has one array, "quantized" has two (a `QuantizedKernel`'s values and scale) and
"empty", an empty dict, none. Paths have at most 64 keys, headers at most 2^26 bytes. `offset` is from
the start of the payload, `nbytes` of the whole data, `crc32` its CRC-32. The data of an array of n
elements of b bytes, in C order, of which z are not zero (`jaxrobust.pruning.encoding`):

    dense         n b bytes: the elements
    bitmask       ceil(n / 8) bytes: a bit for each element, the first one in the lowest bit of the
                  first byte, set where the element is stored, padded with 0; then z b bytes: those
                  elements, in order
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
from jaxrobust.pruning.encoding import DamagedError, Spec, decode, encode, parse, require
from jaxrobust.pruning.quantization import QuantizedKernel
from jaxrobust.types import PyTree

VERSION = 1

_MAGIC = b"\x89JRP\r\n\x1a\n"
_PREFIX = struct.Struct("<8sII")
_LONGEST_HEADER = 2**26  # parsed it takes some 25 times as much memory
_DEEPEST = 64  # keys in a path: more would be an attack on the recursion of whoever reads it
_ARRAYS_OF = {"array": 1, "quantized": 2, "empty": 0}


def save_sparse(
    path: str | os.PathLike[str],
    variables: PyTree,
    metadata: Mapping[str, Any],
    *,
    sparse: bool = True,
) -> int:
    """Saves a network in one file, without the weights that are zero.

    The file is written whole or not at all: a kill leaves the old one. Its content is put together in
    memory first, which takes the file's size besides the variables.

    Args:
      path: Of the file; its folder is made where it is missing, a file there is replaced.
      variables: Nested dicts with string keys of arrays and `QuantizedKernel`: {"params": ...,
        "batch_stats": ...}. Pruned weights must be 0 (`apply_masks`): masks are not stored.
      metadata: A JSON object; what is needed to build the network again. Arrays become lists.
      sparse: False stores every element: a dense file of the same format, to compare with.

    Returns:
      The file's size in bytes.

    Raises:
      TypeError: What is no array, an array of a type that the format does not know, keys that are no
        strings (in the metadata too), metadata that JSON cannot hold.
      ValueError: Metadata with NaN or infinity, for which JSON has no word; more than 64 levels; a
        header of more than 64 MiB.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> kernel = jnp.zeros((100, 10)).at[:20].set(1.5)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = f"{folder}/pruned.jrp"
      ...     dense = save_sparse(file, {"params": {"kernel": kernel}}, {}, sparse=False)
      ...     small = save_sparse(file, {"params": {"kernel": kernel}}, {"model": "mlp"})
      ...     variables, metadata = load_sparse(file)
      >>> small < dense / 3, bool((variables["params"]["kernel"] == kernel).all()), metadata
      (True, True, {'model': 'mlp'})
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"`variables` must be nested dicts, got {type(variables).__name__}.")
    metadata = checks.json_object("metadata", metadata)
    leaves: list[dict[str, Any]] = []
    payload: list[bytes] = []
    offset = 0
    for keys, kind, arrays in _leaves(variables):
        described = []
        for array in arrays:
            entry, data = encode("/".join(keys), array, sparse)
            described.append(entry | {"offset": offset, "nbytes": len(data)})
            payload.append(data)
            offset += len(data)
        leaves.append({"path": list(keys), "type": kind, "arrays": described})
    content = {"version": VERSION, "metadata": metadata, "leaves": leaves}
    header = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(header) > _LONGEST_HEADER:
        raise ValueError(
            f"`metadata` and paths must fit into {_LONGEST_HEADER} bytes, got {len(header)}."
        )
    prefix = _PREFIX.pack(_MAGIC, len(header), _header_crc(header))
    with files.replace(Path(path)) as file:
        file.writelines([prefix, header, *payload])
    return len(prefix) + len(header) + offset


def load_sparse(
    path: str | os.PathLike[str], *, max_nbytes: int = 2**31
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads what `save_sparse` saved, bit for bit.

    Safe on files from anywhere: nothing in them is executed, every byte is covered by a checksum,
    and the size of what it decodes to is checked before any of it is.

    Arrays are decoded one by one. Peak memory is that of all decoded arrays, twice that of the largest
    besides, and a byte for each of its elements; before that, some 25 times the header's size, which
    may be 64 MiB at most and is a few KiB in what `save_sparse` makes of a usual network.

    Args:
      path: Of the file.
      max_nbytes: The most bytes that the decoded arrays may take, 2 GiB by default: a small file can
        hold a huge array of zeros.

    Returns:
      (variables, metadata): nested dicts of JAX arrays and `QuantizedKernel`. Arrays of 64 bits are
      numpy arrays unless jax_enable_x64 is set, because JAX would cut them to 32.

    Raises:
      FileNotFoundError: No such file.
      ValueError: Not a file of `save_sparse`, of another version, damaged, cut short, larger than
        `max_nbytes`, or with a header of more than 64 MiB; the message says which.
    """
    checks.integer("max_nbytes", max_nbytes, minimum=0)
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_PREFIX.size)
        if start[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{path} is not a file of jaxrobust.pruning.save_sparse.")
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


def _leaves(tree: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, tuple]]:
    """(keys, type, arrays) of every leaf, sorted: equal variables make equal files."""
    if isinstance(tree, Mapping):
        if len(keys) == _DEEPEST and tree:
            raise ValueError(f"`variables` are nested more than {_DEEPEST} deep.")
        if not tree:
            yield keys, "empty", ()
        for key in tree:
            if not isinstance(key, str):
                raise TypeError(f"`variables` must have strings as keys, got {key!r}.")
        for key in sorted(tree):
            yield from _leaves(tree[key], (*keys, key))
    elif isinstance(tree, QuantizedKernel):
        yield keys, "quantized", (tree.values, tree.scale)
    elif isinstance(tree, jax.Array | np.ndarray):
        yield keys, "array", (tree,)
    else:
        raise TypeError(
            f"`variables` must hold arrays, got {type(tree).__name__} at {'/'.join(keys)}."
        )


def _read(file: Any, start: bytes, size: int, max_nbytes: int) -> tuple[dict, dict]:
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
    if type(version) is not int or version != VERSION:
        raise _RefusedError(f"is of format version {version!r}; this release reads {VERSION}")
    metadata, leaves = content.get("metadata"), content.get("leaves")
    require(isinstance(metadata, dict) and isinstance(leaves, list), "its header lacks entries")
    parsed = [_leaf(leaf) for leaf in leaves]
    specs = [spec for _, _, group in parsed for spec in group]
    end = 0
    for spec in specs:
        require(spec.offset == end, "its arrays do not follow one another")
        end += spec.nbytes
    require(end == size - _PREFIX.size - length, "its size is not the one in its header")
    # Before any of it is allocated.
    decoded = sum(spec.size * spec.dtype.itemsize for spec in specs)
    if decoded > max_nbytes:
        raise _RefusedError(f"decodes to {decoded} bytes, and `max_nbytes` is {max_nbytes}")
    variables: dict[str, Any] = {}
    for keys, kind, group in parsed:
        _place(variables, keys, kind, [decode(file.read(spec.nbytes), spec) for spec in group])
    return variables, metadata


def _leaf(leaf: Any) -> tuple[list[str], str, list[Spec]]:
    require(isinstance(leaf, dict), "a leaf is no object")
    keys, kind, arrays = leaf.get("path"), leaf.get("type"), leaf.get("arrays")
    require(
        isinstance(keys, list)
        and len(keys) <= _DEEPEST
        and all(isinstance(key, str) for key in keys),
        "a path is no list of names",
    )
    require(isinstance(kind, str) and kind in _ARRAYS_OF, f"a leaf is of the type {kind!r}")
    require(
        isinstance(arrays, list) and len(arrays) == _ARRAYS_OF[kind], f"{keys} lacks its arrays"
    )
    return keys, kind, [parse(entry) for entry in arrays]


def _place(tree: dict[str, Any], keys: list[str], kind: str, arrays: list[np.ndarray]) -> None:
    if not keys:
        require(kind == "empty" and not tree, "a leaf has no path")
        return
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        require(isinstance(tree, dict), f"the path {keys} leads through an array")
    require(keys[-1] not in tree, f"the path {keys} is taken twice")
    if kind == "empty":
        tree[keys[-1]] = {}
    elif kind == "array":
        tree[keys[-1]] = _on_device(arrays[0])
    else:
        values, scale = arrays
        fits = values.dtype == np.int8 and scale.dtype == np.float32
        fits = fits and values.ndim >= 1 and scale.shape == values.shape[-1:]
        require(fits, f"{keys} is no quantised kernel")
        tree[keys[-1]] = QuantizedKernel(_on_device(values), _on_device(scale))


def _on_device(array: np.ndarray) -> Any:
    # The type that JAX would make of it, known without making it.
    return jnp.asarray(array) if jnp.result_type(array) == array.dtype else array
