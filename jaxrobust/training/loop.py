"""The training loop: a compiled step, on a GPU a hundred in a compiled loop, called from Python.

Why not a whole epoch on the CPU: inside a loop XLA's CPU convolution gradients are slower, no bar
could move, and Ctrl-C would have to wait for the end of the epoch. A call of the compiled step
costs some tens of microseconds and waits for nothing; the host waits for the device once an epoch,
to read the sums. On a GPU steps may be shorter than calls, so one program takes many of them.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from jaxrobust.training import history as decisions
from jaxrobust.training import sharing
from jaxrobust.training.checkpoint import RunCheckpoints
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.history import Row
from jaxrobust.training.interrupt import Interrupt
from jaxrobust.training.logs import Display, RunLog
from jaxrobust.training.programs import Programs, zero_totals
from jaxrobust.training.state import TrainState
from jaxrobust.training.step import Metrics


class Position(NamedTuple):
    """Where a run is: all that a checkpoint holds, and all that it takes to go on bit for bit.

    Attributes:
      state: After `state.step` steps, the first of them those of the finished epochs.
      totals: Metrics of the steps of the unfinished epoch; of none between epochs.
      history: The log's rows of the finished epochs.
    """

    state: TrainState
    totals: Metrics
    history: tuple[Row, ...]


def restore(checkpoints: RunCheckpoints, template: TrainState) -> Position | None:
    """The position of the latest checkpoint, None if there is none; `template` gives the shapes."""
    step = checkpoints.latest_step
    return None if step is None else restore_step(checkpoints, template, step)


def restore_step(checkpoints: RunCheckpoints, template: TrainState, step: int) -> Position:
    """The position saved at `step`; `template` gives the shapes."""
    state, totals = checkpoints.restore(step, (template, zero_totals()))
    return Position(state, totals, tuple(checkpoints.metadata(step)["history"]))


def train(
    position: Position,
    config: TrainConfig,
    programs: Programs,
    checkpoints: RunCheckpoints,
    log: RunLog,
    display: Display,
    interrupt: Interrupt,
    *,
    steps_per_epoch: int,
    checkpoint_every: int,
    is_attacked: bool,
) -> Position:
    """Trains until the run is finished.

    The checkpoint is saved before the log's row is written. Killed in between, the run finds its
    history in the checkpoint and writes the log anew from it.

    Args:
      position: Where to start.
      config: The settings.
      programs: The compiled step and its company.
      checkpoints: Where to save.
      log: What is written.
      display: What is shown.
      interrupt: Looked at between the calls, with several processes between the epochs.
      steps_per_epoch: At least 1.
      checkpoint_every: Epochs between checkpoints, besides the best and the last.
      is_attacked: Whether training and validation images are, so that catastrophic overfitting shows.

    Returns:
      The position at the end.

    Raises:
      FloatingPointError: A figure of an epoch is not finite.
      KeyboardInterrupt: On request, after saving.
    """
    state, totals, history = position
    while not decisions.is_finished(config, history):
        epoch = len(history) + 1
        started = time.perf_counter()
        state, totals = _train_epoch(
            state, totals, config, history, programs, display, interrupt, steps_per_epoch
        )
        if interrupt.requested and int(state.step) < epoch * steps_per_epoch:
            _save(checkpoints, config, Position(state, totals, history))
            _stop(checkpoints, epoch, int(state.step) % steps_per_epoch)
        row: Row = {"epoch": epoch, "step": epoch * steps_per_epoch}
        row |= _training_figures(jax.device_get(totals), steps_per_epoch, config.batch_size)
        if programs.kept is not None:
            row |= _compression_figures(state, programs.kept, epoch, config)
        trained = time.perf_counter()
        if programs.evaluate is not None:
            variables = state.evaluated
            if programs.finish is not None:
                variables = programs.finish(state, epoch - 1)
            sums = jax.device_get(programs.evaluate(variables))
            row["validation_loss"] = float(sums["loss"]) / int(sums["count"])
            row["validation_accuracy"] = int(sums["correct"]) / int(sums["count"])
        _check_finite(row, config, checkpoints)
        validated = time.perf_counter()
        # One that comes later is answered by the next epoch.
        requested = interrupt.requested = sharing.in_any_process(interrupt.requested)

        history, totals = (*history, row), programs.replicate(zero_totals())
        if (
            epoch % checkpoint_every == 0
            or decisions.best_epoch(config, history) == epoch
            or decisions.is_finished(config, history)
            or requested
        ):
            _save(checkpoints, config, Position(state, totals, history))
        saved = time.perf_counter()
        log.write(
            row,
            {
                "epoch": epoch,
                "train_seconds": trained - started,
                "validation_seconds": validated - trained,
                "checkpoint_seconds": saved - validated,
            },
        )
        display.end_epoch(row, saved - started)
        if is_attacked and decisions.catastrophic_overfitting(history) == epoch:
            display.say(
                f"Catastrophic overfitting in epoch {epoch}: accuracy under the validation attack fell "
                f"to {100 * row['validation_accuracy']:.1f} %, that in training did not. The best "
                "epoch is kept (`best_variables`); a wider noise (NFGSM) or more steps avoid it."
            )
        if requested and not decisions.is_finished(config, history):
            _stop(checkpoints, epoch + 1, 0)
    interrupt.requested = sharing.in_any_process(interrupt.requested)
    return Position(state, totals, history)


def _train_epoch(
    state: TrainState,
    totals: Metrics,
    config: TrainConfig,
    history: tuple[Row, ...],
    programs: Programs,
    display: Display,
    interrupt: Interrupt,
    steps_per_epoch: int,
) -> tuple[TrainState, Metrics]:
    """The rest of an epoch, or as much of it as Ctrl-C leaves."""
    scale = programs.replicate(np.float32(decisions.learning_rate_scale(config, history)))
    state = dataclasses.replace(state, learning_rate_scale=scale)
    order = programs.order(len(history))
    done = int(state.step) - len(history) * steps_per_epoch
    display.start_epoch(len(history) + 1, done)
    # A process that stopped by itself would leave the others waiting for it.
    alone = jax.process_count() == 1
    while done < steps_per_epoch and not (alone and interrupt.requested):
        count = min(programs.steps_per_call, steps_per_epoch - done)
        step = len(history) * steps_per_epoch + done
        if programs.update is not None:
            count = min(count, programs.steps_per_update - step % programs.steps_per_update)
        state, totals = programs.train_batches(state, totals, order, len(history), count)
        display.advance(count)
        done, step = done + count, step + count
        # Before anything is saved: what goes on from there need not know whether it was made.
        if programs.update is not None and step % programs.steps_per_update == 0:
            state = programs.update(state, order, len(history), step)
    return state, totals


def _compression_figures(
    state: TrainState, kept: Callable[[int], float], epoch: int, config: TrainConfig
) -> Row:
    """The budget of the epoch, whether it is the last one, and the method's figures."""
    memory: Any = state.compression
    figures = jax.device_get(memory.figures)
    rounded = {name: float(str(np.float32(value))) for name, value in figures.items()}
    final = kept(epoch - 1) == kept(config.num_epochs)
    return {"kept": kept(epoch - 1), "kept_is_final": final, **rounded}


