"""The settings of a training run."""

import dataclasses
from typing import Literal, get_args

from jaxrobust import checks

OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["constant", "cosine", "step", "plateau"]
DecayedWeights = Literal["all", "kernels"]
Monitor = Literal["validation_loss", "validation_accuracy"]
LossName = Literal["cross_entropy", "trades"]
ComputeType = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything about a training run that is a number or a name; tyro shows it as options.

    Two runs with the same TrainConfig, model, data, augmentation and attack give the same result.

    Attributes:
      num_epochs: Passes over the training set, at least 1.
      batch_size: Images in a step. The examples that do not fill the last batch of an epoch are
        left out of it; as each epoch is shuffled anew, all are left out equally often.
      optimizer: "adamw" (decoupled weight decay), "adam" (weight decay added to the gradient, as in
        PyTorch's Adam) or "sgd" (likewise, with momentum).
      learning_rate: Of the first step, or of the end of the warm-up. Above 0.
      weight_decay: At least 0.
      decayed_weights: What decays: "all" parameters, the default of PyTorch and optax, or the
        "kernels" only, which spares biases and the scales of normalisation.
      momentum: Of "sgd", in [0, 1).
      nesterov: Nesterov's momentum, for "sgd".
      schedule: "constant", "cosine" (to 0 at the last step), "step" (times `step_factor` at the
        milestones) or "plateau" (times `plateau_factor` when `monitor` stops improving).
      warmup_epochs: The learning rate grows linearly over so many epochs first; any schedule.
      milestones: Epochs after which "step" lowers the learning rate, ascending.
      step_factor: In (0, 1].
      plateau_factor: In (0, 1).
      plateau_patience: Epochs without improvement that are borne; the next one lowers the rate.
      gradient_clip: The gradient's largest global l2 norm; None: not clipped.
      label_smoothing: Probability spread evenly over all classes, in [0, 1).
      loss: Of adversarial training: "cross_entropy" of the adversarial images, or "trades", which
        compares them with the clean ones.
      natural_weight: Share of the clean images' cross-entropy in the loss "cross_entropy", in [0, 1).
      trades_beta: Weight of the divergence in "trades", above 0.
      attack_warmup_epochs: The attack's epsilon and step size grow linearly over so many epochs.
      awp_gamma: Of adversarial weight perturbation: the gradient is taken where the weights are this
        share of their length up the loss. 0: it is left out.
      awp_warmup_epochs: Epochs before weights are perturbed.
      compute_type: "float32", or "bfloat16" for the passes of training and of its attack; weights,
        statistics and sums stay float32.
      early_stopping_patience: Stop after so many epochs without a new best; None: never.
      monitor: The figure that decides about the best epoch, the plateau and early stopping.
      ema_decay: Validate and return an exponential moving average of the weights; None: the
        weights.
      seed: Of the initial weights, the order of the examples, augmentation, attack and dropout.

    Raises:
      TypeError: A setting of the wrong type.
      ValueError: A setting out of range, an unknown name.

    Example:
      >>> TrainConfig(optimizer="sgd", learning_rate=0.1, schedule="cosine").num_epochs
      30
    """

    num_epochs: int = 30
    batch_size: int = 32
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    decayed_weights: DecayedWeights = "all"
    momentum: float = 0.9
    nesterov: bool = False
    schedule: ScheduleName = "constant"
    warmup_epochs: int = 0
    milestones: tuple[int, ...] = ()
    step_factor: float = 0.1
    plateau_factor: float = 0.5
    plateau_patience: int = 3
    gradient_clip: float | None = None
    label_smoothing: float = 0.0
    loss: LossName = "cross_entropy"
    natural_weight: float = 0.0
    trades_beta: float = 6.0
    attack_warmup_epochs: int = 0
    awp_gamma: float = 0.0
    awp_warmup_epochs: int = 0
    compute_type: ComputeType = "float32"
    early_stopping_patience: int | None = None
    monitor: Monitor = "validation_loss"
    ema_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.integer("num_epochs", self.num_epochs, minimum=1)
        checks.integer("batch_size", self.batch_size, minimum=1)
        checks.one_of("optimizer", self.optimizer, get_args(OptimizerName))
        checks.number("learning_rate", self.learning_rate, above=0.0)
        checks.number("weight_decay", self.weight_decay, minimum=0.0)
        checks.one_of("decayed_weights", self.decayed_weights, get_args(DecayedWeights))
        _fraction("momentum", self.momentum)
        checks.one_of("schedule", self.schedule, get_args(ScheduleName))
        checks.integer("warmup_epochs", self.warmup_epochs, minimum=0)
        if self.warmup_epochs >= self.num_epochs:
            raise ValueError(
                f"`warmup_epochs` must be less than `num_epochs` = {self.num_epochs}, "
                f"got {self.warmup_epochs}."
            )
        for milestone in self.milestones:
            checks.integer("milestones", milestone, minimum=1)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"`milestones` must ascend, got {tuple(self.milestones)}.")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError(
                '`milestones` and schedule "step" need each other, '
                f"got schedule {self.schedule!r} with milestones {tuple(self.milestones)}."
            )
        checks.number("step_factor", self.step_factor, above=0.0, maximum=1.0)
        _fraction("plateau_factor", self.plateau_factor)
        checks.number("plateau_factor", self.plateau_factor, above=0.0)
        checks.integer("plateau_patience", self.plateau_patience, minimum=0)
        if self.gradient_clip is not None:
            checks.number("gradient_clip", self.gradient_clip, above=0.0)
        _fraction("label_smoothing", self.label_smoothing)
        checks.one_of("loss", self.loss, get_args(LossName))
        _fraction("natural_weight", self.natural_weight)
        if self.natural_weight and self.loss != "cross_entropy":
            raise ValueError('`natural_weight` is of the loss "cross_entropy", not of "trades".')
        checks.number("trades_beta", self.trades_beta, above=0.0)
        checks.integer("attack_warmup_epochs", self.attack_warmup_epochs, minimum=0)
        checks.number("awp_gamma", self.awp_gamma, minimum=0.0)
        checks.integer("awp_warmup_epochs", self.awp_warmup_epochs, minimum=0)
        checks.one_of("compute_type", self.compute_type, get_args(ComputeType))
        for name in ("attack_warmup_epochs", "awp_warmup_epochs"):
            if getattr(self, name) > self.num_epochs:
                raise ValueError(
                    f"`{name}` must be at most `num_epochs` = {self.num_epochs}, "
                    f"got {getattr(self, name)}."
                )
        if self.early_stopping_patience is not None:
            checks.integer("early_stopping_patience", self.early_stopping_patience, minimum=1)
        checks.one_of("monitor", self.monitor, get_args(Monitor))
        if self.ema_decay is not None:
            _fraction("ema_decay", self.ema_decay)
        checks.integer("seed", self.seed, minimum=0)

    @property
    def needs_validation(self) -> bool:
        """Whether a setting decides by a figure of the validation set."""
        return self.schedule == "plateau" or self.early_stopping_patience is not None


def _fraction(name: str, value: float) -> None:
    checks.number(name, value, minimum=0.0, maximum=1.0)
    if value == 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {value!r}.")
