"""`fit`: the public edge of training. It checks, assembles and hands over to the loop."""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, files
from jaxrobust.pruning import apply_masks
from jaxrobust.training import adversaries, compressing, fingerprint, loop, programs, sharing
from jaxrobust.training.adversaries import AttackSchedule, FreeReplays
from jaxrobust.training.checkpoint import RunCheckpoints
from jaxrobust.training.compression import Compression, check_compression, kept_at
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.data import Examples, on_device
from jaxrobust.training.history import (
    Row,
    best_epoch,
    catastrophic_overfitting,
    is_finished,
)
from jaxrobust.training.interrupt import catch_interrupt
from jaxrobust.training.logs import Display, RunLog
from jaxrobust.training.optimizers import make_optimizer
from jaxrobust.training.state import TrainState, create_state
from jaxrobust.training.step import Augment, check_objective, check_untargeted
from jaxrobust.types import Array, Attack, Masks, PyTree, as_key

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training run came to.

    Attributes:
      state: After the last epoch.
      variables: Of the last epoch; the moving average if one was kept.
      best_variables: Of the best epoch on the validation set; without one, of the last epoch.
      best_epoch: Counted from 1.
      history: One row per epoch, as in log.jsonl: epoch, step, train_loss, train_accuracy,
        validation_loss, validation_accuracy, learning_rate, gradient_norm.
      timings: One row per epoch, as in timings.jsonl: epoch, train_seconds, validation_seconds,
        checkpoint_seconds. Epochs in which the run was killed may be short or absent.
      catastrophic_epoch: The epoch of catastrophic overfitting (`history.catastrophic_overfitting`),
        where training and validation were attacked and there was one; else None.
      masks: Of a run with a compression: which weights of `variables` stay, exactly; else None.
      best_masks: Likewise of `best_variables`.
      final: Of a run with a compression, about `variables`: `kept_weights` of `weights` in the
        kernels that its masks prune, and if there is validation, under its attack, the accuracies
        `accuracy_before` (what was trained, with its own statistics), `accuracy_projected` (with
        these statistics) and `accuracy_after` (with statistics estimated anew). {} without a
        compression.
    """

    state: TrainState
    variables: PyTree
    best_variables: PyTree
    best_epoch: int
    history: tuple[Row, ...]
    timings: tuple[Row, ...]
    catastrophic_epoch: int | None = None
    masks: Masks | None = None
    best_masks: Masks | None = None
    final: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of all epochs that were timed, however often the run was started again."""
        return sum(
            row[name]
            for row in self.timings
            for name in ("train_seconds", "validation_seconds", "checkpoint_seconds")
        )

    @property
    def seconds_per_epoch(self) -> float | None:
        """Median of the training time of an epoch, so compiling does not count; None if unknown."""
        seconds = [row["train_seconds"] for row in self.timings]
        return statistics.median(seconds) if seconds else None


def initial_variables(model: nn.Module, image_shape: tuple[int, ...], seed: int) -> PyTree:
    """The weights that `fit` starts from: what rewinding a pruned network goes back to.

    Args:
      model: The network.
      image_shape: (H, W, C).
      seed: Of the training's settings.

    Returns:
      {"params": ..., "batch_stats": ...}, as the network has them.
    """
    init_key = jax.random.split(as_key(jax.random.key(seed)), 3)[0]
    image = jnp.zeros((1, *image_shape), jnp.float32)
    return programs.initial_variables(init_key, image, model=programs.Itself(model, None))


