"""What source 002 reports: its settings, its tables, and what it concludes from each."""

import dataclasses

# Of both classifiers: all that its text says, and the same in its ablations.
ONE_LAYER = {
    "learning_rate": 5e-3,
    "decay": 0.9,
    "regularizer": 0.0,
    "batch_size": 256,
    "width": 0,
}
HIDDEN = {
    "learning_rate": 0.1,
    "decay": 0.9,
    "regularizer": 0.0,
    "batch_size": 128,
    "width": 100,
}
ONE_LAYER_ACCURACY, HIDDEN_ACCURACY = 0.4107, 0.514
FIT_RATE = 1e-4  # of its fit by gradient descent
DIFFERENCE_NORM = 91.0  # of its fooling image, in grey levels of 0 to 255 over 3 x 32 x 32 values
FOOLED_FROM, FOOLED_TO = "truck", "automobile"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One table of the source.

    Attributes:
      network: "one layer" or "hidden layer".
      parameter: The hyper-parameter, as a field of `programs.Settings`.
      title: The hyper-parameter in words.
      values: Of the hyper-parameter, in the source's order.
      published: Its test accuracies.
      claim: What it concludes, in its words or nearly so.
      better: Pairs (value, value) of which, by the claim, the first has the higher accuracy; none
        where it claims that nothing changes.
      ordered: Whether it claims that the accuracy rises, or falls, from value to value.
    """

    network: str
    parameter: str
    title: str
    values: tuple[float, ...]
    published: tuple[float, ...]
    claim: str
    better: tuple[tuple[float, float], ...] = ()
    ordered: bool = False

    @property
    def identifier(self) -> str:
        """Its anchor in the report."""
        return f"{self.network}-{self.title}".replace(" ", "-")

    @property
    def settings(self) -> list[dict[str, float]]:
        """The settings of each value; the others are the source's own."""
        base = ONE_LAYER if self.network == "one layer" else HIDDEN
        return [base | {self.parameter: value} for value in self.values]


ABLATIONS = (
    Ablation(
        network="one layer",
        parameter="regularizer",
        title="regularizer",
        values=(0.0, 0.001, 0.01, 0.1),
        published=(0.4098, 0.4103, 0.4101, 0.4108),
        claim="the performance is not sensitive to the choice of regularizer",
    ),
    Ablation(
        network="one layer",
        parameter="batch_size",
        title="batch size",
        values=(128, 256, 512, 1024),
        published=(0.4125, 0.4111, 0.4059, 0.3997),
        claim="with a larger batch size the test accuracy is worse",
        better=((128, 1024),),
        ordered=True,
    ),
    Ablation(
        network="one layer",
        parameter="learning_rate",
        title="learning rate",
        values=(1e-3, 5e-3, 1e-2, 5e-2),
        published=(0.409, 0.4088, 0.4078, 0.3968),
        claim="when the learning rate is too large, the test accuracy is low",
        better=((1e-3, 5e-2), (5e-3, 5e-2), (1e-2, 5e-2)),
    ),
    Ablation(
        network="one layer",
        parameter="decay",
        title="decay",
        values=(1.0, 0.99, 0.9, 0.8),
        published=(0.3988, 0.4051, 0.4092, 0.4108),
        claim="without learning rate decay the test accuracy is low; the more decay, the higher",
        better=((0.9, 1.0), (0.8, 1.0)),
        ordered=True,
    ),
    Ablation(
        network="hidden layer",
        parameter="width",
        title="width",
        values=(50, 100, 150, 200),
        published=(0.503, 0.514, 0.518, 0.5272),
        claim="the larger the hidden layer, the better the test accuracy",
        better=((200, 50),),
        ordered=True,
    ),
    Ablation(
        network="hidden layer",
        parameter="batch_size",
        title="batch size",
        values=(128, 256, 512, 1024),
        published=(0.514, 0.5052, 0.4946, 0.4696),
        claim="with a larger batch size the test accuracy is worse",
        better=((128, 1024),),
        ordered=True,
    ),
    Ablation(
        network="hidden layer",
        parameter="learning_rate",
        title="learning rate",
        values=(0.2, 0.1, 0.05, 0.01),
        published=(0.4944, 0.514, 0.4996, 0.4621),
        claim="when the learning rate is too large or too low, the test accuracy is low",
        better=((0.1, 0.2), (0.1, 0.01)),
    ),
    Ablation(
        network="hidden layer",
        parameter="decay",
        title="decay",
        values=(1.0, 0.99, 0.9, 0.8),
        published=(0.4844, 0.4941, 0.514, 0.5024),
        claim="without decay the test accuracy is very low, and too much of it costs accuracy too",
        better=((0.9, 1.0), (0.9, 0.8)),
    ),
)
