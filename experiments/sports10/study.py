"""Data that the stages of the study share: photographs, trained networks, saved attacks."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.config import EPSILONS, EXPLAINED, Config
from experiments.sports10.networks import FINE_TUNING, SUBJECTS
from jaxrobust import data, evaluation, models, pruning, studies, training
from jaxrobust.attacks import FGSM, PGD, Attack
from jaxrobust.studies.outcomes import right_ones

ALL: Any = slice(None)


@functools.cache
def photographs(config: Config, size: int) -> data.Dataset:
    """Loads the photographs in one size; --quick takes every fifth of a split if there are many."""
    dataset = data.load("sports10", config.data_dir, size, skip_damaged=config.skip_damaged)
    if not config.quick or len(dataset.train) < 500:
        return dataset
    # An even number, so that both folds have one shape, and compile once.
    train = dataset.train.take(np.arange(0, 10 * (len(dataset.train) // 10), 5))
    test = dataset.test.take(np.arange(0, len(dataset.test), 5))
    return dataclasses.replace(dataset, train=train, test=test)


class Study:
    """One run: its settings, its folder and facts, and everything that several stages need.

    Args:
      config: The settings.
      run: The run's folder, stages and facts.
    """

    def __init__(self, config: Config, run: studies.Run) -> None:
        self.config, self.run, self.facts = config, run, run.facts
        self.class_names = photographs(config, 32).class_names
        self.target = self.class_names.index(config.target)
        self.key = run.key  # for everything random outside of training
        cross_validated = config.models if config.num_folds else ()
        self.folded = [name for name in cross_validated if SUBJECTS[name].folds]
        # The network that is explained by every method.
        explained = (name for name in EXPLAINED if name in config.models)
        self.chosen = next(explained, config.models[-1])
        defended = (self.chosen,) if config.quick else config.models
        self.defended = defended if config.defended is None else config.defended
        self.epsilons = EPSILONS[1:2] if config.quick else EPSILONS  # of attacks over epsilon
        self._fitted: dict[str, training.FitResult] = {}

    def seeds_of(self, name: str) -> range:
        """Returns the seeds with which a network is trained."""
        first, count = self.config.seed, self.config.num_seeds
        return range(first, first + min(count, SUBJECTS[name].max_seeds))

    def seeds_at(self, name: str, sparsity: float) -> range:
        """Returns the seeds whose networks are pruned to a sparsity; all seeds for sparsity 0."""
        swept = SUBJECTS[name].swept or sparsity in (0.0, self.config.sparsities[-1])
        return self.seeds_of(name) if swept else self.seeds_of(name)[:1]

    def dataset(self, name: str) -> data.Dataset:
        """Returns the photographs in the size that a network takes."""
        return photographs(self.config, SUBJECTS[name].image_size)

    def test(self, name: str) -> data.Split:
        """Returns the 50 test photographs in the size that a network takes."""
        return self.dataset(name).test

    def pixels(self, name: str) -> jax.Array:
        """Returns the test photographs as float32 [N, H, W, C] in [0, 1]."""
        return jnp.asarray(self.test(name).images / np.float32(255))

    def network(self, name: str) -> Any:
        """Returns the module of a network."""
        return models.create(SUBJECTS[name].model, len(self.class_names))

    def classifier(self, name: str, variables: Any) -> models.Classifier:
        """Returns the classifier of a network with these weights."""
        dataset = self.dataset(name)
        network = self.network(name)
        return models.Classifier(network.apply, variables, dataset.mean, dataset.std)

    def right(self, name: str, variables: Any, split: data.Split) -> np.ndarray:
        """Returns which images of a split a network with these weights has right: bool [N]."""
        return right_ones(self.classifier(name, variables), split.images, split.labels)

    def fit(
        self,
        name: str,
        stage: str,
        recipe: training.Recipe,
        *,
        rows: Any = ALL,
        validation: data.Split | None = None,
        **start: Any,
    ) -> training.FitResult:
        """Trains a network on rows of the photographs; a finished training is read back.

        `stage` names the training and its folder. `validation` is only drawn beside the training curve;
        a recipe that needs a validation set has what the network's recipe watches in its place.
        `start` can have the arguments `variables` and `masks` of `training.fit`.
        """
        if stage not in self._fitted:
            dataset = self.dataset(name)
            rows, watched = self._rows(name, rows, recipe.seed)
            validation = watched if recipe.needs_validation else validation
            images, labels = dataset.train.images[rows], dataset.train.labels[rows]
            shown = None if validation is None else (validation.images, validation.labels)
            self._fitted[stage] = self.run.fit(
                stage,
                f"training/{studies.plain(stage)}",
                self.network(name),
                training.Data((images, labels), shown, dataset.mean, dataset.std),
                dataclasses.replace(recipe, batch_size=min(recipe.batch_size, len(labels))),
                host=training.Host(checkpoint_every=20),
                **start,
            )
        return self._fitted[stage]

    def watches(self, name: str) -> str | None:
        """Returns what a network's recipe watches, "split" or "test"; None if it watches nothing."""
        subject = SUBJECTS[name]
        return subject.watches if subject.training.needs_validation else None

    def watched(self, name: str, seed: int) -> Any:
        """Returns the photographs that the training with a seed watches; None if it watches nothing."""
        return self._rows(name, ALL, seed)[1]

    def num_train(self, name: str) -> int:
        """Returns the number of photographs on which a network is trained, without those it watches."""
        watched = self.watched(name, self.config.seed) if self.watches(name) == "split" else ()
        return len(self.dataset(name).train) - len(watched)

    def _rows(self, name: str, rows: Any, seed: int) -> tuple[Any, data.Split | None]:
        """Returns the rows on which a network is trained, and what its recipe watches, if anything.

        Fine-tuning has the same rows as the training, or it would be an advantage of the fine-tuned.
        """
        train, watches = self.dataset(name).train, self.watches(name)
        if watches != "split":
            return rows, self.test(name) if watches == "test" else None
        rows = np.arange(len(train))[rows]
        kept, held_out = data.stratified_folds(train.labels[rows], 10, seed=seed)[0]
        return rows[kept], train.take(rows[held_out])

    def recipe(self, name: str, seed: int, share: float = 1.0, **changes: Any) -> training.Recipe:
        """Returns a network's recipe, with a share of its epochs or of --num-epochs."""
        recipe = SUBJECTS[name].training
        num_epochs = max(1, round(share * (self.config.num_epochs or recipe.num_epochs)))
        return dataclasses.replace(recipe, seed=seed, num_epochs=num_epochs, **changes)

    def fine_tuning(self, name: str, seed: int) -> training.Recipe:
        """Returns the recipe by which a pruned network is fine-tuned."""
        subject = SUBJECTS[name]
        num_epochs = 1 if self.config.quick else subject.fine_tuning_epochs
        changes: Any = {"num_epochs": num_epochs, "augmentation": subject.training.augmentation}
        return dataclasses.replace(FINE_TUNING, seed=seed, **changes)

    def trained(self, name: str, seed: int, fold: int | None = None) -> training.FitResult:
        """Trains a network with a seed, on all training photographs or all except those of a fold."""
        recipe = self.recipe(name, seed)
        if fold is not None:
            rows = self.fold_rows()[fold][0]
            fitted = self.fit(name, f"train {name}, fold {fold}", recipe, rows=rows)
        else:
            shown = self.test(name) if seed == self.config.seed else None
            fitted = self.fit(name, f"train {name}, seed {seed}", recipe, validation=shown)
        return self.kept(name, fitted)

    def kept(self, name: str, fitted: training.FitResult) -> training.FitResult:
        """Returns a training with the variables of the last or the best epoch, as its subject says."""
        if SUBJECTS[name].epoch == "last":
            return fitted
        return dataclasses.replace(fitted, variables=fitted.best_variables)

    def base(self, name: str) -> models.Classifier:
        """Returns the network of the first seed, which is explained and attacked."""
        return self.classifier(name, self.trained(name, self.config.seed).variables)

    def fold_rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns (rows to train on, held-out rows) for each fold."""
        labels = photographs(self.config, 32).train.labels
        return data.stratified_folds(labels, self.config.num_folds, seed=self.config.seed)

    def held_out(self, name: str, fold: int) -> data.Split:
        """Returns the held-out photographs of a fold, in the size that a network takes."""
        return self.dataset(name).train.take(self.fold_rows()[fold][1])

    def pruned(
        self, name: str, sparsity: float, seed: int, fold: int | None = None
    ) -> tuple[Any, Any, Any]:
        """Prunes and fine-tunes a network of `trained`.

        Sparsity 0 is the control: the same fine-tuning without pruning.

        Returns:
          (masks, variables after pruning, variables after fine-tuning).
        """
        variables, rows = self.trained(name, seed, fold).variables, ALL
        words = f"seed {seed}"
        if fold is not None:
            rows, words = self.fold_rows()[fold][0], f"fold {fold}"
        masks = pruning.global_magnitude(variables["params"], sparsity)
        cut, recipe = masked(variables, masks), self.fine_tuning(name, seed)
        stage = f"fine-tune {name} at {100 * sparsity:g} % sparsity, {words}"
        fitted = self.fit(name, stage, recipe, rows=rows, variables=cut, masks=masks)
        return masks, cut, fitted.variables

    def threats(self, *epsilons: float) -> list[dict[str, Any]]:
        """Returns FGSM and PGD at each epsilon, as arguments of `make` and keys; untargeted first."""
        return [
            {"attack": attack, "epsilon": epsilon, "targeted": targeted}
            for targeted in (False, True)
            for attack in ("FGSM", "PGD")
            for epsilon in epsilons
        ]

    def make(self, attack: str | None, epsilon: Any = None, targeted: Any = False) -> Attack:
        """Makes an attack, by default at the main epsilon; PGD's step is proportional to epsilon."""
        main, epsilon = self.config.epsilon, epsilon or self.config.epsilon
        if attack == "FGSM":
            return FGSM(epsilon, targeted=targeted)
        step_size = self.config.step_size * epsilon / main
        return PGD(epsilon, step_size, self.config.num_steps, targeted=targeted)

    def attack(
        self, attack: Attack, name: str, classifier: Any = None, words: str = ""
    ) -> evaluation.AttackReport:
        """Attacks the test photographs of a network; a finished attack is read back.

        A targeted attack aims at the study's target. If `classifier` is not the network itself, `words`
        follow the network's name in the file name.
        """
        test, aim = self.test(name), f" to {self.config.target}" if attack.targeted else ""
        return self.run.attack(
            f"{evaluation.attack_label(attack)}{aim} on {name}{words}",
            attack,
            self.base(name) if classifier is None else classifier,
            test.images,
            test.labels,
            targets=self.target if attack.targeted else None,
        )


def masked(variables: Any, masks: Any) -> Any:
    """Returns a network's variables, in which the weights that a mask removes are zero."""
    return dict(variables) | {"params": pruning.apply_masks(variables["params"], masks)}