def fit(
    model: nn.Module,
    train: tuple[Any, Any],
    config: TrainConfig,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    validation: tuple[Any, Any] | None = None,
    augment: Augment | None = None,
    attack: Attack | FreeReplays | AttackSchedule | None = None,
    validation_attack: Attack | None = None,
    variables: PyTree | None = None,
    masks: Masks | None = None,
    compression: Compression | None = None,
    checkpoint_every: int = 1,
    num_devices: int = 1,
    progress: bool = True,
    tensorboard: bool = False,
) -> FitResult:
    """Trains a network, from where an interrupted run of the same settings left off.

    The run directory holds `settings.json`, `log.jsonl` (the same, bit for bit, however often the
    run was killed), `timings.jsonl` and `checkpoints/`, the latest and the best. Started again, a
    finished run returns its result without training. On a GPU, results are only repeatable, and so
    a resumed run only equal to an undisturbed one, with XLA_FLAGS=--xla_gpu_deterministic_ops=true.

    Ctrl-C finishes the step (on a GPU up to a hundred), saves a checkpoint and raises
    KeyboardInterrupt; the same call goes on with the next step. A second Ctrl-C stops at once and loses
    what came after the last checkpoint.

    Args:
      model: A linen module, `model(images, train=False)` on normalised images -> logits [B, K],
        with "params" and perhaps "batch_stats", and the generator "dropout" if it needs one.
      train: (images [N, H, W, C], uint8 or floating in [0, 1]; integer labels [N]).
      config: The settings.
      run_dir: Where the run lives. None: nowhere; it cannot be resumed.
      mean: [C] or a scalar, of pixel values in [0, 1].
      std: [C] or a scalar.
      validation: As `train`; evaluated after each epoch, each example once. Needed for early
        stopping and the plateau schedule.
      augment: (key, images float32 [B, H, W, C] in [0, 1]) -> images.
      attack: For adversarial training, untargeted; its last point takes the place of each image, as
        the loss of `config` says. Restarts and `keep` do not matter: no point is judged. Beside the
        attacks of `jaxrobust.attacks` those of `training`: NFGSM, KLAscent (TRADES), FreeReplays.
        An AttackSchedule has another one from certain epochs on.
      validation_attack: Likewise for the validation images, so that the best epoch is the most
        robust one: of a long adversarial training that is not the last. None: they stay clean.
      variables: To start from, for fine-tuning. None: the model's own initial ones.
      masks: The parameters' structure with boolean leaves; False keeps a parameter at 0.
      compression: A method that compresses the network while it is trained: ADMM, Hydra, RigL.
        Validation is of the compressed network by the epoch's budget, with statistics of its own;
        epochs before the last budget do not count as the best. `variables` of the result are
        compressed, `state` is not. Not together with `masks`.
      checkpoint_every: Epochs between checkpoints, besides the last one and every new best. A run
        that is killed repeats what came after the last. It changes no result.
      num_devices: How many devices share each batch; a divisor of `batch_size`. It changes nothing but
        rounding, and a run may go on with another number. With several processes
        (`jax.distributed`) it is how many of each: all of them make the same call with the same
        data, the first one writes, Ctrl-C is answered at the end of an epoch, and an error in one of
        them leaves the others waiting until jax gives them up.
      progress: Whether to show a bar on a terminal, and a line per epoch.
      tensorboard: Whether to write `tensorboard/` too.

    Returns:
      The result.

    Raises:
      TypeError: An argument of the wrong type.
      ValueError: An argument out of range, or a run directory of other settings or data.
      FloatingPointError: The loss or the gradient is no longer finite. Earlier epochs remain saved.
      KeyboardInterrupt: Ctrl-C.
      ImportError: `tensorboard` without tensorboardX.

    References:
      Rice, Wong and Kolter, "Overfitting in adversarially robust deep learning", ICML 2020,
      https://arxiv.org/abs/2002.11569 (why `validation_attack`).

    Example:
      >>> import flax.linen as nn
      >>> import numpy as np
      >>> class Linear(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, images, train=False):
      ...         return nn.Dense(2)(images.reshape(len(images), -1))
      >>> images = np.repeat(np.uint8([0, 255]), 8).reshape(16, 1, 1, 1)
      >>> config = TrainConfig(num_epochs=3, batch_size=8, optimizer="sgd", learning_rate=1.0)
      >>> result = fit(Linear(), (images, np.repeat([0, 1], 8)), config, progress=False)
      >>> result.history[-1]["train_accuracy"]
      1.0
    """
    checks.integer("checkpoint_every", checkpoint_every, minimum=1)
    checks.integer("num_devices", num_devices, minimum=1)
    if num_devices > jax.local_device_count():
        raise ValueError(
            f"`num_devices` must be at most the {jax.local_device_count()} devices of a process, got "
            f"{num_devices}."
        )
    if config.batch_size % sharing.num_shares(num_devices):
        raise ValueError(
            f"`batch_size` must be a multiple of the {sharing.num_shares(num_devices)} devices that "
            f"share it, got {config.batch_size}."
        )
    if run_dir is None and jax.process_count() > 1:
        raise ValueError(
            "`run_dir` is needed with several processes: a folder that all of them see."
        )
    train_set = on_device("train", train)
    validation_set = None
    if validation is not None:
        validation_set = on_device("validation", validation, train_set.images.shape[1:])
    _check_sizes(config, train_set, validation_set, mean, std)
    stages = adversaries.stages_of(attack)
    for _, one in stages:
        check_objective(programs.objective_of(config), one)
    if stages[-1][0] > config.num_epochs:
        raise ValueError(
            f"`attack` has a stage from epoch {stages[-1][0]} on, which is beyond `num_epochs` = "
            f"{config.num_epochs}."
        )
    if isinstance(validation_attack, FreeReplays | AttackSchedule):
        raise ValueError(
            "`validation_attack` must be one attack, the same in all epochs, got "
            f"{type(validation_attack).__name__}."
        )
    check_untargeted(validation_attack)
    if compression is not None and masks is not None:
        raise ValueError(
            "`compression` and `masks` are two ways to choose weights; give one of them."
        )

    _, order_key, step_key = jax.random.split(as_key(jax.random.key(config.seed)), 3)
    image = jnp.zeros((1, *train_set.images.shape[1:]), jnp.float32)
    optimizer = make_optimizer(config)

    def initial_state() -> TrainState:
        start = variables
        if start is None:
            start = initial_variables(model, train_set.images.shape[1:], config.seed)
        if masks is not None:
            start = dict(start) | {"params": apply_masks(start["params"], masks)}
        memory = None
        if compression is not None:
            key = jax.random.fold_in(step_key, np.uint32(2**32 - 2))
            params, memory = compression.start(key, start["params"], kept_at(compression, 0))
            start = dict(start) | {"params": params}
        return create_state(
            start,
            optimizer,
            average=config.ema_decay is not None,
            perturbed=_trained_shape(train_set, config, augment)
            if isinstance(attack, FreeReplays)
            else None,
            compression=memory,
        )

    # Shapes alone: a run that goes on, or is finished, needs no initial weights.
    template = jax.eval_shape(initial_state)
    if compression is not None:
        check_compression(compression, config, attack, template.params)
    num_classes = jax.eval_shape(model.apply, template.variables, image).shape[-1]
    checks.label_range("train labels", train_set.labels, num_classes)
    if validation_set is not None:
        checks.label_range("validation labels", validation_set.labels, num_classes)

    digests = _programs(model, augment, template.variables, train_set.images.shape)
    settings = {
        "config": dataclasses.asdict(config),
        "model": model,
        # In one form: .5, (.5, .5, .5) and an array of it are the same setting.
        "mean": np.asarray(mean, np.float32).tolist(),
        "std": np.asarray(std, np.float32).tolist(),
        "versions": fingerprint.versions(),
        "programs": digests,
        "augment": augment,
        "attack": {f"from epoch {first}": one for first, one in stages} if stages[1:] else attack,
        "validation_attack": validation_attack,
        "train": train_set._asdict(),
        "validation": None if validation_set is None else validation_set._asdict(),
        "variables": variables,
        "masks": masks,
    }
    if compression is not None:
        settings["compression"] = compression
    steps_per_epoch = len(train_set.labels) // config.batch_size
    # Validated is the compressed network, trained the one before: that they part says nothing.
    is_attacked = attack is not None and validation_attack is not None and compression is None
    with contextlib.ExitStack() as stack:
        directory = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        _claim(
            directory,
            fingerprint.describe(settings),
            {"num_devices": num_devices, "checkpoint_every": checkpoint_every},
        )
        checkpoints = stack.enter_context(RunCheckpoints(directory / CHECKPOINTS))
        if sharing.different({"step": checkpoints.latest_step}):
            raise ValueError(f"`run_dir` {directory} is not the same folder in all processes.")
        position = loop.restore(checkpoints, template) or loop.Position(
            initial_state(), programs.zero_totals(), ()
        )
        replicate = sharing.replicated(num_devices)
        position = position._replace(
            state=replicate(position.state), totals=replicate(position.totals)
        )
        plan = programs.make_plan(
            model, augment, config, len(train_set.labels), digests, num_devices, compression
        )
        constants = programs.make_constants(mean, std, masks, validation_attack)
        unfinished = not is_finished(config, position.history)
        log = stack.enter_context(
            RunLog(
                directory,
                position.history,
                tensorboard=tensorboard and unfinished,
                writes=sharing.is_first_process(),
            )
        )
        shown = progress and sharing.is_first_process()
        display = stack.enter_context(Display(shown, config.num_epochs, steps_per_epoch))
        if not unfinished:
            display.say(f"Trained before: the result is that of {directory}.")
        elif int(position.state.step):
            display.say(f"Going on after step {int(position.state.step)}, from {directory}.")
        if unfinished:
            compiled = programs.compile_programs(
                plan,
                constants,
                attack,
                len(position.history),
                template,
                train_set,
                validation_set,
                order_key,
                step_key,
            )
            if compression is not None:
                if sharing.is_first_process():
                    (directory / compressing.FINAL).unlink(missing_ok=True)
                compiled = compressing.with_compression(
                    compiled, compression, plan, constants, attack, train_set, step_key
                )
            position = loop.train(
                position,
                config,
                compiled,
                checkpoints,
                log,
                display,
                stack.enter_context(catch_interrupt()),
                steps_per_epoch=steps_per_epoch,
                checkpoint_every=checkpoint_every,
                is_attacked=is_attacked,
            )
        best = best_epoch(config, position.history) or len(position.history)
        state = best_state = position.state
        if best < len(position.history):
            best_state = replicate(
                loop.restore_step(checkpoints, template, best * steps_per_epoch).state
            )
        found: dict[str, Any] = {
            "variables": state.evaluated,
            "best_variables": best_state.evaluated,
        }
        if compression is not None:
            found = compressing.results(
                directory,
                state,
                best_state,
                kept_at(compression, config.num_epochs),
                plan,
                replicate(constants),
                replicate(train_set),
                lambda: programs.compile_evaluation(
                    plan, constants, template, validation_set, step_key
                ),
            )
        # Whoever takes the result knows nothing of the devices.
        figures = found.pop("final", {})
        return FitResult(
            state=sharing.on_this_process(state),
            **sharing.on_this_process(found),
            best_epoch=best,
            history=position.history,
            timings=tuple(log.timings),
            catastrophic_epoch=catastrophic_overfitting(position.history) if is_attacked else None,
            final=figures,
        )


