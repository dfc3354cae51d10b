"""The tables and charts that a study's template can put on the page; they look facts up."""

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
_PLACE = re.compile("\ue000(\\d+)\ue001")  # marks a block with characters that no text has
_PARTS = ("value", "low", "high", "deviation")  # the numbers of a cell that a scale multiplies


class Row:
    """A row of a table, with a label and other values that the keys of its facts do not give.

    Args:
      of: The keys of the row's facts: a mapping or a dataclass.
      label: The row's name.
      **shown: Other values that columns can show, by their names.
    """

    def __init__(self, of: Any = None, label: Any = None, **shown: Any) -> None:
        self.of, self.label, self.shown = of, label, shown


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
      title: The heading.
      measure: The measure of the facts in the column. If None, the column shows values of the row.
      show: The figure of the fact to show: "p", "n", "count", "value", "low", "high" or "deviation";
        None shows the value with its interval. Without a measure, the name of the row's value to show:
        an attribute, an item, or one of the values given to `row`; None shows the label.
      unit: The unit, which is written after the heading. With "%" or "points", shares are multiplied by
        100.
      decimals: The number of decimals.
      group: A heading that neighbouring columns share.
      scale: A factor for the numbers; if None, it follows from the unit.
      optional: Whether the column is left out if it has no fact at all, which is an error otherwise.
      of: The name of the row's value that has the keys, if it is not the row itself.
      keys: Keys of the facts, which override those of the row; the value None removes a key.
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
                f"The column {self.title!r} has the unit %, which sets the scale: leave `scale` out."
            )

    def names(self, row: Any) -> frozenset[str]:
        """Returns the names of the keys that the column's facts have in a row."""
        of = _of(row) if self.of is None else _shown(row, self.of)
        taken = {name for name, value in self.keys.items() if value is None}
        return frozenset((keys_of(of).keys() | self.keys.keys()) - taken)

    def fact(self, facts: Facts, row: Any) -> Fact | None:
        """Returns the fact of a row, or None if there is none."""
        of = _of(row) if self.of is None else _shown(row, self.of)
        return facts.find(str(self.measure), of, **self.keys)

    def cell(self, facts: Facts, row: Any) -> Any:
        """Returns the column's cell in a row; None if there is no such fact."""
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
    """Makes a column from the arguments of `Column`; all other arguments are keys of its facts."""
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
    """Makes a line of a chart from facts or from numbers.

    Args:
      name: The line's name in the legend.
      facts: The facts that are the points of the line.
      x: With facts, the key that holds the position of a point; the facts are sorted by it. Without
        facts, the positions.
      y: The numbers, rates or estimates to draw, if there are no facts.
      scale: A factor for y.
      band: Whether the intervals of facts are drawn.
      **look: dashed, scatter, steps and model, as in `reports.blocks.line`.
    """
    if facts is not None:
        points = sorted(facts, key=lambda fact: fact.keys[x])
        x = [fact.keys[x] for fact in points]
        y = [fact.cell if band else fact.value for fact in points]
    drawn = blocks.line(name, list(x), [_scaled(value, scale) for value in y or ()], **look)
    return drawn | {"given": bool(y)}  # `chart` checks and removes this


def level(
    name: str, fact: Any, over: Sequence[float], *, scale: float = 1, band: bool = True, **look: Any
) -> dict[str, Any]:
    """Makes a horizontal `line` at a fact, a rate or a number, over the positions `over`."""
    value = cell_of(fact) if band else value_of(fact)
    return line(name, x=list(over), y=[value] * len(over), scale=scale, **look)


