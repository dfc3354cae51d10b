"""FAB: looks for the smallest perturbation that fools, by steps to linearised class boundaries.

Let x be the point and x0 the original. The nearest boundary is that of the class k with the smallest
|z_k - z_y| / ||grad(z_k - z_y)|| (dual norm). Both x and x0 are projected onto its linearisation within
[0, 1], with changes d and d0. Then

    alpha = min( ||d|| / (||d|| + ||d0||), alpha_max )
    x    <- clip( (1 - alpha) (x + eta d) + alpha (x0 + eta d0) )

and if that fools, x <- x0 + beta (x - x0), back towards the original. The closest point that fooled is
returned. Each step asks two questions: whether the new point fools, which needs no gradient, and then
for the gradients at the point from which the next step starts. Both points count if they fool; the
reference implementation counts only the first.

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
      original: [H, W, C], the clean image.
      label: int32 scalar.
      target: int32 scalar, the target class (FAB-T); until the clean logits are known, its rank in
        them.
      start: [H, W, C], where the attack starts.
      point: [H, W, C], the point to ask about.
      candidate: Whether `point` is a new point that may fool (True) or one to linearise at (False).
      step: int32, the steps taken; -1 during the look at the clean image.
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
    """Fast adaptive boundary attack, which looks for the smallest perturbation.

    Attributes:
      epsilon: A radius in pixel units, not negative; for linf at most 1. Random starts lie at up to
        half of it, and AutoAttack counts perturbations up to it. It does not limit the perturbations.
      num_iterations: How many steps to take in each restart, at least 1; 100 in the paper.
      norm: "linf", "l2" or "l1".
      aim: "all" steps towards the nearest of all classes, with K - 1 gradients a step. "one" (FAB-T)
        aims at one target class in each restart: the most likely other classes in the clean logits, in
        their order.
      num_restarts: How many starts to try, at least 1. The first is at the image, the others are at
        random points. With "one", the restarts go through the `num_targets` target classes, all of
        which first start at the image, so give it at least as many restarts.
      num_targets: How many classes "one" aims at, at least 1; more than K - 1 are of no use.
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
        """The number of questions: two for each step, and for "one" a look at the clean image.

        The last question of all is not counted, because its answer is only judged.
        """
        return 2 * self.num_iterations - (self.aim == "all")

    def duration(self) -> str:
        """Returns the number of iterations in words; an iteration is two questions."""
        return f"{self.num_iterations} iterations"

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at the image itself; from the second start on, at a random point near it."""
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
        """Asks about the new point or the point to linearise at."""
        return state.point

    def wants_gradient(self, state: State) -> Array:
        """Says whether the point is one to linearise at."""
        return ~state.candidate & (state.step >= 0)

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the logits of all other classes [K - 1], or the target's, minus the label's."""
        logits = losses.bounded(logits)
        if self.aim == "one":
            return logits[state.target] - logits[state.label]
        others = jnp.arange(logits.shape[0] - 1)
        others = jnp.where(others >= state.label, others + 1, others)
        return logits[others] - logits[state.label]

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes a step, or moves a new point that fooled back towards the original."""
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
