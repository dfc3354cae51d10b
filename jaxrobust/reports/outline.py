"""The order of a report: which sections it has, in which chapters, and what they are called."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxrobust.reports.reading_blocks import block
from jaxrobust.reports.schema import ID, TEXT, short

# The sections that a template knows, in the order of a report without parts, each with its title
# and the variable of the context that is empty where the result has nothing for it.
TYPED = {
    "suites": ("Attack suites", "suites"),
    "data": ("Data", "result"),
    "models": ("Models", "key_figures"),
    "training": ("Training", "training"),
    "confusion": ("Confusion matrices", "confusion"),
    "classes": ("Class by class", "per_class"),
    "attacks": ("Attacks", "attacks"),
    "sanity": ("Sanity checks", "sanity"),
    "curves": ("Robust accuracy over epsilon", "curves"),
    "transfer": ("Transfer between models", "transfer"),
    "explanations": ("Explanations", "explanations"),
    "gallery": ("Gallery", "gallery"),
    "records": ("Recorded examples", "records"),
}
KEY_FIGURES, RUN, APPENDIX = "key-figures", "run", "appendix"

PART = {"id": ID, "title": TEXT, "text?": [TEXT], "includes?": [TEXT]}
SECTION = {"id": ID, "title": TEXT, "part?": TEXT, "text?": [TEXT], "blocks": [block]}


def check_outline(result: dict[str, Any]) -> None:
    """Raises ValueError unless ids are unique and what refers to them finds them.

    Args:
      result: A result whose parts, sections and verdicts have been checked by themselves.
    """
    taken: dict[str, str] = dict.fromkeys((*TYPED, KEY_FIGURES, RUN, APPENDIX), "the report itself")
    for name, where in _declared(result):
        if name in taken:
            raise ValueError(f"`{where}` must be unique, got {name!r}: that is {taken[name]}.")
        taken[name] = f"`{where}`"
    claimed: dict[str, str] = {}
    for position, part in enumerate(result.get("parts") or ()):
        for name in part.get("includes") or ():
            where = f"`parts[{position}].includes`"
            if name not in TYPED:
                raise ValueError(f"{where} must be of {tuple(TYPED)}, got {short(name)}.")
            if name in claimed:
                raise ValueError(f"{where} has {name!r}, and so has {claimed[name]}.")
            claimed[name] = where
    parts = tuple(part["id"] for part in result.get("parts") or ())
    for position, section in enumerate(result.get("sections") or ()):
        if section.get("part") is not None and section["part"] not in parts:
            where = f"`sections[{position}].part`"
            raise ValueError(f"{where} must be one of {parts}, got {short(section['part'])}.")
    for where, verdict in _verdicts(result):
        for position, evidence in enumerate(verdict.get("evidence") or ()):
            href = evidence.get("href")
            if href is not None and (href[:1] != "#" or href[1:] not in taken):
                raise ValueError(
                    f"`{where}.evidence[{position}].href` must be # and the id of a part, section "
                    f"or block of this result, got {short(href)}."
                )


def _declared(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("parts", "sections"):
        for position, item in enumerate(result.get(key) or ()):
            yield item["id"], f"{key}[{position}].id"
            for index, inner in enumerate(item.get("blocks") or ()):
                if inner.get("id") is not None:
                    yield inner["id"], f"{key}[{position}].blocks[{index}].id"


def _verdicts(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for position, verdict in enumerate(result.get("verdicts") or ()):
        yield f"verdicts[{position}]", verdict
    for position, section in enumerate(result.get("sections") or ()):
        for index, inner in enumerate(section["blocks"]):
            if inner["kind"] == "verdict":
                yield f"sections[{position}].blocks[{index}]", inner


def chapters(
    result: dict[str, Any], context: dict[str, Any], drawn: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The chapters of the report in order; one without a title is no chapter to the reader.

    Args:
      result: As `read_result` returns it.
      context: What the typed sections are drawn from.
      drawn: The generic sections, as `sections.draw` returns them.

    Returns:
      {"id", "title", "text", "entries"} each, where an entry has "id", "title" and "blocks", None
      for the sections that a template knows.
    """
    present = {
        name: _entry(name, title) for name, (title, needs) in TYPED.items() if context[needs]
    }
    first = [_entry(KEY_FIGURES, "Key figures")] if context["key_figures"] else []
    run = _entry(RUN, "The run")
    opened = []
    for part in result["parts"]:
        names = part.get("includes") or ()
        # pop: what a part has claimed does not come again after the parts.
        entries = [present.pop(name) for name in names if name in present]
        entries += [section for section in drawn if section["part"] == part["id"]]
        text = part.get("text") or []
        if entries or text:  # a run that lacks all of a part's sections lacks its heading too
            opened.append(_chapter(part["id"], part["title"], text, entries))
    records = [present.pop("records")] if "records" in present else []
    loose = [section for section in drawn if section["part"] is None]
    last = [*present.values(), *loose, *records, run]
    if not result["parts"]:
        return [_chapter("", "", [], first + last)]
    return [_chapter("", "", [], first), *opened, _chapter(APPENDIX, "Appendix", [], last)]


def anchors(outline: Sequence[dict[str, Any]]) -> set[str]:
    """The ids that a link can lead to in a report of these chapters."""
    found = {chapter["id"] for chapter in outline if chapter["title"]}
    for chapter in outline:
        for entry in chapter["entries"]:
            found |= {entry["id"], *(entry["ids"] if entry["blocks"] is not None else ())}
    return found


def _entry(name: str, title: str) -> dict[str, Any]:
    return {"id": name, "title": title, "blocks": None}


def _chapter(
    name: str, title: str, text: Sequence[str], entries: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"id": name, "title": title, "text": text, "entries": entries}
