"""Checks that a compression method fits the other settings of its recipe."""

import warnings

import jax

from jaxrobust.training.compression.budget_schedules import check_sequences
from jaxrobust.training.compression.method import STEM_AND_CLASSIFIER, kept_at, prefixes
from jaxrobust.training.step.attack_schedule import strength
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.types import Array, PyTree, as_key


def check_compression(recipe: Recipe, params: PyTree) -> None:
    """Raises unless the compression of a recipe fits its other settings.

    It warns if the method excludes the stem and the head by default and the network has no kernels
    with these names.

    Args:
      recipe: A recipe with a compression.
      params: The parameters of the network, as arrays or shapes.

    Raises:
      ValueError: There are more budgets than epochs, or the constraint cannot reach a budget, or a
        budget changes in the same epoch as the attack.
    """
    compression, epochs = recipe.compression, range(recipe.num_epochs)
    assert compression is not None
    constraint = getattr(compression, "constraint", None)
    spared = {*prefixes(params, None), *prefixes(params, None, constraint)}
    if getattr(compression, "exclude", ()) is None and len(spared) < 2:
        missing = [name.strip("/") for name in STEM_AND_CLASSIFIER if name not in spared]
        others = f"all its layers except {spared.pop().strip('/')}" if spared else "all its layers"
        warnings.warn(
            f"No kernel of the network is called {' or '.join(missing)}, so {others} are compressed: "
            "name in `exclude` the layers that must not be, or give exclude=() to compress all.",
            stacklevel=4,
        )
    kept = [kept_at(compression, epoch) for epoch in epochs]
    if isinstance(compression.kept, tuple) and len(compression.kept) > recipe.num_epochs:
        raise ValueError(
            f"`kept` must have at most {recipe.num_epochs} values, one per epoch, got "
            f"{len(compression.kept)}."
        )
    key = jax.eval_shape(lambda: as_key(jax.random.key(0)))
    # What is out of reach is above the largest or below the smallest that is within.
    for value in {min(kept), max(kept)}:

        def finished(key: Array, params: PyTree, value: float = value) -> PyTree:
            return compression.finish(*compression.start(key, params, value), value)

        jax.eval_shape(finished, key, params)
    if compression.guard:
        attacks = [strength(recipe.adversary, epoch + 1) for epoch in epochs]
        check_sequences([one[0] for one in attacks], [one[1] for one in attacks], kept)
