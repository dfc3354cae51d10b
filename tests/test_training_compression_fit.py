"""Compressing while training: what `fit` makes of each method, stopped or not."""

import dataclasses
import itertools
import json
import signal
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressed_training import (
    KEY,
    METHODS,
    NUM_WEIGHTS,
    PGD_2,
    RECIPE,
    TRAIN,
    VALIDATION,
    Net,
    initial,
    run,
    same,
)

from jaxrobust import compilation, pruning
from jaxrobust.attacks import PGD
from jaxrobust.models import Classifier
from jaxrobust.pruning.masks import named_leaves
from jaxrobust.training import (
    ADMM,
    EMA,
    AttackSchedule,
    CrossEntropy,
    Data,
    FreeReplays,
    Hydra,
    Phases,
    Recipe,
    RigL,
    Validation,
    Warmup,
    fit,
    load_run,
    two_phase,
)
from jaxrobust.training.run import compiled_steps as compiled_module
from jaxrobust.training.run import fit as fit_module
from jaxrobust.training.run import loop as loop_module


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_at_exactly_its_budget_and_trains(name, tmp_path):
    method = METHODS[name]
    recipe = dataclasses.replace(RECIPE, num_epochs=8, validation=Validation(PGD_2))
    result = run(method, recipe, VALIDATION, run_dir=tmp_path)
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
    again = run(method, recipe, VALIDATION, run_dir=tmp_path)
    for field in ("state", "variables", "masks", "best_variables", "best_masks"):
        same(getattr(again, field), getattr(result, field))
    assert again.final == result.final and again.history == result.history
    assert (tmp_path / "log.jsonl").read_bytes() == log
    with pytest.raises(ValueError, match="holds a run with a compression"):
        load_run(tmp_path)


def stopped_after(monkeypatch, number):
    """`compile_programs` whose steps press Ctrl-C once, before step `number` of this process."""
    saved = compiled_module.compile_programs

    def stopping(*arguments):
        programs = saved(*arguments)
        calls = itertools.count(1)

        def train_batches(*batch):
            if next(calls) == number:
                signal.raise_signal(signal.SIGINT)
            return programs.train_batches(*batch)

        return programs._replace(train_batches=train_batches)

    monkeypatch.setattr(compiled_module, "compile_programs", stopping)
    return saved


