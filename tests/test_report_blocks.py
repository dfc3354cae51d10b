"""Blocks: made with what is needed, drawn as they say, or refused by name."""

import copy
import json
import re

import numpy as np
import pytest
from report_pages import (
    EVIL,
    FLOATS,
    IMAGE,
    MAP,
    NO_RATE,
    RATE,
    encode,
    heading,
    make_blocks,
    make_result,
    make_section,
    report,
)

from jaxrobust.reports import blocks, decode_array, figures, looks
from jaxrobust.reports.formatting import measure, shared_decimals
from jaxrobust.reports.tables import heat_table, table

ESTIMATE = {"value": -2.5, "low": -3, "high": -2}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(tmp_path_factory.mktemp("study"), make_result())


# ---- as drawn ----


def test_tables_say_what_the_result_says(page):
    words = page.text("costs-section")
    assert "dense 0 % 3.21 ± 0.12 – 82 % (69–90) as trained" in words
    assert f"{EVIL} 80 % 3.00 ± 0.20 −2.5 (−3.0 to −2.0) 82 % (69–90) –" in words
    assert "Accuracy n = 50" in words and "Mean ms" in words and "What it costs." in words


def drawn_table(page):
    start = page.source.index('<div class="block table" id="costs">')
    return page.source[start : page.source.index("</table>", start)]


def test_row_and_column_headers_have_their_scope(page):
    drawn = drawn_table(page)
    assert '<tr class="highlight">' in drawn and drawn.count('scope="row"') == 2
    heads = re.findall(r'<th scope="(\w+)"( colspan="\d")?( rowspan="2")?', drawn)
    assert heads[:3] == [
        ("col", "", ' rowspan="2"'),
        ("col", "", ' rowspan="2"'),
        ("colgroup", ' colspan="4"', ""),
    ]
    assert all(attributes.get("scope") for attributes in page.all("th"))


def test_the_script_finds_columns_and_whole_numbers(page):
    drawn = drawn_table(page)
    assert re.findall(r'data-column="(\d)"', drawn) == list("014523")
    assert re.findall(r'data-group="([^"]*)"', drawn) == ["Latency", "Latency"]
    assert 'data-value="3.21" data-deviation="0.12"' in drawn
    assert 'data-value="-2.5" data-low="-3" data-high="-2"' in drawn
    assert 'data-value="0.82" data-low="0.692" data-high="0.902" data-n="50"' in drawn
    assert 'data-value="0.8">80' in drawn


def test_every_row_of_a_table_is_as_wide_as_its_head(page):
    def width(row):
        spans = re.findall(r"<t[hd](?=[ >])([^>]*)", row)
        return sum(int((re.findall(r'colspan="(\d)"', span) or [1])[0]) for span in spans)

    for drawn in re.findall(r'<table class="data.*?</table>', page.source, flags=re.S):
        rows = drawn.split("<tr")[1:]
        assert {width(row) for row in rows if 'scope="row"' in row} == {width(rows[0])}


def test_charts_have_names_legends_and_numbers(page):
    words = page.text("costs-section")
    assert "cnn 0 % 80 % (70–90)" in words and "cnn, tuned 0 % 85 %" in words
    assert "cnn 50 % –" in words and "dense 16 21" in words
    images = [tag for tag in page.all("div") if tag.get("role") == "img"]
    labels = {tag["aria-label"] for tag in images}
    assert "Accuracy: accuracy over sparsity; the numbers are in the table below" in labels
    assert "╌" in page.source  # the dashed line in the legend
    assert f"seed 0 {EVIL} cnn 82 % (69–90)" in words and "PGD cnn 1.50 ± 0.25" in words


def test_pictures_have_tiles_with_words(page):
    tiles = page.all("img")
    assert [tag["alt"] for tag in tiles] == [
        f"original, cat {EVIL}",
        f"a title of its own, cat {EVIL}",
        f"overlay, cat {EVIL}",
        f"change, cat {EVIL}",
        "change, dog",
    ]
    assert all(tile["loading"] == "lazy" and tile["width"] == "8" for tile in tiles)
    assert all(tile["class"] == "pixelated" for tile in tiles)
    words = page.text("costs-section")
    assert "changenone" in words and "overlaygolf" in words


