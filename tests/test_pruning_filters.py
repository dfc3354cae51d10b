"""Filter pruning: the masked network is the shrunk one, for all of the zoo; criteria and budgets."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL

from jaxrobust import models, pruning, training
from jaxrobust.models.residual import PreActResNet, ResNet

NETWORKS = {name: models.create(name, **sizes) for name, sizes in SMALL.items()} | {
    # What the zoo does not have: a stem without group of its own among bottlenecks, and one that is
    # as wide as the stage and yet apart from it, as pruning may leave it.
    "bottlenecks": ResNet(stage_sizes=(1, 1), widths=(8, 12), bottleneck=True),
    "same width": PreActResNet(
        stage_sizes=(1, 1),
        widths=(8, 12),
        stem_width=8,
        stem_shortcut=True,
        final_norm=False,
        raw_shortcut=True,
    ),
}
IMAGES = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)


@functools.cache
def shapes_of(network):
    return jax.eval_shape(network.init, jax.random.key(0), IMAGES)


@functools.cache
def groups_of(name):
    return pruning.channel_groups(NETWORKS[name].apply, shapes_of(NETWORKS[name]), IMAGES)


def pair(kernel):
    """Weights of two dense layers, of which the first has this kernel, and their one group "a"."""
    weights = {"a": {"kernel": kernel}, "head": {"kernel": jnp.ones((kernel.shape[1], 2))}}

    def logits(weights, images):
        return images.mean((1, 2)) @ weights["a"]["kernel"] @ weights["head"]["kernel"]

    return weights, pruning.channel_groups(logits, weights, jnp.ones((1, 2, 2, len(kernel))))


@functools.cache
def random_variables(name):
    """Weights, BatchNorm's scales and biases, and running statistics that are all random."""
    generator = np.random.default_rng(0)

    def draw(path, leaf):
        last = path[-1].key
        if last == "kernel":
            fan_in = leaf.size / leaf.shape[-1]
            drawn = generator.normal(size=leaf.shape) * np.sqrt(2 / fan_in)
        elif last in ("scale", "var"):
            drawn = generator.uniform(0.5, 1.5, leaf.shape)
        else:
            drawn = generator.normal(size=leaf.shape) * 0.3
        return jnp.asarray(drawn, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(NETWORKS[name]))


def random_keep(groups, key=0):
    """Between one and all of the channels of each group, others for each."""
    generator = np.random.default_rng(key)
    return {
        group: np.sort(generator.choice(size, generator.integers(1, size), replace=False))
        for group, size in groups.sizes.items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_network_equals_shrunk_network(name):
    network, variables, groups = NETWORKS[name], random_variables(name), groups_of(name)
    keep = random_keep(groups)
    masks = pruning.filter_masks(variables["params"], groups, keep)
    masked = variables | {"params": pruning.apply_masks(variables["params"], masks)}
    small = pruning.shrink(variables, groups, keep)
    smaller = models.resized(network, small)
    # Nothing is larger or missing that the smaller network would not have made itself.
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, shapes_of(smaller))
    images = jax.random.uniform(jax.random.key(1), IMAGES.shape)
    apply = jax.jit(network.apply)
    expected = apply(masked, images)
    assert float(expected.std()) > 1e-3
    logits = jax.jit(smaller.apply)(small, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * float(abs(expected).max()))
    dense = apply(variables, images)
    assert float(abs(dense - expected).max()) > 1e-3 * float(abs(dense).max())
    for group, kept in pruning.kept_filters(masks, groups).items():
        np.testing.assert_array_equal(kept, keep[group])
    # All channels but the images' and the classes' are in some group.
    first, last = groups.kernels[0], groups.kernels[-1]
    assert set(groups.refused) == {(first.path, *first.inputs), (last.path, *last.outputs)}


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_all_is_the_identity(name):
    network, variables, groups = NETWORKS[name], random_variables(name), groups_of(name)
    everything = {group: range(size) for group, size in groups.sizes.items()}
    for keep in ({}, everything):
        same = pruning.shrink(variables, groups, keep)
        assert jax.tree.all(jax.tree.map(lambda a, b: a is b, same, variables))
        again = models.resized(network, same)
        for field in dataclasses.fields(network):
            declared = getattr(network, field.name)
            assert declared is None or getattr(again, field.name) == declared, field.name
        assert jax.tree.map(jnp.shape, shapes_of(again)) == jax.tree.map(jnp.shape, variables)
        masks = pruning.filter_masks(variables["params"], groups, keep)
        assert jax.tree.all(jax.tree.map(jnp.all, masks))


