"""Reading a result.json: every complaint names the file, the place in it and what was wrong."""

import json
from pathlib import Path
from typing import Any

from jaxrobust.reports.outline import PART, SECTION, check_outline
from jaxrobust.reports.reading_blocks import VERDICT
from jaxrobust.reports.schema import (
    ANYTHING,
    ARRAY,
    BOOLEAN,
    INTEGER,
    MAPPING,
    NUMBER,
    RATE,
    TEXT,
    array_shape,
    check,
    check_image,
    short,
)
from jaxrobust.reports.suites import diagnostics_of_model, suite

FORMAT = 1


_EPOCH = {
    "epoch": INTEGER,
    "train_loss": NUMBER,
    "train_accuracy": NUMBER,
    "validation_loss?": NUMBER,
    "validation_accuracy?": NUMBER,
    "learning_rate": NUMBER,
}
_SCORES = {"precision": NUMBER, "recall": NUMBER, "f1": NUMBER}
_MODEL = {
    "name": TEXT,
    "description?": TEXT,
    "num_parameters": NUMBER,
    "seeds?": [{"seed": INTEGER, "accuracy": RATE}],
    "training": {"seconds_per_epoch": NUMBER, "attack?": TEXT, "epochs": [_EPOCH]},
    "evaluation": {
        "accuracy": RATE,
        "loss": NUMBER,
        "confusion_matrix": [[NUMBER]],
        "per_class": [{"class": TEXT, **_SCORES, "support": NUMBER}],
        "macro": _SCORES,
        "warnings?": [TEXT],
    },
}
_RECORD = {
    "index": INTEGER,
    "label": INTEGER,
    "target?": INTEGER,
    "attacked": BOOLEAN,
    "success": BOOLEAN,
    "clean_prediction": INTEGER,
    "adversarial_prediction": INTEGER,
    "clean_confidence": NUMBER,
    "adversarial_confidence": NUMBER,
    "clean_logits": [NUMBER],
    "adversarial_logits": [NUMBER],
    "l2": NUMBER,
    "linf": NUMBER,
    "num_steps": NUMBER,
}
_ATTACK = {
    "name": TEXT,
    "label": TEXT,
    "parameters": MAPPING,
    "model": TEXT,
    "target?": TEXT,
    "success": RATE,
    "robust_accuracy?": RATE,
    "mean_l2": NUMBER,
    "mean_linf": NUMBER,
    "norms_of?": TEXT,
    "median_norm?": {"norm": TEXT, "median": NUMBER, "n": INTEGER, "failures": INTEGER},
    "warnings?": [TEXT],
    "mean_confidence": NUMBER,
    "median_steps?": NUMBER,
    "records": [_RECORD],
}
_EXPLANATION = {
    "model": TEXT,
    "class": TEXT,
    "index": INTEGER,
    "label": INTEGER,
    "prediction": INTEGER,
    "confidence": NUMBER,
    "layer?": TEXT,
    "image": ARRAY,
    "saliency": ARRAY,
    "grad_cam?": ARRAY,
}
_EXAMPLE = {
    "model": TEXT,
    "attack": TEXT,
    "index": INTEGER,
    "label": INTEGER,
    "target?": INTEGER,
    "success": BOOLEAN,
    "prediction": INTEGER,
    "confidence": NUMBER,
    "adversarial_prediction": INTEGER,
    "adversarial_confidence": NUMBER,
    "l2": NUMBER,
    "linf": NUMBER,
    "num_steps": NUMBER,
    "image": ARRAY,
    "adversarial": ARRAY,
    "saliency": ARRAY,
    "adversarial_saliency": ARRAY,
    "grad_cam?": ARRAY,
    "adversarial_grad_cam?": ARRAY,
}
_RESULT = {
    "experiment": TEXT,
    "title": TEXT,
    "summary": [TEXT],
    "config": MAPPING,
    "seed": NUMBER,
    "environment": MAPPING,
    "timings": MAPPING,
    "data": {
        "name": TEXT,
        "class_names": [TEXT],
        "num_train": NUMBER,
        "num_test": NUMBER,
        "image_shape": [INTEGER],
        "skipped_files?": [ANYTHING],
    },
    "models": [_MODEL],
    "suites?": [suite],
    "attacks?": [_ATTACK],
    "diagnostics?": [diagnostics_of_model],
    "transfer?": [
        {
            "label": TEXT,
            "target?": TEXT,
            "models": [TEXT],
            "rates": [[RATE]],
            "warnings?": [TEXT],
        }
    ],
    "explanations?": [_EXPLANATION],
    "gallery?": [_EXAMPLE],
    "curves?": [
        {
            "model": TEXT,
            "label": TEXT,
            "points": [{"epsilon": NUMBER, "robust_accuracy": RATE}],
            "suite?": {"label": TEXT, "epsilon": NUMBER, "robust_accuracy": RATE},
            "warnings?": [TEXT],
        }
    ],
    "verdicts?": [VERDICT],
    "parts?": [PART],
    "sections?": [SECTION],
}


def read_result(path: Path) -> dict[str, Any]:
    """Reads and checks a result.json.

    Args:
      path: The file.

    Returns:
      The result; the optional lists (attacks, transfer, ...) are there and empty where it has none.

    Raises:
      FileNotFoundError: There is no such file.
      ValueError: It is not JSON, not of this format, or lacks a key; the message says which.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; name the result.json of a run, as in "
            "results/<experiment>/<run>/result.json."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors.
        raise ValueError(f"{path}: this is not valid JSON: {error}.") from error
    try:
        _check_result(result)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    optional: dict[str, Any] = {key.rstrip("?"): [] for key in _RESULT if key.endswith("?")}
    return optional | {key: value for key, value in result.items() if value is not None}


def _check_result(result: Any) -> None:
    if not isinstance(result, dict):
        raise ValueError(f"the file must hold an object, got {short(result)}.")
    if result.get("format") != FORMAT:
        raise ValueError(f"`format` must be {FORMAT}, got {short(result.get('format'))}.")
    check(result, _RESULT, "")
    for section in ("explanations", "gallery"):
        for position, item in enumerate(result.get(section) or []):
            _check_pictures(item, f"{section}[{position}]")
    check_outline(result)


def _check_pictures(item: dict[str, Any], where: str) -> None:
    """Images must be [H, W, 1 or 3], and whatever is drawn beside them as large."""
    shapes = {
        key: array_shape(value, f"{where}.{key}")
        for key, value in item.items()
        if isinstance(value, dict)
    }
    image = shapes["image"]
    check_image(image, f"{where}.image")
    for key, shape in shapes.items():
        expected = image if key in ("image", "adversarial") else image[:2]
        if shape != expected:
            raise ValueError(f"`{where}.{key}` must have shape {expected}, got {shape}.")
