"""Methods of adversarial training against closed forms: what crafts, and how a step is taken."""

import dataclasses
import signal
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrobust import compilation, evaluation
from jaxrobust.attacks import PGD, Attack, DeepFool
from jaxrobust.models import Classifier
from jaxrobust.training import (
    AWP,
    EMA,
    NFGSM,
    TRADES,
    AttackSchedule,
    Constant,
    CrossEntropy,
    Data,
    FreeReplays,
    KLAscent,
    Network,
    Recipe,
    Validation,
    Warmup,
    create_state,
    fit,
    train_step,
)
from jaxrobust.training.run import compiled_steps
from jaxrobust.training.step import adversaries
from jaxrobust.training.step.adversaries import Batch, as_adversary, scaled
from jaxrobust.training.step.objectives import divergence
from jaxrobust.training.step.weight_perturbation import weight_perturbation

WEIGHTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (4, 2, 2, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])
KEY = jax.random.key(0)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def craft(attack, key, logits_fn, images, labels):
    return as_adversary(attack).craft(Batch(images, labels, key, logits_fn), None)


class Linear(nn.Module):
    """A dense layer; with BatchNorm, its statistics are seen to be kept."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.BatchNorm(use_running_average=not train, name="bn")(images)
        return nn.Dense(3, name="dense")(features.reshape(len(images), -1))


def test_n_fgsm_steps_from_wide_noise_and_is_not_brought_back():
    attack = NFGSM(epsilon=0.05, noise_scale=2.0, step_scale=1.5)
    points = np.asarray(craft(attack, KEY, linear, IMAGES, LABELS))
    # Where a linear network's gradient points depends on the point's probabilities alone.
    still = dataclasses.replace(attack, step_scale=0.0)
    noise = np.asarray(craft(still, KEY, linear, IMAGES, LABELS))
    assert 0.05 < np.abs(noise - IMAGES).max() <= 0.1 + 1e-6
    probabilities = jax.nn.softmax(linear(noise)) - np.eye(3)[LABELS]
    gradient = np.asarray(probabilities @ WEIGHTS.T).reshape(IMAGES.shape)
    np.testing.assert_allclose(points, noise + 1.5 * 0.05 * np.sign(gradient), atol=1e-6)
    assert np.abs(points - IMAGES).max() > 0.1  # beyond the ball


def test_kl_ascent_leaves_the_clean_answer_and_knows_no_label():
    attack = KLAscent(epsilon=0.05, step_size=0.02, num_steps=10)
    points = craft(attack, KEY, linear, IMAGES, LABELS)
    other = craft(attack, KEY, linear, IMAGES, (LABELS + 1) % 3)
    np.testing.assert_array_equal(points, other)
    assert np.abs(points - IMAGES).max() <= 0.05 + 1e-6
    apart = jax.vmap(divergence)(linear(IMAGES), linear(points))
    # On a linear network the steps hardly turn: nearly every pixel goes as far as it may.
    assert np.mean(np.abs(points - IMAGES) > 0.05 - 1e-5) > 0.9
    signs = np.random.default_rng(2).choice([-1, 1], (200, *IMAGES.shape))
    for corner in signs:
        moved = jax.vmap(divergence)(linear(IMAGES), linear(IMAGES + 0.05 * corner))
        assert (np.asarray(apart) > np.asarray(moved) - 1e-4).mean() > 0.7
    l2 = craft(dataclasses.replace(attack, norm="l2"), KEY, linear, IMAGES, LABELS)
    lengths = np.linalg.norm((l2 - IMAGES).reshape(4, -1), axis=1)
    np.testing.assert_allclose(lengths, 0.05, rtol=1e-4)


def test_a_scaled_attack_is_shorter_in_every_length():
    half = scaled(PGD(0.1, 0.02, num_steps=3), jnp.float32(0.5))
    assert (float(half.epsilon), float(half.step_size)) == pytest.approx((0.05, 0.01))
    assert float(scaled(FreeReplays(0.1), 0.5).epsilon) == pytest.approx(0.05)
    assert scaled(NFGSM(0.1), 0.5).noise_scale == 2.0  # counted in epsilon


def test_weights_are_perturbed_by_a_share_of_their_length():
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0])}
    gradients = {"kernel": jnp.array([[0.0, -2.0]]), "bias": jnp.array([5.0])}
    step = weight_perturbation(params, gradients, 0.01)
    np.testing.assert_allclose(step["kernel"], [[0.0, -0.05]], rtol=1e-5)
    np.testing.assert_array_equal(step["bias"], [0.0])


def stepped(adversary=None, masks=None, before=None):
    """(the state before, what a step of plain gradient descent makes of it)."""
    network = Linear()
    recipe = Recipe(batch_size=4, optimizer=optax.sgd, schedule=Constant(0.1), adversary=adversary)
    state = before
    if state is None:
        state = create_state(network.init(KEY, IMAGES), recipe, image_shape=(2, 2, 3))
    return state, train_step(
        state,
        (IMAGES, LABELS),
        jax.random.key(1),
        network=Network(network),
        recipe=recipe,
        steps_per_epoch=1,
        masks=masks,
    )


def gradient_at(params, statistics, images):
    def loss(params):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = Linear().apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    return jax.grad(loss)(params)


def descended(state, images, added=None):
    """The parameters after a step along the gradient of the weights with something added to them."""
    params = state.params if added is None else jax.tree.map(jnp.add, state.params, added)
    gradients = gradient_at(params, state.batch_stats, images)
    return jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)


def perturbation_of(state, images=IMAGES, masks=None):
    uphill = gradient_at(state.params, state.batch_stats, images)
    if masks is not None:
        uphill = jax.tree.map(lambda mask, leaf: jnp.where(mask, leaf, 0), masks, uphill)
    return weight_perturbation(state.params, uphill, 0.05)


def assert_trees_close(actual, expected, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), actual, expected)


def test_with_awp_the_gradient_is_that_of_the_perturbed_weights():
    state, (after, _) = stepped(AWP(gamma=0.05))
    assert_trees_close(after.params, descended(state, IMAGES, perturbation_of(state)))
    # In the epochs of its warm-up the weights are where they are; one epoch is one step here.
    late = AWP(gamma=0.05, warmup_epochs=1)
    _, (same, _) = stepped(late)
    _, (plain, _) = stepped()
    assert_trees_close(same.params, plain.params, atol=1e-7)
    _, (second, _) = stepped(late, before=plain)
    _, (perturbed, _) = stepped(AWP(gamma=0.05), before=plain)
    jax.tree.map(np.testing.assert_array_equal, second.params, perturbed.params)


def test_awp_goes_beside_the_attack_that_makes_the_images():
    attack = PGD(0.05, 0.02, num_steps=3)
    state, (after, _) = stepped(AWP(attack, gamma=0.05))
    classifier = Classifier(Linear().apply, state.variables)
    points = craft(attack, jax.random.split(jax.random.key(1), 3)[1], classifier, IMAGES, LABELS)
    assert_trees_close(after.params, descended(state, points, perturbation_of(state, points)))


def test_pruned_weights_are_not_perturbed():
    masks = {
        "bn": {"scale": np.ones(3, bool), "bias": np.ones(3, bool)},
        "dense": {"kernel": np.arange(36).reshape(12, 3) % 2 == 0, "bias": np.ones(3, bool)},
    }
    _, (after, _) = stepped(AWP(gamma=0.05), masks)
    assert (after.params["dense"]["kernel"][~masks["dense"]["kernel"]] == 0).all()
    # The gradient is that of the pruned network's neighbour, and is as long as that of the weights that
    # stay says.
    state, _ = stepped()
    added = perturbation_of(state, masks=masks)
    expected = jax.tree.map(lambda m, p: jnp.where(m, p, 0), masks, descended(state, IMAGES, added))
    assert_trees_close(after.params, expected)


def test_free_training_moves_weights_and_perturbation_by_one_gradient():
    attack = FreeReplays(epsilon=0.05, num_replays=1)
    before, (after, _) = stepped(attack)
    plain_before, (plain, _) = stepped()
    # The first perturbation is zero, so the weights take the step of clean training ...
    assert_trees_close(after.params, plain.params)
    # ... and the perturbation that of FGSM on the network before it, in training mode.
    assert set(np.unique(np.abs(np.asarray(after.adversary)).round(6))) == {np.float32(0.05)}
    _, (longer, metrics) = stepped(dataclasses.replace(attack, num_replays=2))
    assert_trees_close(longer.params, descended(after, IMAGES + after.adversary))
    assert int(longer.step) == int(after.step) == 1
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="the state has no memory of an adversary"):
        stepped(attack, before=plain_before)
    with pytest.raises(ValueError, match="the state has a memory of an adversary"):
        stepped(before=before)
    with pytest.raises(ValueError, match="give `image_shape`"):
        create_state(before.variables, Recipe(adversary=attack))


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        (AWP, {"gamma": -1.0}, "`gamma` must be a finite number above 0"),
        (AWP, {"warmup_epochs": -1}, "`warmup_epochs` must be at least 0"),
        (partial(Warmup, PGD()), {"warmup_epochs": -1}, "`warmup_epochs` must be at least 1"),
        (
            partial(Warmup, DeepFool()),
            {"warmup_epochs": 1},
            "with an epsilon, which it increases, got DeepFool",
        ),
        (partial(scaled, DeepFool()), {"scale": 0.5}, "needs an attack with an epsilon"),
        (partial(Recipe, 2), {"adversary": Warmup(PGD(), 3)}, "of Warmup must be at most .* = 2"),
        (partial(Recipe, 2), {"adversary": AWP(PGD(), 0.1, 3)}, "of AWP must be at most .* = 2"),
    ],
)
def test_settings_out_of_range(value, settings, message):
    with pytest.raises(ValueError, match=message):
        value(**settings)


def test_what_is_no_adversary():
    for none in ("pgd", PGD, CrossEntropy()):
        with pytest.raises(TypeError, match="`adversary` must be an attack such as"):
            Recipe(adversary=none)
    with pytest.raises(TypeError, match="Attack is not an attack: it lacks norm, .*, init, ask,"):
        Recipe(adversary=Attack())
    with pytest.raises(TypeError, match="`adversary` must be an adversary that makes the images"):
        AWP(AWP(PGD()))


def examples(count, seed):
    """Three classes: which of three columns of pixels is the brightest."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.integers(60, 120, (count, 3, 3, 1))
    images[np.arange(count), :, labels] += 60
    return images.astype(np.uint8), labels


