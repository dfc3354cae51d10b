"""Fits a line, a curve and a map of the plane by gradient descent: the source's first problem.

Each fit is a linear layer y = W f(x) + b with the loss L = mean_i |y_i - t_i|^2. Gradient descent
starts at zero: W <- W - rate * dL/dW. The features are x for the line, x, x^2 and x^3 for the curve,
and two coordinates for the affine map, which is the problem that the source's course poses. The
source's text gives the learning rate, 1e-4, and a figure, but neither data nor results. So the data
here are drawn from known functions with noise, and the fits are compared with least squares.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp.network import Layer, update
from jaxrobust import compilation
from jaxrobust.studies import Run

RATE = 1e-4  # of the source
NUM_POINTS = 60


class Problem(NamedTuple):
    """Points to fit, and how.

    Features are float32 [N, D], targets float32 [N, H]. `moments` are steps at which the fit is shown;
    the fit ends at the last.
    """

    features: np.ndarray
    targets: np.ndarray
    rate: float
    moments: tuple[int, ...]


def squared_error(layer: Layer, features: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean over the points of the squared distance to the target."""
    errors = features @ layer.weights + layer.bias - targets
    return jnp.mean(jnp.sum(errors**2, axis=1))


@functools.partial(compilation.jit, static_argnames="num_steps")
def descend(
    features: Any, targets: Any, rate: float | jax.Array, num_steps: int
) -> tuple[Layer, jax.Array]:
    """Descends from zero; returns layers and losses before each step and at the end, [T + 1, ...]."""
    start = Layer(
        jnp.zeros((features.shape[1], targets.shape[1])), jnp.zeros(targets.shape[1], jnp.float32)
    )

    def step(layer: Layer, _: Any) -> tuple[Layer, tuple[Layer, jax.Array]]:
        loss, slope = jax.value_and_grad(squared_error)(layer, features, targets)
        (moved,) = update((layer,), (slope,), rate)
        return moved, (layer, loss)

    last, (layers, losses) = jax.lax.scan(step, start, None, length=num_steps)
    layers = jax.tree.map(lambda way, end: jnp.append(way, end[None], axis=0), layers, last)
    return layers, jnp.append(losses, squared_error(last, features, targets))


def least_squares(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the best weights and, as the last row, the bias: float64 [D + 1, H]."""
    columns = np.column_stack([features, np.ones(len(features))])
    return np.linalg.lstsq(columns, targets.astype(np.float64), rcond=None)[0]


def problems(seed: int) -> dict[str, Problem]:
    """Returns the three problems by name."""
    generator = np.random.default_rng(seed)
    x = np.sort(generator.uniform(-1, 1, NUM_POINTS))[:, None]
    line = 2 * x + 1 + generator.normal(0, 0.3, x.shape)
    curve = 2 * x**3 - x + 0.5 + generator.normal(0, 0.15, x.shape)
    # Pixel coordinates, as of matches between two photographs: the source's rate suits this scale.
    grid = np.linspace(-100, 100, 5)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    moved = plane @ np.array([[1.2, 0.3], [-0.4, 0.9]]) + generator.normal(0, 3, plane.shape)
    moved += np.array([30.0, -20.0])
    powers = np.column_stack([x, x**2, x**3])
    single = functools.partial(np.asarray, dtype=np.float32)
    return {
        "line": Problem(single(x), single(line), 0.1, (0, 2, 5, 15, 200)),
        "curve": Problem(single(powers), single(curve), 0.3, (0, 5, 50, 400, 3000)),
        "affine map": Problem(single(plane), single(moved), RATE, (0, 1, 3, 60000)),
    }


def measure(run: Run) -> dict[str, dict[str, Any]]:
    """Returns the result of `fit` for each problem, and adds the losses to the run's facts."""
    fits = run.stages.remember(
        "gradient descent",
        lambda _: {name: fit(problem) for name, problem in problems(run.settings.seed).items()},
    )
    for name, found in fits.items():
        for moment, loss in zip(("start", "end", "least squares"), found["losses"], strict=True):
            run.facts.add("fit loss", problem=name, moment=moment, value=loss)
    return fits


def fit(problem: Problem) -> dict[str, Any]:
    """Fits a problem by gradient descent, and by least squares for comparison.

    Returns:
      JSON values: "losses" at the start, at the end and of least squares; "fitted" and "least_squares",
      the weights and then the bias of each output; "points", {"step", "x", "y"} of the data, whose step
      is None, and of the fit at each moment; "loss" over "steps"; "rate".
    """
    features, targets, rate, moments = problem
    (weights, biases), losses = jax.device_get(descend(features, targets, rate, moments[-1]))
    best = least_squares(features, targets)
    residuals = features @ best[:-1] + best[-1] - targets
    shown = {None: targets} | {step: features @ weights[step] + biases[step] for step in moments}
    points = []
    for step, values in shown.items():
        # A map of the plane is drawn as points of the plane, and a function over its argument.
        x, y = values.T if values.shape[1] > 1 else (features[:, 0], values[:, 0])
        points.append({"step": step, "x": x.tolist(), "y": y.tolist()})
    steps = np.unique(np.geomspace(1, moments[-1], 60).round().astype(int))
    return {
        "rate": rate,
        "losses": [float(losses[0]), float(losses[-1]), float((residuals**2).sum(1).mean())],
        "fitted": np.vstack([weights[-1], biases[-1]]).T.tolist(),
        "least_squares": best.T.tolist(),
        "points": points,
        "steps": steps.tolist(),
        "loss": losses[steps].tolist(),
    }
