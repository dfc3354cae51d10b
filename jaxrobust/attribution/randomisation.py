"""Cascading randomisation: whether a map changes when the network's weights are shuffled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import programs
from jaxrobust.attribution.agreement import rank_correlation
from jaxrobust.attribution.arguments import checked, predicted_if_none
from jaxrobust.programs import naming
from jaxrobust.types import Array, LogitsFn, PyTree, as_key


def cascading_randomisation(
    key: Array,
    method: Callable[..., Array],
    apply: Callable[[PyTree], LogitsFn],
    variables: PyTree,
    images: Array,
    labels: Array | None = None,
    *,
    layers: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Randomises a network layer by layer from the top, and compares each map with the original one.

    The map of a method that explains the network must change. If its rank correlation stays high, the
    map depends on the image alone, like that of an edge detector. A layer is randomised by shuffling
    the values within each of its parameter arrays, which keeps their distribution (scale, sparsity) but
    destroys what was learned; constant arrays stay the same, as fresh biases would. Layers that were
    randomised stay so, and BatchNorm's statistics are kept. The explained classes, and the key that
    the method gets, are those of the original network throughout.

    Args:
      key: A PRNG key, for the shuffles and the method.
      method: (key, logits_fn, images, labels) -> maps [B, H, W], such as an entry of `METHODS`.
      apply: Variables -> LogitsFn. The result must be a pytree whose leaves hold the variables, so that
        nothing is compiled for other weights: `lambda v: dataclasses.replace(classifier, variables=v)`
        or `lambda v: jax.tree_util.Partial(network.apply, v)`.
      variables: {"params": nested dict of arrays, ...}.
      images: float32 [B, H, W, C] in [0, 1].
      labels: int [B], the classes to explain; by default those that the original network predicts.
      layers: Paths in the parameters ("head", "stage_0_block_0/conv_1"), in the order in which to
        randomise them; a path includes everything below it. By default these are all entries of the
        top level, the one that the network uses last first.

    Returns:
      {"layers": list of L paths, "rank_correlation": float32 [L, B], Spearman's, "maps": float32
      [L, B, H, W]}. Entry l is for the network in which layers 0 .. l are randomised. The correlation
      is between the absolute values of its map and of the original map, and NaN if one of them is
      constant.

    Raises:
      TypeError: The images are integers, the labels are not, `layers` is one string, or `apply` returns
        a plain function.
      ValueError: Shapes do not fit, values are out of range, the variables have no "params", a layer
        has no parameters, or the order of the layers cannot be found out.

    Example:
      >>> import flax.linen as nn, jax
      >>> from jaxrobust.attribution import METHODS
      >>> network = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(3)])
      >>> images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 1))
      >>> check = cascading_randomisation(
      ...     jax.random.key(0),
      ...     METHODS["saliency"],
      ...     lambda variables: jax.tree_util.Partial(network.apply, variables),
      ...     network.init(jax.random.key(0), images),
      ...     images,
      ... )
      >>> check["layers"], bool((abs(check["rank_correlation"]) < 0.5).all())
      (['layers_1'], True)

    References:
      Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 4.1,
      https://arxiv.org/abs/1810.03292
    """
    if not (hasattr(variables, "keys") and "params" in variables):
        raise ValueError(
            '`variables` must be {"params": nested dict of arrays, ...}, as linen modules and '
            "`training.fit` return them. For an nnx module pass those that `fit` returns, and let "
            "`apply` put them into the module with `training.with_variables(module, variables)`."
        )
    original = _network(apply, variables)
    function, images, labels = checked(original, images, labels)
    labels = programs.call(predicted_if_none, function, images, labels)
    layers = _layers(apply, variables, images, layers)
    # One shuffle of everything, of which each network takes the layers down to its own.
    shuffle_key, method_key = jax.random.split(as_key(key))
    shuffled = _shuffled(shuffle_key, variables["params"])
    expected = method(method_key, original, images, labels)
    correlations, maps = [], []
    for count in range(1, len(layers) + 1):
        params = _replaced(variables["params"], shuffled, layers[:count])
        network = _network(apply, {**variables, "params": params})
        maps.append(method(method_key, network, images, labels))
        correlations.append(rank_correlation(jnp.abs(expected), jnp.abs(maps[-1])))
    return {
        "layers": list(layers),
        "rank_correlation": jnp.stack(correlations),
        "maps": jnp.stack(maps),
    }


def _network(apply: Callable[[PyTree], LogitsFn], variables: PyTree) -> LogitsFn:
    if not callable(apply):
        raise TypeError(f"`apply` must be callable, got {type(apply).__name__}.")
    function = apply(variables)
    if not callable(function) or jax.tree_util.all_leaves([function]):
        raise TypeError(
            "`apply` must return a callable pytree that holds the variables, a Classifier or "
            f"jax.tree_util.Partial(network.apply, variables), got {type(function).__name__}."
        )
    return function


def _layers(
    apply: Callable[[PyTree], LogitsFn],
    variables: PyTree,
    images: Array,
    layers: Sequence[str] | None,
) -> tuple[str, ...]:
    params = variables["params"]
    if isinstance(layers, str):
        raise TypeError(f"`layers` must be a sequence of paths, got the string {layers!r}.")
    if layers is None:
        layers = _last_used_first(apply, variables, images)
        if set(layers) != set(params):
            missing = ", ".join(sorted(set(params) - set(layers)))
            raise ValueError(
                f"`layers` must be given, because the network does not use {missing}, and so their "
                "order is not known."
            )
    paths = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for layer in layers:
        if not any(_is_below(path, layer) for path in paths):
            raise ValueError(
                f"`layers` must be paths of parameters, got {layer!r}; the top level has "
                f"{', '.join(params)}."
            )
    if not layers:
        raise ValueError("`layers` must name at least one layer, got none.")
    return tuple(layers)


def _last_used_first(
    apply: Callable[[PyTree], LogitsFn], variables: PyTree, images: Array
) -> tuple[str, ...]:
    """The top level of the parameters in order of use, because jax sorts the keys of dicts."""
    variables = jax.tree.map(jnp.asarray, variables)
    program = programs.as_argument(_network(apply, variables), images)
    names = {
        id(leaf): _path(path).split("/")[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    }
    operations = naming.operations(program, [""] * len(program.arrays))
    used = [id(program.arrays[index]) for one in operations for index in one.weights]
    return tuple(dict.fromkeys(names[one] for one in reversed(used) if one in names))


def _replaced(params: PyTree, shuffled: PyTree, layers: Sequence[str]) -> PyTree:
    """The parameters with those of the layers shuffled."""
    return jax.tree_util.tree_map_with_path(
        lambda path, old, new: (
            new if any(_is_below(_path(path), layer) for layer in layers) else old
        ),
        params,
        shuffled,
    )


def _path(keys: Any) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _is_below(path: str, layer: str) -> bool:
    return path == layer or path.startswith(f"{layer}/")


def _shuffled(key: Array, params: PyTree) -> PyTree:
    # On the host: compiling a sort for each shape takes longer than shuffling all of them.
    generator = np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))
    return jax.tree.map(
        lambda leaf: jnp.asarray(generator.permutation(np.ravel(leaf)).reshape(leaf.shape)), params
    )
