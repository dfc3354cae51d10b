"""Curves over epsilon: closed forms on a linear classifier, whose margins are distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import evaluation
from jaxrobust.attacks import APGD, BIM, FAB, FGSM, PGD, DeepFool
from jaxrobust.evaluation import Execution, Sweep, curves
from jaxrobust.types import Stochastic

KEY = jax.random.key(0)
WEIGHTS = np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)[..., None]  # [2, 2, 1]
LINF = float(np.abs(WEIGHTS).sum())  # how fast the score falls in linf: the dual norm
L2 = float(np.sqrt((WEIGHTS**2).sum()))
# The linf distances to the boundary; the last image is wrong when clean.
DISTANCES = np.array([0.01, 0.03, 0.03, 0.06, 0.1, 0.02])
SIGNS = np.array([1, -1, 1, -1, 1, 1], np.float32)
LABELS = np.array([1, 0, 1, 0, 1, 0])
EPSILONS = [0.0, 0.02, 0.05, 0.08, 0.12]
STANDING = [5, 4, 2, 1, 0]  # of 6


@jax.tree_util.Partial
def linear(images):
    """Two classes on either side of a plane through the grey image."""
    score = jnp.sum((images - 0.5) * WEIGHTS, axis=(1, 2, 3))
    return jnp.stack([-score, score], axis=1)


def at_distances(norm_per_unit):
    """Images along the weights, so far from the plane in the norm that the score falls by so fast."""
    scores = SIGNS * DISTANCES * norm_per_unit
    return (0.5 + scores[:, None, None, None] * WEIGHTS / (WEIGHTS**2).sum()).astype(np.float32)


IMAGES = at_distances(LINF)


def counts(curve):
    rates = [point["robust_accuracy"] for point in curve["points"]]
    assert all(rate["n"] == 6 and rate["low"] <= rate["rate"] <= rate["high"] for rate in rates)
    return [rate["count"] for rate in rates]


def curve(attack=None, function=linear, epsilons=EPSILONS, *, progress=None, **options):
    attack = BIM(0.1, 0.05, 5) if attack is None else attack
    images = at_distances(LINF if attack.norm == "linf" else L2)
    sweep, execution = Sweep(epsilons, **options), Execution(progress=progress)
    return evaluation.robustness_curve(
        attack, function, images, LABELS, sweep, key=KEY, model="m", execution=execution
    )


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(0.1),
        PGD(0.1, 0.05, 5),
        PGD(0.1, 0.05, 5, keep="last"),
        BIM(0.1, 0.05, 5, norm="l2"),
        FAB(0.1, 5),
    ],
    ids=lambda attack: f"{type(attack).__name__}-{attack.norm}-{attack.keep}",
)
def test_a_linear_classifier_falls_at_its_distances(attack):
    found = curve(attack)
    assert counts(found) == STANDING
    assert [point["epsilon"] for point in found["points"]] == EPSILONS
    assert counts(curve(attack, carry_over=True)) == STANDING


def test_stops_after_the_first_point_below_chance():
    assert counts(curve(stop_below=0.5)) == [5, 4, 2]  # 2 of 6 is the first below a half
    assert counts(curve(stop_below=2 / 6)) == [5, 4, 2, 1]  # equal is not below
    assert counts(curve(epsilons=EPSILONS[:2], stop_below=0.5)) == [5, 4]
    told = []
    curve(stop_below=0.5, progress=lambda *one: told.append(one))
    assert told == [("epsilon 0", 1, 5), ("epsilon 0.02", 2, 5), ("epsilon 0.05", 3, 5)]


def test_carried_over_images_are_attacked_once(monkeypatch):
    attacked, beat = [], curves.beat

    def counted(attack, prepared, wanted, **options):
        attacked.append(int(wanted.sum()))
        return beat(attack, prepared, wanted, **options)

    monkeypatch.setattr(curves, "beat", counted)
    assert counts(curve(carry_over=True)) == STANDING
    assert attacked == [5, 4, 2, 1]


@jax.tree_util.Partial
def hole(images):
    """Right, but for a shell between .04 and .06 of brightness beyond the image's."""
    away = jnp.abs(images.mean((1, 2, 3)) - 0.5)
    wrong = (away > 0.04) & (away < 0.06)
    score = jnp.where(wrong, 1.0, -1.0) + 0.1 * images.mean((1, 2, 3))
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


def test_only_carrying_over_makes_a_curve_fall():
    """One step of .05 lands in the hole, and one of .1 beyond it."""
    images, labels = np.full((2, 2, 2, 1), 0.5, np.float32), np.zeros(2, int)

    def found(**options):
        points = evaluation.robustness_curve(
            FGSM(0.1), hole, images, labels, Sweep([0.05, 0.1], **options), key=KEY, model="m"
        )["points"]
        return [point["robust_accuracy"]["count"] for point in points]

    assert found() == [0, 2]
    assert found(carry_over=True) == [0, 0]


