"""Methods of adversarial training against closed forms: what crafts, what is descended, and how."""

import dataclasses
import functools
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params
from small_networks import SMALL

from jaxrobust import compilation, evaluation, models
from jaxrobust.attacks import PGD, DeepFool
from jaxrobust.models import Classifier
from jaxrobust.training import (
    NFGSM,
    AttackSchedule,
    FreeReplays,
    KLAscent,
    Objective,
    TrainConfig,
    create_state,
    fit,
    train_step,
)
from jaxrobust.training import programs as programs_module
from jaxrobust.training import step as step_module
from jaxrobust.training.adversaries import craft, divergence, scaled
from jaxrobust.training.objectives import make_forward, weight_perturbation

WEIGHTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
IMAGES = np.random.default_rng(1).uniform(0.3, 0.7, (4, 2, 2, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1])
KEY = jax.random.key(0)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


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


def test_divergence_is_that_of_the_distributions():
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    p, q = (np.exp(x) / np.exp(x).sum() for x in (first, second))
    expected = (p * np.log(p / q)).sum()
    np.testing.assert_allclose(
        divergence(jnp.float32(first), jnp.float32(second)), expected, rtol=1e-4
    )
    assert float(divergence(jnp.float32(first), jnp.float32(first))) == 0


def test_a_scaled_attack_is_shorter_in_every_length():
    half = scaled(PGD(0.1, 0.02, num_steps=3), jnp.float32(0.5))
    assert (float(half.epsilon), float(half.step_size)) == pytest.approx((0.05, 0.01))
    assert float(scaled(FreeReplays(0.1), 0.5).epsilon) == pytest.approx(0.05)
    assert scaled(NFGSM(0.1), 0.5).noise_scale == 2.0  # counted in epsilon


def objective_parts(objective):
    """(value, and by numpy) on a network whose BatchNorm has been given its statistics."""
    network = Linear()
    variables = network.init(KEY, IMAGES)
    adversarial = np.clip(IMAGES + 0.1, 0, 1)
    forward = make_forward(network.apply, 0.0, 1.0, KEY, "float32")
    value, (logits, statistics) = objective(
        forward, variables["params"], variables["batch_stats"], IMAGES, adversarial, LABELS
    )

    def logits_of(images):
        return network.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    np.testing.assert_allclose(logits, logits_of(adversarial), rtol=1e-5)
    entropy = lambda x: optax.softmax_cross_entropy_with_integer_labels(x, LABELS).mean()  # noqa: E731
    clean, other = logits_of(IMAGES), logits_of(adversarial)
    apart = jax.vmap(divergence)(clean, other).mean()
    passes = float(statistics["bn"]["mean"].sum() / (0.01 * IMAGES.mean((0, 1, 2)).sum()))
    return float(value), float(entropy(clean)), float(entropy(other)), float(apart), passes


def test_the_losses_are_those_of_their_papers():
    value, clean, other, apart, _ = objective_parts(Objective())
    assert value == pytest.approx(other, rel=1e-5)
    value, clean, other, _, _ = objective_parts(Objective(natural_weight=0.1))
    assert value == pytest.approx(0.9 * other + 0.1 * clean, rel=1e-5)
    value, clean, _, apart, passes = objective_parts(Objective("trades", trades_beta=6.0))
    assert value == pytest.approx(clean + 6 * apart, rel=1e-5)
    assert passes > 1.9  # the running statistics saw both kinds of images


def test_weights_are_perturbed_by_a_share_of_their_length():
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0])}
    gradients = {"kernel": jnp.array([[0.0, -2.0]]), "bias": jnp.array([5.0])}
    step = weight_perturbation(params, gradients, 0.01)
    np.testing.assert_allclose(step["kernel"], [[0.0, -0.05]], rtol=1e-5)
    np.testing.assert_array_equal(step["bias"], [0.0])


