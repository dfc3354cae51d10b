"""Compressing while training: closed forms of each method."""

import dataclasses
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressed_training import (
    KEY,
    RECIPE,
    TRAIN,
    Net,
    initial,
    kernels,
    plain_step,
    run,
    same,
    started,
)
from flax import nnx

from jaxrobust import losses, pruning, training
from jaxrobust.training import (
    ADMM,
    CrossEntropy,
    Hydra,
    RigL,
    reestimate_batch_stats,
    rho_for_pull,
)


@pytest.mark.parametrize(
    ("constraint", "kept"),
    [
        (pruning.Redundant(), 0.5),
        (pruning.Irregular(), 0.02),
        (pruning.Funnel(), 0.01),
    ],
    ids=repr,
)
def test_admm_draws_scale_and_shift_of_removed_filters_to_zero(constraint, kept):
    """Filters that a constraint removes whole, or that have lost their last weight one by one."""
    images = jnp.ones((1, *TRAIN[0].shape[1:]))
    groups = pruning.channel_groups(Net().apply, Net().init(KEY, images), images)
    constraint, budget = dataclasses.replace(constraint, kernels=groups.kernels), kept
    method = ADMM(constraint, kept=budget, rho=0.5)
    state = started(method)
    ours, _ = plain_step(state, method)
    theirs, _ = plain_step(dataclasses.replace(state, compression=None), None)
    masks = method.finish(state.params, state.compression, budget)[1]
    kept = np.asarray(masks["bn"]["scale"])
    assert 0 < kept.sum() < kept.size
    for leaf in ("scale", "bias"):
        moved = np.asarray(theirs.params["bn"][leaf] - ours.params["bn"][leaf])
        there = np.where(kept, 0, state.params["bn"][leaf])  # 0 is where removed ones are drawn to
        np.testing.assert_allclose(moved, 0.5 * there, atol=1e-6)
    params, after = method.update(ours.params, state.compression, None, budget, 0.5)
    duals = [float(jnp.abs(dual).max()) for dual in after.multipliers.dual]
    assert min(duals) > 0 and len(duals) == len(kernels(state.params))
    # Between two updates nothing holds the scales of filters that stay; those of others are drawn to 0.
    later = jax.tree.map(lambda leaf: leaf + 0.3, params)
    slopes = jax.grad(method.penalty)(later, after)["bn"]
    filters = np.asarray(after.multipliers.auxiliary[list(kernels(state.params)).index("block_0")])
    stays = np.abs(filters).sum((0, 1, 2)) > 0
    assert 0 < stays.sum() < stays.size
    for leaf in ("scale", "bias"):
        np.testing.assert_allclose(
            slopes[leaf], np.where(stays, 0, 0.5 * later["bn"][leaf]), atol=1e-6
        )


@dataclasses.dataclass(frozen=True)
class Inside:
    """A constraint of one's own, without a field for kernels."""

    inner: pruning.Redundant
    whole: bool = True

    def masks(self, params, kept, *, exclude=()):
        masks = self.inner.masks(params, kept, exclude=exclude)
        return masks if self.whole else {"block_0": masks["block_0"]}


def test_admm_draws_everything_that_masks_remove_whatever_the_constraint_is():
    images = jnp.ones((1, *TRAIN[0].shape[1:]))
    groups = pruning.channel_groups(Net().apply, Net().init(KEY, images), images)
    inner, params = pruning.Redundant(kernels=groups.kernels), initial()["params"]
    slopes = []
    for constraint in (inner, Inside(inner)):
        method = ADMM(constraint, kept=0.5, rho=0.5)
        _, memory = method.start(KEY, params, 0.5)
        slopes.append(jax.grad(method.penalty)(params, memory))
    same(*slopes)
    assert slopes[0]["bn"]["scale"].any() and not slopes[0]["bn"]["scale"].all()
    with pytest.raises(ValueError, match="`masks` must have the structure of the parameters"):
        ADMM(Inside(inner, whole=False), kept=0.5).start(KEY, params, 0.5)
    for names in (("block_0/kernel",), lambda path, leaf: True):
        with pytest.raises(TypeError, match="`kernels` must be the kernels of `channel_groups"):
            pruning.Irregular(kernels=names).masks(params, 0.5)


