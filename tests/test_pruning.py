"""Masks against brute force in numpy, the reference network, schedules and training under masks."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import compilation, pruning, training

# Few different values, so that most of them tie, denormal ones among them.
VALUES = st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-40, 0.5, -0.5, 2.0, -3.0])
SPARSITIES = st.floats(0, 1, exclude_max=True)


@st.composite
def networks(draw):
    """Two kernels, which sort in another order than they are inserted, a bias, a 1-D kernel."""

    def kernel(shape):
        size = int(np.prod(shape))
        values = draw(st.lists(VALUES, min_size=size, max_size=size))
        return jnp.asarray(np.array(values, np.float32).reshape(shape))

    return {
        "b": {"kernel": kernel((2, 3)), "bias": jnp.zeros(3)},
        "a": {"kernel": kernel((1, 2, 1, 2)), "scale": jnp.ones(2)},
        "c": {"kernel": jnp.zeros(5)},
    }


def flat(tree):
    """The kernels' entries in the order in which ties are broken."""
    return np.concatenate([np.ravel(tree["a"]["kernel"]), np.ravel(tree["b"]["kernel"])])


def smallest(values, count, removed_before=None):
    """Brute force: which are kept when the `count` smallest go, the first of equals first."""
    before = np.zeros(len(values), bool) if removed_before is None else removed_before
    order = sorted(range(len(values)), key=lambda i: (not before[i], abs(float(values[i])), i))
    kept = np.ones(len(values), bool)
    kept[order[:count]] = False
    return kept


@settings(max_examples=60, deadline=None)
@given(networks(), SPARSITIES)
def test_global_magnitude_is_brute_force(params, sparsity):
    masks = pruning.global_magnitude(params, sparsity)
    np.testing.assert_array_equal(flat(masks), smallest(flat(params), round(sparsity * 10)))
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert all(leaf.dtype == bool for leaf in jax.tree.leaves(masks))
    for untouched in (masks["b"]["bias"], masks["a"]["scale"], masks["c"]["kernel"]):
        assert untouched.all()


@settings(max_examples=60, deadline=None)
@given(networks(), SPARSITIES, SPARSITIES, st.sampled_from(["magnitude", "layerwise", "random"]))
def test_pruning_again_is_exact_and_revives_nothing(params, one, other, method):
    first, second = sorted((one, other))
    prune = {
        "magnitude": pruning.global_magnitude,
        "layerwise": pruning.layerwise_magnitude,
        "random": functools.partial(pruning.random, jax.random.key(0)),
    }[method]
    earlier = prune(params, first)
    # What was removed is large now, and must go first all the same.
    grown = jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 9.0), params, earlier)
    later = prune(grown, second, masks=earlier)
    assert not np.any(flat(later) & ~flat(earlier))
    if method == "layerwise":
        for name, size in (("a", 4), ("b", 6)):
            assert int((~later[name]["kernel"]).sum()) == round(second * size)
    else:
        assert int((~flat(later)).sum()) == round(second * 10)
    if method == "magnitude":
        expected = smallest(flat(grown), round(second * 10), ~flat(earlier))
        np.testing.assert_array_equal(flat(later), expected)


@settings(max_examples=40, deadline=None)
@given(networks(), SPARSITIES)
def test_layerwise_magnitude_is_brute_force_in_each_kernel(params, sparsity):
    masks = pruning.layerwise_magnitude(params, sparsity)
    one = pruning.layerwise_magnitude(params, {"b/kernel": sparsity})
    for name, size in (("a", 4), ("b", 6)):
        expected = smallest(np.ravel(params[name]["kernel"]), round(sparsity * size))
        np.testing.assert_array_equal(np.ravel(masks[name]["kernel"]), expected)
    np.testing.assert_array_equal(one["b"]["kernel"], masks["b"]["kernel"])
    assert one["a"]["kernel"].all()