DATA = Data(train=examples(96, 0), validation=examples(30, 1), mean=0.4, std=0.2)
RECIPE = Recipe(num_epochs=6, batch_size=16, schedule=Constant(0.05))
replace = dataclasses.replace


class Hidden(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.relu(nn.Dense(16)(images.reshape(len(images), -1)))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(features))


def trained(recipe=RECIPE, **options):
    return fit(Hidden(), DATA, recipe, **({"progress": False} | options))


@pytest.mark.parametrize(
    ("adversary", "settings"),
    [
        (PGD(0.05, 0.0625, num_steps=1), {}),  # FGSM-RS
        (NFGSM(0.05), {}),
        (FreeReplays(0.05, num_replays=3), {}),
        (AWP(PGD(0.05, 0.02, num_steps=3), 0.005), {"objective": CrossEntropy(natural_weight=0.1)}),
        (KLAscent(0.05, 0.02, num_steps=3), {"objective": TRADES(), "averaging": EMA(0.9)}),
        (Warmup(PGD(0.05, 0.02, num_steps=3), 2), {"precision": "bfloat16"}),
    ],
    ids=["fgsm-rs", "n-fgsm", "free", "weighted-awp", "trades-ema", "warmup-bfloat16"],
)
def test_every_method_learns_what_withstands_an_attack(adversary, settings, tmp_path):
    validation = Validation(attack=PGD(0.05, 0.02, num_steps=5))
    recipe = replace(RECIPE, adversary=adversary, validation=validation, **settings)
    result = trained(recipe, run_dir=tmp_path)
    assert result.history[-1]["validation_accuracy"] > 0.85
    again = trained(recipe, run_dir=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)