@pytest.mark.parametrize("name", ["densenet121"])
def test_training_under_masks_is_training_the_smaller_network(name):
    """Gradients, BatchNorm's batch statistics and momentum too: after steps both are still equal."""
    network, variables, groups = NETWORKS[name], random_variables(name), groups_of(name)
    keep = random_keep(groups)
    masks = pruning.filter_masks(variables["params"], groups, keep)
    recipe = training.Recipe(
        num_epochs=2,
        batch_size=8,
        optimizer=training.SGD(),
        schedule=training.Constant(0.01),
        averaging=training.EMA(0.9),
    )
    images = np.asarray(jax.random.uniform(jax.random.key(2), (16, 16, 16, 3)))
    data = training.Data((images, np.arange(16) % 10))
    fitted = training.fit(network, data, recipe, variables=variables, masks=masks, progress=False)
    small = pruning.shrink(variables, groups, keep)
    smaller = models.resized(network, small)
    expected = training.fit(smaller, data, recipe, variables=small, progress=False).state
    shrunk = pruning.shrink_state(fitted.state, fitted.state.variables, groups, keep)
    assert jax.tree.structure(shrunk) == jax.tree.structure(expected)
    # Momentum of masked weights is never seen, and taken out with them.
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(shrunk), jax.tree.leaves(expected), strict=True
    ):
        scale = max(1.0, float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * scale, err_msg=str(path))
    averaged = pruning.shrink(fitted.variables, groups, keep)
    assert jax.tree.map(jnp.shape, averaged) == jax.tree.map(jnp.shape, shrunk.average)


def geometric_median(own, slope, others):
    return sum(np.sqrt(((own - other) ** 2).sum()) for other in others)


# Of every criterion the score of one filter of a kernel, of its gradient and all filters, written out;
# None: it does not look at the weights.
CRITERIA = {
    "l1": lambda own, slope, others: np.abs(own).sum(),
    "l2": lambda own, slope, others: np.sqrt((own**2).sum()),
    "geometric_median": geometric_median,
    "taylor": lambda own, slope, others: abs((own * slope).sum()),
    "random": None,
    "own": lambda own, slope, others: np.abs(own).max(),
}
OWN = pruning.Criterion(pruning.summed(lambda filters: np.abs(filters.weights).max(1)))
ALL = pruning.CRITERIA | {"own": OWN}


def scored(name, params, *given, **options):
    """By a criterion with what it needs, of slopes of the parameters' shapes."""
    slopes = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)
    needed = {"gradients": slopes, "key": jax.random.key(0), None: None}[ALL[name].needs]
    options |= {ALL[name].needs: needed} if ALL[name].needs else {}
    return pruning.filter_scores(params, *given, OWN if name == "own" else name, **options)


def test_every_criterion_has_a_row():
    assert set(CRITERIA) == set(ALL)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("criterion", [name for name, plain in CRITERIA.items() if plain])