@pytest.mark.parametrize("name", ["admm funnel", "hydra", "rigl"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(name, tmp_path, monkeypatch):
    method, recipe = METHODS[name], dataclasses.replace(RECIPE, averaging=EMA(0.9))
    whole = run(method, recipe, VALIDATION, run_dir=tmp_path / "whole")
    # At an update in an epoch's middle, and some steps after another.
    for number in (4, 7):
        saved = stopped_after(monkeypatch, number)
        with pytest.raises(KeyboardInterrupt):
            run(method, recipe, VALIDATION, run_dir=tmp_path / "stopped")
        monkeypatch.setattr(compiled_module, "compile_programs", saved)
    again = run(method, recipe, VALIDATION, run_dir=tmp_path / "stopped")
    same(again.state, whole.state)
    same((again.variables, again.masks), (whole.variables, whole.masks))
    assert again.final == whole.final
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]


def test_many_steps_in_one_call_do_not_step_over_an_update(monkeypatch):
    updates = []
    saved = loop_module.train

    def watched(position, recipe, programs, desk):
        def update(state, order, epoch, step):
            updates.append((int(state.step), step))
            return programs.update(state, order, epoch, step)

        return saved(position, recipe, programs._replace(update=update), desk)

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
    first = len(traces)
    assert [row["kept"] for row in result.history] == list(kept)
    assert [row["kept_is_final"] for row in result.history] == [False] * 3 + [True]
    run(ADMM(Watched(), kept=(0.9, 0.4)), validation=VALIDATION)
    second = len(traces) - first
    # The update, and the projection of what is validated; a digest of both is made of every run.
    assert first - second == 2


def test_only_epochs_of_the_last_budget_can_be_the_best(tmp_path):
    # Dense at first: those epochs are better, and are not what was asked for.
    method = ADMM(kept=(1.0, 1.0, 1.0, 0.05), rho=1e-4)
    stopping = Validation(early_stopping_patience=3)
    recipe = dataclasses.replace(RECIPE, num_epochs=6, validation=stopping)
    result = run(method, recipe, VALIDATION, run_dir=tmp_path)
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
    result = run(method, dataclasses.replace(RECIPE, averaging=EMA(0.9)))
    params, masks = method.finish(result.state.average["params"], None, 0.3)
    same((params, masks), (result.variables["params"], result.masks))


def test_free_training_and_a_schedule_of_attacks_compress_too():
    recipe = dataclasses.replace(RECIPE, objective=CrossEntropy(), num_epochs=2)
    for attack in (FreeReplays(0.05, 2), AttackSchedule(((1, PGD_2), (2, PGD(0.05, 0.02, 1))))):
        for method in (RigL(kept=0.3), Hydra(kept=0.3), ADMM(kept=0.3)):
            result = run(method, dataclasses.replace(recipe, adversary=attack))
            assert result.final["kept_weights"] == 5 + 86
            assert np.isfinite(result.history[-1]["train_loss"])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="both choose the weights that stay"):
        run(ADMM(), masks=pruning.keep_all(initial()["params"]))
    with pytest.raises(ValueError, match="`kept` must have at most 4 values, one per epoch, got 5"):
        run(ADMM(kept=(1.0, 0.9, 0.8, 0.7, 0.6)))
    with pytest.raises(ValueError, match="`kept` must be at least 1/4 for 1 of 4, got 0.1"):
        run(ADMM(pruning.NofM(1, 4), kept=(0.5, 0.1)))
    with pytest.raises(ValueError, match="`exclude` must be prefixes .*, got 'tail'"):
        run(RigL(exclude=("tail",)))
    schedule = AttackSchedule(((1, PGD_2), (3, PGD(0.06, 0.02, num_steps=2))))
    staged = dataclasses.replace(RECIPE, adversary=schedule)
    with pytest.raises(ValueError, match="epoch 3 changes epsilon, kept"):
        run(ADMM(kept=(1.0, 1.0, 0.5)), staged)
    run(ADMM(kept=(1.0, 1.0, 0.5), guard=False), staged)
    run(ADMM(kept=(1.0, 0.5)), staged)
    warm = dataclasses.replace(RECIPE, adversary=Warmup(PGD_2, 2))
    with pytest.raises(ValueError, match="epoch 2 changes epsilon, kept"):
        run(Hydra(kept=(1.0, 0.5)), warm)
    for make, message in (
        (lambda: ADMM(kept=0.0), "`kept` must be a finite number above 0"),
        (lambda: ADMM(kept=()), "`kept` must be a number, or a tuple"),
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


def test_the_settings_of_a_run_name_its_compression(tmp_path):
    run(ADMM(kept=(1.0, 0.5), exclude=("head",)), run_dir=tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["recipe"]["compression"]["constraint"]["scope"] == "layer"
    assert settings["recipe"]["compression"]["kept"] == [1.0, 0.5]
    with pytest.raises(ValueError, match="other settings"):
        run(ADMM(kept=(1.0, 0.4), exclude=("head",)), run_dir=tmp_path)
    plain = tmp_path / "plain"
    assert run(None, run_dir=plain).masks is None
    assert json.loads((plain / "settings.json").read_text())["recipe"]["compression"] is None


def test_a_projection_that_takes_the_network_down_is_no_overfitting(monkeypatch):
    for module in (loop_module.epoch_decisions, fit_module):
        monkeypatch.setattr(module, "catastrophic_overfitting", lambda history: 1)
    recipe = dataclasses.replace(RECIPE, validation=Validation(PGD_2))
    assert run(None, recipe, VALIDATION).catastrophic_epoch == 1
    said = run(ADMM(pruning.Irregular(), kept=0.2, rho=0.1), recipe, VALIDATION)
    assert said.catastrophic_epoch is None


def test_two_phases_end_at_the_masks_of_the_compressed_run(tmp_path):
    method = ADMM(kept=0.3, rho=1e-2, rho_growth=1.3, rescale=False)
    compress = dataclasses.replace(RECIPE, num_epochs=3, compression=method)

    def run_all():
        phases = Phases(RECIPE, compress, RECIPE)
        return two_phase(Net(), Data(TRAIN), phases, run_dir=tmp_path, progress=False)

    runs = run_all()
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
    same(run_all().retrained.variables, runs.retrained.variables)
    with pytest.raises(ValueError, match="Give exactly one of `phases.pretrain` and `variables`"):
        two_phase(Net(), Data(TRAIN), Phases(None, compress, RECIPE))
    with pytest.raises(ValueError, match="`phases.compress` must have a compression"):
        two_phase(Net(), Data(TRAIN), Phases(RECIPE, RECIPE, RECIPE))
    with pytest.raises(ValueError, match="`phases.retrain` must have no compression"):
        two_phase(Net(), Data(TRAIN), Phases(RECIPE, compress, compress))


class Unnamed(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3)(nn.relu(nn.Dense(8)(images.reshape(len(images), -1))))


def test_a_network_whose_first_and_last_layer_have_no_such_names_is_warned_about():
    recipe = dataclasses.replace(RECIPE, num_epochs=1)
    for exclude, words in ((None, "No kernel of the network is called stem or head"), ((), None)):
        changed = dataclasses.replace(recipe, compression=ADMM(kept=0.5, exclude=exclude))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(Unnamed(), Data(TRAIN), changed, progress=False)
        said = [str(one.message) for one in caught if "stem or head" in str(one.message)]
        assert len(said) == (words is not None)


class Filters(nn.Module):
    """Three dense layers whose kernels are called otherwise."""

    names: tuple[str, str, str] = ("stem", "middle", "head")

    @nn.compact
    def __call__(self, images, train=False):
        features = images.reshape(len(images), -1)
        for name, width in zip(self.names, (8, 8, 3), strict=True):
            shape = (features.shape[-1], width)
            kernel = self.param(f"{name}/filters", nn.initializers.lecun_normal(), shape)
            features = nn.relu(features @ kernel)
        return features


@pytest.mark.parametrize("names", [("stem", "middle", "head"), ("a", "b", "c")])
def test_stem_and_head_are_those_of_the_kernels_that_the_constraint_knows(names):
    network = Filters(names)
    images = jnp.ones((1, *TRAIN[0].shape[1:]))
    groups = pruning.channel_groups(network.apply, network.init(KEY, images), images)
    recipe = dataclasses.replace(RECIPE, num_epochs=1)
    for kernels in (groups.kernels, groups.kernels[1:2]):
        method = ADMM(pruning.Irregular(kernels=kernels), kept=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = fit(
                network,
                Data(TRAIN),
                dataclasses.replace(recipe, compression=method),
                progress=False,
            )
        stays = {path.split("/")[0]: bool(mask.all()) for path, mask in named_leaves(found.masks)}
        assert stays == dict(zip(names, (True, False, True), strict=True))
        assert found.final["weights"] == 64 and found.final["kept_weights"] == 32


def test_a_run_with_other_kernels_is_another_run(tmp_path):
    images = jnp.ones((1, *TRAIN[0].shape[1:]))
    known = pruning.channel_groups(Net().apply, Net().init(KEY, images), images).kernels

    def method(*kernels):
        return ADMM(pruning.Irregular(kernels=kernels or None), kept=0.5)

    run(method(known[0]), run_dir=tmp_path)
    for other in (method(known[1]), method()):
        with pytest.raises(ValueError, match="kernels"):
            run(other, run_dir=tmp_path)
    # What `fit` finds by itself is no setting.
    run(method(), run_dir=tmp_path / "found")
    assert "kernels" not in (tmp_path / "found" / "settings.json").read_text()


class Scaled(nn.Module):
    """Filters with a scale that is called a weight, behind a ReLU or not."""

    scale: str

    @nn.compact
    def __call__(self, images, train=False):
        ones = nn.initializers.ones
        made = images @ self.param("conv/weight", nn.initializers.lecun_normal(), (1, 4))
        made = made * self.param(f"{self.scale}/weight", ones, (1, 1, 4))
        return nn.Dense(3, name="head")(nn.relu(made).reshape(len(images), -1))


@pytest.mark.parametrize("scale", ["a", "z"])
def test_a_scale_that_is_called_a_weight_goes_with_its_filter(scale):
    method = ADMM(pruning.Redundant(), kept=0.5, exclude=("head",))
    recipe = dataclasses.replace(RECIPE, compression=method, num_epochs=1)
    masks = fit(Scaled(scale), Data(TRAIN), recipe, progress=False).masks
    assert masks["conv/weight"].sum() == 2
    np.testing.assert_array_equal(masks["conv/weight"][0], masks[f"{scale}/weight"][0, 0])
    # HYDRA trains it like other scales.
    recipe = dataclasses.replace(recipe, compression=Hydra(kept=0.5, exclude=("head",)))
    params = fit(Scaled(scale), Data(TRAIN), recipe, progress=False).variables["params"]
    assert (params[f"{scale}/weight"] != 1).any()


def test_overfitting_is_looked_for_where_training_and_validation_are_attacked():
    attacked = Validation(attack=PGD(0.1, num_steps=1))
    both = Recipe(adversary=PGD(0.1, num_steps=1), validation=attacked)
    assert loop_module.is_attacked(both)
    assert not loop_module.is_attacked(Recipe(validation=attacked))
    assert not loop_module.is_attacked(dataclasses.replace(both, validation=Validation()))
    assert not loop_module.is_attacked(dataclasses.replace(both, compression=ADMM(kept=0.5)))
