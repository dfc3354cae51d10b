"""`fit`, the entry point of training: it checks its arguments, compiles, and calls the loop."""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxrobust import checks, compilation, processes
from jaxrobust.attacks import conversation
from jaxrobust.training.compression.method import kept_at
from jaxrobust.training.run import compiled_compression, compiled_steps, devices, loop
from jaxrobust.training.run.arguments import Data, Job, prepared
from jaxrobust.training.run.batch_statistics import warn_of_slow_statistics
from jaxrobust.training.run.checkpoints import RunCheckpoints
from jaxrobust.training.run.epoch_decisions import (
    Row,
    best_epoch,
    catastrophic_overfitting,
    is_finished,
)
from jaxrobust.training.run.interrupt import catch_interrupt
from jaxrobust.training.run.logs import ProgressBar, RunLog
from jaxrobust.training.run.loop import Desk, Position
from jaxrobust.training.run.run_folder import CHECKPOINTS, claim
from jaxrobust.training.step.network import with_variables
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.training.step.state import TrainState
from jaxrobust.types import Masks, PyTree


@dataclasses.dataclass(frozen=True)
class Host:
    """How a training runs on the host. It does not change the result, except by rounding.

    Attributes:
      num_devices: The number of devices that share each batch, a divisor of the batch size. A run may
        be resumed with another number. With several processes (`jax.distributed`) it is the number of
        devices of each process. All processes must then make the same call with the same data; the
        first one writes the files, Ctrl-C takes effect at the end of an epoch, and if one process
        fails, jax ends the others (docs/scale.md).
      checkpoint_every: The number of epochs between checkpoints, at least 1. The last epoch and every
        new best epoch are saved as well. A run that is killed repeats what came after its last
        checkpoint.
      tensorboard: Whether to write `tensorboard/` too, which needs tensorboardX.
    """

    num_devices: int = 1
    checkpoint_every: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        checks.integer("num_devices", self.num_devices, minimum=1)
        checks.integer("checkpoint_every", self.checkpoint_every, minimum=1)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The result of a training run.

    Attributes:
      state: The training state after the last epoch.
      variables: The {"params": ..., "batch_stats": ...} after the last epoch; their average if the
        recipe has an `averaging`.
      best_variables: The variables of the best epoch on the validation set; without validation, those
        of the last epoch.
      best_epoch: The best epoch, counted from 1.
      history: One row per epoch, as in log.jsonl: epoch, step, train_loss, train_accuracy,
        validation_loss, validation_accuracy, learning_rate, gradient_norm.
      timings: One row per epoch, as in timings.jsonl: epoch, train_seconds, validation_seconds,
        checkpoint_seconds. Epochs in which the run was killed may be too short or missing.
      catastrophic_epoch: The epoch, counted from 1, of catastrophic overfitting (Wong et al. 2020), if
        training and validation were attacked and it occurred; else None.
      masks: With a compression, the boolean masks of the weights of `variables` that stay; else None.
      best_masks: With a compression, the masks of `best_variables`; else None.
      model: The trained model with `variables`, in evaluation mode: normalised images [B, H, W, C] ->
        logits [B, K]. It is a new module for an nnx module, and a `jax.tree_util.Partial` for a linen
        module or a pair of functions; see `with_variables`.
      best_model: The trained model with `best_variables`.
      final: With a compression, figures about `variables`: `kept_weights`, how many of the `weights` in
        the compressed kernels stay. With validation also the accuracies on it, under its attack:
        `accuracy_before` (the network that was trained), `accuracy_projected` (compressed, with the
        same statistics) and `accuracy_after` (compressed, with re-estimated statistics). {} without a
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
    model: Any = None
    best_model: Any = None

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {value:.4g}" for name, value in self.history[-1].items())
        return f"FitResult(the best epoch is {self.best_epoch}; the last one: {last})"

    @property
    def seconds(self) -> float:
        """The seconds of all timed epochs together, over all starts of the run."""
        return sum(
            row[name]
            for row in self.timings
            for name in ("train_seconds", "validation_seconds", "checkpoint_seconds")
        )

    @property
    def seconds_per_epoch(self) -> float | None:
        """The median training time of an epoch in seconds, without compilation; None if unknown."""
        seconds = [row["train_seconds"] for row in self.timings]
        return statistics.median(seconds) if seconds else None


