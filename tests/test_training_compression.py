"""Compressing while training: closed forms of each method, and what `fit` makes of them."""

import dataclasses
import functools
import itertools
import json
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import compilation, pruning
from jaxrobust.attacks import PGD
from jaxrobust.models import Classifier
from jaxrobust.training import (
    ADMM,
    AttackSchedule,
    FreeReplays,
    Hydra,
    RigL,
    TrainConfig,
    check_sequences,
    create_state,
    fit,
    load_run,
    make_optimizer,
    reestimate_batch_stats,
    source_sequences,
    train_step,
    two_phase,
)
from jaxrobust.training import fitting as fitting_module
from jaxrobust.training import loop as loop_module
from jaxrobust.training import programs as programs_module
from jaxrobust.training.compression import kept_at

KEY = jax.random.key(0)
PGD_2 = PGD(0.05, 0.02, num_steps=2)


class Net(nn.Module):
    """Two kernels to compress, one of each kind of parameter, and a head that is excluded."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.Conv(4, (2, 2), name="block_0")(images)
        features = nn.BatchNorm(use_running_average=not train, momentum=0.8, name="bn")(features)
        features = nn.relu(features).reshape(len(images), -1)
        features = nn.relu(nn.Dense(8, name="block_1")(features))
        return nn.Dense(3, name="head")(features)


def examples(count, seed=0):
    """Images in which one row is bright: the class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.integers(0, 90, (count, 3, 3, 1)).astype(np.uint8)
    images[np.arange(count), labels] += 120
    return images, labels


# One object, so that programs compiled for it serve all runs.
NET = Net()
TRAIN, VALIDATION = examples(48), examples(24, seed=1)
CONFIG = TrainConfig(
    num_epochs=4,
    batch_size=8,
    optimizer="sgd",
    learning_rate=0.1,
    schedule="cosine",
    weight_decay=1e-3,
    natural_weight=0.1,
)
NUM_WEIGHTS = 2 * 2 * 1 * 4 + 36 * 8
METHODS = {
    "admm": ADMM(kept=0.3, rho=0.05),
    "admm funnel": ADMM(pruning.Funnel(), kept=(1.0, 0.5, 0.3), every=4, rho_growth=1.3),
    "hydra": Hydra(kept=0.3),
    "rigl": RigL(kept=0.3, every=5),
}


def run(compression, config=CONFIG, attack=PGD_2, **arguments):
    return fit(
        NET, TRAIN, config, attack=attack, compression=compression, progress=False, **arguments
    )


def same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@functools.cache
def initial():
    return Net().init(KEY, jnp.zeros((1, 3, 3, 1)))


def started(compression, optimizer=None):
    params, memory = compression.start(KEY, initial()["params"], kept_at(compression, 0))
    optimizer = optimizer or make_optimizer(CONFIG)
    return create_state(dict(initial()) | {"params": params}, optimizer, compression=memory)


def kernels(params):
    return {name: np.asarray(params[name]["kernel"]) for name in ("block_0", "block_1")}


def plain_step(state, compression, penalty=None):
    """A step of plain gradient descent at rate 1: the parameters move by minus the gradient."""
    return train_step(
        state,
        (TRAIN[0][:8], TRAIN[1][:8]),
        KEY,
        apply_fn=Net().apply,
        optimizer=optax.chain(optax.identity(), optax.scale(-1.0)),
        schedule=lambda step: 1.0,
        compression=compression,
        penalty=penalty,
    )


