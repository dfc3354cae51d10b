"""What a training step descends, from forward passes in training mode.

With x a clean image, x' what the attack made of it, f the network and CE the cross-entropy:

    cross_entropy   (1 - w) CE(f(x'), y) + w CE(f(x), y)
    trades          CE(f(x), y) + beta KL(p(x) || p(x'))

References:
  w = 0: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
  equation 2.1, https://arxiv.org/abs/1706.06083
  trades: Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
  equation 3, https://arxiv.org/abs/1901.08573
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import losses, programs
from jaxrobust.training.adversaries import divergence
from jaxrobust.types import Array, PyTree

LOSSES = ("cross_entropy", "trades")
COMPUTE_TYPES = ("float32", "bfloat16")

Forward = Callable[[PyTree, PyTree, Array, Array | int], tuple[Array, PyTree]]
"""(parameters, running statistics, images, the number of this pass) -> (logits float32 [B, K], the
statistics after it)."""


class Objective(NamedTuple):
    """Which of the losses, with its numbers.

    Attributes:
      loss: One of LOSSES.
      natural_weight: w, in [0, 1), of the clean images; for "cross_entropy".
      trades_beta: Above 0; for "trades". The paper's are 1 and 6.
      label_smoothing: In [0, 1), of every cross-entropy.
    """

    loss: str = "cross_entropy"
    natural_weight: float = 0.0
    trades_beta: float = 6.0
    label_smoothing: float = 0.0

    def __call__(
        self,
        forward: Forward,
        params: PyTree,
        statistics: PyTree,
        images: Array,
        adversarial: Array,
        labels: Array,
        first_pass: Array | int = 0,
    ) -> tuple[Array, tuple[Array, PyTree]]:
        """The mean over a batch.

        Args:
          forward: A pass in training mode.
          params: Of the network.
          statistics: The running ones before the step.
          images: float32 [B, H, W, C] in [0, 1], the clean ones.
          adversarial: Likewise, what the attack made of them.
          labels: int [B].
          first_pass: The number of the first pass: each has a dropout of its own.

        Returns:
          (the loss, (logits [B, K] of the adversarial images, the statistics after all passes)).
        """

        def cross_entropy(logits: Array) -> Array:
            return jnp.mean(smoothed_cross_entropy(logits, labels, self.label_smoothing))

        if self.loss == "trades":
            clean, statistics = forward(params, statistics, images, first_pass)
            logits, statistics = forward(params, statistics, adversarial, first_pass + 1)
            apart = jnp.mean(jax.vmap(divergence)(clean, logits))
            return cross_entropy(clean) + self.trades_beta * apart, (logits, statistics)
        logits, statistics = forward(params, statistics, adversarial, first_pass)
        value = cross_entropy(logits)
        if self.natural_weight:
            clean, statistics = forward(params, statistics, images, first_pass + 1)
            value = (1 - self.natural_weight) * value + self.natural_weight * cross_entropy(clean)
        return value, (logits, statistics)


def rounded(tree: PyTree, compute_type: str) -> PyTree:
    """A pytree of arrays in the type that passes are computed in."""
    if compute_type == "float32":
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(compute_type)), tree)


def make_forward(
    apply_fn: Callable[..., Any], mean: Any, std: Any, dropout_key: Array, compute_type: str
) -> Forward:
    """A pass of a linen module in training mode.

    Args:
      apply_fn: Its `apply`, called with `train`, `mutable` and `rngs`.
      mean: [C] or a scalar, of pixel values in [0, 1].
      std: [C] or a scalar.
      dropout_key: A PRNG key.
      compute_type: "float32", or "bfloat16": parameters and images are rounded to it first, so that
        activations and their gradients are of that type; the parameters that are updated, the
        statistics and the loss stay float32.
    """
    mean, std = (jnp.asarray(part, jnp.float32).reshape(1, 1, 1, -1) for part in (mean, std))

    def forward(
        params: PyTree, statistics: PyTree, images: Array, number: Array | int
    ) -> tuple[Array, PyTree]:
        params, images = rounded((params, (images - mean) / std), compute_type)
        variables = {"params": params} | ({"batch_stats": statistics} if statistics else {})
        is_first = isinstance(number, int) and number == 0
        key = dropout_key if is_first else jax.random.fold_in(dropout_key, number)
        logits, updated = programs.fast(apply_fn)(
            variables,
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return logits.astype(jnp.float32), updated.get("batch_stats", statistics)

    return forward


def weight_perturbation(params: PyTree, gradients: PyTree, gamma: Array | float) -> PyTree:
    """The step of adversarial weight perturbation: up the loss, in each kernel by gamma of its length.

    Args:
      params: Of the network.
      gradients: Of the loss by them.
      gamma: At least 0; the paper's 0.005 to 0.01.

    Returns:
      What to add to the parameters: zero for biases and the scales of normalisation.

    References:
      Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020,
      equations 8 to 10, https://arxiv.org/abs/2004.05884
    """

    def step(weight: Array, gradient: Array) -> Array:
        if weight.ndim < 2:
            return jnp.zeros_like(weight)
        length = jnp.linalg.norm(gradient.ravel())
        return gamma * jnp.linalg.norm(weight.ravel()) * gradient / (length + 1e-12)

    return jax.tree.map(step, params, gradients)


def smoothed_cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Cross-entropy against (1 - smoothing) of the label and smoothing / K of every class.

    Args:
      logits: [B, K].
      labels: int [B].
      smoothing: In [0, 1).

    Returns:
      [B], in nats.

    References:
      Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
      https://arxiv.org/abs/1512.00567 (section 7).
    """
    label_loss = jax.vmap(losses.cross_entropy)(logits, labels)
    if smoothing == 0.0:
        return label_loss
    mean_loss = jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1)
    return (1 - smoothing) * label_loss + smoothing * mean_loss