def _claim(directory: Path, settings: dict[str, Any], call: dict[str, Any]) -> None:
    """`files.claim` by the first process; with several, all of them go on or none does.

    What one process alone refused, the others would wait for.
    """
    unlike = sharing.different(settings | call)
    if unlike:
        raise ValueError(
            f"`fit` must be called alike in all processes; they differ in {', '.join(unlike)}."
        )
    refusal: Exception | None = None
    if sharing.is_first_process():
        try:
            started = any((directory / CHECKPOINTS).glob("*"))
            files.claim(directory, settings, in_use=started)
        except Exception as error:
            refusal = error
    if sharing.in_any_process(refusal is not None):
        raise refusal or ValueError(
            f"The first process refused `run_dir` {directory}; it says why."
        )
    if sharing.in_any_process(not (directory / files.SETTINGS).is_file()):
        raise ValueError(f"`run_dir` {directory} must be a folder that all processes see.")


def _trained_shape(
    train: Examples, config: TrainConfig, augment: Augment | None
) -> tuple[int, ...]:
    """Of a batch as the network sees it: augmentation may change the size of the images."""
    shape = (config.batch_size, *train.images.shape[1:])
    if augment is None:
        return shape
    key, images = as_key(jax.random.key(0)), jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda *arguments: augment(*arguments), key, images).shape


