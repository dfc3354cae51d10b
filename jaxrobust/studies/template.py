"""What a template of a study puts on the page: tables and charts that look facts up."""

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxrobust import packages
from jaxrobust.reports import blocks, markdown
from jaxrobust.reports.blocks import Block
from jaxrobust.studies.facts import Fact, Facts, keys_of

_HEADING = re.compile(r"(#{1,3}) (.+?) \{#([a-z0-9-]+)\}")
_PLACE = re.compile("\ue000(\\d+)\ue001")  # of a block in the text; characters that no text has
_PARTS = ("value", "low", "high", "deviation")  # of a cell that a scale multiplies


class Row:
    """A row of a table, where a variant of the study does not say all of it.

    Args:
      of: A mapping or a dataclass: the keys of its facts.
      label: What the row is called.
      **shown: What else columns can show.
    """

    def __init__(self, of: Any = None, label: Any = None, **shown: Any) -> None:
        self.of, self.label, self.shown = of, label, shown


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
      title: Its heading.
      measure: Of the facts in its cells; None: what is shown is the row's own.
      show: Of a fact: "p", "n", "count", "value", "low", "high" or "deviation" alone. Without a
        measure, of the row: an attribute, an item, or what `row` was given to show.
      unit: Behind the heading. With "%" or "points" shares are drawn times 100.
      decimals: Of its numbers.
      group: A heading that neighbouring columns share.
      scale: Factor of the numbers; None: as the unit says.
      optional: Whether the column is left out, instead of an error, where there is no such fact at all.
      of: What of the row, shown as by `show`, has the keys, where that is not the row itself.
      keys: Of the facts, before the row's; None takes one of the row's away.
    """

    title: str
    measure: str | None = None
    show: str | None = None
    unit: str | None = None
    decimals: int | None = None
    group: str = ""
    scale: float | None = None
    optional: bool = False
    of: str | None = None
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.unit == "%" and self.scale is not None:
            raise ValueError(
                f"The column {self.title!r} of % draws shares as they are: leave `scale` out."
            )

    def names(self, row: Any) -> frozenset[str]:
        """Which keys the column's facts have in a row."""
        of = _of(row) if self.of is None else _shown(row, self.of)
        taken = {name for name, value in self.keys.items() if value is None}
        return frozenset((keys_of(of).keys() | self.keys.keys()) - taken)

    def fact(self, facts: Facts, row: Any) -> Fact | None:
        """The fact of a row, if there is one."""
        of = _of(row) if self.of is None else _shown(row, self.of)
        return facts.find(str(self.measure), of, **self.keys)

    def cell(self, facts: Facts, row: Any) -> Any:
        """What stands in the column for a row; None where there is no such fact."""
        if self.measure is None:
            return _shown(row, self.show or "label")
        fact = self.fact(facts, row)
        if fact is None:
            return None
        scale = self.scale or (100 if self.unit == "points" else 1)
        if self.show is None:
            return _scaled(fact.cell, scale)
        return _scaled(getattr(fact, self.show), scale if self.show in _PARTS else 1)


def column(title: str, measure: str | None = None, **described: Any) -> Column:
    """A column: what `Column` has, and the keys of its facts."""
    fields = {field.name for field in dataclasses.fields(Column)} & described.keys()
    own = {name: described.pop(name) for name in fields}
    return Column(title, measure, keys=described, **own)


def line(
    name: str,
    facts: Iterable[Fact] | None = None,
    x: Any = None,
    y: Sequence[Any] | None = None,
    *,
    scale: float = 1,
    band: bool = True,
    **look: Any,
) -> dict[str, Any]:
    """A line of a chart, of facts or of numbers.

    Args:
      name: In the legend.
      facts: The points.
      x: The key of the facts that is the position, by which they are sorted, or the positions
        themselves.
      y: Numbers, rates or estimates, where there are no facts.
      scale: Factor of y.
      band: Whether intervals are drawn.
      **look: dashed, scatter, steps, model, as in `reports.blocks.line`.
    """
    if facts is not None:
        points = sorted(facts, key=lambda fact: fact.keys[x])
        x = [fact.keys[x] for fact in points]
        y = [fact.cell if band else fact.value for fact in points]
    drawn = blocks.line(name, list(x), [_scaled(value, scale) for value in y or ()], **look)
    return drawn | {"given": bool(y)}  # `chart` takes it away: facts without a value are no mistake


