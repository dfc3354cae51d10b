"""A result with a block of every kind, what is measured for a report, what a test asks of a page."""

import base64
import json
import math
from html.parser import HTMLParser

import numpy as np

from jaxrobust import evaluation
from jaxrobust.reports import write_report

EVIL = "<script>alert('x')</script> *_&"
NAMES = ["cat", EVIL, "$\\frac"]
RATE = {"count": 41, "n": 50, "rate": 0.82, "low": 0.692, "high": 0.902}
NO_RATE = {"count": 0, "n": 0, "rate": math.nan, "low": None, "high": None}
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
MAP = np.random.default_rng(1).random((8, 8), dtype=np.float32)
FLOATS = (IMAGE / 255).astype(np.float32)


def encode(array):
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": data}


def make_result(blocks=None):
    """A result of these blocks, or of one of every kind."""
    return {
        "format": 2,
        "experiment": "tiny",
        "title": f"A study of {EVIL}",
        "summary": [
            f"The **first** paragraph, see {'[costs](#costs)' if blocks is None else 'costs'}.",
            f"The second {EVIL}.",
        ],
        "config": {"train": {"batch_size": 32}, "resume": None, "note": EVIL},
        "seed": 3,
        "environment": {"jaxrobust": "0.2.0", "device": "a cpu", "commit": None},
        "timings": {"train cnn": 12.34},
        "data": {
            "name": "pets",
            "class_names": NAMES,
            "num_train": 1593,
            "num_test": 50,
            "image_shape": [8, 8, 3],
            "skipped_files": ["broken.jpg"],
        },
        "blocks": make_blocks() if blocks is None else blocks,
    }


def heading(level, name, title="A title"):
    return {"kind": "heading", "level": level, "id": name, "title": title}


def make_blocks():
    return [make_verdict(), heading(1, "part", f"Part {EVIL}"), *make_section()]


def make_verdict():
    return {
        "kind": "verdict",
        "question": f"Which one? {EVIL}",
        "text": "The dense one.\n\n**How sure:** fairly.",
        "evidence": [{"text": "Costs", "href": "#costs"}, {"text": "a remark"}],
    }


def make_section():
    """A section with a block of every kind; the first is a heading, at 2 of the whole."""
    return [
        {"kind": "text", "text": f"Because of\n\n- one *thing*\n- {EVIL}\n- and `code`"},
        heading(2, "costs-section", "Costs"),
        {
            "kind": "table",
            "id": "costs",
            "title": f"Costs {EVIL}",
            "caption": "What **it** costs.",
            "columns": [
                {"title": "Variant"},
                {"title": "Sparsity", "unit": "%"},
                {"title": "Mean", "unit": "ms", "group": "Latency"},
                {"title": "Change", "group": "Latency", "decimals": 1},
                {"title": "Accuracy"},
                {"title": "Note"},
            ],
            "rows": [
                ["dense", 0, {"value": 3.21, "deviation": 0.12}, None, RATE, "as trained"],
                [
                    *(EVIL, 0.8, {"value": 3.0, "deviation": 0.2}),
                    *({"value": -2.5, "low": -3, "high": -2}, RATE, None),
                ],
            ],
            "highlight": [1],
        },
        {
            "kind": "chart",
            "title": "Accuracy",
            "x": {"title": "sparsity", "percent": True},
            "y": {"title": "accuracy", "percent": True},
            "series": [
                {"name": "cnn", "x": [0, 0.5], "y": [0.8, None], "low": [0.7, 0], "high": [0.9, 1]},
                {"name": "cnn, tuned", "model": "cnn", "dashed": True, "x": [0], "y": [0.85]},
                {"name": EVIL, "x": [], "y": []},
            ],
        },
        {
            "kind": "chart",
            "x": {"title": "batch", "log": True},
            "y": {"title": "ms", "log": True},
            "series": [{"name": "dense", "x": [0, 1, 16, 100], "y": [9, 3.2, 21, 120]}],
        },
        {
            "kind": "intervals",
            "id": "seeds",
            "title": "Seeds",
            "groups": [{"name": f"seed 0 {EVIL}", "items": [{"name": "cnn", "value": RATE}]}],
        },
        {
            "kind": "intervals",
            "title": "Norms",
            "folded": True,
            "groups": [
                {
                    "name": "PGD",
                    "items": [
                        {"name": "cnn", "value": {"value": 1.5, "deviation": 0.25}},
                        {"name": "mlp", "value": {"value": None, "low": None, "high": None}},
                    ],
                }
            ],
        },
        heading(3, "closer", "Closer"),
        {
            "kind": "pictures",
            "columns": ["original", "heat", "overlay", "change"],
            "rows": [
                {
                    "label": f"cat {EVIL}",
                    "text": "image 3",
                    "tiles": [
                        {"image": encode(IMAGE)},
                        {"map": encode(MAP), "title": "a title of its own"},
                        {"image": encode(IMAGE[..., :1]), "map": encode(MAP), "text": "golf"},
                        {"image": encode(FLOATS), "against": encode(FLOATS)},
                    ],
                },
                {"label": "dog", "tiles": [None, None, None, {"image": encode(FLOATS)}]},
            ],
        },
        {
            "kind": "heat",
            "title": "Agreement",
            "rows": ["a", EVIL],
            "columns": ["c"],
            "values": [[RATE], [None]],
            "row_title": "made on",
            "column_title": "shown to",
        },
        {"kind": "text", "title": "Why", "folded": True, "text": "Because."},
        {"kind": "notice", "tone": "doubtful", "text": f"**Careful** with {EVIL}."},
        make_verdict(),
    ]


