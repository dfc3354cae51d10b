"""The settings that the programs of a run are compiled for (`Plan`), and their arguments (`Given`).

`Given` has what may differ between two runs without recompilation: the data, the masks, the numbers of
an attack, the weights of a teacher, the seed. Everything else is in the plan.
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
    """A static value of compiled code that is equal only to itself, and so need not be hashable.

    Two pairs of functions are equal if their functions are the same, and two nnx modules without their
    variables if they compare equal.

    Attributes:
      value: The value.
      digest: The digest of what it computes, which changes if a mutable value does.
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
    """The arguments that are the same in all steps of an epoch.

    Attributes:
      examples: The training set or the validation set.
      key: The PRNG key that is folded with the step.
      mean: [C] or a scalar, subtracted from pixel values in [0, 1].
      std: [C] or a scalar; what is left is divided by it.
      masks: Boolean leaves in the structure of the parameters, or None.
      adversary: The adversary of the epoch, with its numbers as arrays; None if it is not needed.
      objective: The arrays of the objective; () if they are not needed.
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
        """Returns the arguments without what only training steps need: masks, adversary, objective."""
        return self._replace(masks=None, adversary=None, objective=())


class Plan(NamedTuple):
    """The settings that the programs of a run are compiled for.

    Attributes:
      model: The model of the network.
      augmentation: The augmentation of the recipe; its value may be None.
      objective: The objective without its arrays (`split`).
      optimizer: The optimizer of the recipe.
      schedule: The schedule of the recipe.
      averaging: The averaging of the recipe.
      precision: The precision of the recipe.
      compression: The compression of the recipe, without its `kept`.
      num_epochs: The number of epochs.
      batch_size: The number of images in a batch.
      num_examples: The number of training images.
      num_devices: The number of devices of each process that share each batch.
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
        """The number of steps in an epoch."""
        return self.num_examples // self.batch_size

    def recipe(self, given: Given) -> Recipe:
        """Returns the recipe, with parts that are arguments of the program."""
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
        """Returns the network, whose normalisation is an argument of the program."""
        return Network(self.model.value, given.mean, given.std)


def split(value: Any) -> tuple[Any, tuple[Array, ...]]:
    """Splits a value into its hashable part and its arrays."""
    leaves, structure = jax.tree.flatten(value)
    rest = tuple(None if _is_array(leaf) else (leaf,) for leaf in leaves)
    return (structure, rest), tuple(leaf for leaf in leaves if _is_array(leaf))


def joined(rest: Any, arrays: tuple[Any, ...]) -> Any:
    """Joins what `split` has split."""
    structure, others = rest
    remaining = iter(arrays)
    leaves = [next(remaining) if other is None else other[0] for other in others]
    return jax.tree.unflatten(structure, leaves)


def _is_array(leaf: PyTree) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")