def test_admm_leaves_scales_alone_that_its_constraint_keeps():
    """A filter of zeros, from which a block begins, is not removed where everything stays."""
    known = (pruning.Kernel("a", (0,), (1,), followers=("bias",)),)
    params = {"a": jnp.zeros((3, 8)), "bias": jnp.ones(8)}
    method = ADMM(pruning.Irregular(kernels=known), kept=1.0, exclude=())
    _, memory = method.start(KEY, params, 1.0)
    assert not jax.grad(method.penalty)(params, memory)["bias"].any()


def test_hydra_ends_with_the_network_that_it_trained():
    images = jnp.ones((1, *TRAIN[0].shape[1:]))
    groups = pruning.channel_groups(Net().apply, Net().init(KEY, images), images)
    for constraint in (pruning.Irregular(), pruning.Redundant(kernels=groups.kernels)):
        method = Hydra(constraint, kept=0.5)
        scores, memory = method.start(KEY, initial()["params"], 0.5)
        same(method.effective(scores, memory), method.finish(scores, memory, 0.5)[0])


def test_kernels_and_followers_that_the_constraint_knows():
    """A kernel of another name is scored and drawn too, and biases of 0 have finite slopes."""
    known = (pruning.Kernel("a/filters", (0,), (1,), followers=("a/bias",)),)
    params = {"a": {"filters": jax.random.normal(KEY, (3, 8)), "bias": jnp.zeros(8)}}
    constraint = pruning.Redundant(kernels=known)
    hydra = Hydra(constraint, kept=0.5, exclude=())
    scores, memory = hydra.start(KEY, params, 0.5)
    ended, masks = hydra.finish(scores, memory, 0.5)
    assert masks["a"]["filters"].sum() == 12
    same(ended["a"]["filters"], params["a"]["filters"] * masks["a"]["filters"])
    same(hydra.effective(scores, memory), ended)
    admm = ADMM(constraint, kept=0.5, exclude=())
    _, memory = admm.start(KEY, params, 0.5)
    assert len(memory.multipliers.dual) == 1
    slopes = jax.grad(admm.penalty)(params, memory)["a"]
    assert not slopes["bias"].any() and slopes["filters"].any()
    later = {"a": {**params["a"], "bias": jnp.ones(8)}}
    slopes = jax.grad(admm.penalty)(later, memory)["a"]
    stays = admm.finish(params, memory, 0.5)[1]["a"]["bias"]
    assert stays.sum() == 4
    np.testing.assert_allclose(slopes["bias"], np.where(stays, 0.0, admm.rho))


def test_hydra_trains_no_kernel_that_its_constraint_leaves_out():
    one = pruning.Irregular(kernels=(pruning.Kernel("block_1/kernel", (0,), (1,)),))
    params = initial()["params"]
    scores, memory = Hydra(one, kept=0.5, exclude=()).start(KEY, params, 0.5)
    trained = jax.tree.map(lambda leaf: leaf + 1.0, scores)
    ended, masks = Hydra(one, kept=0.5, exclude=()).finish(trained, memory, 0.5)
    for layer in ("block_0", "block_1", "head"):
        same(ended[layer], pruning.apply_masks(params, masks)[layer])
    assert masks["block_0"]["kernel"].all() and masks["block_1"]["kernel"].sum() == 144
    np.testing.assert_array_equal(ended["bn"]["scale"], params["bn"]["scale"] + 1.0)


def test_admm_descends_the_augmented_lagrangian():
    method = ADMM(kept=0.3, rho=0.5)
    state = started(method)
    multipliers = state.compression.multipliers
    dual = tuple(0.1 * jnp.ones_like(leaf) for leaf in multipliers.dual)
    memory = state.compression._replace(multipliers=multipliers._replace(dual=dual))
    state = dataclasses.replace(state, compression=memory)
    plain = dataclasses.replace(state, compression=None)
    ours, metrics = plain_step(state, method)
    theirs, without = plain_step(plain, None)
    total = 0.0
    for (name, kernel), copy in zip(
        kernels(state.params).items(), multipliers.auxiliary, strict=True
    ):
        # theta' is the projection, and u = rho U = 0.05.
        assert np.count_nonzero(copy) == round(0.3 * kernel.size)
        apart = kernel - np.asarray(copy)
        total += float(np.sum(0.05 * apart) + 0.25 * np.sum(apart**2))
        moved = np.asarray(theirs.params[name]["kernel"] - ours.params[name]["kernel"])
        np.testing.assert_allclose(moved, 0.05 + 0.5 * apart, atol=1e-6)
    assert float(method.penalty(state.params, memory)) == pytest.approx(total, rel=1e-4)
    assert float(metrics["loss"]) == float(without["loss"])  # what is logged is of the images
    same(ours.params["head"], theirs.params["head"])
    same(ours.params["bn"], theirs.params["bn"])


