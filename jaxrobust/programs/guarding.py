"""Checks the fast forms, and turns them off for a network if they differ from plain evaluation."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation
from jaxrobust.programs import tracing
from jaxrobust.programs.arguments import as_argument
from jaxrobust.programs.tracing import Program
from jaxrobust.types import LogitsFn, Stochastic

# The largest allowed distances of logits and of gradients, as shares of their lengths. Only the better
# half of the gradients counts: if rounding switches a ReLU or a maximum, a gradient changes by more.
_EXACT, _NARROW = (1e-3, 0.05), (0.05, 0.5)
_known: dict[str, str | None] = {}
_LOOKED_AT = 4  # the number of images to compare
_SMALL = 50_000  # pixels and channels of images that even code without optimisations is fast for


def guard(logits_fn: LogitsFn, images: Any, traced: Any = None) -> str | None:
    """Compares the fast forms with plain evaluation on a batch, once for each network.

    If logits or input gradients differ by more than rounding, the network is evaluated without fast
    forms from then on, at any batch size.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: float32 [B, H, W, C] in [0, 1]; only a few of them are used.
      traced: The classifier for any batch size, as `as_argument` returns it, if it is known.

    Returns:
      A sentence that says what differs, which is also given as a warning; None if nothing differs.
    """
    if not compilation.has_fast_forms():
        return None
    # Every call of an attack comes here, so a known kind is answered before anything is traced.
    if traced is not None and (known := getattr(traced, "function", traced).code.kind) in _known:
        return _known[known]
    try:  # with a few images, if the function accepts so few
        few = images[:_LOOKED_AT]
        function = as_argument(logits_fn, few)
    except Exception:
        few = images
        function = as_argument(logits_fn, few)
    # A random classifier is compared on one sample, with the same keys on both sides.
    arguments: tuple[Any, ...] = (jnp.asarray(few),)
    program: Any = function
    if isinstance(function, Stochastic):
        program = function.function
        arguments = (
            jax.random.split(jax.random.key(0, impl="threefry2x32"), len(few)),
            *arguments,
        )
    code = program.code
    if not code.has_forms:
        return None
    if code.kind in _known:
        return _known[code.kind]
    # Logits and gradients are compared with the same weights, because attacks follow the gradients.
    plain = Program(code.as_plain(), program.arrays)
    found, expected = (_logits_and_gradient(one, arguments) for one in (program, plain))
    logits, gradients = map(_distances, found, expected)
    of_logits, of_gradients = _NARROW if code.is_narrow else _EXACT
    nearest_half = np.sort(gradients)[: -(-len(gradients) // 2)]
    if logits.max(initial=0) <= of_logits and nearest_half.max(initial=0) <= of_gradients:
        _known[code.kind] = None
        return None
    # From here on, this network is traced without fast forms.
    tracing.distrust(code)
    _known[code.kind] = sentence = (
        "The fast forms of this library compute other values for this network than plain evaluation "
        f"does (logits differ by {logits.max():.2g} of the largest, input gradients by "
        f"{nearest_half.max():.2g}). The network is evaluated without them, which is slower. Please "
        "report this."
    )
    warnings.warn(sentence, stacklevel=3)
    return sentence


def _logits_and_gradient(program: Program, arguments: tuple[Any, ...]) -> list[np.ndarray]:
    # It runs only once, so quick compilation matters more than speed, unless images are large: a
    # gradient of patches of 16x16 pixels in images of 224x224 took minutes without optimisations.
    compiled = compilation.jit(_both, in_a_hurry=arguments[-1].size <= _SMALL)
    return [np.asarray(part, np.float64) for part in compiled(program, *arguments)]


def _both(program: Program, *arguments: Any) -> tuple[Any, Any]:
    *others, images = arguments

    def loss(images: Any) -> tuple[Any, Any]:
        logits = program(*others, images).astype(jnp.float32)
        weights = jnp.cos(jnp.arange(logits.shape[1], dtype=jnp.float32))
        shown = jnp.where(jnp.isfinite(logits), logits, 0.0)
        return jnp.sum(shown * weights), logits

    gradient, logits = jax.grad(loss, has_aux=True)(images)
    return logits, gradient


def _distances(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns the distances of rows, as shares of the lengths of the expected rows."""
    found, expected = (part.reshape(len(part), -1) for part in (found, expected))
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, found - expected)
    lengths = np.linalg.norm(np.where(np.isfinite(expected), expected, 0.0), axis=1)
    return np.linalg.norm(apart, axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
