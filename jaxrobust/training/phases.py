"""Compressing a trained network and training what is left: three calls of `fit`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from jaxrobust import checks
from jaxrobust.training.compression import Compression
from jaxrobust.training.config import TrainConfig
from jaxrobust.training.fitting import FitResult, fit
from jaxrobust.types import PyTree


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
    model: nn.Module,
    train: tuple[Any, Any],
    compression: Compression,
    *,
    pretrain: TrainConfig | None,
    compress: TrainConfig,
    retrain: TrainConfig,
    variables: PyTree | None = None,
    weights: str = "last",
    run_dir: str | os.PathLike[str] | None = None,
    **arguments: Any,
) -> TwoPhase:
    """Pretrains, compresses, and retrains under the masks: the recipes of Ye et al. and of HYDRA.

    That of Ye et al. is `ADMM(rho=1e-3, rho_growth=1.3, rescale=False)`, with as many epochs in each of
    the three runs (200 in the paper). Each run goes on from where it was killed.

    Args:
      model: As `fit`.
      train: As `fit`.
      compression: As `fit`, of the second run.
      pretrain: The settings of the first run. None: it is left out, and `variables` are given.
      compress: Of the second.
      retrain: Of the third.
      variables: Of a network that is trained.
      weights: Which weights of a run the next one starts from: "last", or "best" on validation.
      run_dir: The runs are in its folders `pretrained`, `compressed` and `retrained`.
      **arguments: Of all three calls of `fit`.

    Returns:
      The three results.

    Raises:
      TypeError, ValueError: As `fit`; both or none of `pretrain` and `variables`.

    References:
      Ye et al., "Adversarial Robustness vs. Model Compression, or Both?", ICCV 2019, section 5.1,
      https://arxiv.org/abs/1903.12561
    """
    checks.one_of("weights", weights, ("last", "best"))
    if (pretrain is None) == (variables is None):
        raise ValueError("Give one of `pretrain` and `variables`: what is compressed is trained.")

    def run(name: str, config: TrainConfig, **own: Any) -> FitResult:
        folder = None if run_dir is None else Path(run_dir) / name
        return fit(model, train, config, run_dir=folder, **arguments, **own)

    pretrained = None
    if pretrain is not None:
        pretrained = run("pretrained", pretrain)
        variables = pretrained.variables if weights == "last" else pretrained.best_variables
    compressed = run("compressed", compress, variables=variables, compression=compression)
    left, masks = compressed.variables, compressed.masks
    if weights == "best":
        left, masks = compressed.best_variables, compressed.best_masks
    retrained = run("retrained", retrain, variables=left, masks=masks)
    return TwoPhase(pretrained, compressed, retrained)
