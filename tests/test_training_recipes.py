"""What a recipe may hold that is the user's own: recognised again, compiled once, or refused."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from counting import num_compiled

from jaxrobust import pruning
from jaxrobust.attacks import PGD
from jaxrobust.models import Classifier
from jaxrobust.training import (
    ADMM,
    AWP,
    EMA,
    SGD,
    AttackSchedule,
    Constant,
    CrossEntropy,
    Data,
    Distillation,
    FreeReplays,
    Hydra,
    Recipe,
    RigL,
    Steps,
    Validation,
    Warmup,
    fit,
    initial_variables,
    load_run,
)
from jaxrobust.training.step.adversaries import step_once


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(2)(images.reshape(len(images), -1))


def examples(count, seed=0):
    """Images whose brightness is their class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 100, (count, 2, 2, 1)) + 120 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


# One object, so that programs compiled for it serve all runs.
NET = Linear()
DATA = Data(examples(20), examples(10, seed=1), mean=0.5, std=0.25)
RECIPE = Recipe(num_epochs=3, batch_size=6, schedule=Constant(0.1))


def run(data=DATA, folder=None, variables=None, masks=None, **changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    return fit(NET, data, recipe, run_dir=folder, variables=variables, masks=masks, progress=False)


def same(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), left, right))


def teacher(seed, weight=1.0):
    variables = initial_variables(NET, (2, 2, 1), seed)
    return Distillation(Classifier(NET.apply, variables, 0.5, 0.25), weight)


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_accuracy"])
def test_a_run_of_an_earlier_release_is_read_and_not_gone_on_with(tmp_path, monitor):
    # Far too fast to converge: the last epoch is not the best one.
    changes = {
        "num_epochs": 4,
        "optimizer": SGD(),
        "schedule": Constant(30.0),
        "validation": Validation(monitor=monitor),
    }
    result = run(folder=tmp_path, **changes)
    assert not same(result.best_variables, result.variables)
    path, log = tmp_path / "settings.json", tmp_path / "log.jsonl"
    settings = json.loads(path.read_text())
    del settings["recipe"]
    earlier = {"config": {"num_epochs": 4, "monitor": monitor}} | settings | {"attack": None}
    path.write_text(json.dumps(earlier))
    before = path.read_bytes(), log.read_bytes()
    with pytest.raises(ValueError, match=r"holds a run of an earlier release.*fit\(variables="):
        run(folder=tmp_path, **changes)
    assert (path.read_bytes(), log.read_bytes()) == before
    for weights, expected in (("last", result.variables), ("best", result.best_variables)):
        variables, found = load_run(tmp_path, weights)
        assert same(variables, expected) and found == earlier
    further = run(folder=tmp_path / "further", variables=variables, **changes)
    assert same(further.state, run(variables=result.best_variables, **changes).state)
    path.write_text(json.dumps(earlier | {"compression": {"kept": 0.5}}))
    with pytest.raises(ValueError, match="holds a run with a compression"):
        load_run(tmp_path)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Average:
    """An average of one's own: the number is no field, so that the description does not have it."""

    def start(self, variables):
        return jax.tree.map(jnp.copy, variables)

    def update(self, average, variables, step):
        return jax.tree.map(lambda old, new: old + self.share() * (new - old), average, variables)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Moved:
    """An adversary of one's own, likewise."""

    def memory(self, shape):
        return None

    def craft(self, batch, memory):
        return jnp.clip(batch.images + self.by(), 0, 1)

    def step(self, batch, state, descend):
        return step_once(self, batch, state, descend)


