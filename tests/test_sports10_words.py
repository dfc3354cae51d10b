"""What the report of sports10 says, from facts that are made up: its verdicts ask the figures."""

import types
from pathlib import Path

import numpy as np
import pytest

from experiments import sports10
from experiments.sports10 import defences
from jaxrobust import studies
from jaxrobust.reports import markdown
from jaxrobust.studies import comparison, words

FOLDER = Path(sports10.__file__).parent
MODELS = ("mlp", "cnn", "photo_cnn")


def said(facts: studies.Facts, question: str, epsilon: float = 0.01) -> str:
    """The answer to a question, without Markdown's escapes."""
    _, blocks = words.render(
        FOLDER / "verdicts.md.j2",
        facts,
        {
            "settings": types.SimpleNamespace(models=MODELS, seed=0),
            "study": types.SimpleNamespace(
                chosen="photo_cnn",
                folded=["mlp", "photo_cnn"],
                defended=["photo_cnn"],
                config=types.SimpleNamespace(epsilon=epsilon),
            ),
            "defences": defences,
        },
    )
    (text,) = [block["text"] for block in blocks if block["question"] == question]
    return markdown.plain(text).replace("\u00a0", " ")


def some(count: int, n: int = 40) -> np.ndarray:
    """The first so many are right."""
    return np.arange(n) < count


def a_study(kept: dict[str, list[int]], held_out: tuple[int, int] = (20, 38)) -> studies.Facts:
    """Facts of two seeds, of folds, and of what each defence keeps at 0.01 and 0.03."""
    facts = studies.Facts()
    for network in MODELS:
        for seed in (0, 1):
            facts.add("accuracy", network=network, seed=seed, outcomes=some(30 + seed))
    measured = facts.where("accuracy", network=studies.ANY, seed=studies.ANY)
    facts.extend(comparison.means(measured, "seed", "accuracy over seeds"))
    mlp = facts.add("held-out accuracy", network="mlp", outcomes=some(held_out[0]))
    ours = facts.add("held-out accuracy", network="photo_cnn", outcomes=some(held_out[1]))
    keys = {"network": "photo_cnn", "against": "mlp"}
    facts.extend([comparison.paired(ours, mlp, "held-out difference", keys)])
    for defence, counts in kept.items():
        keys = {"network": "photo_cnn", "defence": defence}
        facts.add("defended accuracy", keys, outcomes=some(35))
        for epsilon, count in zip((0.01, 0.03), counts, strict=True):
            keys |= {"attacker": "adaptive", "epsilon": epsilon}
            facts.add("defended accuracy", keys, outcomes=some(count))
    for epsilon in (0.01, 0.03):
        defences.compare(facts, "photo_cnn", epsilon)
    return facts


@pytest.mark.parametrize(
    "held_out, first, phrases",
    [
        ((20, 38), "photo_cnn.", ["better than mlp beyond chance", "may be too high"]),
        ((37, 38), "photo_cnn.", ["No difference to mlp is shown", "76.2 %", "mean of 2 seeds"]),
        ((38, 20), "mlp.", ["better than photo_cnn beyond chance", "cnn was not cross-validated"]),
    ],
)
def test_which_model_is_the_best_on_the_folds(held_out, first, phrases):
    answer = said(a_study({"none": [3, 0], "jpeg_75": [3, 0]}, held_out), "Which model?")
    assert answer.splitlines()[0] == first
    for phrase in phrases:
        assert phrase in answer, answer
    assert ("may be too high" in answer) == (first == "photo_cnn.")


@pytest.mark.parametrize(
    "kept, first, phrases",
    [
        (
            {"none": [3, 0], "jpeg_75": [3, 0], "adversarial": [2, 1]},
            "None is shown to help against an attacker who knows it.",
            ["No defence is shown to help there", "Without an attack the bare network has 87.5 %"],
        ),
        (
            {"none": [3, 0], "jpeg_75": [3, 0], "adversarial": [30, 25]},
            "Adversarial training.",
            [
                "the bare network keeps 7.5 %",
                "it keeps 75.0 % (59.8 to 85.8, n = 40) with adversarial training. No other is shown",
                "p < 0.0001",
            ],
        ),
        (
            {
                "none": [3, 0],
                "jpeg_75": [30, 3],
                "blur": [3, 0],
                "jpeg_30": [4, 0],
                "adversarial": [20, 25],
            },
            "At epsilon 0.01 JPEG, quality 75 and adversarial training; at epsilon 0.03 adversarial "
            "training.",
            [
                "with JPEG, quality 75, and 50.0 % (35.2 to 64.8, n = 40) with adversarial training.",
                "Not shown to help there: JPEG, quality 30; Gaussian smoothing, sigma 1.",
                "adversarial training against none at 0.01: p",
                "Which of those that help is better was not tested.",
            ],
        ),
        (  # fewer than without a defence is no help, however sure
            {"none": [30, 30], "jpeg_75": [3, 3], "blur": [31, 30]},
            "None is shown to help against an attacker who knows it.",
            [
                "the bare network keeps 75.0 %",
                "it keeps 77.5 % (62.5 to 87.7, n = 40) with Gaussian",
            ],
        ),
    ],
)
def test_which_defence_helps_against_who_knows_it(kept, first, phrases):
    answer = said(a_study(kept), "Which defences of photo_cnn help?", 0.03)
    assert answer.splitlines()[0] == first
    for phrase in phrases:
        assert phrase in answer, answer