def test_folded_blocks_show_their_title_alone(page):
    for title, level in (("Norms", 3), ("Why", 4)):
        before = page.source[
            : page.source.index(f"<summary><h{level}>{title}</h{level}></summary>")
        ]
        assert re.search(r'<details class="block \w+">\s*$', before)


def test_verdicts_and_notices_stand_out(page):
    assert 'class="said doubtful" role="note"' in page.source
    assert "<strong>Careful</strong>" in page.source
    assert f"Which one? {EVIL}" in page.text() and "How sure: fairly." in page.text()
    assert '<a href="#costs">Costs</a>' in page.source and "<li>a remark</li>" in page.source


def test_neighbours_share_a_row_and_a_legend(tmp_path):
    same = [blocks.chart(name, "x", "y", [blocks.line("a", [0], [1])]) for name in "pq"]
    other = blocks.chart("r", "x", "y", [blocks.line("b", [0], [1])])

    def shape(*items):
        source = report(tmp_path, list(items)).source
        return source.count('class="charts"'), source.count('class="legend"')

    assert shape(*same) == (1, 1) and shape(*same, other) == (1, 3)
    assert shape(same[0], blocks.text("a"), same[1]) == (2, 2)
    assert shape(same[0], same[1] | {"folded": True}) == (1, 2)


def test_block_titles_follow_the_level_above(tmp_path):
    titled = [heading(level, f"a{level}") for level in (1, 2, 3)]
    mixed = [part for head in titled for part in (head, blocks.text("a", title="T"))]
    levels = re.findall(r"<h(\d)>T</h", report(tmp_path, mixed).source)
    assert levels == ["2", "3", "4"]


# ---- figures, tables and looks by themselves ----


def test_bars_begin_at_zero():
    """The length of a bar is what it says, so it must not begin anywhere else."""
    rows = [
        (figures.series(index), (value, None, None)) for index, value in enumerate((90.0, 91.0))
    ]
    drawn = {bars: figures.intervals({"a": rows}, "x", False, bars) for bars in (False, True)}
    ticks = {bars: re.findall(r"<text[^>]*>([0-9.]+)</text>", text) for bars, text in drawn.items()}
    assert ticks[True][0] == "0" and "0" not in ticks[False]


@pytest.mark.parametrize(
    ("x", "y", "ticks"),
    [
        ({}, {"percent": True}, ["0 %", "25 %", "50 %", "75 %", "100 %"]),
        ({"limits": [0, 2]}, {}, ["0", "1", "2"]),  # whole numbers have whole ticks
    ],
)
def test_axes_have_their_limits_and_ticks(x, y, ticks):
    item = {"x": [1, 2], "y": [0.2, 0.3], "low": [0.1, 0.2], "high": [0.3, 0.4]}
    for more in ({}, {"scatter": True}):
        text = figures.lines(
            [(figures.series(0), item | more)], {"title": ""} | x, {"title": ""} | y, "a"
        )
        assert set(ticks) <= set(re.findall(r"<text[^>]*>([0-9.]+(?: %)?)</text>", text))


def test_names_that_meet_in_a_chart_differ_in_colour():
    def chart(*names):
        return blocks.chart("t", "x", "y", [blocks.line(name, [], []) for name in names])

    names = [f"series {index}" for index in range(7)]
    many = "abcdefghijkl"
    assigned = looks.assign([chart(*names[:3]), chart("cnn", *names[2:]), chart(*many)])
    assert assigned[names[0]] == figures.series(0)
    assert len({assigned[name].css for name in ("cnn", *names[2:])}) == 6
    assert len({assigned[name].css for name in names[:3]}) == 3
    assert len({assigned[name] for name in many}) == 12
    # Models that have a chart each do not meet, and are told apart all the same.
    apart = looks.assign([chart(name) for name in "abcdefgh"])
    assert len({look.css for look in apart.values()}) == 8
    tuned = blocks.chart("t", "x", "y", [blocks.line("tuned", [], [], model=names[1])])
    assert looks.assign([chart(*names[:3]), tuned]).keys() == set(names[:3])


