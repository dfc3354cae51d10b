"""What the stages of the study share: photographs, trained networks, saved attacks."""

import dataclasses
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.config import OURS, Config
from experiments.sports10.networks import FINE_TUNING, SUBJECTS
from jaxrobust import (
    attacks,
    attribution,
    data,
    evaluation,
    files,
    models,
    pruning,
    studies,
    training,
)
from jaxrobust.attacks import FGSM, PGD
from jaxrobust.evaluation.classification import predictions
from jaxrobust.studies import blocks
from jaxrobust.types import Attack


class Study:
    """One run: its settings, its folder, and everything that several stages need.

    Args:
      config: The settings.
      folder: Of the run.
    """

    def __init__(self, config: Config, folder: Path, dataset: data.Dataset) -> None:
        self.config, self.folder = config, folder
        self.stages = studies.Stages(folder)
        self.facts: dict[str, Any] = {}  # what the verdicts rest on
        self._kept: dict[Any, Any] = {}  # of `once`
        self._datasets = {dataset.image_shape[0]: self._cut(dataset)}

    def once(self, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` returns: made at the first call, and kept in memory for the others.

        Args:
          what: Its name and all that it depends on besides the settings.
          make: Makes it.
        """
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]

    def section(
        self, stage: str, compute: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    ) -> dict[str, Any]:
        """A section of the report that also has facts for the verdicts; computed once.

        Args:
          stage: Its name.
          compute: Takes a progress callback and returns (the section, facts by name).
        """

        def both(progress: Any) -> dict[str, Any]:
            section, facts = compute(progress)
            return {"section": section, "facts": facts}

        found = self.stages.remember(stage, both)
        self.facts |= found["facts"]
        return found["section"]

    @property
    def key(self) -> jax.Array:
        """The key of whatever is random outside of training."""
        return jax.random.key(self.config.seed)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return next(iter(self._datasets.values())).class_names

    @property
    def target(self) -> int:
        """The class that targeted attacks aim at."""
        return self.class_names.index(self.config.target)

    @property
    def seeds(self) -> range:
        """Of the networks that are quick to train."""
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    def seeds_of(self, name: str) -> range:
        """The seeds that a network is trained with."""
        return self.seeds[: SUBJECTS[name].max_seeds]

    def seeds_at(self, name: str, sparsity: float) -> range:
        """The seeds whose networks are pruned to a sparsity."""
        swept = SUBJECTS[name].swept or sparsity == self.config.sparsities[-1]
        return self.seeds_of(name) if swept else self.seeds[:1]

    @property
    def folded(self) -> list[str]:
        """The networks that are cross-validated."""
        return [name for name in self.config.models if SUBJECTS[name].folds]

    @property
    def chosen(self) -> str:
        """The network that is explained by every method and defended: ours where it takes part."""
        return OURS if OURS in self.config.models else self.config.models[-1]

    def methods(self, name: str) -> list[str]:
        """The methods of attribution that a network allows: an MLP has no layer with pixels."""
        shape = jax.ShapeDtypeStruct((1, *self.dataset(name).image_shape), jnp.float32)
        layer = attribution.layers(self.base(name), shape).default
        needed = attribution.NEEDS_LAYER if layer is None else ()
        found = [method for method in attribution.METHODS if method not in needed]
        return found[::4] if self.config.quick else found

    def dataset(self, name: str) -> data.Dataset:
        """The photographs in the size that a network takes."""
        size = SUBJECTS[name].image_size
        if size not in self._datasets:
            self._datasets[size] = self._cut(
                data.load(
                    "sports10", self.config.data_dir, size, skip_damaged=self.config.skip_damaged
                )
            )
        return self._datasets[size]

    def _cut(self, dataset: data.Dataset) -> data.Dataset:
        """With --quick, every fifth photograph of a split, where there are many."""
        if not self.config.quick or len(dataset.train) < 500:
            return dataset
        # An even number, so that both folds have one shape, and compile once.
        rows = slice(0, 10 * (len(dataset.train) // 10), 5)
        train, test = (
            data.Split(split.images[rows], split.labels[rows], split.files[rows])
            for split in (dataset.train, dataset.test)
        )
        return dataclasses.replace(dataset, train=train, test=test)

    def test(self, name: str) -> data.Split:
        """The 50 test photographs in the size that a network takes."""
        return self.dataset(name).test

    @property
    def test_files(self) -> list[Path]:
        """The files of the test photographs."""
        root = self.config.data_dir.expanduser()
        root = root / "sports10" if (root / "sports10").is_dir() else root
        split = next(name for name in ("valid", "test", "val") if (root / name).is_dir())
        return [root / split / file for file in next(iter(self._datasets.values())).test.files]

    def classifier(self, name: str, variables: Any) -> models.Classifier:
        """A network with weights."""
        dataset = self.dataset(name)
        network = models.create(SUBJECTS[name].model, dataset.num_classes)
        return models.Classifier(network.apply, variables, dataset.mean, dataset.std)

    def fit(
        self,
        name: str,
        run: str,
        recipe: training.Recipe,
        *,
        rows: np.ndarray | None = None,
        validation: data.Split | None = None,
        variables: Any = None,
        masks: Any = None,
    ) -> training.FitResult:
        """Trains a network; a finished training is read back.

        Args:
          name: Of the network.
          run: Of the training: a stage of the study, and a folder.
          recipe: Of the training.
          rows: Of the training photographs; None: all.
          validation: Drawn beside the training curve, and used for nothing.
          variables: As `training.fit`.
          masks: As `training.fit`.
        """
        dataset = self.dataset(name)
        images, labels = dataset.train.images, dataset.train.labels
        if rows is not None:
            images, labels = images[rows], labels[rows]
        shown = None if validation is None else (validation.images, validation.labels)
        with self.stages(run):
            fitted = training.fit(
                models.create(SUBJECTS[name].model, dataset.num_classes),
                training.Data((images, labels), shown, dataset.mean, dataset.std),
                dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(labels))),
                run_dir=self.folder / "training" / plain(run),
                variables=variables,
                masks=masks,
                host=training.Host(checkpoint_every=20),
            )
        self.stages.count_resumed(run, fitted.seconds)
        return fitted

    def recipe(self, name: str) -> training.Recipe:
        """How a network is trained, with --num-epochs."""
        recipe = SUBJECTS[name].training
        return dataclasses.replace(recipe, num_epochs=self.config.num_epochs or recipe.num_epochs)

    def fine_tuning(self, name: str) -> training.Recipe:
        """How a pruned network is fine-tuned."""
        num_epochs = 1 if self.config.quick else SUBJECTS[name].fine_tuning_epochs
        augmentation = SUBJECTS[name].training.augmentation
        return dataclasses.replace(FINE_TUNING, num_epochs=num_epochs, augmentation=augmentation)

    def trained(self, name: str, seed: int) -> training.FitResult:
        """A network trained with a seed."""
        recipe = dataclasses.replace(self.recipe(name), seed=seed)
        shown = self.test(name) if seed == self.config.seed else None
        run = f"train {name}, seed {seed}"
        return self.once((run,), lambda: self.fit(name, run, recipe, validation=shown))

    def trained_on_fold(self, name: str, fold: int) -> training.FitResult:
        """A network trained on all training photographs but those of a fold."""
        recipe = dataclasses.replace(self.recipe(name), seed=self.config.seed + fold)
        run, rows = f"train {name}, fold {fold}", self.fold_rows()[fold][0]
        return self.once((run,), lambda: self.fit(name, run, recipe, rows=rows))

    def base(self, name: str) -> models.Classifier:
        """The network of the first seed: the one explained and attacked."""
        return self.classifier(name, self.trained(name, self.config.seed).variables)

    def fold_rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows (to train on, held out) of each fold."""
        labels = next(iter(self._datasets.values())).train.labels
        return data.stratified_folds(labels, self.config.num_folds, seed=self.config.seed)

    def held_out(self, name: str, fold: int) -> data.Split:
        """The training photographs of a fold, in the size that a network takes."""
        train, rows = self.dataset(name).train, self.fold_rows()[fold][1]
        files = tuple(train.files[i] for i in rows)
        return data.Split(train.images[rows], train.labels[rows], files)

    def pruned(self, name: str, sparsity: float, seed: int) -> tuple[Any, Any, Any]:
        """(masks, variables just pruned, variables fine-tuned) of a network."""
        dense = self.trained(name, seed).variables
        return self.once(
            ("pruned", name, sparsity, seed),
            lambda: self.prune(name, dense, sparsity, f"seed {seed}", seed=seed),
        )

    def prune(
        self,
        name: str,
        variables: Any,
        sparsity: float,
        words: str,
        *,
        seed: int,
        rows: np.ndarray | None = None,
    ) -> tuple[Any, Any, Any]:
        """(masks, variables just pruned, variables fine-tuned) of any weights of a network.

        Sparsity 0 is the control: the same fine-tuning without a pruning before it.
        """
        masks = pruning.global_magnitude(variables["params"], sparsity)
        cut = masked(variables, masks)
        fitted = self.fit(
            name,
            f"fine-tune {name} at {100 * sparsity:g} % sparsity, {words}",
            dataclasses.replace(self.fine_tuning(name), seed=seed),
            rows=rows,
            variables=cut,
            masks=masks,
        )
        return masks, cut, fitted.variables

    def variants(self, name: str) -> dict[str, models.Classifier]:
        """The first seed's network: dense, and fine-tuned at each sparsity."""
        found = {"dense": self.base(name)}
        for sparsity in self.config.sparsities:
            tuned = self.pruned(name, sparsity, self.config.seed)[2]
            found[percent(sparsity)] = self.classifier(name, tuned)
        return found

    def fgsm(self, epsilon: float | None = None, targeted: bool = False) -> FGSM:
        """FGSM, at the main epsilon by default."""
        return FGSM(epsilon or self.config.epsilon, targeted=targeted)

    def pgd(self, epsilon: float | None = None, targeted: bool = False) -> PGD:
        """PGD, at the main epsilon by default; the step keeps its proportion to epsilon."""
        chosen = epsilon or self.config.epsilon
        step_size = self.config.step_size * chosen / self.config.epsilon
        return PGD(chosen, step_size, self.config.num_steps, targeted=targeted)

    def attack(
        self, attack: Attack, model: str, classifier: Any, split: data.Split
    ) -> evaluation.AttackReport:
        """Attacks a classifier on a split; crafted once, and read back from then on.

        Args:
          attack: What to run; a targeted one aims at the study's target.
          model: The classifier's name, which with the attack's names the file.
          classifier: Images -> logits.
          split: Of its photographs.
        """
        aim = f" to {self.config.target}" if attack.targeted else ""
        stage = f"{evaluation.attack_label(attack)}{aim} on {model}"
        # A label rounds and leaves out, and weights may have been trained anew.
        facts = json.dumps(attacks.to_dict(attack), sort_keys=True).encode()
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(_plain_keys(classifier))]
        digest = zlib.crc32(b"".join([facts, split.images.tobytes(), *leaves]))
        path = self.folder / "adversarial" / f"{plain(stage)}-{digest:08x}.npz"
        note = path.with_suffix(".json")
        if path.exists() and note.exists():
            self.stages.count_earlier(**json.loads(note.read_text(encoding="utf-8")))
            return evaluation.load_attack(path)
        with self.stages(stage) as progress:
            report = evaluation.attack_dataset(
                attack,
                classifier,
                split.images,
                split.labels,
                key=self.key,
                targets=self.target if attack.targeted else None,
                progress=progress,
            )
        evaluation.save_attack(path, report)
        seconds = self.stages.seconds[stage]
        files.write_json(note, {"name": stage, "seconds": seconds, "commit": studies.commit()})
        return report


def _plain_keys(tree: Any) -> Any:
    """A pytree with its PRNG keys as numbers."""

    def number(leaf: Any) -> Any:
        typed = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if typed else leaf

    return jax.tree.map(number, tree)


def masked(variables: Any, masks: Any) -> Any:
    """A network's variables with the weights that a mask removes set to zero."""
    return dict(variables) | {"params": pruning.apply_masks(variables["params"], masks)}


def right(classifier: Any, split: data.Split) -> np.ndarray:
    """Which images of a split a classifier has right: bool [N]."""
    return predictions(evaluation.logits(classifier, split.images)) == split.labels


def rate_of(outcomes: np.ndarray) -> evaluation.Rate:
    """The rate of true among bool [N]."""
    return evaluation.rate(int(outcomes.sum()), len(outcomes))


def points(gap: Any) -> Any:
    """A paired difference of rates as a cell in points."""
    return blocks.estimate(gap["difference"], gap["low"], gap["high"], 100)


def estimate(values: np.ndarray) -> Any:
    """The mean of those that are defined, with its 95 % interval; None where none is."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None
    found = evaluation.mean_interval(defined.tolist())
    return blocks.estimate(found["mean"], found["low"], found["high"])


def percent(sparsity: float) -> str:
    """A sparsity as a name: "80 %"."""
    return f"{100 * sparsity:g} %"


def plain(words: str) -> str:
    """Words as a file's name.

    Example:
      >>> plain("PGD, linf 0.03, 40 steps on cnn at 20 %")
      'pgd-linf-0.03-40-steps-on-cnn-at-20'
    """
    return re.sub(r"[^a-z0-9._]+", "-", words.lower()).strip("-.")