def test_criteria_are_brute_force_over_the_kernels_of_a_group(criterion, normalise):
    """A stage of a residual network: its channels are made by the stem and both last convolutions."""
    variables = random_variables("resnet_small")
    params, groups = variables["params"], groups_of("resnet_small")
    if normalise and not ALL[criterion].normalises:
        with pytest.raises(
            ValueError, match=f"`normalise` must be False for the criterion '{criterion}'"
        ):
            scored(criterion, params, groups, normalise=True)
        return
    scores = scored(criterion, params, groups, normalise=normalise)
    slopes = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)
    for group, layers in (
        ("stem/conv", ["stem", "stage_0_block_0/conv_1", "stage_0_block_1/conv_1"]),
        (
            "stage_2_block_0/shortcut/conv",
            [f"stage_2_block_{c}" for c in ("0/conv_1", "1/conv_1", "0/shortcut")],
        ),
        ("stage_0_block_1/conv_0/conv", ["stage_0_block_1/conv_0"]),
    ):
        expected = 0.0
        for layer in layers:
            kernel, slope = (
                np.asarray(functools.reduce(dict.get, [*layer.split("/"), "conv", "kernel"], tree))
                for tree in (params, slopes)
            )
            filters = np.moveaxis(kernel.astype(np.float64), -1, 0)
            if normalise:
                filters = filters / np.sqrt(np.sum(filters**2))
            pairs = zip(filters, np.moveaxis(slope.astype(np.float64), -1, 0), strict=True)
            expected = expected + np.array([CRITERIA[criterion](*one, filters) for one in pairs])
        np.testing.assert_allclose(scores[group], expected, rtol=1e-6)
    again = scored(criterion, variables, groups, normalise=normalise)
    assert all(np.array_equal(scores[group], again[group]) for group in scores)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_removed_filters_score_0_and_others_as_without_them(criterion):
    params, groups = random_variables("resnet_small")["params"], groups_of("resnet_small")
    keep = random_keep(groups)
    masked = pruning.apply_masks(params, pruning.filter_masks(params, groups, keep))
    scores = scored(criterion, masked, groups, keep=keep)
    for group, kept in keep.items():
        assert scores[group].dtype == np.float32 and scores[group].shape == (groups.sizes[group],)
        assert not np.delete(scores[group], kept).any() and np.isfinite(scores[group]).all()
    if CRITERIA[criterion] is None:
        return
    small = pruning.shrink(random_variables("resnet_small"), groups, keep)
    smaller = models.resized(NETWORKS["resnet_small"], small)
    of_smaller = pruning.channel_groups(smaller.apply, small, IMAGES)
    # One channel alone is no group any more.
    keep = {group: kept for group, kept in keep.items() if len(kept) > 1}
    assert of_smaller.sizes == {group: len(kept) for group, kept in keep.items()}
    expected = scored(criterion, small, of_smaller)
    for group, kept in keep.items():
        np.testing.assert_allclose(scores[group][kept], expected[group], rtol=1e-5)


def test_taylor_is_the_change_of_a_loss_that_is_linear_in_the_weights():
    weights, groups = pair(jax.random.normal(jax.random.key(0), (3, 5)))
    slope = jax.random.normal(jax.random.key(1), (3, 5))
    loss = lambda weights: jnp.sum(weights["a"]["kernel"] * slope)  # noqa: E731
    scores = pruning.filter_scores(weights, groups, "taylor", gradients=jax.grad(loss)(weights))
    for channel in range(5):
        without = {"a": {"kernel": weights["a"]["kernel"].at[:, channel].set(0)}}
        change = abs(float(loss(without) - loss(weights)))
        np.testing.assert_allclose(scores["a"][channel], change, rtol=1e-4)


def test_geometric_median_removes_what_others_can_stand_in_for():
    """The example of its paper: of filters on a line the middle one goes, though it is not small."""
    weights, groups = pair(jnp.array([[-1.0, 5.0, 10.0], [1.0, 1.0, 1.0]]))
    scores = pruning.filter_scores(weights, groups, "geometric_median")
    np.testing.assert_allclose(scores["a"], [17, 11, 16])
    keep = pruning.keep_filters(scores, 1 / 3, min_filters=1)
    assert keep["a"].tolist() == [0, 2]


class Transposed(nn.Module):
    """Its first kernel is [height, width, output, input]."""

    @nn.compact
    def __call__(self, images):
        upscaled = nn.ConvTranspose(6, (3, 3), (2, 2), transpose_kernel=True, name="up")(images)
        return nn.Dense(2, name="head")(nn.relu(upscaled).mean((1, 2)))


def test_filters_are_on_the_axis_that_the_program_makes():
    variables = Transposed().init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))
    groups = pruning.channel_groups(Transposed().apply, variables, jnp.ones((1, 4, 4, 3)))
    kernel = np.asarray(variables["params"]["up"]["kernel"], np.float64)
    assert kernel.shape == (3, 3, 6, 3)
    assert groups.kernels[0] == pruning.Kernel(
        "params/up/kernel", (3,), (2,), is_first=True, followers=("params/up/bias",)
    )
    expected = {
        "l1": np.abs(kernel).sum((0, 1, 3)),
        "l2": np.sqrt((kernel**2).sum((0, 1, 3))),
    }
    for criterion, score in expected.items():
        scores = pruning.filter_scores(variables, groups, criterion)
        assert list(scores) == ["up"]
        np.testing.assert_allclose(scores["up"], score, rtol=1e-6)