def test_short_cells_stay_on_one_line_and_long_ones_do_not():
    words = ["L2, 10 %", "no difference at all", "no difference at all."]
    drawn = table({"columns": [{"title": "a"}], "rows": [[text] for text in words]})
    found = [row["cells"][0]["text"] for row in drawn["rows"]]
    assert found == ["L2,\xa010\xa0%", "no\xa0difference\xa0at\xa0all", "no difference at all."]


OTHER = {"count": 3, "n": 10, "rate": 0.3, "low": 0.1, "high": 0.6}


@pytest.mark.parametrize(
    ("cells", "unit", "details"),
    [
        ([RATE, OTHER, NO_RATE], "", ["(69–90, n = 50)", "(10–60, n = 10)", "(n = 0)"]),
        ([RATE, None, RATE], "n = 50", ["(69–90)", "", "(69–90)"]),
        ([ESTIMATE | {"n": 9}, ESTIMATE], "", ["(−3.0 to −2.0, n = 9)", "(−3.0 to −2.0)"]),
        ([{"value": 3.5, "low": 2.5, "high": 5, "n": 9}], "n = 9", ["(2.5–5.0)"]),
        (
            [{"value": 3.5, "deviation": 0.5, "n": 9}, RATE],
            "",
            ["(± 0.5, n = 9)", "(69–90, n = 50)"],
        ),
    ],
)
def test_n_stands_in_the_head_where_all_have_the_same(cells, unit, details):
    rows = [["x", cell] for cell in cells]
    drawn = table({"columns": [{"title": "a"}, {"title": "b", "decimals": 1}], "rows": rows})
    found = [row["cells"][1]["detail"].replace("\xa0", " ") for row in drawn["rows"]]
    assert found == details
    assert drawn["columns"][1]["unit"].replace("\xa0", " ") == unit


@pytest.mark.parametrize(
    ("values", "more", "shares"),
    [
        ([0.0, 1.0, 4.0], {}, [0, 0.25, 1]),
        ([-1.0, 0.0, 1.0], {}, [0, 0.5, 1]),
        ([0.2, 0.5, None], {"percent": True}, [0.2, 0.5, 0]),
        ([0.0, 0.0, 0.0], {}, [0, 0, 0]),
        ([1, 2, 7], {"by_row": True}, [0.1, 0.2, 0.7]),
        ([0, 0, None], {"by_row": True}, [0, 0, 0]),
    ],
)
def test_heat_is_coloured_from_zero_from_the_least_or_by_its_row(values, more, shares):
    block = {"rows": ["a"], "columns": list("xyz"), "values": [values], **more}
    cells = heat_table(block)["rows"][0][1]
    np.testing.assert_allclose([cell["share"] for cell in cells], shares)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([1, 16, 141610], False, 0),
        ([0.01, 0.03, 0.1], False, 2),
        ([3.21, 21.123], False, 1),
        ([8 / 255], False, 4),
        ([], False, 0),
        ([0.2, 0.57], True, 0),
        ([0.8213], True, 1),
    ],
)
def test_columns_have_the_decimals_they_need(values, percent, expected):
    assert shared_decimals(values, percent) == expected


def test_measures_are_numbers_or_percentages():
    assert measure(0.5, 0, percent=True) == "50\xa0%" and measure(None, 2, percent=True) == "–"
    assert measure(1234.5, 1) == "1,234.5"


# ---- constructors ----


