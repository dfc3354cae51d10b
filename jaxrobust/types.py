"""The types that everything else speaks in.

Shapes are written as in jaxtyping: B images in a batch, H x W pixels, C channels, K classes.
Images are float32 in [0, 1], NHWC; epsilon is in the same pixel units.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

Array: TypeAlias = jax.Array
PyTree: TypeAlias = Any

LogitsFn: TypeAlias = Callable[[Array], Array]
"""Images float32 [B, H, W, C] in [0, 1] -> logits float32 [B, K]. Any callable will do."""

Masks: TypeAlias = PyTree
"""The parameters' structure with boolean leaves; True keeps the weight. Never None."""


class Evaluation(NamedTuple):
    """What the classifier answered at the point that an attack asked about (one image).

    Attributes:
      logits: [K].
      value: The attack's objective there: scalar, or [k] for an attack that wants k gradients.
      gradient: Of `value` by the image: [H, W, C], or [k, H, W, C]. None for an attack with
        `uses_gradient = False`.
    """

    logits: Array
    value: Array
    gradient: Array | None


class Attack(Protocol):
    """An attack on one image, written as a conversation with a classifier it never calls.

    The engine (`jaxrobust.attacks.engine`) vmaps `init`, `ask`, `objective` and `tell` over a batch,
    evaluates the classifier once per step on the whole batch, and keeps the result. Implementations
    are frozen dataclasses registered as pytrees: float fields are leaves (sweeping epsilon compiles
    nothing anew), integers, booleans and strings are static.

    Attributes:
      num_steps: How many gradients (or, without gradients, queries) the attack takes.
      num_restarts: How often the attack starts over, with another key; the engine keeps the best.
      targeted: Whether `label` names the class to reach (True) or the class to leave (False).
      keep: Which of the points asked about is returned: "best" (fooling first, then the highest
        objective), "closest" (fooling first, then the smallest l2 distance), or "last".
      uses_gradient: False for attacks that need only the logits.
    """

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

    def init(self, key: Array, image: Array, label: Array) -> PyTree:
        """The state before the first step. image [H, W, C], label an int32 scalar."""

    def ask(self, state: PyTree) -> Array:
        """The point at which to evaluate the classifier: [H, W, C]."""

    def objective(self, logits: Array, state: PyTree) -> Array:
        """What the attack ascends, from logits [K]: a scalar, or [k] for k gradients."""

    def tell(self, state: PyTree, evaluation: Evaluation) -> PyTree:
        """The state after learning the answer at the point asked about."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found, for a batch of B images.

    Attributes:
      images: float32 [B, H, W, C] in [0, 1]: the adversarial images, whether they fool or not.
      success: bool [B]: the classifier's prediction on `images` is not the label (targeted: is the
        target). False wherever its logits hold a NaN.
      num_steps: int32 [B]: steps taken until the first point that fooled; all of them if none did.
      num_queries: int32 [B]: images evaluated by the classifier on behalf of this one.
      num_gradients: int32 [B]: gradients by the image on behalf of this one.
    """

    images: Array
    success: Array
    num_steps: Array
    num_queries: Array
    num_gradients: Array

    def __repr__(self) -> str:
        return f"AttackResult({len(self.success)} images)"
