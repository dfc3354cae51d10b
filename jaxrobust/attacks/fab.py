"""FAB: the smallest perturbation that fools, by steps to linearised class boundaries.

At x, with the original x0, the nearest boundary is that of the class k with the smallest
|z_k - z_y| / ||grad(z_k - z_y)|| (dual norm). Both x and x0 are projected onto its linearisation within
[0, 1], with changes d and d0; then

    alpha = min( ||d|| / (||d|| + ||d0||), alpha_max )
    x    <- clip( (1 - alpha) (x + eta d) + alpha (x0 + eta d0) )

and where that fools, x <- x0 + beta (x - x0): back towards the original. The closest point that fooled
is kept. A step asks twice: whether the point stepped to fools, which needs no gradient, and for the
gradients at the point to step from, which counts as well where it fools; the reference implementation
looks at the ones stepped to alone.

References:
  Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
  ICML 2020, algorithm 1, https://arxiv.org/abs/1907.02044
  FAB-T (one target class at a time): Croce, Hein, "Reliable evaluation of adversarial robustness
  with an ensemble of diverse parameter-free attacks", ICML 2020, https://arxiv.org/abs/2003.01690
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import conversation, hyperplane, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation

_ALPHA_MAX, _ETA, _BETA = 0.1, 1.05, 0.9
_DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C].
      label: int32 scalar.
      target: int32 scalar, the class aimed at (FAB-T); its rank until the clean logits are known.
      start: [H, W, C].
      point: [H, W, C], where the classifier is asked.
      candidate: Whether `point` is one that may fool, or one to linearise at.
      step: int32, steps taken; -1: the look at the clean image.
    """

    original: Array
    label: Array
    target: Array
    start: Array
    point: Array
    candidate: Array
    step: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack: minimal norm.

    Attributes:
      epsilon: Radius of the random starts (at half of it), and of what AutoAttack counts; in pixel
        units. The perturbations found are not limited by it.
      num_iterations: At least 1; the paper's 100.
      norm: "linf", "l2" or "l1".
      aim: "all" looks for the nearest of all classes with K - 1 gradients; "one" aims at one class:
        restart r at the class that is r-th after the label in the clean logits (FAB-T).
      num_restarts: The first starts at the image, the others at random points. For "one" also target
        classes, of which there are `num_targets`.
      num_targets: How many classes "one" aims at; at most K - 1 make sense.
    """

    epsilon: float = 8 / 255
    num_iterations: int = settings.static(100)
    norm: str = settings.static("linf")
    aim: str = settings.static("all")
    num_restarts: int = settings.static(1)
    num_targets: int = settings.static(9)

    targeted: ClassVar[bool] = False
    keep: ClassVar[str] = "closest"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settings.check_ball(self)
        checks.one_of("aim", self.aim, ("all", "one"))
        checks.integer("num_iterations", self.num_iterations, minimum=1)
        checks.integer("num_restarts", self.num_restarts, minimum=1)
        checks.integer("num_targets", self.num_targets, minimum=1)

    @property
    def num_steps(self) -> int:
        """Two questions a step, and for "one" a look at the clean image; the last one only judges."""
        return 2 * self.num_iterations - (self.aim == "all")

    def duration(self) -> str:
        """As the paper counts: an iteration is two questions."""
        return f"{self.num_iterations} iterations"

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """The image itself; from the second start on, a random point near it."""
        shape = image.shape
        if self.norm == "linf":
            noise = jax.random.uniform(key, shape, jnp.float32, -1.0, 1.0)
            noise = noise / jnp.max(jnp.abs(noise))
        else:
            noise = jax.random.normal(key, shape, jnp.float32)
            noise = noise / norms.norm(noise, self.norm)
        first = restart < self.num_targets if self.aim == "one" else restart == 0
        shift = jnp.where(first, 0.0, 0.5 * self.epsilon)
        start = jnp.clip(image + shift * noise, 0.0, 1.0)
        looks = self.aim == "one"
        return State(
            original=image,
            label=label,
            target=restart % self.num_targets,
            start=start,
            point=image if looks else start,
            candidate=jnp.zeros((), bool),
            step=jnp.int32(-1 if looks else 0),
        )

    def ask(self, state: State) -> Array:
        """The candidate, or where to linearise."""
        return state.point

    def wants_gradient(self, state: State) -> Array:
        """Whether the point is one to linearise at."""
        return ~state.candidate & (state.step >= 0)

    def objective(self, logits: Array, state: State) -> Array:
        """Logit differences to the label: those of all other classes [K - 1], or the target's."""
        logits = losses.bounded(logits)
        if self.aim == "one":
            return logits[state.target] - logits[state.label]
        others = jnp.arange(logits.shape[0] - 1)
        others = jnp.where(others >= state.label, others + 1, others)
        return logits[others] - logits[state.label]

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """A step from here; before the next one, a candidate that fooled moves towards the original."""
        fooled = jnp.argmax(evaluation.logits) != state.label
        nearer = state.original + _BETA * (state.point - state.original)
        looked = state._replace(
            point=jnp.where(fooled, nearer, state.point), candidate=jnp.zeros((), bool)
        )
        stepped = state._replace(
            point=self._step(state, evaluation),
            candidate=jnp.ones((), bool),
            step=state.step + 1,
        )
        following = jax.tree.map(lambda a, b: jnp.where(state.candidate, a, b), looked, stepped)
        if self.aim == "all":
            return following
        target = conversation.ranked_class(evaluation.logits, state.label, state.target)
        first = state._replace(point=state.start, step=state.step + 1, target=target)
        looking = state.step < 0
        return jax.tree.map(lambda a, b: jnp.where(looking, a, b), first, following)

    def _step(self, state: State, evaluation: Evaluation) -> Array:
        gradient = conversation.finite_gradient(evaluation)
        # Float32 whatever the classifier computes in: the state must keep its types.
        height = evaluation.value.astype(jnp.float32)
        if self.aim == "all":
            lengths = jax.vmap(lambda g: norms.norm(g, _DUAL[self.norm]))(gradient)
            nearest = jnp.argmin(jnp.abs(height) / (1e-12 + lengths))
            height, gradient = height[nearest], gradient[nearest]
        change = hyperplane.project(state.point, gradient, height, self.norm)
        height = height + jnp.sum(gradient * (state.original - state.point))
        from_original = hyperplane.project(state.original, gradient, height, self.norm)
        length = jnp.maximum(norms.norm(change, self.norm), 1e-8)
        other = jnp.maximum(norms.norm(from_original, self.norm), 1e-8)
        alpha = jnp.minimum(length / (length + other), _ALPHA_MAX)
        moved = (1 - alpha) * (state.point + _ETA * change)
        return jnp.clip(moved + alpha * (state.original + _ETA * from_original), 0.0, 1.0)