def test_filters_that_are_not_known_to_be_removed_stand_in_for_others():
    """They are zeros, which are far from the filters that are left."""
    params, groups = random_variables("resnet_small")["params"], groups_of("resnet_small")
    keep = random_keep(groups)
    masked = pruning.apply_masks(params, pruning.filter_masks(params, groups, keep))
    scores = pruning.filter_scores(masked, groups, "geometric_median", keep=keep)
    blind = pruning.filter_scores(masked, groups, "geometric_median")
    assert any((blind[group][kept] > scores[group][kept]).all() for group, kept in keep.items())


class Joined(nn.Module):
    """Two convolutions side by side, joined and flattened."""

    @nn.compact
    def __call__(self, images):
        sides = [nn.Conv(6, (3, 3), name=f"side_{index}")(images) for index in range(2)]
        joined = nn.relu(jnp.concatenate(sides, -1))
        return nn.Dense(3, name="head")(joined.reshape(joined.shape[0], -1))


def test_concatenated_channels_and_positions_of_a_flatten():
    images = jax.random.uniform(jax.random.key(1), (2, 2, 2, 3))
    variables = Joined().init(jax.random.key(0), images)
    groups = pruning.channel_groups(Joined().apply, variables, images)
    assert groups.sizes == {"side_0": 6, "side_1": 6}
    rows = variables["params"]["head"]["kernel"].reshape(4, 2, 6, 3)
    small = pruning.shrink(variables, groups, {"side_0": [1, 4], "side_1": [5]})
    expected = jnp.concatenate([rows[:, 0, [1, 4]], rows[:, 1, [5]]], 1).reshape(12, 3)
    assert jnp.array_equal(small["params"]["head"]["kernel"], expected)
    masks = pruning.filter_masks(variables, groups, {"side_0": [1, 4], "side_1": [5]})
    masked = variables["params"]["head"]["kernel"] * masks["params"]["head"]["kernel"]
    assert int((masked != 0).sum()) == expected.size


def functional(variables, images):
    """`Joined` as a function of its weights, whatever their sizes are."""
    params = variables["params"]

    def convolved(layer):
        dimensions = ("NHWC", "HWIO", "NHWC")
        kernel = layer["kernel"]
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=dimensions
        )

    sides = [convolved(params[name]) + params[name]["bias"] for name in ("side_0", "side_1")]
    joined = jax.nn.relu(jnp.concatenate(sides, -1)).reshape(len(images), -1)
    return joined @ params["head"]["kernel"] + params["head"]["bias"]


def test_groups_that_are_wrong_are_computed():
    """Those that a program has are right; of others lengths alone would not tell."""
    images = jax.random.uniform(jax.random.key(1), (2, 2, 2, 3))
    variables = Joined().init(jax.random.key(0), images)
    groups = pruning.channel_groups(functional, variables, images)
    pruning.check_shrinking(functional, variables, groups, images)

    def with_rows(order):
        """As if the head read channels in another order: [position, side, channel] -> its rows."""
        found = {}
        for side, (name, group) in enumerate(groups.items()):
            places = [
                place._replace(indices=order[:, side].T) if "head" in place.path else place
                for place in group.places
            ]
            found[name] = group._replace(places=tuple(places))
        known = groups.kernels, groups.shapes, groups.refused
        return pruning.ChannelGroups(found, *known, groups.function, groups.images)

    rows = np.arange(48).reshape(4, 2, 6)
    pruning.check_shrinking(functional, variables, with_rows(rows), images)
    for wrong in (rows[:, ::-1], np.arange(48).reshape(2, 6, 4).transpose(2, 0, 1)):
        with pytest.raises(ValueError, match=r"differ by .* axis 0 of params/head/kernel"):
            pruning.check_shrinking(functional, variables, with_rows(wrong), images)


