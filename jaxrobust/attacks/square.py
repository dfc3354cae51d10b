"""Square: random search with square windows, which needs only the logits.

Every step changes the best point so far in one square window at a random place, and keeps the change if
the margin of the label shrinks. The windows shrink over the steps: the share p of the image that they
cover is halved after steps 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000.

    linf  the window becomes the point plus or minus 2 epsilon in each channel, clipped to the ball.
          The start is vertical stripes of plus and minus epsilon.
    l2    the window gets a pyramid-shaped change, with the mass of a second window, which becomes
          zero. The whole is scaled to length epsilon. The start is a tiling of such shapes.

Windows are drawn for each image separately and reach every row and column; the reference implementation
shares one window over a batch and never reaches the last row and column. In l2 each channel of a window
gets the mass of all channels, as in the reference implementation; in algorithm 3 of the paper it gets
its own mass. In both cases the whole is scaled.

References:
  Andriushchenko, Croce, Flammarion, Hein, "Square Attack: a query-efficient black-box adversarial
  attack via random search", ECCV 2020, algorithms 1 to 3, https://arxiv.org/abs/1912.00049
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks, losses, norms
from jaxrobust.attacks import settings
from jaxrobust.attacks.attack import Attack
from jaxrobust.types import Array, Evaluation

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
NORMS = ("linf", "l2")


class State(NamedTuple):
    """One image under attack.

    Attributes:
      key: The PRNG key of the windows.
      original: [H, W, C], the clean image.
      label: int32 scalar.
      best: [H, W, C], the best point so far.
      best_value: The objective at the best point.
      point: [H, W, C], the candidate.
      step: int32, the number of candidates judged so far; the start is the first.
    """

    key: Array
    original: Array
    label: Array
    best: Array
    best_value: Array
    point: Array
    step: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Square(Attack):
    """Square attack: a black-box attack that uses only the logits.

    Attributes:
      epsilon: The radius of the ball in pixel units, not negative; for linf at most 1.
      num_steps: How many queries to make, at least 1; 5000 in AutoAttack.
      norm: "linf" or "l2". For "l2" images must have at least 5 x 5 pixels.
      targeted: Whether the labels are the classes to reach.
      num_restarts: How many random starts to try, at least 1.
      p_init: The share of the image that the first windows cover, in (0, 1].
      rescale_schedule: Whether to scale the steps at which windows shrink, which are meant for 10,000
        steps, to `num_steps`. AutoAttack does not.
    """

    epsilon: float = 8 / 255
    num_steps: int = settings.static(5000)
    norm: str = settings.static("linf")
    targeted: bool = settings.static(False)
    num_restarts: int = settings.static(1)
    p_init: float = settings.static(0.8)
    rescale_schedule: bool = settings.static(False)

    keep: ClassVar[str] = "best"
    uses_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        checks.one_of("norm", self.norm, NORMS)
        settings.check_ball(self)
        checks.integer("num_steps", self.num_steps, minimum=1)
        checks.integer("num_restarts", self.num_restarts, minimum=1)
        checks.number("p_init", self.p_init, above=0.0, maximum=1.0)

    def init(self, key: Array, image: Array, label: Array, restart: Array) -> State:
        """Starts with random stripes (linf) or tiles (l2)."""
        start_key, key = jax.random.split(key)
        if self.norm == "linf":
            _, width, channels = image.shape
            signs = jax.random.rademacher(start_key, (1, width, channels), jnp.float32)
            start = jnp.broadcast_to(signs * self.epsilon, image.shape)
        else:
            start = norms.steepest(_tiles(start_key, image.shape), "l2") * self.epsilon
        start = jnp.clip(image + start, 0.0, 1.0)
        lowest = jnp.float32(-jnp.inf)
        return State(key, image, label, start, lowest, start, jnp.int32(0))

    def ask(self, state: State) -> Array:
        """Asks about the candidate."""
        return state.point

    def objective(self, logits: Array, state: State) -> Array:
        """Returns the margin: positive if another class is predicted (targeted: the target)."""
        return losses.margin(logits, state.label, self.targeted)

    def tell(self, state: State, evaluation: Evaluation) -> State:
        """Keeps the candidate if it is better, and draws the next one."""
        value = evaluation.value.astype(jnp.float32)  # whatever the classifier computes in
        better = value > state.best_value
        best = jnp.where(better, state.point, state.best)
        value = jnp.where(better, value, state.best_value)
        # The schedule counts windows, of which this is the first after the start.
        level = jnp.sum(state.step > jnp.asarray(self._halvings()))
        key = jax.random.fold_in(state.key, state.step)
        change = self._window_linf if self.norm == "linf" else self._window_l2
        point = change(key, state.original, best, level)
        return state._replace(best=best, best_value=value, point=point, step=state.step + 1)

    def _halvings(self) -> tuple[int, ...]:
        """The steps after which the window's share is halved."""
        if not self.rescale_schedule:
            return _HALVINGS
        # A step counts as floor(10,000 step / num_steps) ones: here, from where that exceeds h.
        return tuple(-(-(h + 1) * self.num_steps // 10_000) - 1 for h in _HALVINGS)

    def _window_linf(self, key: Array, original: Array, best: Array, level: Array) -> Array:
        height, width, channels = original.shape
        draws = _draws(key, (2 + channels,))
        side = jnp.asarray(_sides(self.p_init, height, width, least=1))[level]
        inside = _window(draws[:2], (height, width), side)[..., None]
        signs = _signs(draws[2:])[None, None]
        moved = jnp.where(inside, best + 2 * self.epsilon * signs, best)
        moved = jnp.clip(moved, original - self.epsilon, original + self.epsilon)
        return jnp.clip(moved, 0.0, 1.0)

    def _window_l2(self, key: Array, original: Array, best: Array, level: Array) -> Array:
        height, width, channels = original.shape
        draws = _draws(key, (5 + channels,))
        side = jnp.asarray(_sides(self.p_init, height, width, least=3))[level]
        first = _window(draws[0:2], (height, width), side)[..., None]
        second = _window(draws[2:4], (height, width), side)[..., None]
        change = best - original
        shape = jnp.asarray(_shapes(self.p_init, height, width))[level]
        shape = jnp.where(draws[4] < 0.5, shape, shape.T)
        # The table has it in the corner: move it to where the window is.
        row, column = (jnp.argmax(jnp.any(first[..., 0], axis=axis)) for axis in (1, 0))
        placed = jnp.roll(jnp.roll(shape, row, 0), column, 1)[:height, :width]
        signs = _signs(draws[5:])[None, None]

        def lengths(values: Array) -> Array:
            return jnp.sqrt(jnp.sum(values**2, axis=(0, 1), keepdims=True))  # of each channel

        within = jnp.where(first, change, 0.0)
        new = placed[..., None] * signs + within / (1e-12 + lengths(within))
        mass = jnp.sum(jnp.where(first | second, change, 0.0) ** 2)
        unused = jnp.maximum(self.epsilon**2 - jnp.sum(change**2), 0.0)
        new = new / (1e-12 + lengths(new)) * jnp.sqrt(unused / channels + mass)
        moved = jnp.where(first, new, jnp.where(second, 0.0, change))
        return jnp.clip(original + norms.steepest(moved, "l2") * self.epsilon, 0.0, 1.0)


def _sides(p_init: float, height: int, width: int, least: int) -> np.ndarray:
    """The window's side at each level; odd and smaller than the image for l2 (`least` 3)."""
    shares = p_init / 2.0 ** np.arange(len(_HALVINGS) + 1)
    sides = np.maximum(np.round(np.sqrt(shares * height * width)), least).astype(np.int32)
    if least == 3:
        sides += 1 - sides % 2
    return np.minimum(sides, min(height, width))


def _draws(key: Array, shape: tuple[int, ...]) -> Array:
    """All that a candidate draws, at once: on the CPU a dozen small draws cost more than the rest."""
    return jax.random.uniform(key, shape, jnp.float32)


def _signs(draws: Array) -> Array:
    return jnp.where(draws < 0.5, -1.0, 1.0).astype(jnp.float32)


def _window(draws: Array, shape: tuple[int, int], side: Array) -> Array:
    """A square at a random place, from two numbers of [0, 1): bool [H, W]."""
    row, column = (
        # Float32 may round the product up to the number of places.
        jnp.minimum((draw * (size - side + 1).astype(draw.dtype)).astype(jnp.int32), size - side)
        for draw, size in zip(draws, shape, strict=True)
    )
    rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
    inside = (rows >= row) & (rows < row + side), (columns >= column) & (columns < column + side)
    return inside[0][:, None] & inside[1][None]


def _pyramid(height: int, width: int) -> np.ndarray:
    """Rectangles around the centre, each with 1 / n^2 of the n-th from within; of length one."""
    values = np.zeros((height, width))
    row, column = height // 2, width // 2
    for n in range(max(height // 2 + 1, width // 2 + 1)):
        values[
            max(row - n, 0) : min(row + n + 1, height),
            max(column - n, 0) : min(column + n + 1, width),
        ] += 1.0 / (n + 1) ** 2
    return values / np.sqrt((values**2).sum())


def _two_pyramids(side: int) -> np.ndarray:
    """One up and one down, side by side; of length one."""
    half = side // 2
    values = np.concatenate([_pyramid(half, side), -_pyramid(side - half, side)])
    return values / np.sqrt((values**2).sum())


def _shapes(p_init: float, height: int, width: int) -> np.ndarray:
    """The change of each level in the upper left corner: float32 [levels, S, S]."""
    size = max(height, width)
    sides = _sides(p_init, height, width, least=3)
    table = np.zeros((len(sides), size, size), np.float32)
    for values, side in zip(table, sides, strict=True):
        values[:side, :side] = _two_pyramids(int(side))
    return table


def _tiles(key: Array, shape: tuple[int, ...]) -> Array:
    """Five by five tiles of two pyramids, each channel with a sign of its own."""
    height, width, channels = shape
    side = min(height, width) // 5
    if side == 0:
        raise ValueError(
            f"Square in l2 needs images of at least 5 x 5 pixels, got {height} x {width}."
        )
    shape_of_one = jnp.asarray(_two_pyramids(side), jnp.float32)[None, None]
    rows, columns = height // side, width // side
    draws = _draws(key, (rows, columns, 1, 1, 1 + channels))
    tiles = jnp.where(draws[..., 0] < 0.5, shape_of_one, jnp.swapaxes(shape_of_one, 2, 3))
    signs = _signs(draws[..., 1:])
    block = (tiles[..., None] * signs).transpose(0, 2, 1, 3, 4)
    block = block.reshape(rows * side, columns * side, channels)
    margins = [(size - count * side) // 2 for size, count in ((height, rows), (width, columns))]
    return jax.lax.dynamic_update_slice(jnp.zeros(shape, jnp.float32), block, (*margins, 0))
