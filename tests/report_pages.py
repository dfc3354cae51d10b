"""A result with something of every kind, and what a test asks of its report."""

import base64
import json
import math
from html.parser import HTMLParser

import numpy as np

from jaxrobust.reports import write_report

EVIL = "<script>alert('x')</script>"
NAMES = ["cat", EVIL, "$\\frac"]
RATE = {"count": 41, "n": 50, "rate": 0.82, "low": 0.692, "high": 0.902}
NO_RATE = {"count": 0, "n": 0, "rate": math.nan, "low": None, "high": None}
SECTIONS = {
    "attacks": {"attacks", "records"},
    "transfer": {"transfer"},
    "explanations": {"explanations"},
    "gallery": {"gallery"},
    "curves": {"curves"},
}


def encode(array):
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "base64": data}


def make_model(name):
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
    }


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


def make_result():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    adversarial = np.clip(image / np.float32(255) + np.float32(0.05), 0, 1).astype(np.float32)
    one_map = encode(rng.random((8, 8), dtype=np.float32))
    prediction = {"index": 7, "label": 0, "prediction": 0, "confidence": 0.9, "saliency": one_map}
    example = {
        **prediction,
        "attack": "PGD",
        "success": True,
        "adversarial_prediction": 1,
        "adversarial_confidence": 0.97,
        "l2": 1.4,
        "linf": 0.05,
        "num_steps": 3,
        "image": encode(image),
        "adversarial": encode(adversarial),
        "adversarial_saliency": one_map,
    }
    cams = {"grad_cam": one_map, "adversarial_grad_cam": one_map}
    explanation = {**prediction, "class": "cat", "image": encode(image)}
    return {
        "format": 1,
        "experiment": "tiny",
        "title": f"A study of {EVIL}",
        "summary": ["The first paragraph.", "The second paragraph."],
        "config": {"train": {"batch_size": 32}, "resume": None, "note": EVIL},
        "seed": 3,
        "environment": {"jaxrobust": "0.1.0", "device": "a cpu", "commit": None},
        "timings": {"train cnn": 12.34},
        "data": {
            "name": "pets",
            "class_names": NAMES,
            "num_train": 1593,
            "num_test": 50,
            "image_shape": [8, 8, 3],
            "skipped_files": ["broken.jpg"],
        },
        "models": [make_model("mlp"), make_model("cnn")],
        "attacks": [
            make_attack("mlp", "FGSM", 0.2),
            make_attack("cnn", "FGSM", 0.24),
            make_attack("cnn", "PGD, linf 0.03", 0.08),
            make_attack("cnn", "PGD, linf 0.03", None, target="cat"),
        ],
        "transfer": [
            {"label": "PGD", "models": ["mlp", "cnn"], "rates": [[RATE, RATE], [NO_RATE, RATE]]}
        ],
        "explanations": [
            {**explanation, "model": "mlp"},
            {**explanation, "model": "cnn", "layer": "conv5", "grad_cam": one_map, "prediction": 2},
        ],
        "gallery": [{**example, "model": "mlp"}, {**example, **cams, "model": "cnn", "target": 1}],
        "curves": [
            {
                "model": "cnn",
                "label": "PGD",
                "points": [
                    {"epsilon": 0.0, "robust_accuracy": RATE},
                    {"epsilon": 0.01, "robust_accuracy": NO_RATE},
                    {"epsilon": 0.02, "robust_accuracy": RATE},
                ],
            }
        ],
    }


class Page(HTMLParser):
    """What a test asks of a report: its tags, its ids, and the words of each section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.section = [], [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag == "section":
            self.section = attributes["id"]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.handle_data(" ")

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words[self.section] = self.words.get(self.section, "") + data

    def text(self, section):
        return " ".join(self.words[section].replace("\xa0", " ").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def sections(self):
        return {attributes["id"] for attributes in self.all("section")}


def report(tmp_path, result):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    return write_report(path).read_text(encoding="utf-8")
