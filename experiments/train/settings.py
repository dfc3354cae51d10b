"""The settings of a training run, with a preset for a quick run."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxrobust.studies import suite_names

Method = Literal["standard", "pgd", "trades", "mart", "fgsm_rs", "n_fgsm", "free"]


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of training; see `jaxrobust.training.Recipe` and its values.

    Attributes:
      num_epochs: The number of passes over the training set.
      batch_size: The number of images in a step.
      optimizer: adamw, adam or sgd.
      learning_rate: The learning rate at the first step, or at the end of the warm-up.
      weight_decay: The coefficient of the weight decay, 0 or more.
      decayed_weights: The parameters that decay: all, or only the kernels.
      momentum: The momentum of sgd.
      nesterov: Whether sgd has Nesterov's momentum.
      gradient_clip: The largest global l2 norm of a gradient; None: no clipping.
      schedule: constant, cosine (falls to 0), step (falls at milestones) or plateau (falls when
        `monitor` stops improving).
      warmup_epochs: The number of epochs in which the learning rate grows linearly at the start.
      milestones: The epochs after which step lowers the learning rate.
      factor: The factor by which the learning rate falls; None: 0.1 in step, 0.5 in plateau.
      patience: How many epochs in a row may bring no improvement before plateau lowers the rate.
      label_smoothing: The probability spread evenly over all classes; mart has none.
      natural_weight: The weight of the clean images in the loss of pgd, fgsm_rs and n_fgsm.
      beta: The weight of the divergence in trades and mart; None: 6 in trades, 5 in mart.
      attack_warmup_epochs: The number of epochs in which epsilon and step size grow linearly.
      awp_gamma: The relative size of the adversarial weight perturbation; 0: none.
      awp_warmup_epochs: The number of epochs before weights are perturbed.
      ema_decay: The decay of the moving average of the weights, which is validated; None: no average.
      precision: float32, or bfloat16 for the passes of training and of its attack.
      monitor: The figure that decides about the best epoch, the plateau and early stopping.
      early_stopping_patience: Stop after this number of epochs without a new best; None: never.
      seed: The seed of everything random.
    """

    num_epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    decayed_weights: Literal["all", "kernels"] = "all"
    momentum: float = 0.9
    nesterov: bool = True
    gradient_clip: float | None = None
    schedule: Literal["constant", "cosine", "step", "plateau"] = "cosine"
    warmup_epochs: int = 1
    milestones: tuple[int, ...] = ()
    factor: float | None = None
    patience: int = 3
    label_smoothing: float = 0.0
    natural_weight: float = 0.0
    beta: float | None = None
    attack_warmup_epochs: int = 0
    awp_gamma: float = 0.0
    awp_warmup_epochs: int = 0
    ema_decay: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_accuracy"
    early_stopping_patience: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings.

    Attributes:
      models: The names of the networks (`jaxrobust.models.MODELS`).
      methods: The methods by which each network is trained.
      data: digits, sports10, cifar10, cifar100, cifar10_jpeg, or a folder of images.
      data_dir: The folder of a named data set.
      download: Download cifar10 or cifar100 to data_dir if it is missing (170 MB).
      widths: The widths of the layers, if they are not the published ones.
      training: All other settings of training.
      epsilon: The radius of the attacks and of the training in pixel units, such as 0.03 or 8/255.
      norm: The norm of the ball; trades has no l1, and fgsm_rs, n_fgsm and free have only linf.
      train_steps: The steps of the training attack in pgd, trades and mart; the replays in free.
      attack_milestones: The epochs after which the attack of pgd, trades and mart changes its stage.
      attack_epsilons: The radii of the stages, one more than milestones; empty: always `epsilon`.
      attack_steps: The steps of the stages, one more than milestones; empty: always `train_steps`.
      num_train: The number of training images; None: all.
      num_validation: The number of these that are held out to choose the best epoch.
      weights: The weights that are attacked: those after the best epoch or after the last.
      suite: standard, plus or rand (AutoAttack), one attack in lower case, or none.
      num_images: The number of attacked test images; the clean accuracy is of all test images.
      diagnostics: Whether to make the sanity checks.
      num_devices: The number of devices of each process that share each batch.
      run: The name of the run; results go to <results_dir>/train/<run>.
      results_dir: The folder of all results.
      quick: Use few images, epochs and steps, unless others are given, to see that everything runs.
      processes: To run the same command in several processes, which share the batches and the images
        (docs/scale.md): auto on SLURM, Kubernetes, Open MPI and TPU pods, or HOST:PORT,NUMBER,INDEX.
    """

    models: tuple[str, ...] = ("simple_cnn",)
    methods: tuple[Method, ...] = ("standard", "pgd")
    data: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    widths: tuple[int, ...] = ()
    training: Options = Options()
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
    processes: str | None = None

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.training.seed

    @property
    def radius(self) -> float:
        """Epsilon as a number."""
        return suite_names.number("epsilon", self.epsilon)


PRESETS = {
    "quick": {
        "training": Options(num_epochs=2, warmup_epochs=0),
        "train_steps": 2,
        "num_train": 1000,
        "num_validation": 100,
        "num_images": 20,
    }
}
