"""Measures accuracy and robustness of four networks under filter pruning, as in source 003.

    python -m experiments.pruned_benchmark --data cifar10_jpeg --data-dir DIR
    python -m experiments.pruned_benchmark --data cifar10_jpeg --data-dir DIR --preset cpu
    python -m experiments.pruned_benchmark --quick

DIR has the data set (data/README.md); --quick without it runs on scikit-learn's digits, offline. Base
networks are trained, then pruned during fine-tuning, and their filters are removed from the arrays;
controls are fine-tuned in the same way without pruning. Nothing is chosen by test images: every figure
is of the last epoch. If a run is killed or stopped, the same command resumes it. Expected time and
numbers: docs/results/index.md.

Source: 003, "Benchmarking Adversarial Robustness of Compressed Deep Learning Models".
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.pruned_benchmark import comparisons, networks, threats
from experiments.pruned_benchmark.networks import Labelled, Network
from experiments.pruned_benchmark.threats import ArtAPGD, ArtDeepFool
from jaxrobust import checks, data, evaluation, models, pruning, studies, training
from jaxrobust.attacks import APGD, BIM, FGSM, PGD, CarliniWagner, DeepFool, RandomNoise
from jaxrobust.evaluation import UniversalPerturbation
from jaxrobust.reports import blocks
from jaxrobust.studies import suite_names
from jaxrobust.studies.outcomes import pack, right_ones, unpack

# These tables define the study. To add a network, criterion or attack, add a row. To add a column of
# the report, add a row to MEASURES below, and a `column` in report.md.j2 that refers to it by its name.

BOTTLENECK = {"stem_width": 8, "stem_shortcut": True, "bottleneck": True}
# The source's four networks, and smaller ones of the same families for a CPU.
NETWORKS = {
    "mobilenet_v1": Network("mobilenet_v1"),
    "densenet121": Network("densenet121"),
    "resnet50": Network("resnet50"),
    "vgg19": Network("vgg19"),
    "mobilenet_v1_narrow": Network(
        "mobilenet_v1",
        {"widths": (8, 16, 32, 32, 64, 64, *(128,) * 6, 256, 256)},
        "MobileNetV1, every width a quarter",
    ),
    "densenet23_narrow": Network(
        "densenet121",
        {"stage_sizes": (1, 2, 3, 3), "widths": (8,) * 9, "stem_width": 16},
        "DenseNet of 4 stages of 1, 2, 3 and 3 layers, growth 8",
    ),
    "resnet14_narrow": Network(
        "resnet50",
        {"stage_sizes": (1, 1, 1, 1), "widths": (32, 64, 128, 256)} | BOTTLENECK,
        "one bottleneck block in each of 4 stages, every width an eighth of ResNet50's",
    ),
    "vgg9_narrow": Network(
        "vgg19",
        {"stage_sizes": (1, 1, 2, 2, 2), "widths": (16, 32, 64, 64, 128, 128, 128, 128)},
        "8 convolutions in VGG's 5 stages, every width a quarter",
    ),
    "resnet8_tiny": Network(
        "resnet50",
        {"stage_sizes": (1, 1), "widths": (16, 32)} | BOTTLENECK,
        "two bottleneck blocks of 16 and 32 channels",
    ),
    "vgg6_tiny": Network(
        "vgg19",
        {"stage_sizes": (1, 1, 1, 1, 1), "widths": (8, 16, 16, 32, 32)},
        "5 convolutions of 8 to 32 channels",
    ),
}

# The criteria by which filters are removed: a label for readers and, if `pruning.CRITERIA` lacks the
# criterion, a `pruning.Criterion`.
CRITERIA = {
    "l1": Labelled("L1"),
    "l2": Labelled("L2"),
    "geometric_median": Labelled("GM"),
    "random": Labelled("random"),  # the baseline
}

EPSILON = 8 / 255
CW = functools.partial(CarliniWagner, learning_rate=0.01, initial_constant=0.01)
# These attacks are made on every base network and shown to the others, with two sets of parameters.
#
# The source runs ART with the parameters of its table 7. In ART's code they mean:
#
#   CW      10 steps for each of 10 constants, the default of ART. It stops before it has found the
#           smallest perturbation, or any perturbation.
#   DF      an overshoot of 1e-6, so that images end on the base network's own boundary, and 5 steps.
#   FGSM    0.2 of the range from black to white; the 100 iterations in table 7 have no meaning.
#   BiM     epsilon 1, with which every image can become any other.
#   PGD     ART starts at the image by default, so this is BiM with epsilon 0.3.
#   APGD    a first step of 0.1, where the paper has 2 epsilon = 0.6; the last point, not the best; five
#           starts, of which later ones attack only images that withstood the first; here one.
#   UP      epsilon 10, which is no bound for pixels of at most 1; one pass over the test images, one
#           image at a time, by ART's DeepFool with its default of 100 steps.
#
# ART's CW halves and doubles its steps by a line search of its own; here it is the paper's Adam, with
# as many steps and constants. DF is not `ArtDeepFool`, whose images end on the boundary itself, where
# rounding decides whether the base network is fooled: it steps 1e-4 beyond, applies the overshoot in
# every step, clips no sum of steps, and returns the clean image where it fails, not its last point.
# Both do not change images that are wrong without an attack, while ART does. Noise is uniform in the
# ball: it is the baseline for attacks, and already costs much accuracy at 0.3.
ATTACKS: dict[str, dict[str, Any]] = {
    "source": {
        "CW": CW(num_iterations=10, num_searches=10),
        "DF": DeepFool(overshoot=1e-6, num_steps=5),
        "FGSM": FGSM(0.2),
        "BiM": BIM(1.0, 0.1, 100, keep="last"),
        "PGD": PGD(0.3, 0.1, 100, random_start=False, keep="last"),
        "APGD": ArtAPGD(0.3, num_iterations=100, step_size=0.1),
        "UP": UniversalPerturbation(
            1.0, max_passes=1, inner=ArtDeepFool(1e-6, 100, num_candidates=9)
        ),
        "noise": RandomNoise(0.3),
    },
    "8/255": {
        "CW": CW(num_iterations=100, num_searches=5),
        "DF": DeepFool(),
        "FGSM": FGSM(EPSILON),
        "BiM": BIM(EPSILON, 2 / 255, 10),
        "PGD": PGD(EPSILON, 2 / 255, 20),
        "APGD": APGD(EPSILON, num_iterations=100),
        "UP": UniversalPerturbation(EPSILON, max_passes=5),
        "noise": RandomNoise(EPSILON),
    },
}
# Attacks with an epsilon that are made on every network itself: those of the seven that a CPU can make
# on every network. CW would take as long as all of them; BiM is PGD here, except for its start.
WHITE_BOX: dict[str, Any] = {
    "FGSM at 8/255": FGSM(EPSILON),
    "PGD at 8/255": PGD(EPSILON, 2 / 255, 20),
    "APGD at 1/255": APGD(1 / 255, num_iterations=50),
}
# Its epsilon is so small that networks that were not trained against attacks still differ.
COMPARED = "APGD at 1/255"
SMALLEST = DeepFool()  # finds the smallest perturbation of every network itself
RADIUS = 0.5  # of the l2 ball for smallest perturbations, as is usual on CIFAR-10
BATCH_SIZES = (32, 64)  # of the timings, as in the source
HELD_TOGETHER = 64  # images on which masked and shrunk networks are compared
SOURCE = Path(__file__).with_name("published.csv")
# The sections of the report that --publish writes: all tables of the source beside ours, and those that
# the answers rest on.
PUBLISHED = (
    *("accuracy-over-sparsity", "shown-source", "shown-8-255", "smallest", "white-box"),
    *("transfer-tables", "inference-time", "sizes"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings. The defaults are those of the full preset.

    Attributes:
      data: cifar10_jpeg (the default), cifar10, cifar100, or digits (for --quick without --data-dir).
      data_dir: The folder of the data set (data/README.md).
      download: Whether to download cifar10 or cifar100 to data_dir if it is missing.
      preset: full, for a GPU; cpu, smaller networks and fewer images; quick, to see that all runs.
      networks: Names in `NETWORKS`: the four of the source, smaller ones for a CPU, two tiny ones.
      criteria: The criteria of pruning: l1, l2, geometric_median, and random as a baseline.
      sparsities: The fractions of the filters of every pruned layer to remove, in ascending order, at
        least 0.1. `multiple_of` rounds up what a layer keeps, so narrow layers lose less.
      prune_first_conv: Whether to prune the first convolution. NNCF, and so the source, does not.
      prune_downsample_convs: Whether to prune convolutions with a stride above 1, and the layers that
        share their channels. NNCF, and so the source, does not.
      multiple_of: Every pruned layer keeps a multiple of this number of filters, in NNCF of 8; the
        narrow networks of the other presets keep any number.
      num_epochs: The epochs of the base networks. The source's 10 reach none of its milestones.
      fine_tuning_epochs: The epochs of pruned networks and controls, which the source does not state.
      pruning_epochs: The number of these in which the sparsity rises from 0.1 to its last value.
      milestones: The epochs of the base networks after which the learning rate falls to a tenth.
      fine_tuning_milestones: The same for fine-tuning, so that the last epoch is a stable one.
      learning_rate: The learning rate; by default the source's.
      batch_size: The number of images in a step; by default the source's.
      num_train: The number of training images; by default all.
      num_attacked: The number of attacked test images; accuracies are of all test images.
      num_controls: The number of networks that are fine-tuned without pruning. The first sees the
        images in the same order as the pruned ones; others show the effect of another order.
      latency_runs: The number of measured runs of each latency.
      max_steps: The largest number of steps of every attack for each start, to try things out.
      seed: The seed of everything random.
      run: The name of the run; results go to <results_dir>/pruned_benchmark/<run>.
      results_dir: The folder of all results.
      quick: Short for --preset quick.
    """

    data: str | None = None
    data_dir: Path | None = None
    download: bool = False
    preset: Literal["full", "cpu", "quick"] = "full"
    networks: tuple[str, ...] = ("mobilenet_v1", "densenet121", "resnet50", "vgg19")
    criteria: tuple[str, ...] = ("l1", "l2", "geometric_median")
    sparsities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    prune_first_conv: bool = False
    prune_downsample_convs: bool = False
    multiple_of: int = 8
    num_epochs: int = 10
    fine_tuning_epochs: int = 10
    pruning_epochs: int = 5
    milestones: tuple[int, ...] = (10, 20, 30)
    fine_tuning_milestones: tuple[int, ...] = (6, 8)
    learning_rate: float = 0.1
    batch_size: int = 128
    num_train: int | None = None
    num_attacked: int = 10_000
    num_controls: int = 3
    latency_runs: int = 100
    max_steps: int | None = None
    seed: int = 0
    run: str = "default"
    results_dir: Path = Path("results")
    quick: bool = False


PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "cpu": {
        "networks": ("mobilenet_v1_narrow", "densenet23_narrow", "resnet14_narrow", "vgg9_narrow"),
        "multiple_of": 1,
        "fine_tuning_epochs": 6,
        "pruning_epochs": 3,
        "fine_tuning_milestones": (4,),
        "num_train": 10_000,
        "num_attacked": 500,
    },
    "quick": {
        "networks": ("resnet8_tiny", "vgg6_tiny"),
        "criteria": ("l1", "l2"),
        "sparsities": (0.5,),
        "multiple_of": 1,
        "num_epochs": 2,
        "fine_tuning_epochs": 2,
        "pruning_epochs": 2,
        "fine_tuning_milestones": (1,),
        "num_train": 1024,
        "num_attacked": 24,
        "num_controls": 1,
        "latency_runs": 10,
        "max_steps": 2,
        "quick": True,
    },
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A base network, a pruned network or a control; its fields are the keys of its facts."""

    network: str
    kind: str = "base"  # or "control", which is fine-tuned without pruning, or a criterion
    sparsity: float = 0.0  # the fraction of the filters of a layer to remove, before rounding
    number: int | None = None  # of a control, from 0

    @property
    def label(self) -> str:
        """The label without the network, such as "L2, 30 %"."""
        if self.kind not in CRITERIA:
            return f"{self.kind} {self.number + 1}" if self.number else self.kind
        return f"{CRITERIA[self.kind].label}, {100 * self.sparsity:g} %"

    @property
    def name(self) -> str:
        """The label with the network, such as "resnet50, L2, 30 %"; stages on disk have this name."""
        return f"{self.network}, {self.label}"

    @property
    def published(self) -> dict[str, Any]:
        """The keys of the source's figures for the corresponding network."""
        family = NETWORKS[self.network].family
        return {"network": family, "kind": self.kind, "sparsity": self.sparsity}