def stepped(attack=None, perturbed=None, **options):
    network = Linear()
    sgd = optax.sgd(0.1)
    state = create_state(network.init(KEY, IMAGES), sgd, perturbed=perturbed)
    return state, train_step(
        state,
        (IMAGES, LABELS),
        jax.random.key(1),
        apply_fn=network.apply,
        optimizer=sgd,
        schedule=lambda step: 0.1,
        attack=attack,
        **options,
    )


def gradient_at(params, statistics, images):
    def loss(params):
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = Linear().apply(variables, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    return jax.grad(loss)(params)


def test_with_awp_the_gradient_is_that_of_the_perturbed_weights():
    state, (after, _) = stepped(awp_gamma=0.05)
    uphill = gradient_at(state.params, state.batch_stats, IMAGES)
    moved = jax.tree.map(jnp.add, state.params, weight_perturbation(state.params, uphill, 0.05))
    gradients = gradient_at(moved, state.batch_stats, IMAGES)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, expected)
    _, (same, _) = stepped(awp_gamma=0.0)
    _, (plain, _) = stepped()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), same.params, plain.params
    )


def test_pruned_weights_are_not_perturbed():
    masks = {
        "bn": {"scale": np.ones(3, bool), "bias": np.ones(3, bool)},
        "dense": {"kernel": np.arange(36).reshape(12, 3) % 2 == 0, "bias": np.ones(3, bool)},
    }
    _, (after, _) = stepped(awp_gamma=0.05, masks=masks)
    assert (after.params["dense"]["kernel"][~masks["dense"]["kernel"]] == 0).all()
    # The gradient is that of the pruned network's neighbour.
    state, _ = stepped()
    added = jax.tree.map(lambda m, v: jnp.where(m, v, 0), masks, perturbation_of(state))
    moved = jax.tree.map(jnp.add, state.params, added)
    gradients = gradient_at(moved, state.batch_stats, IMAGES)
    expected = state.params["dense"]["bias"] - 0.1 * gradients["dense"]["bias"]
    np.testing.assert_allclose(after.params["dense"]["bias"], expected, atol=1e-6)


def perturbation_of(state):
    uphill = gradient_at(state.params, state.batch_stats, IMAGES)
    return weight_perturbation(state.params, uphill, 0.05)


def test_free_training_moves_weights_and_perturbation_by_one_gradient():
    attack = FreeReplays(epsilon=0.05, num_replays=1)
    _, (after, _) = stepped(attack, IMAGES.shape)
    _, (plain, _) = stepped()
    # The first perturbation is zero, so the weights take the step of clean training ...
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(close, after.params, plain.params)
    # ... and the perturbation that of FGSM on the network before it, in training mode.
    assert set(np.unique(np.abs(np.asarray(after.perturbation)).round(6))) == {np.float32(0.05)}
    _, (longer, metrics) = stepped(dataclasses.replace(attack, num_replays=2), IMAGES.shape)
    gradients = gradient_at(after.params, after.batch_stats, IMAGES + after.perturbation)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, after.params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), longer.params, expected)
    assert int(longer.step) == int(after.step) == 1
    assert float(metrics["learning_rate"]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="FreeReplays and a state with a perturbation"):
        stepped(attack)


CONVOLUTIONS = models.create("resnet_small", 3, stage_sizes=(1, 1), widths=(4, 6))


def convolution_types(function, *arguments):
    """The types of what every convolution in a program is made of."""
    found = set()

    def search(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "conv_general_dilated":
                found.update(str(v.aval.dtype) for v in equation.invars)
            for inner in jaxprs_in_params(equation.params):
                search(inner)

    search(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("compute_type", ["float32", "bfloat16"])
def test_bfloat16_computes_the_passes_and_keeps_nothing(compute_type):
    attack = PGD(0.03, 0.01, num_steps=2)
    sgd = optax.sgd(0.1)
    state = create_state(CONVOLUTIONS.init(KEY, jnp.ones((1, 8, 8, 3))), sgd)
    batch = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32), LABELS

    def step(state, batch):
        return train_step(
            state,
            batch,
            KEY,
            apply_fn=CONVOLUTIONS.apply,
            optimizer=sgd,
            schedule=lambda step: 0.1,
            attack=attack,
            compute_type=compute_type,
        )

    assert convolution_types(step, state, batch) == {compute_type}
    after, metrics = jax.jit(step)(state, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.variables))
    assert metrics["loss"].dtype == jnp.float32 and np.isfinite(metrics["loss"])
    assert float(metrics["loss"]) == pytest.approx(float(stepped_loss(batch)), rel=0.05)


