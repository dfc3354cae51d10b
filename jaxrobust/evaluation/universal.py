"""Universal perturbations: one perturbation for all images.

The images are visited in random order. For each image that is not fooled by the perturbation v yet,
DeepFool looks for the smallest further change that fools, and v is moved by it and projected back onto
the ball:

    v <- project( v + DeepFool(x + v) )

References:
  Moosavi-Dezfooli, Fawzi, Fawzi, Frossard, "Universal adversarial perturbations", CVPR 2017,
  algorithm 1, https://arxiv.org/abs/1610.08401
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, programs
from jaxrobust.attacks import DeepFool, conversation
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.classification import logits, predictions
from jaxrobust.evaluation.rates import Rate, rate
from jaxrobust.types import Array, LogitsFn, Progress, as_key, fold_keys

NORMS = ("linf", "l2")
_CHUNK = 256  # images in one call of compiled code, after which progress is told


@dataclasses.dataclass(frozen=True)
class UniversalPerturbation:
    """The settings of the search for one perturbation for all images.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      norm: "linf" or "l2".
      target_rate: The share of fooled images at which to stop, in (0, 1]; in the paper it is
        1 - delta = 0.8.
      max_passes: The largest number of passes over the images, at least 1.
      inner: The attack that finds the change for one image. As in the paper, its norm is l2 for both
        balls; the authors' code takes 10 steps.

    Raises:
      TypeError: A value is not a number, or `inner` is not a DeepFool.
      ValueError: A value is out of range.
    """

    epsilon: float
    norm: str = "linf"
    target_rate: float = 0.8
    max_passes: int = 10
    inner: DeepFool = DeepFool(num_steps=10, num_candidates=9)

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, NORMS)
        largest = 1.0 if self.norm == "linf" else float("inf")
        checks.number("epsilon", self.epsilon, minimum=0.0, maximum=largest)
        checks.number("target_rate", self.target_rate, above=0.0, maximum=1.0)
        checks.integer("max_passes", self.max_passes, minimum=1)
        if not isinstance(self.inner, DeepFool):
            raise TypeError(f"`inner` must be a DeepFool, got {type(self.inner).__name__}.")


@dataclasses.dataclass(frozen=True, eq=False)
class UniversalResult:
    """A universal perturbation and how many images it fools.

    Attributes:
      perturbation: float32 [H, W, C] in pixel units, the perturbation after the pass that fooled most.
        It is added to images, which are then clipped to [0, 1].
      fooling_rates: The share of fooled images after each pass, over the images of the search.
      converged: Whether the target rate was reached.
    """

    perturbation: np.ndarray
    fooling_rates: tuple[Rate, ...]
    converged: bool

    @property
    def fooling_rate(self) -> Rate:
        """The fooling rate of `perturbation`."""
        return max(self.fooling_rates, key=lambda found: found["count"])

    def apply(self, images: Any) -> np.ndarray:
        """Adds the perturbation to images and clips them to [0, 1].

        Args:
          images: [B, H, W, C], uint8 or floating point in [0, 1].

        Returns:
          float32 [B, H, W, C] in [0, 1].
        """
        return np.clip(as_float(images) + self.perturbation, 0.0, 1.0)


def universal_perturbation(
    attack: UniversalPerturbation,
    logits_fn: LogitsFn,
    images: Any,
    labels: Any = None,
    *,
    key: jax.Array,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> UniversalResult:
    """Searches for one perturbation that fools the classifier on most images.

    DeepFool starts at x + v, and the points that it shows to the classifier are clipped to [0, 1],
    about which the paper says nothing. A change that does not fool its image is not used.

    Args:
      attack: The settings of the search.
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A Classifier's weights are
        arguments of the compiled code.
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the classes to leave. By default these are the predictions for the clean images,
        as in the paper.
      key: A PRNG key, for the order of the images.
      batch_size: How many images DeepFool works on together, at least 1; 1 in the paper. With more,
        v is moved by the mean of their changes: passes are faster, but moves are fewer and smaller.
      progress: Called with (name of the pass, such as "pass 1", images done, images in all passes).

    Returns:
      UniversalResult.

    Raises:
      TypeError: The images are neither uint8 nor floating point, or the labels are not integers.
      ValueError: Shapes do not fit, or values are out of range.
    """
    such_as = "an evaluation.UniversalPerturbation, such as UniversalPerturbation(epsilon=8 / 255)"
    checks.instance("attack", attack, UniversalPerturbation, such_as)
    checks.integer("batch_size", batch_size, minimum=1)
    key = as_key(key)
    clean = as_float(images)
    checks.float_images(clean)
    if len(clean) == 0:
        raise ValueError("`images` must hold at least one image, got none.")
    num_classes = programs.logits_shape(logits_fn, clean[:1])[1]
    predicted = predictions(logits(logits_fn, clean))  # refuses what depends on the batch
    if labels is None:
        aims = predicted
    else:
        aims = np.asarray(labels)
        checks.images_and_labels(clean, aims)
        checks.label_range("labels", aims, num_classes)

    size = len(clean)
    batch_size = min(batch_size, size)
    batch = jax.ShapeDtypeStruct((batch_size, *clean.shape[1:]), np.float32)
    function, watch = programs.as_argument(logits_fn, batch), programs.Watch(logits_fn, clean)
    inner = conversation.per_image(attack.inner, batch_size)
    v = jnp.zeros(clean.shape[1:], jnp.float32)
    best, rates = np.zeros(clean.shape[1:], np.float32), []
    # Each pass goes on with v as the last one has left it; the best of them is returned.
    for index in range(attack.max_passes):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, index), size))
        for indices, valid in _chunks(order, batch_size):
            watch.check(always=False)
            shape = (-1, batch_size)
            v = _pass(
                function,
                inner,
                v,
                jnp.asarray(clean[indices]).reshape(*shape, *clean.shape[1:]),
                jnp.asarray(aims[indices], jnp.int32).reshape(shape),
                jnp.asarray(valid).reshape(shape),
                jnp.float32(attack.epsilon),
                norm=attack.norm,
            )
            if progress is not None:
                v.block_until_ready()
                done = index * size + int(np.flatnonzero(order == indices[valid][-1])[0]) + 1
                progress(f"pass {index + 1}", done, attack.max_passes * size)
        watch.check()
        found = np.asarray(v)
        shown = predictions(logits(logits_fn, np.clip(clean + found, 0.0, 1.0)))
        # A NaN fools nobody, neither in a clean image nor in a changed one.
        fooled = (shown != aims) & (shown >= 0) & (aims >= 0)
        rates.append(rate(int(fooled.sum()), size))
        if rates[-1]["count"] > max((r["count"] for r in rates[:-1]), default=-1):
            best = found
        if rates[-1]["count"] >= attack.target_rate * size:
            return UniversalResult(best, tuple(rates), True)
    return UniversalResult(best, tuple(rates), False)


def _chunks(order: np.ndarray, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts the order into pieces of one size: (indices, which of them are not padding)."""
    length = min(-(-len(order) // batch_size), max(_CHUNK // batch_size, 1)) * batch_size
    padded = np.resize(order, -(-len(order) // length) * length)
    valid = np.arange(len(padded)) < len(order)
    return list(zip(padded.reshape(-1, length), valid.reshape(-1, length), strict=True))


def _move(
    logits_fn: LogitsFn, attack: Any, v: Array, images: Array, labels: Array, valid: Array
) -> Array:
    """The mean of the changes that fool images which v alone does not fool; zero if there are none."""
    # Not clipped: where DeepFool clips its own points, what fools is then the image with the new v.
    keys = fold_keys(jax.random.key(0), jnp.arange(len(labels)))  # DeepFool draws nothing
    states = conversation.start(attack, keys, images + v, labels, jnp.int32(0))

    def fools(states: Any) -> Array:
        values = conversation.evaluate(attack, logits_fn, states, keys, with_gradient=False)[
            1
        ].logits
        return (jnp.argmax(values, axis=1) != labels) & ~jnp.any(jnp.isnan(values), axis=1)

    def goes_on(carry: tuple[Any, Array, Array]) -> Array:
        _, over, step = carry
        return ~jnp.all(over) & (step < attack.num_steps)

    def step(carry: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
        states, over, count = carry
        evaluation = conversation.evaluate(attack, logits_fn, states, keys)[1]
        stepped = conversation.tell(attack, states, evaluation)
        states = conversation.where_rows(over, states, stepped)
        return states, over | fools(states), count + 1

    idle = fools(states) | ~valid
    states, over, _ = jax.lax.while_loop(goes_on, step, (states, idle, jnp.int32(0)))
    taken = over & ~idle
    changes = (1 + attack.overshoot)[:, None, None, None] * states.total
    changes = jnp.where(taken[:, None, None, None], changes, 0.0)
    return jnp.sum(changes, axis=0) / jnp.maximum(jnp.sum(taken), 1)


def _walk(
    logits_fn: LogitsFn,
    attack: Any,
    v: Array,
    images: Array,
    labels: Array,
    valid: Array,
    epsilon: Array,
    norm: str,
) -> Array:
    """Returns v after S batches of images [S, B, H, W, C]."""

    def step(v: Array, batch: tuple[Array, Array, Array]) -> tuple[Array, None]:
        v = v + _move(logits_fn, attack, v, *batch)
        if norm == "linf":
            return jnp.clip(v, -epsilon, epsilon), None
        length = jnp.sqrt(jnp.sum(v**2))
        return v * jnp.minimum(1.0, epsilon / jnp.maximum(length, 1e-30)), None

    return jax.lax.scan(step, v, (images, labels, valid))[0]


_pass = compilation.jit(_walk, static_argnames="norm")