class Study:
    """One run: its settings, images, trained networks and facts."""

    def __init__(self, settings: Settings, dataset: data.Dataset) -> None:
        cut = functools.partial(suite_names.shortened, max_steps=settings.max_steps)
        self.attacks = {s: {n: cut(a) for n, a in of.items()} for s, of in ATTACKS.items()}
        self.white_box = {name: cut(attack) for name, attack in WHITE_BOX.items()}
        self.smallest = cut(SMALLEST)
        constants = {  # that results depend on, besides the settings
            "attacks": {
                setting: {name: threats.described(attack, setting) for name, attack in of.items()}
                for setting, of in self.attacks.items()
            },
            "white box": self.white_box | {"DeepFool": self.smallest},
            "networks": [NETWORKS[name] for name in settings.networks],
            "training": networks.CONSTANTS,
        }
        own = {name: CRITERIA[name].own for name in settings.criteria}
        if any(own.values()):
            constants["criteria"] = {name: networks.described(of) for name, of in own.items() if of}
        described, no_matter = training.describe(constants), ("download", "preset", "quick")
        self.run = studies.start(
            "pruned_benchmark", settings, ignored=no_matter, also={"constants": described}
        )
        self.settings, self.dataset, self.facts = settings, dataset, self.run.facts
        self.train = dataset.train.spread(settings.num_train)
        self.attacked = dataset.test.spread(settings.num_attacked)
        self.records: dict[Variant, dict[str, Any]] = {}  # what `train` returned
        # The criterion whose networks are timed and shown other networks' images, as in the source.
        self.shown_criterion = "l2" if "l2" in settings.criteria else settings.criteria[0]
        # The source's data set to compare with, if any.
        name = dataset.name.removesuffix("_jpeg")
        self.source_data = name if "cifar" in name else None
        self.classifier = functools.cache(lambda v: models.load(self.path(v)).classifier)

    def controls(self, network: str) -> list[Variant]:
        """The controls of a network; the first is the one that others are compared with by image."""
        return [Variant(network, "control", 0.0, i) for i in range(self.settings.num_controls)]

    def pruned(self, network: str, *criteria: str) -> list[Variant]:
        """The pruned variants of a network at every sparsity; by default with the shown criterion."""
        chosen, sparsities = criteria or (self.shown_criterion,), self.settings.sparsities
        return [Variant(network, criterion, s) for criterion in chosen for s in sparsities]

    def variants(self, *of: str) -> list[Variant]:
        """The base network, controls and pruned variants of these networks, by default of all."""
        found = []
        for network in of or self.settings.networks:
            pruned = self.pruned(network, *self.settings.criteria)
            found += [Variant(network), *self.controls(network), *pruned]
        return found

    def path(self, variant: Variant) -> Path:
        """The file of a trained network, without the filters that pruning removed."""
        words = variant.name.replace(", ", "-").replace(" %", "").replace(" ", "-")
        return self.run.folder / "models" / f"{words.lower().replace('_', '-')}.jrw"

    def training_folder(self, variant: Variant) -> Path:
        """The folder of an unfinished training."""
        return self.run.folder / "training" / self.path(variant).stem

    def crafted(self, surrogate: str, setting: str, attack: str) -> Path:
        """The file of the adversarial images that an attack made on a base network."""
        stem = f"{surrogate}-{setting.replace('/', '-of-')}-{attack}".lower().replace("_", "-")
        return self.run.folder / "adversarial" / f"{stem}.npz"

    def right_of(self, keys: Any) -> np.ndarray:
        """Which of the attacked images a network classifies correctly without an attack."""
        fact = self.facts.of("accuracy under attack", keys, attack="none")
        return np.asarray(fact.outcomes)


