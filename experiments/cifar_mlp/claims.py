"""What source 002 varies and concludes, and whether its conclusions hold, decided by figures alone."""

import dataclasses

import numpy as np

from experiments.cifar_mlp.programs import Hyperparameters
from jaxrobust import evaluation
from jaxrobust.studies import ANY, Facts, comparison

# Of both networks: all that the source's text says, and the same in its ablations.
OWN = {
    "one layer": Hyperparameters(
        learning_rate=5e-3, decay=0.9, regularizer=0.0, batch_size=256, width=0
    ),
    "hidden layer": Hyperparameters(
        learning_rate=0.1, decay=0.9, regularizer=0.0, batch_size=128, width=100
    ),
}
SAME = 0.01  # within a point of accuracy a hyper-parameter is said to change nothing


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network of the source; one hyper-parameter may differ from the source's own setting."""

    network: str
    hyperparameter: str | None = None
    setting: float | None = None

    @property
    def hyperparameters(self) -> Hyperparameters:
        """All of them."""
        own = OWN[self.network]
        return own._replace(**{self.hyperparameter: self.setting}) if self.hyperparameter else own

    @property
    def label(self) -> str:
        """Its name in a table of the settings."""
        return f"{self.setting:g}"

    @property
    def name(self) -> str:
        """Its name in a table of networks."""
        is_own = self.hyperparameters == OWN[self.network]
        return self.network if is_own else f"{self.network}, {self.hyperparameter} {self.label}"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One table of the source, trained by one compiled program.

    Attributes:
      network: A key of `OWN`.
      hyperparameter: What is varied; None for the network as it is.
      settings: The values, in the source's order.
      better: Pairs (setting, setting) of which, by the source's conclusion, the first has the higher
        accuracy; none where it concludes that nothing changes.
      ordered: Whether it concludes that the accuracy rises, or falls, from setting to setting.
    """

    network: str
    hyperparameter: str | None = None
    settings: tuple[float | None, ...] = (None,)
    better: tuple[tuple[float | None, float | None], ...] = ()
    ordered: bool = False

    @property
    def variants(self) -> list[Variant]:
        """One for each setting."""
        return [Variant(self.network, self.hyperparameter, value) for value in self.settings]

    @property
    def own(self) -> float:
        """The source's own setting."""
        return getattr(OWN[self.network], str(self.hyperparameter))

    @property
    def stage(self) -> str:
        """The name of the stage that trains it."""
        varied = f", {self.hyperparameter.replace('_', ' ')}" if self.hyperparameter else ""
        return f"train {self.network}{varied}"

    @property
    def keys(self) -> dict[str, str | None]:
        """What all its facts have in common."""
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
TRAINED = (Ablation("one layer"), *ABLATIONS)  # the first as it is: the main one with one layer


def conclude(facts: Facts, ablation: Ablation) -> str:
    """Compares the settings of an ablation, and judges what the source concludes from it.

    Where the facts have the test accuracy of every seed, its means and the source's, this adds the
    "difference" to the source's own setting, paired over the seeds; that of a mean "to source"; "steps
    in order", from setting to setting, that rise or fall as the source's; and every difference that is
    claimed, with the key outcome: "found" if it should be positive and its 95 % interval lies above 0,
    or if it should be none and the interval lies within a point; "reversed" if it lies outside; "open".

    Returns:
      "found"; "part": some differences are as the source says; "order": the ends are, but not all steps
      between them; "reversed": none is, and none is open; "open": none is shown; "undecided": one seed
      says nothing about chance.
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
        # Where all seeds agree to the last digit there is no interval, but the difference itself.
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
    decides = "open" if ablation.better else "reversed"  # one setting that matters is enough
    return decides if decides in outcomes else (outcomes - {"found"}).pop()
