"""The class that all attacks inherit."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxrobust.types import Array, AttackResult, Evaluation, LogitsFn, PyTree


class Attack:
    """The base class of attacks: an attack asks for points and is told the classifier's answers.

    Subclasses are written for one image and never call the classifier. The engine
    (`jaxrobust.attacks.engine`) vmaps `init`, `ask`, `objective` and `tell` over a batch, evaluates the
    classifier once per step on the whole batch, and chooses the result. A subclass has these four
    methods and the six attributes below, and is a frozen dataclass registered as a pytree. Its float
    fields are leaves, so that another epsilon needs no new compilation; its integers, booleans and
    strings are static.

    Attributes:
      norm: "linf", "l2" or "l1", the norm in which its perturbations are measured.
      num_steps: How many points the attack asks about before its last point is judged.
      num_restarts: How many times the attack starts, each time with another key; the engine keeps the
        best point of all.
      targeted: Whether `label` names the class to reach (True) or the class to leave (False).
      keep: Which of the points is returned. "best" prefers points that fool, then the highest
        objective; "closest" prefers points that fool, then the smallest distance in the attack's
        `norm`; "last" takes the last point.
      uses_gradient: Whether the attack needs gradients (True) or only the logits (False).
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
        """Attacks a batch of images in one compiled program.

        Image i uses the key folded with i, so its result does not depend on the other images.

        Args:
          key: A PRNG key (`jax.random.key(0)`).
          logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K]. If it is a callable pytree
            with its weights as leaves (a Classifier, a `jax.tree_util.Partial`), it is an argument of
            the compiled program and traced once. Any other function is traced at each call, with the
            current values of the variables that it closes over, which takes 0.1 to 0.2 s for a
            ResNet-50; equal programs are compiled once.
          images: float32 [B, H, W, C] in [0, 1].
          labels: int [B], the true classes; if `targeted`, the classes to reach.

        Returns:
          AttackResult, whose fields all begin with the axis B.

        Raises:
          TypeError: The images are integers, the labels are not, `logits_fn` cannot be called, or the
            attack lacks a part or is not a pytree.
          ValueError: Shapes do not fit. Also, unless the values are traced: images are outside
            [0, 1], labels are outside 0 .. K - 1, or the classifier's answer to an image depends on
            the other images.
        """
        from jaxrobust.attacks import engine  # which needs this class

        return engine.attack_batch(self, key, logits_fn, images, labels)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> PyTree:
        """Returns the state before the first step.

        Args:
          key: A PRNG key, another one for each restart.
          image: float32 [H, W, C] in [0, 1], the clean image.
          label: int32 scalar, the class to leave, or to reach if `targeted`.
          restart: int32 scalar in 0 .. num_restarts - 1. An attack that tries several target classes
            may choose the class by it.
        """
        raise NotImplementedError

    def ask(self, state: PyTree) -> Array:
        """Returns the point at which to evaluate the classifier, [H, W, C]."""
        raise NotImplementedError

    def objective(self, logits: Array, state: PyTree) -> Array:
        """Returns the value to be increased, from the logits [K]: a scalar, or [k] for k gradients."""
        raise NotImplementedError

    def tell(self, state: PyTree, evaluation: Evaluation) -> PyTree:
        """Returns the state after the classifier's answer at the point that `ask` returned."""
        raise NotImplementedError

    def done(self, state: PyTree) -> Array:
        """Says whether the attack may end before its `num_steps`: bool scalar.

        The point that `ask` returns for such a state is the last one to be judged.
        """
        return jnp.zeros((), bool)

    def eligible(self, state: PyTree) -> Array:
        """Says whether the point that `ask` returns may be a result: False outside of the ball."""
        return jnp.ones((), bool)

    def wants_gradient(self, state: PyTree) -> Array:
        """Says whether the answer to the current question needs a gradient: bool scalar.

        A gradient is computed only in steps in which some image needs one, so an attack saves time if
        all images need theirs in the same steps.
        """
        return jnp.ones((), bool)

    def duration(self) -> str:
        """Returns the attack's length for labels, such as "40 steps"; "" for a single step."""
        return f"{self.num_steps} steps" if self.num_steps > 1 else ""


def overrides(attack: Attack, default: Callable[..., Any]) -> bool:
    """Says whether an attack's class replaces a method of `Attack`.

    This is known before anything is traced, so that a default method adds nothing to a program.

    Args:
      attack: Any attack.
      default: The method of the base class, such as `Attack.done`.
    """
    return getattr(type(attack), default.__name__) is not default


def epsilon_of(attack: Attack) -> Any:
    """An attack's epsilon, a number or [B]; None of one that looks for a perturbation of any size."""
    return getattr(attack, "epsilon", None)
