"""Makes any classifier an argument of compiled code.

A callable pytree whose weights are its leaves (a `Classifier`, `jax.tree_util.Partial(apply, weights)`)
is traced once. Any other function (a closure, a bound method, an nnx module, a pytree with a closure
inside) is traced at each call, so that the current values of the variables it closes over are used.
"""

import dataclasses
import dis
import functools
import os
import sys
import sysconfig
import types as python_types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust
from jaxrobust import compilation
from jaxrobust.programs import derivatives
from jaxrobust.programs.tracing import Program, trace, trace_settled
from jaxrobust.types import LogitsFn, Stochastic

# The folders of libraries: Python's own, installed packages, and this package.
LIBRARIES = tuple(
    str(folder) + os.sep
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(jaxrobust.__file__).resolve().parent),
    }
)

# Functions that can read a variable whose name is only known at run time.
_READERS = {"__import__", "eval", "exec", "getattr", "globals", "vars"}


def as_argument(logits_fn: LogitsFn, images: Any) -> Any:
    """Converts a classifier to a form that can be an argument of compiled code.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K], or a `Stochastic` classifier.
      images: floating point [B, H, W, C]; only shape and type matter. Compiled code may call the result
        only with images of this shape and type.

    Returns:
      A `Program`, whose arrays are its leaves. For a `Stochastic` classifier, a `Stochastic` whose
      function is a `Program`.

    Raises:
      TypeError: The classifier cannot be called or traced, or does not return one array.
      ValueError: The logits are not [B, K] with K at least 2, or a module is in training mode.
    """
    compilation.check_callable(logits_fn)
    if not isinstance(logits_fn, Stochastic):
        program = _program(logits_fn, images)
        check_logits(program.results, images)
        return program
    keys = jax.ShapeDtypeStruct(images.shape[:1], jax.random.key(0, impl="threefry2x32").dtype)
    program = _program(logits_fn.function, keys, images)
    check_logits(program.results, images)
    return Stochastic(program, logits_fn.num_samples)


def _program(function: Any, *examples: Any) -> Program:
    if isinstance(function, Program):
        return function
    examples = tuple(jax.ShapeDtypeStruct(jnp.shape(one), one.dtype) for one in examples)
    if is_settled(function):
        return explained(trace_settled, function, *examples)
    return _traced(function, *examples)


def logits_shape(logits_fn: LogitsFn, images: Any) -> tuple[int, ...]:
    """Finds the shape of a classifier's logits without computing them.

    Args:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
      images: floating point [B, H, W, C]; only shape and type matter.

    Returns:
      (B, K).

    Raises:
      TypeError: The classifier cannot be called or traced, or does not return one array.
      ValueError: The logits are not [B, K] with K at least 2, or a module is in training mode.
    """
    function = as_argument(logits_fn, images)
    program: Any = function.function if isinstance(function, Stochastic) else function
    return tuple(program.results.shape)


def call(body: Callable[..., Any], logits_fn: LogitsFn, *arguments: Any, **options: Any) -> Any:
    """Computes `body(logits_fn, *arguments, **options)` in compiled code.

    Args:
      body: A pure function, the same one at every call. It may call the classifier with any images.
      logits_fn: The classifier. If it is not settled, it is traced together with the body at each call.
      *arguments: Pytrees of arrays.
      **options: Static arguments, which are part of the compiled program.

    Returns:
      The result of the body.
    """
    if is_settled(logits_fn):
        return _compiled(body, tuple(sorted(options)))(logits_fn, *arguments, **options)
    return _run(_traced(functools.partial(body, logits_fn, **options), *arguments), *arguments)


def is_settled(function: Any) -> bool:
    """Says whether a callable is settled: a pytree of arrays, in which nothing else can change.

    A callable is not settled if a leaf is not an array (for example an activation function), or if a
    user's function or class in its static part reads something that could change: a closure, a default
    that is an array, or a number or an array of its module. Nor are nnx modules of flax, which may
    change when they are called. A callable that is not settled is traced at each call.

    Example:
      >>> def apply(weights, images):
      ...     return images.mean((1, 2)) @ weights
      >>> is_settled(jax.tree_util.Partial(apply, jnp.ones((3, 2)))), is_settled(lambda images: images)
      (True, False)
    """
    if isinstance(function, Program):
        return True
    if not all(map(_is_array, jax.tree.leaves(function))):
        return False
    return _is_settled(function, set())