def test_admm_descends_the_augmented_lagrangian():
    method = ADMM(kept=0.3, rho=0.5)
    optimizer = optax.chain(optax.identity(), optax.scale(-1.0))
    state = started(method, optimizer)
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
    optimizer = optax.chain(optax.identity(), optax.scale(-1.0))
    state = started(method, optimizer)
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

    config = dataclasses.replace(CONFIG, num_epochs=2, batch_size=48, natural_weight=0.0)
    run(Watched(kept=0.3), config, attack=None)
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


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_at_exactly_its_budget_and_trains(name, tmp_path):
    method = METHODS[name]
    arguments = {"validation": VALIDATION, "validation_attack": PGD_2, "run_dir": tmp_path}
    result = run(method, dataclasses.replace(CONFIG, num_epochs=8), **arguments)
    layers = pruning.layer_sparsity(result.variables["params"])
    counts = {path: layer["kept"] for path, layer in layers.items()}
    exact = {"block_0/kernel": round(0.3 * 16), "block_1/kernel": round(0.3 * 288)}
    if "funnel" in name:
        assert counts["block_0/kernel"] + counts["block_1/kernel"] == round(0.3 * NUM_WEIGHTS)
        assert counts["block_0/kernel"] / 16 >= counts["block_1/kernel"] / 288
    else:
        assert counts == exact | {"head/kernel": layers["head/kernel"]["size"]}
    masked = pruning.layer_sparsity(result.variables["params"], result.masks)
    assert {path: layer["kept"] for path, layer in masked.items()} == counts
    same(pruning.apply_masks(result.variables["params"], result.masks), result.variables["params"])
    assert result.final["weights"] == NUM_WEIGHTS
    assert result.final["kept_weights"] == sum(counts.values()) - layers["head/kernel"]["size"]
    assert result.history[-1]["validation_accuracy"] > (0.5 if name == "hydra" else 0.8)
    assert result.final["accuracy_after"] == result.history[-1]["validation_accuracy"]
    assert result.history[-1]["kept"] == 0.3
    # What is reported is what comes back.
    classifier = Classifier(Net().apply, result.variables)
    clean = np.mean(np.argmax(classifier(VALIDATION[0] / 255.0), -1) == VALIDATION[1])
    assert result.final["accuracy_after"] <= clean
    # A finished run returns the same, here without the figures that were kept.
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "final.json").unlink()
    again = run(method, dataclasses.replace(CONFIG, num_epochs=8), **arguments)
    for field in ("state", "variables", "masks", "best_variables", "best_masks"):
        same(getattr(again, field), getattr(result, field))
    assert again.final == result.final and again.history == result.history
    assert (tmp_path / "log.jsonl").read_bytes() == log
    with pytest.raises(ValueError, match="holds a run with a compression"):
        load_run(tmp_path)


def stopped_after(monkeypatch, number):
    """`compile_programs` whose steps press Ctrl-C once, before step `number` of this process."""
    saved = programs_module.compile_programs

    def stopping(*arguments):
        compiled = saved(*arguments)
        calls = itertools.count(1)

        def train_batches(*batch):
            if next(calls) == number:
                signal.raise_signal(signal.SIGINT)
            return compiled.train_batches(*batch)

        return compiled._replace(train_batches=train_batches)

    monkeypatch.setattr(programs_module, "compile_programs", stopping)
    return saved


@pytest.mark.parametrize("name", ["admm funnel", "hydra", "rigl"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(name, tmp_path, monkeypatch):
    method, config = METHODS[name], dataclasses.replace(CONFIG, ema_decay=0.9)
    whole = run(method, config, validation=VALIDATION, run_dir=tmp_path / "whole")
    # At an update in an epoch's middle, and some steps after another.
    for number in (4, 7):
        saved = stopped_after(monkeypatch, number)
        with pytest.raises(KeyboardInterrupt):
            run(method, config, validation=VALIDATION, run_dir=tmp_path / "stopped")
        monkeypatch.setattr(programs_module, "compile_programs", saved)
    again = run(method, config, validation=VALIDATION, run_dir=tmp_path / "stopped")
    same(again.state, whole.state)
    same((again.variables, again.masks), (whole.variables, whole.masks))
    assert again.final == whole.final
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]


def test_many_steps_in_one_call_do_not_step_over_an_update(monkeypatch):
    updates = []
    saved = loop_module.train

    def watched(position, config, compiled, *arguments, **keywords):
        def update(state, order, epoch, step):
            updates.append((int(state.step), step))
            return compiled.update(state, order, epoch, step)

        return saved(position, config, compiled._replace(update=update), *arguments, **keywords)

    monkeypatch.setattr(loop_module, "train", watched)
    single = run(METHODS["admm funnel"])
    assert updates == [(step, step) for step in (4, 8, 12, 16, 20, 24)]
    updates.clear()
    monkeypatch.setattr(compilation, "loops_are_fast", lambda: True)
    many = run(METHODS["admm funnel"])
    assert updates == [(step, step) for step in (4, 8, 12, 16, 20, 24)]
    for one, other in zip(single.history, many.history, strict=True):
        assert one["residual"] == pytest.approx(other["residual"], rel=1e-3)
    updates.clear()
    run(ADMM(kept=0.3))
    assert updates == [(6, 6), (12, 12), (18, 18), (24, 24)]


def test_a_budget_that_falls_compiles_nothing_anew():
    traces = []

    @dataclasses.dataclass(frozen=True)
    class Watched(pruning.Irregular):
        def masks(self, params, kept, *, exclude=()):
            if isinstance(kept, jax.core.Tracer):
                traces.append(kept)
            return super().masks(params, kept, exclude=exclude)

    kept = (1.0, 0.8, 0.5, 0.2)
    result = run(ADMM(Watched(), kept=kept), validation=VALIDATION)
    # The update, and the projection of what is validated.
    assert len(traces) == 2
    assert [row["kept"] for row in result.history] == list(kept)
    assert [row["kept_is_final"] for row in result.history] == [False] * 3 + [True]
    run(ADMM(Watched(), kept=(0.9, 0.4)), validation=VALIDATION)
    assert len(traces) == 2


def test_only_epochs_of_the_last_budget_can_be_the_best(tmp_path):
    # Dense at first: those epochs are better, and are not what was asked for.
    method = ADMM(kept=(1.0, 1.0, 1.0, 0.05), rho=1e-4)
    config = dataclasses.replace(CONFIG, num_epochs=6, early_stopping_patience=3)
    result = run(method, config, validation=VALIDATION, run_dir=tmp_path)
    losses = [row["validation_loss"] for row in result.history]
    assert len(losses) == 6
    assert result.best_epoch == 4 + int(np.argmin(losses[3:]))
    assert min(losses[:3]) < min(losses[3:])
    best = pruning.layer_sparsity(result.best_variables["params"], result.best_masks)
    assert best["block_1/kernel"]["kept"] == round(0.05 * 288)
    classifier = Classifier(Net().apply, result.best_variables)
    logits = classifier(VALIDATION[0] / 255.0)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, VALIDATION[1]).mean()
    assert float(loss) == pytest.approx(losses[result.best_epoch - 1], rel=1e-4)