def train(study: Study, variant: Variant, progress: Any) -> dict[str, Any]:
    """Trains a network, saves it, and returns the values that `MEASURES` needs."""
    settings, dataset, base = study.settings, study.dataset, Variant(variant.network)
    scale: dict[str, Any] = {"mean": dataset.mean, "std": dataset.std}
    images = training.Data((study.train.images, study.train.labels), **scale)
    network = NETWORKS[variant.network].create(dataset.num_classes)
    folder = study.training_folder(variant)
    if variant == base:
        made, weights, kept = networks.train(settings, images, network, folder)
    else:
        start, criterion = study.classifier(base).variables, CRITERIA.get(variant.kind)
        of = (network, folder, start, variant, criterion, progress)
        made, weights, kept = networks.fine_tune(settings, images, *of)
    classifier = models.Classifier(made.apply, weights, **scale)
    names, test = dataset.class_names, dataset.test
    size = models.save(study.path(variant), classifier, class_names=names, sparse=False)
    small = study.classifier(variant)
    if variant != base:  # checks that the shrunk network computes the same as the masked one
        masked = models.Classifier(network.apply, kept.pop("masked"), **scale)
        logits = [evaluation.logits(c, test.images[:HELD_TOGETHER]) for c in (masked, small)]
        kept["difference"] = float(np.abs(logits[0] - logits[1]).max())
    count = sum(leaf.size for leaf in jax.tree.leaves(weights["params"]))
    right = pack(right_ones(small, test.images, test.labels))
    return {"right": right, "parameters": count, "bytes": size, **kept}


