"""Training, compressing and retraining a network with three calls of `fit`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxrobust import checks
from jaxrobust.training.run.arguments import Data
from jaxrobust.training.run.fit import FitResult, Host, fit
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.types import Masks, PyTree


class Phases(NamedTuple):
    """The recipes of `two_phase`.

    Attributes:
      pretrain: The recipe of the first run, which trains the network. None: there is no such run, and
        `variables` of a trained network are given instead.
      compress: The recipe of the second run, which must have a compression.
      retrain: The recipe of the third run, under the masks of the second.
    """

    pretrain: Recipe | None
    compress: Recipe
    retrain: Recipe


class TwoPhase(NamedTuple):
    """The results of `two_phase`.

    Attributes:
      pretrained: The result of the first run; None if `variables` were given.
      compressed: The result of the run with the compression.
      retrained: The result of the run under its masks.
    """

    pretrained: FitResult | None
    compressed: FitResult
    retrained: FitResult


def two_phase(
    model: Any,
    data: Data,
    phases: Phases,
    *,
    variables: PyTree | None = None,
    weights: str = "last",
    run_dir: str | os.PathLike[str] | None = None,
    host: Host = Host(),  # noqa: B008 (it cannot be changed)
    progress: bool = True,
) -> TwoPhase:
    """Pretrains a network, compresses it, and retrains it under the masks.

    This is the procedure of Ye et al. and of HYDRA. That of Ye et al. has the compression
    `ADMM(rho=1e-3, rho_growth=1.3, rescale=False)` and the same number of epochs in each of the three
    runs (200 in the paper). An interrupted run is resumed.

    Args:
      model: A linen module, an nnx module, or a pair of functions (init, apply); see `fit`.
      data: The images and labels, and the normalisation of the images.
      phases: The recipes of the three runs.
      variables: The variables of a trained network, if `phases.pretrain` is None.
      weights: The weights of a run from which the next one starts: "last", or "best" on the validation
        set.
      run_dir: The directory of the runs, which are in its folders `pretrained`, `compressed` and
        `retrained`. None: nothing is written.
      host: The devices, checkpoints and logs of the runs.
      progress: Whether to show a progress bar on a terminal, and a line per epoch.

    Returns:
      The results of the three runs.

    Raises:
      TypeError, ValueError: `fit` raises it; or both or neither of `phases.pretrain` and `variables`
        are given; or `phases.compress` has no compression, or another phase has one.

    References:
      Ye et al., "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019, section 5.1,
      https://arxiv.org/abs/1903.12561
    """
    checks.one_of("weights", weights, ("last", "best"))
    if not isinstance(phases, Phases):
        raise TypeError(
            "`phases` must be training.Phases(pretrain, compress, retrain), got "
            f"{type(phases).__name__}."
        )
    if (phases.pretrain is None) == (variables is None):
        raise ValueError(
            "Give exactly one of `phases.pretrain` and `variables`: the network that is compressed is "
            "either trained first, or given."
        )
    if phases.compress.compression is None:
        raise ValueError("`phases.compress` must have a compression, such as ADMM().")
    for name in ("pretrain", "retrain"):
        recipe = getattr(phases, name)
        if recipe is not None and recipe.compression is not None:
            raise ValueError(
                f"`phases.{name}` must have no compression: only `phases.compress` has one."
            )

    def run(
        name: str, recipe: Recipe, variables: PyTree | None, masks: Masks | None = None
    ) -> FitResult:
        return fit(
            model,
            data,
            recipe,
            run_dir=None if run_dir is None else Path(run_dir) / name,
            variables=variables,
            masks=masks,
            host=host,
            progress=progress,
        )

    # Each phase is a run of its own, so that a killed study goes on in the phase where it was.
    pretrained = None
    if phases.pretrain is not None:
        pretrained = run("pretrained", phases.pretrain, None)
        variables = pretrained.variables if weights == "last" else pretrained.best_variables
    compressed = run("compressed", phases.compress, variables)
    left, masks = compressed.variables, compressed.masks
    if weights == "best":
        left, masks = compressed.best_variables, compressed.best_masks
    retrained = run("retrained", phases.retrain, left, masks)
    return TwoPhase(pretrained, compressed, retrained)
