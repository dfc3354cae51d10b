"""Suites in the report: what each attack left, and whether to believe it."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from report_pages import EVIL, NO_RATE, RATE, Page, make_result, report

from jaxrobust import attacks, evaluation


def make_suite(model="cnn"):
    entries = [("APGD-CE", 4, 1), (EVIL, 0, 1), ("Square", 1, 0)]
    return {
        "model": model,
        "label": f"AutoAttack {EVIL}",
        "clean_accuracy": evaluation.rate(5, 8),
        "robust_accuracy": evaluation.rate(0, 8),
        "attacks": [
            {
                "name": name,
                "label": f"{name}, linf 0.03",
                "parameters": {"epsilon": 0.03},
                "fooled": fooled,
                "robust_accuracy": evaluation.rate(left, 8),
                "seconds": 12.34,
            }
            for name, fooled, left in entries
        ],
        "num_queries": 100,
        "num_gradients": 90,
        "saw_nan": 0,
        "fooled_by": [0, 0, 0, 0, 2, -2, -2, -2],
        "predictions": [1] * 8,
        "labels": [0] * 5 + [2] * 3,
    }


def make_diagnostics(verdict):
    return {
        "norm": "linf",
        "epsilon": 0.03,
        "n": 8,
        "checks": [
            {"name": "unbounded attack", "passed": False, "detail": "12 % stand."},
            {"name": EVIL, "passed": True, "detail": "They help."},
            {"name": "black box", "passed": None, "detail": "Not in l1."},
        ],
        "verdict": verdict,
        "reason": f"Because of {EVIL}.",
    }


def page_of(tmp_path, *suites):
    text = report(tmp_path, make_result() | {"suites": list(suites)})
    assert "<script" not in text
    page = Page(text)
    assert page.open == []
    return page, text


def test_each_attack_has_what_it_fooled_and_what_it_left(tmp_path):
    page, text = page_of(tmp_path, make_suite())
    words = page.text("suites")
    assert f"cnn: AutoAttack {EVIL}" in words and "n = 8" in words
    assert "no attack – 62 % (31–86) –" in words
    assert "APGD-CEAPGD-CE, linf 0.03 4 12 % (2–47) 12.3" in words
    assert "SquareSquare, linf 0.03 1 0 % (0–32) 12.3" in words
    # The bars: what is left, and what the attack took of it.
    assert text.count("--left: 0.1250; --lost: 0.5000") == 1
    assert text.count("--left: 0.0000; --lost: 0.1250") == 1
    assert "No sanity checks were made" in words and "NaN" not in words


def test_the_verdict_stands_above_the_figures(tmp_path):
    suite = make_suite() | {"diagnostics": make_diagnostics("gradient masking"), "saw_nan": 2}
    page, text = page_of(tmp_path, suite)
    words = page.text("suites")
    banner = "Looks like gradient masking: do not trust the robust accuracy."
    assert words.index(banner) < words.index(f"Because of {EVIL}.") < words.index("APGD-CE")
    assert 'class="banner doubtful"' in text and "2 images met NaN" in words
    marks = [tag for tag in page.all("span") if "mark" in tag.get("class", "")]
    assert [mark["aria-label"] for mark in marks] == ["failed", "passed", "not applicable"]
    assert "✗ unbounded attack 12 % stand." in words and "✓" in words
    assert banner in page.text("key-figures")


def test_a_sound_verdict_warns_of_nothing(tmp_path):
    suite = make_suite() | {"diagnostics": make_diagnostics("sound")}
    page, text = page_of(tmp_path, suite)
    assert "no sign of gradient masking" in page.text("suites")
    assert 'class="banner sound"' in text and "No sanity checks" not in text
    assert "masking" not in page.text("key-figures")
    assert f"under AutoAttack {EVIL}" in page.text("key-figures")


def test_the_checks_of_a_model_stand_alone_where_it_has_no_suite(tmp_path):
    name = make_result()["models"][0]["name"]
    doubtful = make_diagnostics("suspicious") | {"model": name}
    text = report(tmp_path, make_result() | {"diagnostics": [doubtful]})
    page = Page(text)
    assert page.open == []
    words = page.text("sanity")
    assert words.index(name) < words.index("Suspicious: take") < words.index("✗ unbounded attack")
    assert "Suspicious: take" in page.text("key-figures")
    sound = make_diagnostics("sound") | {"model": name}
    assert "Suspicious" not in report(tmp_path, make_result() | {"diagnostics": [sound]})
    with pytest.raises(ValueError, match=r"`diagnostics\[0\].model` is missing"):
        report(tmp_path, make_result() | {"diagnostics": [make_diagnostics("sound")]})


def test_the_key_figure_is_what_the_strongest_suite_leaves(tmp_path):
    weak = make_suite() | {"robust_accuracy": RATE, "label": "weak"}
    unknown = make_suite() | {"robust_accuracy": NO_RATE, "label": "unknown"}
    page, _ = page_of(tmp_path, weak, make_suite("mlp"), make_suite(), unknown)
    words = page.text("key-figures")
    assert "weak" not in words and "unknown" not in words and words.count("AutoAttack") == 2


def test_without_suites_there_is_no_section(tmp_path):
    assert "suites" not in page_of(tmp_path)[0].sections()


def test_a_part_may_claim_the_suites(tmp_path):
    parts = [{"id": "a", "title": "A", "includes": ["suites"]}]
    study = make_result() | {"suites": [make_suite()], "parts": parts}
    order = [attributes["id"] for attributes in Page(report(tmp_path, study)).all("section")]
    assert order[:3] == ["key-figures", "a", "suites"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"attacks": ...}, "`suites[0].attacks` is missing"),
        ({"saw_nan": None}, "`suites[0].saw_nan` must be an integer, got None"),
        ({"fooled_by": [0] * 7 + [3]}, "`suites[0].fooled_by[7]` must be -2, -1 or the number of"),
        ({"labels": [0]}, "`suites[0].labels` must have an entry for each of the 8 images, got 1"),
        ({"diagnostics": {"n": 3}}, "`suites[0].diagnostics.norm` is missing"),
        (
            {"diagnostics": make_diagnostics("fine")},
            "`suites[0].diagnostics.verdict` must be one of ('sound', 'suspicious', "
            "'gradient masking'), got 'fine'",
        ),
    ],
)
def test_what_is_no_suite_is_named(tmp_path, change, message):
    suite = copy.deepcopy(make_suite()) | change
    suite = {key: value for key, value in suite.items() if value is not ...}
    with pytest.raises(ValueError) as caught:
        report(tmp_path, make_result() | {"suites": [suite]})
    assert message in str(caught.value)


def test_what_the_library_returns_is_a_suite(tmp_path):
    def logits_fn(x):
        return jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3)), x[:, 0, 0, 0] - 9], axis=1)

    images = np.random.default_rng(0).uniform(0, 1, (6, 2, 2, 1)).astype(np.float32)
    suite = {"FGSM": attacks.FGSM(0.1)}
    found = evaluation.attack_suite(
        suite, logits_fn, images, np.arange(6) % 2, key=jax.random.key(0)
    )
    summary = json.loads(json.dumps(evaluation.summarise_suite(found, "mlp")))
    page, _ = page_of(tmp_path, summary)
    assert "mlp" in page.text("suites")