def _programs(
    model: nn.Module, augment: Augment | None, variables: PyTree, shape: tuple[int, ...]
) -> dict[str, str | None]:
    """Digests of what the network and the augmentation compute: names alone would hide an edit."""
    images = jax.ShapeDtypeStruct((2, *shape[1:]), jnp.float32)
    key = jax.eval_shape(lambda: as_key(jax.random.key(0)))

    def forward(variables: PyTree, images: Array, key: Array) -> Any:
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    return {
        "model": fingerprint.program(forward, variables, images, key),
        # Through a function of its own: jax would take the trace of a function that it has seen.
        "augment": None
        if augment is None
        else fingerprint.program(lambda *arguments: augment(*arguments), key, images),
    }


def _check_sizes(
    config: TrainConfig, train: Examples, validation: Examples | None, mean: Any, std: Any
) -> None:
    count, channels = train.images.shape[0], train.images.shape[-1]
    if config.batch_size > count:
        raise ValueError(
            f"`batch_size` must be at most the {count} training images, got {config.batch_size}."
        )
    if config.needs_validation and validation is None:
        raise ValueError(
            '`validation` is needed by schedule "plateau" and by `early_stopping_patience`.'
        )
    for name, value in (("mean", mean), ("std", std)):
        shape = np.shape(value)
        if shape not in ((), (channels,)):
            raise ValueError(f"`{name}` must be a scalar or [{channels}], got shape {shape}.")
    if not np.all(np.asarray(std) > 0):
        raise ValueError(f"`std` must be above 0, got {std}.")
