"""The compiled programs of a compression: its updates, and the compressed network."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import compilation, files, processes
from jaxrobust.training.compression.method import Compression, compressed_kernels, kept_at
from jaxrobust.training.run import batch_statistics, compiled_steps, devices
from jaxrobust.training.run.compiled_steps import GivenByEpoch, Programs
from jaxrobust.training.run.plan import Given, Plan
from jaxrobust.training.step.network import as_variables
from jaxrobust.training.step.state import TrainState
from jaxrobust.training.step.train_step import network_gradients
from jaxrobust.types import Array, Masks, PyTree, as_key

FINAL = "final.json"

# Statistics are means over so many batches, or an epoch's: some thousand images are enough.
_MAX_BATCHES = 50


def with_compression(
    programs: Programs, compression: Compression, plan: Plan, stages: GivenByEpoch, step_key: Array
) -> Programs:
    """Adds the updates of a compression to the programs of a run.

    The budget is an argument of the program, so that a new budget does not recompile it.

    Args:
      programs: The programs of the run.
      compression: The method, with its budgets.
      plan: The settings that the programs are compiled for.
      stages: The arguments of the steps of each epoch.
      step_key: The PRNG key for everything that is random in a step.
    """
    replicate, per_epoch = programs.replicate, programs.steps_per_epoch
    first = stages.at(0)
    # Not one of the keys of the steps, and neither of what is random in the initial network.
    key = replicate(jax.random.fold_in(step_key, np.uint32(2**32 - 1)))

    def update(state: TrainState, order: Array, epoch: int, step: int) -> TrainState:
        kept = replicate(np.float32(kept_at(compression, step // per_epoch)))
        gradient_of = None
        if compression.needs_gradients:
            gradient_of = order, stages.at(epoch)._replace(key=key, masks=None)
        return _update(state, kept, gradient_of, plan=plan)

    def finish(state: TrainState, epoch: int) -> PyTree:
        return finished(state, kept_at(compression, epoch), plan, first.bare)[0]

    return programs._replace(
        update=update,
        steps_per_update=compression.every or per_epoch,
        kept=functools.partial(kept_at, compression),
        finish=finish,
    )


def finished(
    state: TrainState,
    kept: float,
    plan: Plan,
    given: Given,
    *,
    exact: bool = False,
    anew: bool = True,
) -> tuple[PyTree, Masks]:
    """Returns the compressed network of a state, with re-estimated running statistics.

    Args:
      state: The state, on the devices of the plan.
      kept: The budget, in (0, 1].
      plan: The settings of the run.
      given: The arguments without an adversary, with the training set. BatchNorm's statistics are
        estimated on its clean images.
      exact: Whether the number of weights that stay is exact even in kernels of more than four million
        weights; if so, each budget compiles its own program.
      anew: Whether to re-estimate the statistics.

    Returns:
      (variables, masks).
    """
    replicate = devices.replicated(plan.num_devices)
    budget = replicate(np.float32(kept))
    evaluated = state.evaluated
    params, masks = _projected(
        evaluated["params"], state.compression, budget, plan=plan, exact=kept if exact else None
    )
    variables = as_variables(params, evaluated.get("batch_stats", {}))
    if anew and variables.get("batch_stats"):
        order = replicate(np.random.default_rng(0).permutation(plan.num_examples).astype(np.int32))

        def add(variables: PyTree, total: PyTree, index: int) -> PyTree:
            return _statistics(
                variables, total, replicate(np.int32(index)), order, given, plan=plan
            )

        count = min(_MAX_BATCHES, plan.steps_per_epoch)
        variables = batch_statistics.averaged(variables, add, count)
    return variables, masks


def results(
    directory: Path,
    state: TrainState,
    best_state: TrainState,
    kept: float,
    plan: Plan,
    given: Given,
    compile_evaluation: Callable[[], Callable[[PyTree], Any] | None],
) -> dict[str, Any]:
    """Returns the fields of `FitResult` that a compression adds for a finished run.

    They depend only on the state, and not on how often the run was stopped. The figures are written to
    the run's folder.
    """
    variables, masks = finished(state, kept, plan, given, exact=True)
    best_variables, best_masks = variables, masks
    if best_state is not state:
        best_variables, best_masks = finished(best_state, kept, plan, given, exact=True)
    # Measured once and kept: a run that is called again tells the same figures.
    if processes.in_any(not (directory / FINAL).is_file()):
        figures: dict[str, Any] = dict(_kept_weights(masks, plan.compression))
        evaluate = compile_evaluation()
        if evaluate is not None:
            projected, _ = finished(state, kept, plan, given, exact=True, anew=False)
            before = effective(state, plan=plan)
            for name, one in (("before", before), ("projected", projected), ("after", variables)):
                sums = jax.device_get(evaluate(one))
                figures[f"accuracy_{name}"] = int(sums["correct"]) / int(sums["count"])
        if processes.is_first():
            files.write_json(directory / FINAL, figures)
    else:
        figures = json.loads((directory / FINAL).read_text(encoding="utf-8"))
    return {
        "variables": variables,
        "best_variables": best_variables,
        "masks": masks,
        "best_masks": best_masks,
        "final": figures,
    }


def _kept_weights(masks: Masks, compression: Any) -> dict[str, int]:
    """Returns the number of weights that stay, and of all weights, in the compressed kernels."""
    exclude, constraint = (getattr(compression, name, None) for name in ("exclude", "constraint"))
    kernels = compressed_kernels(masks, exclude, constraint).values()
    counts = jax.device_get([jnp.sum(mask) for mask in kernels])
    return {"kept_weights": int(sum(counts)), "weights": sum(mask.size for mask in kernels)}


@functools.partial(compilation.jit, static_argnames="plan", donate_argnums=0)
def _update(
    state: TrainState, kept: Array, gradient_of: tuple[Array, Given] | None, *, plan: Plan
) -> TrainState:
    compression: Any = plan.compression
    gradients = None
    if gradient_of is not None:
        order, given = gradient_of
        # The batch of the step before: the next one may be of an epoch whose order is not known yet.
        last = state.step - 1
        gradients = network_gradients(
            dataclasses.replace(state, step=last),
            compiled_steps.batch_of(last, order, given.examples, plan),
            jax.random.fold_in(given.key, state.step),
            network=plan.network(given),
            recipe=plan.recipe(given),
            steps_per_epoch=plan.steps_per_epoch,
        )
    progress = state.step / (plan.num_epochs * plan.steps_per_epoch)
    params, memory = compression.update(
        state.params, state.compression, gradients, kept, progress.astype(jnp.float32)
    )
    state = dataclasses.replace(state, params=params, compression=memory)
    return devices.constrained(state, plan.num_devices, devices.WHOLE)


@functools.partial(compilation.jit, static_argnames=("plan", "exact"))
def _projected(
    params: PyTree, memory: PyTree, kept: Array, *, plan: Plan, exact: float | None
) -> tuple[PyTree, Masks]:
    compression: Any = plan.compression
    done = compression.finish(params, memory, kept if exact is None else exact)
    return devices.constrained(done, plan.num_devices, devices.WHOLE)


@functools.partial(compilation.jit, static_argnames="plan")
def effective(state: TrainState, *, plan: Plan) -> PyTree:
    """Returns the variables that the network computes with in training."""
    compression: Any = plan.compression
    evaluated = state.evaluated
    params = compression.effective(evaluated["params"], state.compression)
    variables = as_variables(params, evaluated.get("batch_stats", {}))
    return devices.constrained(variables, plan.num_devices, devices.WHOLE)


@functools.partial(compilation.jit, static_argnames="plan")
def _statistics(
    variables: PyTree, total: PyTree, index: Array, order: Array, given: Given, *, plan: Plan
) -> PyTree:
    images, _ = compiled_steps.batch_of(index, order, given.examples, plan)
    found = batch_statistics.of_batch(
        plan.network(given),
        variables,
        images,
        jax.random.fold_in(as_key(jax.random.key(0)), index),
    )
    found = jax.tree.map(jnp.add, total, found)
    return devices.constrained(found, plan.num_devices, devices.WHOLE)
