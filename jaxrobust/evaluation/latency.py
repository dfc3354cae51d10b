"""How long a network takes: compiled ahead of time, every run timed, variants run interleaved.

What is timed is what a caller waits for, from the call of the compiled program until its result is
there: the compiled code and the Python and dispatch before it. For a small network on a fast
device that is a share of the time that no pruning can save. Compilation and warm-up runs are not in it.

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
"""A compiled function of a batch."""


def latency(
    fn: Callable[[Any], Any], example: Any, warmup: int = 10, runs: int = 200
) -> dict[str, Any]:
    """Times a function on one batch that is already on the device.

    Args:
      fn: Takes `example`. The arrays of a callable pytree (a Classifier's weights) are arguments of the
        compiled program; what a plain function closes over is part of it.
      example: An array [B, ...], B of at least 1; one of the host is put on the device first.
      warmup: Runs before those that count.
      runs: At least 1.

    Returns:
      {"batch_size", "warmup", "runs", "samples_ms": [...], "mean_ms", "std_ms", "median_ms", "p95_ms",
      "compile_seconds", "flops", "bytes_accessed", "peak_memory_bytes", "device"}. std_ms is None for a
      single run. compile_seconds is tracing and compiling, once: it holds what the first program of a
      process pays for all, and is short where a compilation cache has the program. flops and
      bytes_accessed are XLA's own estimates for one run: a multiply-add counts as two, the body of a
      loop once, and a call into another library as nothing. peak_memory_bytes is an upper bound: the
      sum of what arguments (with the weights), result and intermediate values take, which need not
      all be there at once. Each of these three is None where XLA does not say.

    Raises:
      TypeError: A function that cannot be called, or counts that are no integers.
      ValueError: An example without a batch, or counts out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> timing = latency(lambda x: x @ x.T, jnp.ones((2, 8)), warmup=1, runs=3)
      >>> timing["batch_size"], len(timing["samples_ms"]), timing["flops"]
      (2, 3, 64.0)
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
    """Times variants on the same batch side by side, and says which differ from the reference.

    All are compiled first. Each round then runs every variant once, in an order shuffled anew (a fixed
    one would give each variant the same predecessor, and what that leaves in the caches). What drifts
    over the rounds, such as clock rates and other work on the machine, falls on all alike, and
    differences are taken within rounds.

    The reference takes part several times. Its twins, the controls, are compiled anew and have copies
    of the weights, so that they differ in what should not matter and yet does: where code and arrays
    came to lie in memory. That is the same in every run, so no number of runs averages it out.
    What any two of these equals may differ by is the noise floor: no smaller difference is reported as
    one.

    Args:
      fns: {name: function of `example`}, at least one; functions as for `latency`.
      example: An array [B, ...], B of at least 1; one of the host is put on the device first.
      warmup: Rounds before those that count.
      runs: Rounds; fewer than 6 cannot show a difference.
      reference: The name that the others are compared with; the first by default.
      controls: How many twins of the reference run along, at least 1.

    Returns:
      {"reference", "batch_size", "warmup", "runs", "device", "noise_floor_ms", "controls":
      [TimeInterval, ...] of the twins, "variants": {name: {the figures of `latency`, "difference":
      TimeDifference}}}; the reference's own difference is None. The twins have no verdict: the floor
      is made of them.

    Raises:
      TypeError: A function that cannot be called, or counts that are no integers.
      ValueError: No functions, a reference that is none of them, an example without a batch, or counts
        out of range.
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
      {"reference", "batch_size", "in_memory", "batches", "device", "noise_floor_ms", "controls",
      "variants"}: as `compare_latency`; "mean_ms" of a variant is the source's average.

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
    """Times the way from image files to the answer: reading, decoding, to the device, and the run.

    Each run takes the next `batch_size` files, from the first again after the last. The operating
    system keeps files it has read in memory: from the second time on, reading costs next to nothing.

    Args:
      load: Reads and decodes one file: a path -> an image as `fn` takes it, [H, W, C].
      fn: Takes the images of a batch, [batch_size, H, W, C]; as for `latency`.
      paths: At least one; the images must all be of one shape.
      batch_size: Images at a time, at least 1.
      warmup: Runs before those that count.
      runs: At least 1.

    Returns:
      As `latency`.

    Raises:
      TypeError: A function that cannot be called, or counts that are no integers.
      ValueError: No paths, images of different shapes, or counts out of range.
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
    """Compiles functions and twins of the reference, times them, and says which differ.

    `calls_of` makes of programs and the number of a round what is timed of each; `rounds` are how many
    are not timed, and how many are.

    Returns:
      {"reference", "noise_floor_ms", "controls", "variants": {name: `summary`, what the compiler knows,
      "difference"}}.
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
    # What equals differ by is noise, and no smaller difference is one.
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
    """(example -> result, what the compiler knows about it)."""
    _check_callable(name, fn)
    function = _argument(fn)

    # A function of its own each time: jax would hand out the program that it has compiled for a
    # variant of the same shapes, in no time, and the control would share the reference's.
    def apply(function: Callable[[Any], Any], example: jax.Array) -> Any:
        return programs.fast(function)(example)

    start = time.perf_counter()
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
        # XLA does not see into the convolutions of another library.
        "flops": None if compilation.with_onednn() else _known(cost.get("flops")),
        "bytes_accessed": _known(cost.get("bytes accessed")),
        "peak_memory_bytes": peak,
    }
    return functools.partial(program, function), facts


def _analysis(of_program: Callable[[], Any]) -> Any:
    """What XLA says; None on platforms that have no such analysis, each with an error of its own."""
    try:
        return of_program()
    except Exception:
        return None


def _known(value: Any) -> float | None:
    """XLA has -1 for what it does not know."""
    return float(value) if value is not None and value >= 0 else None


def _on_device(example: Any) -> jax.Array:
    example = jax.device_put(example)
    if getattr(example, "ndim", 0) == 0 or example.shape[0] == 0:
        raise ValueError(
            "`example` must be an array [B, ...] with B of at least 1, got shape "
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
