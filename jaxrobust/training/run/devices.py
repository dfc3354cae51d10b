"""The placement of a run on its devices.

Every device has a full copy of the weights, the data and the sums; the rows of a batch are divided
among the devices. With several processes (`jax.distributed`) each contributes the same number of
devices, and all of them run the same program.
"""

import functools
from collections.abc import Callable
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


@functools.cache
def _mesh(num_devices: int) -> Mesh:
    of_process: dict[int, list[Any]] = {}
    for device in jax.devices():
        of_process.setdefault(device.process_index, []).append(device)
    chosen = [device for rank in sorted(of_process) for device in of_process[rank][:num_devices]]
    return Mesh(np.array(chosen), ("data",), axis_types=(AxisType.Auto,))
