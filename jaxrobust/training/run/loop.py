"""The training loop: Python calls a compiled step, or on a GPU a compiled loop of a hundred steps.

Compiling a whole epoch would be worse on the CPU: XLA's convolution gradients are slower inside a loop,
the progress bar could not move, and Ctrl-C would have to wait for the end of the epoch. A call of the
compiled step costs some tens of microseconds and waits for nothing; the host waits for the device once
per epoch, to read the sums. On a GPU a step may be shorter than a call, so one program takes many.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxrobust import processes
from jaxrobust.training.run import epoch_decisions
from jaxrobust.training.run.checkpoints import RunCheckpoints
from jaxrobust.training.run.compiled_steps import Programs, zero_totals
from jaxrobust.training.run.epoch_decisions import Row
from jaxrobust.training.run.interrupt import Interrupt
from jaxrobust.training.run.logs import ProgressBar, RunLog
from jaxrobust.training.step.adversaries import Metrics
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.training.step.state import TrainState


class Position(NamedTuple):
    """The content of a checkpoint: all that is needed to resume a run bit for bit.

    Attributes:
      state: The training state after `state.step` steps.
      totals: The summed metrics of the unfinished epoch so far; zero between epochs.
      history: The rows of the log of the finished epochs.
    """

    state: TrainState
    totals: Metrics
    history: tuple[Row, ...]


class Desk(NamedTuple):
    """The outputs and the interrupt flag of the training loop.

    Attributes:
      checkpoints: The checkpoints of the run.
      checkpoint_every: The number of epochs between checkpoints, besides the best and the last.
      log: The log files.
      display: The progress on the screen.
      interrupt: The flag of Ctrl-C, read between calls; with several processes, between epochs.
    """

    checkpoints: RunCheckpoints
    checkpoint_every: int
    log: RunLog
    display: ProgressBar
    interrupt: Interrupt


def restore(checkpoints: RunCheckpoints, template: TrainState) -> Position | None:
    """Restores the latest checkpoint; None if there is none. `template` gives the shapes."""
    step = checkpoints.latest_step
    return None if step is None else restore_step(checkpoints, template, step)


def restore_step(checkpoints: RunCheckpoints, template: TrainState, step: int) -> Position:
    """Restores the position that was saved at `step`; `template` gives the shapes."""
    state, totals = checkpoints.restore(step, (template, zero_totals()))
    return Position(state, totals, tuple(checkpoints.metadata(step)["history"]))


def train(position: Position, recipe: Recipe, programs: Programs, desk: Desk) -> Position:
    """Trains until the run is finished.

    The checkpoint is saved before the row of the log is written. If the run is killed in between, it
    rewrites the log from the history in the checkpoint.

    Args:
      position: The position to start from.
      recipe: The recipe.
      programs: The compiled functions of the run.
      desk: The checkpoints, the logs, the display and the interrupt flag.

    Returns:
      The position at the end.

    Raises:
      FloatingPointError: A figure of an epoch is not finite.
      KeyboardInterrupt: Ctrl-C was pressed; the position is saved, if the run has a directory.
    """
    checkpoints, interrupt = desk.checkpoints, desk.interrupt
    monitor, steps_per_epoch = recipe.validation.monitor, programs.steps_per_epoch
    state, totals, history = position
    while not epoch_decisions.is_finished(recipe, history):
        epoch = len(history) + 1
        started = time.perf_counter()
        state, totals = _train_epoch(Position(state, totals, history), recipe, programs, desk)
        if interrupt.requested and int(state.step) < epoch * steps_per_epoch:
            _save(checkpoints, monitor, Position(state, totals, history))
            _stop(checkpoints, epoch, int(state.step) % steps_per_epoch)
        row: Row = {"epoch": epoch, "step": epoch * steps_per_epoch}
        row |= _training_figures(jax.device_get(totals), steps_per_epoch, recipe.batch_size)
        if programs.kept is not None:
            row |= _compression_figures(state, programs.kept, epoch, recipe.num_epochs)
        trained = time.perf_counter()
        row |= _validation_figures(state, programs, epoch)
        _check_finite(row, checkpoints)
        validated = time.perf_counter()
        # One that comes later is answered by the next epoch.
        requested = interrupt.requested = processes.in_any(interrupt.requested)
        if requested:
            processes.end()

        history, totals = (*history, row), programs.replicate(zero_totals())
        if (
            epoch % desk.checkpoint_every == 0
            or epoch_decisions.best_epoch(monitor, history) == epoch
            or epoch_decisions.is_finished(recipe, history)
            or requested
        ):
            _save(checkpoints, monitor, Position(state, totals, history))
        saved = time.perf_counter()
        desk.log.write(
            row,
            {
                "epoch": epoch,
                "train_seconds": trained - started,
                "validation_seconds": validated - trained,
                "checkpoint_seconds": saved - validated,
            },
        )
        desk.display.end_epoch(row, saved - started)
        if is_attacked(recipe) and epoch_decisions.catastrophic_overfitting(history) == epoch:
            desk.display.say(_overfitting_words(row))
        if requested and not epoch_decisions.is_finished(recipe, history):
            _stop(checkpoints, epoch + 1, 0)
    interrupt.requested = processes.in_any(interrupt.requested)
    if interrupt.requested:
        processes.end()
    return Position(state, totals, history)


def is_attacked(recipe: Recipe) -> bool:
    """Whether training and validation are both attacked, so that catastrophic overfitting shows.

    With a compression the validated network is not the trained one, so that a gap between their
    accuracies means nothing.
    """
    adversary = recipe.adversary
    while hasattr(adversary, "adversary"):
        adversary = adversary.adversary
    attacked = adversary is not None and recipe.validation.attack is not None
    return attacked and recipe.compression is None


def _train_epoch(
    position: Position, recipe: Recipe, programs: Programs, desk: Desk
) -> tuple[TrainState, Metrics]:
    """Trains for the rest of an epoch, or until Ctrl-C."""
    state, totals, history = position
    steps_per_epoch = programs.steps_per_epoch
    scale = programs.replicate(np.float32(epoch_decisions.learning_rate_scale(recipe, history)))
    state = dataclasses.replace(state, learning_rate_scale=scale)
    order = programs.order(len(history))
    done = int(state.step) - len(history) * steps_per_epoch
    desk.display.start_epoch(len(history) + 1, done)
    # A process that stopped by itself would leave the others waiting for it.
    alone = jax.process_count() == 1
    while done < steps_per_epoch and not (alone and desk.interrupt.requested):
        count = min(programs.steps_per_call, steps_per_epoch - done)
        step = len(history) * steps_per_epoch + done
        if programs.update is not None:
            count = min(count, programs.steps_per_update - step % programs.steps_per_update)
        state, totals = programs.train_batches(state, totals, order, len(history), count)
        desk.display.advance(count)
        done, step = done + count, step + count
        # Before anything is saved: what goes on from there need not know whether it was made.
        if programs.update is not None and step % programs.steps_per_update == 0:
            state = programs.update(state, order, len(history), step)
    return state, totals


def _compression_figures(
    state: TrainState, kept: Callable[[int], float], epoch: int, num_epochs: int
) -> Row:
    """Returns the budget of the epoch, whether it is the last one, and the method's figures."""
    memory: Any = state.compression
    figures = jax.device_get(memory.figures)
    rounded = {name: float(str(np.float32(value))) for name, value in figures.items()}
    final = kept(epoch - 1) == kept(num_epochs)
    return {"kept": kept(epoch - 1), "kept_is_final": final, **rounded}