def params_of(*sizes, key=0):
    """Kernels "k0", "k1", ... of normal weights [1, size]."""
    keys = jax.random.split(jax.random.key(key), len(sizes))
    return {
        f"k{i}": {"kernel": jax.random.normal(keys[i], (1, size)), "bias": jnp.zeros(size)}
        for i, size in enumerate(sizes)
    }


def test_random_differs_by_key_and_grows_with_sparsity():
    params = params_of(16, 8)
    half = pruning.random(jax.random.key(0), params, 0.5)
    assert pruning.sparsity_of(half) == 0.5
    more = pruning.random(jax.random.key(0), params, 0.75)
    for name in params:
        assert not np.any(more[name]["kernel"] & ~half[name]["kernel"])
    other = pruning.random(jax.random.key(1), params, 0.5)
    assert any(np.any(other[n]["kernel"] != half[n]["kernel"]) for n in params)
    layered = pruning.random(jax.random.key(0), params, 0.5, scope="layer")
    layers = pruning.layer_sparsity(params, layered)
    assert [row["kept"] for row in layers.values()] == [8, 4]
    # Not the same positions in each kernel, and no regard for magnitudes.
    equal = params_of(16, 16)
    masks = pruning.random(jax.random.key(0), equal, 0.5, scope="layer")
    assert np.any(masks["k0"]["kernel"] != masks["k1"]["kernel"])


def test_masks_from_scores_orders_negative_and_infinite_scores():
    scores = {"kernel": jnp.array([[-1.0, -jnp.inf, jnp.inf, -0.0, 0.0, -5.0, 3.0, 1.0]])}
    removal_order = [1, 5, 0, 3, 4, 7, 6, 2]
    for count in range(8):
        masks = pruning.masks_from_scores(scores, count / 8)
        removed = set(np.flatnonzero(~np.asarray(masks["kernel"])[0]).tolist())
        assert removed == set(removal_order[:count])
    earlier = {"kernel": jnp.ones((1, 8), bool).at[0, 2].set(False)}
    masks = pruning.masks_from_scores(scores, 0.25, masks=earlier)
    assert np.flatnonzero(~np.asarray(masks["kernel"])[0]).tolist() == [1, 2]