def test_what_only_trains_does_not_measure():
    with pytest.raises(TypeError, match="`validation.attack` must be an attack.*got FreeReplays"):
        Validation(attack=FreeReplays(0.05))
    classifier = partial(jnp.dot, b=WEIGHTS)
    with pytest.raises(ValueError, match="KLAscent needs the logits of the clean image"):
        evaluation.attack_dataset(
            KLAscent(0.05, 0.02, 2),
            lambda x: classifier(x.reshape(len(x), -1)),
            IMAGES,
            LABELS,
            key=KEY,
        )
    # In training it is given them, also where it validates.
    validation = Validation(attack=KLAscent(0.05, 0.02, 3))
    result = trained(replace(RECIPE, adversary=PGD(0.05, 0.02), validation=validation))
    assert 0 < result.history[-1]["validation_accuracy"] <= 1


def spied(monkeypatch, seen):
    """Lists the attacks of the steps, and returns the list of those that were compiled."""
    crafted, traced = adversaries.engine.craft, []

    def spy(attack, *arguments):
        traced.append(attack.num_steps)
        jax.debug.callback(
            lambda epsilon: seen.append((attack.num_steps, float(epsilon))),
            attack.epsilon,
            ordered=True,
        )
        return crafted(attack, *arguments)

    monkeypatch.setattr(adversaries.engine, "craft", spy)
    return traced


