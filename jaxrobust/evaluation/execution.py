"""How an evaluation runs: what its figures do not depend on, but for rounding."""

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
      num_lanes: How many images, or restarts of images, at a time; on the CPU rounded up to groups of 4
        to 7 on each device.
      search_type: "float32", or "bfloat16" to search in that type, where a device is faster in it.
        Every success is verified in float32, and what fails that is attacked once more in float32. The
        search takes other ways then: it may miss what float32 finds, or find more. Of a function that
        is no pytree only the images are cast, not the weights inside it.
      path: Keeps what was found and the lanes as they stand, every 30 seconds: what was killed goes on
        from it. The file (.npz) of an attack, the folder of a suite. With another number of lanes, or
        of devices that cannot share these, what was under way starts anew.
      progress: Called with (what is under way, done, in all). An attack counts questions to the
        classifier: num_steps + 1 for each restart of each image, whether it needs all of them or not.

    Raises:
      TypeError: A number of lanes that is no integer.
      ValueError: A number of lanes below 1, or another search type.

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
        """How one attack of several is run: its progress goes by its name.

        Args:
          name: What `progress` is told.
          file: The name, without ".npz", of its file in the folder `path`.
        """
        path = None if self.path is None else Path(self.path) / f"{file or name}.npz"
        told = self.progress
        named = None if told is None else lambda _, done, total: told(name, done, total)
        return dataclasses.replace(self, path=path, progress=named)

    def tell(self, name: str, done: int, total: int) -> None:
        """Calls `progress`, if there is one."""
        if self.progress is not None:
            self.progress(name, done, total)

    def refuse(self, field: str, function: str, instead: str) -> None:
        """Raises ValueError where a field is set that a function cannot obey.

        `instead` says what to do, a sentence; `function` is the one whose `execution` this is.
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
    "It keeps no state: run it as a stage (`jaxrobust.studies.Stages.remember`), which keeps the "
    "result, or attack with `attack_dataset`, which keeps its own."
)
"""What to do where `path` is refused."""