def test_the_moving_average_is_what_is_projected():
    method = ADMM(kept=0.3)
    result = run(method, dataclasses.replace(CONFIG, ema_decay=0.9))
    params, masks = method.finish(result.state.average["params"], None, 0.3)
    same((params, masks), (result.variables["params"], result.masks))


def test_free_training_and_a_schedule_of_attacks_compress_too():
    config = dataclasses.replace(CONFIG, natural_weight=0.0, num_epochs=2)
    for attack in (FreeReplays(0.05, 2), AttackSchedule(((1, PGD_2), (2, PGD(0.05, 0.02, 1))))):
        for method in (RigL(kept=0.3), Hydra(kept=0.3), ADMM(kept=0.3)):
            result = run(method, config, attack=attack)
            assert result.final["kept_weights"] == 5 + 86
            assert np.isfinite(result.history[-1]["train_loss"])


def test_penalty_and_compression_add_up():
    method = ADMM(kept=0.3)
    optimizer = optax.chain(optax.identity(), optax.scale(-1.0))
    state = started(method, optimizer)
    _, one = plain_step(state, method)
    _, two = plain_step(state, method, penalty=lambda params: 3.0)
    assert float(two["loss"] - one["loss"]) == pytest.approx(3.0, rel=1e-5)
    with pytest.raises(ValueError, match="`compression` and a state with its memory need each"):
        plain_step(state, None)