def _training_figures(totals: Metrics, num_steps: int, batch_size: int) -> Row:
    return {
        "train_loss": float(totals["loss"]) / num_steps,
        "train_accuracy": int(totals["correct"]) / (num_steps * batch_size),
        # By way of the shortest decimal: 0.03, not 0.029999999329447746.
        "learning_rate": float(str(np.float32(totals["learning_rate"]))),
        "gradient_norm": float(totals["gradient_norm"]) / num_steps,
    }


def _check_finite(row: Row, config: TrainConfig, checkpoints: RunCheckpoints) -> None:
    broken = [f"{name} is {value}" for name, value in row.items() if not math.isfinite(value)]
    if not broken:
        return
    kept = "no epoch was saved"
    if checkpoints.latest_step is not None:
        kept = f"the checkpoints in {checkpoints.directory} are from before it"
    raise FloatingPointError(
        f"Training diverged in epoch {row['epoch']}: {', '.join(broken)}; {kept}. Try a lower "
        f"`learning_rate` (it was {row['learning_rate']:g}), `gradient_clip=1.0` or "
        "`warmup_epochs`, and check `mean` and `std`."
    )


def _save(checkpoints: RunCheckpoints, config: TrainConfig, position: Position) -> None:
    """Saves a position; it may count as the best only if it is the end of an epoch."""
    state, totals, history = position
    scores = decisions.scores(config, history)
    between_epochs = bool(history) and history[-1]["step"] == int(state.step)
    checkpoints.save(
        int(state.step),
        (state, totals),
        {"history": list(history)},
        score=scores[-1] if scores and between_epochs and math.isfinite(scores[-1]) else None,
        epoch=len(history),
    )


def _stop(checkpoints: RunCheckpoints, epoch: int, step: int) -> NoReturn:
    message = (
        f"Interrupted in epoch {epoch} after {step} of its steps; saved in "
        f"{checkpoints.directory}. To go on, run the same command again."
    )
    raise KeyboardInterrupt(message)
