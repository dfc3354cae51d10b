"""Reading a result.json: every complaint names the file, the place in it and what was wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxrobust.reports.pictures import decode_array

FORMAT = 1


class _Kind(NamedTuple):
    """A leaf of the schema: what it is called and what passes."""

    words: str
    passes: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    # None is how JSON writes a number that could not be measured.
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


_TEXT = _Kind("text", lambda value: isinstance(value, str))
_NUMBER = _Kind("a number or null", _is_number)
_INTEGER = _Kind("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool))
_BOOLEAN = _Kind("true or false", lambda value: isinstance(value, bool))
_MAPPING = _Kind("an object", lambda value: isinstance(value, dict))
_ANYTHING = _Kind("anything", lambda value: True)

# The format of docs/result_format.md: a dict lists keys ("?": may be absent or null), a list of one
# says what every item is.
_RATE = {"count": _NUMBER, "n": _NUMBER, "rate": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_ARRAY = {"dtype": _TEXT, "shape": [_INTEGER], "base64": _TEXT}
_EPOCH = {
    "epoch": _INTEGER,
    "train_loss": _NUMBER,
    "train_accuracy": _NUMBER,
    "validation_loss?": _NUMBER,
    "validation_accuracy?": _NUMBER,
    "learning_rate": _NUMBER,
}
_SCORES = {"precision": _NUMBER, "recall": _NUMBER, "f1": _NUMBER}
_MODEL = {
    "name": _TEXT,
    "description?": _TEXT,
    "num_parameters": _NUMBER,
    "seeds?": [{"seed": _INTEGER, "accuracy": _RATE}],
    "training": {"seconds_per_epoch": _NUMBER, "attack?": _TEXT, "epochs": [_EPOCH]},
    "evaluation": {
        "accuracy": _RATE,
        "loss": _NUMBER,
        "confusion_matrix": [[_NUMBER]],
        "per_class": [{"class": _TEXT, **_SCORES, "support": _NUMBER}],
        "macro": _SCORES,
    },
}
_RECORD = {
    "index": _INTEGER,
    "label": _INTEGER,
    "target?": _INTEGER,
    "attacked": _BOOLEAN,
    "success": _BOOLEAN,
    "clean_prediction": _INTEGER,
    "adversarial_prediction": _INTEGER,
    "clean_confidence": _NUMBER,
    "adversarial_confidence": _NUMBER,
    "clean_logits": [_NUMBER],
    "adversarial_logits": [_NUMBER],
    "l2": _NUMBER,
    "linf": _NUMBER,
    "num_steps": _NUMBER,
}
_ATTACK = {
    "name": _TEXT,
    "label": _TEXT,
    "parameters": _MAPPING,
    "model": _TEXT,
    "target?": _TEXT,
    "success": _RATE,
    "robust_accuracy?": _RATE,
    "mean_l2": _NUMBER,
    "mean_linf": _NUMBER,
    "mean_confidence": _NUMBER,
    "median_steps?": _NUMBER,
    "records": [_RECORD],
}
_EXPLANATION = {
    "model": _TEXT,
    "class": _TEXT,
    "index": _INTEGER,
    "label": _INTEGER,
    "prediction": _INTEGER,
    "confidence": _NUMBER,
    "layer?": _TEXT,
    "image": _ARRAY,
    "saliency": _ARRAY,
    "grad_cam?": _ARRAY,
}
_EXAMPLE = {
    "model": _TEXT,
    "attack": _TEXT,
    "index": _INTEGER,
    "label": _INTEGER,
    "target?": _INTEGER,
    "success": _BOOLEAN,
    "prediction": _INTEGER,
    "confidence": _NUMBER,
    "adversarial_prediction": _INTEGER,
    "adversarial_confidence": _NUMBER,
    "l2": _NUMBER,
    "linf": _NUMBER,
    "num_steps": _NUMBER,
    "image": _ARRAY,
    "adversarial": _ARRAY,
    "saliency": _ARRAY,
    "adversarial_saliency": _ARRAY,
    "grad_cam?": _ARRAY,
    "adversarial_grad_cam?": _ARRAY,
}
_RESULT = {
    "experiment": _TEXT,
    "title": _TEXT,
    "summary": [_TEXT],
    "config": _MAPPING,
    "seed": _NUMBER,
    "environment": _MAPPING,
    "timings": _MAPPING,
    "data": {
        "name": _TEXT,
        "class_names": [_TEXT],
        "num_train": _NUMBER,
        "num_test": _NUMBER,
        "image_shape": [_INTEGER],
        "skipped_files?": [_ANYTHING],
    },
    "models": [_MODEL],
    "attacks?": [_ATTACK],
    "transfer?": [{"label": _TEXT, "target?": _TEXT, "models": [_TEXT], "rates": [[_RATE]]}],
    "explanations?": [_EXPLANATION],
    "gallery?": [_EXAMPLE],
    "curves?": [
        {
            "model": _TEXT,
            "label": _TEXT,
            "points": [{"epsilon": _NUMBER, "robust_accuracy": _RATE}],
        }
    ],
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
        raise ValueError(f"the file must hold an object, got {_short(result)}.")
    if result.get("format") != FORMAT:
        raise ValueError(f"`format` must be {FORMAT}, got {_short(result.get('format'))}.")
    _check(result, _RESULT, "")
    for section in ("explanations", "gallery"):
        for position, item in enumerate(result.get(section) or []):
            _check_pictures(item, f"{section}[{position}]")


def _check(value: Any, schema: Any, where: str) -> None:
    """Raises ValueError, naming the place, unless `value` has the shape of `schema`."""
    if isinstance(schema, _Kind):
        if not schema.passes(value):
            raise ValueError(f"`{where}` must be {schema.words}, got {_short(value)}.")
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"`{where}` must be a list, got {_short(value)}.")
        for position, item in enumerate(value):
            _check(item, schema[0], f"{where}[{position}]")
    else:
        if not isinstance(value, dict):
            raise ValueError(f"`{where}` must be an object, got {_short(value)}.")
        for key, inner in schema.items():
            name = key.rstrip("?")
            place = f"{where}.{name}" if where else name
            if name not in value and not key.endswith("?"):
                raise ValueError(f"`{place}` is missing.")
            if not (key.endswith("?") and value.get(name) is None):
                _check(value[name], inner, place)


def _check_pictures(item: dict[str, Any], where: str) -> None:
    """Images must be [H, W, 1 or 3], and whatever is drawn beside them as large."""
    shapes = {}
    for key, value in item.items():
        if isinstance(value, dict):
            try:
                shapes[key] = decode_array(value).shape
            except ValueError as error:
                raise ValueError(f"`{where}.{key}`: {error}") from error
    image = shapes["image"]
    if len(image) != 3 or image[2] not in (1, 3) or 0 in image:
        raise ValueError(f"`{where}.image` must be [H, W, 1] or [H, W, 3], got shape {image}.")
    for key, shape in shapes.items():
        expected = image if key in ("image", "adversarial") else image[:2]
        if shape != expected:
            raise ValueError(f"`{where}.{key}` must have shape {expected}, got {shape}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
