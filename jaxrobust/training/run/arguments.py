"""The arguments of a training, checked, described and prepared for its programs."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, compilation, files, programs
from jaxrobust.attacks import conversation
from jaxrobust.pruning import apply_masks
from jaxrobust.training.compression.compatibility import check_compression
from jaxrobust.training.compression.informed import informed
from jaxrobust.training.run import devices, digests, fingerprint
from jaxrobust.training.run.batches import DeviceData, on_device
from jaxrobust.training.run.compiled_steps import GivenByEpoch
from jaxrobust.training.run.plan import Given, Itself, Plan, split
from jaxrobust.training.step import nnx_modules
from jaxrobust.training.step.attack_schedule import stages_of
from jaxrobust.training.step.network import Network
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.training.step.state import TrainState, check_variables, create_state, plain
from jaxrobust.types import Array, Masks, PyTree, as_key


@dataclasses.dataclass(frozen=True)
class Data:
    """The images and labels of a training, and the normalisation of the images.

    Attributes:
      train: The training set: (images [N, H, W, C], uint8 or floating in [0, 1]; integer labels [N]).
      validation: The validation set, in the same form, which is evaluated after each epoch. Early
        stopping and the schedule `Plateau` need it. None: no validation.
      mean: [C] or a scalar, subtracted from pixel values in [0, 1].
      std: [C] or a scalar, above 0, by which the difference is divided.
    """

    train: tuple[Any, Any]
    validation: tuple[Any, Any] | None = None
    mean: Any = 0.0
    std: Any = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """The checked arguments of `fit`, with the data on the device.

    Attributes:
      model: The model as it was given.
      network: The model with the mean and standard deviation of the data.
      recipe: The recipe, whose compression has learned from the network what it was not given.
      constraint: The constraint of the compression as it was given; None without one.
      train: The training set.
      validation: The validation set, or None.
      variables: The variables to start from; None: the initial variables of the model.
      masks: Boolean leaves in the structure of the parameters, or None.
      num_devices: The number of devices of each process that share each batch.
      order_key: The PRNG key for the order of the examples.
      step_key: The PRNG key for everything that is random in a step.
    """

    model: Any
    network: Network
    recipe: Recipe
    constraint: Any
    train: DeviceData
    validation: DeviceData | None
    variables: PyTree | None
    masks: Masks | None
    num_devices: int
    order_key: Array
    step_key: Array

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return tuple(self.train.images.shape[1:])

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch."""
        return len(self.train.labels) // self.recipe.batch_size

    @property
    def has_trained_statistics(self) -> bool:
        """Whether the running statistics before the first step are not the initial ones."""
        if self.variables is None:
            return False
        means = [
            leaf
            for path, leaf in jax.tree.leaves_with_path(self.variables.get("batch_stats", {}))
            if jax.tree_util.keystr(path[-1:], simple=True) == "mean"
        ]
        return any(bool(jnp.any(leaf != 0)) for leaf in means)

    @property
    def start(self) -> PyTree:
        """The variables before the first step."""
        if self.variables is not None:
            return self.variables
        return initial_variables(self.model, self.image_shape, self.recipe.seed)

    def initial_state(self) -> TrainState:
        """The state before the first step."""
        start = self.start
        if self.masks is not None:
            start = dict(start) | {"params": apply_masks(start["params"], self.masks)}
        key = jax.random.fold_in(self.step_key, np.uint32(2**32 - 2))
        return create_state(start, self.recipe, image_shape=self.image_shape, key=key)

    @functools.cached_property
    def template(self) -> TrainState:
        """The shapes of the initial state; a resumed or finished run needs no initial weights."""
        return jax.eval_shape(self.initial_state)

    @functools.cached_property
    def num_classes(self) -> int:
        """The number of classes K, from the shape of the logits.

        Raises:
          TypeError: The network does not return a single floating array.
          ValueError: The shape of what it returns is not [B, K].
        """
        images = jax.ShapeDtypeStruct((2, *self.image_shape), jnp.float32)
        variables = self.template.variables
        logits = programs.explained(jax.eval_shape, self.network.logits, variables, images)
        programs.check_logits(logits, images, "model")
        return logits.shape[-1]

    @property
    def _compression(self) -> Any:
        """The compression method without its budget, which is an argument of the programs."""
        method: Any = self.recipe.compression
        return None if method is None else dataclasses.replace(method, kept=1.0)

    @functools.cached_property
    def digests(self) -> dict[str, Any]:
        """Digests of what user-written parts compute; their names would not change with an edit."""
        return {
            "model": digests.of_model(self.network, self.template.variables, self.image_shape),
            "augmentation": digests.of_augmentation(self.recipe.augmentation, self.image_shape),
            "values": digests.of_values(
                dataclasses.replace(self.recipe, compression=self._compression),
                self.template,
                self.network,
                self.masks,
                self.image_shape,
            ),
        }

    @functools.cached_property
    def plan(self) -> Plan:
        """The settings that the programs are compiled for."""
        recipe = self.recipe
        return Plan(
            model=Itself(
                self.network.model,
                json.dumps([self.digests[name] for name in ("model", "values")]),
            ),
            augmentation=Itself(recipe.augmentation, self.digests["augmentation"]),
            objective=split(recipe.objective)[0],
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            averaging=recipe.averaging,
            precision=recipe.precision,
            compression=self._compression,
            num_epochs=recipe.num_epochs,
            batch_size=recipe.batch_size,
            num_examples=len(self.train.labels),
            num_devices=self.num_devices,
        )

    @functools.cached_property
    def stages(self) -> GivenByEpoch:
        """The arguments of the steps of each epoch, on the devices."""
        replicate = devices.replicated(self.num_devices)
        always = replicate(
            Given(
                examples=self.train,
                key=self.step_key,
                mean=jnp.asarray(self.network.mean, jnp.float32),
                std=jnp.asarray(self.network.std, jnp.float32),
                masks=jax.tree.map(jnp.asarray, self.masks),
                objective=tuple(map(jnp.asarray, split(self.recipe.objective)[1])),
            )
        )
        return GivenByEpoch(
            tuple(
                (first, always._replace(adversary=replicate(conversation.as_arrays(one))))
                for first, one in stages_of(self.recipe.adversary)
            )
        )

    def settings(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON."""
        recipe: Recipe = self.recipe
        method: Any = recipe.compression
        if method is not None and self.constraint is not None:
            method = dataclasses.replace(method, constraint=self.constraint)
            recipe = dataclasses.replace(recipe, compression=method)
        return fingerprint.describe(
            {
                "recipe": recipe,
                "model": self.model,
                # In one form: .5, (.5, .5, .5) and an array of it are the same setting.
                "mean": np.asarray(self.network.mean, np.float32).tolist(),
                "std": np.asarray(self.network.std, np.float32).tolist(),
                "versions": fingerprint.versions(),
                "programs": self.digests,
                "arrays_of_the_objective": split(self.recipe.objective)[1],
                "train": self.train._asdict(),
                "validation": None if self.validation is None else self.validation._asdict(),
                "variables": self.variables,
                "masks": self.masks,
            }
        )


def prepared(
    model: Any,
    data: Data,
    recipe: Recipe,
    variables: PyTree | None,
    masks: Masks | None,
    num_devices: int,
) -> Job:
    """Checks the arguments of `fit` and puts the data on the device; writes nothing."""
    Network(model)  # says what is wrong with the model first
    for name, value, kind, words in (
        ("data", data, Data, "Data(train=(images, labels), mean=..., std=...)"),
        ("recipe", recipe, Recipe, "Recipe(num_epochs=30)"),
    ):
        if not isinstance(value, kind):
            raise TypeError(
                f"`{name}` must be a training.{kind.__name__}, such as {words}, got "
                f"{type(value).__name__}."
            )
    _check_devices(recipe, num_devices)
    _check_static(recipe)
    if recipe.compression is not None and masks is not None:
        raise ValueError(
            "`masks` must be None if the recipe has a `compression`: both choose the weights that stay."
        )
    # Checked once, and on the device from here on.
    train = on_device("train", data.train)
    validation = None
    if data.validation is not None:
        validation = on_device("validation", data.validation, train.images.shape[1:])
    _check_sizes(recipe, data, train)
    # The first key is that of the weights, which `initial_variables` draws.
    _, order_key, step_key = jax.random.split(as_key(jax.random.key(recipe.seed)), 3)
    job = Job(
        model=model,
        network=Network(model, data.mean, data.std),
        recipe=recipe,
        constraint=getattr(recipe.compression, "constraint", None),
        train=train,
        validation=validation,
        variables=_given_variables(model, variables),
        masks=_given_masks(masks),
        num_devices=num_devices,
        order_key=order_key,
        step_key=step_key,
    )
    # A compression that reads the network learns here what it is: kernels, groups, order of use.
    if recipe.compression is not None:
        variables = jax.eval_shape(lambda: job.start)
        method = informed(recipe.compression, job.network, variables, job.image_shape)
        recipe = dataclasses.replace(recipe, compression=method)
        job = dataclasses.replace(job, recipe=recipe)
        check_compression(recipe, job.template.params)
    checks.label_range("train labels", train.labels, job.num_classes)
    if validation is not None:
        checks.label_range("validation labels", validation.labels, job.num_classes)
    return job


def initial_variables(model: Any, image_shape: tuple[int, ...], seed: int) -> PyTree:
    """Returns the initial weights of `fit`, for instance to rewind a pruned network to them.

    Args:
      model: A linen module, or a pair of functions (init, apply); see `Network`. An nnx module already
        has weights, which are returned.
      image_shape: (H, W, C) of the training images.
      seed: The `seed` of the recipe.

    Returns:
      The variables, {"params": ..., "batch_stats": ...}; without state there is no "batch_stats".
    """
    if nnx_modules.is_nnx(model):
        return plain(model)
    init_key = jax.random.split(as_key(jax.random.key(seed)), 3)[0]
    image = jnp.zeros((1, *image_shape), jnp.float32)
    init = functools.partial(_initial_variables, init_key, model=Itself(Network(model).model, None))
    return programs.explained(init, image)


@functools.partial(compilation.jit, static_argnames="model")
def _initial_variables(key: Array, image: Array, *, model: Itself) -> PyTree:
    return plain(Network(model.value).init(key, image))


def _given_variables(model: Any, variables: Any) -> PyTree | None:
    """Returns the variables that a run starts from; None if the model initialises its own."""
    if variables is not None and not (
        isinstance(variables, Mapping) or nnx_modules.is_nnx(variables)
    ):
        raise TypeError(
            '`variables` must be {"params": ..., "batch_stats": ...}, an nnx module or its state, got '
            f"{type(variables).__name__}."
        )
    if not nnx_modules.is_nnx(model):
        return None if variables is None else plain(variables)
    own = plain(model)
    given = own if variables is None else plain(variables)
    check_variables(given)
    shapes = [
        {
            f"{name}/{path}": list(jnp.shape(leaf))
            for name, tree in one.items()
            for path, leaf in _by_path(tree).items()
        }
        for one in (own, given)
    ]
    different = files.differences(*shapes)
    if different:
        raise ValueError(
            "`variables` must have the structure of the nnx module `model`; they differ (`model`, then "
            f"`variables`) in {'; '.join(different)}."
        )
    return given


def _given_masks(masks: Any) -> Masks | None:
    """Returns the masks of the parameters, from those of parameters, of variables or of a module."""
    if masks is None:
        return None
    found = plain(masks)
    # The parameters need not be a dict: those of equinox are a module.
    is_variables = isinstance(found, Mapping) and "params" in found
    is_variables = is_variables and found.keys() <= {"params", "batch_stats"}
    return found["params"] if is_variables else found


def _by_path(tree: PyTree) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_devices(recipe: Recipe, num_devices: int) -> None:
    if num_devices > jax.local_device_count():
        raise ValueError(
            f"`num_devices` must be at most {jax.local_device_count()}, the devices of this process, "
            f"got {num_devices}."
        )
    if recipe.batch_size % devices.num_shares(num_devices):
        raise ValueError(
            f"`batch_size` must be a multiple of {devices.num_shares(num_devices)}, the devices that "
            f"share a batch, got {recipe.batch_size}."
        )


def _check_static(recipe: Recipe) -> None:
    """Raises if a part of the recipe is not hashable: a program is compiled for each value."""
    values = {
        name: getattr(recipe, name)
        for name in ("optimizer", "schedule", "averaging", "compression")
    }
    for name, value in (values | {"objective": split(recipe.objective)[0]}).items():
        try:
            hash(value)
        except TypeError as error:
            raise TypeError(
                f"`{name}` must be hashable, such as a frozen dataclass of numbers and tuples, or, if "
                f"it holds arrays, be registered as a pytree, got {getattr(recipe, name)!r}: {error}."
            ) from error


def _check_sizes(recipe: Recipe, data: Data, train: DeviceData) -> None:
    count, channels = train.images.shape[0], train.images.shape[-1]
    if recipe.batch_size > count:
        raise ValueError(
            f"`batch_size` must be at most {count}, the number of training images, got "
            f"{recipe.batch_size}."
        )
    if recipe.needs_validation and data.validation is None:
        raise ValueError(
            "`data.validation` must not be None: the schedule Plateau and `early_stopping_patience` "
            "need a validation set."
        )
    for name, value in (("mean", data.mean), ("std", data.std)):
        shape = np.shape(value)
        if shape not in ((), (channels,)):
            raise ValueError(f"`{name}` must be a scalar or [{channels}], got shape {shape}.")
    if not np.all((np.asarray(data.mean) >= 0) & (np.asarray(data.mean) <= 1)):
        raise ValueError(
            f"`mean` must lie in [0, 1], like the pixels, got {data.mean}: if it is in bytes, divide "
            "`mean` and `std` by 255."
        )
    if not np.all(np.asarray(data.std) > 0):
        raise ValueError(f"`std` must be above 0, got {data.std}.")
