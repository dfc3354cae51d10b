"""Budgets, radii and steps of attacks that change over the epochs."""

import itertools

import numpy as np
import pytest

from jaxrobust.attacks import PGD
from jaxrobust.training import (
    FreeReplays,
    check_sequences,
    source_sequences,
)


@pytest.mark.parametrize("num_epochs", [9, 12, 31, 100])
def test_sequences_of_the_source_change_one_thing_at_a_time(num_epochs):
    attack = PGD(0.03, 0.01, num_steps=10)
    schedule, kept = source_sequences(num_epochs, attack, 0.1)
    attacks = [
        next(one for first, one in reversed(schedule.stages) if first <= epoch)
        for epoch in range(1, num_epochs + 1)
    ]
    epsilons, steps = [one.epsilon for one in attacks], [one.num_steps for one in attacks]
    check_sequences(epsilons, steps, kept)
    assert epsilons == sorted(epsilons) and epsilons[-1] == 0.03
    assert len(set(epsilons)) == 3 and epsilons[0] == pytest.approx(0.01)
    assert steps[0] == 1 and steps[-1] == 10
    assert list(kept) == sorted(kept, reverse=True)
    assert kept[0] == 1.0 and set(kept[int(np.ceil(0.8 * num_epochs)) :]) == {0.1}
    for one in attacks:
        # Of a single step no more than FGSM-RS takes.
        assert one.step_size == pytest.approx(one.epsilon * min(2.5 / one.num_steps, 1.25))
    # As the source has it, radius and steps change together.
    literal, _ = source_sequences(num_epochs, attack, 0.1, separate=False)
    resets = [
        (before, after)
        for (_, before), (_, after) in itertools.pairwise(literal.stages)
        if after.epsilon > before.epsilon
    ]
    assert len(resets) == 2
    assert all(after.num_steps == 1 < before.num_steps for before, after in resets)


def test_sequences_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError, match="must have equal lengths, one value per epoch, got epsilon 1, steps 2"
    ):
        check_sequences([0.1], [1, 2], [1.0, 0.5])
    with pytest.raises(ValueError, match="leaves no epoch in which only the budget falls"):
        source_sequences(3, PGD(0.03, 0.01, num_steps=3), 0.1, num_radii=1)
    with pytest.raises(ValueError, match=r"`settle` must be in \[0, 1\), got 1"):
        source_sequences(12, PGD(0.03, 0.01, num_steps=3), 0.1, settle=1.0)
    with pytest.raises(TypeError, match="`attack` must have `step_size`"):
        source_sequences(12, FreeReplays(0.03), 0.1)
