"""`fit` from end to end in this process: what it returns, writes, refuses and resumes."""

import dataclasses
import json
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from jaxrobust.attacks import PGD, engine
from jaxrobust.models import Classifier
from jaxrobust.training import (
    EMA,
    SGD,
    Constant,
    Data,
    Host,
    Plateau,
    Recipe,
    Validation,
    fit,
    initial_variables,
    load_run,
)
from jaxrobust.training.run import fit as fit_module
from jaxrobust.training.run import logs, loop
from jaxrobust.training.run.checkpoints import RunCheckpoints


class Linear(nn.Module):
    num_classes: int = 2

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def examples(count, seed=0):
    """Images whose brightness is their class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 100, (count, 2, 2, 1)) + 120 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


TRAIN, VALIDATION = examples(20), examples(10, seed=1)
RECIPE = Recipe(num_epochs=3, batch_size=6, schedule=Constant(0.1))


def quick_fit(recipe=RECIPE, train=TRAIN, validation=None, **arguments):
    data = Data(train, validation, mean=0.5, std=0.25)
    return fit(Linear(), data, recipe, progress=False, **arguments)


def same(left, right):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), left, right))


def test_initial_variables_are_those_that_fit_starts_from():
    start = initial_variables(Linear(), (2, 2, 1), RECIPE.seed)
    assert same(quick_fit().variables, quick_fit(variables=start).variables)
    other = initial_variables(Linear(), (2, 2, 1), RECIPE.seed + 1)
    assert not same(quick_fit().variables, quick_fit(variables=other).variables)


def test_ctrl_c_between_epochs_is_answered_before_the_next_one(tmp_path, monkeypatch):
    def pressed(*arguments):
        signal.raise_signal(signal.SIGINT)
        return monkeypatch.undo()

    monkeypatch.setattr(loop, "_check_finite", pressed)
    with pytest.raises(KeyboardInterrupt):
        quick_fit(run_dir=tmp_path)
    with RunCheckpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == (3,)  # the first epoch is saved, and no other was begun
    assert same(quick_fit(run_dir=tmp_path).variables, quick_fit().variables)


def test_learns_logs_and_returns_at_once_when_called_again(tmp_path):
    traces = []

    def count(key, images):
        traces.append(images.shape)
        return images

    recipe = dataclasses.replace(RECIPE, num_epochs=6, augmentation=count)
    arguments = {"run_dir": tmp_path, "validation": VALIDATION}
    result = quick_fit(recipe, **arguments)
    assert traces.count((6, 2, 2, 1)) == 1  # one compilation for all epochs
    assert result.history[-1]["validation_accuracy"] == 1.0
    assert [row["epoch"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert int(result.state.step) == result.history[-1]["step"] == 6 * 3
    assert result.seconds_per_epoch > 0 and len(result.timings) == 6
    assert logs.read_rows(tmp_path / "log.jsonl") == list(result.history)
    assert list(result.history[0]) == [
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "learning_rate",
        "gradient_norm",
        "validation_loss",
        "validation_accuracy",
    ]
    log = (tmp_path / "log.jsonl").read_bytes()
    again = quick_fit(recipe, **arguments)
    assert traces.count((6, 2, 2, 1)) == 1  # no step was even traced
    assert same(again.state, result.state) and again.history == result.history
    assert same(again.best_variables, result.best_variables)
    assert (tmp_path / "log.jsonl").read_bytes() == log


def test_validation_figures_are_those_of_the_returned_variables():
    result = quick_fit(validation=VALIDATION)
    images = (VALIDATION[0] / 255 - 0.5) / 0.25
    logits = Linear().apply(result.variables, jnp.float32(images))
    losses = -jax.nn.log_softmax(logits)[jnp.arange(10), VALIDATION[1]]
    np.testing.assert_allclose(result.history[-1]["validation_loss"], losses.mean(), rtol=1e-5)


def test_best_variables_are_those_of_the_best_epoch(tmp_path):
    # Far too fast to converge: the last epoch is not the best one.
    recipe = dataclasses.replace(RECIPE, optimizer=SGD(), schedule=Constant(30.0), num_epochs=4)
    result = quick_fit(recipe, run_dir=tmp_path, validation=VALIDATION)
    losses = [row["validation_loss"] for row in result.history]
    best = 1 + int(np.argmin(losses))
    assert result.best_epoch == best < 4
    shorter = quick_fit(
        dataclasses.replace(recipe, num_epochs=best),
        validation=VALIDATION,
        host=Host(checkpoint_every=9),
    )
    assert same(result.best_variables, shorter.variables)
    with RunCheckpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == (3 * best, 12)


def test_early_stopping_and_plateau(tmp_path):
    # The validation labels are wrong, so that the loss rises from the first epoch on.
    wrong = (VALIDATION[0], 1 - VALIDATION[1])
    recipe = dataclasses.replace(
        RECIPE,
        num_epochs=20,
        schedule=Plateau(0.1, factor=0.1, patience=0),
        validation=Validation(early_stopping_patience=3),
    )
    result = quick_fit(recipe, validation=wrong, run_dir=tmp_path)
    losses = [row["validation_loss"] for row in result.history]
    assert losses == sorted(losses)
    assert len(result.history) == 4 and result.best_epoch == 1
    assert [row["learning_rate"] for row in result.history] == pytest.approx([0.1, 0.1, 0.01, 1e-3])


def test_stops_on_nan_and_keeps_what_was_saved(tmp_path):
    def poison(key, images):
        return jnp.where(jax.random.uniform(key) < 0.3, jnp.nan, images)

    # Which epoch meets the first NaN depends on the keys alone; seed 0 has a finite first epoch.
    recipe = dataclasses.replace(RECIPE, num_epochs=30, augmentation=poison)
    for run_dir, kept in ((None, "no epoch was saved"), (tmp_path, "are from earlier epochs")):
        words = rf"diverged in epoch \d+: train_loss is nan.*{kept}"
        with pytest.raises(FloatingPointError, match=words):
            quick_fit(recipe, run_dir=run_dir)
    rows = logs.read_rows(tmp_path / "log.jsonl")
    assert rows
    with RunCheckpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step == rows[-1]["step"]


def test_ctrl_c_as_a_training_ends_says_whether_it_is_saved(tmp_path, monkeypatch):
    result = fit_module._result

    def pressed(*arguments):
        signal.raise_signal(signal.SIGINT)
        return result(*arguments)

    monkeypatch.setattr(fit_module, "_result", pressed)
    for run_dir, words in ((None, "Its result is lost"), (tmp_path, "is finished and saved")):
        with pytest.raises(KeyboardInterrupt, match=words):
            quick_fit(RECIPE, run_dir=run_dir)
    monkeypatch.setattr(fit_module, "_result", result)
    assert len(quick_fit(RECIPE, run_dir=tmp_path).history) == RECIPE.num_epochs
    with pytest.raises(ValueError, match="`run_dir` must be the path of a folder or None"):
        quick_fit(RECIPE, run_dir="")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hiding:
    """An adversary that paints every image over."""

    shade: float

    def memory(self, shape):
        return None

    def craft(self, batch, memory):
        return jnp.full_like(batch.images, self.shade)

    def step(self, batch, state, descend):
        state, metrics, _ = descend(state, self.craft(batch, state.adversary))
        return state, metrics


def test_adversarial_training_attacks_every_batch():
    recipe = dataclasses.replace(RECIPE, num_epochs=6)
    blind = quick_fit(dataclasses.replace(recipe, adversary=Hiding(0.5)))
    seeing = quick_fit(recipe)
    assert blind.history[-1]["train_loss"] > 0.6  # constant images: nothing to learn
    assert seeing.history[-1]["train_loss"] < 0.4


def test_validation_may_be_attacked(monkeypatch):
    monkeypatch.setattr(engine, "craft", lambda attack, key, logits_fn, images, labels: 1 - images)
    recipe = dataclasses.replace(RECIPE, num_epochs=6)
    by_attack = dataclasses.replace(recipe, validation=Validation(PGD()))
    attacked = quick_fit(by_attack, validation=VALIDATION)
    clean = quick_fit(recipe, validation=VALIDATION)
    inverted = quick_fit(recipe, validation=(255 - VALIDATION[0], VALIDATION[1]))
    assert same(attacked.variables, clean.variables)
    assert attacked.history[-1]["validation_loss"] == pytest.approx(
        inverted.history[-1]["validation_loss"], rel=1e-5
    )
    assert attacked.history[-1]["validation_accuracy"] < 0.2
    assert clean.history[-1]["validation_accuracy"] == 1.0


def test_fine_tuning_keeps_masked_weights_at_zero():
    variables = Linear().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    masks = {"Dense_0": {"kernel": jnp.array([[True, False]] * 4), "bias": jnp.ones(2, bool)}}
    result = quick_fit(variables=variables, masks=masks)
    kernel = result.variables["params"]["Dense_0"]["kernel"]
    assert np.all(kernel[:, 1] == 0) and np.all(kernel[:, 0] != 0)
    assert np.all(variables["params"]["Dense_0"]["kernel"] != 0)  # the caller's own are untouched
    with pytest.raises(ValueError, match="`masks`"):
        quick_fit(variables=variables, masks={"Dense_0": {"kernel": True}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"recipe": dataclasses.replace(RECIPE, schedule=Constant(0.2))},
            "recipe.schedule.learning_rate was 0.1, is now 0.2",
        ),
        ({"train": examples(20, seed=5)}, "train.images was"),
        ({"validation": VALIDATION}, "validation.images was absent"),
        (
            {"recipe": dataclasses.replace(RECIPE, augmentation=lambda key, images: images)},
            "recipe.augmentation was None",
        ),
    ],
    ids=["recipe", "data", "validation", "augmentation"],
)
def test_refuses_the_run_directory_of_other_settings(tmp_path, change, words):
    quick_fit(run_dir=tmp_path)
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=words):
        quick_fit(run_dir=tmp_path, **change)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_refuses_checkpoints_of_unknown_origin(tmp_path):
    quick_fit(run_dir=tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"no settings\.json that says what they belong to"):
        quick_fit(run_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"train": (TRAIN[0][:0], TRAIN[1][:0])},
            ValueError,
            "`train` must have at least one image",
        ),
        ({"train": (TRAIN[0], TRAIN[1][:5])}, ValueError, "`train` labels must have shape"),
        ({"train": (TRAIN[0], TRAIN[1] + 1)}, ValueError, "`train labels` must lie in 0 .. 1"),
        ({"train": (TRAIN[0], TRAIN[1] / 1)}, TypeError, "must be integers"),
        ({"train": (TRAIN[0] * 1.0, TRAIN[1])}, ValueError, "must lie in"),
        ({"train": TRAIN[0]}, TypeError, "must be a pair"),
        (
            {"validation": (VALIDATION[0][:, :1], VALIDATION[1])},
            ValueError,
            "like those of `train`",
        ),
        (
            {"recipe": Recipe(batch_size=21)},
            ValueError,
            "at most 20, the number of training images",
        ),
        (
            {"recipe": Recipe(batch_size=2, schedule=Plateau())},
            ValueError,
            "`data.validation` must not be None",
        ),
        (
            {"recipe": Recipe(batch_size=2, validation=Validation(early_stopping_patience=2))},
            ValueError,
            "`data.validation` must not be None",
        ),
        ({"recipe": "adamw"}, TypeError, "`recipe` must be a training.Recipe.* got str"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, arguments, error, words):
    with pytest.raises(error, match=words):
        quick_fit(run_dir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_mean_and_std_must_fit_the_channels():
    with pytest.raises(ValueError, match="`mean`"):
        fit(Linear(), Data(TRAIN, mean=(0.1, 0.2)), RECIPE)
    with pytest.raises(ValueError, match="`std`"):
        fit(Linear(), Data(TRAIN, std=0.0), RECIPE)


def test_pairs_of_arrays_are_no_data():
    with pytest.raises(TypeError, match="`data` must be a training.Data.* got tuple"):
        fit(Linear(), TRAIN, RECIPE)


@pytest.mark.parametrize("name", ["checkpoint_every", "num_devices"])
def test_numbers_of_the_host_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1"):
        Host(**{name: 0})


def test_checkpoint_names_what_differs(tmp_path):
    with RunCheckpoints(tmp_path) as checkpoints:
        tree = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        checkpoints.save(1, tree, {"note": [1]}, score=0.5, epoch=1)
        assert checkpoints.metadata(1) == {"note": [1]}
        wider = {"kernel": jnp.ones((2, 4)), "scale": jnp.ones(3)}
        with pytest.raises(ValueError, match=r"kernel was float32\[2, 3\], is now float32\[2, 4\]"):
            checkpoints.restore(1, wider)


def test_checkpoints_keep_the_latest_and_the_first_best(tmp_path):
    with RunCheckpoints(tmp_path) as checkpoints:
        for step, score in enumerate([3.0, 2.0, 2.0, 5.0], start=1):
            checkpoints.save(step, {"x": jnp.float32(step)}, {}, score=score, epoch=step)
        checkpoints.save(5, {"x": jnp.float32(5)}, {}, score=None, epoch=4)
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == (2, 5)
        assert float(checkpoints.restore(2, {"x": jnp.float32(0)})["x"]) == 2


def test_rows_round_trip_and_half_a_row_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert logs.read_rows(path) == []
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-30}]
    logs.write_rows(path, rows[:1])
    logs.append_row(path, rows[1])
    assert logs.read_rows(path) == rows
    with path.open("a") as file:
        file.write('{"epoch": 3, "lo')
    assert logs.read_rows(path) == rows


def test_tensorboard_is_written(tmp_path):
    quick_fit(run_dir=tmp_path / "a", host=Host(tensorboard=True))
    assert list((tmp_path / "a" / "tensorboard").glob("events*"))


def test_progress_is_a_line_per_epoch_where_there_is_no_terminal(capsys):
    fit(Linear(), Data(TRAIN), RECIPE)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_settings_file_is_json_without_addresses(tmp_path):
    recipe = dataclasses.replace(RECIPE, augmentation=lambda key, images: images)
    quick_fit(recipe, run_dir=tmp_path)
    text = (tmp_path / "settings.json").read_text()
    assert json.loads(text)["recipe"]["num_epochs"] == 3
    assert "0x" not in text


def test_adversarial_training_with_a_real_attack(tmp_path):
    """One feature is strong and fragile, the other weak and beyond the attack's reach.

    Clean training leans on the first; under PGD it is worthless, and only the second is left.
    """
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 256)
    sign = 2 * labels - 1
    fragile = 0.5 + 0.1 * sign  # always right, and flipped by epsilon .2
    sturdy = 0.5 + 0.4 * sign * np.where(
        generator.random(256) < 0.9, 1, -1
    )  # right for nine in ten
    images = np.stack([fragile, sturdy], axis=1).reshape(256, 1, 2, 1).astype(np.float32)
    data = Data((images, labels), mean=0.5, std=0.25)
    recipe = Recipe(num_epochs=12, batch_size=32, schedule=Constant(0.1))
    attack = PGD(epsilon=0.2, step_size=0.05, num_steps=8)

    def train(name, teacher):
        attacked = dataclasses.replace(recipe, adversary=teacher)
        return fit(Linear(), data, attacked, run_dir=tmp_path / name, progress=False)

    def accuracies(result):
        classifier = Classifier(Linear().apply, result.variables, 0.5, 0.25)
        found = attack(jax.random.key(1), classifier, jnp.asarray(images), jnp.asarray(labels))
        clean = (jnp.argmax(classifier(images), axis=1) == labels).mean()
        return float(clean), 1 - float(found.success.mean())

    standard, robust = accuracies(train("standard", None)), accuracies(train("robust", attack))
    assert standard[0] > 0.99 and standard[1] < 0.05
    assert robust[1] > 0.85
    # The attack is one of the run's settings, and the same one finds the finished run again.
    again = train("robust", attack)
    assert accuracies(again) == robust
    with pytest.raises(ValueError, match=r"recipe.adversary.epsilon was 0.2, is now 0.1"):
        train("robust", dataclasses.replace(attack, epsilon=0.1))


@pytest.mark.parametrize("edited", ["model", "augmentation"])
def test_an_edited_function_is_another_setting(tmp_path, edited):
    """Under the same name: what a user does who changes a line and runs the script again."""

    def fit_with(activation, strength):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, images, train=False):
                return nn.Dense(2)(activation(images).reshape(len(images), -1))

        def augment(key, images):
            return images * strength

        recipe = dataclasses.replace(RECIPE, augmentation=augment)
        return fit(Net(), Data(TRAIN), recipe, run_dir=tmp_path, progress=False)

    fit_with(nn.relu, 0.5)
    fit_with(nn.relu, 0.5)
    with pytest.raises(ValueError, match=f"programs.{edited} was"):
        fit_with(*((jnp.tanh, 0.5) if edited == "model" else (nn.relu, 0.6)))


def test_says_where_it_goes_on(tmp_path, capsys):
    data = Data(TRAIN, mean=0.5, std=0.25)
    fit(Linear(), data, RECIPE, run_dir=tmp_path)
    assert "Resuming" not in capsys.readouterr().err
    fit(Linear(), data, RECIPE, run_dir=tmp_path)
    assert "The run is already finished: its result is read from" in capsys.readouterr().err


def test_a_targeted_attack_cannot_train():
    with pytest.raises(ValueError, match="`adversary` must be untargeted"):
        dataclasses.replace(RECIPE, adversary=PGD(targeted=True))
    with pytest.raises(ValueError, match="`validation.attack` must be untargeted"):
        Validation(PGD(targeted=True))


class Dotted(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        hidden = nn.Dense(3, name="a.b")(images.reshape(len(images), -1))
        return nn.Dense(2, name="head/x%2E")(nn.Dense(3, name="a")(hidden))


def test_names_with_dots_and_slashes_come_back(tmp_path):
    recipe = dataclasses.replace(RECIPE, averaging=EMA(0.9))
    fitted = fit(Dotted(), Data(TRAIN), recipe, run_dir=tmp_path / "run", progress=False)
    assert same(load_run(tmp_path / "run")[0], fitted.variables)
    again = fit(Dotted(), Data(TRAIN), recipe, run_dir=tmp_path / "run", progress=False)
    assert same(again.state, fitted.state)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "frozen", "boxed"])
def test_weights_of_any_kind_are_trained_on(tmp_path, kind):
    start = {"params": {"Dense_0": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}}
    masks = jax.tree.map(lambda leaf: leaf >= 0, start["params"])
    given = {
        "frozen": lambda: FrozenDict(start),
        "boxed": lambda: jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,)), start),
    }.get(kind, lambda: jax.tree.map(lambda leaf: leaf.astype(kind), start))()
    result = quick_fit(variables=given, masks=FrozenDict(masks), run_dir=tmp_path)
    assert same(result.state, quick_fit(variables=start, masks=masks).state)
    assert same(quick_fit(variables=given, masks=masks, run_dir=tmp_path).state, result.state)
