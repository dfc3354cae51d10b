"""What the programs of a run are compiled for, and what they are given.

Whatever two runs may differ by without compiling anew is given: the data, the masks, the numbers of an
attack, the weights of a teacher, the seed. All else is in the plan.
"""

from typing import Any, NamedTuple

import jax

from jaxrobust.training.compression.method import Compression
from jaxrobust.training.run.batches import DeviceData
from jaxrobust.training.step.averaging import Averaging
from jaxrobust.training.step.network import Network
from jaxrobust.training.step.nnx_modules import NnxFunction
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.types import Array, Masks, PyTree


class Itself:
    """A value that compiled code depends on: equal to itself alone, so that any value will do.

    Two pairs of functions are the same if their functions are, and two nnx modules without their
    variables if they say the same.

    Attributes:
      value: Of a class that need not be hashable.
      digest: Of what it computes, which a value that can change may change.
    """

    def __init__(self, value: Any, digest: str | None):
        self.value, self.digest = value, digest
        parts = value if isinstance(value, tuple) else (value,)
        self._known_by = (
            *(part if isinstance(part, NnxFunction) else id(part) for part in parts),
            digest,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self._known_by == other._known_by

    def __hash__(self) -> int:
        return hash(self._known_by)


class Given(NamedTuple):
    """What is the same in all steps of a run, as arguments of its programs.

    Attributes:
      examples: The training set, or that of validation.
      key: Folded with the step for whatever is random in it.
      mean: [C] or a scalar, of pixel values in [0, 1].
      std: [C] or a scalar.
      masks: The parameters' structure with boolean leaves, or None.
      adversary: Of the epoch, its numbers as arrays; None where it does not matter.
      objective: The arrays of the objective; () where they do not matter.
    """

    examples: DeviceData
    key: Array
    mean: Array
    std: Array
    masks: Masks | None = None
    adversary: Any = None
    objective: tuple[Array, ...] = ()

    @property
    def bare(self) -> "Given":
        """Without what only steps need: other programs shall not depend on it."""
        return self._replace(masks=None, adversary=None, objective=())


class Plan(NamedTuple):
    """What the programs of a run are compiled for.

    Attributes:
      model: The network's.
      augmentation: Of the training images, or of None.
      objective: All of it but its arrays (`split`).
      optimizer: As the recipe's, and all that follows.
      schedule: As the recipe's.
      averaging: As the recipe's.
      precision: As the recipe's.
      compression: As the recipe's, but for its `kept`.
      num_epochs: As the recipe's.
      batch_size: As the recipe's.
      num_examples: Of the training set.
      num_devices: Of each process, that share each batch.
    """

    model: Itself
    augmentation: Itself
    objective: Any
    optimizer: Any
    schedule: Any
    averaging: Averaging | None
    precision: str
    compression: Compression | None
    num_epochs: int
    batch_size: int
    num_examples: int
    num_devices: int

    @property
    def steps_per_epoch(self) -> int:
        """How many batches fill an epoch."""
        return self.num_examples // self.batch_size

    def recipe(self, given: Given) -> Recipe:
        """The recipe, with what is given as arguments of the program."""
        return Recipe(
            num_epochs=self.num_epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            schedule=self.schedule,
            objective=joined(self.objective, given.objective),
            adversary=given.adversary,
            augmentation=self.augmentation.value,
            compression=self.compression,
            averaging=self.averaging,
            precision=self.precision,  # type: ignore[arg-type]
        )

    def network(self, given: Given) -> Network:
        """The network, with its normalisation as arguments of the program."""
        return Network(self.model.value, given.mean, given.std)


def split(value: Any) -> tuple[Any, tuple[Array, ...]]:
    """(all of a value but its arrays, which can be hashed if the rest can; its arrays)."""
    leaves, structure = jax.tree.flatten(value)
    rest = tuple(None if _is_array(leaf) else (leaf,) for leaf in leaves)
    return (structure, rest), tuple(leaf for leaf in leaves if _is_array(leaf))


def joined(rest: Any, arrays: tuple[Any, ...]) -> Any:
    """The value that `split` has taken apart."""
    structure, others = rest
    remaining = iter(arrays)
    leaves = [next(remaining) if other is None else other[0] for other in others]
    return jax.tree.unflatten(structure, leaves)


def _is_array(leaf: PyTree) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")