@pytest.mark.parametrize(
    ("made", "block"),
    [
        (blocks.heading("A title", "a", 3), heading(3, "a")),
        (
            blocks.text("a", title="b", folded=True),
            {"kind": "text", "text": "a", "title": "b", "folded": True},
        ),
        (blocks.notice("sound", "a"), {"kind": "notice", "tone": "sound", "text": "a"}),
        (
            blocks.table(["a", blocks.column("b", "%", 0, "c")], [["x", np.float32(0.5)]], id="t"),
            {
                "kind": "table",
                "id": "t",
                "columns": [
                    {"title": "a"},
                    {"title": "b", "unit": "%", "decimals": 0, "group": "c"},
                ],
                "rows": [["x", 0.5]],
            },
        ),
        (
            blocks.heat(["a"], ["b"], [[np.int64(3)]], ("r", "c"), decimals=0, by_row=True),
            {
                "kind": "heat",
                "rows": ["a"],
                "columns": ["b"],
                "values": [[3]],
                "row_title": "r",
                "column_title": "c",
                "decimals": 0,
                "by_row": True,
            },
        ),
        (
            blocks.intervals("t", {"g": {"a": 2, "b": RATE}}, bars=True),
            {
                "kind": "intervals",
                "title": "t",
                "bars": True,
                "groups": [
                    {
                        "name": "g",
                        "items": [
                            {"name": "a", "value": {"value": 2, "low": None, "high": None}},
                            {"name": "b", "value": RATE},
                        ],
                    }
                ],
            },
        ),
        (
            blocks.verdict("Which?", "The dense one.", [("Costs", "costs")]),
            {
                "kind": "verdict",
                "question": "Which?",
                "text": "The dense one.",
                "evidence": [{"text": "Costs", "href": "#costs"}],
            },
        ),
        (
            blocks.line("a", [1, 2, 3, 4], [RATE, None, NO_RATE | {"rate": None}, OTHER]),
            {
                "name": "a",
                "x": [1, 4],
                "y": [0.82, 0.3],
                "low": [0.692, 0.1],
                "high": [0.902, 0.6],
                "n": [50, 10],
            },
        ),
        (
            blocks.line("a", [1, 2], [3, {"value": 4, "low": None, "high": None}], dashed=True),
            {
                "name": "a",
                "x": [1, 2],
                "y": [3, 4],
                "dashed": True,
            },
        ),
    ],
)
def test_constructors_say_what_they_are_told_and_no_more(made, block):
    assert made == block


