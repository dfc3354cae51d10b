"""How classes and attacks are named, and how items are put together under a name."""

from collections.abc import Sequence
from typing import Any


def class_name(names: Sequence[str], index: int) -> str:
    """The name of a class, or its number where it has no name."""
    return names[index] if 0 <= index < len(names) else str(index)


def titled(label: str, target: str | None) -> str:
    """An attack's label with its target, unless the label says so itself."""
    suffix = f"target {target}"
    return label if not target or label.endswith(suffix) else f"{label}, {suffix}"


def grouped(items: Sequence[dict[str, Any]], key: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Items by the value of `key`, in the order of first appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item[key], []).append(item)
    return list(groups.items())