def fit(
    model: Any,
    data: Data,
    recipe: Recipe,
    *,
    run_dir: str | os.PathLike[str] | None = None,
    variables: PyTree | None = None,
    masks: Masks | None = None,
    host: Host = Host(),
    progress: bool = True,
) -> FitResult:
    """Trains a network, or resumes a run of the same settings that was interrupted.

    The run directory holds `settings.json`, `log.jsonl` (the same, bit for bit, however often the run
    was killed), `timings.jsonl` and `checkpoints/` with the latest and the best epoch. A finished run
    that is called again returns its result without training. On a GPU, set
    XLA_FLAGS=--xla_gpu_deterministic_ops=true: only then are results repeatable, and a resumed run
    equals an uninterrupted one.

    Ctrl-C finishes the step (on a GPU up to a hundred steps), saves a checkpoint in the run directory
    and raises KeyboardInterrupt; the same call resumes with the next step. A second Ctrl-C stops at
    once and loses what came after the last checkpoint.

    Args:
      model: The network, from normalised images [B, H, W, C] to logits [B, K]. It is one of three:
        A linen module, called as `model(images, train=False)`, with the collections "params" and
        optionally "batch_stats", and optionally the random stream "dropout".
        An nnx module, called as `model(images)`. Training starts from the weights of the module, so
        that the seed of the recipe affects only the order, augmentation, attacks and dropout. Every
        nnx.Param is trained; every other variable is state, which is updated by passes in training
        mode. The modes are those of `train()` and `eval()`, and each pass has its own random numbers.
        The module itself is not changed.
        A pair of functions (init, apply), for any other library; see `Network`.
      data: The images and labels, and the normalisation of the images.
      recipe: How to train. With a compression, each epoch validates the network compressed to the
        budget of that epoch, with re-estimated statistics, and only epochs with the last budget can be
        the best. `variables` of the result are compressed, `state` is not.
      run_dir: The directory of the run. None: nothing is kept, and the run cannot be resumed.
      variables: The variables to start from, for fine-tuning, of any floating type (they are trained in
        float32). For an nnx module also a module or an nnx.State of the same structure. None: the
        initial variables of the model.
      masks: A pytree with the structure of the parameters, or of the variables, and boolean leaves; for
        an nnx module also a module or nnx.State of them. Parameters stay at 0 where it is False. Masks
        cannot be combined with a compression.
      host: The devices, checkpoints and logs of the run.
      progress: Whether to show a progress bar on a terminal, and a line per epoch.

    Warns:
      UserWarning: The running statistics of BatchNorm cannot follow the weights in so few steps,
        because its momentum is too large.

    Returns:
      The result: variables, log, timings and the trained model.

    Raises:
      TypeError: An argument has the wrong type.
      ValueError: An argument is out of range, or the run directory has other settings or data.
      FloatingPointError: The loss or the gradient is no longer finite. Earlier epochs remain saved in
        the run directory.
      KeyboardInterrupt: Ctrl-C was pressed.
      ModuleNotFoundError: `host.tensorboard` is set and tensorboardX is not installed.

    Example:
      >>> import flax.linen as nn
      >>> import numpy as np
      >>> from jaxrobust.training.step.learning_rates import Constant
      >>> from jaxrobust.training.step.optimizers import SGD
      >>> class Linear(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, images, train=False):
      ...         return nn.Dense(2)(images.reshape(len(images), -1))
      >>> images = np.repeat(np.uint8([0, 255]), 8).reshape(16, 1, 1, 1)
      >>> data = Data(train=(images, np.repeat([0, 1], 8)))
      >>> recipe = Recipe(num_epochs=3, batch_size=8, optimizer=SGD(), schedule=Constant(1.0))
      >>> fit(Linear(), data, recipe, progress=False).history[-1]["train_accuracy"]
      1.0
    """
    if run_dir is not None and not os.fspath(run_dir):
        raise ValueError("`run_dir` must be the path of a folder or None, got an empty path.")
    if run_dir is None and jax.process_count() > 1:
        raise ValueError(
            "`run_dir` must not be None with several processes: give a folder that all of them see."
        )
    if not isinstance(host, Host):
        raise TypeError(f"`host` must be a training.Host, got {type(host).__name__}.")
    job = prepared(model, data, recipe, variables, masks, host.num_devices)
    if recipe.compression is None:  # a compression estimates them anew
        num_steps = recipe.num_epochs * job.steps_per_epoch
        num_steps *= getattr(recipe.adversary, "num_replays", 1)
        is_trained = masks is None and job.has_trained_statistics
        warn_of_slow_statistics(model, job.image_shape, num_steps, is_trained=is_trained)
    settings = job.settings()
    with contextlib.ExitStack() as stack:
        directory = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        claim(directory, settings, dataclasses.asdict(host))
        checkpoints = stack.enter_context(
            RunCheckpoints(directory / CHECKPOINTS, is_kept=run_dir is not None)
        )
        if processes.different({"step": checkpoints.latest_step}):
            raise ValueError(
                f"`run_dir` must be the same folder in all processes, got {directory} in this one."
            )
        # Where an earlier call of the same run has stopped, or the beginning.
        position = _start(job, checkpoints)
        unfinished = not is_finished(recipe, position.history)
        writes = processes.is_first()
        tensorboard = host.tensorboard and unfinished
        log = stack.enter_context(
            RunLog(directory, position.history, tensorboard=tensorboard, writes=writes)
        )
        display = stack.enter_context(
            ProgressBar(progress and writes, recipe.num_epochs, job.steps_per_epoch)
        )
        if not unfinished:
            display.say(f"The run is already finished: its result is read from {directory}.")
        elif int(position.state.step):
            display.say(f"Resuming after step {int(position.state.step)}, from {directory}.")
        if devices.num_shares(job.num_devices) > 1:
            stack.enter_context(compilation.divided())
        # Compiled before Ctrl-C is caught: until then there is nothing to save.
        if unfinished:
            programs = _compile(job, len(position.history))
            if recipe.compression is not None and writes:
                (directory / compiled_compression.FINAL).unlink(missing_ok=True)
            interrupt = stack.enter_context(catch_interrupt(is_kept=checkpoints.is_kept))
            desk = Desk(checkpoints, host.checkpoint_every, log, display, interrupt)
            position = loop.train(position, recipe, programs, desk)
        return _result(job, position, checkpoints, directory, tuple(log.timings))


