"""The types that the whole package shares: functions, keys, classifiers and results of attacks.

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
"""Called during long work with (name of the work, number done, number in all), such as `print`."""

Masks: TypeAlias = PyTree
"""A pytree of booleans with the structure of the parameters; True keeps the weight. Never None."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedKernel:
    """A kernel in int8, made by `jaxrobust.pruning.quantize`.

    Attributes:
      values: int8 [..., C_out], in -127 .. 127.
      scale: float32 [C_out], above 0. If the channels are not on the last axis, it has a shape that
        broadcasts to `values`.
    """

    values: Array
    scale: Array


def dequantize(variables: PyTree) -> PyTree:
    """Turns every `QuantizedKernel` into the float32 kernel that it stands for.

    Args:
      variables: Any pytree. All other leaves are returned unchanged.

    Returns:
      The pytree with float32 kernels.

    Example:
      >>> kernel = QuantizedKernel(jnp.array([[2, -3]], jnp.int8), jnp.array([0.5, 1.0]))
      >>> dequantize({"kernel": kernel})["kernel"].tolist()
      [[1.0, -3.0]]
    """

    def is_quantized(node: Any) -> bool:
        return isinstance(node, QuantizedKernel)

    if not any(map(is_quantized, jax.tree.leaves(variables, is_leaf=is_quantized))):
        return variables  # not a copy: a module may change its state when it is called
    return jax.tree.map(
        lambda leaf: leaf.values.astype(jnp.float32) * leaf.scale if is_quantized(leaf) else leaf,
        variables,
        is_leaf=is_quantized,
    )


def as_key(key: Any) -> Array:
    """Converts any PRNG key to a key of the threefry generator.

    Under `jax.vmap` jax's other generators (rbg, unsafe_rbg) draw the same numbers for every row, so
    this package does not use them. A threefry key is returned unchanged.

    Args:
      key: `jax.random.key(0)` of any implementation, or `jax.random.PRNGKey(0)`.

    Returns:
      A scalar key.

    Raises:
      TypeError: `key` is not one key but, for example, a seed or an array of several keys.
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
    """Makes one key for each image from the image's index in its data set.

    Args:
      key: A PRNG key, such as `jax.random.key(0)`.
      indices: int [B], the indices of the images.

    Returns:
      PRNG keys [B].

    Raises:
      TypeError: `key` is a seed instead of a key.
    """
    key = as_key(key)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Stochastic:
    """A classifier whose answers are random; its logits are the mean over several samples.

    Attacks follow the mean gradient over the same number of samples (expectation over transformation)
    and draw new samples at every step.

    Attributes:
      function: PRNG keys [B], images [B, H, W, C] -> logits [B, K]; row i must depend on key i and
        image i alone. Wrap a plain function in `jax.tree_util.Partial`.
      num_samples: How many samples are averaged, at least 1. The default, 20, is AutoAttack's.

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
        """Returns the logits [B, K] of one sample, which uses the keys [B] folded with its index."""
        return self.function(jax.vmap(jax.random.fold_in, (0, None))(keys, index), images)

    def __call__(self, images: Array, keys: Array | None = None) -> Array:
        """Returns the mean logits [B, K]. Without keys, each row's key is made from its number."""
        if keys is None:
            keys = fold_keys(jax.random.key(0), jnp.arange(images.shape[0]))
        samples = jax.lax.map(
            lambda index: self.sample(keys, index, images), jnp.arange(self.num_samples)
        )
        return jnp.mean(samples, axis=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BatchDependent:
    """Marks a classifier whose answer to an image is meant to depend on the rest of the batch.

    Evaluation refuses such a classifier, because usually it has been left in training mode by mistake.
    A classifier that is wrapped in this class is accepted; every figure then depends on the batch size.

    Attributes:
      logits_fn: Images [B, H, W, C] -> logits [B, K].
    """

    logits_fn: LogitsFn

    def __call__(self, images: Array) -> Array:
        """Returns the logits [B, K] of the images [B, H, W, C]."""
        return self.logits_fn(images)


class Evaluation(NamedTuple):
    """The classifier's answer at the point that an attack asked about, for one image.

    Attributes:
      logits: [K].
      value: The attack's objective at the point: a scalar, or [k] for an attack with k objectives.
      gradient: The gradient of `value` with respect to the image, [H, W, C] or [k, H, W, C]. None for
        an attack with `uses_gradient = False`.
    """

    logits: Array
    value: Array
    gradient: Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AttackResult:
    """The result of an attack on a batch of B images.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1], the adversarial images, whether they fool or not.
      success: bool [B], whether the prediction on `images` differs from the label (for a targeted
        attack, whether it is the target). False wherever a logit is NaN.
      num_steps: int32 [B], the steps taken before the first point that fooled, or all of them if none
        did.
      num_queries: int32 [B], how many images the classifier evaluated for this image.
      num_gradients: int32 [B], how many gradients were computed for this image.
    """

    images: Array
    success: Array
    num_steps: Array
    num_queries: Array
    num_gradients: Array

    def __repr__(self) -> str:
        return f"AttackResult({len(self.success)} images)"