def test_admm_updates_the_dual_and_then_projects_on_the_new_budget():
    method = ADMM(kept=(1.0, 0.3), rho=0.5, rho_growth=2.0)
    state = started(method)
    moved = jax.tree.map(lambda leaf: leaf + 0.5, state.params)
    budget = jnp.float32(0.3)
    params, memory = method.update(moved, state.compression, None, budget, jnp.float32(0.5))
    same(params, moved)
    for kernel, dual, copy in zip(
        kernels(moved).values(), memory.multipliers.dual, memory.multipliers.auxiliary, strict=True
    ):
        # At a budget of 1 theta' was theta: U = 0.5, and half of it once rho is twice as large.
        np.testing.assert_allclose(dual, 0.25, rtol=1e-5)
        assert np.count_nonzero(copy) == round(0.3 * kernel.size)
        np.testing.assert_allclose(np.asarray(copy)[copy != 0], (kernel + dual)[copy != 0])
    figures = memory.figures
    assert float(figures["rho"]) == 1.0
    lengths = [
        np.sqrt(sum(np.sum(k**2) for k in each))
        for each in (
            [np.full_like(kernel, 0.5) for kernel in kernels(moved).values()],
            kernels(moved).values(),
        )
    ]
    assert float(figures["residual"]) == pytest.approx(lengths[0] / lengths[1], rel=1e-5)
    assert float(figures["dual_norm"]) == pytest.approx(0.5 * lengths[0], rel=1e-5)


def test_hydra_computes_with_frozen_weights_and_trains_their_scores():
    method = Hydra(kept=0.3)
    state = started(method)
    frozen = initial()["params"]
    for name, scores in kernels(state.params).items():
        kernel = np.asarray(frozen[name]["kernel"])
        fan_in = kernel.size // kernel.shape[-1]
        expected = np.sqrt(6 / fan_in) * kernel / np.abs(kernel).max()
        np.testing.assert_allclose(scores, expected, rtol=1e-5)
    # At first the scores keep what magnitudes keep.
    by_magnitude = pruning.Irregular().masks(frozen, 0.3, exclude=("head",))
    network = method.effective(state.params, state.compression)
    same(network, pruning.apply_masks(frozen, by_magnitude))
    after, _ = plain_step(state, method)

    # The network's own gradient, of which scores get g w sign(score).
    masked = dataclasses.replace(
        state, params=pruning.apply_masks(frozen, by_magnitude), compression=None
    )
    theirs, _ = plain_step(masked, None)
    for name, scores in kernels(state.params).items():
        gradient = np.asarray(masked.params[name]["kernel"] - theirs.params[name]["kernel"])
        expected = gradient * np.asarray(frozen[name]["kernel"]) * np.sign(scores)
        moved = scores - np.asarray(after.params[name]["kernel"])
        np.testing.assert_allclose(moved, expected, atol=1e-6)
    assert not np.array_equal(after.params["bn"]["scale"], state.params["bn"]["scale"])
    network = method.effective(after.params, after.compression)
    for name in ("head", "block_1"):
        same(network[name]["bias"], frozen[name]["bias"])
    same(network["head"], frozen["head"])
    # A budget that falls is that of the steps to come.
    _, memory = method.update(after.params, after.compression, None, jnp.float32(0.1), 0.5)
    left = kernels(method.effective(after.params, memory))["block_1"]
    assert np.count_nonzero(left) == round(0.1 * left.size)


