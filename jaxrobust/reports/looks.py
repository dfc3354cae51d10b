"""Assigns a colour and a marker to each name, the same in all figures of a report."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxrobust.reports.blocks import Block
from jaxrobust.reports.figures import NUM_LOOKS, NUM_SERIES, Series, series


def assign(blocks: Sequence[Block]) -> dict[str, Series]:
    """Assigns a look to each name in charts, in the order in which the names appear.

    Each of the first eight names gets its own colour. Any other name takes the first look whose colour
    no other name in its charts has. Names that are never in the same chart may share a look.

    Args:
      blocks: The blocks of a result.
    """
    beside: dict[str, dict[str, None]] = {}
    for names in _together(blocks):
        for name in names:
            beside.setdefault(name, {}).update(dict.fromkeys(names))
    indices: dict[str, int] = {}
    for name, others in beside.items():
        taken = {indices[other] for other in others if other in indices}
        indices[name] = len(indices) if len(indices) < NUM_SERIES else _free(taken)
    return {name: series(index) for name, index in indices.items()}


def _free(taken: set[int]) -> int:
    colours = {index % NUM_SERIES for index in taken}
    free = [index for index in range(NUM_LOOKS) if index not in taken]
    # If a chart has more than eight names, some share a colour and differ only in their markers.
    first = free[0] if free else 0
    return next((index for index in free if index % NUM_SERIES not in colours), first)


def series_name(item: dict[str, Any]) -> str:
    """Returns the name that determines a series' look."""
    return str(item.get("model") or item["name"])


def _together(blocks: Sequence[Block]) -> Iterator[list[str]]:
    """Yields the names of each chart."""
    for block in blocks:
        if block["kind"] == "chart":
            yield [series_name(item) for item in block["series"]]
        elif block["kind"] == "intervals":
            yield [item["name"] for group in block["groups"] for item in group["items"]]
