"""The ablations and conclusions of source 002, and tests of whether its conclusions hold."""

import dataclasses

import numpy as np

from experiments.cifar_mlp.programs import Hyperparameters
from jaxrobust import evaluation
from jaxrobust.studies import ANY, Facts, comparison

# The hyper-parameters of both networks, as far as the source's text gives them; its ablations have the
# same, except for the one that they vary.
OWN = {
    "one layer": Hyperparameters(
        learning_rate=5e-3, decay=0.9, regularizer=0.0, batch_size=256, width=0
    ),
    "hidden layer": Hyperparameters(
        learning_rate=0.1, decay=0.9, regularizer=0.0, batch_size=128, width=100
    ),
}
SAME = (
    0.01  # a hyper-parameter that changes accuracy by less than a point is said to change nothing
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network of the source; one hyper-parameter may differ from the source's own setting."""

    network: str
    hyperparameter: str | None = None
    setting: float | None = None

    @property
    def hyperparameters(self) -> Hyperparameters:
        """All hyper-parameters of this variant."""
        own = OWN[self.network]
        return own._replace(**{self.hyperparameter: self.setting}) if self.hyperparameter else own

    @property
    def label(self) -> str:
        """The name in a table of the settings."""
        return f"{self.setting:g}"

    @property
    def name(self) -> str:
        """The name in a table of networks."""
        is_own = self.hyperparameters == OWN[self.network]
        return self.network if is_own else f"{self.network}, {self.hyperparameter} {self.label}"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One table of the source, trained by one compiled program.

    Attributes:
      network: A key of `OWN`.
      hyperparameter: The hyper-parameter that is varied; None for the network without a change.
      settings: The values, in the source's order.
      better: Pairs (setting, setting); the source concludes that the first has the higher accuracy.
        Empty if it concludes that nothing changes.
      ordered: Whether the source concludes that the accuracy rises, or falls, from setting to setting.
    """

    network: str
    hyperparameter: str | None = None
    settings: tuple[float | None, ...] = (None,)
    better: tuple[tuple[float | None, float | None], ...] = ()
    ordered: bool = False

    @property
    def variants(self) -> list[Variant]:
        """One variant for each setting."""
        return [Variant(self.network, self.hyperparameter, value) for value in self.settings]

    @property
    def own(self) -> float:
        """The source's own setting."""
        return getattr(OWN[self.network], str(self.hyperparameter))

    @property
    def stage(self) -> str:
        """The name of the stage that trains this ablation."""
        varied = f", {self.hyperparameter.replace('_', ' ')}" if self.hyperparameter else ""
        return f"train {self.network}{varied}"

    @property
    def section(self) -> str:
        """The id of its section in the report."""
        return f"{self.network}-{self.hyperparameter}".replace(" ", "-").replace("_", "-")

    @property
    def keys(self) -> dict[str, str | None]:
        """The keys that all facts of this ablation share."""
        return {"network": self.network, "hyperparameter": self.hyperparameter}


BATCHES, DECAYS = (128, 256, 512, 1024), (1.0, 0.99, 0.9, 0.8)
ABLATIONS = (
    Ablation("one layer", "regularizer", (0.0, 1e-3, 1e-2, 0.1)),
    Ablation("one layer", "batch_size", BATCHES, ((128, 1024),), ordered=True),
    Ablation(
        "one layer",
        "learning_rate",
        (1e-3, 5e-3, 1e-2, 5e-2),
        ((1e-3, 5e-2), (5e-3, 5e-2), (1e-2, 5e-2)),
    ),
    Ablation("one layer", "decay", DECAYS, ((0.9, 1.0), (0.8, 1.0)), ordered=True),
    Ablation("hidden layer", "width", (50, 100, 150, 200), ((200, 50),), ordered=True),
    Ablation("hidden layer", "batch_size", BATCHES, ((128, 1024),), ordered=True),
    Ablation("hidden layer", "learning_rate", (0.2, 0.1, 0.05, 0.01), ((0.1, 0.2), (0.1, 0.01))),
    Ablation("hidden layer", "decay", DECAYS, ((0.9, 1.0), (0.9, 0.8))),
)
TRAINED = (Ablation("one layer"), *ABLATIONS)  # the first is the main network with one layer


def conclude(facts: Facts, ablation: Ablation) -> str:
    """Compares the settings of an ablation, and judges the source's conclusion from it.

    The facts must have the test accuracy of every seed, the means over the seeds, and the source's.
    This adds four measures:

    - "difference": to the source's own setting, paired over the seeds;
    - "to source": of a mean to the source's figure;
    - "steps in order": for each step from setting to setting, whether it rises or falls as the
      source's;
    - "claimed difference": every difference that the source claims, with the key outcome. The outcome
      of a positive difference is "found" if its 95 % interval is above 0 and "reversed" if it is below
      0; that of no difference is "found" if the interval is within a point of 0 and "reversed" if it is
      outside; otherwise it is "open".

    Returns:
      "found": all differences are as the source says; "part": some are; "order": all are, but not all
      steps between the ends are in order; "reversed": all are reversed or, if the source claims no
      difference, at least one is; "open": otherwise; "undecided": one seed says nothing about chance.
    """
    own = ablation.own
    means = facts.where("test accuracy", ablation.keys, setting=ANY)
    gaps = comparison.less(facts, means, lambda keys: keys | {"source": "002"}, "to source")
    published = facts.where("test accuracy", ablation.keys, setting=ANY, source="002")
    rows = np.array([[fact.value for fact in row] for row in (means, published)], float)
    ours, theirs = np.sign(np.diff(rows))
    in_order = facts.add("steps in order", ablation.keys, outcomes=ours == theirs).value == 1
    measured = facts.where("test accuracy", ablation.keys, setting=ANY, seed=ANY)
    others = [fact for fact in measured if fact.keys["setting"] != own]
    to_own = comparison.over_seeds(facts, others, lambda k: k | {"setting": own}, "difference")
    facts.extend(gaps + to_own)

    outcomes = set()
    for pair in ablation.better or [(s, own) for s in ablation.settings if s != own]:
        sides = [[f.value for f in measured if f.keys["setting"] == setting] for setting in pair]
        gap = evaluation.paired_mean_difference(*np.array(sides, float))
        if gap["n"] == 1:
            return "undecided"
        # If all seeds agree to the last digit, there is no interval, and the mean takes its place.
        low, high = (gap["mean"] if end is None else end for end in (gap["low"], gap["high"]))
        found, turned = low > 0, high < 0
        if not ablation.better:
            found, turned = max(-low, high) <= SAME, max(low, -high) > SAME
        of = {"setting": pair[0], "control": pair[1]}
        outcome = "found" if found else "reversed" if turned else "open"
        figures = {"value": gap["mean"], "low": low, "high": high, "n": gap["n"]}
        facts.add("claimed difference", ablation.keys | of, outcome=outcome, **figures)
        outcomes.add(outcome)
    if outcomes == {"found"}:
        return "order" if ablation.ordered and not in_order else "found"
    if ablation.better and "found" in outcomes:
        return "part"
    decides = (
        "open" if ablation.better else "reversed"
    )  # one setting that changes accuracy is enough
    return decides if decides in outcomes else (outcomes - {"found"}).pop()
