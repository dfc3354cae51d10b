"""Encodes one array as bytes, with or without its zeros; see `jaxrobust.models.storage`."""

import math
import zlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

ENCODINGS = ("dense", "bitmask", "bitmask-zlib")

_WORTHWHILE = 0.95  # of the bitmask's size, for zlib
_DTYPES = {
    np.dtype(kind).name: np.dtype(kind)
    for kind in (
        *(jnp.bfloat16, np.float16, np.float32, np.float64, np.bool_),
        *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
    )
}


class DamagedError(Exception):
    """A file is damaged; the message says how, as the end of a sentence."""


class Spec(NamedTuple):
    """The checked description of an array in the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    encoding: str
    offset: int
    nbytes: int
    mask_nbytes: int
    crc32: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def encode(path: str, array: Any, sparse: bool) -> tuple[dict[str, Any], bytes]:
    """Returns an array's entry in the header, without its offset in the payload, and its data.

    Args:
      path: The path of the array in the model, for the error message.
      array: An array of any shape, on the host or a device.
      sparse: Whether zeros may be left out if that is smaller.

    Raises:
      TypeError: The format does not support the type of the array.
    """
    if array.dtype.name not in _DTYPES:
        raise TypeError(
            f"`model` must hold arrays of {', '.join(_DTYPES)}, got {array.dtype} at {path}."
        )
    dtype = _DTYPES[array.dtype.name]
    flat = np.ascontiguousarray(array, dtype).reshape(-1)
    # As unsigned integers: then -0.0 is not 0 and a NaN keeps its payload.
    bits = flat.view(f"u{dtype.itemsize}").astype(f"<u{dtype.itemsize}", copy=False)
    encoding, mask, data = "dense", b"", bits.tobytes()
    stored = bits != 0
    # Of booleans the mask says all.
    values = b"" if dtype == np.bool_ else bits[stored].tobytes()
    num_bytes = len(values)
    bitmask_nbytes = (bits.size + 7) // 8
    if sparse and num_bytes < len(data):
        packed = np.packbits(stored, bitorder="little").tobytes()
        zipped = zlib.compress(packed, 9)
        worthwhile = len(zipped) + num_bytes <= _WORTHWHILE * (bitmask_nbytes + num_bytes)
        candidate = zipped if worthwhile else packed
        if len(candidate) + num_bytes < len(data):
            encoding, mask = ENCODINGS[1 + worthwhile], candidate
            data = mask + values
    entry = {
        "dtype": dtype.name,
        "shape": list(np.shape(array)),
        "encoding": encoding,
        "mask_nbytes": len(mask),
        "crc32": zlib.crc32(data),
    }
    return entry, data


def parse(entry: Any) -> Spec:
    """Checks an array's entry in the header.

    Raises:
      DamagedError: `encode` cannot have written it.
    """
    require(isinstance(entry, dict), "the entry of an array is not an object")
    dtype, shape, encoding = (entry.get(name) for name in ("dtype", "shape", "encoding"))
    require(isinstance(dtype, str) and dtype in _DTYPES, f"an array has the type {dtype!r}")
    require(
        isinstance(shape, list) and len(shape) <= 32 and all(map(_natural, shape)),
        "an array has no shape",
    )
    # Dimensions of 0 hide others that no array can have.
    require(math.prod(max(length, 1) for length in shape) < 2**48, "a shape is too large")
    require(encoding in ENCODINGS, f"an array has the encoding {encoding!r}")
    numbers = [entry.get(name) for name in ("offset", "nbytes", "mask_nbytes", "crc32")]
    require(all(map(_natural, numbers)), "an array lacks a number")
    spec = Spec(_DTYPES[dtype], tuple(shape), encoding, *numbers)
    bitmask_nbytes = (spec.size + 7) // 8
    if encoding == "dense":
        whole = spec.nbytes == spec.size * spec.dtype.itemsize and not spec.mask_nbytes
    else:
        whole = (
            spec.mask_nbytes <= spec.nbytes
            and (spec.nbytes - spec.mask_nbytes) % spec.dtype.itemsize == 0
            and (encoding == "bitmask-zlib" or spec.mask_nbytes == bitmask_nbytes)
        )
    require(whole, "an array's sizes contradict each other")
    return spec


def decode(data: bytes, spec: Spec) -> np.ndarray:
    """Decodes the data of an array.

    Raises:
      DamagedError: The data do not match the entry or its checksum.
    """
    require(len(data) == spec.nbytes, "it ends inside an array")
    require(zlib.crc32(data) == spec.crc32, "an array does not match its checksum")
    stored = np.frombuffer(data, f"<u{spec.dtype.itemsize}", offset=spec.mask_nbytes)
    bits = stored
    if spec.encoding != "dense":
        mask = _bitmask(data[: spec.mask_nbytes], spec)
        if spec.dtype == np.bool_ and not stored.size:  # version 1 has the values too
            return mask.reshape(spec.shape)
        require(int(np.count_nonzero(mask)) == stored.size, "a mask does not fit its values")
        bits = np.zeros(spec.size, stored.dtype)
        bits[mask] = stored
    if spec.dtype == np.bool_:
        require(not bits.size or int(bits.max()) <= 1, "a boolean is neither 0 nor 1")
    native = bits.astype(f"=u{spec.dtype.itemsize}", copy=False)
    return native.view(spec.dtype).reshape(spec.shape)


def _bitmask(packed: bytes, spec: Spec) -> np.ndarray:
    expected = (spec.size + 7) // 8
    if spec.encoding == "bitmask-zlib":
        stream = zlib.decompressobj()
        try:
            packed = stream.decompress(packed, expected + 1)
        except zlib.error as error:
            raise DamagedError("a mask does not decompress") from error
        require(stream.eof and not stream.unused_data, "a mask does not decompress")
    require(len(packed) == expected, "a mask does not fit its array")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    require(not bits[spec.size :].any(), "a mask is not padded with 0")
    return bits[: spec.size].view(bool)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def require(condition: bool, reason: str) -> None:
    """Raises DamagedError with a reason unless the condition is True."""
    if not condition:
        raise DamagedError(reason)
