"""Whether a method can be trained by a recipe."""

import warnings

import jax

from jaxrobust.training.compression.budget_schedules import check_sequences
from jaxrobust.training.compression.method import STEM_AND_CLASSIFIER, kept_at, prefixes
from jaxrobust.training.step.attack_schedule import strength
from jaxrobust.training.step.recipe import Recipe
from jaxrobust.types import Array, PyTree, as_key


def check_compression(recipe: Recipe, params: PyTree) -> None:
    """Raises unless the method of a recipe can be trained by its other values.

    Args:
      recipe: With a compression.
      params: Of the network, arrays or their shapes.

    A network without kernels called stem, or head, is warned about where a method would spare these.

    Raises:
      ValueError: More budgets than epochs; a budget out of the constraint's reach; one that changes in
        an epoch in which the attack does.
    """
    compression, epochs = recipe.compression, range(recipe.num_epochs)
    assert compression is not None
    spared = prefixes(params, None)
    if getattr(compression, "exclude", ()) is None and len(spared) < 2:
        missing = [name.strip("/") for name in STEM_AND_CLASSIFIER if name not in spared]
        warnings.warn(
            f"No kernel of the network is called {' or '.join(missing)}, so its layers are compressed "
            "like the others: name what shall stay whole in `exclude`, or give exclude=() if that is "
            "meant.",
            stacklevel=4,
        )
    kept = [kept_at(compression, epoch) for epoch in epochs]
    if isinstance(compression.kept, tuple) and len(compression.kept) > recipe.num_epochs:
        raise ValueError(
            f"`kept` must have at most one value per epoch, {recipe.num_epochs}, got "
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