def test_scores_must_be_floating_point():
    """2^24 and 2^24 + 1 are one float32: the wrong one might go."""
    scores = {"a": {"kernel": jnp.array([[2**24 + 1, 2**24]])}}
    for use in (pruning.masks_from_scores, pruning.global_magnitude, pruning.layerwise_magnitude):
        with pytest.raises(TypeError, match="must be floating point, got int32 at a/kernel"):
            use(scores, 0.5)
    with pytest.raises(TypeError, match="`scores` must be floating point, got bool"):
        pruning.masks_from_scores({"kernel": jnp.ones((2, 2), bool)}, 0.5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    params = {"kernel": jnp.arange(8, dtype=dtype).reshape(2, 4)}
    masks = pruning.global_magnitude(params, 0.5)
    assert masks["kernel"].tolist() == [[False] * 4, [True] * 4]
    assert pruning.apply_masks(params, masks)["kernel"].dtype == dtype


def test_jit_and_vmap_give_the_same_masks():
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), params_of(4, 6), params_of(4, 6, key=3)
    )
    prune = functools.partial(pruning.global_magnitude, sparsity=0.4, exclude=("k0",))
    alone = [prune(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(2)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    for found in (jax.vmap(prune)(stacked), jax.jit(jax.vmap(prune))(stacked)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    again = jax.jit(lambda params, masks: pruning.global_magnitude(params, 0.5, masks=masks))
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    eager = pruning.global_magnitude(first, 0.5, masks=alone[0])
    jax.tree.map(np.testing.assert_array_equal, again(first, alone[0]), eager)


def test_sparsities_compile_nothing_anew():
    from jaxrobust.pruning import magnitude

    params = params_of(11, 13)
    pruning.global_magnitude(params, 0.1)
    traced = []
    inner = magnitude._ordered
    try:
        magnitude._ordered = lambda *args: (traced.append(1), inner(*args))[1]
        for sparsity in (0.2, 0.5, 0.9):
            pruning.global_magnitude(params, sparsity)
    finally:
        magnitude._ordered = inner
    assert not traced


def test_exclude_keeps_layers_whole_and_the_total():
    params = {"head": params_of(10)["k0"], "head_bn": params_of(10)["k0"], "block": params_of(20)}
    for prune in (pruning.global_magnitude, pruning.layerwise_magnitude):
        masks = prune(params, 0.5, exclude=("head",))
        assert masks["head"]["kernel"].all() and not masks["head_bn"]["kernel"].all()
        assert pruning.sparsity_of(masks) == 0.5
    edge = pruning.global_magnitude(params, 0.5, exclude=["head", "head_bn/kernel"])
    assert not edge["block"]["k0"]["kernel"].any()
    message = "must be at most 0.5, got .*: `exclude` keeps 20 of the 40 kernel weights"
    for prune in (pruning.global_magnitude, pruning.layerwise_magnitude):
        with pytest.raises(ValueError, match=message):
            prune(params, 0.55, exclude=["head", "head_bn/kernel"])
    with pytest.raises(ValueError, match=r"prefixes of the paths .* got 'hea'.*block/k0/kernel"):
        pruning.global_magnitude(params, 0.5, exclude=["hea"])
    with pytest.raises(TypeError, match="`exclude` must be a sequence"):
        pruning.global_magnitude(params, 0.5, exclude="head")
    masks = pruning.global_magnitude(params, 0.5)
    with pytest.raises(ValueError, match="of block/k0/kernel, because `exclude` names it"):
        pruning.global_magnitude(params, 0.5, masks=masks, exclude=["block"])
    everything = pruning.global_magnitude(params, 0.0, exclude=["head", "head_bn", "block"])
    assert pruning.sparsity_of(everything) == 0.0


@pytest.mark.parametrize("bad", [1.0, 1.2, -0.1, float("nan"), float("inf"), 1])
def test_sparsity_out_of_range(bad):
    params = params_of(4)
    for call in (
        lambda: pruning.global_magnitude(params, bad),
        lambda: pruning.layerwise_magnitude(params, bad),
        lambda: pruning.layerwise_magnitude(params, {"k0/kernel": bad}),
        lambda: pruning.random(jax.random.key(0), params, bad),
        lambda: pruning.geometric_schedule(bad, 3),
        lambda: pruning.cubic_schedule(bad, 3),
        lambda: pruning.sensitivity(params, [bad], lambda p: 0),
        lambda: pruning.iterative(params, [bad], lambda p, m, n: p),
    ):
        with pytest.raises(ValueError, match="sparsit"):
            call()


@pytest.mark.parametrize("bad", ["0.5", None, True, np.True_, [0.5], np.array([0.5]), object()])
def test_sparsity_that_is_no_number(bad):
    with pytest.raises(TypeError, match="`sparsity` must be a number"):
        pruning.global_magnitude(params_of(4), bad)


def test_sparsity_must_be_known_while_tracing():
    with pytest.raises(TypeError, match="a number that is not traced"):
        jax.jit(lambda s: pruning.global_magnitude(params_of(4), s))(0.5)
    assert pruning.sparsity_of(pruning.global_magnitude(params_of(4), np.float32(0.5))) == 0.5
    assert pruning.sparsity_of(pruning.global_magnitude(params_of(4), jnp.float32(0.5))) == 0.5


def test_errors_of_parameters_and_masks():
    params = params_of(4, 4)
    broken = jax.tree.map(lambda leaf: leaf, params)
    broken["k1"]["kernel"] = broken["k1"]["kernel"].at[0, 2].set(jnp.nan)
    with pytest.raises(ValueError, match="NaN, .* at k1/kernel"):
        pruning.global_magnitude(broken, 0.5)
    for empty in ({}, {"bias": jnp.ones(3)}, {"kernel": jnp.ones(3)}, {"kernel": jnp.ones((0, 3))}):
        with pytest.raises(ValueError, match="must have kernels"):
            pruning.global_magnitude(empty, 0.5)
        with pytest.raises(ValueError, match="must have kernels"):
            pruning.sparsity_of(empty)
    with pytest.raises(
        ValueError, match=r"must name kernels, got k7/kernel; the kernels are k0/kernel, k1/kernel"
    ):
        pruning.layerwise_magnitude(params, {"k7/kernel": 0.5})
    with pytest.raises(ValueError, match="`scope` must be one of"):
        pruning.random(jax.random.key(0), params, 0.5, scope="filter")
    with pytest.raises(ValueError, match="`sparsity` may be a mapping only"):
        pruning.random(jax.random.key(0), params, {"k0/kernel": 0.5})
    masks = pruning.global_magnitude(params, 0.5)
    for prune in (pruning.global_magnitude, pruning.layerwise_magnitude):
        with pytest.raises(ValueError, match="cannot be restored"):
            prune(params, 0.25, masks=masks)
    for use in (
        lambda m: pruning.apply_masks(params, m),
        lambda m: pruning.layer_sparsity(params, m),
        lambda m: pruning.global_magnitude(params, 0.5, masks=m),
    ):
        with pytest.raises(ValueError, match=r"1 missing \(k1/bias\)"):
            use(masks | {"k1": {"kernel": masks["k1"]["kernel"], "bias": None}})
        with pytest.raises(ValueError, match=r"1 unexpected \(other\)"):
            use(masks | {"other": jnp.ones(1, bool)})
        with pytest.raises(TypeError, match=r"`masks` must be boolean, got float32 at k0/bias"):
            use(jax.tree.map(lambda m: m.astype(jnp.float32), masks))
        with pytest.raises(ValueError, match=r"got \(1, 5\) for \(1, 4\) at k1/kernel"):
            use(masks | {"k1": masks["k1"] | {"kernel": jnp.ones((1, 5), bool)}})


def test_apply_masks_removes_nan_and_counts_agree():
    params = params_of(4, 6)
    masks = pruning.global_magnitude(params, 0.5)
    broken = jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, jnp.nan), params, masks)
    pruned = pruning.apply_masks(broken, masks)
    assert pruning.layer_sparsity(pruned) == pruning.layer_sparsity(params, masks)
    assert pruning.sparsity_of(pruned) == pruning.sparsity_of(masks) == 0.5
    assert pruning.parameter_counts(params) == {"size": 20, "nonzero": 10}
    assert pruning.parameter_counts(pruned) == {"size": 20, "nonzero": 5}
    assert pruning.sparsity_of(pruning.keep_all(params)) == 0.0
    assert pruning.kernel_paths(params) == ("k0/kernel", "k1/kernel")


@compilation.jit
def num_right(classifier, images, labels):
    return jnp.sum(jnp.argmax(classifier(images), -1) == labels)


@pytest.mark.parametrize(
    ("prune", "right"),
    [
        (pruning.layerwise_magnitude, [39, 23, 5]),  # what report A's table has: 78, 46, 10 %
        (pruning.global_magnitude, [40, 40, 14]),
    ],
)
def test_reference_network(reference, reference_classifier, prune, right):
    params = reference_classifier.variables["params"]
    images = jnp.float32(reference["images"]) / 255
    for sparsity, expected in zip((0.2, 0.5, 0.8), right, strict=True):
        masks = prune(params, sparsity)
        layers = pruning.layer_sparsity(params, masks).values()
        size, kept = (sum(layer[name] for layer in layers) for name in ("size", "kept"))
        assert size == 140_384
        if prune is pruning.global_magnitude:
            assert kept == size - round(sparsity * size)
        else:
            assert all(row["size"] - row["kept"] == round(sparsity * row["size"]) for row in layers)
        variables = reference_classifier.variables | {"params": pruning.apply_masks(params, masks)}
        classifier = dataclasses.replace(reference_classifier, variables=variables)
        assert int(num_right(classifier, images, reference["labels"])) == expected


def test_whole_variables_are_pruned_as_their_parameters(reference_classifier):
    whole = pruning.global_magnitude(reference_classifier.variables, 0.5)
    masks = pruning.global_magnitude(reference_classifier.variables["params"], 0.5)
    jax.tree.map(np.testing.assert_array_equal, whole["params"], masks)
    assert all(leaf.all() for leaf in jax.tree.leaves(whole["batch_stats"]))


def test_sensitivity_prunes_one_layer_at_a_time():
    params = params_of(4, 6)
    seen = []
    rows = pruning.sensitivity(
        params,
        (0.0, 0.5),
        lambda p: {name: row["sparsity"] for name, row in pruning.layer_sparsity(p).items()},
        progress=lambda *counts: seen.append(counts),
    )
    assert [(row["layer"], row["sparsity"]) for row in rows] == [
        (f"k{i}/kernel", sparsity) for i in range(2) for sparsity in (0.0, 0.5)
    ]
    assert rows[1]["score"] == {"k0/kernel": 0.5, "k1/kernel": 0.0}
    assert rows[3]["score"] == {"k0/kernel": 0.0, "k1/kernel": 0.5}
    assert seen == [(f"k{i // 2}/kernel", i + 1, 4) for i in range(4)]
    by_chance = functools.partial(pruning.random, jax.random.key(0), scope="layer")
    drawn = pruning.sensitivity(params, [0.5], pruning.sparsity_of, prune=by_chance)
    assert [row["score"] for row in drawn] == [0.2, 0.3]
    with pytest.raises(ValueError, match="`sparsities`"):
        pruning.sensitivity(params, [], pruning.sparsity_of)


@settings(max_examples=60, deadline=None)
@given(SPARSITIES, st.integers(1, 20), SPARSITIES)
def test_schedules_ascend_to_exactly_the_target(sparsity, steps, initial):
    geometric = pruning.geometric_schedule(sparsity, steps)
    cubic = pruning.cubic_schedule(sparsity, steps, min(initial, sparsity))
    for schedule in (geometric, cubic):
        assert len(schedule) == steps and schedule[-1] == sparsity
        assert all(0 <= s < 1 for s in schedule)
        assert list(schedule) == sorted(schedule)  # to the last bit: `iterative` refuses less
    left = [(1 - sparsity) ** (i / steps) for i in range(1, steps + 1)]
    np.testing.assert_allclose(1 - np.array(geometric), left, rtol=0, atol=1e-12)


def test_schedules_of_the_papers():
    # 20 % of what is left in each round leaves 21.0 % after seven (Frankle & Carbin).
    rounds = pruning.geometric_schedule(1 - 0.8**7, 7)
    np.testing.assert_allclose(rounds, [1 - 0.8**i for i in range(1, 8)])
    steps = pruning.cubic_schedule(0.8, 4, initial=0.4)
    np.testing.assert_allclose(steps, [0.8 - 0.4 * (1 - t / 4) ** 3 for t in (1, 2, 3, 4)])
    with pytest.raises(ValueError, match="`initial` must be at most"):
        pruning.cubic_schedule(0.2, 4, initial=0.4)
    with pytest.raises(ValueError, match="`num_rounds` must be at least 1"):
        pruning.geometric_schedule(0.2, 0)


def test_iterative_pruning_and_rewinding():
    params, start = params_of(8, 8), params_of(8, 8, key=5)
    calls = []

    def retrain(params, masks, number):
        calls.append((number, params))
        return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf * 1.5, 0), params, masks)

    rounds = list(pruning.iterative(params, (0.25, 0.5), retrain, rewind_to=start))
    assert [(r.number, r.sparsity) for r in rounds] == [(1, 0.25), (2, 0.5)]
    jax.tree.map(
        np.testing.assert_array_equal, rounds[0].masks, pruning.global_magnitude(params, 0.25)
    )
    second = pruning.global_magnitude(rounds[0].params, 0.5, masks=rounds[0].masks)
    jax.tree.map(np.testing.assert_array_equal, rounds[1].masks, second)
    for (number, given_params), done in zip(calls, rounds, strict=True):
        assert number == done.number
        expected = pruning.apply_masks(start, done.masks)
        jax.tree.map(np.testing.assert_array_equal, given_params, expected)
    calls.clear()
    onwards = list(pruning.iterative(params, (0.25, 0.5), retrain))
    expected = pruning.apply_masks(onwards[0].params, onwards[1].masks)
    jax.tree.map(np.testing.assert_array_equal, calls[1][1], expected)
    # Lazy: a round that nobody asks for is not trained.
    calls.clear()
    next(pruning.iterative(params, (0.25, 0.5), retrain))
    assert len(calls) == 1


