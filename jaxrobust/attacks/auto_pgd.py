"""APGD: projected gradient ascent that chooses its own step size.

With d the steepest direction of the norm, P the projection onto the ball and [0, 1], g the gradient:

    z       = P( x_k + step_size * d(g(x_k)) )
    x_(k+1) = P( x_k + 0.75 (z - x_k) + 0.25 (x_k - x_(k-1)) )

At checkpoints the step size is halved, and the ascent goes on from the best point so far, in two cases:
the loss rose in at most three quarters of the steps since the last checkpoint; or the step size was not
halved at the last checkpoint and the best loss has not improved since.

In l1 a step moves only the largest values of the gradient, two thirds as many as the best point has
moved so far, without momentum. The radius falls from 3 to 2 to 1 epsilon, and the ascent goes on from
the best point so far each time.

References:
  Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
  attacks", ICML 2020, algorithm 1, https://arxiv.org/abs/2003.01690
  Croce, Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021,
  section 3, https://arxiv.org/abs/2103.01208
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import conversation, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation

LOSSES = ("ce", "dlr", "targeted_dlr")
_MOMENTUM = 0.25
# For l1: the radii in epsilons, the share of the steps with each radius but the last, the first share
# of values moved, and the factor by which steps get sparser and shorter.
_RADII, _SHARE = (3.0, 2.0, 1.0), 0.3
_FIRST_SHARE, _SPARSER = 0.2, 1.5


# Flat, though some of its fields belong together: files of attacks under way hold them by these names,
# and would not be read again if they stood one level deeper.
class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C], the clean image.
      label: int32 scalar, the class to leave (with `targeted`, to reach).
      target: int32 scalar, the class that "targeted_dlr" aims at; until the clean logits are known,
        the rank of that class in them.
      start: [H, W, C], where the ascent starts.
      point: [H, W, C], where the attack stands.
      previous: [H, W, C], where it stood before the last step.
      best: [H, W, C], the point of the highest loss.
      best_loss: The loss at the best point.
      best_gradient: [H, W, C], the gradient at the best point.
      last_loss: The loss at the last point.
      step_size: The length of a step in pixel units.
      step: int32, the steps taken since the start (in l1, with the current radius).
      stage: int32, the index of the current radius; 0 in other norms than l1.
      window: int32, the steps from one checkpoint to the next.
      since_check: int32, the steps since the last checkpoint.
      increases: int32, how many of these steps raised the loss.
      halved: Whether the step size was halved at the last checkpoint.
      loss_at_check: The best loss at the last checkpoint.
      share: The share of the values that an l1 step moves.
      support: How many values the best point had moved at the last checkpoint (l1).
    """

    original: Array
    label: Array
    target: Array
    start: Array
    point: Array
    previous: Array
    best: Array
    best_loss: Array
    best_gradient: Array
    last_loss: Array
    step_size: Array
    step: Array
    stage: Array
    window: Array
    since_check: Array
    increases: Array
    halved: Array
    loss_at_check: Array
    share: Array
    support: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD: projected gradient ascent that adapts its own step size.

    With the loss "targeted_dlr" each restart aims at another target class, but any misclassification
    is a success. The clean image is evaluated first, and the targets are the most likely other classes
    in its logits, in their order.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      loss: "ce" (cross-entropy), "dlr" or "targeted_dlr" (`jaxrobust.losses`).
      num_iterations: How many steps to take in each restart, at least 1; 100 in the paper.
      norm: "linf", "l2" or "l1".
      targeted: Whether the labels are the classes to reach. This needs the loss "ce".
      num_restarts: How many random starts to try, at least 1. For "targeted_dlr" the restarts go
        through the `num_targets` target classes, so give it at least as many restarts.
      num_targets: How many classes "targeted_dlr" aims at, at least 1; more than K - 1 are of no use.
    """

    epsilon: float = 8 / 255
    loss: str = settings.static("ce")
    num_iterations: int = settings.static(100)
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)
    num_restarts: int = settings.static(1)
    num_targets: int = settings.static(9)

    keep: ClassVar[str] = "best"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settings.check_ball(self)
        checks.one_of("loss", self.loss, LOSSES)
        checks.integer("num_iterations", self.num_iterations, minimum=1)
        checks.integer("num_restarts", self.num_restarts, minimum=1)
        checks.integer("num_targets", self.num_targets, minimum=1)
        if self.targeted and self.loss != "ce":
            raise ValueError(f"`loss` must be 'ce' if `targeted` is True, got {self.loss!r}.")

    @property
    def num_steps(self) -> int:
        """The number of questions: all steps, and for "targeted_dlr" the look at the clean image."""
        return self.num_iterations + (self.loss == "targeted_dlr")

    def duration(self) -> str:
        """Returns the number of iterations in words, without the look at the clean image."""
        return f"{self.num_iterations} iterations"

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at a random point on the sphere, clipped to [0, 1]."""
        radius = self._radius(jnp.int32(0))
        if self.norm == "linf":
            noise = jax.random.uniform(key, image.shape, jnp.float32, -1.0, 1.0)
            noise = noise / jnp.maximum(jnp.max(jnp.abs(noise)), 1e-12) * radius
        elif self.norm == "l2":
            noise = norms.steepest(jax.random.normal(key, image.shape, jnp.float32), "l2") * radius
        else:
            noise = jax.random.normal(key, image.shape, jnp.float32)
        start = image + norms.project(noise, image, radius, self.norm)
        zero = jnp.zeros((), jnp.int32)
        lowest, none = jnp.float32(-jnp.inf), jnp.zeros((), jnp.float32)
        return State(
            original=image,
            label=label,
            target=restart % self.num_targets,
            start=start,
            point=image if self.loss == "targeted_dlr" else start,
            previous=start,
            best=start,
            best_loss=lowest,
            best_gradient=jnp.zeros_like(image),
            last_loss=lowest,
            step_size=self._first_step(radius),
            # Before the start: the look at the clean image.
            step=zero - 1 if self.loss == "targeted_dlr" else zero,
            stage=zero,
            window=self._first_window(zero),
            since_check=zero,
            increases=zero,
            halved=jnp.ones((), bool),
            loss_at_check=lowest,
            share=none + _FIRST_SHARE,
            support=none + image.size,
        )

    def _stages(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """(radii in epsilons, steps with each of them)."""
        steps = self.num_iterations
        if self.norm != "l1" or steps < 2:
            return (1.0,), (steps,)
        early = math.ceil(_SHARE * steps)
        return _RADII, (early, early, steps - 2 * early)

    def _radius(self, stage: Array) -> Array:
        return jnp.asarray(self._stages()[0], jnp.float32)[stage] * self.epsilon

    def _first_step(self, radius: Array) -> Array:
        return radius * (1.0 if self.norm == "l1" else 2.0)

    def _first_window(self, stage: Array) -> Array:
        """Steps to the first checkpoint; in l1 from any to the next."""
        if self.norm == "l1":
            windows = [max(int(0.04 * steps), 1) for steps in self._stages()[1]]
            return jnp.asarray(windows, jnp.int32)[stage]
        return jnp.int32(max(int(0.22 * self.num_iterations), 1))

    def ask(self, state: State) -> Array:
        """Asks about the current point."""
        return state.point

    def eligible(self, state: State) -> Array:
        """Says whether the point lies in the ball (in l1 early points do not) and has a target."""
        looked = state.step >= 0  # the look at the clean image has no target yet
        if self.norm != "l1":
            return looked
        length = norms.norm(state.point - state.original, "l1")
        # Points with the last radius are inside but for rounding, which sums of many values have.
        last = state.stage == len(self._stages()[0]) - 1
        return looked & (last | (length <= self.epsilon))

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the loss, which the attack increases."""
        if self.loss == "dlr":
            return losses.dlr(logits, state.label)
        if self.loss == "targeted_dlr":
            return losses.targeted_dlr(logits, state.label, state.target)
        loss = losses.cross_entropy(logits, state.label)
        return -loss if self.targeted else loss

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes a step; at a checkpoint, the step size is adapted first."""
        if self.loss != "targeted_dlr":
            return self._step(state, evaluation)
        looking = state.step < 0
        target = conversation.ranked_class(evaluation.logits, state.label, state.target)
        first = state._replace(point=state.start, step=state.step + 1, target=target)
        stepped = self._step(state, evaluation)
        return jax.tree.map(lambda a, b: jnp.where(looking, a, b), first, stepped)

    def _step(self, state: State, evaluation: Evaluation) -> State:
        state = _judge(state, evaluation)
        gradient = conversation.finite_gradient(evaluation)
        if self.norm == "l1":
            return self._sparse_step(state, gradient)
        check = state.since_check == state.window
        rose_seldom = 4 * state.increases <= 3 * state.window
        stuck = ~state.halved & (state.loss_at_check >= state.best_loss)
        halve = check & (rose_seldom | stuck)
        point = jnp.where(halve, state.best, state.point)
        gradient = jnp.where(halve, state.best_gradient, gradient)
        step_size = jnp.where(halve, state.step_size / 2, state.step_size)
        shorter, shortest = (max(int(share * self.num_iterations), 1) for share in (0.03, 0.06))

        direction = norms.steepest(gradient, self.norm)
        moved = self._project(state, point + step_size * direction)
        momentum = jnp.where(state.step == 0, 0.0, _MOMENTUM)
        moved = point + (1 - momentum) * (moved - point) + momentum * (point - state.previous)
        window = jnp.maximum(state.window - shorter, shortest)
        return state._replace(
            point=self._project(state, moved),
            previous=point,
            step_size=step_size,
            step=state.step + 1,
            window=jnp.where(check, window, state.window),
            since_check=jnp.where(check, 0, state.since_check),
            increases=jnp.where(check, 0, state.increases),
            halved=jnp.where(check, halve, state.halved),
            loss_at_check=jnp.where(check, state.best_loss, state.loss_at_check),
        )

    def _project(self, state: State, point: Array) -> Array:
        radius = self._radius(state.stage)
        difference = point - state.original
        return state.original + norms.project(difference, state.original, radius, self.norm)

    def _sparse_step(self, state: State, gradient: Array) -> State:
        check = state.since_check == state.window
        radius = self._radius(state.stage)
        first_step = self._first_step(radius)
        support = jnp.sum(jnp.abs(state.best - state.original) > 0).astype(jnp.float32)
        shrank = support / state.support < 0.95
        smaller = jnp.clip(state.step_size / _SPARSER, first_step / 10, first_step)
        step_size = jnp.where(check, jnp.where(shrank, first_step, smaller), state.step_size)
        share = jnp.where(check, support / state.original.size / _SPARSER, state.share)
        point = jnp.where(check & shrank, state.best, state.point)
        gradient = jnp.where(check & shrank, state.best_gradient, gradient)
        moved = self._project(state, point + step_size * norms.sparse_signs(gradient, share))
        state = state._replace(
            point=moved,
            previous=point,
            step_size=step_size,
            step=state.step + 1,
            since_check=jnp.where(check, 0, state.since_check),
            share=share,
            support=jnp.where(check, support, state.support),
        )
        return self._next_radius(state)

    def _next_radius(self, state: State) -> State:
        """The best point again, with the next radius, once the steps with this one are over."""
        *lengths, _ = self._stages()[1]
        over = (
            state.step >= jnp.asarray([*lengths, self.num_iterations + 1], jnp.int32)[state.stage]
        )
        stage = jnp.where(over, state.stage + 1, state.stage)
        radius = self._radius(stage)
        moved = state._replace(stage=stage)
        point = self._project(moved, state.best)
        support = jnp.sum(jnp.abs(point - state.original) > 0).astype(jnp.float32)
        following = moved._replace(
            point=point,
            best_loss=jnp.full_like(state.best_loss, -jnp.inf),
            last_loss=jnp.full_like(state.last_loss, -jnp.inf),
            step_size=self._first_step(radius),
            step=jnp.zeros_like(state.step),
            window=self._first_window(jnp.minimum(stage, len(lengths))),
            since_check=jnp.zeros_like(state.since_check),
            share=support / state.original.size / _SPARSER,
            support=support,
        )
        return jax.tree.map(lambda a, b: jnp.where(over, a, b), following, state)


def _judge(state: State, evaluation: Evaluation) -> State:
    """Counts the answer, and keeps the point if it is the best."""
    # NaN is worse than anything, and does not stay the best for being the first.
    value = evaluation.value.astype(jnp.float32)  # whatever the classifier computes in
    loss = jnp.where(jnp.isnan(value), -jnp.inf, value)
    better = (loss > state.best_loss) | (state.step == 0)
    stepped = (state.step > 0).astype(jnp.int32)
    rose = (loss > state.last_loss).astype(jnp.int32)
    return state._replace(
        best=jnp.where(better, state.point, state.best),
        best_loss=jnp.where(better, loss, state.best_loss),
        best_gradient=jnp.where(
            better, conversation.finite_gradient(evaluation), state.best_gradient
        ),
        last_loss=loss,
        since_check=state.since_check + stepped,
        increases=state.increases + stepped * rose,
    )
