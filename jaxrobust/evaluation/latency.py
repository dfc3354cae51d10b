"""Latency of networks: compiled ahead of time, every run timed, variants interleaved.

The time is what a caller waits for, from the call of the compiled program until its result is there:
the Python code, the dispatch and the compiled code. For a small network on a fast device, Python and
dispatch take a share of the time that pruning cannot reduce. Compilation and warm-up are not included.

References:
  Georges, Buytaert, Eeckhout, "Statistically Rigorous Java Performance Evaluation", OOPSLA 2007.
  Mytkowicz et al., "Producing Wrong Data Without Doing Anything Obviously Wrong!", ASPLOS 2009.
"""

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.timing import (
    interleaved,
    noise_floor,
    summary,
    time_difference,
    time_interval,
)

Timed: TypeAlias = Callable[[Any], Any]
"""A compiled function: a batch -> a pytree of arrays."""


def latency(
    fn: Callable[[Any], Any], example: Any, warmup: int = 10, runs: int = 200
) -> dict[str, Any]:
    """Times a function on one batch that is already on the device.

    Args:
      fn: A function of `example`. The arrays of a callable pytree (such as a Classifier's weights) are
        arguments of the compiled program; variables that a plain function closes over are constants.
      example: An array [B, ...], with B at least 1. It is moved to the device before the timing.
      warmup: How many runs to make before the timing, at least 0.
      runs: How many runs to time, at least 1.

    Returns:
      {"batch_size", "warmup", "runs", "samples_ms": [...], "mean_ms", "std_ms", "median_ms", "p95_ms",
      "compile_seconds", "flops", "bytes_accessed", "peak_memory_bytes", "device"}.

      std_ms is None for a single run. compile_seconds is the time to trace and compile once; the first
      program of a process takes longer. flops is the count of `programs.describe` for one run, without
      arithmetic on weights alone, such as their dequantisation. bytes_accessed is XLA's estimate, in
      which the body of a loop counts once. peak_memory_bytes is an upper bound: the sum of the
      arguments (with the weights), the result and the intermediate values, which need not exist at the
      same time. Each of the latter two is None if XLA does not know it.

    Raises:
      TypeError: The function cannot be called, or a count is not an integer.
      ValueError: The example has no batch, or a count is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> timing = latency(lambda x: x @ x.T, jnp.ones((2, 8)), warmup=1, runs=3)
      >>> timing["batch_size"], len(timing["samples_ms"]), timing["flops"]
      (2, 3, 64)
    """
    _check_counts(warmup, runs)
    example = _on_device(example)
    program, facts = _compiled("fn", fn, example)
    (samples,) = interleaved(lambda _: [functools.partial(program, example)], warmup, runs)
    return {**_header(example, warmup, runs), **summary(samples), **facts}


