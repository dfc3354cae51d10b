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
    augment: data.augment.Augmentation | data.Resized
    source: str
    fine_tuning_epochs: int = 10
    max_seeds: int = 5
    folds: bool = True
    swept: bool = True
    slow: bool = False


_REPORT_A = training.TrainConfig(num_epochs=60, schedule="cosine", weight_decay=1e-4)
_REPORT_B = training.TrainConfig(num_epochs=50, optimizer="adam", schedule="cosine")

# Chosen by training photographs alone. The search looked at no test photograph, but what the recipe
# of 80 epochs at 64 pixels has right of them (42, 43, 45, 44, 43 of 50) was known when the training
# size and the epochs were chosen.
#
# Size and augmentation, on two folds of another split than the study's (638 photographs held out, one
# seed), right of them: 60 epochs with report A's augmentation 496; 80 epochs with stronger crops and
# colours 501; with erasing besides 505: the differences are within chance. On the first fold alone
# (319), after 40 epochs with report A's augmentation: 32 pixels 239, 64 pixels 256 and 255 (two
# networks), 96 pixels 265, where a residual network had 254. On both folds 96 pixels had 502 after 40
# epochs at more than twice the time.
#
# Training size and epochs, on the study's own five folds (1,593, one seed), right of them answering
# images of 64 pixels: trained at 64 pixels 1,203 after 40 epochs and 1,262 after 80; at 64 pixels cut
# out of 96 1,176 after 40; at 48 pixels 1,236 after 70 and 1,291 after 200 (0.7 seconds an epoch, at
# 64 pixels 2.0). The network of 80 epochs at 64 had 1,283 on its images enlarged to 80 and 1,290 by the
# mean of both sizes; averaging with the mirror image gave at most 10 more or less.
_OURS = training.TrainConfig(
    num_epochs=200,
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
        "report A's network, augmentation and optimizer; the learning rate falls on a cosine, "
        "where the report lowers it by the test loss",
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
        "report B's network and training, likewise, but for the report's 50 epochs",
        fine_tuning_epochs=3,
        max_seeds=1,
        folds=False,
        slow=True,
    ),
    "photo_cnn": Recipe(
        "photo_cnn",
        64,
        _OURS,
        data.Resized(
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
            side=48,
        ),
        "ours: convolutions behind one of stride 2, so that it sees 64x64 pixels; trained at 48x48, "
        "where crops look as large as photographs do at 64",
        swept=False,
    ),
}

# That of both reports, but for the number of epochs where a recipe names another.
FINE_TUNING = training.TrainConfig(
    optimizer="adam", learning_rate=1e-4, weight_decay=0.0, schedule="constant"
)