def level(
    name: str, fact: Any, over: Sequence[float], *, scale: float = 1, band: bool = True, **look: Any
) -> dict[str, Any]:
    """A `line` on one level: a fact, a rate or a number, from one position to another."""
    value = cell_of(fact) if band else value_of(fact)
    return line(name, x=list(over), y=[value] * len(over), scale=scale, **look)


class Page:
    """What a template can put on the page; each call leaves its block at that place of the text."""

    tile = staticmethod(blocks.tile)  # of a grid of `pictures`

    def __init__(self, facts: Facts) -> None:
        self._facts, self._blocks = facts, list[list[Block]]()

    def table(
        self,
        columns: Sequence[Column | str],
        rows: Iterable[Any],
        *,
        title: str | None = None,
        folded: bool = False,
        highlight: Sequence[Any] = (),
        caller: Callable[[], str] | None = None,
    ) -> str:
        """A table of facts: a row for each variant, mapping or `row`; or rows of lists of cells."""
        rows, heads = list(rows), [c if isinstance(c, Column) else Column(c) for c in columns]
        if any(isinstance(row, list | tuple) for row in rows):
            cells: list[list[Any]] = [[cell_of(cell) for cell in row] for row in rows]
        else:
            by_column = [[column.cell(self._facts, row) for row in rows] for column in heads]
            kept = [self._is_there(*pair, rows) for pair in zip(heads, by_column, strict=True)]
            heads = [head for head, keep in zip(heads, kept, strict=True) if keep]
            chosen = [values for values, keep in zip(by_column, kept, strict=True) if keep]
            cells = [list(row) for row in zip(*chosen, strict=True)]
        named = [
            blocks.column(_plain(c.title), c.unit, c.decimals, c.group, p_value=c.show == "p")
            for c in heads
        ]
        marked = [number for number, row in enumerate(rows) if row in highlight]
        block = blocks.table(
            named, cells, _body(caller), title=_plain(title), folded=folded, highlight=marked
        )
        return self._place(block)

    def chart(
        self,
        title: str,
        x: str | Block,
        y: str | Block,
        lines: Sequence[dict[str, Any]],
        *,
        folded: bool = False,
        caller: Callable[[], str] | None = None,
    ) -> str:
        """A chart of `line`s over an `axis` or its title, as `reports.blocks.chart`."""
        if lines and not any(one.pop("given", True) for one in map(dict, lines)):
            raise ValueError(f"The chart {title!r} has no point: no line has a fact to draw.")
        drawn = [{name: part for name, part in one.items() if name != "given"} for one in lines]
        block = blocks.chart(_plain(title), _axis(x), _axis(y), drawn, _body(caller), folded=folded)
        return self._place(block)

    def intervals(
        self,
        values: Column,
        rows: Iterable[Any],
        *,
        group: str,
        name: str,
        bars: bool = False,
        caller: Callable[[], str] | None = None,
    ) -> str:
        """Dots with intervals, or bars: what a `column` has, one for each row.

        By what `group` and `name` show of a row; the column's title is the chart's.
        """
        _refuse(values, "group", "optional", "decimals")
        rows, groups = list(rows), dict[str, dict[str, Any]]()
        for row in rows:
            value = values.cell(self._facts, row)
            if value is not None:
                groups.setdefault(_shown(row, group), {})[_shown(row, name)] = value
        if values.measure and rows and not any(values.fact(self._facts, row) for row in rows):
            raise ValueError(
                f"The chart {values.title!r} has no value: no row has a fact {values.measure!r}."
            )
        percent = values.unit == "%"
        return self._place(
            blocks.intervals(
                _plain(values.title), groups, _body(caller), percent=percent, bars=bars
            )
        )

    def bars(self, values: Column, rows: Iterable[Any], **more: Any) -> str:
        """Bars from 0, as `intervals`."""
        return self.intervals(values, rows, bars=True, **more)

    def heat(
        self,
        values: Column,
        rows: Iterable[Any],
        columns: Iterable[Any],
        *,
        titles: tuple[str, str],
        show: str = "label",
        folded: bool = False,
        caller: Callable[[], str] | None = None,
    ) -> str:
        """A table coloured by its values: a `column`'s facts of a row's and a column's keys together.

        The title is that of `values`; `titles` say what the rows and what the columns are.
        """
        _refuse(values, "group", "optional", "scale", "show", "of")
        rows, columns = list(rows), list(columns)
        found = [
            [values.fact(self._facts, _joined(row, column)) for column in columns] for row in rows
        ]
        # A table of nothing would look like one whose values are missing for a reason.
        if not any(fact is not None for of_row in found for fact in of_row):
            raise ValueError(
                f"The table of {values.measure!r} has no value: no row has such a fact."
            )
        block = blocks.heat(
            [str(_shown(row, show)) for row in rows],
            [str(_shown(column, show)) for column in columns],
            [[_heat_cell(fact) for fact in of_row] for of_row in found],
            titles,
            _body(caller),
            title=_plain(values.title),
            percent=values.unit == "%",
            decimals=values.decimals,
            folded=folded,
        )
        return self._place(block)

    def pictures(
        self,
        rows: Iterable[tuple[Any, ...]],
        *,
        columns: Sequence[str] = (),
        title: str | None = None,
        caller: Callable[[], str] | None = None,
    ) -> str:
        """A grid of pictures, as `reports.blocks.pictures`: rows of a label and its `tile`s."""
        block = blocks.pictures(list(rows), _body(caller), columns=columns, title=title)
        return self._place(block)

    def put(
        self, given: Block | Iterable[Block], *, caller: Callable[[], str] | None = None
    ) -> str:
        """Blocks that Python has made; a caption is that of the last of them."""
        found = [given] if isinstance(given, dict) else list(given)
        if caller is not None and found:
            found[-1] = found[-1] | {"caption": _body(caller)}
        return self._place(*found)

    def verdict(
        self,
        question: str,
        *,
        see: Mapping[str, str] | None = None,
        caller: Callable[[], str],
    ) -> str:
        """A question and, between the call and its end, the answer; `see`: {words: a section's id}."""
        evidence = list((see or {}).items())
        return self._place(blocks.verdict(_plain(question), _body(caller), evidence))

    def notice(self, tone: str, *, caller: Callable[[], str]) -> str:
        """A few words that stand out: "sound" or "doubtful"."""
        return self._place(blocks.notice(tone, _body(caller)))

    def split(self, text: str) -> tuple[list[str], list[Block]]:
        """(paragraphs before all else, blocks) of the rendered text."""
        found: list[Block] = []
        lines: list[str] = []
        summary: list[str] | None = None

        # Paragraphs before the first heading or block are the summary, later ones are blocks.
        def flush() -> None:
            nonlocal summary
            paragraphs = [part.strip() for part in re.split(r"\n\s*\n", "\n".join(lines))]
            paragraphs = [part for part in paragraphs if part]
            lines.clear()
            if summary is None:
                summary = paragraphs
            elif paragraphs:
                found.append(blocks.text("\n\n".join(paragraphs)))

        # Line by line: a heading, the place of a block that a call has left, or text.
        for row in text.split("\n"):
            heading, place = _HEADING.fullmatch(row.strip()), _PLACE.fullmatch(row.strip())
            if heading is None and place is None:
                if re.match(r"#{1,3} ", row):
                    raise ValueError(
                        f"A heading needs an id, as in `## Title {{#id}}`, got {row!r}."
                    )
                lines.append(row)
                continue
            flush()
            if heading is not None:
                level, title, name = len(heading[1]), markdown.plain_line(heading[2]), heading[3]
                found.append(blocks.heading(title, name, level))
            elif place is not None:
                found += self._blocks[int(place[1])]
        flush()
        return summary or [], found

    def _is_there(self, column: Column, cells: Sequence[Any], rows: Sequence[Any]) -> bool:
        """Whether a column has a cell; an error where no fact at all could be in it."""
        if column.measure is None or not rows or any(cell is not None for cell in cells):
            return True
        if column.optional:
            return False
        own, wanted = keys_of(column.keys).items(), {column.names(row) for row in rows}
        same = [f for f in self._facts if f.measure == column.measure and own <= f.keys.items()]
        if any(frozenset(fact.keys) in wanted for fact in same):
            return True
        nearest = f"; those that there are have the keys {', '.join(same[0].keys)}" if same else ""
        raise ValueError(
            f"The column {column.title!r} has no cell: there is no fact {column.measure!r} with the "
            f"keys {', '.join(sorted(min(wanted, key=sorted)))}{nearest}. Is the column `optional`?"
        )

    def _place(self, *found: Block) -> str:
        with packages.extra("reports", "A study's template"):
            from markupsafe import Markup

        self._blocks.append(list(found))
        return Markup(f"\n\n\ue000{len(self._blocks) - 1}\ue001\n\n")


