"""How long a network takes for a data set: one image at a time, or n with their way to the device."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.latency import program_of
from jaxrobust.evaluation.timing import interleaved_over, noise_floor, summary, time_difference


def dataset_latency(
    fns: Mapping[str, Callable[[Any], Any]],
    images: Any,
    batch_size: int = 1,
    *,
    in_memory: bool = True,
    warmup: int = 5,
    max_batches: int | None = None,
    reference: str | None = None,
    controls: int = 3,
) -> dict[str, Any]:
    """Times networks over the batches of a data set, each batch once by every network.

    With `in_memory` the clock starts when a batch is on the device in the form that networks take:
    algorithm 4 of source 004 with one image, "already in memory". Without, it starts at the data set in
    the host's memory: choosing the images, making floats of bytes and bringing them to the device are
    in the time, which is algorithm 5, for n images "regardless of if they persist in memory".

    The source times one network after the other. Here the networks take turns at each batch, in an
    order shuffled anew, and the reference takes part several times, as in `compare_latency`: what its
    twins differ by is the noise floor.

    Args:
      fns: {name: function of a batch float32 [n, H, W, C]}, at least one; as for `latency`.
      images: uint8, or floating in [0, 1], [N, H, W, C].
      batch_size: n, at most N. Images that do not fill a last batch are left out, as in the source.
      in_memory: Whether loading is left out of the time.
      warmup: Batches before those that count, the first ones of the data set.
      max_batches: At most so many batches; None: all.
      reference: The name that the others are compared with; the first by default.
      controls: How many twins of the reference run along, at least 1.

    Returns:
      {"reference", "batch_size", "in_memory", "batches", "device", "noise_floor_ms", "variants":
      {name: {"samples_ms", "mean_ms": the source's average, "std_ms", "median_ms", "p95_ms", "flops",
      "difference": TimeDifference, None for the reference}}}.

    Raises:
      TypeError: A function that cannot be called, counts that are no integers.
      ValueError: No functions, a reference that is none of them, counts out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> images = np.zeros((10, 4, 4, 3), np.uint8)
      >>> timed = dataset_latency({"mean": lambda x: x.mean((1, 2))}, images, 3, warmup=1)
      >>> timed["batches"], len(timed["variants"]["mean"]["samples_ms"])
      (3, 3)
    """
    images = np.asarray(images)
    checks.integer("batch_size", batch_size, minimum=1)
    checks.integer("warmup", warmup, minimum=0)
    checks.integer("controls", controls, minimum=1)
    if max_batches is not None:
        checks.integer("max_batches", max_batches, minimum=1)
    if not fns:
        raise ValueError("`fns` must hold at least one function, got none.")
    if batch_size > len(images):
        raise ValueError(
            f"`batch_size` must be at most the {len(images)} images, got {batch_size}."
        )
    reference = next(iter(fns)) if reference is None else reference
    checks.one_of("reference", reference, list(fns))
    batches = len(images) // batch_size
    batches = batches if max_batches is None else min(batches, max_batches)

    def load(index: int) -> jax.Array:
        chosen = images[index * batch_size : (index + 1) * batch_size]
        return jax.device_put(as_float(chosen))

    example = load(0)
    compiled = {name: program_of(f"fns[{name!r}]", fn, example) for name, fn in fns.items()}
    programs = [program for program, _ in compiled.values()]
    for _ in range(controls):
        programs.append(program_of("reference", fns[reference], example)[0])

    def calls_of(index: int) -> list[Callable[[], Any]]:
        if in_memory:
            batch = jax.block_until_ready(load(index))
            return [functools.partial(program, batch) for program in programs]
        # Each loads for itself: that is what is timed.
        return [functools.partial(_loaded, program, load, index) for program in programs]

    samples = interleaved_over(calls_of, batches, warmup)
    own = dict(zip(fns, samples[: len(fns)], strict=True))
    floor = noise_floor([own[reference], *samples[len(fns) :]])
    device = next(iter(example.devices()))
    variants = {}
    for name, times in own.items():
        difference = None
        if name != reference:
            difference = time_difference(times, own[reference], floor)
        flops = compiled[name][1]["flops"]
        variants[name] = {**summary(times), "flops": flops, "difference": difference}
    return {
        "reference": reference,
        "batch_size": batch_size,
        "in_memory": in_memory,
        "batches": batches,
        "device": " ".join(dict.fromkeys([device.platform, device.device_kind])),
        "noise_floor_ms": floor,
        "variants": variants,
    }


def _loaded(program: Callable[[Any], Any], load: Callable[[int], Any], index: int) -> Any:
    return program(load(index))
