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
from jaxrobust import attacks, data, evaluation, files, models, pruning, studies, training
from jaxrobust.attacks import FGSM, PGD
from jaxrobust.evaluation.classification import predictions
from jaxrobust.types import Attack

ALL = slice(None)


def photographs(config: Config, size: int = 32) -> data.Dataset:
    """The photographs in one size; with --quick every fifth of a split, where there are many."""
    dataset = data.load("sports10", config.data_dir, size, skip_damaged=config.skip_damaged)
    if not config.quick or len(dataset.train) < 500:
        return dataset
    # An even number, so that both folds have one shape, and compile once.
    rows = np.arange(0, 10 * (len(dataset.train) // 10), 5)
    tested = np.arange(0, len(dataset.test), 5)
    train, test = part(dataset.train, rows), part(dataset.test, tested)
    return dataclasses.replace(dataset, train=train, test=test)


def part(split: data.Split, rows: np.ndarray) -> data.Split:
    """Some rows of a split."""
    files = tuple(split.files[row] for row in rows)
    return data.Split(split.images[rows], split.labels[rows], files)


class Study:
    """One run: its settings, its folder and facts, and everything that several stages need.

    Args:
      config: The settings.
      run: The run's folder, stages and facts.
      dataset: The photographs in 32x32 pixels.
    """

    def __init__(self, config: Config, run: studies.Run, dataset: data.Dataset) -> None:
        self.config, self.run = config, run
        self.folder, self.stages, self.facts = run.folder, run.stages, run.facts
        self.class_names = dataset.class_names
        self.target = dataset.class_names.index(config.target)
        self.key = run.key  # of whatever is random outside of training
        self.folded = [name for name in config.models if SUBJECTS[name].folds]
        # The network that is explained by every method and defended: ours where it takes part.
        self.chosen = OURS if OURS in config.models else config.models[-1]
        self._datasets = {dataset.image_shape[0]: dataset}
        self._fitted: dict[str, training.FitResult] = {}
        self._kept: dict[Any, Any] = {}  # by `once`

    def once(self, what: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` returns: made at the first call of this name, and kept for the others."""
        if what not in self._kept:
            self._kept[what] = make()
        return self._kept[what]

    def seeds_of(self, name: str) -> range:
        """The seeds that a network is trained with."""
        first, count = self.config.seed, self.config.num_seeds
        return range(first, first + min(count, SUBJECTS[name].max_seeds))

    def seeds_at(self, name: str, sparsity: float) -> range:
        """The seeds whose networks are pruned to a sparsity."""
        swept = SUBJECTS[name].swept or sparsity == self.config.sparsities[-1]
        return self.seeds_of(name) if swept else self.seeds_of(name)[:1]

    def dataset(self, name: str) -> data.Dataset:
        """The photographs in the size that a network takes."""
        size = SUBJECTS[name].image_size
        if size not in self._datasets:
            self._datasets[size] = photographs(self.config, size)
        return self._datasets[size]

    def test(self, name: str) -> data.Split:
        """The 50 test photographs in the size that a network takes."""
        return self.dataset(name).test

    def pixels(self, name: str) -> jax.Array:
        """The test photographs in [0, 1], float32 [N, H, W, C]."""
        return jnp.asarray(self.test(name).images / np.float32(255))

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
        network = models.create(name, dataset.num_classes)
        return models.Classifier(network.apply, variables, dataset.mean, dataset.std)

    def fit(
        self,
        name: str,
        run: str,
        recipe: training.Recipe,
        *,
        rows: Any = ALL,
        validation: data.Split | None = None,
        **start: Any,
    ) -> training.FitResult:
        """Trains a network on rows of the photographs; a finished training is read back.

        `run` names the training, a stage of the study and a folder; `validation` is drawn beside the
        training curve, and used for nothing; `start` are `variables` and `masks` of `training.fit`.
        """
        if run in self._fitted:
            return self._fitted[run]
        dataset = self.dataset(name)
        images, labels = dataset.train.images[rows], dataset.train.labels[rows]
        shown = None if validation is None else (validation.images, validation.labels)
        with self.stages(run):
            fitted = training.fit(
                models.create(name, dataset.num_classes),
                training.Data((images, labels), shown, dataset.mean, dataset.std),
                dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(labels))),
                run_dir=self.folder / "training" / plain(run),
                host=training.Host(checkpoint_every=20),
                **start,
            )
        self.stages.count_resumed(run, fitted.seconds)
        self._fitted[run] = fitted
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
        return self.fit(name, f"train {name}, seed {seed}", recipe, validation=shown)

    def trained_on_fold(self, name: str, fold: int) -> training.FitResult:
        """A network trained on all training photographs but those of a fold."""
        recipe = dataclasses.replace(self.recipe(name), seed=self.config.seed + fold)
        return self.fit(name, f"train {name}, fold {fold}", recipe, rows=self.fold_rows()[fold][0])

    def base(self, name: str) -> models.Classifier:
        """The network of the first seed: the one explained and attacked."""
        return self.classifier(name, self.trained(name, self.config.seed).variables)

    def fold_rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The rows (to train on, held out) of each fold."""
        labels = next(iter(self._datasets.values())).train.labels
        return data.stratified_folds(labels, self.config.num_folds, seed=self.config.seed)

    def held_out(self, name: str, fold: int) -> data.Split:
        """The training photographs of a fold, in the size that a network takes."""
        return part(self.dataset(name).train, self.fold_rows()[fold][1])

    def pruned(self, name: str, sparsity: float, seed: int) -> tuple[Any, Any, Any]:
        """(masks, variables just pruned, variables fine-tuned) of a network."""
        variables = self.trained(name, seed).variables
        return self.prune(name, variables, sparsity, f"seed {seed}", seed=seed)

    def prune(
        self, name: str, variables: Any, sparsity: float, words: str, *, seed: int, rows: Any = ALL
    ) -> tuple[Any, Any, Any]:
        """(masks, variables just pruned, variables fine-tuned) of any weights of a network.

        Sparsity 0 is the control: the same fine-tuning without a pruning before it.
        """
        masks = pruning.global_magnitude(variables["params"], sparsity)
        cut = masked(variables, masks)
        run = f"fine-tune {name} at {100 * sparsity:g} % sparsity, {words}"
        recipe = dataclasses.replace(self.fine_tuning(name), seed=seed)
        fitted = self.fit(name, run, recipe, rows=rows, variables=cut, masks=masks)
        return masks, cut, fitted.variables

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

        A targeted attack aims at the study's target. `model` is the classifier's name in the file's.
        """
        aim = f" to {self.config.target}" if attack.targeted else ""
        stage = f"{evaluation.attack_label(attack)}{aim} on {model}"
        # A label rounds and leaves out, and weights may have been trained anew.
        facts = json.dumps(attacks.to_dict(attack), sort_keys=True).encode()
        leaves = [_bytes(leaf) for leaf in jax.tree.leaves(classifier)]
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


def _bytes(leaf: Any) -> bytes:
    """The bytes of an array or a PRNG key."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def masked(variables: Any, masks: Any) -> Any:
    """A network's variables with the weights that a mask removes set to zero."""
    return dict(variables) | {"params": pruning.apply_masks(variables["params"], masks)}


def right(classifier: Any, split: data.Split) -> np.ndarray:
    """Which images of a split a classifier has right: bool [N]."""
    return predictions(evaluation.logits(classifier, split.images)) == split.labels


def add_mean(facts: studies.Facts, measure: str, values: Any, **keys: Any) -> None:
    """Adds the mean of those values that are defined, with its 95 % interval, if there are any."""
    values = np.asarray(values, float)
    defined = values[np.isfinite(values)]
    if len(defined):
        found = evaluation.mean_interval(defined)
        bounds = {"low": found["low"], "high": found["high"]}
        facts.add(measure, value=found["mean"], n=len(defined), **bounds, **keys)


def plain(words: str) -> str:
    """Words as a file's name.

    Example:
      >>> plain("PGD, linf 0.03, 40 steps on cnn at 20 %")
      'pgd-linf-0.03-40-steps-on-cnn-at-20'
    """
    return re.sub(r"[^a-z0-9._]+", "-", words.lower()).strip("-.")
