"""The types that everything else speaks in.

Shapes are written as in jaxtyping: B images in a batch, H x W pixels, C channels, K classes.
Images are float32 in [0, 1], NHWC; epsilon is in the same pixel units.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any

LogitsFn: TypeAlias = Callable[[Array], Array]
"""Images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K]. Any callable will do."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is under way, done of it, all of it) as something long goes on. `print` will do."""

Masks: TypeAlias = PyTree
"""The parameters' structure with boolean leaves; True keeps the weight. Never None."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedKernel:
    """A kernel in int8, made by `jaxrobust.pruning.quantize`.

    Attributes:
      values: int8 [..., C_out], in -127 .. 127.
      scale: float32, above 0: [C_out], or if another axis than the last has the channels, what
        broadcasts to `values`.
    """

    values: Array
    scale: Array


def dequantize(variables: PyTree) -> PyTree:
    """Every `QuantizedKernel` as the float32 kernel that it stands for; everything else as it is.

    Example:
      >>> kernel = QuantizedKernel(jnp.array([[2, -3]], jnp.int8), jnp.array([0.5, 1.0]))
      >>> dequantize({"kernel": kernel})["kernel"].tolist()
      [[1.0, -3.0]]
    """

    def is_quantized(node: Any) -> bool:
        return isinstance(node, QuantizedKernel)

    if not any(map(is_quantized, jax.tree.leaves(variables, is_leaf=is_quantized))):
        return variables  # the very objects: a module that changes when it is called is no copy
    return jax.tree.map(
        lambda leaf: leaf.values.astype(jnp.float32) * leaf.scale if is_quantized(leaf) else leaf,
        variables,
        is_leaf=is_quantized,
    )


def as_key(key: Any) -> Array:
    """A key of the threefry generator, made of any key.

    Under `jax.vmap` jax's other generators (rbg, unsafe_rbg) draw the same numbers for every row, so
    none of them is used here. A threefry key stays what it is.

    Args:
      key: `jax.random.key(0)` of any implementation, or `jax.random.PRNGKey(0)`.

    Raises:
      TypeError: No key: a seed, say, or an array of several keys.
    """
    array: Any = key if hasattr(key, "dtype") and hasattr(key, "shape") else np.zeros(())
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        is_one, words = array.shape == (), jax.random.key_data(array)
    else:
        is_one, words = array.dtype == np.uint32 and array.shape in ((2,), (4,)), array
    if not is_one:
        raise TypeError(f"`key` must be a PRNG key such as `jax.random.key(0)`, got {key!r}.")
    first = jax.random.wrap_key_data(jnp.asarray(words[:2]), impl="threefry2x32")
    for word in words[2:]:
        first = jax.random.fold_in(first, word)
    return first


def fold_keys(key: Any, indices: Array) -> Array:
    """One key per image, from the image's index in its data set.

    Args:
      key: As `as_key` takes it.
      indices: int [B].

    Returns:
      Keys [B].

    Raises:
      TypeError: A seed instead of a key.
    """
    key = as_key(key)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stochastic:
    """A classifier that answers at random, as one LogitsFn: the mean of samples of its logits.

    Attacks follow the mean of the gradients of as many samples (expectation over transformation), new
    ones at every step.

    Attributes:
      function: PRNG keys [B], images [B, H, W, C] -> logits [B, K]; row i must depend on key i and
        image i alone. A plain function needs `jax.tree_util.Partial` around it.
      num_samples: At least 1; AutoAttack's 20.

    Example:
      >>> def noisy(keys, images):
      ...     noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(keys)
      ...     return (images + 0.1 * noise).mean((1, 2))
      >>> Stochastic(jax.tree_util.Partial(noisy))(jnp.full((2, 8, 8, 3), 0.5)).shape
      (2, 3)

    References:
      Athalye, Engstrom, Ilyas, Kwok, "Synthesizing Robust Adversarial Examples", ICML 2018,
      https://arxiv.org/abs/1707.07397
    """

    function: Callable[[Array, Array], Array]
    num_samples: int = dataclasses.field(default=20, metadata={"static": True})

    def sample(self, keys: Array, index: Array, images: Array) -> Array:
        """The logits [B, K] of one sample: keys [B] folded with its index."""
        return self.function(jax.vmap(jax.random.fold_in, (0, None))(keys, index), images)

    def __call__(self, images: Array, keys: Array | None = None) -> Array:
        """The mean logits; without keys those of the rows' numbers are taken."""
        if keys is None:
            keys = fold_keys(jax.random.key(0), jnp.arange(images.shape[0]))
        samples = jax.lax.map(
            lambda index: self.sample(keys, index, images), jnp.arange(self.num_samples)
        )
        return jnp.mean(samples, axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BatchDependent:
    """A classifier whose answer to an image depends on the images beside it, and is meant to.

    Evaluation refuses such a classifier, which mostly is one left in training mode. Wrapped, it is
    taken as it is: every figure then depends on the batch size.

    Attributes:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
    """

    logits_fn: LogitsFn

    def __call__(self, images: Array) -> Array:
        """The logits."""
        return self.logits_fn(images)


class Evaluation(NamedTuple):
    """What the classifier answered at the point that an attack asked about (one image).

    Attributes:
      logits: [K].
      value: The attack's objective there: scalar, or [k] for an attack that wants k gradients.
      gradient: Of `value` by the image: [H, W, C], or [k, H, W, C]. None for an attack with
        `uses_gradient = False`.
    """

    logits: Array
    value: Array
    gradient: Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found, for a batch of B images.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1]: the adversarial images, whether they fool or not.
      success: bool [B]: the classifier's prediction on `images` is not the label (targeted: is the
        target). False wherever its logits hold a NaN.
      num_steps: int32 [B]: steps taken until the first point that fooled; all of them if none did.
      num_queries: int32 [B]: images evaluated by the classifier on behalf of this one.
      num_gradients: int32 [B]: gradients by the image on behalf of this one.
    """

    images: Array
    success: Array
    num_steps: Array
    num_queries: Array
    num_gradients: Array

    def __repr__(self) -> str:
        return f"AttackResult({len(self.success)} images)"
