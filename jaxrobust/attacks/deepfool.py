"""DeepFool: repeated steps to the nearest linearised class boundary, until the class changes.

Let f_k = z_k - z_y with gradient w_k, and let k be the class with the smallest |f_k| / ||w_k|| (dual
norm) among those with the largest logits. Then

    l2    r += (|f_k| / ||w_k||_2 + 1e-4) w_k / ||w_k||_2
    linf  r += (|f_k| / ||w_k||_1 + 1e-4) sign(w_k)
    x      = clip( x0 + (1 + overshoot) r )

The paper has neither the clipping nor the 1e-4, and it applies the overshoot once, at the end. This
implementation follows foolbox.

References:
  Moosavi-Dezfooli, Fawzi, Frossard, "DeepFool: a simple and accurate method to fool deep neural
  networks", CVPR 2016, algorithm 2 and section 3.3, https://arxiv.org/abs/1511.04599
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import conversation, settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation

NORMS = ("l2", "linf")
_DUAL = {"linf": "l1", "l2": "l2"}
_BEYOND = 1e-4  # so that a step does not end on the boundary itself; foolbox has it too


class State(NamedTuple):
    """One image under attack.

    Attributes:
      original: [H, W, C], the clean image.
      label: int32 scalar.
      total: [H, W, C], the sum of the steps, without the overshoot.
      fooled: Whether the class has changed.
    """

    original: Array
    label: Array
    total: Array
    fooled: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DeepFool(Attack):
    """DeepFool: quickly finds a small perturbation that fools.

    It stops at the first point that fools. A step costs one gradient for each class considered.

    Attributes:
      overshoot: How far to go beyond the boundary, as a share of the perturbation, not negative; 0.02
        in the paper.
      num_steps: The largest number of steps, at least 1; 50 in the paper.
      norm: "l2" or "linf".
      num_candidates: How many other classes to consider in a step, those with the largest logits; at
        least 1. None considers all.
    """

    overshoot: float = 0.02
    num_steps: int = settings.static(50)
    norm: str = settings.static("l2")
    num_candidates: int | None = settings.static(10)

    targeted: ClassVar[bool] = False
    num_restarts: ClassVar[int] = 1
    keep: ClassVar[str] = "closest"
    uses_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, NORMS)
        checks.number("overshoot", self.overshoot, minimum=0.0)
        checks.integer("num_steps", self.num_steps, minimum=1)
        if self.num_candidates is not None:
            checks.integer("num_candidates", self.num_candidates, minimum=1)

    def done(self, state: State) -> Array:
        """Says whether a point has fooled."""
        return state.fooled

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts at the image itself."""
        never = jnp.zeros((), bool)
        return State(image, label, jnp.zeros_like(image), never)

    def ask(self, state: State) -> Array:
        """Asks about the image with all steps so far."""
        return jnp.clip(state.original + (1 + self.overshoot) * state.total, 0.0, 1.0)

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the largest other logits minus the label's, [num_candidates]."""
        logits = losses.bounded(logits)
        others = jnp.where(jnp.arange(logits.shape[0]) == state.label, -jnp.inf, logits)
        most = logits.shape[0] - 1
        count = most if self.num_candidates is None else min(self.num_candidates, most)
        return jax.lax.top_k(others, count)[0] - logits[state.label]

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Takes a step, unless the point fooled."""
        fooled = jnp.argmax(evaluation.logits) != state.label
        gradients = conversation.finite_gradient(evaluation)
        lengths = jax.vmap(lambda g: norms.norm(g, _DUAL[self.norm]))(gradients) + 1e-12
        # Float32 whatever the classifier computes in: the state must keep its types.
        distances = jnp.abs(evaluation.value.astype(jnp.float32)) / lengths
        nearest = jnp.argmin(distances)
        gradient = gradients[nearest]
        direction = gradient / lengths[nearest] if self.norm == "l2" else jnp.sign(gradient)
        step = (distances[nearest] + _BEYOND) * direction
        return state._replace(
            total=jnp.where(fooled, state.total, state.total + step), fooled=fooled
        )
