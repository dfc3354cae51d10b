"""The settings of a run, and what --quick makes of them."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.train.options import Options
from jaxrobust.studies import suites

Method = Literal["standard", "pgd", "trades", "mart", "fgsm_rs", "n_fgsm", "free"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      models: Names of networks (`jaxrobust.models.MODELS`).
      methods: How each is trained.
      data: digits, sports10, cifar10, cifar100, cifar10_jpeg, or a folder of images.
      data_dir: Where a named data set lies.
      download: Fetch cifar10 or cifar100 into data_dir if it is not there (170 MB).
      widths: Of the network, where there is one: other than the published ones.
      training: All other settings of training.
      epsilon: Radius in pixel units, of the attacks and of training, as in 0.03 or 8/255.
      norm: Of the ball; "l2" and "l1" with pgd, mart and trades (without l1) alone.
      train_steps: Of the attack in training, for pgd, trades and mart; replays for free.
      attack_milestones: Epochs after which the attack of pgd, trades and mart is another one.
      attack_epsilons: Its radii in training, one more than milestones; none: always `epsilon`.
      attack_steps: Its steps, one more than milestones; none: always `train_steps`.
      num_train: How many training images; None: all.
      num_validation: Of them, how many decide about the best epoch instead of being trained on.
      weights: Of the best epoch or of the last.
      suite: standard, plus or rand (AutoAttack), one attack in small letters, or none.
      num_images: Test images that the suite attacks; the clean accuracy is of all of them.
      diagnostics: Whether to make the sanity checks.
      num_devices: That share each batch.
      run: Name of the run; results go to <results_dir>/train/<run>.
      results_dir: Where results go.
      quick: Few images, epochs and steps, to see that everything runs.
    """

    models: tuple[str, ...] = ("simple_cnn",)
    methods: tuple[Method, ...] = ("standard", "pgd")
    data: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    widths: tuple[int, ...] = ()
    training: Options = Options()  # noqa: RUF009 (it cannot be changed)
    epsilon: str = "8/255"
    norm: Literal["linf", "l2", "l1"] = "linf"
    train_steps: int = 10
    attack_milestones: tuple[int, ...] = ()
    attack_epsilons: tuple[str, ...] = ()
    attack_steps: tuple[int, ...] = ()
    num_train: int | None = None
    num_validation: int = 1000
    weights: Literal["best", "last"] = "best"
    suite: str = "standard"
    num_images: int = 200
    diagnostics: bool = True
    num_devices: int = 1
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False

    @property
    def radius(self) -> float:
        """Epsilon as a number."""
        return suites.number("epsilon", self.epsilon)


def shortened(config: Config) -> Config:
    """The settings of --quick."""
    # Of the stages of an attack the first and the last.
    ends = slice(None, None, max(1, len(config.attack_milestones)))
    return dataclasses.replace(
        config,
        attack_milestones=(1,) if config.attack_milestones else (),
        attack_epsilons=config.attack_epsilons[ends],
        attack_steps=tuple(min(steps, 2) for steps in config.attack_steps[ends]),
        training=dataclasses.replace(
            config.training,
            num_epochs=2,
            warmup_epochs=0,
            attack_warmup_epochs=min(config.training.attack_warmup_epochs, 1),
            awp_warmup_epochs=min(config.training.awp_warmup_epochs, 1),
        ),
        train_steps=min(config.train_steps, 2),
        num_train=min(config.num_train or 1000, 1000),
        num_validation=min(config.num_validation, 100),
        num_images=min(config.num_images, 20),
    )
