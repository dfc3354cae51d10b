"""Compressing a trained network and training what is left: three calls of `fit`."""

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
      pretrain: Of the first run. None: it is left out, and `variables` are given.
      compress: Of the second, with a compression.
      retrain: Of the third, under the masks of the second.
    """

    pretrain: Recipe | None
    compress: Recipe
    retrain: Recipe


class TwoPhase(NamedTuple):
    """What the calls of `two_phase` came to.

    Attributes:
      pretrained: The network before; None where it was given.
      compressed: Of the run with the compression.
      retrained: Of the run under its masks.
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
    """Pretrains, compresses, and retrains under the masks: the recipes of Ye et al. and of HYDRA.

    That of Ye et al. is `ADMM(rho=1e-3, rho_growth=1.3, rescale=False)`, with as many epochs in each of
    the three runs (200 in the paper). Each run goes on from where it was killed.

    Args:
      model: As `fit`.
      data: As `fit`.
      phases: The recipes.
      variables: Of a network that is trained, where the first recipe is None.
      weights: Which weights of a run the next one starts from: "last", or "best" on validation.
      run_dir: The runs are in its folders `pretrained`, `compressed` and `retrained`.
      host: As `fit`.
      progress: As `fit`.

    Returns:
      The three results.

    Raises:
      TypeError, ValueError: As `fit`; both or none of `phases.pretrain` and `variables`; no
        compression in `phases.compress`.

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
            "Give one of `phases.pretrain` and `variables`: what is compressed is trained."
        )
    if phases.compress.compression is None:
        raise ValueError("`phases.compress` must have a compression, such as ADMM().")
    for name in ("pretrain", "retrain"):
        recipe = getattr(phases, name)
        if recipe is not None and recipe.compression is not None:
            raise ValueError(
                f"`phases.{name}` must have no compression: that is for `phases.compress` alone."
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