def test_a_stochastic_classifier_is_judged_by_its_best_points():
    function = Stochastic(jax.tree_util.Partial(lambda keys, images: linear(images)), 2)
    assert counts(curve(function=function)) == STANDING


@pytest.mark.parametrize(
    "attack", [DeepFool(norm="linf"), DeepFool(), FAB(0.1, 10), FAB(0.02, 10, norm="l2")]
)
def test_one_run_of_a_minimal_norm_attack_gives_the_whole_curve(attack):
    images = at_distances(LINF if attack.norm == "linf" else L2)
    report = evaluation.attack_dataset(attack, linear, images, LABELS, key=KEY)
    found = evaluation.curve_from_norms(report, EPSILONS, model="m")
    assert counts(found) == STANDING and found["model"] == "m"
    # DeepFool oversteps by 2 %, FAB by less: right before the distance an image stands.
    before, after = DISTANCES[3] * 0.999, DISTANCES[3] * 1.03
    steps = evaluation.curve_from_norms(report, [before, after], model="m")
    assert counts(steps) == [2, 1]


REFUSING = {
    "robustness_curve": lambda **o: evaluation.robustness_curve(
        FGSM(), linear, IMAGES, LABELS, Sweep([0.1]), key=KEY, model="m", **o
    ),
    "transfer_curves": lambda **o: evaluation.transfer_curves(
        FGSM(), {"m": linear}, "m", IMAGES, LABELS, [0.1], key=KEY, **o
    ),
    "epsilon_for_success": lambda **o: evaluation.epsilon_for_success(
        FGSM(), linear, IMAGES, LABELS, key=KEY, **o
    ),
}


@pytest.mark.parametrize("name", REFUSING)
def test_what_keeps_no_state_refuses_a_path_before_anything_runs(name, tmp_path):
    told = []
    execution = Execution(path=tmp_path / "a", progress=lambda *one: told.append(one))
    with pytest.raises(ValueError, match=f"`execution.path` must be None for `{name}`.*a stage"):
        REFUSING[name](execution=execution)
    assert not told and not list(tmp_path.iterdir())


def test_wrong_input():
    with pytest.raises(ValueError, match="`epsilons` must increase"):
        curve(epsilons=[0.1, 0.05], stop_below=0.5)
    with pytest.raises(ValueError, match="`epsilons` must increase"):
        curve(epsilons=[0.1, 0.1], carry_over=True)
    with pytest.raises(ValueError, match="`stop_below` must be .* above 0 and at most 1, got 10"):
        curve(stop_below=10)
    with pytest.raises(ValueError, match="`epsilons` must be .* at least 0, got -0.1"):
        curve(epsilons=[0.1, -0.1])
    with pytest.raises(ValueError, match="`attack` must be untargeted"):
        curve(BIM(0.1, 0.05, 5, targeted=True))
    images = at_distances(LINF)
    report = evaluation.attack_dataset(APGD(0.1), linear, images, LABELS, key=KEY)
    with pytest.raises(ValueError, match="smallest perturbation, got one of APGD"):
        evaluation.curve_from_norms(report, [0.1], model="m")
    report = evaluation.attack_dataset(DeepFool(), linear, images, LABELS, key=KEY)
    with pytest.raises(ValueError, match="`epsilons` must be .* at least 0, got -0.1"):
        evaluation.curve_from_norms(report, [-0.1], model="m")


@jax.tree_util.Partial
def shifted(images):
    """Takes images for brighter along the weights than they are, by .02 in linf."""
    return linear(images) + jnp.array([-0.02, 0.02]) * LINF


def test_transfer_over_epsilon_by_hand():
    """FGSM moves each score by epsilon; the other model's boundary lies .02 below."""
    models = {"plain": linear, "shifted": shifted}
    images = at_distances(LINF)
    found = evaluation.transfer_curves(
        FGSM(0.1), models, "plain", images, LABELS, EPSILONS, key=KEY
    )
    assert [one["model"] for one in found] == ["plain", "shifted"]
    assert {one["label"] for one in found} == {"FGSM, made on plain"}
    # The signed distances by which each image is right, to each model.
    right = (2 * LABELS - 1) * SIGNS * DISTANCES
    for one, offset in zip(found, (0.0, 0.02), strict=True):
        distances = right + offset * (2 * LABELS - 1)
        assert counts(one) == [int((distances > epsilon).sum()) for epsilon in EPSILONS]
    other = evaluation.transfer_curves(
        FGSM(0.1), models, "shifted", images, LABELS, [0.02], key=KEY
    )
    assert other[0]["label"] == "FGSM, made on shifted"
    with pytest.raises(ValueError, match="`source` must be one of"):
        evaluation.transfer_curves(FGSM(), models, "none", images, LABELS, [0.1], key=KEY)
    for attack in (FAB(), FGSM(targeted=True)):
        with pytest.raises(ValueError, match="untargeted and limited by its epsilon"):
            evaluation.transfer_curves(attack, models, "plain", images, LABELS, [0.1], key=KEY)