def test_tiles_keep_what_matters():
    def kept(made):
        return {key: decode_array(made[key]).dtype for key in made.keys() - {"style", "text"}}

    assert kept(blocks.tile(FLOATS)) == {"image": np.uint8}
    assert kept(blocks.tile(values=MAP, style="heat")) == {"map": np.float32}
    # A perturbation of half a grey level is a perturbation.
    difference = blocks.tile(FLOATS, style="difference", against=IMAGE, text="a")
    assert kept(difference) == {"image": np.float32, "against": np.uint8}
    assert blocks.tile(IMAGE, title="b") == {
        "image": encode(IMAGE),
        "style": "image",
        "title": "b",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blocks.heading("A", "A b"), "`heading.id` must be an id of a-z"),
        (lambda: blocks.table(["a", "b"], [["x"]]), "`table.rows[0]` must have 2 items"),
        (lambda: blocks.notice("bad", "x"), "`notice.tone` must be one of ('sound', 'doubtful')"),
        (lambda: blocks.text("a", folded=True), "`text.title` is missing, but a folded block"),
        (lambda: blocks.text(""), "`text.text` is missing"),
        (lambda: blocks.verdict("a", ""), "`verdict.text` is missing"),
        (
            lambda: blocks.chart("t", "x", "y", [blocks.line("a", [], [])] * 2),
            "`chart.series[1]` must not look like `chart.series[0]`",
        ),
        (
            lambda: blocks.chart("t", "x", blocks.axis("y", limits=(1, 0)), []),
            "`chart.y.limits` must be two rising numbers",
        ),
        (lambda: blocks.pictures([("a", [None])], columns=["b", "c"]), "must have 2 items"),
    ],
)
def test_constructors_complain_at_once(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_what_no_block_has_is_refused():
    with pytest.raises(TypeError, match=r"A block has no \['titel'\]"):
        blocks.text("a", titel="b")


# ---- refused by name ----

KINDS = [block["kind"] for block in make_blocks()]
VERDICT, TABLE, CHART, DOTS, PICTURES, HEAT, NOTICE = (
    KINDS.index(kind)
    for kind in ("verdict", "table", "chart", "intervals", "pictures", "heat", "notice")
)
FOLDED = HEAT + 1


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((TABLE, "kind"), "graph", ".kind` must be one of ('heading', 'text', 'table', 'chart'"),
        ((TABLE, "rows", 1), ["a", 1], ".rows[1]` must have 6 items, one for each of the colu"),
        ((TABLE, "rows", 0, 0), RATE, ".rows[0][0]` must be text, a number or null"),
        ((TABLE, "rows", 0, 1), [1], ".rows[0][1]` must be text, a number, null"),
        ((TABLE, "rows", 0, 4, "low"), ..., ".rows[0][4].low` is missing"),
        ((TABLE, "rows", 0, 2), {}, ".rows[0][2].value` is missing"),
        ((TABLE, "highlight"), [2], ".highlight` must hold indices of the 2 rows"),
        ((TABLE, "columns"), [], ".columns` must hold at least one"),
        (
            (TABLE, "columns", 1, "decimals"),
            -1,
            ".columns[1].decimals` must be an integer of at least 0",
        ),
        ((TABLE, "id"), "Costs!", ".id` must be an id of a-z, 0-9 and -"),
        ((CHART, "series", 0, "y"), [1], ".series[0].y` must have 2 items"),
        ((CHART, "series", 0, "n"), [1], ".series[0].n` must have 2 items"),
        ((CHART, "series", 0, "low"), None, ".series[0]` must have both `low`"),
        (
            (CHART, "series", 1, "dashed"),
            False,
            ".series[1]` must not look like `blocks",
        ),
        ((CHART, "x", "limits"), [1], ".x.limits` must be two rising numbers, got [1]"),
        ((DOTS, "groups", 0, "items", 0, "value"), 3, ".groups[0].items[0].value` must be an obj"),
        (
            (DOTS + 1, "groups", 0, "items", 1, "name"),
            "cnn",
            ".groups[0]` must have only one item 'cnn'",
        ),
        ((PICTURES, "rows", 0, "tiles"), [None], ".rows[0].tiles` must have 4 items"),
        ((PICTURES, "rows", 0, "tiles", 0, "style"), "blur", "tiles[0].style` must be one of"),
        ((PICTURES, "rows", 0, "tiles", 0, "style"), "heat", "tiles[0].map` is missing, but the"),
        (
            (PICTURES, "rows", 0, "tiles", 2, "map"),
            encode(MAP[:4]),
            "tiles[2].map` must have shape (8, 8), got (4, 8)",
        ),
        ((PICTURES, "rows", 0, "tiles", 0, "image"), encode(MAP), "image` must be [H, W, 1]"),
        (
            (PICTURES, "rows", 0, "tiles", 0, "image", "dtype"),
            "int8",
            ".rows[0].tiles[0].image`: `dtype` must be one of ('uint8', 'float32'), got 'int8'",
        ),
        ((HEAT, "values"), [[RATE]], ".values` must have 2 items, one for each of the rows"),
        ((HEAT, "values", 0, 0), "x", ".values[0][0]` must be a number, null or a rate"),
        ((FOLDED, "title"), None, ".title` is missing, but a folded block"),
        ((NOTICE, "tone"), "bad", ".tone` must be one of ('sound', 'doubtful'), got 'bad'"),
        ((NOTICE, "text"), ..., ".text` is missing"),
        ((VERDICT, "text"), 3, ".text` must be text, got 3"),
        ((VERDICT, "evidence", 0, "href"), "https://x", ".evidence[0].href` must be # and the id"),
        (
            (VERDICT, "evidence", 0, "href"),
            "#no",
            ".evidence[0].href` must be # and the id of a head",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, place, value, message):
    result = json.loads(json.dumps(make_result()))
    inner = result["blocks"]
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = copy.deepcopy(value)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        report(tmp_path, result)
    assert f"`blocks[{place[0]}]" in str(caught.value)


def test_every_kind_is_drawn_somewhere():
    assert {block["kind"] for block in make_section()} | {"verdict"} == {
        *("heading", "text", "table", "chart", "intervals", "pictures", "heat", "verdict", "notice")
    }