def _training_figures(totals: Metrics, num_steps: int, batch_size: int) -> Row:
    return {
        "train_loss": float(totals["loss"]) / num_steps,
        "train_accuracy": int(totals["correct"]) / (num_steps * batch_size),
        # By way of the shortest decimal: 0.03, not 0.029999999329447746.
        "learning_rate": float(str(np.float32(totals["learning_rate"]))),
        "gradient_norm": float(totals["gradient_norm"]) / num_steps,
    }


def _validation_figures(state: TrainState, programs: Programs, epoch: int) -> Row:
    if programs.evaluate is None:
        return {}
    variables = state.evaluated
    if programs.finish is not None:
        variables = programs.finish(state, epoch - 1)
    sums = jax.device_get(programs.evaluate(variables))
    return {
        "validation_loss": float(sums["loss"]) / int(sums["count"]),
        "validation_accuracy": int(sums["correct"]) / int(sums["count"]),
    }


def _overfitting_words(row: Row) -> str:
    return (
        f"Catastrophic overfitting in epoch {row['epoch']}: accuracy under the validation attack fell "
        f"to {100 * row['validation_accuracy']:.1f} %, but training accuracy did not. The best epoch "
        "is kept (`best_variables`); wider noise (NFGSM) or more attack steps avoid it."
    )


def _check_finite(row: Row, checkpoints: RunCheckpoints) -> None:
    broken = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
    if not broken:
        return
    kept = "no epoch was saved"
    if checkpoints.is_kept and checkpoints.latest_step is not None:
        kept = f"the checkpoints in {checkpoints.directory} are from earlier epochs"
    raise FloatingPointError(
        f"Training diverged in epoch {row['epoch']}: {', '.join(broken)}; {kept}. Try a lower "
        f"`learning_rate` (it was {row['learning_rate']:g}), the optimizer's `gradient_clip=1.0` or "
        "the schedule's `warmup_epochs`, and check `mean` and `std`."
    )


def _save(checkpoints: RunCheckpoints, monitor: str, position: Position) -> None:
    """Saves a position; it may count as the best only if it is the end of an epoch."""
    state, totals, history = position
    scores = epoch_decisions.scores(monitor, history)
    between_epochs = bool(history) and history[-1]["step"] == int(state.step)
    checkpoints.save(
        int(state.step),
        (state, totals),
        {"history": list(history)},
        score=scores[-1] if scores and between_epochs and math.isfinite(scores[-1]) else None,
        epoch=len(history),
    )


def _stop(checkpoints: RunCheckpoints, epoch: int, step: int) -> NoReturn:
    where = f"in epoch {epoch} after {step} of its steps" if step else f"after epoch {epoch - 1}"
    kept = f"saved in {checkpoints.directory}. To resume, run the same command again."
    lost = "nothing is saved: with `run_dir`, the same command goes on where it was stopped."
    raise KeyboardInterrupt(f"Interrupted {where}; {kept if checkpoints.is_kept else lost}")
