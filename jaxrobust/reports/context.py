"""From a checked result to what the template prints: groups, figures, tiles and heat tables."""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxrobust.reports import figures, formatting, sections, suites
from jaxrobust.reports.gallery import explanation_groups, gallery_groups
from jaxrobust.reports.looks import assign
from jaxrobust.reports.naming import class_name, grouped, titled
from jaxrobust.reports.outline import anchors, chapters

# More rows than a reader looks at only make the page slow; the rest stays in result.json.
_MAX_RECORDS, _MAX_ALL_RECORDS = 200, 5000
_MAX_LOGITS = 20


def build_context(result: dict[str, Any]) -> dict[str, Any]:
    """Everything that the template needs.

    Args:
      result: As `read_result` returns it: checked, optional lists present.

    Returns:
      The variables of report.html.j2.
    """
    names, models, attacks = result["data"]["class_names"], result["models"], result["attacks"]
    looks = assign(result)
    most = min(_MAX_RECORDS, _MAX_ALL_RECORDS // max(1, len(attacks)))
    context = {
        "result": result,
        "looks": looks,
        "key_figures": [
            (
                model,
                _strongest(model["name"], attacks),
                suites.strongest(model["name"], result["suites"]),
                suites.warning(model["name"], result),
            )
            for model in models
        ],
        "suites": suites.drawn(result["suites"]),
        "sanity": [suites.drawn_diagnostics(item) for item in result["diagnostics"]],
        "seeds": [_seeds(model) for model in models if len(model.get("seeds") or ()) > 1],
        "training": _training(models, looks),
        "has_validation": any(
            "validation_loss" in epoch for model in models for epoch in model["training"]["epochs"]
        ),
        "any_attacked": any(model["training"].get("attack") for model in models),
        "confusion": [
            (model["name"], _confusion(names, model["evaluation"]["confusion_matrix"]))
            for model in models
            if model["evaluation"]["confusion_matrix"]
        ],
        "per_class": _per_class(models),
        "attacks": grouped(attacks, "model"),
        "attack_figures": _attack_figures(attacks, looks),
        "warnings": {
            "models": _warnings(models, lambda model: model["evaluation"]),
            **{part: _warnings(result[part]) for part in ("attacks", "curves", "transfer")},
        },
        # Files of earlier releases have means over all images attacked.
        "norms_of": sorted({one.get("norms_of", "all") for one in attacks}),
        "curves": _curves(result["curves"], looks),
        "transfer": [(transfer, _transfer(transfer)) for transfer in result["transfer"]],
        "explanations": list(explanation_groups(result["explanations"], names)),
        "gallery": list(gallery_groups(result["gallery"], names)),
        "records": [
            (attack, [_record(record, names) for record in attack["records"][:most]])
            for attack in attacks
            if attack["records"]
        ],
        "settings": list(_flat(result["config"])),
        "environment": list(_flat(result["environment"])),
    }
    outline = chapters(result, context, [sections.draw(item, looks) for item in result["sections"]])
    return context | {"chapters": outline, "anchors": anchors(outline)}


def _strongest(model: str, attacks: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The attack that leaves `model` the least accuracy, of those that measured it."""
    measured = [
        attack
        for attack in attacks
        if attack["model"] == model
        and attack.get("robust_accuracy")
        and formatting.finite(attack["robust_accuracy"]["rate"])
    ]
    # Among equals the last one: studies list their attacks from weak to strong.
    measured.reverse()
    return min(measured, key=lambda attack: attack["robust_accuracy"]["rate"], default=None)


def _seeds(model: dict[str, Any]) -> dict[str, Any]:
    """A model trained with several seeds: each accuracy, their mean and standard deviation."""
    rates = [row["accuracy"]["rate"] for row in model["seeds"]]
    known = [rate for rate in rates if rate is not None]
    return {
        "name": model["name"],
        "rows": model["seeds"],
        "mean": statistics.mean(known) if known else None,
        "deviation": statistics.stdev(known) if len(known) > 1 else None,
    }


def _training(
    models: Sequence[dict[str, Any]], looks: dict[str, figures.Series]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """(model, its panels) for each model with epochs to draw; a panel is (quantity, SVG)."""
    losses = _recorded(models, "loss")
    top = 1.05 * max(losses, default=1.0) or 1.0
    drawn = []
    for index, model in enumerate(models):
        panels = [
            (
                quantity,
                figures.training(
                    model["training"]["epochs"],
                    quantity,
                    looks[model["name"]],
                    f"training-{index}-{quantity}",
                    top,
                ),
            )
            for quantity in ("loss", "accuracy")
            if _recorded([model], quantity)
        ]
        if panels:
            attack = model["training"].get("attack")
            title = f"{model['name']} under {attack}" if attack else model["name"]
            drawn.append((title, panels))
    return drawn


def _recorded(models: Sequence[dict[str, Any]], quantity: str) -> list[float]:
    values = [
        epoch.get(f"{part}_{quantity}")
        for model in models
        for epoch in model["training"]["epochs"]
        for part in ("train", "validation")
    ]
    return [value for value in values if value is not None and formatting.finite(value)]


def _confusion(names: Sequence[str], matrix: Sequence[Sequence[Any]]) -> dict[str, Any]:
    rows = []
    for index, counts in enumerate(matrix):
        known = [count if formatting.finite(count) else 0 for count in counts]
        total = sum(known)
        cells = [
            {
                "text": formatting.number(count, 0),
                "detail": "",
                "share": value / total if total else 0.0,
                "diagonal": column == index,
            }
            for column, (count, value) in enumerate(zip(counts, known, strict=True))
        ]
        rows.append((class_name(names, index), cells))
    width = max(len(counts) for counts in matrix)
    return {"columns": [class_name(names, index) for index in range(width)], "rows": rows}


def _transfer(transfer: dict[str, Any]) -> dict[str, Any]:
    models = transfer["models"]
    rows = [
        (
            class_name(models, row),
            [
                {
                    "text": formatting.rate_value(rate),
                    "detail": formatting.rate_interval(rate),
                    "share": rate["rate"] if formatting.finite(rate["rate"]) else 0.0,
                    "diagonal": row == column,
                }
                for column, rate in enumerate(rates)
            ],
        )
        for row, rates in enumerate(transfer["rates"])
    ]
    return {"columns": models, "rows": rows}


def _per_class(models: Sequence[dict[str, Any]]) -> list[tuple[str, Any, list[Any]]]:
    """(class, support, scores of each model) for each class that any model has."""
    tables = [{row["class"]: row for row in model["evaluation"]["per_class"]} for model in models]
    classes = dict.fromkeys(name for table in tables for name in table)
    return [
        (
            name,
            next(table[name]["support"] for table in tables if name in table),
            [table.get(name) for table in tables],
        )
        for name in classes
    ]


def _warnings(
    entries: list[dict[str, Any]], place: Callable[[dict[str, Any]], Any] = lambda entry: entry
) -> list[str]:
    """What is doubtful about some entries, each sentence once with the models that it is about."""
    models: dict[str, list[str]] = {}
    for entry in entries:
        for sentence in place(entry).get("warnings", []):
            models.setdefault(sentence, []).append(entry.get("model", entry.get("name", "")))
    about = {one: ", ".join(filter(None, dict.fromkeys(names))) for one, names in models.items()}
    return [f"{names}: {one}" if names else one for one, names in about.items()]


def _attack_figures(
    attacks: Sequence[dict[str, Any]], looks: dict[str, figures.Series]
) -> list[tuple[str, str]]:
    drawn = []
    for key, title in (("robust_accuracy", "Robust accuracy"), ("success", "Success rate")):
        groups: dict[str, list[tuple[figures.Series, dict[str, Any]]]] = {}
        for attack in attacks:
            if attack.get(key):
                label = titled(attack["label"], attack.get("target"))
                value = {**attack[key], "value": attack[key]["rate"]}
                groups.setdefault(label, []).append((looks[attack["model"]], value))
        if groups:
            drawn.append((title, figures.intervals(groups, f"attacks-{key}")))
    return drawn


def _curves(
    curves: Sequence[dict[str, Any]], looks: dict[str, figures.Series]
) -> list[tuple[str, list[dict[str, Any]], str]]:
    x, y = {"title": "epsilon"}, {"title": "", "percent": True}
    return [
        (
            label,
            same_attack,
            figures.lines(
                [
                    (looks[curve["model"]], line)
                    for curve in same_attack
                    for line in _curve_and_point(curve)
                ],
                x,
                y,
                f"curve-{index}",
            ),
        )
        for index, (label, same_attack) in enumerate(grouped(curves, "label"))
    ]


def _curve_and_point(curve: dict[str, Any]) -> list[dict[str, Any]]:
    """A curve, and the single point of the suite where there is one."""
    suite = curve.get("suite")
    return [_line(curve["points"])] + ([_line([suite])] if suite else [])


def _line(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    points = [point for point in points if formatting.finite(point["epsilon"])]
    points.sort(key=lambda point: point["epsilon"])
    rates = [point["robust_accuracy"] for point in points]
    line: dict[str, Any] = {"x": [point["epsilon"] for point in points]}
    line |= {"y": [rate["rate"] for rate in rates]}
    line |= {key: [rate[key] for rate in rates] for key in ("low", "high")}
    return line


def _record(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        **record,
        "clean": _logits(record["clean_logits"], names),
        "adversarial": _logits(record["adversarial_logits"], names),
    }


def _logits(logits: Sequence[Any], names: Sequence[str]) -> str:
    """All logits in the order of the classes, or the five largest by name where they are many."""
    if len(logits) <= _MAX_LOGITS:
        return "  ".join(formatting.number(value, 2) for value in logits)
    known = [(value, index) for index, value in enumerate(logits) if formatting.finite(value)]
    largest = sorted(known, key=lambda pair: -pair[0])[:5]
    return ", ".join(
        f"{class_name(names, index)} {formatting.number(value, 2)}" for value, index in largest
    )


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as rows: `attack.epsilon`, 0.03."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, float) and not formatting.finite(value)):
            yield f"{prefix}{key}", formatting.DASH
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text