def test_code_that_has_its_widths_must_be_rebuilt():
    network, variables = NETWORKS["cnn"], random_variables("cnn")
    images, groups = jnp.ones(IMAGES.shape), groups_of("cnn")
    with pytest.raises(ValueError, match="give `rebuild`. .* params/block_0/conv/ker"):
        pruning.check_shrinking(network.apply, variables, groups, images)
    rebuild = lambda small: models.resized(network, small).apply  # noqa: E731
    pruning.check_shrinking(network.apply, variables, groups, images, rebuild=rebuild)


def test_random_scores_know_the_key_alone():
    variables, groups = random_variables("cnn"), groups_of("cnn")
    draw = functools.partial(pruning.filter_scores, variables, groups, "random")
    first, same, other = (draw(key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[group], same[group]) for group in first)
    assert all(not np.array_equal(first[group], other[group]) for group in first)
    assert not np.array_equal(first["block_0/conv"], first["block_1/conv"])


SCORES = st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0]), min_size=1, max_size=12)
SPARSITIES = st.floats(0, 1, exclude_max=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=4), SPARSITIES, st.integers(1, 4), st.booleans())
def test_budgets_are_exact_and_ties_go_in_order(lists, sparsity, min_filters, together):
    scores = {f"layer_{index}": np.array(list_) for index, list_ in enumerate(lists)}
    total = sum(map(len, lists))
    removable = {group: max(0, len(s) - min_filters) for group, s in scores.items()}
    options = {"scope": "global" if together else "layer", "min_filters": min_filters}
    if not together:
        keep = pruning.keep_filters(scores, sparsity, **options)
        for group, score in scores.items():
            count = min(round(sparsity * len(score)), removable[group])
            order = sorted(range(len(score)), key=lambda i, score=score: (score[i], i))
            assert keep[group].tolist() == sorted(order[count:])
        return
    count = round(sparsity * total)
    if count > sum(removable.values()):
        with pytest.raises(ValueError, match="must be at most"):
            pruning.keep_filters(scores, sparsity, **options)
        return
    keep = pruning.keep_filters(scores, sparsity, **options)
    # Brute force: one after the other goes the lowest of those that may still go.
    left = {group: list(range(len(score))) for group, score in scores.items()}
    for _ in range(count):
        lowest = min(
            (scores[group][i], group, i)
            for group, indices in left.items()
            for i in indices
            if len(indices) > min(len(scores[group]), min_filters)
        )
        left[lowest[1]].remove(lowest[2])
    assert {group: kept.tolist() for group, kept in keep.items()} == left


def test_floors_multiples_and_groups_to_keep():
    scores = {"wide": np.arange(32.0), "narrow": np.arange(6.0), "other": np.arange(20.0)}

    def counts(sparsity, **options):
        kept = pruning.keep_filters(scores, sparsity, **options)
        return [len(kept[group]) for group in scores]

    assert counts(0.5) == [16, 6, 10]  # at least 8, or all
    assert counts(0.9) == [8, 6, 8]
    assert counts(0.9, min_filters=1) == [3, 1, 2]
    assert counts(0.4, multiple_of=8) == [24, 6, 16]  # 19 and 12, rounded up
    assert counts(0.5, exclude=("wide",)) == [32, 6, 10]
    assert counts({"other": 0.25}) == [32, 6, 15]
    assert sum(counts(0.5, scope="global", exclude=("narrow",))) == 29
    assert counts(0.4, scope="global", exclude=("wide",), min_filters=1)[0] == 32
    with pytest.raises(ValueError, match=r"at most 0.2068.* keep 46 of the 58 channels"):
        counts(0.3, scope="global", exclude=("wide",))
    with pytest.raises(ValueError, match="must be a number with `scope='global'`"):
        counts({"other": 0.25}, scope="global")


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_schedule_never_revives_and_ends_at_its_target(scope):
    """With rounds of `iterative`, in which removed filters must stay removed whatever they score."""
    variables, groups = random_variables("resnet_small"), groups_of("resnet_small")
    prune = functools.partial(
        pruning.prune_filters,
        groups=groups,
        criterion="geometric_median",  # to which a removed filter is no small one
        scope=scope,
        min_filters=1,
    )
    sparsities = pruning.exponential_schedule(0.6, 4, initial=0.1)
    grow = lambda params, masks, number: jax.tree.map(lambda leaf: leaf * 1.5, params)  # noqa: E731
    sizes = groups.sizes
    for whole in (variables["params"], variables):
        for done in pruning.iterative(whole, sparsities, grow, prune=prune):
            kept = pruning.kept_filters(done.masks, groups)
            if scope == "global":
                left = sum(map(len, kept.values()))
                assert left == sum(sizes.values()) - round(done.sparsity * sum(sizes.values()))
            else:
                for group, size in sizes.items():
                    assert len(kept[group]) == size - round(done.sparsity * size)
        assert done.sparsity == 0.6


