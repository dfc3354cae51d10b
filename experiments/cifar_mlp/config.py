"""The settings of the study, and what --quick makes of them."""

import dataclasses
from pathlib import Path

from jaxrobust import checks

DATA = ("cifar10_jpeg", "cifar10", "digits")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      data: cifar10_jpeg, cifar10 or digits. By default cifar10_jpeg, and digits where --quick is given
        without a --data-dir.
      data_dir: What holds the data set (data/README.md).
      download: Whether to fetch cifar10 into data_dir if it is not there.
      num_seeds: Each setting is trained with seed, seed + 1, ...
      num_epochs: Of every training; the main classifier with one layer is trained twice as long.
      num_attacked: Test images that are attacked.
      num_shown: Pictures of a kind.
      seed: The first seed.
      run: Name of the run; results go to <results_dir>/cifar_mlp/<run>.
      results_dir: Where results go.
      quick: Three epochs, two seeds, a tenth of the images: to see that everything runs.
    """

    data: str | None = None
    data_dir: Path | None = None
    download: bool = False
    num_seeds: int = 4
    num_epochs: int = 30
    num_attacked: int = 500
    num_shown: int = 5
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    def __post_init__(self) -> None:
        if self.data is not None:
            checks.one_of("data", self.data, DATA)
        checks.integer("num_seeds", self.num_seeds, minimum=1)
        checks.integer("num_epochs", self.num_epochs, minimum=1)
        checks.integer("num_attacked", self.num_attacked, minimum=1)
        checks.integer("num_shown", self.num_shown, minimum=1)
        checks.integer("seed", self.seed, minimum=0)

    @property
    def data_set(self) -> str:
        """The data set's name."""
        if self.data is not None:
            return self.data
        return "digits" if self.quick and self.data_dir is None else "cifar10_jpeg"


def quick(config: Config) -> Config:
    """The configuration that --quick stands for."""
    return dataclasses.replace(
        config,
        num_seeds=min(config.num_seeds, 2),
        num_epochs=min(config.num_epochs, 3),
        num_attacked=min(config.num_attacked, 50),
        num_shown=min(config.num_shown, 3),
    )
