"""The networks of the study and how each is trained."""

import dataclasses
from typing import Literal

from jaxrobust import data, training


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and its training."""

    model: str  # its name in `jaxrobust.models`
    image_size: int  # side of the images that it takes, in pixels
    training: training.Recipe  # the seed is set for each run
    source: str  # where it comes from, for the report
    # What the schedule or early stopping watches, if the recipe needs it: "split", a tenth of the
    # training photographs, which are then not trained on; "test", the test photographs.
    watches: Literal["split", "test"] = "split"
    epoch: Literal["last", "best"] = "last"  # whose weights are kept; "best" by what is watched
    fine_tuning_epochs: int = 10  # after pruning
    max_seeds: int = 5  # fewer for a network that trains slowly
    folds: bool = True  # whether it is cross-validated
    swept: bool = True  # whether all seeds are pruned to every sparsity, not only to the highest
    slow: bool = False  # whether its attacks take so long that some are left out


_REPORT_A = training.Recipe(
    num_epochs=60, schedule=training.Cosine(), augmentation=data.augment.SPORTS10_A
)
_REPORT_B = training.Recipe(
    num_epochs=50,
    optimizer=training.Adam(),
    schedule=training.Cosine(),
    augmentation=data.augment.SPORTS10_B,
)

# The recipes as the reports have them. A calls its accuracies final, and does not say of which epoch;
# B's are those of the best epoch by the test photographs.
_PLATEAU_A = dataclasses.replace(_REPORT_A, schedule=training.Plateau(1e-3, factor=0.5, patience=3))
_STOPPED_B = dataclasses.replace(
    _REPORT_B, validation=training.Validation(early_stopping_patience=10)
)

# Chosen on training photographs alone. The search used no test photograph. But when the training size
# and the epochs were chosen, it was known how many test photographs the recipe of 80 epochs at 64
# pixels has right (42, 43, 45, 44, 43 of 50).
#
# Size and augmentation were chosen on two folds of another split than the study's (638 photographs held
# out, one seed). Right of these: 60 epochs with report A's augmentation 496; 80 epochs with stronger
# crops and colours 501, and with erasing too 505. The differences are within chance. On the first fold
# alone (319 photographs), after 40 epochs with report A's augmentation: 32 pixels 239, 64 pixels 256
# and 255 (two networks), 96 pixels 265, where a residual network had 254. On both folds 96 pixels had
# 502 after 40 epochs, in more than twice the time.
#
# Training size and epochs were chosen on the study's own five folds (1,593 photographs, one seed,
# images of 64 pixels to answer). Right of these: trained at 64 pixels 1,203 after 40 epochs and 1,262
# after 80; at 64 pixels cut out of 96 1,176 after 40; at 48 pixels 1,236 after 70 and 1,291 after 200
# (0.7 seconds an epoch, at 64 pixels 2.0). The network of 80 epochs at 64 pixels had 1,283 on images
# enlarged to 80, and 1,290 by the mean of both sizes; averaging with the mirror image changed this by
# at most 10.
_OURS = training.Recipe(
    num_epochs=200,
    optimizer=training.SGD(nesterov=True, weight_decay=5e-4),
    schedule=training.Cosine(0.05),
    objective=training.CrossEntropy(label_smoothing=0.1),
    averaging=training.EMA(0.998),
    augmentation=data.Resized(
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
)

SUBJECTS: dict[str, Subject] = {
    "mlp": Subject(
        "mlp",
        32,
        training.Recipe(
            num_epochs=30,
            optimizer=training.AdamW(weight_decay=1e-5),
            schedule=training.Cosine(),
            augmentation=data.augment.SPORTS10_A,
        ),
        "report A's network, augmentation and optimizer; the learning rate falls on a cosine, "
        "where the report lowers it by the test loss",
    ),
    "cnn": Subject(
        "cnn",
        32,
        _REPORT_A,
        "report A's network and training, likewise",
        swept=False,
    ),
    "simple_cnn": Subject(
        "simple_cnn",
        32,
        _REPORT_B,
        "report B's network, augmentation and optimizer; no early stopping by the test photographs",
    ),
    "resnet_small": Subject(
        "resnet_small",
        32,
        dataclasses.replace(_REPORT_B, num_epochs=12),
        "report B's network and training, likewise, but for the report's 50 epochs",
        fine_tuning_epochs=3,
        max_seeds=1,
        folds=False,
        slow=True,
    ),
    "photo_cnn": Subject(
        "photo_cnn",
        64,
        _OURS,
        "ours: convolutions behind one of stride 2, so that it sees 64x64 pixels; trained at 48x48, "
        "where crops look as large as photographs do at 64",
        swept=False,
    ),
    # These are trained only if `models` names them, as the preset "source" does.
    "cnn_plateau": Subject(
        "cnn",
        32,
        _PLATEAU_A,
        "report A's network and training; the learning rate is halved after more than 3 epochs "
        "without a lower loss on a tenth of the training photographs, which are held out",
        swept=False,
    ),
    "cnn_plateau_by_test": Subject(
        "cnn",
        32,
        _PLATEAU_A,
        "report A's network and training as they are, with the learning rate lowered by the loss on "
        "the test photographs: its figures on these are a little too good",
        watches="test",
        swept=False,
    ),
    "simple_cnn_stopped": Subject(
        "simple_cnn",
        32,
        _STOPPED_B,
        "report B's network and training, stopped after 10 epochs without a lower loss on a tenth of "
        "the training photographs, which are held out; the weights of the best epoch by this loss",
        epoch="best",
        swept=False,
    ),
    "resnet_small_stopped": Subject(
        "resnet_small",
        32,
        _STOPPED_B,
        "report B's network and training with all of its 50 epochs, stopped likewise",
        max_seeds=3,
        epoch="best",
        slow=True,
    ),
}
DEFAULT = ("mlp", "cnn", "simple_cnn", "resnet_small", "photo_cnn")

# The fine-tuning of both reports; a subject may have another number of epochs, and the augmentation is
# that of the network's training.
FINE_TUNING = training.Recipe(
    optimizer=training.Adam(weight_decay=0.0), schedule=training.Constant(1e-4)
)