def test_exponential_schedule_is_nncfs():
    """Its formula, with its default of 100 steps for 10 epochs, which falls far short."""
    steps = pruning.exponential_schedule(0.5, 100, initial=0.1)
    assert len(steps) == 100 and steps[0] == 0.1 and steps[-1] == 0.5
    for index, value in enumerate(steps):
        expected = 1 - (1 - 0.1) * ((1 - 0.5) / (1 - 0.1)) ** (index / 99)
        assert value == pytest.approx(expected)
    assert steps[9] == pytest.approx(0.147, abs=5e-4)
    assert pruning.exponential_schedule(0.5, 1, initial=0.1) == (0.5,)
    assert pruning.exponential_schedule(0.0, 3) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="`initial` must be at most `sparsity` = 0.1, got 0.2"):
        pruning.exponential_schedule(0.1, 3, initial=0.2)


def test_states_of_optimizers():
    """Moments by path, also where a transformation leaves leaves out; counters as they are."""
    variables, groups = random_variables("cnn"), groups_of("cnn")
    params, keep = variables["params"], random_keep(groups)
    small = pruning.shrink(variables, groups, keep)
    kernels = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: path[-1].key == "kernel", tree
    )
    optimizer = optax.chain(optax.adam(0.1), optax.masked(optax.trace(0.9), kernels))
    state = optimizer.update(params, optimizer.init(params), params)[1]
    shrunk = pruning.shrink_state(state, variables, groups, keep)
    expected = optimizer.update(small["params"], optimizer.init(small["params"]), small["params"])[
        1
    ]
    jax.tree.map(np.testing.assert_array_equal, shrunk, expected)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2).init(params)
    with pytest.raises(ValueError, match="`state` must have the shapes of the network, .* anew"):
        pruning.shrink_state(factored, variables, groups, keep)


def test_paths_that_end_alike_are_told_apart():
    weights = {"params": {"kernel": jnp.ones((1, 4)), "deep": {"kernel": jnp.ones((4, 4))}}}

    def logits(weights, images):
        hidden = images.mean((1, 2)) @ weights["params"]["kernel"]
        return hidden @ weights["params"]["deep"]["kernel"]

    groups = pruning.channel_groups(logits, weights, jnp.ones((1, 2, 2, 1)))
    state = {"trace": weights["params"], "other": jnp.ones(4)}
    shrunk = pruning.shrink_state(state, weights, groups, {"kernel": [0]})
    assert shrunk["trace"]["kernel"].shape == (1, 1)
    assert shrunk["trace"]["deep"]["kernel"].shape == (1, 4) and shrunk["other"].shape == (4,)


def test_errors_of_groups_and_keeps():
    weights, groups = pair(jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="must name groups .*, got 'depth'; the groups are 'a'"):
        pruning.shrink(weights, groups, {"depth": [0]})
    for bad in ([], [0, 0], [4], [-1], [0.5]):
        with pytest.raises(ValueError, match=r"at least one of the channels 0 .. 3 of 'a'"):
            pruning.filter_masks(weights, groups, {"a": bad})
    for use in (
        lambda groups: pruning.shrink(weights, groups, {}),
        lambda groups: pruning.filter_masks(weights, groups, {}),
        lambda groups: pruning.filter_scores(weights, groups),
        lambda groups: pruning.kept_filters(pruning.keep_all(weights), groups),
        lambda groups: pruning.shrink_state({}, weights, groups, {}),
    ):
        with pytest.raises(TypeError, match="`groups` must be the ChannelGroups .* got dict"):
            use({"a": 4})
        _, others = pair(jnp.ones((2, 5)))
        with pytest.raises(ValueError, match=r"at a/kernel, got groups of one with \(2, 5\)"):
            use(others)
    nothing = jax.tree.map(jnp.zeros_like, pruning.keep_all(weights))
    with pytest.raises(ValueError, match=r"`masks` must list at least one .* of 'a'"):
        pruning.kept_filters(nothing, groups)
    with pytest.raises(TypeError, match="function"):
        pruning.channel_groups("cnn", weights, IMAGES)