# ---- what `evaluation` and `studies` return, by hand ----


def make_model(name, **more):
    epochs = [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 0.2 * epoch,
            "validation_loss": None if epoch == 2 else 2.5 / epoch,
            "validation_accuracy": math.nan if epoch == 2 else 0.15 * epoch,
            "learning_rate": 0.001,
        }
        for epoch in (1, 2, 3)
    ]
    scores = {"precision": 0.71, "recall": 0.61, "f1": 0.66}
    return {
        "name": name,
        "description": f"the {name}",
        "num_parameters": 141610,
        "training": {"seconds_per_epoch": 1.25, "epochs": epochs},
        "evaluation": {
            "accuracy": RATE,
            "loss": 0.734,
            "confusion_matrix": [[13, 4, 0], [0, 17, 0], [1, 0, 15]],
            "per_class": [{"class": label, **scores, "support": 17} for label in NAMES],
            "macro": scores,
        },
    } | more


def make_attack(model, label, robust_rate, target=None):
    record = {
        "index": 7,
        "label": 0,
        "attacked": True,
        "success": True,
        "clean_prediction": 0,
        "adversarial_prediction": 1,
        "clean_confidence": 0.9,
        "adversarial_confidence": 0.9999,
        "clean_logits": [3.25, -1.5, math.nan],
        "adversarial_logits": [0.5, 4.75, 0.0],
        "l2": 0.8125,
        "linf": 0.03,
        "num_steps": 2,
    }
    attack = {
        "name": "PGD",
        "label": label,
        "parameters": {"epsilon": 0.03},
        "model": model,
        "success": RATE,
        "robust_accuracy": {"count": 0, "n": 50, "rate": robust_rate, "low": 0.0, "high": 0.3},
        "norms_of": "successes",
        "mean_l2": 1.234,
        "mean_linf": 0.0288,
        "mean_confidence": 0.93,
        "median_steps": 3.0,
        "records": [record],
    }
    if target:
        attack |= {"target": target, "robust_accuracy": None}
        record["target"] = NAMES.index(target)
    return attack


def make_suite(model="cnn", **more):
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
                "fooled": fooled,
                "robust_accuracy": evaluation.rate(left, 8),
                "seconds": 12.34,
            }
            for name, fooled, left in entries
        ],
        "saw_nan": 0,
    } | more


def make_diagnostics(verdict, **more):
    return {
        "norm": "linf",
        "epsilon": 8 / 255,
        "n": 8,
        "checks": [
            {"name": "unbounded attack", "passed": False, "detail": "12 % stand."},
            {"name": EVIL, "passed": True, "detail": "They help."},
            {"name": "black box", "passed": None, "detail": "Not in l1."},
        ],
        "verdict": verdict,
        "reason": f"Because of {EVIL}.",
    } | more


def make_curve(model="cnn", **more):
    rates = ((0.0, RATE), (0.01, NO_RATE), (0.02, RATE))
    points = [{"epsilon": epsilon, "robust_accuracy": rate} for epsilon, rate in rates]
    return {"model": model, "label": "PGD", "points": points} | more


def make_transfer(**more):
    rates = [[RATE, RATE], [NO_RATE, RATE]]
    return {"label": "PGD", "models": ["mlp", "cnn"], "rates": rates} | more


_SHOWN = {"index": 7, "label": 0, "prediction": 0, "confidence": 0.9, "saliency": encode(MAP)}


def make_explanation(model, prediction, **more):
    shown = {"class": "cat", "image": encode(IMAGE), "model": model, "prediction": prediction}
    return _SHOWN | shown | more


def make_example(model, image=IMAGE, **more):
    return {
        **_SHOWN,
        "model": model,
        "attack": "PGD",
        "success": True,
        "adversarial_prediction": 1,
        "adversarial_confidence": 0.97,
        "l2": 1.4,
        "linf": 0.05,
        "num_steps": 3,
        "image": encode(image),
        "adversarial": encode(np.clip(image / np.float32(255) + np.float32(0.05), 0, 1)),
        "adversarial_saliency": encode(MAP),
    } | more


class Page(HTMLParser):
    """What a test asks of a report: its tags, its ids, and the words of each section."""

    def __init__(self, text):
        super().__init__()
        self.source, self.tags, self.open, self.words, self.section = text, [], [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("meta", "link", "img", "br", "hr"):
            self.open.append(tag)
        if tag == "section":
            self.section = attributes["id"]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th", "li", "div"):
            self.handle_data(" ")

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words[self.section] = self.words.get(self.section, "") + data

    def text(self, section=None):
        return " ".join(self.words[section].replace("\xa0", " ").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def sections(self):
        return [attributes["id"] for attributes in self.all("section")]


def report(tmp_path, result):
    """The page of a result, or of blocks; whatever it holds is well-formed and runs nothing."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_result(result) if isinstance(result, list) else result))
    page = Page(write_report(path).read_text(encoding="utf-8"))
    assert page.open == [] and len(page.all("script")) == 1
    assert "<script>alert" not in page.source
    return page