def own_part(name, number):
    """A user's function with a number in it, always under the same name."""

    def schedule(step):
        return number * 0.9**step

    def optimizer(learning_rate):
        return optax.sgd(learning_rate, momentum=number)

    def objective(forward, images, adversarial, labels):
        value, logits, forward = CrossEntropy()(forward, images, adversarial, labels)
        return number * value, logits, forward

    def penalty(forward, images, adversarial, labels):
        value, logits, after = CrossEntropy()(forward, images, adversarial, labels)
        return value + number * jnp.sum(forward.params["Dense_0"]["kernel"] ** 2), logits, after

    rates = np.linspace(0.1, number, 9, dtype=np.float32)  # an array that a function closes over

    average = type("Average", (Average,), {"share": lambda self: number})()
    moved = type("Moved", (Moved,), {"by": lambda self: number / 5})()
    for one in (type(average), type(moved)):
        jax.tree_util.register_static(one)
    return {
        "schedule": {"schedule": schedule},
        "array": {"schedule": lambda step: jnp.asarray(rates)[step]},
        "optimizer": {"optimizer": optimizer},
        "objective": {"objective": objective},
        "penalty": {"objective": penalty},
        "averaging": {"averaging": average},
        "adversary": {"adversary": AWP(moved, 0.01)},
    }[name]


PARTS = ["schedule", "array", "optimizer", "objective", "penalty", "averaging", "adversary"]


@pytest.mark.parametrize("edited", PARTS)
def test_an_edited_part_is_another_setting(tmp_path, edited):
    """Under the same name: what a user does who changes a line and runs the script again."""
    first = run(folder=tmp_path, **own_part(edited, 0.5))
    log = (tmp_path / "log.jsonl").read_bytes()
    assert same(run(folder=tmp_path, **own_part(edited, 0.5)).state, first.state)
    with pytest.raises(ValueError, match="other settings: programs.values was"):
        run(folder=tmp_path, **own_part(edited, 0.6))
    assert (tmp_path / "log.jsonl").read_bytes() == log
    # What is refused would have been another training.
    assert not same(run(**own_part(edited, 0.6)).variables, first.variables)


RATE = 0.1


def rate_of_the_module(step):
    return RATE


def test_a_number_of_the_module_that_has_changed_is_seen_in_the_same_process(monkeypatch):
    first = run(schedule=rate_of_the_module)
    monkeypatch.setitem(globals(), "RATE", 0.05)
    assert run(schedule=rate_of_the_module).history[0]["learning_rate"] == 0.05
    assert first.history[0]["learning_rate"] == 0.1