def compare_latency(
    fns: Mapping[str, Callable[[Any], Any]],
    example: Any,
    warmup: int = 10,
    runs: int = 200,
    reference: str | None = None,
    controls: int = 3,
) -> dict[str, Any]:
    """Times variants side by side on the same batch, and says which differ from the reference.

    All variants are compiled first. Each round then runs every variant once, in a new random order,
    because the preceding variant affects the caches. Drifts over the rounds, such as clock rates and
    other work on the machine, affect all variants alike, and differences are taken within rounds.

    The reference takes part several times. Its copies, the controls, are compiled separately and have
    copies of the weights. They differ only in where code and arrays lie in memory, which should not
    matter but does; it is the same in every run, so that more runs do not average it out. The largest
    plausible difference between any two of these equal programs is the noise floor, and no smaller
    difference is reported.

    Args:
      fns: {name: function of `example`}, at least one. Each may be a callable pytree or a plain
        function, as for `latency`.
      example: An array [B, ...], with B at least 1. It is moved to the device before the timing.
      warmup: How many rounds to run before the timing, at least 0.
      runs: How many rounds to time, at least 1. Fewer than 6 cannot show a difference.
      reference: The name of the function to compare the others with; by default the first.
      controls: How many copies of the reference to run, at least 1.

    Returns:
      {"reference", "batch_size", "warmup", "runs", "device", "noise_floor_ms", "controls": [the
      TimeInterval of each copy], "variants": {name: {the figures of `latency`, "difference":
      TimeDifference}}}. The reference's own difference is None.

    Raises:
      TypeError: A function cannot be called, or a count is not an integer.
      ValueError: There are no functions, the reference is not one of them, the example has no batch, or
        a count is out of range.
    """
    _check_counts(warmup, runs)
    example = _on_device(example)
    header = _header(example, warmup, runs)

    def calls_of(programs: Sequence[Timed], _: int) -> list[Callable[[], Any]]:
        return [functools.partial(program, example) for program in programs]

    found = _compared(fns, example, calls_of, reference, controls, (warmup, runs))
    variants = {name: header | variant for name, variant in found["variants"].items()}
    return {"reference": found["reference"], **header, **found, "variants": variants}


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
    """Times networks over the batches of a data set; every network sees each batch once.

    With `in_memory` the clock starts when a batch is on the device as float32. With one image per batch
    this is algorithm 4 of source 004, "already in memory". Without `in_memory` the clock starts at the
    data set in the host's memory, and the time includes choosing the images, converting bytes to floats
    and moving them to the device. This is algorithm 5, for n images "regardless of if they persist in
    memory".

    The source times one network after the other. Here the networks take turns at each batch in a new
    random order, and copies of the reference give the noise floor, as in `compare_latency`.

    Args:
      fns: {name: function of a batch float32 [n, H, W, C]}, at least one. Each may be a callable pytree
        or a plain function, as for `latency`.
      images: [N, H, W, C], uint8 or floating point in [0, 1].
      batch_size: The number of images in a batch, n, at most N. Images that do not fill the last batch
        are left out, as in the source.
      in_memory: Whether to leave loading out of the time.
      warmup: How many batches to run before the timing, at least 0: the first ones of the data set.
      max_batches: The largest number of batches to time, at least 1. None times all.
      reference: The name of the function to compare the others with; by default the first.
      controls: How many copies of the reference to run, at least 1.

    Returns:
      {"reference", "batch_size", "in_memory", "batches", "device", "noise_floor_ms", "controls",
      "variants"}, where the last three are as from `compare_latency`. The "mean_ms" of a variant is the
      average that the source gives.

    Raises:
      TypeError: A function cannot be called, or a count is not an integer.
      ValueError: There are no functions, the reference is not one of them, or a count is out of range.

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
    if max_batches is not None:
        checks.integer("max_batches", max_batches, minimum=1)
    if batch_size > len(images):
        raise ValueError(
            f"`batch_size` must be at most the {len(images)} images, got {batch_size}."
        )
    batches = len(images) // batch_size
    batches = batches if max_batches is None else min(batches, max_batches)

    def load(index: int) -> jax.Array:
        chosen = images[index * batch_size : (index + 1) * batch_size]
        return jax.device_put(as_float(chosen))

    example = load(0)

    def calls_of(programs: Sequence[Timed], index: int) -> list[Callable[[], Any]]:
        if in_memory:
            batch = jax.block_until_ready(load(index))
            return [functools.partial(program, batch) for program in programs]
        # Each loads for itself: that is what is timed.
        return [functools.partial(lambda run: run(load(index)), program) for program in programs]

    found = _compared(fns, example, calls_of, reference, controls, (warmup, batches))
    header = {"batch_size": batch_size, "in_memory": in_memory, "batches": batches}
    return {"reference": found["reference"], **header, "device": _device(example), **found}


def disk_latency(
    load: Callable[[Any], Any],
    fn: Callable[[Any], Any],
    paths: Sequence[Any],
    batch_size: int = 1,
    warmup: int = 3,
    runs: int = 50,
) -> dict[str, Any]:
    """Times the whole way from image files to the answer: read, decode, move to the device, run.

    Each run takes the next `batch_size` files and starts again after the last. The operating system
    caches files, so reading a file again costs almost nothing.

    Args:
      load: A function that reads and decodes one file: a path -> an image [H, W, C] as `fn` takes it.
      fn: A function of a batch of images, [batch_size, H, W, C].
      paths: The paths of the files, at least one. All images must have the same shape.
      batch_size: How many images to process at a time, at least 1.
      warmup: How many runs to make before the timing, at least 0.
      runs: How many runs to time, at least 1.

    Returns:
      The same figures as from `latency`.

    Raises:
      TypeError: A function cannot be called, or a count is not an integer.
      ValueError: There are no paths, the images have different shapes, or a count is out of range.
    """
    _check_counts(warmup, runs)
    checks.integer("batch_size", batch_size, minimum=1)
    _check_callable("load", load)
    if not len(paths):
        raise ValueError("`paths` must hold at least one path, got none.")
    _check_callable("fn", fn)
    endless = itertools.cycle(paths)

    def batch(*earlier: tuple[int, ...]) -> jax.Array:
        images = [np.asarray(load(next(endless))) for _ in range(batch_size)]
        shapes = sorted({image.shape for image in images} | set(earlier))
        if len(shapes) > 1:
            raise ValueError(f"`load` must return images of one shape, got {shapes}.")
        return jax.device_put(np.stack(images))

    example = batch()
    shape = example.shape[1:]
    program, facts = _compiled("fn", fn, example)
    (samples,) = interleaved(lambda _: [lambda: program(batch(shape))], warmup, runs)
    return {**_header(example, warmup, runs), **summary(samples), **facts}


def _compared(
    fns: Mapping[str, Any],
    example: jax.Array,
    calls_of: Callable[[Sequence[Timed], int], list[Callable[[], Any]]],
    reference: str | None,
    controls: int,
    rounds: tuple[int, int],
) -> dict[str, Any]:
    """Compiles functions and copies of the reference, times them, and says which differ.

    Args:
      fns: {name: function}, at least one.
      example: The batch for which all functions are compiled.
      calls_of: (the programs, the number of the round) -> the call to time for each program.
      reference: The name of the function to compare the others with; None means the first.
      controls: How many copies of the reference to run.
      rounds: (the number of rounds that are not timed, the number of rounds that are).

    Returns:
      {"reference", "noise_floor_ms", "controls", "variants": {name: the figures of `summary`, the
      compiler's figures, and "difference"}}.
    """
    checks.integer("controls", controls, minimum=1)
    if not fns:
        raise ValueError("`fns` must hold at least one function, got none.")
    reference = next(iter(fns)) if reference is None else reference
    checks.one_of("reference", reference, list(fns))
    compiled = {name: _compiled(f"fns[{name!r}]", fn, example) for name, fn in fns.items()}
    twins = [_compiled("reference", fns[reference], example) for _ in range(controls)]
    programs = [program for program, _ in (*compiled.values(), *twins)]
    samples = interleaved(functools.partial(calls_of, programs), *rounds)
    # Differences between equal programs are noise, and smaller ones do not count.
    own, equals = dict(zip(fns, samples, strict=False)), samples[len(fns) :]
    floor = noise_floor([own[reference], *equals])
    variants = {}
    for name, times in own.items():
        is_other = name != reference
        difference = time_difference(times, own[reference], floor) if is_other else None
        variants[name] = {**summary(times), **compiled[name][1], "difference": difference}
    return {
        "reference": reference,
        "noise_floor_ms": floor,
        "controls": [time_interval(times, own[reference]) for times in equals],
        "variants": variants,
    }


def _argument(fn: Any) -> Any:
    """The function as an argument of a program, with copies of its arrays on the device."""
    if not programs.is_settled(fn):  # its arrays are constants of the program, which is made anew
        return jax.tree_util.Partial(lambda example: programs.explained(fn, example))
    # Weights of the host would be sent over in every run; and where weights lie in memory should not
    # depend on how they were made, or the reference and its twins would differ by that.
    return jax.tree.map(jnp.copy, jax.device_put(fn))


def _compiled(name: str, fn: Any, example: jax.Array) -> tuple[Timed, dict[str, Any]]:
    """Returns the compiled function (example -> result) and the compiler's figures about it."""
    _check_callable(name, fn)
    function = _argument(fn)

    # A function of its own each time: jax would hand out the program that it has compiled for a
    # variant of the same shapes, in no time, and the control would share the reference's.
    def apply(function: Callable[[Any], Any], example: jax.Array) -> Any:
        return programs.fast(function)(example)

    compilation.make_room()  # so that the seconds have none of it
    start = time.perf_counter()
    with compilation.compiling_anew():
        lowered = compilation.jit(apply).lower(function, example)  # type: ignore[attr-defined]
        program = lowered.compile()
    seconds = time.perf_counter() - start
    cost = _analysis(program.cost_analysis) or {}
    memory = _analysis(program.memory_analysis)
    peak = None
    if memory is not None:
        sizes = (f"{part}_size_in_bytes" for part in ("temp", "output", "argument"))
        peak = sum(int(getattr(memory, size)) for size in sizes)
    facts = {
        "compile_seconds": seconds,
        # Not XLA's count, which does not see into the convolutions of another library.
        "flops": programs.describe(fn, example).flops,
        "bytes_accessed": _known(cost.get("bytes accessed")),
        "peak_memory_bytes": peak,
    }
    return functools.partial(program, function), facts


def _analysis(of_program: Callable[[], Any]) -> Any:
    """XLA's analysis; None on platforms without one, each of which raises its own error."""
    try:
        return of_program()
    except Exception:
        return None


def _known(value: Any) -> float | None:
    """The value, or None for a negative one: XLA writes -1 for an unknown value."""
    return float(value) if value is not None and value >= 0 else None


def _on_device(example: Any) -> jax.Array:
    example = jax.device_put(example)
    if getattr(example, "ndim", 0) == 0 or example.shape[0] == 0:
        raise ValueError(
            "`example` must be an array [B, ...] with B at least 1, got shape "
            f"{getattr(example, 'shape', None)}."
        )
    return example


def _check_callable(name: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"`{name}` must be callable, got {type(fn).__name__}.")


def _check_counts(warmup: int, runs: int) -> None:
    checks.integer("warmup", warmup, minimum=0)
    checks.integer("runs", runs, minimum=1)


def _header(example: jax.Array, warmup: int, runs: int) -> dict[str, Any]:
    return {
        "batch_size": example.shape[0],
        "warmup": warmup,
        "runs": runs,
        "device": _device(example),
    }


def _device(example: jax.Array) -> str:
    device = next(iter(example.devices()))
    return " ".join(dict.fromkeys([device.platform, device.device_kind]))
