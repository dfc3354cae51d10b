"""Which colour and marker belongs to which name: the same in every figure of a report."""

from collections.abc import Iterator
from typing import Any

from jaxrobust.reports.figures import NUM_LOOKS, NUM_SERIES, Series, series


def assign(result: dict[str, Any]) -> dict[str, Series]:
    """The look of each model, and of each series of the generic charts.

    A series has the look of the model that it names. Any other takes the first look that no model
    has and whose colour nothing beside it in its charts has: names that never meet may share one.

    Args:
      result: As `read_result` returns it.
    """
    mentioned = [model["name"] for model in result["models"]]
    for section in ("attacks", "curves"):
        mentioned += [item["model"] for item in result[section]]
    indices = {name: index for index, name in enumerate(dict.fromkeys(mentioned))}
    of_models = {index % NUM_LOOKS for index in indices.values()}
    beside: dict[str, dict[str, None]] = {}
    for names in _together(result):
        for name in names:
            beside.setdefault(name, {}).update(dict.fromkeys(names))
    for name, others in beside.items():
        if name not in indices:
            taken = {indices[other] for other in others if other in indices}
            indices[name] = _free(of_models, taken)
    return {name: series(index) for name, index in indices.items()}


def _free(of_models: set[int], taken: set[int]) -> int:
    colours = {index % NUM_SERIES for index in taken}
    mine = [index for index in range(NUM_LOOKS) if index not in of_models and index not in taken]
    # More than eight in one chart share colours, and are told apart by their markers.
    return next(
        (index for index in mine if index % NUM_SERIES not in colours), mine[0] if mine else 0
    )


def series_name(item: dict[str, Any]) -> str:
    """The name that decides a series' look."""
    return item.get("model") or item["name"]


def _together(result: dict[str, Any]) -> Iterator[list[str]]:
    """The names of each chart."""
    for section in result["sections"]:
        for block in section["blocks"]:
            if block["kind"] == "chart":
                yield [series_name(item) for item in block["series"]]
            elif block["kind"] == "intervals":
                yield [item["name"] for group in block["groups"] for item in group["items"]]
