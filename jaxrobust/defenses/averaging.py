"""Averages of classifiers: several networks, or one that answers at random."""

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
    """Several classifiers as one: their mean probabilities, or their mean logits.

    Averaged probabilities come out as the logarithm of their mean: its softmax is that mean, so
    predictions, confidences and the cross-entropy are right. NaN in one member's row is NaN in the
    ensemble's row, and in no other.

    Attributes:
      logits_fns: One or more functions, images [B, H, W, C] -> logits [B, K].
      average: "probabilities" or "logits" (a geometric mean of the probabilities, scaled).

    Raises:
      TypeError: No sequence (a single function), a member that cannot be called.
      ValueError: No member, or another `average`.

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
            raise ValueError("`logits_fns` must hold at least one function, got none.")
        object.__setattr__(self, "logits_fns", members)

    def __call__(self, images: Array) -> Array:
        """Images floating [B, H, W, C] in [0, 1] -> logits [B, K].

        Raises:
          TypeError: Images that are no floating array.
          ValueError: Images that are not [B, H, W, C]; members with different numbers of classes.
        """
        checks.float_images(images)
        logits = [member(images) for member in self.logits_fns]
        shapes = sorted({each.shape for each in logits})
        if len(shapes) > 1:
            raise ValueError(f"`logits_fns` must all return one shape [B, K], got {shapes}.")
        return mean_logits(jnp.stack(logits), self.average)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Expectation:
    """The mean answer of a classifier that answers at random: expectation over transformation (EOT).

    The probabilities are averaged by default, the prediction that a user of the random classifier
    gets on average: the cross-entropy is then -log E[p(label)]. "logits" averages logits instead;
    for an attacker, up to a constant for each image, E[log p], the objective of the first paper.

    The draws are fixed by the key, so the function is deterministic and an attack on it converges.
    They are evaluated one after the other, and again for the gradient: memory does not grow with
    their number.

    Attributes:
      stochastic_fn: (key, images [B, H, W, C]) -> logits [B, K].
      key: A PRNG key; draw s uses it folded with s.
      num_samples: How many draws.
      average: "probabilities" or "logits".
      chunk_size: How many draws at a time; more fill an accelerator that a small batch does not.

    Raises:
      TypeError: A stochastic_fn that cannot be called, a number of draws that is no integer.
      ValueError: Fewer than one draw, or another `average`.

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
        """Images floating [B, H, W, C] in [0, 1] -> logits [B, K]."""
        checks.float_images(images)
        return programs.call(_expectation, self, images)


def mean_logits(logits: Array, average: str) -> Array:
    """Logits whose softmax is the mean probability, or the mean logits.

    Args:
      logits: [N, ..., K], of which the mean over the first axis is taken.
      average: "probabilities" or "logits".

    Returns:
      [..., K]; for "probabilities" the logarithm of the mean.

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