def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest():
    method = RigL(kept=0.5, fraction=0.4, until=0.8)
    state = started(method)
    (_, mask), (_, kernel) = state.compression.masks, kernels(state.params).values()
    assert mask.sum() == kernel.size / 2 and (kernel[~np.asarray(mask)] == 0).all()
    random = np.random.default_rng(0)
    gradients = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), state.params)
    for progress in (0.4, 0.8, 1.0):
        share = 0.2 * (1 + np.cos(np.pi * min(progress / 0.8, 1.0)))
        params, memory = method.update(
            state.params, state.compression, gradients, jnp.float32(0.5), jnp.float32(progress)
        )
        new, after = np.asarray(memory.masks[1]), np.asarray(params["block_1"]["kernel"])
        count = kernel.size // 2
        stays = np.zeros(kernel.size, bool)
        alive = np.where(mask, np.abs(kernel), -1).ravel()
        stays[np.argsort(-alive)[: count - round(share * count)]] = True
        steep = np.where(stays, -1, np.abs(gradients["block_1"]["kernel"]).ravel())
        expected = stays.copy()
        expected[np.argsort(-steep)[: round(share * count)]] = True
        np.testing.assert_array_equal(new.ravel(), expected)
        np.testing.assert_array_equal(after, np.where(new & np.asarray(mask), kernel, 0))
        if progress >= 0.8:
            same((params, memory.masks), (state.params, state.compression.masks))
    assert float(memory.figures["moved"]) == 0
    largest = RigL(kept=0.5, initial="magnitude").start(KEY, initial()["params"], 0.5)[1].masks[1]
    dense = np.abs(initial()["params"]["block_1"]["kernel"])
    assert dense[np.asarray(largest)].min() >= dense[~np.asarray(largest)].max()


@pytest.mark.parametrize("pull, momentum", [(0.05, 0.0), (0.9, 0.0), (0.05, 0.9), (0.5, 0.9)])
def test_rho_for_pull_moves_weights_by_that_share(pull, momentum):
    """Steps of SGD on the penalty alone, from a distance of 1."""
    rho = rho_for_pull(pull, 0.05, 400, momentum)
    optimizer = optax.sgd(0.05, momentum=momentum or None)
    away, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
    for _ in range(400):
        changes, state = optimizer.update(rho * away, state)
        away = away + changes
    assert 1 - float(away) == pytest.approx(pull, rel=0.05)