class Page:
    """The blocks that a template can put on the page; a block stands where the template calls it."""

    tile = staticmethod(blocks.tile)  # for a grid of `pictures`

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
        """Puts a table: one row for each variant, mapping or `row`, or rows that are lists of cells."""
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
        """Puts a chart of `line`s, as in `reports.blocks.chart`."""
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
        """Puts a chart of dots with intervals, or of bars, with one value of a `column` for each row.

        `group` and `name` are the names of the row's values that give a dot its group and its name. The
        chart has the column's title.
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
        """Puts a chart of bars that start at 0; the arguments are those of `intervals`."""
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
        """Puts a table whose cells are coloured by their values.

        A cell is the fact of `values` that has the keys of its row and its column together. The table
        has the title of `values`; `titles` are the titles of the rows and of the columns.
        """
        _refuse(values, "group", "optional", "scale", "show", "of")
        rows, columns = list(rows), list(columns)
        found = [
            [values.fact(self._facts, _joined(row, column)) for column in columns] for row in rows
        ]
        # A table without any value would look as if the values were missing for a reason.
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
        """Puts a grid of pictures, as in `reports.blocks.pictures`: rows of a label and `tile`s."""
        block = blocks.pictures(list(rows), _body(caller), columns=columns, title=title)
        return self._place(block)

    def put(
        self, given: Block | Iterable[Block], *, caller: Callable[[], str] | None = None
    ) -> str:
        """Puts blocks that Python code has made; the last of them gets the caption."""
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
        """Puts a question with its answer, which is the body of the call; `see` is {words: id}."""
        evidence = list((see or {}).items())
        return self._place(blocks.verdict(_plain(question), _body(caller), evidence))

    def notice(self, tone: str, *, caller: Callable[[], str]) -> str:
        """Puts a remark that stands out; `tone` is "sound" or "doubtful"."""
        return self._place(blocks.notice(tone, _body(caller)))

    def split(self, text: str) -> tuple[list[str], list[Block]]:
        """Splits the rendered text into (paragraphs before the first heading or block, blocks)."""
        found: list[Block] = []
        lines: list[str] = []
        summary: list[str] | None = None

        # The first paragraphs, before any heading or block, are the summary; later ones are blocks.
        def flush() -> None:
            nonlocal summary
            paragraphs = [part.strip() for part in re.split(r"\n\s*\n", "\n".join(lines))]
            paragraphs = [part for part in paragraphs if part]
            lines.clear()
            if summary is None:
                summary = paragraphs
            elif paragraphs:
                found.append(blocks.text("\n\n".join(paragraphs)))

        # Each line is a heading, the mark of a block, or text.
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
        """Says whether to draw a column; raises ValueError if no fact at all could be in it."""
        if column.measure is None or not rows or any(cell is not None for cell in cells):
            return True
        if column.optional:
            return False
        own, wanted = keys_of(column.keys).items(), {column.names(row) for row in rows}
        same = [f for f in self._facts if f.measure == column.measure and own <= f.keys.items()]
        if any(frozenset(fact.keys) in wanted for fact in same):
            return True
        nearest = f"; the existing ones have the keys {', '.join(same[0].keys)}" if same else ""
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
    """Returns the number of a fact, a rate or an estimate; a number is returned unchanged."""
    if isinstance(item, Fact):
        return item.value
    return item.get("rate", item.get("value")) if isinstance(item, Mapping) else item


def cell_of(item: Any) -> Any:
    """Converts a fact to a cell; anything else is returned unchanged."""
    return item.cell if isinstance(item, Fact) else item


def _heat_cell(fact: Fact | None) -> Any:
    """Converts a fact to a rate or a number; a heat table can only show the intervals of rates."""
    return None if fact is None else fact.cell if fact.count is not None else fact.value


def _axis(given: str | Block) -> str | Block:
    """Returns an axis with a plain title; a macro may have written the title as Markdown."""
    return given | {"title": _plain(given["title"])} if isinstance(given, dict) else _plain(given)


def _refuse(values: Column, *fields: str) -> None:
    """Raises ValueError if a column sets a field that a chart or heat table cannot show."""
    for name in fields:
        if getattr(values, name) != getattr(Column(""), name):
            raise ValueError(
                f"The column {values.title!r} cannot show its `{name}` here: leave it out."
            )
    if values.unit not in (None, "%") and values.measure is not None:
        raise ValueError(
            f"The column {values.title!r} cannot show its unit here: put {values.unit!r} in the title."
        )


def _plain(title: Any) -> Any:
    """Converts a title to plain text if a macro has written it as Markdown."""
    return markdown.plain_line(title) if hasattr(title, "__html__") else title


def _scaled(cell: Any, scale: float) -> Any:
    """Multiplies the numbers of a cell; a rate becomes an estimate, unless the scale is 1."""
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
    """Returns the value of a row with this name: one given to `row`, or one of its keys."""
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
    """Returns the body of a call, which is a caption or an answer, in Markdown."""
    text = "" if caller is None else str(caller())
    if _PLACE.search(text):
        raise ValueError(f"A table or chart cannot stand within a caption or an answer: {text!r}.")
    return textwrap.dedent(text.strip("\n")).strip()