class Pooled(nn.Module):
    """It takes images of any size."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(2)(images.mean((1, 2)))


def test_a_teacher_sees_what_the_augmentation_makes():
    def smaller(key, images):
        return images[:, :1]

    # Of images of one size alone.
    taught = Classifier(NET.apply, initial_variables(NET, (1, 2, 1), 3), 0.5, 0.25)
    recipe = dataclasses.replace(RECIPE, objective=Distillation(taught), augmentation=smaller)
    rows = fit(Pooled(), DATA, recipe, progress=False).history
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            {"schedule": optax.cosine_decay_schedule(0.1, 9)},
            {"schedule": optax.cosine_decay_schedule(0.2, 9)},
            "programs.values was",
        ),
        (
            {"optimizer": functools.partial(optax.sgd, momentum=0.9)},
            {"optimizer": functools.partial(optax.sgd, momentum=0.8)},
            "recipe.optimizer.keywords.momentum was 0.9, is now 0.8",
        ),
        ({"optimizer": optax.adam}, {"optimizer": optax.lion}, "recipe.optimizer was"),
        ({"objective": teacher(1)}, {"objective": teacher(2)}, "arrays_of_the_objective was"),
        (
            {"objective": teacher(1)},
            {"objective": teacher(1, weight=0.5)},
            "recipe.objective.weight was 1.0, is now 0.5",
        ),
    ],
    ids=["schedule of optax", "partial", "optimizer of optax", "teacher", "distillation"],
)
def test_other_numbers_are_other_settings(tmp_path, before, after, words):
    first = run(folder=tmp_path, **before)
    assert same(run(folder=tmp_path, **before).state, first.state)
    with pytest.raises(ValueError, match=words):
        run(folder=tmp_path, **after)
    assert not same(run(**after).variables, first.variables)


def test_the_same_teacher_is_recognised_when_it_is_made_anew(tmp_path):
    first = run(folder=tmp_path, objective=teacher(1))
    log = (tmp_path / "log.jsonl").read_bytes()
    assert same(run(folder=tmp_path, objective=teacher(1)).state, first.state)
    assert (tmp_path / "log.jsonl").read_bytes() == log


def masks(column):
    kept = jnp.arange(2) == column
    return {"Dense_0": {"kernel": jnp.tile(kept, (4, 1)), "bias": jnp.ones(2, bool)}}


def stages(first, second):
    return AttackSchedule(((1, PGD(first, 0.02, 2)), (2, PGD(second, 0.02, 2))))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"seed": 0}, {"seed": 1}),
        ({"adversary": PGD(0.1, 0.02, 2)}, {"adversary": PGD(0.2, 0.03, 2)}),
        (
            {"adversary": Warmup(stages(0.1, 0.2), 2)},
            {"adversary": Warmup(stages(0.2, 0.3), 2)},
        ),
        ({"adversary": AWP(FreeReplays(0.1, 2))}, {"adversary": AWP(FreeReplays(0.2, 2))}),
        (
            {"validation": Validation(PGD(0.1, 0.02, 2))},
            {"validation": Validation(PGD(0.2, 0.02, 2))},
        ),
        ({"masks": masks(0)}, {"masks": masks(1)}),
        ({"objective": teacher(1)}, {"objective": teacher(2)}),
        (
            {"data": DATA},
            {"data": Data(examples(20, seed=2), examples(10, seed=3), mean=0.4, std=0.2)},
        ),
    ],
    ids=["seed", "epsilon", "schedule", "free", "validation", "masks", "teacher", "data"],
)
def test_runs_that_differ_in_what_is_given_share_their_programs(before, after):
    first = run(**before)
    compiled = num_compiled()
    second = run(**after)
    assert num_compiled() == compiled
    # They were given it nevertheless.
    assert first.history != second.history


def test_another_number_of_steps_is_another_program():
    run(adversary=PGD(0.1, 0.02, 2))
    compiled = num_compiled()
    run(adversary=PGD(0.1, 0.02, 3))
    assert num_compiled() > compiled


@pytest.mark.parametrize(
    "optimizer",
    [optax.lion, optax.adam, functools.partial(optax.sgd, momentum=0.9)],
    ids=["lion", "adam", "partial"],
)
def test_optimizers_and_schedules_of_optax_train_as_by_themselves(tmp_path, optimizer):
    rate = optax.cosine_decay_schedule(0.1, 5)
    # All images in every batch, so that their order does not matter.
    changes = {"num_epochs": 5, "batch_size": 20, "optimizer": optimizer, "schedule": rate}
    result = run(folder=tmp_path, **changes)
    labels, images = DATA.train[1], (DATA.train[0] / 255 - 0.5) / 0.25

    def loss(variables):
        logits = NET.apply(variables, jnp.float32(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    variables = initial_variables(NET, (2, 2, 1), RECIPE.seed)
    alone = optimizer(rate)
    memory, losses = alone.init(variables), []
    for _ in range(5):
        value, gradients = jax.value_and_grad(loss)(variables)
        updates, memory = alone.update(gradients, memory, variables)
        variables, losses = optax.apply_updates(variables, updates), [*losses, value]
    np.testing.assert_allclose([row["train_loss"] for row in result.history], losses, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result.variables, variables
    )
    rates = [row["learning_rate"] for row in result.history]
    np.testing.assert_allclose(rates, [rate(step) for step in range(5)], rtol=1e-5)
    assert same(run(folder=tmp_path, **changes).state, result.state)


def test_what_is_no_function_of_a_rate_is_refused():
    words = "`optimizer` must be a function from a learning rate to an optax transformation"
    for wrong in (optax.adam(1e-3), SGD, "sgd", None):
        with pytest.raises(TypeError, match=words):
            Recipe(optimizer=wrong)
    with pytest.raises(ValueError, match="must take a new learning rate in every step"):
        Recipe(optimizer=optax.inject_hyperparams(optax.sgd))
    for wrong in (0.1, Constant, "cosine", None):
        with pytest.raises(TypeError, match="`schedule` must be a schedule such as Constant"):
            Recipe(schedule=wrong)
    for wrong in (CrossEntropy, "trades", None):
        with pytest.raises(
            TypeError, match="`objective` must be an objective such as CrossEntropy"
        ):
            Recipe(objective=wrong)
    for name, wrong in (
        ("augmentation", 3),
        ("averaging", 0.9),
        ("averaging", EMA),
        ("compression", ADMM),
        ("validation", None),
    ):
        with pytest.raises(TypeError, match=f"`{name}` must be"):
            Recipe(**{name: wrong})
    with pytest.raises(TypeError, match="`milestones` must be a tuple of epochs, got 3"):
        Steps(0.1, 3)


def compression_of_ones_own(share):
    """A library's method with an edited update, always under the same name."""

    @dataclasses.dataclass(frozen=True)
    class Own(RigL):
        def update(self, params, memory, gradients, kept, progress):
            params, memory = super().update(params, memory, gradients, kept, progress)
            return jax.tree.map(lambda leaf: share * leaf, params), memory

    return Own(kept=0.5, exclude=())