def value_of(item: Any) -> Any:
    """The number of a fact, a rate, an estimate, or of a number itself."""
    if isinstance(item, Fact):
        return item.value
    return item.get("rate", item.get("value")) if isinstance(item, Mapping) else item


def cell_of(item: Any) -> Any:
    """A fact as a cell; anything else is one."""
    return item.cell if isinstance(item, Fact) else item


def _heat_cell(fact: Fact | None) -> Any:
    """A rate or a number: a cell of a heat table has no place for another interval."""
    return None if fact is None else fact.cell if fact.count is not None else fact.value


def _axis(given: str | Block) -> str | Block:
    """An axis, whose title a macro may have written as Markdown."""
    return given | {"title": _plain(given["title"])} if isinstance(given, dict) else _plain(given)


def _refuse(values: Column, *fields: str) -> None:
    """Raises ValueError where a column says what a chart or heat table has no place for."""
    for name in fields:
        if getattr(values, name) != getattr(Column(""), name):
            raise ValueError(
                f"The column {values.title!r} is drawn without its `{name}`: leave it out."
            )
    if values.unit not in (None, "%") and values.measure is not None:
        raise ValueError(
            f"The column {values.title!r} is drawn without its unit: say {values.unit!r} in its title."
        )


def _plain(title: Any) -> Any:
    """A title as text: what a macro wrote is Markdown."""
    return markdown.plain_line(title) if hasattr(title, "__html__") else title


