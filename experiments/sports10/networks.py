"""The networks of the study and how each is trained."""

import dataclasses

from jaxrobust import data, training


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A network and its training.

    Attributes:
      model: Its name in `jaxrobust.models`.
      image_size: Side of the images that it takes, in pixels.
      config: Of the training; the seed is set for each run.
      augment: Of the training images.
      source: Where it comes from, for the report.
      fine_tuning_epochs: After pruning.
      max_seeds: Train with so many seeds at most, where a training is slow.
      folds: Whether to cross-validate it.
      swept: Whether all seeds are pruned to every sparsity; else all but the first to the highest
        alone.
      slow: Whether its attacks take so long that some are left out.
    """

    model: str
    image_size: int
    config: training.TrainConfig
    augment: data.augment.Augmentation | data.Erasing
    source: str
    fine_tuning_epochs: int = 10
    max_seeds: int = 5
    folds: bool = True
    swept: bool = True
    slow: bool = False


_REPORT_A = training.TrainConfig(num_epochs=60, schedule="cosine", weight_decay=1e-4)
_REPORT_B = training.TrainConfig(num_epochs=50, optimizer="adam", schedule="cosine")

# Chosen by training photographs alone, two folds of five (638 photographs held out, another split than
# the study's), one seed; right of them: 60 epochs with report A's augmentation 496; 80 epochs with
# stronger crops and colours 501; with erasing besides 505, the one taken: the differences are within
# chance. On the first fold alone (319), after 40 epochs with report A's augmentation: 32 pixels
# 239, 64 pixels 256 and 255 (two networks), 96 pixels 265, where a residual network had 254. On both
# folds 96 pixels had 502 after 40 epochs at more than twice the time. Averaging the answers to an
# image and its mirror image: 504 for 505. No test photograph was looked at.
_OURS = training.TrainConfig(
    num_epochs=80,
    optimizer="sgd",
    nesterov=True,
    learning_rate=0.05,
    weight_decay=5e-4,
    schedule="cosine",
    label_smoothing=0.1,
    ema_decay=0.998,
)

RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(
        "mlp",
        32,
        training.TrainConfig(num_epochs=30, schedule="cosine", weight_decay=1e-5),
        data.augment.SPORTS10_A,
        "report A's network, augmentation, optimizer and epochs; the learning rate falls on a "
        "cosine, where the report lowers it by the test loss",
    ),
    "cnn": Recipe(
        "cnn",
        32,
        _REPORT_A,
        data.augment.SPORTS10_A,
        "report A's network and training, likewise",
        max_seeds=3,
        folds=False,
        swept=False,
    ),
    "simple_cnn": Recipe(
        "simple_cnn",
        32,
        _REPORT_B,
        data.augment.SPORTS10_B,
        "report B's network, augmentation and optimizer; no early stopping by the test photographs",
    ),
    "resnet_small": Recipe(
        "resnet_small",
        32,
        dataclasses.replace(_REPORT_B, num_epochs=12),
        data.augment.SPORTS10_B,
        "report B's network and training, likewise; 12 epochs instead of 50",
        fine_tuning_epochs=3,
        max_seeds=1,
        folds=False,
        slow=True,
    ),
    "photo_cnn": Recipe(
        "photo_cnn",
        64,
        _OURS,
        data.Erasing(
            dataclasses.replace(
                data.augment.SPORTS10_A,
                crop_scale=(0.35, 1.0),
                brightness=0.3,
                contrast=0.3,
                saturation=0.3,
            ),
            side=24,
        ),
        "ours: convolutions behind one of stride 2, so that it sees 64x64 pixels",
        swept=False,
    ),
}

# That of both reports, but for the number of epochs where a recipe names another.
FINE_TUNING = training.TrainConfig(
    optimizer="adam", learning_rate=1e-4, weight_decay=0.0, schedule="constant"
)