def _is_settled(node: Any, seen: set[int]) -> bool:
    level = jax.tree_util.default_registry.flatten_one_level(node)
    if level is None or isinstance(node, Program):
        return True
    children, static = level
    return (
        _is_fixed_class(type(node), seen)
        and _is_fixed(static, seen)
        and all(_is_settled(child, seen) for child in children)
    )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex)


def _is_fixed(value: Any, seen: set[int]) -> bool:
    """Says whether a static value compares by value, and its functions read nothing that may change."""
    if isinstance(value, tuple | list | frozenset | set):
        return all(_is_fixed(entry, seen) for entry in value)
    if isinstance(value, Mapping):
        return all(_is_fixed(entry, seen) for entry in value.values())
    if id(value) in seen or not callable(value):
        return True  # data, which jax compares when it looks for a compiled program
    seen.add(id(value))
    if isinstance(value, type):
        return _is_fixed_class(value, seen)
    if isinstance(value, python_types.BuiltinFunctionType | np.ufunc):
        return True
    if isinstance(value, python_types.MethodType):
        return _is_fixed(value.__self__, seen) and _is_fixed(value.__func__, seen)
    if isinstance(value, python_types.FunctionType):
        return _is_fixed_function(value, seen)
    inner = getattr(value, "__wrapped__", None)
    if type(value).__module__.split(".")[0] == "jax" and inner is None:
        inner = getattr(value, "fun", None)  # jax's wrapper of a callable in a Partial
    if inner is not None:  # the function inside jax.jit, custom_jvp and the like
        return all(_is_fixed(one, seen) for one in (inner, *derivatives.rules_of(value)))
    # A callable object, such as a linen module, is part of the key if it compares by value. Functions
    # among its fields compare by identity, so they are checked too.
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return (
        _has_value(value)
        and _is_fixed_class(type(value), seen)
        and all(_is_fixed(getattr(value, field.name, None), seen) for field in fields)
    )


def _is_fixed_class(kind: type, seen: set[int]) -> bool:
    """Says whether the methods of a class read nothing that may change."""
    if any(base.__module__.startswith("flax.nnx") for base in kind.__mro__):
        return False
    users = [base for base in kind.__mro__ if not is_of_library(sys.modules.get(base.__module__))]
    return all(
        _is_fixed(getattr(method, "__func__", getattr(method, "fget", method)), seen)
        for base in users
        for method in vars(base).values()
        if isinstance(method, python_types.FunctionType | staticmethod | classmethod | property)
    )


def _is_fixed_function(function: python_types.FunctionType, seen: set[int]) -> bool:
    code = function.__code__
    closed_over = [_content(cell) for cell in function.__closure__ or ()]
    if code.co_filename.startswith(LIBRARIES):
        # A library does not change what its functions close over, but this can be a user's function.
        return all(_is_constant(one) or _is_code(one, seen) for one in closed_over)
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    reads_itself = vars(function).keys() - {"__wrapped__"}
    if reads_itself or not all(map(_is_constant, defaults)) or _imports(code):
        return False
    # A method that calls `super()` closes over its class, which is allowed.
    if not all(isinstance(one, type) and _is_code(one, seen) for one in closed_over):
        return False
    names, module = names_of(code), function.__globals__
    if names & _READERS:
        return False
    return all(_is_code(module[name], seen) for name in names if name in module)


def _is_code(value: Any, seen: set[int]) -> bool:
    """Says whether a value is a library's module, or code that reads nothing that may change."""
    if isinstance(value, python_types.ModuleType):
        return is_of_library(value)
    if isinstance(value, type) and not is_of_library(sys.modules.get(value.__module__)):
        own = {name: one for name, one in vars(value).items() if not name.startswith("__")}
        if not all(callable(one) or hasattr(one, "__get__") for one in own.values()):
            return False  # numbers and arrays of a class may change
    return callable(value) and _is_fixed(value, seen)