def _scaled(cell: Any, scale: float) -> Any:
    """A cell whose numbers are multiplied; a rate has none to multiply, it is drawn as a percentage."""
    if scale == 1 or cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, Mapping) and "rate" in cell:
        cell = {"value": cell["rate"], "low": cell["low"], "high": cell["high"]}
    if isinstance(cell, Mapping):
        return {k: None if v is None else scale * v for k, v in cell.items() if k in _PARTS}
    return scale * cell


def _of(row: Any) -> Any:
    return row.of if isinstance(row, Row) else row


def _joined(row: Any, column: Any) -> dict[str, Any]:
    return keys_of(_of(row)) | keys_of(_of(column))


def _shown(row: Any, name: str) -> Any:
    """What a row shows under a name: of `row`, then of what that is of."""
    if isinstance(row, Row):
        if name == "label" and row.label is not None:
            return row.label
        if name in row.shown:
            return row.shown[name]
        row = row.of
    if isinstance(row, Mapping) and name in row:
        return row[name]
    if not isinstance(row, Mapping) and hasattr(row, name):
        return getattr(row, name)
    raise ValueError(f"The row {row!r} has no {name!r} to show.")


def _body(caller: Callable[[], str] | None) -> str:
    """What stands between a call and its end: a caption or an answer, in Markdown."""
    text = "" if caller is None else str(caller())
    if _PLACE.search(text):
        raise ValueError(f"A table or chart cannot stand within a caption or an answer: {text!r}.")
    return textwrap.dedent(text.strip("\n")).strip()
