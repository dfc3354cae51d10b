"""How an evaluation is run: settings on which its figures depend only through rounding."""

import dataclasses
import os
from pathlib import Path

from jaxrobust import checks
from jaxrobust.types import Progress

SEARCH_TYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How attacks on many images are run.

    Attributes:
      num_lanes: How many images, or restarts of images, to attack at a time, at least 1. On the CPU it
        is rounded up to groups of 4 to 7 on each device.
      search_type: "float32", or "bfloat16" to search in bfloat16 on a device that is faster in it.
        Every success is verified in float32. Images that fail this are attacked again in float32, and
        so are images that met NaN, and images whose best point is as close to a success as the rounding
        of bfloat16 moves the margin of any best point. The search may find fewer or more successes than
        in float32. If the classifier is not a pytree, only the images are cast, not its weights.
      path: Where to save the results and the attacks under way every 30 seconds, so that a killed run
        can be resumed: a file (.npz) for an attack, a folder for a suite. With another number of lanes,
        or of devices that cannot share the lanes, the attacks under way start again. Each process of
        `jax.distributed` has a file of its own beside it, and all of them must see the same folder.
      progress: Called with (name of the work, number done, number in all). An attack counts questions
        to the classifier: num_steps + 1 for each restart of each image, needed or not.

    Raises:
      TypeError: `num_lanes` is not an integer.
      ValueError: `num_lanes` is below 1, or `search_type` is unknown.

    Example:
      >>> Execution(path="suite").part("APGD-CE", file="0_APGD_CE").path.as_posix()
      'suite/0_APGD_CE.npz'
    """

    num_lanes: int = 128
    search_type: str = "float32"
    path: str | os.PathLike[str] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        checks.integer("num_lanes", self.num_lanes, minimum=1)
        checks.one_of("search_type", self.search_type, SEARCH_TYPES)

    def part(self, name: str, file: str | None = None) -> "Execution":
        """Returns the execution of one attack of several, which reports progress under its own name.

        Args:
          name: The name that is passed to `progress`.
          file: The name, without ".npz", of the attack's file in the folder `path`; by default `name`.
        """
        path = None if self.path is None else Path(self.path) / f"{file or name}.npz"
        told = self.progress
        named = None if told is None else lambda _, done, total: told(name, done, total)
        return dataclasses.replace(self, path=path, progress=named)

    def tell(self, name: str, done: int, total: int) -> None:
        """Calls `progress`, unless it is None."""
        if self.progress is not None:
            self.progress(name, done, total)

    def refuse(self, field: str, function: str, instead: str) -> None:
        """Raises ValueError if a field is set that a function does not support.

        Args:
          field: The name of the field.
          function: The name of the function.
          instead: A sentence that says what to do instead.
        """
        value, default = getattr(self, field), getattr(Execution(), field)
        if value != default:
            raise ValueError(
                f"`execution.{field}` must be {default!r} for `{function}`, got {value!r}. {instead}"
            )


def check_execution(execution: Execution) -> None:
    """Raises TypeError unless this is an `Execution`: four arguments of before are one value now."""
    such_as = "an evaluation.Execution, such as Execution(num_lanes=64, progress=print)"
    checks.instance("execution", execution, Execution, such_as)


KEEP_IT = (
    "The function keeps no state: run it as a stage (`jaxrobust.studies.Stages.remember`), which keeps "
    "the result, or use `attack_dataset`, which keeps its own state."
)
"""The advice in the error of a function that does not support `path`."""