GROWING = AttackSchedule(((1, PGD(0.02, 0.01, num_steps=2)), (2, PGD(0.06, 0.02, num_steps=2))))


@pytest.mark.parametrize(
    ("adversary", "first"),
    [
        (Warmup(PGD(0.06, 0.02, num_steps=2), warmup_epochs=2), 0.06),
        (AWP(Warmup(GROWING, warmup_epochs=2), gamma=0.01), 0.02),
    ],
    ids=["one attack", "a schedule beside perturbed weights"],
)
def test_the_attack_grows_over_its_warm_up(monkeypatch, adversary, first):
    seen = []
    spied(monkeypatch, seen)
    trained(replace(RECIPE, num_epochs=3, adversary=adversary, seed=7))
    jax.effects_barrier()
    full = [first] * 6 + [0.06] * 12
    expected = [full[step] * min(1, (step + 1) / 12) for step in range(18)]
    np.testing.assert_allclose([epsilon for _, epsilon in seen], expected, rtol=1e-5)


def test_a_schedule_attacks_as_its_stages_say(monkeypatch, tmp_path):
    """Each stage from its epoch on; those that differ in numbers share a program; resumable."""
    seen = []
    traced = spied(monkeypatch, seen)
    stages = (1, PGD(0.01, 0.01)), (2, PGD(0.03, 0.01)), (4, PGD(0.03, 0.01, num_steps=3))
    recipe = replace(RECIPE, num_epochs=4, adversary=AttackSchedule(stages), seed=11)
    result = trained(recipe)
    jax.effects_barrier()
    one = PGD().num_steps
    expected = 6 * [(one, 0.01)] + 12 * [(one, 0.03)] + 6 * [(3, 0.03)]
    assert [steps for steps, _ in seen] == [steps for steps, _ in expected]
    np.testing.assert_allclose([e for _, e in seen], [e for _, e in expected], rtol=1e-6)
    assert sorted(traced) == [3, one]
    # Stopped in the second stage, it goes on with the attack of that epoch, and compiles no other.
    saved = compiled_steps.compile_programs
    folder = tmp_path / "stopped"

    def stopping(*arguments):
        programs = saved(*arguments)
        calls = iter(range(9))

        def train_batches(*batch):
            if next(calls, None) is None:
                signal.raise_signal(signal.SIGINT)
            return programs.train_batches(*batch)

        return programs._replace(train_batches=train_batches)

    monkeypatch.setattr(compiled_steps, "compile_programs", stopping)
    with pytest.raises(KeyboardInterrupt, match="Interrupted in epoch 2.* nothing is saved"):
        trained(recipe)
    with pytest.raises(KeyboardInterrupt, match="Interrupted in epoch 2.* saved in"):
        trained(recipe, run_dir=folder)
    monkeypatch.setattr(compiled_steps, "compile_programs", saved)
    jax.effects_barrier()
    seen.clear()
    traced.clear()
    jax.clear_caches()
    again = trained(recipe, run_dir=folder)
    jax.effects_barrier()
    assert [steps for steps, _ in seen] == [steps for steps, _ in expected[10:]]
    assert sorted(traced) == [3, one]
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    with pytest.raises(ValueError, match=r"stages\.2\.0 was 4, is now absent"):
        trained(replace(recipe, adversary=AttackSchedule(stages[:2])), run_dir=folder)