def _start(job: Job, checkpoints: RunCheckpoints) -> Position:
    """Returns the position where the run starts or resumes, on the devices."""
    position = loop.restore(checkpoints, job.template)
    if position is None:
        position = Position(job.initial_state(), compiled_steps.zero_totals(), ())
    replicate = devices.replicated(job.num_devices)
    return position._replace(state=replicate(position.state), totals=replicate(position.totals))


def _compile(job: Job, epoch: int) -> compiled_steps.Programs:
    """Compiles the programs of this epoch, counted from 0, and all later ones."""
    stages = job.stages
    programs = compiled_steps.compile_programs(
        job.plan, stages, epoch, job.template, job.order_key, _compile_evaluation(job)
    )
    if job.recipe.compression is None:
        return programs
    return compiled_compression.with_compression(
        programs, job.recipe.compression, job.plan, stages, job.step_key
    )


def _compile_evaluation(job: Job) -> Any:
    """Compiles the function from variables to sums over the validation set; None without one."""
    if job.validation is None:
        return None
    replicate = devices.replicated(job.num_devices)
    given = job.stages.at(0).bare._replace(examples=replicate(job.validation))
    attack = replicate(conversation.as_arrays(job.recipe.validation.attack))
    return compiled_steps.compile_evaluation(job.plan, given, attack, job.template)


def _result(
    job: Job,
    position: Position,
    checkpoints: RunCheckpoints,
    directory: Path,
    timings: tuple[Row, ...],
) -> FitResult:
    """Returns the result of a finished run, with its arrays on one device."""
    recipe, history = job.recipe, position.history
    best = best_epoch(recipe.validation.monitor, history) or len(history)
    state = best_state = position.state
    # The best epoch may lie behind: its checkpoint was kept for this.
    if best < len(history):
        step = best * job.steps_per_epoch
        best_state = loop.restore_step(checkpoints, job.template, step).state
        best_state = devices.replicated(job.num_devices)(best_state)
    found: dict[str, Any] = {
        "variables": state.evaluated,
        "best_variables": best_state.evaluated,
    }
    # Compressed weights are projected to exactly their budget, and measured before and after that.
    if recipe.compression is not None:
        found = compiled_compression.results(
            directory,
            state,
            best_state,
            kept_at(recipe.compression, recipe.num_epochs),
            job.plan,
            job.stages.at(0).bare,
            lambda: _compile_evaluation(job),
        )
    figures = found.pop("final", {})
    found = devices.on_this_process(found)
    attacked = loop.is_attacked(recipe)
    return FitResult(
        state=devices.on_this_process(state),
        **found,
        best_epoch=best,
        history=history,
        timings=timings,
        catastrophic_epoch=catastrophic_overfitting(history) if attacked else None,
        final=figures,
        model=with_variables(job.model, found["variables"]),
        best_model=with_variables(job.model, found["best_variables"]),
    )
