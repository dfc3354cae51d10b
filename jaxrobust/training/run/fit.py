"""`fit`: the public edge of training. It checks, assembles and hands over to the loop."""

import contextlib
import dataclasses
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import jax

from jaxrobust import checks
from jaxrobust.attacks import conversation
from jaxrobust.training.compression.method import kept_at
from jaxrobust.training.run import compiled_compression, compiled_steps, devices, loop
from jaxrobust.training.run.arguments import Data, Job, prepared
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
    """How a training is run; it changes no result but by rounding.

    Attributes:
      num_devices: How many devices share each batch; a divisor of the batch size. It changes nothing
        but rounding, and a run may go on with another number. With several processes
        (`jax.distributed`) it is how many of each: all of them make the same call with the same
        data, the first one writes, Ctrl-C is answered at the end of an epoch, and an error in one of
        them leaves the others waiting until jax gives them up.
      checkpoint_every: Epochs between checkpoints, besides the last one and every new best. A run
        that is killed repeats what came after the last.
      tensorboard: Whether to write `tensorboard/` too.
    """

    num_devices: int = 1
    checkpoint_every: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        checks.integer("num_devices", self.num_devices, minimum=1)
        checks.integer("checkpoint_every", self.checkpoint_every, minimum=1)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training run came to.

    Attributes:
      state: After the last epoch.
      variables: Of the last epoch; the average if one was kept.
      best_variables: Of the best epoch on the validation set; without one, of the last epoch.
      best_epoch: Counted from 1.
      history: One row per epoch, as in log.jsonl: epoch, step, train_loss, train_accuracy,
        validation_loss, validation_accuracy, learning_rate, gradient_norm.
      timings: One row per epoch, as in timings.jsonl: epoch, train_seconds, validation_seconds,
        checkpoint_seconds. Epochs in which the run was killed may be short or absent.
      catastrophic_epoch: The epoch of catastrophic overfitting (Wong et al. 2020), where training and
        validation were attacked and there was one; else None.
      masks: Of a run with a compression: which weights of `variables` stay, exactly; else None.
      best_masks: Likewise of `best_variables`.
      model: What was trained, with `variables` in it: normalised images [B, H, W, C] -> logits [B, K],
        in evaluation mode. Of an nnx module a new one of its class; of a linen module or a pair of
        functions a `jax.tree_util.Partial` (`with_variables`).
      best_model: Likewise with `best_variables`.
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
    model: Any = None
    best_model: Any = None

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
    """Trains a network, from where an interrupted run of the same settings left off.

    The run directory holds `settings.json`, `log.jsonl` (the same, bit for bit, however often the
    run was killed), `timings.jsonl` and `checkpoints/`, the latest and the best. Started again, a
    finished run returns its result without training. On a GPU, results are only repeatable, and so
    a resumed run only equal to an undisturbed one, with XLA_FLAGS=--xla_gpu_deterministic_ops=true.

    Ctrl-C finishes the step (on a GPU up to a hundred), saves a checkpoint and raises
    KeyboardInterrupt; the same call goes on with the next step. A second Ctrl-C stops at once and loses
    what came after the last checkpoint.

    Args:
      model: What maps normalised images to logits [B, K].
        A linen module, `model(images, train=False)`, with "params" and perhaps "batch_stats", and the
        generator "dropout" if it needs one.
        An nnx module, `model(images)`: it starts from the weights that it has, so that the recipe's
        seed decides order, attacks and dropout alone. An nnx.Param is trained, every other variable
        is state that passes in training mode change; that mode is `train()`, the other one `eval()`,
        and each pass has random numbers of its own. The module itself stays as it is.
        A pair of functions (init, apply) for everything else; `Network` says what they take.
      data: The images and labels, and their mean and deviation.
      recipe: How to train. With a compression, validation is of the compressed network by the epoch's
        budget, with statistics of its own; epochs before the last budget do not count as the best.
        `variables` of the result are compressed, `state` is not.
      run_dir: Where the run lives. None: nowhere; it cannot be resumed.
      variables: To start from, for fine-tuning: of any floating type, trained in float32; for an nnx
        module also a module or an nnx.State of the same structure. None: the model's own initial ones.
      masks: The parameters' structure with boolean leaves, for an nnx module also a module or nnx.State
        of them; False keeps a parameter at 0. Not together with a compression.
      host: Devices, checkpoints and logs.
      progress: Whether to show a bar on a terminal, and a line per epoch.

    Returns:
      The result.

    Raises:
      TypeError: An argument of the wrong type.
      ValueError: An argument out of range, or a run directory of other settings or data.
      FloatingPointError: The loss or the gradient is no longer finite. Earlier epochs remain saved.
      KeyboardInterrupt: Ctrl-C.
      ModuleNotFoundError: `host.tensorboard` without tensorboardX.

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
    if run_dir is None and jax.process_count() > 1:
        raise ValueError(
            "`run_dir` is needed with several processes: a folder that all of them see."
        )
    if not isinstance(host, Host):
        raise TypeError(f"`host` must be a training.Host, got {type(host).__name__}.")
    job = prepared(model, data, recipe, variables, masks, host.num_devices)
    settings = job.settings()
    with contextlib.ExitStack() as stack:
        directory = Path(run_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        claim(directory, settings, dataclasses.asdict(host))
        checkpoints = stack.enter_context(RunCheckpoints(directory / CHECKPOINTS))
        if devices.different({"step": checkpoints.latest_step}):
            raise ValueError(f"`run_dir` {directory} is not the same folder in all processes.")
        # Where an earlier call of the same run has stopped, or the beginning.
        position = _start(job, checkpoints)
        unfinished = not is_finished(recipe, position.history)
        writes = devices.is_first_process()
        tensorboard = host.tensorboard and unfinished
        log = stack.enter_context(
            RunLog(directory, position.history, tensorboard=tensorboard, writes=writes)
        )
        display = stack.enter_context(
            ProgressBar(progress and writes, recipe.num_epochs, job.steps_per_epoch)
        )
        if not unfinished:
            display.say(f"Trained before: the result is that of {directory}.")
        elif int(position.state.step):
            display.say(f"Going on after step {int(position.state.step)}, from {directory}.")
        # Compiled before Ctrl-C is caught: until then there is nothing to save.
        if unfinished:
            programs = _compile(job, len(position.history))
            if recipe.compression is not None and writes:
                (directory / compiled_compression.FINAL).unlink(missing_ok=True)
            interrupt = stack.enter_context(catch_interrupt())
            desk = Desk(checkpoints, host.checkpoint_every, log, display, interrupt)
            position = loop.train(position, recipe, programs, desk)
        return _result(job, position, checkpoints, directory, tuple(log.timings))


def _start(job: Job, checkpoints: RunCheckpoints) -> Position:
    """Where the run stands, on the devices."""
    position = loop.restore(checkpoints, job.template)
    if position is None:
        position = Position(job.initial_state(), compiled_steps.zero_totals(), ())
    replicate = devices.replicated(job.num_devices)
    return position._replace(state=replicate(position.state), totals=replicate(position.totals))


def _compile(job: Job, epoch: int) -> compiled_steps.Programs:
    """The programs of the epochs from this one on, counted from 0."""
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
    """Variables -> sums over the validation set; None without one."""
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
    """What a finished run came to, its arrays on one device: who takes it knows of no others."""
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
