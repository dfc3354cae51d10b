"""The placement of a run on its devices.

Every device has a full copy of the weights, the data and the sums; the rows of a batch are divided
among the devices. With several processes (`jax.distributed`) each contributes the same number of
devices, and all of them run the same program.
"""

import functools
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

WHOLE, ROWS = PartitionSpec(), PartitionSpec("data")


def num_shares(num_devices: int) -> int:
    """Returns the number of parts of a batch, with `num_devices` devices of each process."""
    return num_devices * jax.process_count()


def replicated(num_devices: int) -> Callable[[Any], Any]:
    """Returns a function that copies a pytree of arrays, equal in all processes, to each device."""
    if num_shares(num_devices) == 1:
        return functools.partial(jax.device_put, device=jax.local_devices()[0])
    sharding = NamedSharding(_mesh(num_devices), WHOLE)
    if jax.process_count() == 1:
        return functools.partial(jax.device_put, device=sharding)

    def put(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        # Not device_put, with which the processes would compare what each of them has.
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return functools.partial(jax.tree.map, put)


def on_this_process(tree: Any) -> Any:
    """Puts a pytree of replicated arrays on one device of this process."""
    device = jax.local_devices()[0]
    return jax.tree.map(lambda leaf: jax.device_put(leaf.addressable_data(0), device), tree)


def shapes_of(tree: Any, num_devices: int) -> Any:
    """Returns the shapes of a pytree of arrays, marked as replicated on every device."""
    sharding = None
    if num_shares(num_devices) > 1:
        sharding = NamedSharding(_mesh(num_devices), WHOLE)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def constrained(tree: Any, num_devices: int, spec: PartitionSpec) -> Any:
    """Places arrays within compiled code: rows divided (ROWS) or replicated (WHOLE)."""
    if num_shares(num_devices) == 1:
        return tree
    sharding = NamedSharding(_mesh(num_devices), spec)
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), tree)


def is_first_process() -> bool:
    """Whether this process is the one that writes files and messages for all."""
    return jax.process_index() == 0


def in_any_process(value: bool) -> bool:
    """Whether the value is true in any process; all processes must call this together."""
    return bool(np.any(_gathered(np.asarray(value))))


def different(values: Mapping[str, Any]) -> list[str]:
    """Returns the names of values that differ between processes; all must call this together.

    Args:
      values: JSON values by name, with the same names in every process.
    """
    texts = [json.dumps(value, sort_keys=True).encode() for value in values.values()]
    digests = np.stack([np.frombuffer(sha256(text).digest(), np.uint8) for text in texts])
    gathered = _gathered(digests)
    unlike = np.any(gathered != gathered[0], axis=(0, 2))
    return [name for name, differs in zip(values, unlike, strict=True) if differs]


def _gathered(value: np.ndarray) -> np.ndarray:
    """Returns the value of every process: [processes, ...]."""
    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


@functools.cache
def _mesh(num_devices: int) -> Mesh:
    of_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        of_process.setdefault(device.process_index, []).append(device)
    chosen = [device for rank in sorted(of_process) for device in of_process[rank][:num_devices]]
    return Mesh(np.array(chosen), ("data",), axis_types=(AxisType.Auto,))