def constraint_of_ones_own(power):
    @dataclasses.dataclass(frozen=True)
    class Own(pruning.Irregular):
        def masks(self, params, kept, *, exclude=()):
            changed = jax.tree.map(lambda leaf: jnp.abs(leaf) ** power * (leaf > 0), params)
            return super().masks(changed if power < 1 else params, kept, exclude=exclude)

    return Hydra(Own(), kept=0.5, exclude=())


def attack_of_ones_own(share):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Own(PGD):
        def tell(self, state, evaluation):
            return super().tell(state, evaluation._replace(gradient=share * evaluation.gradient))

    return Validation(Own(0.1, 0.02, 2))


@pytest.mark.parametrize(
    ("field", "make", "numbers"),
    [
        ("compression", compression_of_ones_own, (1.0, 0.9)),
        ("compression", constraint_of_ones_own, (1.0, 0.5)),
        ("validation", attack_of_ones_own, (1.0, -1.0)),
    ],
    ids=["update", "constraint", "validation attack"],
)
def test_an_edit_inside_a_value_of_the_library_is_another_setting(tmp_path, field, make, numbers):
    run(folder=tmp_path, **{field: make(numbers[0])})
    run(folder=tmp_path, **{field: make(numbers[0])})
    with pytest.raises(ValueError, match="other settings: programs.values was"):
        run(folder=tmp_path, **{field: make(numbers[1])})


@pytest.mark.parametrize("name", ["optimizer", "averaging"])
def test_memories_that_begin_as_the_parameters_are_not_donated_twice(name):
    class Same(Average):
        def start(self, variables):
            return variables

        def share(self):
            return 0.5

    value = {"optimizer": optax.contrib.prodigy, "averaging": Same()}[name]
    assert np.isfinite(run(**{name: value}).history[-1]["train_loss"])


DIGESTS = """
import numpy as np, optax, jax
from jaxrobust import models
from jaxrobust.attacks import PGD
from jaxrobust.models import Classifier
from jaxrobust.training import *
from jaxrobust.training.run.arguments import prepared

def own(forward, images, adversarial, labels):
    return CrossEntropy()(forward, images, adversarial, labels)

net = models.create("mlp", 3, widths=(4,))
teacher = Distillation(Classifier(net.apply, initial_variables(net, (4, 4, 3), 1)))
data = Data((np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, int)))
for adversary in (Warmup(PGD(0.1, 0.02, 2), 1), AWP(NFGSM(0.1)), FreeReplays(0.1, 2)):
    for objective in (own, teacher):
        recipe = Recipe(batch_size=4, objective=objective, adversary=adversary, optimizer=optax.lion)
        print(prepared(net, data, recipe, None, None, 1).digests)
"""


