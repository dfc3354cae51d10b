"""What was measured, as blocks: nothing gets lost on the way to the page."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from report_pages import (
    EVIL,
    FLOATS,
    IMAGE,
    MAP,
    NAMES,
    NO_RATE,
    RATE,
    encode,
    heading,
    make_attack,
    make_curve,
    make_diagnostics,
    make_example,
    make_explanation,
    make_model,
    make_suite,
    make_transfer,
    report,
)

from jaxrobust import attacks, evaluation
from jaxrobust.reports import BANNERS, write_example
from jaxrobust.reports import evaluations as made

MODELS = [make_model("mlp"), make_model("cnn")]
ATTACKS = [
    make_attack("mlp", "FGSM", 0.2),
    make_attack("cnn", "FGSM", 0.24),
    make_attack("cnn", "PGD, linf 0.03", 0.08),
    make_attack("cnn", "PGD, linf 0.03", None, target="cat"),
]
CAMS = {"grad_cam": encode(MAP), "adversarial_grad_cam": encode(MAP)}
ATTACKED = MODELS[0]["training"] | {"attack": "PGD, linf 0.03"}
WARNED = make_model("mlp", evaluation=MODELS[0]["evaluation"] | {"warnings": [f"Odd {EVIL}."]})


def page_of(tmp_path, blocks):
    return report(tmp_path, [heading(2, "x"), *blocks])


# What of which blocks, and the words that the page has of them.
SAID = {
    "models": (
        lambda: made.models(MODELS),
        "cnn 141,610 82 % (69–90) 0.734 0.660 3 1.25 the cnn",
        "Accuracy n = 50",
    ),
    "models without epochs": (
        lambda: made.models(
            [make_model("a", training={"epochs": [], "seconds_per_epoch": None}, description=None)]
        ),
        "Model Parameters Accuracy n = 50 Loss Macro F1 a 141,610 82 % (69–90) 0.734 0.660",
    ),
    "seeds": (
        lambda: made.models(
            [
                make_model(
                    "cnn",
                    seeds=[
                        {"seed": seed, "accuracy": evaluation.rate(count, 50)}
                        for seed, count in ((3, 40), (4, 44))
                    ],
                )
            ]
        ),
        "cnn over 2 seeds",
        "3 80 % (67–89) 4 88 % (76–94)",
        "mean accuracy is 84.0 %, the standard deviation between seeds 5.7 points",
    ),
    "warnings": (lambda: made.models([WARNED]), f"Warning. mlp: Odd {EVIL}."),
    "training": (
        lambda: made.training([make_model("cnn"), make_model("mlp", training=ATTACKED)]),
        "cnn: loss",
        "mlp under PGD, linf 0.03: accuracy",
        "training 2 1.00 training 3 0.67 validation 1 2.50 validation 3 0.83",
        "learning the training images by heart",
    ),
    "classes": (
        lambda: made.classes(MODELS),
        "mlp cnn",
        "cat 17 0.71 0.61 0.66 0.71 0.61 0.66",
        "Mean of the classes – 0.71 0.61 0.66",
    ),
    "confusion": (lambda: made.confusion(MODELS), "cat 13 4 0", "mlp predicted → true ↓"),
    "attacks": (
        lambda: made.attacks(ATTACKS),
        "cnn PGD, linf 0.03 82 % (69–90) 8 % (0–30) 1.234 0.0288 93.0 % 3.0",
        "cnn PGD, linf 0.03, target cat 82 % (69–90) – 1.234",
        "ℓ∞ are over successes, that",
    ),
    "norms over all": (
        lambda: made.attacks([{k: v for k, v in ATTACKS[0].items() if k != "norms_of"}]),
        "ℓ∞ are over all images attacked, that",
    ),
    "norms mixed": (
        lambda: made.attacks(
            [{k: v for k, v in ATTACKS[0].items() if k != "norms_of"}, ATTACKS[1]]
        ),
        "mlp FGSM 82 % (69–90) 20 % (0–30) 1.234 0.0288 all images attacked",
        "cnn FGSM 82 % (69–90) 24 % (0–30) 1.234 0.0288 successes",
    ),
    "records": (
        lambda: made.records(ATTACKS, NAMES),
        f"7 cat cat (90 %) {EVIL} (> 99 %) yes yes 0.812 0.0300 2 3.25 −1.50 – 0.50 4.75 0.00",
        f"7 cat cat cat (90 %) {EVIL}",
        "cnn: PGD, linf 0.03, target cat, 1 image",
    ),
    "many classes": (
        lambda: made.records(
            [ATTACKS[0] | {"records": [ATTACKS[0]["records"][0] | {"clean_logits": [*range(21)]}]}],
            NAMES,
        ),
        "20 20.00, 19 19.00, 18 18.00, 17 17.00, 16 16.00",
        "logits of the five likeliest classes",
    ),
    "suite": (
        lambda: made.suite(make_suite()),
        f"cnn: AutoAttack {EVIL}",
        "no attack – – 62 % (31–86) –",
        "APGD-CE APGD-CE, linf 0.03 4 12 % (2–47) 12.3",
        "Square Square, linf 0.03 1 0 % (0–32) 12.3",
        "What is left after each attack",
        "No sanity checks were made",
    ),
    "suspicious suite": (
        lambda: made.suite(
            make_suite(
                diagnostics=make_diagnostics("gradient masking"), saw_nan=2, warnings=["Odd."]
            )
        ),
        f"{BANNERS['gradient masking']} Because of {EVIL}. cnn: AutoAttack",
        "2 images met NaN in an answer",
        "Warning. Odd.",
        "Sanity checks, linf 8/255, 8 images",
        f"unbounded attack ✗ failed 12 % stand. {EVIL} ✓ passed They help. black box not appl",
    ),
    "checks of a model": (
        lambda: made.sanity([make_diagnostics("suspicious", model="mlp", n=1)]),
        f"mlp: {BANNERS['suspicious']}",
        "Sanity checks of mlp, linf 8/255, 1 image",
    ),
    "curves": (
        lambda: made.curves(
            [
                make_curve(
                    "cnn", suite={"label": "AutoAttack", "epsilon": 0.015, "robust_accuracy": RATE}
                ),
                make_curve("mlp", warnings=["Odd."]),
            ]
        ),
        "● cnn ● cnn, AutoAttack ■ mlp",
        "cnn 0.020 82 % (69–90, n = 50) cnn, AutoAttack 0.015 82 %",
        "cnn 0.010 – (n = 0)",
        "Warning. mlp: Odd.",
    ),
    "transfer": (
        lambda: made.transfer([make_transfer(), make_transfer(target="cat", warnings=["Odd."])]),
        "PGD shown to → made on ↓ mlp cnn mlp 82 % (69–90, n = 50)",
        "cnn – (n = 0) 82 %",
        "PGD, target cat",
        "Warning. Odd.",
    ),
    "explanations": (
        lambda: made.explanations(
            [
                make_explanation("mlp", 0),
                make_explanation("cnn", 2, layer="conv5", **CAMS),
                make_explanation("cnn", 0, layer="conv5", **CAMS),
                make_explanation("cnn", 0, **CAMS, **{"class": "dog"}),
            ],
            NAMES,
        ),
        "mlp right saliency cat rightcat (90 %), image 7 saliency",
        "cnn, Grad-CAM at layer conv5 right saliency Grad-CAM wrong saliency Grad-CAM cat",
        "wrong$\\frac (90 %), image 7",
    ),
    "gallery": (
        lambda: made.gallery(
            [make_example("mlp"), make_example("cnn", target=1, success=False, **CAMS)], NAMES
        ),
        "mlp: PGD, 1 of 1 shown succeeded",
        f"cnn: PGD, target {EVIL}, 0 of 1 shown succeeded",
        "cat image 7; attack succeeded; ℓ₂ 1.400; ℓ∞ 0.0500; fooled at step 3",
        f"image 7; target {EVIL}; attack failed; ℓ₂ 1.400; ℓ∞ 0.0500; 3 steps taken",
        f"perturbation× 10.0 adversarial{EVIL} (97 %)",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_was_measured_is_said(tmp_path, case):
    make, *words = SAID[case]
    text = page_of(tmp_path, make()).text("x")
    for said in words:
        assert said in text


EMPTY = make_model("a", training={"epochs": [], "seconds_per_epoch": None})


@pytest.mark.parametrize(
    "blocks",
    [
        *(
            function([])
            for function in (made.key_figures, made.models, made.training, made.classes)
        ),
        *(function([]) for function in (made.confusion, made.attacks, made.sanity, made.curves)),
        *(function([], NAMES) for function in (made.records, made.explanations, made.gallery)),
        made.transfer([]),
        made.training([EMPTY]),
        made.records([ATTACKS[0] | {"records": []}], NAMES),
    ],
)
def test_of_nothing_there_is_nothing(blocks):
    assert blocks == []


def kinds(blocks, *keys):
    return [tuple(block.get(key) for key in ("kind", *keys)) for block in blocks]


def test_the_first_of_many_stay_open():
    models = [make_model(str(number)) for number in range(5)]
    open_folded = [None] * 4 + [True]
    assert [block.get("folded") for block in made.confusion(models)[1:]] == open_folded
    folded = [block.get("folded") for block in made.training(models)[1:]]
    assert folded == [None] * 8 + [True] * 2
    shown = made.gallery([make_example("a"), make_example("b"), *[make_example("c")] * 13], NAMES)
    assert [block.get("folded") for block in shown[1:]] == [None, True, True]
    assert made.gallery([make_example("c")] * 13, NAMES)[1]["folded"]
    assert all(block["folded"] for block in made.records(ATTACKS, NAMES)[1:])


def test_long_records_are_cut_and_say_so():
    long = ATTACKS[0] | {"records": ATTACKS[0]["records"] * 201}
    for count, most in ((1, 200), (26, 192)):
        table = made.records([long] * count, NAMES)[-1]
        assert len(table["rows"]) == most
        assert table["title"] == f"mlp: FGSM, 201 images, the first {most} shown"


def test_losses_share_one_scale():
    models = [
        make_model("a"),
        make_model("b", training={"epochs": [EPOCH], "seconds_per_epoch": 1}),
    ]
    charts = made.training(models)[1:]
    assert [chart["y"].get("limits") for chart in charts] == [[0, 8.4], None, [0, 8.4], None]
    assert "validation" not in made.training(models[1:])[0]["text"]


EPOCH = {"epoch": 1, "train_loss": 8.0, "train_accuracy": 0.5, "learning_rate": 0.1}


def test_a_suite_is_a_waterfall():
    notice, table, bars, checks = made.suite(make_suite(diagnostics=make_diagnostics("sound")))
    assert kinds([notice, checks], "tone", "folded") == [
        ("notice", "sound", None),
        ("table", None, True),
    ]
    assert [group["name"] for group in bars["groups"]] == ["no attack", "APGD-CE", EVIL, "Square"]
    left = [group["items"][0]["value"]["count"] for group in bars["groups"]]
    assert left == [5, 1, 1, 0] and bars["bars"]
    assert table["highlight"] == [3]
    assert "No sanity checks" not in table["caption"]
    with pytest.raises(ValueError, match="`verdict` must be one of"):
        made.sanity(make_diagnostics("fine"))


def test_the_strongest_leaves_the_least():
    weak = make_suite(robust_accuracy=RATE, label="weak")
    unknown = make_suite(robust_accuracy=NO_RATE, label="unknown")
    suites = [weak, make_suite(diagnostics=make_diagnostics("sound")), unknown]
    doubt = make_diagnostics("suspicious", model="cnn")
    table, *notices = made.key_figures(MODELS, ATTACKS, suites, [doubt])
    mlp, cnn = table["rows"]
    assert mlp == ["mlp", RATE, None, None, ATTACKS[0]["robust_accuracy"], "FGSM", None]
    least = suites[1]["robust_accuracy"]
    assert cnn[2:4] == [least, f"AutoAttack {EVIL}"]
    assert cnn[4:] == [ATTACKS[2]["robust_accuracy"], "PGD, linf 0.03", "suspicious"]
    assert kinds(notices, "text") == [("notice", f"**cnn:** {BANNERS['suspicious']}")]
    (plain,) = made.key_figures(MODELS)
    assert [column["title"] for column in plain["columns"]] == ["Model", "Accuracy"]
    equal = [ATTACKS[0], ATTACKS[0] | {"label": "PGD"}]
    assert made.key_figures(MODELS[:1], equal)[0]["rows"][0][3] == "PGD"
    unnamed = {key: value for key, value in suites[1].items() if key != "label"}
    named = made.key_figures(MODELS[1:], suites=[unnamed])[0]["rows"][0][3]
    assert named == f"APGD-CE, {EVIL}, Square"


def test_equal_labels_of_two_attacks_are_both_drawn():
    dots = made.attacks([ATTACKS[1], ATTACKS[1]])[-1]
    assert [group["name"] for group in dots["groups"]] == ["FGSM", "FGSM, again"]


def test_pictures_have_what_they_are_made_of():
    explained = made.explanations(
        [make_explanation("cnn", 0, **CAMS), make_explanation("cnn", 0, **{"class": "dog"})], NAMES
    )[1]
    assert explained["columns"] == ["right", "saliency", "Grad-CAM"]
    tiles = [[tile and tile["style"] for tile in row["tiles"]] for row in explained["rows"]]
    assert tiles == [["image", "heat", "overlay"], ["image", "heat", None]]
    example = made.gallery([make_example("cnn", **CAMS)], NAMES)[1]
    styles = ["image", "heat", "overlay", "difference", "image", "heat", "overlay"]
    assert [tile["style"] for tile in example["rows"][0]["tiles"]] == styles


@pytest.mark.parametrize("image", [IMAGE, IMAGE[..., :1], FLOATS])
def test_an_example_is_five_tiles_with_words_below(tmp_path, image):
    path = tmp_path / "made" / "picture.png"
    write_example(path, make_example("cnn", image, **CAMS), NAMES)
    drawn = np.asarray(Image.open(path).convert("RGB"))
    assert drawn.shape == (220, 900, 3)
    lefts = [round(182.5 * k) for k in range(5)]
    for after in lefts[1:]:
        assert (drawn[:170, after - 8 : after - 4] == 255).all()  # a gap between two tiles
    for left in lefts:
        assert (drawn[180:, left : left + 170] < 128).any()  # words
    assert (drawn[:, :3] < 255).any() and (drawn[:, -3:] < 255).any()  # from edge to edge
    again = tmp_path / "again.png"
    write_example(again, make_example("cnn", image, **CAMS), NAMES)
    assert again.read_bytes() == path.read_bytes()


def test_an_example_needs_grad_cam(tmp_path):
    with pytest.raises(ValueError, match="`entry` must have Grad-CAM"):
        write_example(tmp_path / "picture.png", make_example("mlp"), NAMES)


@pytest.mark.parametrize("image", [IMAGE[..., :1], FLOATS])
def test_grey_and_floating_images_are_drawn(tmp_path, image):
    same = encode(np.asarray(image / (255 if image.dtype == np.uint8 else 1), np.float32))
    blocks = made.gallery([make_example("cnn", image, adversarial=same)], NAMES)
    assert "perturbationnone" in page_of(tmp_path, blocks).text("x")


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_numbers_are_dashes(tmp_path, missing):
    def without(value, kept=("index", "label", "target", "epoch", "shape", "n", "fooled_by")):
        if isinstance(value, dict):
            same = {k for k in value if k in kept or k.endswith("prediction")}
            return {k: v if k in same else without(v) for k, v in value.items()}
        if isinstance(value, list):
            return [without(inner) for inner in value]
        return missing if isinstance(value, float) else value

    blocks = [
        *made.key_figures(without(MODELS), without(ATTACKS), [without(make_suite())]),
        *made.models(without(MODELS)),
        *made.training(without(MODELS)),
        *made.classes(without(MODELS)),
        *made.attacks(without(ATTACKS)),
        *made.records(without(ATTACKS), NAMES),
        *made.suite(without(make_suite())),
        *made.curves([without(make_curve())]),
        *made.transfer([without(make_transfer())]),
        *made.gallery([without(make_example("cnn"))], NAMES),
    ]
    text = page_of(tmp_path, blocks).text("x")
    assert not re.search(r"\b(nan|NaN|inf|Infinity|None|null)\b", text)


def test_what_the_library_returns_becomes_blocks(tmp_path):
    def logits_fn(x):
        return jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3)), x[:, 0, 0, 0] - 9], axis=1)

    images = np.random.default_rng(0).uniform(0, 1, (6, 2, 2, 1)).astype(np.float32)
    labels, key, attack = np.arange(6) % 2, jax.random.key(0), attacks.FGSM(0.1)
    suite = evaluation.attack_suite({"FGSM": attack}, logits_fn, images, labels, key=key)
    found = evaluation.attack_dataset(attack, logits_fn, images, labels, key=key)
    curve = evaluation.robustness_curve(
        attack, logits_fn, images, labels, evaluation.Sweep([0.0, 0.1]), key=key, model="mlp"
    )
    measured = json.loads(
        json.dumps(
            {
                "suite": evaluation.summarise_suite(suite, "mlp"),
                "attack": evaluation.summarise(found, "mlp", NAMES),
                "curve": curve,
                "transfer": evaluation.transfer_matrix({"mlp": logits_fn}, {"mlp": found}),
                "model": {
                    "name": "mlp",
                    "evaluation": evaluation.evaluate(logits_fn, images, labels),
                },
            }
        )
    )
    blocks = [
        *made.suite(measured["suite"]),
        *made.attacks([measured["attack"]]),
        *made.records([measured["attack"]], NAMES),
        *made.curves([measured["curve"]]),
        *made.transfer([measured["transfer"]]),
        *made.confusion([measured["model"]]),
        *made.classes([measured["model"]]),
    ]
    assert "FGSM, linf 0.1" in page_of(tmp_path, blocks).text("x")