def _less(study: Study, variant: Variant, what: str) -> float:
    """Returns the fraction of the base network's parameters or bytes that pruning saves."""
    return 1 - study.records[variant][what] / study.records[Variant(variant.network)][what]


# The measurements of every network without an attack, as facts of these names. They use its record,
# which `train` returned, or the network itself, `study.classifier(variant)`. A value is a figure, or
# bool [N], whose mean is the figure; None adds no fact.
MEASURES: dict[str, Callable[[Study, Variant], Any]] = {
    "accuracy": lambda study, v: unpack(study.records[v]["right"], len(study.dataset.test)),
    "parameters": lambda study, v: study.records[v]["parameters"],
    "parameters removed": lambda study, v: _less(study, v, "parameters"),
    "file size": lambda study, v: study.records[v]["bytes"] / 1e6,
    "file smaller": lambda study, v: _less(study, v, "bytes"),
    "file times smaller": lambda study, v: 1 / (1 - _less(study, v, "bytes")),
    "channels kept": lambda study, v: study.records[v].get("kept"),
    "logit difference": lambda study, v: study.records[v].get("difference"),
}


def measure(study: Study) -> None:
    """Trains every network, or reads its record, and adds the facts of `MEASURES`."""
    for variant in study.variants():
        compute = functools.partial(train, study, variant)
        path, folder = study.path(variant), study.run.folder
        study.records[variant] = study.run.stages.remember(
            f"train {variant.name}", compute, scratch=study.training_folder(variant)
        )
        if not path.is_file():
            raise ValueError(f"{path} is missing; delete {folder} to start anew, or put it back.")
        for name, function in MEASURES.items():
            found = function(study, variant)
            if found is not None:
                figure = "outcomes" if np.ndim(found) and found.dtype == bool else "value"
                study.facts.add(name, variant, **{figure: found})
        right = np.asarray(study.facts.of("accuracy", variant).outcomes)
        attacked = studies.spread(np.ones(len(right), bool), study.settings.num_attacked)
        study.facts.add("accuracy under attack", variant, attack="none", outcomes=right[attacked])


def show(study: Study) -> None:
    """Makes adversarial images on every base network, and adds which networks are not fooled."""
    facts = study.facts
    for surrogate, setting in itertools.product(study.settings.networks, ATTACKS):
        right = study.right_of(Variant(surrogate))
        kinds = ("base", "control", study.shown_criterion)  # of other families
        victims = [v for v in study.variants() if v.network == surrogate or v.kind in kinds]
        words = "source's parameters" if setting == "source" else setting
        for name, attack in ATTACKS[setting].items():
            compute = functools.partial(_craft_and_show, study, surrogate, setting, name, victims)
            record = study.run.stages.remember(f"{name}, {words}, made on {surrogate}", compute)
            keys = {"setting": setting, "attack": name}
            for victim in victims:
                # The stage keeps outcomes by the victims' names, which finished runs have.
                found = unpack(record[victim.name], len(right))
                made_on = keys | {"surrogate": surrogate}
                facts.add("accuracy under attack", victim, outcomes=found, **made_on)
                # Only for these images: CW and DeepFool do not change those that the base has wrong.
                if victim.network == surrogate:
                    facts.add("still right", victim, outcomes=found[right], **keys)
            if threats.looks_for_the_smallest(attack):
                path = study.crafted(surrogate, setting, name)
                report = evaluation.load_attack(path, type(attack))
                lengths, of = threats.norms(report)[report.attacked], {"network": surrogate} | keys
                facts.add("fooled", of, outcomes=np.isfinite(lengths))
                facts.add_median("smallest norm", of, lengths)
                facts.add("right within the radius", of, outcomes=lengths > RADIUS)


