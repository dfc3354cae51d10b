"""Choices that depend on the compiler and the platform, all in one place."""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jaxlib

from jaxrobust import checks, files
from jaxrobust._version import __version__

F = TypeVar("F", bound=Callable[..., Any])

ONEDNN_TYPES = ("float32", "bfloat16")

_MOST_KEPT = 2 * 1024**3  # bytes of the programs that are kept on the disk

# jaxlib 0.10 sends CPU convolutions to a fusion library that runs them on one core (PGD through a
# small network: 4 times slower). The library is kept for matrix products and reductions.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


@functools.cache
def compiler_options() -> dict[str, str]:
    """Returns the XLA options for the default backend; empty if none help or jaxlib knows none.

    An option that jaxlib does not know is an error in the first compilation that uses it, so a
    trivial program tries it once.
    """
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=_CPU_OPTIONS).lower(0.0).compile()
    except Exception:  # the class of the error differs between jaxlib releases
        return {}
    return _CPU_OPTIONS


_IS_PORTABLE = contextvars.ContextVar("_IS_PORTABLE", default=False)
_IS_DIVIDED = contextvars.ContextVar("_IS_DIVIDED", default=False)


def has_fast_forms() -> bool:
    """Says whether programs that are traced now use the fast forms of `jaxrobust.ops`.

    They do on the CPU, unless the environment has JAXROBUST_PLAIN=1 or the program is made for other
    platforms too. The variable is read while programs are traced, so set it before the first.

    Raises:
      ValueError: JAXROBUST_PLAIN is neither 0 nor 1.
    """
    plain = os.environ.get("JAXROBUST_PLAIN", "0")
    checks.one_of("JAXROBUST_PLAIN", plain, ("", "0", "1"))
    return plain != "1" and not _IS_PORTABLE.get() and jax.default_backend() == "cpu"


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Makes programs traced in the block portable: they use nothing that only this jaxlib has."""
    token = _IS_PORTABLE.set(True)
    try:
        yield
    finally:
        _IS_PORTABLE.reset(token)


@contextlib.contextmanager
def divided() -> Iterator[None]:
    """Leaves oneDNN out of programs traced in the block, whose rows XLA divides among devices.

    XLA cannot divide a call of oneDNN: every device would compute the rows of all.
    """
    token = _IS_DIVIDED.set(True)
    try:
        yield
    finally:
        _IS_DIVIDED.reset(token)


def onednn_types() -> tuple[str, ...]:
    """Names the types in which jaxlib's copy of oneDNN computes convolutions on the CPU.

    oneDNN is faster than XLA's own convolutions: by a quarter in float32, and by more in bfloat16 on
    processors that have instructions for it. But it is an internal part of jaxlib, so another process
    tries it first, once for each release and processor; this takes a few seconds. The outcome is kept
    in the `cache_folder`. JAXROBUST_ONEDNN=0 in the environment turns oneDNN off. The variable is read
    while programs are traced, so set it before the first.

    Returns:
      "float32", "bfloat16", both or neither. Programs that are made for other platforms use neither,
      nor do those of a training that several devices share.

    Raises:
      ValueError: JAXROBUST_ONEDNN is neither 0 nor 1, or it is 1 and the trial has failed.
    """
    asked = os.environ.get("JAXROBUST_ONEDNN", "")
    checks.one_of("JAXROBUST_ONEDNN", asked, ("", "0", "1"))
    if asked == "0" or _IS_PORTABLE.get() or _IS_DIVIDED.get() or jax.default_backend() != "cpu":
        return ()
    types = _onednn_trial()
    if asked == "1" and not types:
        raise ValueError(
            "JAXROBUST_ONEDNN=1 needs a jaxlib whose copy of oneDNN works on this machine, but a "
            f"trial with jaxlib {jaxlib.__version__} failed; `python -m jaxrobust.ops.onednn_trial` "
            "repeats it. Unset the variable."
        )
    return types


@functools.cache
def _onednn_trial() -> tuple[str, ...]:
    """Returns the outcome of the trial: that of an earlier process, if there is one."""
    path = cache_folder() / "onednn.json"
    try:
        types = tuple(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        types, is_certain = _run_trial()
        if is_certain:
            with contextlib.suppress(OSError):  # then the next process tries again
                files.write_json(path, types)
    if types:
        _expect_unkept_programs()
    return types


def cache_folder() -> Path:
    """Returns the folder for files that are valid only for these releases and this kind of processor.

    It is in the folder jaxrobust of XDG_CACHE_HOME, or of ~/.cache. Machines with different processors
    may share a home.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    version = f"{__version__} {jaxlib.__version__} {sys.platform} {platform.machine()} {features}"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home
        home = Path(tempfile.gettempdir())
    return home / "jaxrobust" / hashlib.sha256(version.encode()).hexdigest()[:16]