def test_iterative_notices_what_must_not_happen():
    params = params_of(8)

    def keep(params, masks, number):
        return params

    def train_without_masks(params, masks, number):
        return jax.tree.map(lambda leaf: leaf + 1.0, params)

    with pytest.raises(
        ValueError, match=r"`retrain` in round 1 restored 4 removed weights of k0/ker"
    ):
        next(pruning.iterative(params, [0.5], train_without_masks))
    with pytest.raises(ValueError, match="`retrain` must return parameters"):
        next(pruning.iterative(params, [0.5], lambda p, m, n: {}))

    def forgetful(params, sparsity, masks=None):
        order = jnp.arange(8) if masks is None else -jnp.arange(8)
        scores = {"k0": {"kernel": 1.0 * order[None], "bias": jnp.zeros(8)}}
        return pruning.masks_from_scores(scores, sparsity)

    with pytest.raises(ValueError, match="`prune` in round 2 restored 4 removed weights"):
        list(pruning.iterative(params, [0.5, 0.5], keep, prune=forgetful))
    for bad in ([], [0.5, 0.25]):
        with pytest.raises(ValueError, match="`sparsities`"):
            pruning.iterative(params, bad, keep)
    with pytest.raises(ValueError, match="`rewind_to`"):
        pruning.iterative(params, [0.5], keep, rewind_to=params_of(9))


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.relu(nn.Dense(8)(images.reshape(len(images), -1)))
        return nn.Dense(2)(hidden)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": training.AdamW(weight_decay=0.1)},
        {"optimizer": training.Adam(weight_decay=0.1), "averaging": training.EMA(0.9)},
        {"optimizer": training.SGD(nesterov=True)},
    ],
    ids=lambda options: type(options["optimizer"]).__name__,
)
def test_zeros_stay_zero_through_training(options):
    random = np.random.default_rng(0)
    examples = random.uniform(size=(12, 2, 2, 1)).astype(np.float32), random.integers(0, 2, 12)
    variables = Small().init(jax.random.key(0), examples[0])
    masks = pruning.global_magnitude(variables["params"], 0.5)
    recipe = training.Recipe(num_epochs=2, batch_size=4, schedule=training.Constant(0.1), **options)
    data = training.Data(examples)
    result = training.fit(Small(), data, recipe, variables=variables, masks=masks, progress=False)
    for trained in (result.variables["params"], result.state.params):
        for path, row in pruning.layer_sparsity(trained).items():
            assert row == pruning.layer_sparsity(trained, masks)[path]
        zero = jax.tree.map(lambda leaf, mask: jnp.all(mask | (leaf == 0)), trained, masks)
        assert jax.tree.all(zero)
        changed = jax.tree.map(
            lambda leaf, mask, before: jnp.any(mask & (leaf != before)),
            *(trained, masks, variables["params"]),
        )
        assert jax.tree.all(changed)