def _craft_and_show(
    study: Study, surrogate: str, setting: str, name: str, victims: list[Variant], progress: Any
) -> dict[str, str]:
    """Returns which images each victim classifies correctly, packed, by the name of the victim."""
    attack, attacked = study.attacks[setting][name], study.attacked
    path = study.crafted(surrogate, setting, name)
    base, train = study.classifier(Variant(surrogate)), study.train.spread(len(attacked))
    threats.craft(attack, setting, base, attacked, train, path, study.run.key, progress)
    images = threats.images_of(attack, path, attacked.images)
    return {v.name: pack(right_ones(study.classifier(v), images, attacked.labels)) for v in victims}


def attack_each(study: Study) -> None:
    """Attacks every network itself, and adds its robust accuracy and the norms that fool it."""
    facts, attacked, norms = study.facts, study.attacked, dict[Variant, np.ndarray]()
    for variant in study.variants():

        def attack(progress: Any, variant: Variant = variant) -> dict[str, Any]:
            of = (study.white_box, study.smallest, study.classifier(variant), attacked)
            return threats.white_box(*of, study.run.key, progress)

        record = study.run.stages.remember(f"white box on {variant.name}", attack)
        for name in WHITE_BOX:
            found = unpack(record["right"][name], len(attacked))
            facts.add("white-box accuracy", variant, attack=name, outcomes=found)
        norms[variant] = np.array([np.inf if n is None else n for n in record["norms"]])
        right, control = study.right_of(variant), study.controls(variant.network)[0]
        facts.add_median("white-box norm", variant, norms[variant][right])
        if variant.kind != "base" and variant != control:
            both = np.isfinite(norms[variant]) & np.isfinite(norms[control])
            both &= right & study.right_of(control)
            longer = norms[variant][both] - norms[control][both]
            facts.add_median("white-box norm to control", variant, longer)


def time_each(study: Study) -> None:
    """Times base and pruned networks in turns."""
    for entry in study.run.stages.remember("latency", functools.partial(_times, study)):
        keys = {"batch": entry["batch"]}
        study.facts.add("noise floor", keys, network=entry["network"], value=entry["floor"])
        # The stage keeps times by the variants' labels, which finished runs have.
        for variant in (Variant(entry["network"]), *study.pruned(entry["network"])):
            times, base = (entry["variants"][label] for label in (variant.label, "base"))
            studies.records.add_latency(study.facts, times, variant, **keys)
            if times["difference"] is None or times["difference"]["different"]:
                ratio = base["median_ms"] / times["median_ms"]
                study.facts.add("times faster", variant, value=ratio, **keys)


def _times(study: Study, progress: Any) -> list[dict[str, Any]]:
    settings, found = study.settings, list[dict[str, Any]]()
    for network, batch in itertools.product(settings.networks, BATCH_SIZES):
        example = np.resize(study.dataset.test.images, (batch, *study.dataset.image_shape))
        compared = evaluation.compare_latency(
            {v.label: study.classifier(v) for v in (Variant(network), *study.pruned(network))},
            example.astype(np.float32) / 255,
            runs=settings.latency_runs,
            reference="base",
            controls=1 if settings.quick else 3,
        )
        times = {"floor": compared["noise_floor_ms"], "variants": compared["variants"]}
        found.append({"network": network, "batch": batch, **times})
        progress(
            f"{network}, {batch} at a time", len(found), len(settings.networks) * len(BATCH_SIZES)
        )
    return found


def classify(study: Study, _: Any) -> list[dict[str, Any]]:
    """Returns the models of the report: base networks, first controls, the most pruned networks."""
    test, names, found = study.dataset.test, study.dataset.class_names, []
    for network in study.settings.networks:
        for variant in (Variant(network), study.controls(network)[0], study.pruned(network)[-1]):
            record, of = study.records[variant], (study.classifier(variant), test.images)
            trained = studies.Trained(record["history"], record["seconds_per_epoch"])
            found.append(
                studies.model_entry(variant.name, *of, test.labels, names, trained=trained)
            )
    return found


