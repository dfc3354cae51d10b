"""Specs that are wrong in what they compute, where every length is right."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxrobust import pruning


class Joined(nn.Module):
    """Two convolutions side by side, joined and flattened."""

    widths: tuple[int, int] = (6, 6)

    @nn.compact
    def __call__(self, images, train=False):
        sides = [
            nn.relu(nn.Conv(width, (3, 3), name=f"side_{i}")(images))
            for i, width in enumerate(self.widths)
        ]
        joined = jnp.concatenate(sides, -1)
        return nn.Dense(3, name="head")(joined.reshape(joined.shape[0], -1))


def joined_spec(first=0, repeat=4):
    """Right with the defaults; `first` is the side that the head has first at each position."""
    sides = [(("widths", i), 6, 1) for i in (0, 1)]
    makers = {}
    for index, side in enumerate(sides):
        makers["params", f"side_{index}/kernel", 3] = (side,)
        makers["params", f"side_{index}/bias", 0] = (side,)
    order = (sides[first], sides[1 - first])
    of_head = order * 4 if repeat == 4 else tuple((group, 6, 4) for group, _, _ in order)
    return makers | {("params", "head/kernel", 0): of_head}


def test_what_lengths_do_not_tell_is_computed():
    images = jax.random.uniform(jax.random.key(1), (2, 2, 2, 3))
    variables = Joined().init(jax.random.key(0), images)
    build = lambda **widths: Joined(**widths).apply  # noqa: E731
    shapes = lambda **w: jax.eval_shape(Joined(**w).init, jax.random.key(0), images)  # noqa: E731
    pruning.check_shrinking(joined_spec(), build, variables, images)
    for wrong in (joined_spec(first=1), joined_spec(repeat=1)):
        pruning.check_spec(wrong, shapes)  # every length is right
        with pytest.raises(ValueError, match="axis 0 of params/head/kernel"):
            pruning.check_shrinking(wrong, build, variables, images)


def test_segments_that_are_none_are_named():
    spec = {("params", "side_0/kernel", 3): (("widths", 0), 6, 1)}  # a comma is missing
    with pytest.raises(ValueError, match="tuple of segments .* on axis 3 of params/side_0/kernel"):
        pruning.group_sizes(spec)