def test_digests_are_the_same_in_every_process_and_on_every_platform():
    """Else a run would not go on, and several processes would not agree."""
    found = set()
    for changes in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "5"}, {"JAXROBUST_PLAIN": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env=os.environ | changes,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    assert len(found) == 1 and found.pop().count("\n") == 6


def test_what_cannot_be_compiled_is_refused_by_name():
    @dataclasses.dataclass
    class Changeable:
        def __call__(self, forward, images, adversarial, labels):
            return CrossEntropy()(forward, images, adversarial, labels)

    with pytest.raises(TypeError, match="`objective` must be hashable, such as a frozen dataclass"):
        run(objective=Changeable())
    unregistered = type("Unregistered", (Moved,), {"by": lambda self: 0.1})()
    with pytest.raises(TypeError, match="`adversary` must be registered"):
        Recipe(adversary=unregistered)
    with pytest.raises(TypeError, match="`optimizer` must return an optax transformation, got 3"):
        Recipe(optimizer=lambda rate: 3)
    with pytest.raises(TypeError, match=r"`host` must be a training\.Host, got int"):
        fit(NET, DATA, RECIPE, host=2)


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (lambda loss, logits, given, after: loss, TypeError, "must return .* got JVPTracer|got"),
        (lambda loss, logits, given, after: (loss, logits, 3), TypeError, "got int for the passes"),
        (
            lambda loss, logits, given, after: (loss, logits, given),
            ValueError,
            "got the passes that it was given",
        ),
        (
            lambda loss, logits, given, after: (loss * logits[:, 0], logits, after),
            ValueError,
            r"a scalar and \[6, K\], got shapes \(6,\)",
        ),
    ],
    ids=["loss alone", "no passes", "passes before", "loss for each"],
)
def test_what_an_objective_returns_is_checked(returned, error, words):
    def objective(forward, images, adversarial, labels):
        loss, logits, after = CrossEntropy()(forward, images, adversarial, labels)
        return returned(loss, logits, forward, after)

    with pytest.raises(error, match="`objective` must return") as caught:
        run(objective=objective)
    assert re.search(words, str(caught.value))


def test_mistakes_that_would_train_something_else_are_refused():
    with pytest.raises(ValueError, match=r"`mean` must lie in \[0, 1\]"):
        run(dataclasses.replace(DATA, mean=125.0, std=60.0))
    with pytest.raises(TypeError, match="positional argument"):
        SGD(0.1)  # optax' first argument is the rate, here it would be the momentum
    with pytest.raises(TypeError, match="`adversary` must be an adversary that makes the images"):
        AWP(0.005)
    with pytest.raises(TypeError, match="`model` must be a linen module"):
        fit(lambda images: images, DATA, RECIPE)
    with pytest.raises(TypeError, match=r"such as Data\(train=\(images, labels\)"):
        fit(NET, DATA.train, RECIPE)
    with pytest.raises(TypeError, match="got tuple: the validation images belong in `Data`"):
        Recipe(validation=DATA.validation)


class Reshaped(nn.Module):
    """Logits of another shape."""

    shape: tuple[int, ...] | None

    @nn.compact
    def __call__(self, images, train=False):
        logits = nn.Dense(2)(images.reshape(len(images), -1))
        if self.shape is None:
            return logits, images
        return jnp.zeros((len(images), *self.shape)) + jnp.mean(logits)


class Folded(nn.Module):
    """Windows folded into the batch."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(2)(images.reshape(4 * len(images), -1))


@pytest.mark.parametrize(
    "model",
    [Reshaped((1, 1, 2)), Reshaped((4, 4, 2)), Reshaped((1,)), Reshaped(None), Folded()],
    ids=["[B, 1, 1, K]", "[B, 4, 4, K]", "[B, 1]", "two arrays", "windows"],
)
def test_what_is_no_logits_is_refused(tmp_path, model):
    with pytest.raises((TypeError, ValueError), match="`model` must return"):
        fit(model, DATA, RECIPE, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