def pictured(study: Study) -> tuple[str, list[Any]]:
    """Returns an image under every attack on the first base network: its class, rows of pictures."""
    base, names, attacked = study.variants()[0], study.dataset.class_names, study.attacked
    right = np.flatnonzero(study.right_of(base))
    index = int(right[len(right) // 2]) if len(right) else 0
    clean = attacked.images[index] / np.float32(255)

    def said(image: np.ndarray) -> Any:
        logits = evaluation.logits(study.classifier(base), image[None])[0]
        return blocks.tile(image, text=names[int(logits.argmax())])

    rows, first = [], said(clean)
    for name in dict.fromkeys(itertools.chain(*ATTACKS.values())):
        tiles = [first]
        for setting, attacks in ATTACKS.items():
            if name not in attacks:
                tiles += [None, None]
                continue
            path = study.crafted(base.network, setting, name)
            image = threats.images_of(attacks[name], path, attacked.images)[index]
            tiles += [said(image), blocks.tile(image, style="difference", against=clean)]
        rows.append((name, tiles))
    return names[int(attacked.labels[index])], rows


def checked(settings: Settings) -> Settings:
    """Returns the settings after checks, with fine-tuning plans cut to the number of epochs."""
    checks.one_of("data", settings.data, (None, "cifar10_jpeg", "cifar10", "cifar100", "digits"))
    least = {"batch_size": 2, "latency_runs": 2, "seed": 0}
    allowed: dict[str, Any] = {"networks": NETWORKS, "criteria": CRITERIA}
    studies.check_settings(settings, least, sparsities=settings.sparsities, **allowed)
    labels = [CRITERIA[name].label for name in settings.criteria]
    if len(set(labels)) < len(labels) or any("/" in label for label in labels):
        raise ValueError(
            f"The labels of criteria name files, so they must differ and have no /, got {labels}."
        )
    for name in settings.criteria:
        one = CRITERIA[name].own or pruning.CRITERIA.get(name)
        if one is None or one.needs == "gradients":
            raise ValueError(
                f"The criterion {name!r} must be in pruning.CRITERIA or have its own, and must not "
                "need gradients."
            )
    checks.number("learning_rate", settings.learning_rate, above=0.0)
    for sparsity in settings.sparsities:
        checks.number("sparsities", sparsity, minimum=networks.INITIAL, maximum=0.95)
    for name in ("sparsities", "milestones", "fine_tuning_milestones"):
        if list(getattr(settings, name)) != sorted(set(getattr(settings, name))):
            raise ValueError(f"`{name}` must ascend, got {getattr(settings, name)}.")
    epochs = settings.fine_tuning_epochs
    return dataclasses.replace(
        settings,
        pruning_epochs=min(settings.pruning_epochs, epochs),
        fine_tuning_milestones=tuple(m for m in settings.fine_tuning_milestones if m < epochs),
    )


def main(settings: Settings) -> Path:
    """Runs the study; returns the report's path."""
    settings = checked(settings)
    offline = settings.quick and settings.data_dir is None
    name = settings.data or ("digits" if offline else "cifar10_jpeg")
    dataset = data.load(name, settings.data_dir, download=settings.download)
    _check_sizes(settings, dataset)
    if settings.preset == "full" and not settings.quick and jax.default_backend() == "cpu":
        print("The full preset is for a GPU; use --preset cpu on this machine.", file=sys.stderr)
    study = Study(settings, dataset)
    measure(study)
    show(study)
    attack_each(study)
    entries = study.run.stages.remember("classify", functools.partial(classify, study))
    time_each(study)
    doubted = comparisons.publish(study.facts, SOURCE, study.source_data, dataset.num_classes)
    comparisons.compare(study.facts, ATTACKS, WHITE_BOX, COMPARED, settings.sparsities)
    return study.run.finish(
        f"Pruned networks on {dataset.name}: accuracy, robustness, time and size",
        dataset,
        Path(__file__).with_name("report.md.j2"),
        recipes=training.describe({"base": networks.recipe(settings, len(study.train))}),
        study=study,
        doubted=doubted,
        entries=entries,
        pictured=pictured(study),
        comparisons=comparisons,
        **{name: constant for name, constant in globals().items() if name.isupper()},
    )


def _check_sizes(settings: Settings, dataset: data.Dataset) -> None:
    """Raises if a network does not accept the images, or if there are too few images.

    Otherwise the study would fail after hours.
    """
    for name in settings.networks:
        made = NETWORKS[name].create(dataset.num_classes).init_with_output
        logits_fn = functools.partial(lambda made, x: made(jax.random.key(0), x)[0], made)
        studies.check_classifier(logits_fn, name, dataset.image_shape)
    most = len(dataset.train)
    if (settings.num_train or 0) > most:
        raise ValueError(f"`num_train` must be at most {most}, got {settings.num_train}.")


if __name__ == "__main__":
    studies.run_script(main, Settings, PRESETS, published=PUBLISHED)