def _run_trial() -> tuple[tuple[str, ...], bool]:
    """Tries oneDNN in a process of its own, which it ends if it does not understand a request.

    Returns:
      (the types that work, whether another trial would have the same outcome).
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return (), False
    paths = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
    variables = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # The reference is XLA's convolution; and a program that cannot be kept need not be an error.
    variables |= {
        "JAXROBUST_ONEDNN": "0",
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        "PYTHONWARNINGS": "",
    }
    try:
        outcome = subprocess.run(
            [sys.executable, "-P", "-m", "jaxrobust.ops.onednn_trial"],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return (), False
    # It prints a type as soon as it was tried, so that of a process that was ended the types before
    # count. An error of Python, with the status 1, says nothing about oneDNN.
    types = tuple(name for name in ONEDNN_TYPES if name in outcome.stdout.splitlines())
    return types, outcome.returncode != 1


def _expect_unkept_programs() -> None:
    """Hides the warning of jax that a program with convolutions of oneDNN was not kept on the disk."""
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry.*bad_alloc")


def keep_programs() -> None:
    """Keeps compiled programs on the disk, so that a later process need not compile them.

    They are kept in the `cache_folder`, which may be deleted at any time. If there are more than 2 GiB
    of them, of all releases together, this function removes those that have not been used for longest.
    If the user has chosen a folder with JAX_COMPILATION_CACHE_DIR, it changes nothing. Programs with
    convolutions of oneDNN cannot be kept, because jaxlib cannot write them to a file: only with
    JAXROBUST_ONEDNN=0 does a second run of the same script on a CPU compile nothing.
    """
    folder = cache_folder() / "programs"
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written
        return
    _remove_unused(folder.parents[1].glob("*/programs/*"), _MOST_KEPT)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _remove_unused(paths: Iterable[Path], most: int) -> None:
    """Removes the files that have not been used for longest, until the rest has at most `most` bytes.

    jax has a limit of its own (jax_compilation_cache_max_size). But it needs one more package and looks
    at every file before it writes one, and in jax 0.10 a process that is killed while it writes leaves
    a folder to which no later process can add a program.
    """
    found = []
    for path in paths:
        with contextlib.suppress(OSError):  # another process has removed it
            status = path.stat()
            # Some file systems do not note when a file was read; then the oldest file is removed.
            found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    excess = sum(size for _, size, _ in found) - most
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        excess -= size


@contextlib.contextmanager
def compiling_anew() -> Iterator[None]:
    """Compiles programs in the block even if the disk has them, to measure how long it takes."""
    from jax.experimental.compilation_cache import compilation_cache

    name = "jax_enable_compilation_cache"
    before = getattr(jax.config, name)
    jax.config.update(name, False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update(name, before)
        compilation_cache.reset_cache()


# Settings of glibc: the variable, the parameter of mallopt (malloc.h) and the value.
_MALLOC = (
    ("MALLOC_TRIM_THRESHOLD_", -1, -1),
    ("MALLOC_MMAP_MAX_", -4, 0),
    ("MALLOC_ARENA_MAX", -8, 1),
)


def keep_memory() -> None:
    """Lets this process keep the memory of arrays that it frees, for the next arrays.

    By default glibc gives the memory of a large array back to Linux, which fills new pages with zeros
    for the next one. Every training step on a CPU needs such arrays. The process never shrinks: it
    keeps at least the most that it has needed, and more where freed memory is in pieces. Call it at the
    start of a program. It was measured on two cores. It does nothing without glibc, or if the user has
    chosen how memory is allocated, by MALLOC_ARENA_MAX and the like, GLIBC_TUNABLES or LD_PRELOAD.
    """
    if sys.platform != "linux" or not variables_that_keep_memory():
        return
    with contextlib.suppress(OSError, AttributeError):  # another library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        for _, parameter, value in _MALLOC:
            mallopt(parameter, value)


def variables_that_keep_memory() -> dict[str, str]:
    """Returns the variables with which a process of another program does as `keep_memory` does.

    There are none if the user has chosen how memory is allocated.
    """
    chosen = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(name.startswith(chosen) for name in os.environ):
        return {}
    return {name: str(value % 2**64) for name, _, value in _MALLOC}


def use_every_core() -> None:
    """On the CPU, makes every core that this process may use a jax device of its own.

    Attacks share their images among the devices. On a machine with 2 cores, two devices of one core
    each were a quarter faster than one device of two cores, which wait for each other at every layer.
    Call it at the start of a program: jax cannot change its devices once it has looked at them. A
    number of devices that the user has chosen (JAX_NUM_CPU_DEVICES, or the flag in XLA_FLAGS) is kept;
    choose one in a container that may use only a share of the cores.

    Raises:
      RuntimeError: jax has already looked at its devices.
    """
    flag = "xla_force_host_platform_device_count"
    if getattr(jax.config, "jax_num_cpu_devices", 0) > 0 or flag in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError as error:
        raise RuntimeError(
            "`use_every_core` must come before jax computes anything or looks at its devices: call it "
            "at the start of the program."
        ) from error


def num_cores() -> int:
    """Counts the cores that this process may use, which may be fewer than the machine has."""
    # Not every system can tell which cores a process is bound to.
    bound = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return len(bound(0))


def microbatch_size() -> int | None:
    """Returns how many images an attack works on at a time; None means all at once.

    On the CPU, the activations of fewer images fit into the cache better. On a noisy machine with a
    small residual network, 32 images were 6 % faster than 64 in two comparisons and 9 % slower in a
    third.
    """
    return 32 if jax.default_backend() == "cpu" else None


def loops_are_fast() -> bool:
    """Says whether a loop of training steps inside one compiled program is as fast as single steps.

    On the CPU it is not: a weight gradient inside `lax.scan`, `fori_loop` or `cond` is many times
    slower. The answer is also False in programs that are traced for other platforms too.
    """
    return jax.default_backend() != "cpu" and not _IS_PORTABLE.get()


def group_sizes() -> tuple[int, ...] | None:
    """Returns how many lanes of an attack may take their steps together; None means all of them.

    On the CPU an image costs the same in groups of 4 as in groups of 32, and a group whose lanes are
    all finished costs nothing. The first size always works; each of the others may leave fewer lanes
    idle but needs a program of its own.
    """
    return (4, 5, 6, 7) if jax.default_backend() == "cpu" else None


# XLA may skip the rounding of intermediate values to bfloat16. An attack's program would then compute
# other logits than the program that evaluates the image afterwards.
_EXACT_TYPES = {"xla_allow_excess_precision": False}


# On the CPU, LLVM's optimisations take most of the compilation time.
_HURRY = {"xla_backend_optimization_level": 0}


def jit(
    function: F, *, exact_types: bool = False, in_a_hurry: bool = False, **jit_options: Any
) -> F:
    """Compiles a function as `jax.jit` does, with compiler options for this machine.

    The options are chosen at the first call. Only the outermost jit can have options, so while another
    function is being traced the result behaves as an ordinary nested jit. Calls and `lower` make room
    for programs (`make_room`).

    Args:
      function: The function to compile.
      exact_types: Whether every value keeps exactly the precision of its type. Set it for programs
        whose answers are compared with those of another program.
      in_a_hurry: Whether the function runs so seldom that quick compilation matters more than speed.
      **jit_options: Passed on to `jax.jit`.

    Returns:
      The compiled function; its method `lower(...)` lowers it with the same options.

    Example:
      >>> import jax.numpy as jnp
      >>> float(jit(lambda x: x + 1)(jnp.float32(1)))
      2.0
    """
    nested = jax.jit(function, **jit_options)

    @functools.cache
    def outermost() -> Any:
        options: dict[str, Any] = dict(compiler_options())
        options |= (_EXACT_TYPES if exact_types else {}) | (_HURRY if in_a_hurry else {})
        return jax.jit(function, compiler_options=options, **jit_options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if checks.is_traced(args, kwargs):
            return nested(*args, **kwargs)
        make_room()
        try:
            return outermost()(*args, **kwargs)
        except ValueError as error:
            # If jax.grad traces a value in a closure, only jax itself knows that it is tracing.
            if "compiler_options" not in str(error):
                raise
            return nested(*args, **kwargs)

    def lower(*args: Any, **kwargs: Any) -> Any:
        make_room()
        return outermost().lower(*args, **kwargs)

    call.lower = lower  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


_SECONDS_BETWEEN_LOOKS = 5.0  # a look takes some hundredths of a second
_room = {"next look": 0.0, "most": 0.5}  # the share of the limit above which programs are let go


def make_room() -> None:
    """Lets go of all compiled programs before Linux refuses this process more of them.

    On the CPU compiled programs keep memory mappings, of which Linux by default allows a process 65,530
    (vm.max_map_count). One more is an error, "LLVM compilation error: Cannot allocate memory", or the
    end of the process, however much memory is free. A study of many networks got there within an hour.
    So at half of the limit jax forgets its programs, also those of the caller; those that are still
    needed are traced and compiled again. Programs that someone holds, such as the result of
    `lower(...).compile()`, stay. It looks every few seconds at most, and does nothing elsewhere.
    """
    now = time.monotonic()
    if now < _room["next look"]:
        return
    _room["next look"] = now + _SECONDS_BETWEEN_LOOKS
    if jax.default_backend() == "cpu" and _share_of_mappings() > _room["most"]:
        jax.clear_caches()
        # What is left cannot be let go, so the next time comes halfway between it and the limit.
        _room["most"] = (1 + _share_of_mappings()) / 2


def _share_of_mappings() -> float:
    """Returns this process's memory mappings as a fraction of what Linux allows; elsewhere 0."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_bytes())
        return Path("/proc/self/maps").read_bytes().count(b"\n") / limit
    except (OSError, ValueError):
        return 0.0


def as_pytree(function: Callable[..., Any]) -> Any:
    """Makes a callable a pytree: a plain function is wrapped in `jax.tree_util.Partial`.

    Args:
      function: Any callable. One that is a pytree already is returned unchanged.

    Returns:
      A callable pytree.

    Raises:
      TypeError: `function` cannot be called.
    """
    check_callable(function)
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function


def check_callable(function: Any, name: str = "logits_fn") -> None:
    """Raises TypeError unless the argument of this name can be called."""
    if not callable(function):
        raise TypeError(f"`{name}` must be callable, got {type(function).__name__}.")