def test_the_loss_in_the_log_is_without_what_ties_the_weights():
    method = ADMM(kept=0.3, rho=0.5)
    optimizer = optax.chain(optax.identity(), optax.scale(-1.0))
    state = started(method, optimizer)
    assert float(method.penalty(state.params, state.compression)) > 0
    _, tied = plain_step(state, method)
    _, free = plain_step(create_state(initial(), optimizer), None)
    assert float(tied["loss"]) == pytest.approx(float(free["loss"]), rel=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`compression` and `masks` are two ways"):
        run(ADMM(), masks=pruning.keep_all(initial()["params"]))
    with pytest.raises(ValueError, match="`kept` must have at most one value per epoch, 4, got 5"):
        run(ADMM(kept=(1.0, 0.9, 0.8, 0.7, 0.6)))
    with pytest.raises(ValueError, match="`kept` must be at least 1/4 for 1 of 4, got 0.1"):
        run(ADMM(pruning.NofM(1, 4), kept=(0.5, 0.1)))
    with pytest.raises(ValueError, match="`exclude` names 'tail'"):
        run(RigL(exclude=("tail",)))
    schedule = AttackSchedule(((1, PGD_2), (3, PGD(0.06, 0.02, num_steps=2))))
    with pytest.raises(ValueError, match="in epoch 3 do epsilon, kept"):
        run(ADMM(kept=(1.0, 1.0, 0.5)), attack=schedule)
    run(ADMM(kept=(1.0, 1.0, 0.5), guard=False), attack=schedule)
    run(ADMM(kept=(1.0, 0.5)), attack=schedule)
    warm = dataclasses.replace(CONFIG, attack_warmup_epochs=2)
    with pytest.raises(ValueError, match="in epoch 2 do epsilon, kept"):
        run(Hydra(kept=(1.0, 0.5)), warm)
    for make, message in (
        (lambda: ADMM(kept=0.0), "`kept` must be a finite number above 0"),
        (lambda: ADMM(kept=()), "`kept` must be a number or a tuple"),
        (lambda: ADMM(rho=0.0), "`rho` must be a finite number above 0"),
        (lambda: ADMM(rho_growth=0.5), "`rho_growth` must be a finite number at least 1"),
        (lambda: ADMM(largest_rho=1e-9), "`largest_rho` must be a finite number at least 0.001"),
        (lambda: ADMM(every=0), "`every` must be at least 1"),
        (lambda: RigL(fraction=2.0), "`fraction` must be"),
        (lambda: RigL(initial="ones"), "`initial` must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="`exclude` must be a tuple"):
        Hydra(exclude="head")


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
    with pytest.raises(ValueError, match="`batch_size` must be at most the 24 images"):
        reestimate_batch_stats(Norms(), variables, images)
    bare = {"params": variables["params"]}
    assert reestimate_batch_stats(Norms(), bare, images, batch_size=8) == bare


def test_two_phases_end_at_the_masks_of_the_compressed_run(tmp_path):
    def recipe():
        return two_phase(
            Net(),
            TRAIN,
            ADMM(kept=0.3, rho=1e-2, rho_growth=1.3, rescale=False),
            pretrain=CONFIG,
            compress=dataclasses.replace(CONFIG, num_epochs=3),
            retrain=CONFIG,
            attack=PGD_2,
            run_dir=tmp_path,
            progress=False,
        )

    runs = recipe()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "compressed",
        "pretrained",
        "retrained",
    ]
    same(
        pruning.apply_masks(runs.retrained.variables["params"], runs.compressed.masks),
        runs.retrained.variables["params"],
    )
    assert pruning.sparsity_of(runs.pretrained.variables["params"]) == 0
    assert runs.compressed.final["kept_weights"] == 5 + 86
    same(recipe().retrained.variables, runs.retrained.variables)
    with pytest.raises(ValueError, match="Give one of `pretrain` and `variables`"):
        two_phase(Net(), TRAIN, ADMM(), pretrain=None, compress=CONFIG, retrain=CONFIG)


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
        ValueError, match="must have a value for each epoch, got epsilon 1, steps 2"
    ):
        check_sequences([0.1], [1, 2], [1.0, 0.5])
    with pytest.raises(ValueError, match="leaves no epoch in which the budget alone may fall"):
        source_sequences(3, PGD(0.03, 0.01, num_steps=3), 0.1, num_radii=1)
    with pytest.raises(ValueError, match=r"`settle` must be in \[0, 1\), got 1"):
        source_sequences(12, PGD(0.03, 0.01, num_steps=3), 0.1, settle=1.0)
    with pytest.raises(TypeError, match="`attack` must have `step_size`"):
        source_sequences(12, FreeReplays(0.03), 0.1)


def test_the_settings_of_a_run_name_its_compression(tmp_path):
    run(ADMM(kept=(1.0, 0.5), exclude=("head",)), run_dir=tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["compression"]["constraint"]["scope"] == "layer"
    assert settings["compression"]["kept"] == [1.0, 0.5]
    with pytest.raises(ValueError, match="other settings"):
        run(ADMM(kept=(1.0, 0.4), exclude=("head",)), run_dir=tmp_path)
    plain = tmp_path / "plain"
    assert run(None, run_dir=plain).masks is None
    assert "compression" not in json.loads((plain / "settings.json").read_text())


def test_mistakes_in_what_a_tie_is_made_of():
    for constraint in (pruning.Irregular, "irregular"):
        with pytest.raises(
            TypeError, match=r"`constraint` must be a set such as pruning.Irregular\(\)"
        ):
            ADMM(constraint)
    for kept in ([0.5, 0.2], np.array([0.5, 0.2])):
        with pytest.raises(
            TypeError, match="`kept` must be a number, or a tuple of one for each epoch"
        ):
            ADMM(pruning.Irregular(), kept=kept)


def test_a_projection_that_takes_the_network_down_is_no_overfitting(monkeypatch):
    for module in (loop_module.decisions, fitting_module):
        monkeypatch.setattr(module, "catastrophic_overfitting", lambda history: 1)
    said = run(
        ADMM(pruning.Irregular(), kept=0.2, rho=0.1), validation=VALIDATION, validation_attack=PGD_2
    )
    assert said.catastrophic_epoch is None