def test_errors_of_criteria_and_budgets():
    weights, groups = pair(jnp.ones((2, 4)))
    scores = functools.partial(pruning.filter_scores, weights, groups)
    with pytest.raises(ValueError, match="`criterion` must be one of .*'l2'.* got 'l3'"):
        scores("l3")
    with pytest.raises(ValueError, match="`criterion` 'taylor' needs `gradients`"):
        scores("taylor")
    with pytest.raises(ValueError, match="`criterion` 'l1' takes no `key`"):
        scores("l1", key=jax.random.key(0))
    one = pruning.Criterion(lambda makers: np.ones(1), needs="key")
    with pytest.raises(ValueError, match="`criterion` of your own needs `key`"):
        scores(one)
    with pytest.raises(ValueError, match=r"one score for each of the 4 channels of 'a', got .*1,"):
        scores(one, key=jax.random.key(0))
    with pytest.raises(TypeError, match="`criterion` must be a name or a Criterion, got <func"):
        scores(np.linalg.norm)
    with pytest.raises(ValueError, match="`needs` must be one of .* got 'images'"):
        pruning.Criterion(one.score, needs="images")
    with pytest.raises(ValueError, match="`gradients` must have the structure and shapes"):
        scores("taylor", gradients={"a": {"kernel": jnp.ones(4)}})
    with pytest.raises(
        ValueError, match="`gradients` must not have NaN, got one in the kernels of 'a'"
    ):
        pruning.filter_scores(weights | {"a": {"kernel": jnp.full((2, 4), jnp.nan)}}, groups)
    keep = functools.partial(pruning.keep_filters, {"width": np.arange(4.0)}, min_filters=1)
    with pytest.raises(ValueError, match=r"`sparsity` must be a fraction in \[0, 1\), got 1"):
        keep(1.0)
    with pytest.raises(ValueError, match="`scope` must be one of"):
        keep(0.5, scope="network")
    with pytest.raises(ValueError, match="must name groups .*, got 'head'; the groups are 'width'"):
        keep(0.5, exclude=["head"])
    with pytest.raises(TypeError, match="`exclude` must be a sequence of groups, got 'width'"):
        keep(0.5, exclude="width")
    with pytest.raises(
        ValueError, match="removes 1 of the 4 channels of 'width', but `previous` has removed 3"
    ):
        keep(0.25, previous={"width": [0]})
    with pytest.raises(ValueError, match="`scores` must be .* without NaN"):
        pruning.keep_filters({"width": [np.nan]}, 0.5)


def test_networks_that_are_not_resized():
    variables = random_variables("resnet18")
    with pytest.raises(TypeError, match="got Dense: create your own module with the widths"):
        models.resized(nn.Dense(3), variables)
    with pytest.raises(ValueError, match="has a layer 'block_0/conv'; they have none"):
        models.resized(NETWORKS["cnn"], variables)


@pytest.mark.parametrize("stem_width", [6, 8])
def test_a_stem_keeps_its_shortcut_or_gets_none(stem_width):
    """Whether there is one may not depend on the widths that pruning leaves."""
    network = models.create("resnet18", widths=(8, 12), stem_width=stem_width, stage_sizes=(1, 1))
    shapes = shapes_of(network)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    groups = pruning.channel_groups(network.apply, shapes, IMAGES)
    assert ("stage_0_block_0/shortcut/conv" in groups) == (stem_width == 6)
    keep = {group: range(4) for group in groups}  # equal widths everywhere
    small = pruning.shrink(variables, groups, keep)
    smaller = models.resized(network, small)
    assert jax.tree.map(np.shape, small) == jax.tree.map(np.shape, shapes_of(smaller))