@pytest.mark.parametrize("given", [{"pull": 1.0}, {"pull": 0.0}, {"steps": 0}, {"momentum": 1.0}])
def test_rho_for_pull_checks_its_arguments(given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be"):
        rho_for_pull(**{"pull": 0.5, "learning_rate": 0.1, "steps": 3} | given)


def test_rigl_is_given_the_gradient_of_absent_weights_too():
    """In `fit`: of the loss on the last batch, by the kernel that the network computes with."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watched(RigL):
        def update(self, params, memory, gradients, kept, progress):
            jax.debug.callback(
                lambda g, p, m, share: seen.append((g, p, m, float(share))),
                gradients["block_1"]["kernel"],
                self.effective(params, memory),
                memory.masks[1],
                progress,
            )
            return super().update(params, memory, gradients, kept, progress)

    recipe = dataclasses.replace(
        RECIPE, num_epochs=2, batch_size=48, objective=CrossEntropy(), adversary=None
    )
    run(Watched(kept=0.3), recipe)
    jax.effects_barrier()
    assert [share for *_, share in seen] == [0.5, 1.0]

    def loss(kernel, params):
        params = params | {"block_1": params["block_1"] | {"kernel": kernel}}
        logits, _ = Net().apply(
            initial() | {"params": params}, TRAIN[0] / 255.0, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, TRAIN[1]).mean()

    for gradient, params, mask, _ in seen:
        expected = jax.grad(loss)(params["block_1"]["kernel"], params)
        np.testing.assert_allclose(gradient, expected, atol=1e-6)
        assert np.count_nonzero(np.asarray(gradient)[~np.asarray(mask)]) > 50


def test_an_objective_of_ones_own_and_compression_add_up():
    method = ADMM(kept=0.3)
    state = started(method)
    _, one = plain_step(state, method)

    def with_penalty(forward, images, adversarial, labels):
        logits, forward = forward(adversarial)
        return jnp.mean(jax.vmap(losses.cross_entropy)(logits, labels)) + 3.0, logits, forward

    _, two = plain_step(state, method, objective=with_penalty)
    assert float(two["loss"] - one["loss"]) == pytest.approx(3.0, rel=1e-5)
    with pytest.raises(ValueError, match=r"`recipe.compression` is None, but the state's"):
        plain_step(state, None)


def test_the_loss_in_the_log_is_without_what_ties_the_weights():
    method = ADMM(kept=0.3, rho=0.5)
    state = started(method)
    assert float(method.penalty(state.params, state.compression)) > 0
    _, tied = plain_step(state, method)
    _, free = plain_step(started(None), None)
    assert float(tied["loss"]) == pytest.approx(float(free["loss"]), rel=1e-6)


def test_statistics_are_the_means_over_batches_whatever_the_momentum():
    class Norms(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            for momentum in (0.9, 0.5, 0.99):
                images = nn.BatchNorm(use_running_average=not train, momentum=momentum)(images)
                images = 3 * images + 1
            return nn.Dense(2)(images.reshape(len(images), -1))

    random = np.random.default_rng(0)
    images = random.uniform(size=(24, 2, 2, 3)).astype(np.float32)
    variables = Norms().init(KEY, images)
    # All images in every batch: its own statistics.
    found = reestimate_batch_stats(Norms(), variables, images, mean=0.5, std=0.1, batch_size=24)
    normalised = (images - 0.5) / 0.1
    first = found["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(first["mean"], normalised.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(first["var"], normalised.var((0, 1, 2)), rtol=1e-4)
    for name in ("BatchNorm_1", "BatchNorm_2"):
        np.testing.assert_allclose(found["batch_stats"][name]["mean"], 1.0, atol=1e-4)
        np.testing.assert_allclose(found["batch_stats"][name]["var"], 9.0, rtol=1e-3)
    same(found["params"], variables["params"])
    # Parts of the images: means of the parts.
    parts = reestimate_batch_stats(Norms(), variables, images, batch_size=8)
    whole = images.mean((0, 1, 2))
    np.testing.assert_allclose(parts["batch_stats"]["BatchNorm_0"]["mean"], whole, atol=1e-5)
    assert (parts["batch_stats"]["BatchNorm_0"]["var"] < images.var((0, 1, 2))).all()
    with pytest.raises(ValueError, match="`batch_size` must be at most 24, the number of images"):
        reestimate_batch_stats(Norms(), variables, images)
    bare = {"params": variables["params"]}
    assert reestimate_batch_stats(Norms(), bare, images, batch_size=8) == bare


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_statistics_that_cannot_follow_the_weights_are_warned_about(framework):
    class Linen(nn.Module):
        momentum: float

        @nn.compact
        def __call__(self, images, train=False):
            hidden = nn.BatchNorm(not train, momentum=self.momentum)(images)
            return nn.Dense(2)(hidden.reshape(len(images), -1))

    class Nnx(nnx.Module):
        def __init__(self, momentum):
            self.norm = nnx.BatchNorm(3, momentum=momentum, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(12, 2, rngs=nnx.Rngs(0))

        def __call__(self, images):
            return self.head(self.norm(images).reshape(len(images), -1))

    images = np.random.default_rng(0).uniform(0.5, 1, (24, 2, 2, 3)).astype(np.float32)
    data = training.Data((images, np.arange(24) % 2))
    recipe = training.Recipe(num_epochs=2, batch_size=8)  # 6 steps

    def fit(momentum, **options):
        model = (Linen if framework == "linen" else Nnx)(momentum)
        return training.fit(model, data, recipe, progress=False, **options)

    with pytest.warns(
        UserWarning, match="After the 6 steps .* 94% of .* momentum is 0.99.* at most 0.6,"
    ):
        fitted = fit(0.99)
    with warnings.catch_warnings(action="error"):
        fit(0.5)
        fit(0.99, variables=fitted.variables)  # statistics that were trained before
    # Pruned weights are others, whatever they were before.
    masks = jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), fitted.variables["params"])
    with pytest.warns(UserWarning, match="After the 6 steps"):
        fit(0.99, variables=fitted.variables, masks=masks)


def test_mistakes_in_what_a_tie_is_made_of():
    for constraint in (pruning.Irregular, "irregular"):
        with pytest.raises(
            TypeError, match=r"`constraint` must be a constraint such as pruning.Irregular\(\)"
        ):
            ADMM(constraint)
    for kept in ([0.5, 0.2], np.array([0.5, 0.2])):
        with pytest.raises(
            TypeError, match="`kept` must be a number, or a tuple with a number for each epoch"
        ):
            ADMM(pruning.Irregular(), kept=kept)