def is_of_library(module: Any) -> bool:
    """Says whether a module belongs to Python, to an installed package or to this package."""
    file = getattr(module, "__file__", None)
    # A module without a file is part of Python, unless it is an interactive session.
    return (
        getattr(module, "__name__", "") != "__main__"
        if file is None
        else file.startswith(LIBRARIES)
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return object()


def _imports(code: Any) -> bool:
    """Says whether a function imports anything while it runs."""
    inner = (constant for constant in code.co_consts if isinstance(constant, python_types.CodeType))
    found = any(instruction.opname == "IMPORT_NAME" for instruction in dis.get_instructions(code))
    return found or any(map(_imports, inner))


def names_of(code: Any) -> set[str]:
    """Returns the names that a function, or a function inside it, may read from its module."""
    inner = (constant for constant in code.co_consts if isinstance(constant, python_types.CodeType))
    return set(code.co_names).union(*(names_of(one) for one in inner))


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, bool | int | float | str | type | np.dtype)


def _has_value(value: Any) -> bool:
    """Says whether an object is hashable and compares by value, not by identity."""
    kind = type(value)
    if isinstance(value, python_types.ModuleType | type):
        return True
    if kind.__eq__ is object.__eq__ or kind.__hash__ in (None, object.__hash__):
        return False
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _traced(function: Callable[..., Any], *examples: Any) -> Program:
    # jax remembers its traces of a function that users have compiled, so the inner one is traced.
    while type(function).__name__ in ("PjitFunction", "JitWrapped"):
        function = function.__wrapped__  # type: ignore[attr-defined]
    return explained(trace, function, *examples)


def explained(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function, and explains errors that mean that the user's function cannot be traced.

    Other errors get a note with the shape of the images, which are the last of the arguments.
    """
    try:
        return function(*arguments)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            "`logits_fn` must be written in jax.numpy: it makes a numpy array of its images, which jax "
            "cannot trace."
        ) from error
    except Exception as error:
        if type(error).__name__ == "TraceContextError":  # flax's error; flax is not imported here
            raise ValueError(
                "`logits_fn` changes its own state when it is called, as an nnx module does in "
                "training mode: call `model.eval()` first, which stops dropout and freezes the "
                "statistics of BatchNorm. If the module is an argument of a function that `nnx.jit` "
                "has compiled, pass the module itself instead; flax leaves it empty after this error."
            ) from error
        if "No `deterministic` argument was provided" in str(error):  # from flax
            raise ValueError(
                "The network does not know whether it is in training: call `model.eval()` on an nnx "
                "module first, or pass `deterministic=True`."
            ) from error
        if isinstance(error, TypeError) and "not a valid JAX type" in str(error):
            raise TypeError(
                f"`logits_fn` must return an array of logits [B, K]: {error}"
            ) from error
        # Any other is the network's own, most often about a shape.
        if hasattr(arguments[-1], "shape"):
            error.add_note(
                f"The network was called with images of shape {tuple(arguments[-1].shape)}. Images are "
                "[N, H, W, C], channels last; a module for single images must be mapped (jax.vmap)."
            )
        raise


def check_logits(results: Any, images: Any, name: str = "logits_fn") -> None:
    """Raises unless a function of images has returned logits [B, K].

    Args:
      results: The result of the function, or its shape and type.
      images: [B, H, W, C]; only the length matters.
      name: The function's name, for the message.

    Raises:
      TypeError: The result is not one floating-point array.
      ValueError: The result has another shape, or fewer than two classes.
    """
    if not hasattr(results, "shape"):
        shown = "None" if results is None else type(results).__name__
        hint = ""
        if isinstance(results, tuple | list) and results and hasattr(results[0], "shape"):
            hint = "; if its first entry is the logits, use `lambda images: model(images)[0]`"
        elif isinstance(results, Mapping):
            hint = (
                f"; choose one of its entries {list(results)}: `lambda images: model(images)[...]`"
            )
        raise TypeError(f"`{name}` must return an array of logits [B, K], got {shown}{hint}.")
    shape = tuple(results.shape)
    if len(shape) != 2 or shape[0] != images.shape[0] or shape[1] < 2:
        raise ValueError(
            f"`{name}` must return [B, K] = [{images.shape[0]}, K] with K at least 2, "
            f"got shape {shape}."
        )
    if not jnp.issubdtype(results.dtype, jnp.floating):
        raise TypeError(f"`{name}` must return floating-point logits, got {results.dtype}.")


@functools.cache
def _compiled(body: Callable[..., Any], options: tuple[str, ...]) -> Callable[..., Any]:
    return compilation.jit(body, static_argnames=options)


_run = compilation.jit(lambda program, *arguments: program(*arguments))
