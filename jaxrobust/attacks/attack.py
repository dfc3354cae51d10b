"""What an attack is: the class that all of them inherit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxrobust.types import Array, AttackResult, Evaluation, LogitsFn, PyTree


class Attack:
    """An attack on one image, written as a conversation with a classifier it never calls.

    The engine (`jaxrobust.attacks.engine`) vmaps `init`, `ask`, `objective` and `tell` over a batch,
    evaluates the classifier once per step on the whole batch, and keeps the result. An attack inherits
    this class, has these four and the six facts below, and is a frozen dataclass registered as a
    pytree: float fields are leaves (sweeping epsilon compiles nothing anew), integers, booleans and
    strings are static.

    Attributes:
      norm: "linf", "l2" or "l1": what its perturbations are measured in.
      num_steps: How many questions the attack asks before its last point is judged.
      num_restarts: How often the attack starts over, with another key; the engine keeps the best.
      targeted: Whether `label` names the class to reach (True) or the class to leave (False).
      keep: Which of the points asked about is returned: "best" (fooling first, then the highest
        objective), "closest" (fooling first, then the smallest distance in the attack's `norm`), or
        "last".
      uses_gradient: False for attacks that need only the logits.
    """

    if TYPE_CHECKING:
        # Facts are fields, ClassVars or properties of each attack. With a value here, or a bare
        # annotation, a dataclass or mypy would take them for fields of this class.
        @property
        def norm(self) -> str: ...  # noqa: D102
        @property
        def num_steps(self) -> int: ...  # noqa: D102
        @property
        def num_restarts(self) -> int: ...  # noqa: D102
        @property
        def targeted(self) -> bool: ...  # noqa: D102
        @property
        def keep(self) -> str: ...  # noqa: D102
        @property
        def uses_gradient(self) -> bool: ...  # noqa: D102

    def __call__(
        self, key: Array, logits_fn: LogitsFn, images: Array, labels: Array
    ) -> AttackResult:
        """Attacks a batch in one compiled program.

        Image i uses the key folded with i, so its result does not depend on the images beside it.

        Args:
          key: A PRNG key (`jax.random.key(0)`).
          logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. A callable pytree that
            holds its weights as leaves (a Classifier, a `jax.tree_util.Partial`) is an argument of the
            compiled program. Anything else is traced at each call, which takes 0.1 to 0.2 s for a
            ResNet-50: what it closes over is what it closes over now, and equal programs are compiled
            once.
          images: float32 [B, H, W, C] in [0, 1].
          labels: int [B]: true classes, or the classes to reach if `targeted`.

        Returns:
          AttackResult, all fields [B, ...].

        Raises:
          TypeError: Integer images, fractional labels, a logits_fn that cannot be called, an attack
            that lacks a part or is no pytree.
          ValueError: Shapes that do not fit; images outside [0, 1], labels outside 0 .. K - 1 and a
            classifier whose answer to an image depends on the images beside it, where the values are
            known, which is everywhere but under a transformation.
        """
        from jaxrobust.attacks import engine  # which needs this class

        return engine.attack_batch(self, key, logits_fn, images, labels)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> PyTree:
        """The state before the first step. image [H, W, C]; label, restart: int32 scalars.

        restart counts from 0 to num_restarts - 1; each has a key of its own. An attack that tries one
        target class after the other takes the class from it.
        """
        raise NotImplementedError

    def ask(self, state: PyTree) -> Array:
        """The point at which to evaluate the classifier: [H, W, C]."""
        raise NotImplementedError

    def objective(self, logits: Array, state: PyTree) -> Array:
        """What the attack ascends, from logits [K]: a scalar, or [k] for k gradients."""
        raise NotImplementedError

    def tell(self, state: PyTree, evaluation: Evaluation) -> PyTree:
        """The state after learning the answer at the point asked about."""
        raise NotImplementedError

    def done(self, state: PyTree) -> Array:
        """Whether it has nothing more to ask before its `num_steps` are over.

        The point of a state that is done is judged last.
        """
        return jnp.zeros((), bool)

    def eligible(self, state: PyTree) -> Array:
        """Whether the point it asks about may be returned; not for points outside of its ball."""
        return jnp.ones((), bool)

    def wants_gradient(self, state: PyTree) -> Array:
        """Whether this answer needs a gradient.

        An attack for which that depends on the number of its questions alone saves what the others
        would cost.
        """
        return jnp.ones((), bool)

    def duration(self) -> str:
        """How long it takes, in the words of labels: "40 steps"; "" for a single step."""
        return f"{self.num_steps} steps" if self.num_steps > 1 else ""


def overrides(attack: Attack, default: Callable[..., Any]) -> bool:
    """Whether an attack's class has a method of its own in the place of one of `Attack`.

    Known before anything is traced: what has only the default leaves no trace in a program.

    Args:
      attack: Any.
      default: Of the base class, such as `Attack.done`.
    """
    return getattr(type(attack), default.__name__) is not default


def epsilon_of(attack: Attack) -> Any:
    """An attack's epsilon, a number or [B]; None of one that looks for a perturbation of any size."""
    return getattr(attack, "epsilon", None)