def stepped_loss(batch):
    """The loss of the step above, in float32."""
    variables = CONVOLUTIONS.init(KEY, jnp.ones((1, 8, 8, 3)))
    classifier = Classifier(CONVOLUTIONS.apply, variables)
    key = jax.random.split(KEY, 3)[1]
    adversarial = craft(PGD(0.03, 0.01, num_steps=2), key, classifier, *batch)
    logits, _ = CONVOLUTIONS.apply(variables, adversarial, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@pytest.mark.parametrize("name", ["resnet_small", "mobilenet_v2", "densenet121"])
def test_a_classifier_of_rounded_weights_computes_in_their_type(name):
    network = models.create(name, **SMALL[name])
    images = jnp.ones((1, 32, 32, 3))
    variables = jax.eval_shape(network.init, KEY, images)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), variables)
    classifier = functools.partial(Classifier, network.apply, mean=0.5, std=0.2)
    types = convolution_types(lambda v, x: classifier(v)(x), half, images.astype(jnp.bfloat16))
    assert types == {"bfloat16"}


def test_names_that_there_are_not():
    with pytest.raises(ValueError, match="`loss` must be one of .* got 'trade'"):
        stepped(objective=Objective("trade"))
    with pytest.raises(ValueError, match="`compute_type` must be one of"):
        stepped(compute_type="float16")
    with pytest.raises(ValueError, match="needs an attack with an epsilon, got DeepFool"):
        scaled(DeepFool(), 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "mart"}, "`loss` must be one of"),
        ({"natural_weight": 1.0}, "`natural_weight` must be in"),
        (
            {"loss": "trades", "natural_weight": 0.1},
            '`natural_weight` is of the loss "cross_entropy"',
        ),
        ({"trades_beta": 0.0}, "`trades_beta` must be a finite number above 0"),
        ({"awp_gamma": -1.0}, "`awp_gamma` must be a finite number at least 0"),
        ({"compute_type": "float16"}, "`compute_type` must be one of"),
        ({"attack_warmup_epochs": -1}, "`attack_warmup_epochs` must be at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def examples(count, seed):
    """Three classes: which of three columns of pixels is the brightest."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = random.integers(60, 120, (count, 3, 3, 1))
    images[np.arange(count), :, labels] += 60
    return images.astype(np.uint8), labels


TRAIN, VALIDATION = examples(96, 0), examples(30, 1)
CONFIG = TrainConfig(num_epochs=6, batch_size=16, learning_rate=0.05)


class Hidden(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.relu(nn.Dense(16)(images.reshape(len(images), -1)))
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(features))


def trained(config=CONFIG, attack=None, **options):
    options = {"mean": 0.4, "std": 0.2, "validation": VALIDATION, "progress": False} | options
    return fit(Hidden(), TRAIN, config, attack=attack, **options)


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        (PGD(0.05, 0.0625, num_steps=1), {}),  # FGSM-RS
        (NFGSM(0.05), {}),
        (FreeReplays(0.05, num_replays=3), {}),
        (PGD(0.05, 0.02, num_steps=3), {"natural_weight": 0.1, "awp_gamma": 0.005}),
        (KLAscent(0.05, 0.02, num_steps=3), {"loss": "trades", "ema_decay": 0.9}),
        (PGD(0.05, 0.02, num_steps=3), {"attack_warmup_epochs": 2, "compute_type": "bfloat16"}),
    ],
    ids=["fgsm-rs", "n-fgsm", "free", "weighted-awp", "trades-ema", "warmup-bfloat16"],
)
def test_every_method_learns_what_withstands_an_attack(attack, settings, tmp_path):
    config = dataclasses.replace(CONFIG, **settings)
    validation_attack = PGD(0.05, 0.02, num_steps=5)
    result = trained(config, attack, validation_attack=validation_attack, run_dir=tmp_path)
    assert result.history[-1]["validation_accuracy"] > 0.85
    again = trained(config, attack, validation_attack=validation_attack, run_dir=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)


def test_what_an_objective_needs_is_asked_for_before_training():
    for settings in ({"loss": "trades"}, {"natural_weight": 0.1}):
        config = dataclasses.replace(CONFIG, **settings)
        with pytest.raises(ValueError, match="`attack` is needed"):
            trained(config)
        with pytest.raises(ValueError, match="must not be FreeReplays"):
            trained(config, FreeReplays(0.05))


def test_what_only_trains_does_not_measure():
    with pytest.raises(ValueError, match="`validation_attack` must be one attack.*got FreeReplays"):
        trained(attack=PGD(0.05, 0.02), validation_attack=FreeReplays(0.05))
    classifier = functools.partial(jnp.dot, b=WEIGHTS)
    with pytest.raises(ValueError, match="KLAscent compares with the answers to the clean images"):
        evaluation.attack_dataset(
            KLAscent(0.05, 0.02, 2),
            lambda x: classifier(x.reshape(len(x), -1)),
            IMAGES,
            LABELS,
            key=KEY,
        )
    # In training it is given them, also where it validates.
    result = trained(attack=PGD(0.05, 0.02), validation_attack=KLAscent(0.05, 0.02, 3))
    assert 0 < result.history[-1]["validation_accuracy"] <= 1


def test_the_attack_grows_over_its_warm_up(monkeypatch):
    scales = []
    crafted = step_module.adversaries.craft

    def spy(attack, *arguments):
        jax.debug.callback(lambda epsilon: scales.append(float(epsilon)), attack.epsilon)
        return crafted(attack, *arguments)

    monkeypatch.setattr(step_module.adversaries, "craft", spy)
    config = dataclasses.replace(CONFIG, num_epochs=3, attack_warmup_epochs=2, seed=7)
    trained(config, PGD(0.06, 0.02, num_steps=2))
    jax.effects_barrier()
    expected = [0.06 * min(1, (step + 1) / 12) for step in range(18)]
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


def test_a_schedule_attacks_as_its_stages_say(monkeypatch, tmp_path):
    """Each stage from its epoch on; those that differ in numbers share a program; resumable."""
    seen = []
    crafted = step_module.adversaries.craft

    def spy(attack, *arguments):
        traced.append(attack.num_steps)
        jax.debug.callback(
            lambda epsilon: seen.append((attack.num_steps, float(epsilon))),
            attack.epsilon,
            ordered=True,
        )
        return crafted(attack, *arguments)

    traced: list[int] = []
    monkeypatch.setattr(step_module.adversaries, "craft", spy)
    config = dataclasses.replace(CONFIG, num_epochs=4, seed=11)
    stages = (1, PGD(0.01, 0.01)), (2, PGD(0.03, 0.01)), (4, PGD(0.03, 0.01, num_steps=3))
    schedule = AttackSchedule(stages)
    result = trained(config, schedule)
    jax.effects_barrier()
    one = PGD().num_steps
    expected = 6 * [(one, 0.01)] + 12 * [(one, 0.03)] + 6 * [(3, 0.03)]
    assert [steps for steps, _ in seen] == [steps for steps, _ in expected]
    np.testing.assert_allclose([e for _, e in seen], [e for _, e in expected], rtol=1e-6)
    assert sorted(traced) == [3, one]
    # Stopped in the second stage, it goes on with the attack of that epoch, and compiles no other.
    saved = programs_module.compile_programs
    folder = tmp_path / "stopped"

    def stopping(*arguments):
        programs = saved(*arguments)
        calls = iter(range(9))

        def train_batches(*batch):
            if next(calls, None) is None:
                signal.raise_signal(signal.SIGINT)
            return programs.train_batches(*batch)

        return programs._replace(train_batches=train_batches)

    monkeypatch.setattr(programs_module, "compile_programs", stopping)
    with pytest.raises(KeyboardInterrupt, match="Interrupted in epoch 2"):
        trained(config, schedule, run_dir=folder)
    monkeypatch.setattr(programs_module, "compile_programs", saved)
    jax.effects_barrier()
    seen.clear()
    traced.clear()
    jax.clear_caches()
    again = trained(config, schedule, run_dir=folder)
    jax.effects_barrier()
    assert [steps for steps, _ in seen] == [steps for steps, _ in expected[10:]]
    assert sorted(traced) == [3, one]
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    with pytest.raises(ValueError, match="other settings: attack.from epoch 4.*is now absent"):
        trained(config, AttackSchedule(stages[:2]), run_dir=folder)


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
        with pytest.raises(TypeError, match="`stages` must have attacks, got"):
            AttackSchedule(((1, none),))
    with pytest.raises(ValueError, match=r"`stages\[0\]\[0\]` must be at least 1"):
        AttackSchedule(((0, attack),))
    with pytest.raises(ValueError, match="an AttackSchedule is for `fit`"):
        step_module.check_objective(Objective(), AttackSchedule(((1, attack),)))
    late = AttackSchedule(((1, attack), (CONFIG.num_epochs + 1, attack)))
    with pytest.raises(ValueError, match="`attack` has a stage from epoch .* beyond `num_epochs`"):
        trained(attack=late)
    aimed = AttackSchedule(((1, attack), (2, PGD(0.05, 0.02, targeted=True))))
    with pytest.raises(ValueError, match="must be untargeted"):
        trained(attack=aimed)
    with pytest.raises(ValueError, match="`validation_attack` must be one attack"):
        trained(attack=attack, validation_attack=AttackSchedule(((1, attack),)))


def test_catastrophic_overfitting_is_said_and_the_best_epoch_kept(monkeypatch, capsys):
    rows = iter([(0.5, 40), (0.5, 60), (0.5, 70), (0.5, 20), (0.5, 10), (0.5, 60)])

    def evaluate(*_):
        def one(variables):
            loss, correct = next(rows)
            return {"loss": 100 * loss, "correct": correct, "count": 100}

        return one

    monkeypatch.setattr("jaxrobust.training.programs.compile_evaluation", evaluate)
    config = dataclasses.replace(CONFIG, monitor="validation_accuracy")
    result = trained(config, NFGSM(0.05), validation_attack=PGD(0.05, 0.02), progress=True)
    said = capsys.readouterr()
    assert (said.out + said.err).count("Catastrophic overfitting") == 1
    assert "Catastrophic overfitting in epoch 4" in said.out + said.err
    assert result.best_epoch == 3 and result.catastrophic_epoch == 4
    # A network that is not trained against an attack has nothing to overfit to.
    rows = iter([(0.5, 40), (0.5, 60), (0.5, 70), (0.5, 20), (0.5, 10), (0.5, 60)])
    clean = trained(config, validation_attack=PGD(0.05, 0.02), progress=True)
    assert clean.catastrophic_epoch is None
    assert "Catastrophic" not in "".join(capsys.readouterr())


def test_an_epoch_in_one_program_is_the_same_training(monkeypatch):
    attack = PGD(0.05, 0.02, num_steps=2)
    stepwise = trained(dataclasses.replace(CONFIG, seed=3), attack)
    monkeypatch.setattr(compilation, "loops_are_fast", lambda: True)
    looped = trained(dataclasses.replace(CONFIG, seed=3), attack)
    for one, other in zip(stepwise.history, looped.history, strict=True):
        assert one["step"] == other["step"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3)  # noqa: E731
    jax.tree.map(close, stepwise.variables, looped.variables)
