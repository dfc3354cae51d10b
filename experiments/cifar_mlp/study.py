"""What the stages of the study share: the data in their splits, and the trained classifiers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp import network, programs, source
from experiments.cifar_mlp.config import Config
from experiments.cifar_mlp.network import Layer, Params
from experiments.cifar_mlp.source import Ablation
from jaxrobust import data, evaluation, files, models, studies

SCALE = 1e-3  # standard deviation of the first weights; the source does not say
NUM_FOLDS = 10  # one of them validates
QUICK_IMAGES = (5120, 1000)  # of the train and of the test split, at most

Curves = dict[str, np.ndarray]


class Study:
    """One run: its settings, its folder, and everything that several stages need.

    Args:
      config: The settings.
      folder: Of the run.
      dataset: The data.
    """

    def __init__(self, config: Config, folder: Path, dataset: data.Dataset) -> None:
        self.config, self.folder, self.dataset = config, folder, dataset
        self.stages = studies.Stages(folder)
        self._trained: dict[str, Curves] = {}
        fitted, validating = data.stratified_folds(dataset.train.labels, NUM_FOLDS)[0]
        pixels = np.prod(dataset.image_shape[:2])
        train = dataset.train
        parts = [
            (train.images[fitted], train.labels[fitted]),
            (train.images[validating], train.labels[validating]),
            (dataset.test.images, dataset.test.labels),
        ]
        fitting, held_out, test = (
            programs.Examples(images.reshape(len(images), -1), labels) for images, labels in parts
        )
        mean, std = (np.tile(values, pixels) for values in (dataset.mean, dataset.std))
        self.splits = programs.Splits(fitting, held_out, test, mean, std)

    @property
    def seeds(self) -> range:
        """Of every setting."""
        return range(self.config.seed, self.config.seed + self.config.num_seeds)

    @property
    def key(self) -> jax.Array:
        """The key of whatever is random outside of training."""
        return jax.random.key(self.config.seed)

    @property
    def num_epochs(self) -> int:
        """Of the main classifier with one layer: the source's 60 where the ablations have its 30."""
        return 2 * self.config.num_epochs

    @property
    def pair(self) -> tuple[int, int]:
        """The classes of the source's fooling image, truck and automobile: the last, the second."""
        return self.dataset.num_classes - 1, 1

    def trained(
        self, stage: str, settings: Sequence[Mapping[str, float]], num_epochs: int
    ) -> Curves:
        """Trains all settings with all seeds in one program; read back if that was done before.

        The weights of the first seed are kept in a file, for `params`.

        Args:
          stage: Its name.
          settings: S of them.
          num_epochs: E.

        Returns:
          The fields of `programs.Trained` but for the weights, [R, S, E] or [R, S].
        """

        def compute(_: Any) -> dict[str, Any]:
            columns = [
                np.array([row[name] for row in settings]) for name in programs.Settings._fields
            ]
            keys = jax.vmap(jax.random.key)(jnp.array(self.seeds))
            found = jax.device_get(
                programs.run(keys, programs.Settings(*columns), self.splits, SCALE, num_epochs)
            )
            leaves = [leaf[0] for layer in found.params for leaf in layer]
            path = self._weights(stage)
            path.parent.mkdir(exist_ok=True)
            with files.replace(path) as file:
                np.savez(file, **{f"leaf_{i}": leaf for i, leaf in enumerate(leaves)})
            curves = found._asdict()
            del curves["params"]
            return {name: values.tolist() for name, values in curves.items()}

        if stage not in self._trained:
            found = self.stages.remember(stage, compute)
            self._trained[stage] = {name: np.array(values) for name, values in found.items()}
        return self._trained[stage]

    def ablation(self, ablation: Ablation) -> Curves:
        """The trainings of one table of the source."""
        return self.trained(stage_of(ablation), ablation.settings, self.config.num_epochs)

    def main_one_layer(self) -> Curves:
        """The main classifier with one layer: [R, 1, E]."""
        return self.trained("train one layer", [source.ONE_LAYER], self.num_epochs)

    def params(self, stage: str, setting: int, width: int) -> Params:
        """The first seed's weights of a setting, without the padding of its hidden layer."""
        with np.load(self._weights(stage)) as archive:
            leaves = [archive[f"leaf_{i}"][setting] for i in range(len(archive))]
        layers = [Layer(*leaves[i : i + 2]) for i in range(0, len(leaves), 2)]
        if width:
            first, last = layers
            layers = [
                Layer(first.weights[:, :width], first.bias[:width]),
                Layer(last.weights[:width], last.bias),
            ]
        return tuple(layers)

    def classifier(self, params: Params) -> models.Classifier:
        """Weights as a function from pixels in [0, 1], as attacks take it."""
        return models.Classifier(apply, params, self.dataset.mean, self.dataset.std)

    def _weights(self, stage: str) -> Path:
        return self.folder / "weights" / f"{stage.replace(' ', '-').replace(',', '')}.npz"


def apply(variables: Params, images: jax.Array) -> jax.Array:
    """Logits [B, K] of normalised images [B, H, W, C]."""
    return network.logits(variables, images.reshape(len(images), -1))


def stage_of(ablation: Ablation) -> str:
    """The name of the stage that trains an ablation."""
    return f"train {ablation.network}, {ablation.title}"


def smaller(dataset: data.Dataset) -> data.Dataset:
    """As much of a data set as --quick uses, spread over it."""

    def cut(split: data.Split, most: int) -> data.Split:
        rows = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(int))
        names = tuple(split.files[row] for row in rows)
        return data.Split(split.images[rows], split.labels[rows], names)

    splits = (dataset.train, dataset.test)
    train, test = (cut(split, most) for split, most in zip(splits, QUICK_IMAGES, strict=True))
    return data.Dataset(
        name=dataset.name,
        train=train,
        test=test,
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
    )


def mean_of(values: Sequence[float] | np.ndarray, scale: float = 1.0) -> Any:
    """The mean over seeds with its 95 % interval, as a cell."""
    found = evaluation.mean_interval(values)
    return studies.blocks.estimate(found["mean"], found["low"], found["high"], scale)
