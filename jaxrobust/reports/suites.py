"""Suites of attacks and sanity checks in a report: what was left standing, and whether to trust it."""

from collections.abc import Sequence
from typing import Any

from jaxrobust.reports import formatting
from jaxrobust.reports.schema import BOOLEAN, INTEGER, MAPPING, NUMBER, RATE, TEXT, check, short

# What a verdict of the sanity checks means to whoever reads the robust accuracy.
# From the best to the worst: of several verdicts on a model the worst counts.
BANNERS = {
    "sound": "The sanity checks found no sign of gradient masking.",
    "suspicious": "Suspicious: take the robust accuracy for an upper bound.",
    "gradient masking": "Looks like gradient masking: do not trust the robust accuracy.",
}

_DIAGNOSTICS = {
    "norm": TEXT,
    "epsilon": NUMBER,
    "n": INTEGER,
    "checks": [{"name": TEXT, "passed?": BOOLEAN, "detail": TEXT}],
    "verdict": TEXT,
    "reason": TEXT,
}


def diagnostics(value: Any, where: str) -> None:
    """Raises ValueError, naming the place, unless `value` is a DIAGNOSTICS."""
    check(value, _DIAGNOSTICS, where)
    if value["verdict"] not in BANNERS:
        raise ValueError(
            f"`{where}.verdict` must be one of {tuple(BANNERS)}, got {short(value['verdict'])}."
        )


def diagnostics_of_model(value: Any, where: str) -> None:
    """Raises ValueError, naming the place, unless `value` is a DIAGNOSTICS that names its model."""
    check(value, {"model": TEXT}, where)
    diagnostics(value, where)


_SUITE = {
    "model": TEXT,
    "label?": TEXT,
    "clean_accuracy": RATE,
    "robust_accuracy": RATE,
    "attacks": [
        {
            "name": TEXT,
            "label": TEXT,
            "parameters": MAPPING,
            "fooled": INTEGER,
            "robust_accuracy": RATE,
            "seconds": NUMBER,
        }
    ],
    "num_queries": NUMBER,
    "num_gradients": NUMBER,
    "saw_nan": INTEGER,
    "warnings?": [TEXT],
    "fooled_by": [INTEGER],
    "predictions": [INTEGER],
    "labels": [INTEGER],
    "indices?": [INTEGER],
    "diagnostics?": diagnostics,
}


def suite(value: Any, where: str) -> None:
    """Raises ValueError, naming the place, unless `value` is a SUITE of docs/result_format.md."""
    check(value, _SUITE, where)
    for position, number in enumerate(value["fooled_by"]):
        if not -2 <= number < len(value["attacks"]):
            raise ValueError(
                f"`{where}.fooled_by[{position}]` must be -2, -1 or the number of an attack below "
                f"{len(value['attacks'])}, got {number}."
            )
    for key in ("predictions", "labels", "indices"):
        if value.get(key) is not None and len(value[key]) != len(value["fooled_by"]):
            raise ValueError(
                f"`{where}.{key}` must have an entry for each of the {len(value['fooled_by'])} "
                f"images, got {len(value[key])}."
            )


def strongest(model: str, suites: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What the suites leave of a model, as the key figures have it: the least of several."""
    of_model = [item for item in suites if item["model"] == model]
    known = [item for item in of_model if formatting.finite(item["robust_accuracy"]["rate"])]
    least = min(known, key=lambda item: item["robust_accuracy"]["rate"], default=None)
    if least is None:
        return None
    label = least.get("label") or ", ".join(attack["name"] for attack in least["attacks"])
    return {"label": label, "robust_accuracy": least["robust_accuracy"]}


def warning(model: str, result: dict[str, Any]) -> str | None:
    """What the sanity checks of a model warn of; None where there are none, or they hold.

    Args:
      model: Its name.
      result: As `read_result` returns it.
    """
    of_suites = [item.get("diagnostics") for item in result["suites"] if item["model"] == model]
    alone = [item for item in result["diagnostics"] if item.get("model") == model]
    verdicts = {item["verdict"] for item in (*of_suites, *alone) if item is not None}
    return next((BANNERS[v] for v in reversed(BANNERS) if v in verdicts and v != "sound"), None)


def drawn(suites: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The suites as the template prints them.

    Args:
      suites: The SUITEs of a result.

    Returns:
      {"title", "rows", "size", "saw_nan", "warnings", "diagnostics"} each; rows begin with the clean
      images and have "share", what is left, and "lost", what this attack took.
    """
    return [_drawn(item) for item in suites]


def _drawn(item: dict[str, Any]) -> dict[str, Any]:
    clean = {"name": "no attack", "label": "", "fooled": None, "seconds": None}
    rows = [clean | {"robust_accuracy": item["clean_accuracy"]}, *item["attacks"]]
    shares = [_share(row["robust_accuracy"]) for row in rows]
    before = [shares[0], *shares[:-1]]
    return {
        "title": f"{item['model']}: {item['label']}" if item.get("label") else item["model"],
        "rows": [
            {**row, "share": share, "lost": max(0.0, last - share)}
            for row, share, last in zip(rows, shares, before, strict=True)
        ],
        "size": formatting.sample_size(item["clean_accuracy"]),
        "saw_nan": item["saw_nan"],
        "warnings": item.get("warnings", []),
        "diagnostics": drawn_diagnostics(item["diagnostics"]) if item.get("diagnostics") else None,
    }


def _share(rate: dict[str, Any]) -> float:
    return rate["rate"] if formatting.finite(rate["rate"]) else 0.0


def drawn_diagnostics(item: dict[str, Any]) -> dict[str, Any]:
    """Sanity checks as the template prints them: with a banner, and a mark for each check."""
    marks = {True: ("✓", "passed"), False: ("✗", "failed"), None: ("–", "not applicable")}
    return {
        **item,
        "banner": BANNERS[item["verdict"]],
        "sound": item["verdict"] == "sound",
        "checks": [
            {**check, **dict(zip(("mark", "words"), marks[check.get("passed")], strict=True))}
            for check in item["checks"]
        ],
    }
