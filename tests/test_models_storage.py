"""The format of saved models: exact, as small as it says, and never silently wrong."""

import json
import math
import os
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxrobust import pruning
from jaxrobust.models import storage
from jaxrobust.types import QuantizedKernel


def write(path, variables, metadata=(), *, sparse=True, masks=None):
    return storage.write(path, {"metadata": dict(metadata)}, variables, masks, sparse)


def read(path, max_nbytes=2**31):
    facts, variables, _ = storage.read(path, max_nbytes)
    return variables, facts["metadata"]


QUICK = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
DTYPES = ["float16", "float32", "float64", "bool", "int8", "int32", "uint8", "int64"]
# Mostly zeros, and every kind of number whose bits might be lost on the way.
ODD = st.sampled_from([0.0, 0.0, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 1.5, -2.25])


@st.composite
def arrays(draw):
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind == "f":
        return draw(hnp.arrays(np.float64, shape, elements=ODD)).astype(dtype)
    return draw(hnp.arrays(dtype, shape, fill=st.just(dtype.type(0))))


KERNELS = st.integers(0, 2**32 - 1).map(
    lambda seed: pruning.quantize(
        {"kernel": np.random.default_rng(seed).normal(size=(3, 2)).astype(np.float32)}
    )["kernel"]
)
KEYS = st.text(max_size=4) | st.integers(-3, 10**6)
VARIABLES = st.dictionaries(
    KEYS,
    st.recursive(
        arrays() | KERNELS,
        lambda children: st.dictionaries(KEYS, children, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


def same(left, right):
    """Bit for bit, with types, shapes and containers."""
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, QuantizedKernel):
        return isinstance(right, QuantizedKernel) and all(
            same(getattr(left, name), getattr(right, name)) for name in ("values", "scale")
        )
    left, right = np.asarray(left), np.asarray(right)
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


@QUICK
@given(VARIABLES, st.booleans())
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, variables, sparse):
    path = tmp_path / "network.jrp"
    metadata = {"model": "cnn", "widths": [1, 2], "mean": 0.1, "name": "Zürich", "none": None}
    size = write(path, variables, metadata, sparse=sparse)
    assert size == path.stat().st_size
    loaded, loaded_metadata = read(path)
    assert same(variables, loaded)
    assert metadata == loaded_metadata
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.jrp"]


def test_bfloat16_64_bits_and_foreign_byte_order(tmp_path):
    variables = {
        "half": jnp.array([[0.0, -0.0, 1.5, 0.0]], jnp.bfloat16),
        "wide": np.array([0.0, 1e300]),
        "nan": np.array([0x7FC12345, 0xFF800001], np.uint32).view(np.float32),
    }
    write(tmp_path / "a", variables | {"swapped": np.arange(3, dtype=">f4")}, {})
    loaded, _ = read(tmp_path / "a")
    np.testing.assert_array_equal(loaded.pop("swapped"), np.arange(3, dtype=np.float32))
    assert same(variables, loaded)
    assert isinstance(loaded["half"], jax.Array) and isinstance(loaded["wide"], np.ndarray)


def payload_size(path):
    """Without the prefix and the header, read by hand as the format's description says."""
    data = path.read_bytes()
    magic, length, checksum = struct.unpack("<8sII", data[:16])
    assert magic == b"\x89JRP\r\n\x1a\n"
    assert checksum == zlib.crc32(data[8:12] + data[16 : 16 + length])
    return len(data) - 16 - length, json.loads(data[16 : 16 + length])


def test_size_is_a_bit_for_each_weight_and_the_weights_that_are_left(tmp_path):
    kernel = jax.random.normal(jax.random.key(0), (100, 101))
    params = {"kernel": kernel, "bias": jnp.ones(101)}
    pruned = pruning.apply_masks(params, pruning.global_magnitude(params, 0.8))
    write(tmp_path / "sparse", pruned, {})
    write(tmp_path / "dense", pruned, {}, sparse=False)
    assert payload_size(tmp_path / "sparse")[0] == math.ceil(10_100 / 8) + 4 * 2020 + 4 * 101
    assert payload_size(tmp_path / "dense")[0] == 4 * 10_100 + 4 * 101
    # A dense network costs nothing more in the sparse form.
    write(tmp_path / "unpruned", params, {})
    assert payload_size(tmp_path / "unpruned")[0] == 4 * 10_100 + 4 * 101
    # At 99 % most of the file would be mask: it is compressed.
    rare = pruning.apply_masks(params, pruning.global_magnitude(params, 0.99))
    write(tmp_path / "rare", rare, {})
    size, header = payload_size(tmp_path / "rare")
    entry = header["leaves"][1]["arrays"][0]
    assert entry["encoding"] == "bitmask-zlib"
    assert size < 0.95 * (math.ceil(10_100 / 8) + 4 * 101) + 4 * 101
    assert same(rare, read(tmp_path / "rare")[0])


def test_reference_network_at_80_percent_is_a_quarter(tmp_path, reference_classifier):
    variables = reference_classifier.variables
    masks = pruning.global_magnitude(variables, 0.8)
    pruned = pruning.apply_masks(variables, masks)
    dense = write(tmp_path / "dense", variables, {}, sparse=False)
    sparse = write(tmp_path / "sparse", pruned, {})
    assert dense / sparse > 3.5
    quantized = write(tmp_path / "int8", pruning.quantize(variables), {})
    both = write(tmp_path / "both", pruning.quantize(pruned), {})
    assert dense / quantized > 3.5 and dense / both > 8
    assert same(pruned, read(tmp_path / "sparse")[0])


def read_by_hand(path):
    """A second reader, from the format's description alone; checks nothing."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:12], "little")
    header, payload = json.loads(data[16 : 16 + length]), data[16 + length :]
    found = {}
    for leaf in header["leaves"]:
        for number, entry in enumerate(leaf["arrays"]):
            chunk = payload[entry["offset"] : entry["offset"] + entry["nbytes"]]
            count = math.prod(entry["shape"])
            mask, values = chunk[: entry["mask_nbytes"]], chunk[entry["mask_nbytes"] :]
            if entry["encoding"] == "bitmask-zlib":
                mask = zlib.decompress(mask)
            values = iter(np.frombuffer(values, entry["dtype"]).tolist())
            if entry["encoding"] == "dense":
                elements = list(values)
            else:
                elements = [
                    next(values) if mask[i // 8] >> (i % 8) & 1 else 0 for i in range(count)
                ]
            found["/".join(leaf["path"]), number] = np.reshape(elements, entry["shape"])
    return found


def test_the_description_suffices_to_read_a_file(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(7, 5, 3)).astype(np.float32)
    kernel[np.abs(kernel) < 1] = 0
    spread = np.zeros((300, 9), np.int32)
    spread[5, 3] = 7
    quantized = pruning.quantize({"kernel": kernel})["kernel"]
    variables = {
        "a": {"kernel": kernel, "bias": np.ones(3, np.float32)},
        "q": quantized,
        "s": spread,
    }
    write(tmp_path / "network", variables, {})
    found = read_by_hand(tmp_path / "network")
    np.testing.assert_array_equal(found["a/kernel", 0], kernel)
    np.testing.assert_array_equal(found["a/bias", 0], 1)
    np.testing.assert_array_equal(found["q", 0], quantized.values)
    np.testing.assert_array_equal(found["q", 1], quantized.scale)
    np.testing.assert_array_equal(found["s", 0], spread)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small file with all encodings, and what is in it."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(6, 5)).astype(np.float32)
    kernel[np.abs(kernel) < 0.8] = 0
    mostly_zero = np.zeros((40, 30), np.float32)
    mostly_zero[3, 4] = 2.0
    variables = {
        "params": {
            "dense": rng.normal(size=(4,)).astype(np.float32),
            "kernel": kernel,
            "zero": mostly_zero,
            "int8": pruning.quantize({"kernel": kernel})["kernel"],
            "none": {},
        }
    }
    path = tmp_path_factory.mktemp("saved") / "network.jrp"
    write(path, variables, {"model": "cnn", "seed": 3})
    encodings = {
        entry["encoding"] for leaf in payload_size(path)[1]["leaves"] for entry in leaf["arrays"]
    }
    assert encodings == {"dense", "bitmask", "bitmask-zlib"}
    return path.read_bytes(), variables


@settings(QUICK, max_examples=150)
@given(st.data())
def test_damage_is_noticed(tmp_path, saved, data):
    original = saved[0]
    at = st.integers(0, len(original) - 1)
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "overwrite", "remove", "swap"]))
    position = data.draw(at)
    if kind == "flip":
        damaged = bytearray(original)
        damaged[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        damaged = original[:position]
    elif kind == "extend":
        damaged = original + data.draw(st.binary(min_size=1, max_size=20))
    elif kind == "overwrite":
        noise = data.draw(st.binary(min_size=1, max_size=40))
        damaged = original[:position] + noise + original[position + len(noise) :]
    elif kind == "remove":
        damaged = original[:position] + original[position + data.draw(st.integers(1, 9)) :]
    else:
        other = data.draw(at)
        damaged = bytearray(original)
        damaged[position], damaged[other] = damaged[other], damaged[position]
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    if bytes(damaged) == original:
        read(path)
        return
    with pytest.raises(
        ValueError, match="damaged is (damaged or cut short: |not a file of jaxrobust)"
    ):
        read(path)


def test_every_byte_is_covered(tmp_path, saved):
    path = tmp_path / "damaged"
    for position in range(len(saved[0])):
        damaged = bytearray(saved[0])
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=str(path)):
            read(path)


def forged(path, change, payload=None):
    """Writes a file with valid checksums whose header was changed."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:12], "little")
    header = json.loads(data[16 : 16 + length])
    replaced = change(header)
    body = replaced if isinstance(replaced, bytes) else json.dumps(header).encode()
    size = struct.pack("<I", len(body))
    checksum = struct.pack("<I", zlib.crc32(size + body))
    payload = data[16 + length :] if payload is None else payload
    path.write_bytes(data[:8] + size + checksum + body + payload)


def entry(header, index=0):
    return header["leaves"][index]["arrays"][0]


# Of the leaves of `saved` in order: dense, int8, kernel (bitmask), none, zero (zlib).
@pytest.mark.parametrize(
    "change",
    [
        lambda h: b"[" * 100_000,
        lambda h: b"\xff\xfe{}",
        lambda h: b"[1]",
        lambda h: h.pop("leaves") and None,
        lambda h: h.update(metadata=[1]),
        lambda h: h.update(leaves=[3]),
        lambda h: h["leaves"][0].update(path="params"),
        lambda h: h["leaves"][0].update(path=["params", 1.5]),
        lambda h: h["leaves"][0].update(path=["params", True]),
        lambda h: h.update(masks={}),
        lambda h: h.update(masks=[3]),
        lambda h: h["leaves"][0].update(path=[]),
        lambda h: h["leaves"][0].update(path=["a"] * 100),
        lambda h: h["leaves"][0].update(path=["params", "kernel"]),
        lambda h: h["leaves"][4].update(path=["params", "dense", "inside"]),
        lambda h: h["leaves"][0].update(type="object"),
        lambda h: h["leaves"][0].update(type=["array"]),
        lambda h: h["leaves"][0].update(arrays=[]),
        lambda h: h["leaves"][0].update(arrays=[None]),
        lambda h: h["leaves"][1]["arrays"][1].update(shape=[5, 1]),
        lambda h: h["leaves"][1]["arrays"][1].update(dtype="int32"),
        lambda h: entry(h).update(dtype="object"),
        lambda h: entry(h).update(dtype=["float32"]),
        lambda h: entry(h).update(dtype="float64"),
        lambda h: entry(h).update(shape=[5]),
        lambda h: entry(h).update(shape=[-4]),
        lambda h: entry(h).update(shape=[4.0]),
        lambda h: entry(h).update(shape=[True, 4]),
        lambda h: entry(h).update(shape=[1] * 70 + [4]),
        lambda h: entry(h).update(shape=[0, 2**60, 2**60], nbytes=0),
        lambda h: entry(h).update(encoding="pickle"),
        lambda h: entry(h).update(encoding="bitmask"),
        lambda h: entry(h).update(offset=4),
        lambda h: entry(h).update(offset="0"),
        lambda h: entry(h).update(nbytes=2**70),
        lambda h: entry(h).update(nbytes=-16),
        lambda h: entry(h).update(crc32=0),
        lambda h: entry(h).pop("mask_nbytes") and None,
        lambda h: entry(h, 2).update(shape=[33]),
        lambda h: entry(h, 2).update(shape=[5, 5]),
        lambda h: entry(h, 2).update(mask_nbytes=0),
        lambda h: entry(h, 2).update(encoding="bitmask-zlib"),
        lambda h: entry(h, 4).update(shape=[10**8]),
        lambda h: entry(h, 4).update(shape=[10]),
        lambda h: entry(h, 4).update(mask_nbytes=entry(h, 4)["nbytes"]),
    ],
)
def test_forged_headers_are_refused(tmp_path, saved, change):
    path = tmp_path / "forged"
    path.write_bytes(saved[0])
    forged(path, change)
    with pytest.raises(ValueError, match="damaged or cut short"):
        read(path)


def test_an_honest_forgery_loads(tmp_path, saved):
    """Otherwise the test above would pass on anything."""
    path = tmp_path / "forged"
    path.write_bytes(saved[0])
    forged(path, lambda header: header["metadata"].update(seed=4))
    loaded, metadata = read(path)
    assert metadata["seed"] == 4 and same(saved[1], loaded)


def test_size_is_bounded_before_anything_is_decoded(tmp_path):
    path = tmp_path / "zeros"
    write(path, {"kernel": np.zeros((1000, 1000), np.float32)}, {})
    assert path.stat().st_size < 2000
    with pytest.raises(
        ValueError, match="decodes to 4000000 bytes, more than `max_nbytes`, 3999999"
    ):
        read(path, max_nbytes=3_999_999)
    read(path, max_nbytes=4_000_000)
    with pytest.raises(TypeError, match="`max_nbytes`"):
        read(path, max_nbytes="1 GB")
    forged(path, lambda header: entry(header).update(shape=[2**47]))
    with pytest.raises(ValueError, match="decodes to 562949953421312 bytes"):
        read(path)


def test_a_long_header_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "network"
    write(path, {"kernel": np.ones(3, np.float32)}, {"notes": "x" * 2000})
    before = path.read_bytes()
    monkeypatch.setattr(storage, "_LONGEST_HEADER", 1000)
    with pytest.raises(ValueError, match=r"has a header of \d{4} bytes, more than 1000"):
        read(path)
    with pytest.raises(ValueError, match="must have at most 1000 bytes"):
        write(path, {}, {"notes": "x" * 1000})
    assert path.read_bytes() == before


def test_other_versions_and_foreign_files(tmp_path, saved):
    path = tmp_path / "file"
    for version in (3, True, 1.0):
        path.write_bytes(saved[0])
        forged(path, lambda header, version=version: header.update(version=version))
        with pytest.raises(
            ValueError, match=f"format version {version}; this release reads 1 and 2"
        ):
            read(path)
    for content in (b"", b"PK\x03\x04", b"\x93NUMPY", b"\x89JRP\n\x1a\n" + saved[0][8:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of jaxrobust.models.save"):
            read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent")


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "network"
    write(path, {"kernel": jnp.ones((2, 2))}, {})
    before = path.read_bytes()
    deep = jnp.ones(1)
    for _ in range(65):
        deep = {"a": deep}
    for variables, error, message in (
        (None, TypeError, "in dicts, got NoneType"),
        (jnp.ones(1), TypeError, "in dicts, got ArrayImpl"),
        ({"a": np.ones((1,) * 33)}, ValueError, "an array has no shape at a: its shape is"),
        ({"a": np.ones((0, 2**50), np.int8)}, ValueError, "a shape is too large at a"),
        ({"a": {"b": 1.0}}, TypeError, "float at a/b"),
        ({"a": [jnp.ones(1)]}, TypeError, "list at a"),
        ({1.5: jnp.ones(1)}, TypeError, "strings or integers as keys, got 1.5"),
        ({True: jnp.ones(1)}, TypeError, "strings or integers as keys, got True"),
        ({"key": jax.random.key(0)}, TypeError, "key<fry> at key"),
        ({"text": np.array(["a"])}, TypeError, "at text"),
        (deep, ValueError, "nested at most 64 deep"),
    ):
        with pytest.raises(error, match=message):
            write(path, variables)
    assert path.read_bytes() == before


VALUES, SCALE = np.ones((3, 2), np.int8), np.ones(2, np.float32)


@pytest.mark.parametrize(
    "kernel",
    [
        (VALUES, SCALE.astype(jnp.bfloat16)),
        (VALUES, SCALE.astype(np.float64)),
        (VALUES.astype(np.int16), SCALE),
        (VALUES, np.ones(3, np.float32)),
        (VALUES, np.ones((3, 2), np.float32)),
        (VALUES, SCALE[0]),
        (VALUES[0, 0], np.float32(1)),
        (VALUES, None),
        (VALUES, 1.0),
    ],
)
def test_a_kernel_that_would_not_be_loaded_is_not_saved(tmp_path, kernel):
    with pytest.raises(
        TypeError, match="The int8 kernels of `model` must be .* at params/k: convert"
    ):
        write(tmp_path / "a", {"params": {"k": QuantizedKernel(*kernel)}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scale", [SCALE, SCALE.astype(">f4"), SCALE[None], np.ones((3, 1), "f4")])
def test_a_kernel_that_is_saved_is_loaded(tmp_path, scale):
    write(tmp_path / "a", {"k": QuantizedKernel(VALUES, scale)})
    kernel = read(tmp_path / "a")[0]["k"]
    assert same(kernel, QuantizedKernel(VALUES, scale.astype(np.float32)))


def test_none_is_stored(tmp_path):
    write(tmp_path / "a", {"a": None, "b": {"c": None, "d": jnp.ones(2)}, "e": {}})
    loaded, _ = read(tmp_path / "a")
    assert loaded["a"] is None and loaded["b"]["c"] is None and loaded["e"] == {}


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "network"
    write(path, {"kernel": jnp.ones((2, 2))}, {})
    before = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write(path, {"kernel": jnp.zeros((2, 2))}, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["network"]


def test_equal_variables_make_equal_files(tmp_path):
    one = {"b": jnp.ones(2), "a": jnp.zeros(3)}
    write(tmp_path / "one", one, {"x": 1})
    write(tmp_path / "two", dict(reversed(one.items())), {"x": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_masks_are_bits_and_lie_after_the_weights(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(33, 31)).astype(np.float32)
    masks = {"kernel": kernel > 0, "all": np.ones((5, 5), bool), "one": np.array([True])}
    masks |= {"none": np.zeros(9, bool), "empty": np.ones((0, 3), bool), "last": np.array(True)}
    for sparse in (True, False):
        write(tmp_path / "with", {"kernel": kernel}, sparse=sparse, masks=masks)
        write(tmp_path / "without", {"kernel": kernel}, sparse=sparse)
        sizes = [payload_size(tmp_path / name)[0] for name in ("with", "without")]
        # 1,023 bits, and of small ones bytes.
        assert sizes[0] - sizes[1] <= 128 + 4 + 1 + 2 + 1
        _, weights, found = storage.read(tmp_path / "with", 2**31)
        assert same(weights, {"kernel": kernel}) and same(found, masks)
    assert storage.read(tmp_path / "without", 2**31)[2] is None
    decoded = 4 * 1023 + 1023 + 25 + 1 + 9 + 1
    with pytest.raises(ValueError, match=f"decodes to {decoded} bytes"):
        read(tmp_path / "with", decoded - 1)


def test_booleans_of_version_1_have_their_values_too(tmp_path):
    path, mask = tmp_path / "old", np.arange(100) % 7 == 0
    write(path, {"mask": mask})

    def change(header):
        values = int(mask.sum())
        old = {"nbytes": entry(header)["nbytes"] + values}
        data = path.read_bytes()[-entry(header)["nbytes"] :] + b"\1" * values
        entry(header).update(old, crc32=zlib.crc32(data))
        header["version"] = 1
        change.payload = data

    forged(path, change)
    head = path.read_bytes()
    path.write_bytes(head[: 16 + len(_header(head))] + change.payload)
    assert same(read(path)[0], {"mask": mask})


def _header(data):
    return data[16 : 16 + int.from_bytes(data[8:12], "little")]