def test_a_schedule_that_cannot_be_is_refused():
    attack = PGD(0.05, 0.02)
    for stages in (
        ((2, attack),),
        ((1, attack), (1, attack)),
        ((1, attack), (3, attack), (2, attack)),
        (),
    ):
        with pytest.raises(ValueError, match="`stages` must begin with epoch 1 and ascend"):
            AttackSchedule(stages)
    for wrong in (attack, (attack, attack), [(1, attack)]):
        with pytest.raises(TypeError, match="`stages` must be a tuple of pairs"):
            AttackSchedule(wrong)
    for none in (FreeReplays(0.05), "pgd", None, AttackSchedule(((1, attack),))):
        with pytest.raises(TypeError, match=r"`stages\[0\]\[1\]` must be an attack such as .* got"):
            AttackSchedule(((1, none),))
    with pytest.raises(ValueError, match=r"`stages\[0\]\[0\]` must be at least 1"):
        AttackSchedule(((0, attack),))
    with pytest.raises(ValueError, match=r"got an AttackSchedule: use `recipe.at\(epoch\)`"):
        stepped(AttackSchedule(((1, attack),)))
    late = AttackSchedule(((1, attack), (RECIPE.num_epochs + 1, attack)))
    with pytest.raises(ValueError, match="has a stage that starts at epoch .* after `num_epochs`"):
        replace(RECIPE, adversary=late)
    aimed = PGD(0.05, 0.02, targeted=True)
    with pytest.raises(ValueError, match="must be untargeted"):
        AttackSchedule(((1, attack), (2, aimed)))
    with pytest.raises(ValueError, match="`adversary` must be untargeted"):
        replace(RECIPE, adversary=aimed)
    with pytest.raises(ValueError, match="`validation.attack` must be untargeted"):
        Validation(attack=aimed)
    with pytest.raises(TypeError, match="`validation.attack` must be an attack"):
        Validation(attack=AttackSchedule(((1, attack),)))


def test_catastrophic_overfitting_is_said_and_the_best_epoch_kept(monkeypatch, capsys):
    rows = iter([(0.5, 40), (0.5, 60), (0.5, 70), (0.5, 20), (0.5, 10), (0.5, 60)])

    def evaluate(*_):
        def one(variables):
            loss, correct = next(rows)
            return {"loss": 100 * loss, "correct": correct, "count": 100}

        return one

    monkeypatch.setattr("jaxrobust.training.run.compiled_steps.compile_evaluation", evaluate)
    validation = Validation(attack=PGD(0.05, 0.02), monitor="validation_accuracy")
    recipe = replace(RECIPE, adversary=NFGSM(0.05), validation=validation)
    result = trained(recipe, progress=True)
    said = capsys.readouterr()
    assert (said.out + said.err).count("Catastrophic overfitting") == 1
    assert "Catastrophic overfitting in epoch 4" in said.out + said.err
    assert result.best_epoch == 3 and result.catastrophic_epoch == 4
    # A network that is not trained against an attack has nothing to overfit to.
    rows = iter([(0.5, 40), (0.5, 60), (0.5, 70), (0.5, 20), (0.5, 10), (0.5, 60)])
    clean = trained(replace(recipe, adversary=None), progress=True)
    assert clean.catastrophic_epoch is None
    assert "Catastrophic" not in "".join(capsys.readouterr())


def test_an_epoch_in_one_program_is_the_same_training(monkeypatch):
    recipe = replace(RECIPE, adversary=PGD(0.05, 0.02, num_steps=2), seed=3)
    stepwise = trained(recipe)
    monkeypatch.setattr(compilation, "loops_are_fast", lambda: True)
    looped = trained(recipe)
    for one, other in zip(stepwise.history, looped.history, strict=True):
        assert one["step"] == other["step"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    assert_trees_close(stepwise.variables, looped.variables, atol=1e-3)
