"""Sets of compressed networks: projections against brute force; ADMM's updates against closed forms."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import SMALL

from jaxrobust import models
from jaxrobust.pruning import (
    Funnel,
    Irregular,
    NofM,
    Redundant,
    admm,
    apply_masks,
    channel_groups,
    constraints,
    funnel,
    kernel_paths,
    sparsity_of,
)
from jaxrobust.pruning.redundancy import apart

# Each set has a row: whether it keeps exactly as many weights as the budget says, and not whole rows,
# filters or groups of them.
SETS = {Irregular(): True, Irregular("global"): True, Funnel(): True, Redundant(): False}
SETS |= {NofM(1, 4): False, Funnel(strict=True): True}


def weights(*shapes, seed=0):
    random = np.random.default_rng(seed)
    return {
        f"block_{index}": {
            "kernel": random.normal(size=shape).astype(np.float32),
            "bias": np.ones(shape[-1], np.float32),
        }
        for index, shape in enumerate(shapes)
    }


def kernels(tree):
    return [np.asarray(layer["kernel"]) for layer in tree.values()]


def kept_squares(params, masks):
    return sum(
        float((kernel.astype(np.float64) ** 2)[mask].sum())
        for kernel, mask in zip(kernels(params), kernels(masks), strict=True)
    )


def counts_of(masks):
    return [int(mask.sum()) for mask in kernels(masks)]


@pytest.mark.parametrize("seed", range(3))
def test_irregular_is_the_euclidean_projection(seed):
    params = weights((2, 4), seed=seed)
    (kernel,) = kernels(params)
    flat = kernel.ravel()
    for count in (1, 3, 7):
        projected = apply_masks(params, Irregular().masks(params, count / 8))
        nearest = min(
            (
                np.where(np.isin(np.arange(8), kept), flat, 0)
                for kept in itertools.combinations(range(8), count)
            ),
            key=lambda point: np.sum((point - flat) ** 2),
        )
        np.testing.assert_array_equal(kernels(projected)[0].ravel(), nearest)


def test_irregular_global_is_the_projection_of_all_kernels_together():
    params = weights((2, 3), (1, 4))
    flat = np.concatenate([kernel.ravel() for kernel in kernels(params)])
    for count, floor in itertools.product((2, 5), (0, 1, 2)):
        masks = Irregular("global", floor).masks(params, count / 10)
        ours = kept_squares(params, masks)
        best = max(
            np.sum(flat[list(kept)].astype(np.float64) ** 2)
            for kept in itertools.combinations(range(10), max(count, 2 * floor))
            if min(sum(index < 6 for index in kept), sum(index >= 6 for index in kept)) >= floor
        )
        assert sum(counts_of(masks)) == max(count, 2 * floor)
        assert ours == pytest.approx(best, rel=1e-6)


def best_funnel(params, total, floor, strict=False):
    """The most of the squares that any densities that do not increase (or fall) keep."""
    squares = [np.sort(kernel.ravel().astype(np.float64) ** 2)[::-1] for kernel in kernels(params)]
    sizes = [len(square) for square in squares]
    sums = [np.concatenate([[0], np.cumsum(square)]) for square in squares]
    best = -1.0
    for counts in itertools.product(*(range(min(floor, size), size + 1) for size in sizes)):
        densities = [Fraction(k, size) for k, size in zip(counts, sizes, strict=True)]
        falls = len(set(densities)) == len(densities) or not strict
        if sum(counts) == total and falls and densities == sorted(densities, reverse=True):
            best = max(best, sum(one[k] for one, k in zip(sums, counts, strict=True)))
    return best


def test_funnel_against_brute_force():
    shapes = [
        ((2, 3), (1, 4), (2, 4)),
        ((4, 2), (4, 2), (4, 2)),
        ((1, 5), (2, 6)),
        ((3, 3), (2, 2), (1, 7)),
    ]
    ratios = []
    for shape, seed in itertools.product(shapes, range(6)):
        params = weights(*shape, seed=seed)
        # Layers that are large where the funnel wants them small, as in a network before training.
        for index, layer in enumerate(params.values()):
            layer["kernel"] *= 1 + index * (seed % 3)
        sizes = [kernel.size for kernel in kernels(params)]
        for total in {len(sizes), sum(sizes) // 3, sum(sizes) // 2, sum(sizes) - 2, sum(sizes)}:
            # The network is feasible with a floor of 1 only where all densities can be that high.
            best = best_funnel(params, total, 0)
            masks = Funnel(floor=0).masks(params, total / sum(sizes))
            counts = counts_of(masks)
            densities = [Fraction(k, size) for k, size in zip(counts, sizes, strict=True)]
            assert densities == sorted(densities, reverse=True)
            assert sum(counts) == total
            ratios.append(kept_squares(params, masks) / best)
    assert max(ratios) <= 1 + 1e-6
    # Whole numbers: of so few weights one more or less is much.
    assert np.mean(np.array(ratios) > 1 - 1e-6) > 0.95
    assert min(ratios) > 0.85


def test_a_strict_funnel_against_brute_force():
    ratios = []
    for shape, seed in itertools.product((((2, 3), (1, 4), (2, 4)), ((4, 2),) * 3), range(4)):
        params = weights(*shape, seed=seed)
        sizes = [kernel.size for kernel in kernels(params)]
        for total in range(1, sum(sizes) + 1):
            best = best_funnel(params, total, 0, strict=True)
            counts = counts_of(Funnel(strict=True, floor=0).masks(params, total / sum(sizes)))
            densities = [Fraction(k, size) for k, size in zip(counts, sizes, strict=True)]
            assert densities == sorted(densities, reverse=True)
            if best >= 0:
                assert sum(counts) == total and len(set(densities)) == len(sizes)
                masks = Funnel(strict=True, floor=0).masks(params, total / sum(sizes))
                ratios.append(kept_squares(params, masks) / best if best else 1.0)
            elif total > sum(sizes) // 2:  # more than densities that fall allow
                assert sum(counts) == total
    assert max(ratios) <= 1 + 1e-6 and np.mean(ratios) > 0.97 and min(ratios) > 0.7
    assert counts_of(Funnel(strict=True).masks(weights((4, 4), (4, 4)), 1.0)) == [16, 16]
    with pytest.raises(ValueError, match="`strict` needs layers with enough weights for 4"):
        Funnel(strict=True).masks(weights(*[(1, 3)] * 4), 0.5)


def isotonic(params, total):
    """A global threshold, whose densities isotonic regression weighted by size makes a funnel."""
    flat = np.concatenate([np.abs(kernel).ravel() for kernel in kernels(params)])
    threshold = np.sort(flat)[-total]
    blocks = []
    for kernel in kernels(params):
        blocks.append([float(np.sum(np.abs(kernel) >= threshold)), kernel.size, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] < blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
    densities = [count / size for count, size, number in blocks for _ in range(number)]
    squares = [np.sort(kernel.ravel().astype(np.float64) ** 2)[::-1] for kernel in kernels(params)]
    return sum(s[: int(d * len(s))].sum() for s, d in zip(squares, densities, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_funnel_keeps_more_than_isotonic_regression_of_a_global_threshold(seed):
    params = weights((20, 30), (30, 50), (10, 20), (50, 60), seed=seed)
    for layer, scale in zip(params.values(), (1.0, 0.4, 2.0, 0.5), strict=True):
        layer["kernel"] *= scale
    total = 1000
    masks = Funnel().masks(params, total / 5300)
    assert sum(counts_of(masks)) == total
    # What is rounded down there has kept up to a weight less of each layer.
    assert kept_squares(params, masks) > isotonic(params, total)
    # Where the threshold itself leaves a funnel, it is the answer.
    falling = {name: {"kernel": layer["kernel"]} for name, layer in params.items()}
    for layer, scale in zip(falling.values(), (10.0, 8.0, 1.0, 1.0), strict=True):
        layer["kernel"] = layer["kernel"] * scale
    together = counts_of(Irregular("global").masks(falling, 0.3))
    densities = [k / kernel.size for k, kernel in zip(together, kernels(falling), strict=True)]
    if densities == sorted(densities, reverse=True):
        np.testing.assert_allclose(counts_of(Funnel().masks(falling, 0.3)), together, atol=2)


def test_funnel_meets_its_floor_and_takes_zeros_for_weights():
    params = weights((2, 8), (2, 8), (2, 8))
    params["block_2"]["kernel"][:] = 0
    params["block_1"]["kernel"][:, 1:] = 0
    assert counts_of(Funnel(floor=2).masks(params, 20 / 48)) == [16, 2, 2]
    assert counts_of(Funnel().masks(params, 1.0)) == [16, 16, 16]
    everywhere = {name: {"kernel": np.zeros((4, 4), np.float32)} for name in ("a_0", "a_1")}
    assert sum(counts_of(Funnel().masks(everywhere, 0.5))) == 16


def test_densities_are_compared_exactly_where_products_need_64_bits():
    sizes = np.array([2**31 - 1, 2_000_003])
    k = jnp.array([2**30, 1_000_001], jnp.int32)
    for change in (-1, 0, 1):
        left = np.array([int(k[0]) + change])
        exact = int(left[0]) * int(sizes[1]) >= int(k[1]) * int(sizes[0])
        ours = funnel._as_dense(jnp.asarray(left, jnp.int32), sizes[:1], k[1:], sizes[1:])
        assert bool(ours[0]) == exact
    # (2^31 - 1) (2^31 - 1) against itself less one.
    most = jnp.array([2**31 - 1], jnp.int32)
    assert bool(funnel._as_dense(most, sizes[:1], most, sizes[:1])[0])
    assert not bool(funnel._as_dense(most - 1, sizes[:1], most, sizes[:1])[0])


def test_depth_is_the_order_of_numbers_and_shortcuts_count_with_their_block():
    paths = (
        "block_10/conv_0/kernel",
        "block_10/conv_1/kernel",
        "block_10/shortcut/conv/kernel",
        "block_2/conv_0/kernel",
        "last/kernel",
        "stage_3_layer_9/kernel",
        "stage_4_layer_0/kernel",
        "stem/kernel",
        "transition_4/kernel",
    )
    layers = Funnel().layers(paths)
    assert [layer[0] for layer in layers] == [
        "stem/kernel",
        "block_2/conv_0/kernel",
        "stage_3_layer_9/kernel",
        "transition_4/kernel",
        "stage_4_layer_0/kernel",
        "block_10/conv_0/kernel",
        "block_10/conv_1/kernel",
        "last/kernel",
    ]
    assert layers[6] == ["block_10/conv_1/kernel", "block_10/shortcut/conv/kernel"]
    apart = Funnel(shortcuts="layer").layers(paths)
    assert ["block_10/shortcut/conv/kernel"] in apart and len(apart) == 9
    given = Funnel(order=("block_2", "block_10/conv_1", "block_10")).layers(paths[:4])
    assert given == [
        ["block_2/conv_0/kernel"],
        ["block_10/conv_1/kernel"],
        ["block_10/conv_0/kernel", "block_10/shortcut/conv/kernel"],
    ]
    with pytest.raises(ValueError, match="missing: block_2/conv_0/kernel; unknown: block_3"):
        Funnel(order=("block_10", "block_3")).layers(paths[:4])
    with pytest.raises(TypeError, match="`order` must be a tuple"):
        Funnel(order=["block_2"])


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"mobilenet_v2"}))
def test_the_default_order_is_that_in_which_networks_use_their_kernels(name):
    model = models.create(name, **SMALL[name])
    image = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    used = channel_groups(model.apply, shapes, image).kernels
    made = tuple(kernel.path.removeprefix("params/") for kernel in used)
    assert sorted(made) == sorted(kernel_paths(shapes["params"]))
    assert kernel_paths(shapes["params"], used) == kernel_paths(shapes["params"])
    assert Funnel(kernels=used, shortcuts="layer").layers(made[::-1]) == [[path] for path in made]
    assert Funnel(kernels=used).layers(made) == Funnel().layers(made)
    ours = [path for layer in Funnel(shortcuts="layer").layers(made) for path in layer]

    def without_shortcuts(paths):
        return [path for path in paths if "shortcut" not in path]

    assert without_shortcuts(ours) == without_shortcuts(made)
    assert Funnel(order=made).layers(made) == [[path] for path in made]


def test_redundant_filters_are_apart_and_the_distance_is_as_large_as_it_can_be():
    random = np.random.default_rng(0)
    filters = random.normal(size=(6, 12)).astype(np.float32)
    filters[:, 3] = 1.01 * filters[:, 8]
    for count in (1, 4, 11, 12):
        stays, phi = apart(jnp.asarray(filters), count)
        kept = filters[:, np.asarray(stays)]
        assert kept.shape[1] == count
        distances = np.linalg.norm(kept[:, :, None] - kept[:, None], axis=0)
        assert count == 1 or distances[~np.eye(count, dtype=bool)].min() >= float(phi) * (1 - 1e-5)

        # Greedy by norm with any larger distance leaves too few.
        def greedy(least):
            left = []
            for index in np.argsort(-np.linalg.norm(filters, axis=0)):
                if all(np.linalg.norm(filters[:, index] - filters[:, k]) >= least for k in left):
                    left.append(index)
            return left

        assert len(greedy(float(phi) * (1 - 1e-5))) >= count
        if count > 1:
            largest = np.linalg.norm(filters[:, :, None] - filters[:, None], axis=0).max()
            larger = np.linspace(float(phi) + 1e-3 * largest, largest, 20)
            assert sum(len(greedy(least)) >= count for least in larger) <= 2
    # Of two that nearly coincide the shorter one goes first.
    stays, _ = apart(jnp.asarray(filters), 11)
    assert not stays[8] and stays[3]


def test_redundant_masks_whole_filters():
    params = weights((3, 3, 2, 10))
    mask = kernels(Redundant().masks(params, 0.35))[0]
    assert (mask == mask[:1, :1, :1]).all()
    assert mask[0, 0, 0].sum() == round(0.35 * 10)
    assert kernels(Redundant(floor=3).masks(params, 0.01))[0][0, 0, 0].sum() == 3


def test_n_of_m_is_the_projection_of_every_group():
    params = weights((2, 1, 8, 3))
    (kernel,) = kernels(params)
    projected = kernels(apply_masks(params, NofM(2, 4).masks(params, 0.5)))[0]
    for groups, ours in zip(
        kernel.reshape(2, 2, 4, 3).transpose(0, 1, 3, 2).reshape(-1, 4),
        projected.reshape(2, 2, 4, 3).transpose(0, 1, 3, 2).reshape(-1, 4),
        strict=True,
    ):
        kept = max(
            itertools.combinations(range(4), 2), key=lambda pair: np.sum(groups[list(pair)] ** 2)
        )
        np.testing.assert_array_equal(ours, np.where(np.isin(np.arange(4), kept), groups, 0))


def test_n_of_m_falls_in_steps_and_keeps_a_remainder():
    params = weights((6, 2), (3, 3, 1, 4))
    masks = NofM(2, 4).masks(params, 0.5)
    assert kernels(masks)[0].sum(0).tolist() == [4, 4]  # two of four, and both of the last two
    assert kernels(masks)[1].all()  # depthwise
    assert kernels(NofM(2, 4).masks(params, 0.8))[0].sum(0).tolist() == [5, 5]
    tied = {"kernel": np.ones((4, 1), np.float32)}
    assert NofM(1, 4).masks(tied, 0.25)["kernel"].ravel().tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="`kept` must be at least 2/4 for 2 of 4, got 0.3"):
        NofM().masks(params, 0.3)


def test_every_set_has_a_row():
    public = {one for one in vars(constraints).values() if isinstance(one, type)}
    sets = {one for one in public if "masks" in vars(one)} - {constraints.Constraint}
    assert {type(one) for one in SETS} == sets


@pytest.mark.parametrize("constraint", SETS, ids=repr)
def test_a_traced_budget_gives_the_same_masks_and_compiles_once(constraint):
    params = weights((8, 12), (12, 16), (16, 4))
    traces = []

    @jax.jit
    def masks(params, kept):
        traces.append(kept)
        return constraint.masks(params, kept, exclude=("block_1",))

    for kept in (1.0, 0.8, 0.25):
        found, known = masks(params, kept), constraint.masks(params, kept, exclude=("block_1",))
        jax.tree.map(np.testing.assert_array_equal, found, known)
        assert kernels(found)[1].all() and all(layer["bias"].all() for layer in found.values())
        # A projection is where it was when it is made again.
        projected = apply_masks(params, found)
        again = apply_masks(projected, constraint.masks(projected, kept, exclude=("block_1",)))
        jax.tree.map(np.testing.assert_array_equal, again, projected)
        if SETS[constraint]:
            assert counts_of(found)[0] + counts_of(found)[2] == round(kept * 160)
    assert len(traces) == 1


@pytest.mark.parametrize("constraint", SETS, ids=repr)
def test_what_cannot_be_projected_is_refused(constraint):
    params = weights((4, 4))
    for kept in (0.0, 1.5, float("nan")):
        with pytest.raises(
            ValueError, match="`kept` must be a finite number above 0 and at most 1"
        ):
            constraint.masks(params, kept)
    with pytest.raises(ValueError, match="`exclude` must be prefixes .*, got 'stem'"):
        constraint.masks(params, 0.5, exclude=("stem",))
    with pytest.raises(ValueError, match="must have kernels to prune"):
        constraint.masks(params, 0.5, exclude=("block_0",))
    params["block_0"]["kernel"][0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN, .* at block_0/kernel"):
        constraint.masks(params, 0.5)
    with pytest.raises(TypeError, match="must be floating point, got int32"):
        constraint.masks({"kernel": jnp.ones((2, 4), jnp.int32)}, 0.5)


def test_settings_of_constraints_are_checked():
    for make, message in (
        (lambda: Irregular("kernel"), "`scope` must be one of"),
        (lambda: Irregular(floor=-1), "`floor` must be at least 0"),
        (lambda: Funnel(shortcuts="none"), "`shortcuts` must be one of"),
        (lambda: Redundant(floor=0), "`floor` must be at least 1"),
        (lambda: NofM(0, 4), "`n` must be at least 1"),
        (lambda: NofM(4, 4), "`m` must be at least 5"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def keep_two(point):
    mask = Irregular().masks({"kernel": point}, 0.5)["kernel"]
    return jnp.where(mask, point, 0)


def test_the_dual_is_rescaled_when_rho_grows_and_need_not_be():
    held = admm.Multipliers(jnp.array([[1.0, 0.0]]), jnp.array([[0.2, -0.4]]), jnp.float32(2.0))
    point = jnp.array([[1.5, 0.3]])

    def keep_first(point):
        return point * jnp.array([[1.0, 0.0]])

    after = admm.updated(point, held, keep_first, growth=1.5)
    # u = rho U after the step is 2 (U + point - auxiliary), whatever rho is from then on.
    np.testing.assert_allclose(after.rho * after.dual, 2 * np.array([[0.7, -0.1]]), rtol=1e-6)
    np.testing.assert_allclose(after.auxiliary, [[1.5 + 0.7 / 1.5, 0.0]], rtol=1e-6)
    official = admm.updated(point, held, keep_first, growth=1.5, rescale=False)
    np.testing.assert_allclose(official.dual, [[0.7, -0.1]], rtol=1e-6)
    np.testing.assert_allclose(official.auxiliary, [[2.2, 0.0]], rtol=1e-6)
    assert float(admm.updated(point, held, keep_first, growth=9.0, largest_rho=3.0).rho) == 3.0
    assert float(admm.dual_norm(after)) == pytest.approx(2 * np.hypot(0.7, 0.1), rel=1e-6)


def test_the_penalty_is_that_of_the_augmented_lagrangian():
    random = np.random.default_rng(0)
    point, auxiliary, dual = (random.normal(size=(2, 3)).astype(np.float32) for _ in range(3))
    rho = 0.7
    held = admm.Multipliers({"w": auxiliary}, {"w": dual}, jnp.float32(rho))
    value, gradient = jax.value_and_grad(admm.penalty)({"w": point}, held)
    apart = point - auxiliary
    expected = np.sum(rho * dual * apart) + rho / 2 * np.sum(apart**2)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient["w"], rho * dual + rho * apart, rtol=1e-5)
    half = admm.started({"w": point.astype(np.float16)}, lambda point: point, 1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}


def test_admm_reaches_the_nearest_sparse_point_of_a_quadratic():
    """min (x - c) A (x - c) / 2 with two of four entries: the residual falls to nothing."""
    target = jnp.array([[3.0, -0.5, 2.0, 0.4]])
    curvature = jnp.array([[1.0, 4.0, 2.0, 1.0]])

    def descended(held):
        # The minimum of the augmented Lagrangian in closed form.
        pull = held.rho * (held.auxiliary - held.dual)
        return (curvature * target + pull) / (curvature + held.rho)

    held = admm.started(target, keep_two, 1.0)
    residuals = []
    for _ in range(60):
        point = descended(held)
        residuals.append(float(admm.residual(point, held)))
        held = admm.updated(point, held, keep_two)
    assert residuals[-1] < 1e-4 < 0.05 < residuals[0]
    assert all(later < earlier for earlier, later in itertools.pairwise(residuals[:20]))
    np.testing.assert_allclose(descended(held), [[3.0, 0.0, 2.0, 0.0]], atol=1e-3)
    assert sparsity_of({"kernel": held.auxiliary}) == 0.5
