"""The one place that knows compiler options and platforms."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jaxrobust import checks

F = TypeVar("F", bound=Callable[..., Any])

# jaxlib 0.10 sends CPU convolutions to a fusion library that runs them on one core (PGD through a
# small network: 4 times slower). The library is kept for what it is good at.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


@functools.cache
def compiler_options() -> dict[str, str]:
    """XLA options for the default backend; empty where none help or this jaxlib knows none.

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


def microbatch_size() -> int | None:
    """How many images at a time an attack works on; None for all at once.

    On the CPU fewer activations compete for the cache. Measured on a noisy machine, 32 against 64
    images of a small residual network: 6 % faster in two comparisons, 9 % slower in a third.
    """
    return 32 if jax.default_backend() == "cpu" else None


def group_size() -> int | None:
    """How many lanes of an attack take their steps together; None for all.

    On the CPU an image costs the same in groups of 8 as in groups of 32, and a group whose lanes are
    all finished costs nothing.
    """
    return 16 if jax.default_backend() == "cpu" else None


def jit(function: F, **jit_options: Any) -> F:
    """`jax.jit` with this machine's compiler options, chosen at the first call.

    Compiler options belong to the outermost jit only: called while another function is being
    traced, the result is an ordinary nested jit.

    Args:
      function: To compile.
      **jit_options: Passed to `jax.jit`.

    Returns:
      The compiled function; `.lower(...)` lowers it with the same options.

    Example:
      >>> import jax.numpy as jnp
      >>> float(jit(lambda x: x + 1)(jnp.float32(1)))
      2.0
    """
    nested = jax.jit(function, **jit_options)

    @functools.cache
    def outermost() -> Any:
        return jax.jit(function, compiler_options=compiler_options(), **jit_options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if checks.is_traced(args, kwargs):
            return nested(*args, **kwargs)
        try:
            return outermost()(*args, **kwargs)
        except ValueError as error:
            # Under jax.grad with the traced value in a closure, only jax itself can tell.
            if "compiler_options" not in str(error):
                raise
            return nested(*args, **kwargs)

    def lower(*args: Any, **kwargs: Any) -> Any:
        return outermost().lower(*args, **kwargs)

    call.lower = lower  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def as_argument(function: Callable[..., Any]) -> Any:
    """The function in a form that may be an argument of compiled code.

    A callable pytree of arrays (a Classifier, a `jax.tree_util.Partial`) stays what it is: its arrays
    are arguments, so other weights compile nothing anew. A plain function becomes a constant of the
    compiled code, which is compiled once for each function.

    Args:
      function: Any callable.

    Raises:
      TypeError: It cannot be called.
    """
    if not callable(function):
        raise TypeError(f"`logits_fn` must be callable, got {type(function).__name__}.")
    is_leaf = jax.tree_util.all_leaves([function])
    return jax.tree_util.Partial(function) if is_leaf else function


def logits_shape(function: Any, images: Any) -> tuple[int, ...]:
    """The shape of a classifier's logits, without computing any; traced once for each shape.

    Args:
      function: From `as_argument`.
      images: Floating [B, H, W, C], of which only shape and type matter.

    Returns:
      (B, K).

    Raises:
      ValueError: Logits that are not [B, K] with K of at least 2.
    """
    shape = tuple(_call.eval_shape(function, images).shape)
    if len(shape) != 2 or shape[0] != images.shape[0] or shape[1] < 2:
        raise ValueError(
            f"`logits_fn` must return [B, K] = [{images.shape[0]}, K] with K of at least 2, "
            f"got shape {shape}."
        )
    return shape


_call = jax.jit(lambda function, images: function(images))
