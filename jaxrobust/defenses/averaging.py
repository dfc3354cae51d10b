"""Averages of several classifiers, or of the random outputs of one classifier."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxrobust import checks, compilation, programs
from jaxrobust.types import Array, LogitsFn, as_key

AVERAGES = ("probabilities", "logits")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """An ensemble, which averages the probabilities or the logits of several classifiers.

    Averaged probabilities are returned as the logarithm of their mean. The softmax of that is the mean,
    so that predictions, confidences and the cross-entropy are correct. NaN in a row of one member makes
    that row of the ensemble NaN, and no other.

    Attributes:
      logits_fns: One or more functions, images [B, H, W, C] -> logits [B, K].
      average: "probabilities", or "logits" for the normalised geometric mean of the probabilities.

    Raises:
      TypeError: `logits_fns` is not a sequence, or a member is not callable.
      ValueError: There is no member, or `average` is unknown.

    Example:
      >>> one = lambda x: jnp.log(jnp.array([[0.9, 0.1]]))
      >>> two = lambda x: jnp.log(jnp.array([[0.5, 0.5]]))
      >>> logits = Ensemble((one, two))(jnp.zeros((1, 1, 1, 1)))
      >>> [round(float(p), 3) for p in jnp.exp(logits[0])]
      [0.7, 0.3]
    """

    logits_fns: tuple[LogitsFn, ...]
    average: str = dataclasses.field(default="probabilities", metadata={"static": True})

    def __post_init__(self) -> None:
        checks.one_of("average", self.average, AVERAGES)
        if not isinstance(self.logits_fns, Sequence):
            raise TypeError(
                "`logits_fns` must be a sequence of functions, got "
                f"{type(self.logits_fns).__name__}."
            )
        members = tuple(compilation.as_pytree(member) for member in self.logits_fns)
        if not members:
            raise ValueError("`logits_fns` must have at least one function, got none.")
        object.__setattr__(self, "logits_fns", members)

    def __call__(self, images: Array) -> Array:
        """Returns logits [B, K] for floating images [B, H, W, C] in [0, 1].

        Raises:
          TypeError: The images are not a floating array.
          ValueError: The images are not [B, H, W, C], or members have different numbers of classes.
        """
        checks.float_images(images)
        logits = [member(images) for member in self.logits_fns]
        shapes = sorted({each.shape for each in logits})
        if len(shapes) > 1:
            raise ValueError(f"`logits_fns` must all return the same shape [B, K], got {shapes}.")
        return mean_logits(jnp.stack(logits), self.average)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Expectation:
    """The mean output of a random classifier: expectation over transformation (EOT).

    By default it averages the probabilities, which gives the average prediction of the random
    classifier; the cross-entropy is then -log E[p(label)]. "logits" averages the logits instead, which
    is E[log p] up to a constant for each image, the objective of Athalye, Engstrom et al.

    The key fixes the draws, so that the function is deterministic and an attack on it converges. Draws
    are evaluated one after another, and again for the gradient, so that memory does not grow with their
    number.

    Attributes:
      stochastic_fn: A function (key, images [B, H, W, C]) -> logits [B, K].
      key: A PRNG key; draw s uses the key folded with s.
      num_samples: The number of draws, at least 1.
      average: "probabilities" or "logits".
      chunk_size: The number of draws that are evaluated at a time, at least 1. More make better use of
        an accelerator if batches are small.

    Raises:
      TypeError: `stochastic_fn` is not callable, or a number of draws is not an integer.
      ValueError: A number of draws is below 1, or `average` is unknown.

    Example:
      >>> coin = lambda key, x: jnp.where(jax.random.bernoulli(key), 1.0, -1.0) * x.sum((1, 2))
      >>> mean = Expectation(coin, jax.random.key(0), num_samples=1000, average="logits")
      >>> bool(abs(mean(jnp.ones((1, 1, 1, 2)))).max() < 0.1)
      True

    References:
      Athalye, Engstrom, Ilyas, Kwok, "Synthesizing Robust Adversarial Examples", ICML 2018,
      section 2.1, https://arxiv.org/abs/1707.07397
      Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018,
      section 4.2, https://arxiv.org/abs/1802.00420
    """

    stochastic_fn: Callable[[Array, Array], Array]
    key: Array
    num_samples: int = dataclasses.field(metadata={"static": True})
    average: str = dataclasses.field(default="probabilities", metadata={"static": True})
    chunk_size: int = dataclasses.field(default=1, metadata={"static": True})

    def __post_init__(self) -> None:
        if not callable(self.stochastic_fn):
            name = type(self.stochastic_fn).__name__
            raise TypeError(f"`stochastic_fn` must be callable, got {name}.")
        checks.integer("num_samples", self.num_samples, minimum=1)
        checks.integer("chunk_size", self.chunk_size, minimum=1)
        checks.one_of("average", self.average, AVERAGES)
        object.__setattr__(self, "stochastic_fn", compilation.as_pytree(self.stochastic_fn))

    def __call__(self, images: Array) -> Array:
        """Returns logits [B, K] for floating images [B, H, W, C] in [0, 1]."""
        checks.float_images(images)
        return programs.call(_expectation, self, images)


def mean_logits(logits: Array, average: str) -> Array:
    """Averages logits, or the probabilities that they stand for, over the first axis.

    Args:
      logits: [N, ..., K], the logits of N members or draws.
      average: "probabilities" or "logits".

    Returns:
      [..., K]: for "probabilities" the logarithm of the mean probabilities.

    References:
      Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers",
      NeurIPS 2019 (the logarithm outside of the expectation),
      https://arxiv.org/abs/1906.04584
    """
    if average == "logits":
        return jnp.mean(logits, axis=0)
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(len(logits))


def _expectation(expectation: Expectation, images: Array) -> Array:
    key = as_key(expectation.key)

    # Without checkpoint the gradient would keep the activations of all draws.
    @jax.checkpoint
    def draw(index: Array, images: Array) -> Array:
        return expectation.stochastic_fn(jax.random.fold_in(key, index), images)

    indices = jnp.arange(expectation.num_samples)
    chunk = expectation.chunk_size
    logits = jax.lax.map(
        lambda index: draw(index, images), indices, batch_size=chunk if chunk > 1 else None
    )
    return mean_logits(logits, expectation.average)
