"""A line, a curve and a map of the plane, fitted by gradient descent: the source's first problem.

All three are one linear layer y = W f(x) + b under the loss L = mean_i |y_i - t_i|^2, descended by
W <- W - rate * dL/dW from zero. Features: x itself for the line, x, x^2 and x^3 for the curve, and two
coordinates for the affine map, which is what the source's course has fitted. Its text gives the
learning rate, 1e-4, and a figure, but neither data nor results, so the data here are drawn from known
lines with noise, and the fits are held to least squares.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cifar_mlp.network import Layer, update
from experiments.cifar_mlp.source import FIT_RATE
from jaxrobust import compilation
from jaxrobust.studies import blocks

NUM_POINTS = 60


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Points to fit.

    Attributes:
      name: In the report.
      features: float32 [N, D].
      targets: float32 [N, H].
      rate: The learning rate.
      num_steps: Of gradient descent.
      moments: Steps after which the fit is shown.
    """

    name: str
    features: np.ndarray
    targets: np.ndarray
    rate: float
    num_steps: int
    moments: tuple[int, ...]


class Descent(NamedTuple):
    """The way of a fit: the layers and losses before each step and after the last, [T + 1, ...]."""

    layers: Any
    losses: Any


def squared_error(layer: Layer, features: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over the points of the squared distance to the target."""
    errors = features @ layer.weights + layer.bias - targets
    return jnp.mean(jnp.sum(errors**2, axis=1))


@functools.partial(compilation.jit, static_argnames="num_steps")
def descend(features: Any, targets: Any, rate: float | jax.Array, num_steps: int) -> Descent:
    """Gradient descent from zero, all of it one program.

    Args:
      features: float32 [N, D].
      targets: float32 [N, H].
      rate: The learning rate.
      num_steps: T.
    """
    start = Layer(
        jnp.zeros((features.shape[1], targets.shape[1])), jnp.zeros(targets.shape[1], jnp.float32)
    )

    def step(layer: Layer, _: Any) -> tuple[Layer, tuple[Layer, jax.Array]]:
        loss, slope = jax.value_and_grad(squared_error)(layer, features, targets)
        (moved,) = update((layer,), (slope,), rate)
        return moved, (layer, loss)

    last, (layers, losses) = jax.lax.scan(step, start, None, length=num_steps)
    layers = jax.tree.map(lambda way, end: jnp.append(way, end[None], axis=0), layers, last)
    return Descent(layers, jnp.append(losses, squared_error(last, features, targets)))


def least_squares(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The best weights and, as the last row, bias: float64 [D + 1, H], where all descents lead."""
    columns = np.column_stack([features, np.ones(len(features))])
    return np.linalg.lstsq(columns, targets.astype(np.float64), rcond=None)[0]


def problems(seed: int) -> list[Problem]:
    """The three fits."""
    generator = np.random.default_rng(seed)
    x = np.sort(generator.uniform(-1, 1, NUM_POINTS))[:, None]
    line = 2 * x + 1 + generator.normal(0, 0.3, x.shape)
    curve = 2 * x**3 - x + 0.5 + generator.normal(0, 0.15, x.shape)
    # Pixels of an image, as matches between two photographs are: the source's rate fits their scale.
    grid = np.linspace(-100, 100, 5)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    moved = plane @ np.array([[1.2, 0.3], [-0.4, 0.9]]) + generator.normal(0, 3, plane.shape)
    powers = np.column_stack([x, x**2, x**3])
    moved += np.array([30.0, -20.0])
    return [
        _problem("line", x, line, 0.1, (0, 2, 5, 15, 200)),
        _problem("curve", powers, curve, 0.3, (0, 5, 50, 400, 3000)),
        _problem("affine map", plane, moved, FIT_RATE, (0, 1, 3, 60000)),
    ]


def _problem(
    name: str, features: np.ndarray, targets: np.ndarray, rate: float, moments: tuple[int, ...]
) -> Problem:
    """In float32, descended until the last moment."""
    pair = (features.astype(np.float32), targets.astype(np.float32))
    return Problem(name, *pair, rate, moments[-1], moments)


def section(seed: int, *, part: str) -> dict[str, Any]:
    """The fits with their figures."""
    rows, charts = [], []
    for problem in problems(seed):
        descent = jax.device_get(
            descend(problem.features, problem.targets, problem.rate, problem.num_steps)
        )
        best = least_squares(problem.features, problem.targets)
        rows.append(_row(problem, descent, best))
        charts += _charts(problem, descent)
    return blocks.section(
        "fitting",
        "A line and a curve",
        [
            *charts,
            blocks.table(
                [
                    "Fit",
                    "Learning rate",
                    blocks.column("Steps"),
                    blocks.column("Loss at the start", decimals=4),
                    blocks.column("Loss at the end", decimals=4),
                    blocks.column("Loss of least squares", decimals=4),
                    "Fitted",
                    "Least squares",
                ],
                rows,
                "Nothing has a smaller loss than least squares: where the loss at the end is "
                "equal to that, gradient descent has arrived.",
            ),
        ],
        part=part,
        text=[
            "One linear layer under the mean squared error, descended from zero: y = a x + b to "
            "a line, y = a x + b x² + c x³ + d to a curve, and an affine map of the plane, y = S "
            "x + t. The source gives its learning rate, 1e-4, and a figure without numbers. Its "
            "course has an affine map fitted to matching points of two photographs, whose "
            "coordinates are of the order of a hundred pixels: with these 1e-4 finds S in a few "
            "steps, and t in tens of thousands. The points here are drawn from known functions "
            "with noise."
        ],
    )


def _row(problem: Problem, descent: Descent, best: np.ndarray) -> list[Any]:
    columns = np.column_stack([problem.features, np.ones(len(problem.features))])
    residual = float(((columns @ best - problem.targets) ** 2).sum(axis=1).mean())
    last = np.vstack([descent.layers.weights[-1], descent.layers.bias[-1]])
    ends = [float(descent.losses[index]) for index in (0, -1)]
    return [
        problem.name,
        f"{problem.rate:g}",
        problem.num_steps,
        *ends,
        residual,
        _formula(last),
        _formula(best),
    ]


def _formula(layer: np.ndarray) -> str:
    """Weights and bias in words: "2.01, 0.98"; of several outputs one after the other."""
    return "; ".join(", ".join(f"{value:.3f}" for value in column) for column in layer.T)


def _charts(problem: Problem, descent: Descent) -> list[dict[str, Any]]:
    lines, mapped = [], problem.targets.shape[1] > 1
    over, values = problem.features[:, 0], problem.targets[:, 0]
    titles = ("x", "y")
    if mapped:
        over, values = problem.targets.T
        titles = ("first coordinate", "second coordinate")
    lines.append(_line("targets" if mapped else "data", over, values, scatter=True))
    for moment in problem.moments:
        name = f"after {moment:,} step{'s' * (moment > 1)}" if moment else "at the start"
        answer = problem.features @ descent.layers.weights[moment] + descent.layers.bias[moment]
        if mapped:
            lines.append(_line(name, *answer.T, scatter=True))
        else:
            lines.append(_line(name, over, answer[:, 0]))
    steps = np.unique(np.geomspace(1, problem.num_steps, 60).round().astype(int))
    return [
        blocks.chart(f"The {problem.name} at several moments", *titles, lines),
        blocks.chart(
            f"The loss of the {problem.name}",
            "step",
            "mean squared error",
            [blocks.line("loss", steps.tolist(), descent.losses[steps].tolist())],
            log_x=True,
        ),
    ]


def _line(name: str, x: np.ndarray, y: np.ndarray, *, scatter: bool = False) -> dict[str, Any]:
    return blocks.line(name, x.tolist(), y.tolist(), scatter=scatter)
