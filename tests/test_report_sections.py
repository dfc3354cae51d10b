"""Parts and generic sections of the report: drawn as result.json says, or refused by name."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
from report_pages import EVIL, NO_RATE, RATE, Page, encode, make_result, report

from jaxrobust.reports import figures, looks
from jaxrobust.reports.formatting import measure, shared_decimals
from jaxrobust.reports.tables import heat_table, table

IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
MAP = np.random.default_rng(1).random((8, 8), dtype=np.float32)
FLOATS = (IMAGE / 255).astype(np.float32)


def make_sections():
    """A section of every kind of block, and a short one beside it."""
    blocks = [
        {
            "kind": "table",
            "id": "costs",
            "title": f"Costs {EVIL}",
            "caption": "What it costs.",
            "columns": [
                {"title": "Variant"},
                {"title": "Sparsity", "unit": "%"},
                {"title": "Mean", "unit": "ms", "group": "Latency"},
                {"title": "Change", "group": "Latency", "decimals": 1},
                {"title": "Accuracy"},
                {"title": "Note"},
            ],
            "rows": [
                ["dense", 0, {"value": 3.21, "deviation": 0.12}, None, RATE, "as trained"],
                [
                    EVIL,
                    0.8,
                    {"value": 3.0, "deviation": 0.2},
                    {"value": -2.5, "low": -3, "high": -2},
                    RATE,
                    None,
                ],
            ],
            "highlight": [1],
        },
        {
            "kind": "chart",
            "title": "Accuracy",
            "x": {"title": "sparsity", "percent": True},
            "y": {"title": "accuracy", "percent": True},
            "series": [
                {"name": "cnn", "x": [0, 0.5], "y": [0.8, None], "low": [0.7, 0], "high": [0.9, 1]},
                {"name": "cnn, tuned", "model": "cnn", "dashed": True, "x": [0], "y": [0.85]},
                {"name": EVIL, "x": [], "y": []},
            ],
        },
        {
            "kind": "chart",
            "x": {"title": "batch", "log": True},
            "y": {"title": "ms", "log": True},
            "series": [{"name": "dense", "x": [0, 1, 16, 100], "y": [9, 3.2, 21, 120]}],
        },
        {
            "kind": "intervals",
            "id": "seeds",
            "title": "Seeds",
            "groups": [{"name": "seed 0", "items": [{"name": "cnn", "value": RATE}]}],
        },
        {
            "kind": "intervals",
            "title": "Norms",
            "folded": True,
            "groups": [
                {
                    "name": "PGD",
                    "items": [
                        {"name": "cnn", "value": {"value": 1.5, "deviation": 0.25}},
                        {"name": "mlp", "value": {"value": None, "low": None, "high": None}},
                    ],
                }
            ],
        },
        {
            "kind": "pictures",
            "columns": ["original", "heat", "overlay", "change"],
            "rows": [
                {
                    "label": f"cat {EVIL}",
                    "text": "image 3",
                    "tiles": [
                        {"image": encode(IMAGE)},
                        {"map": encode(MAP), "title": "a title of its own"},
                        {"image": encode(IMAGE[..., :1]), "map": encode(MAP), "text": "golf"},
                        {"image": encode(FLOATS), "against": encode(FLOATS)},
                    ],
                },
                {"label": "dog", "tiles": [None, None, None, {"image": encode(FLOATS)}]},
            ],
        },
        {
            "kind": "heat",
            "title": "Agreement",
            "rows": ["a", "b"],
            "columns": ["c"],
            "values": [[RATE], [None]],
            "row_title": "made on",
            "column_title": "shown to",
        },
        {"kind": "text", "title": "Why", "folded": True, "paragraphs": ["Because.", EVIL]},
        make_verdict(),
    ]
    return [
        {"id": "costs-section", "title": "Costs", "part": "b", "text": [EVIL], "blocks": blocks},
        {"id": "loose", "title": "Loose", "blocks": []},
    ]


def make_verdict():
    return {
        "kind": "verdict",
        "question": "Which one?",
        "answer": "The dense one.",
        "confidence": "Fairly.",
        "evidence": [{"text": "Costs", "href": "#costs"}, {"text": "a remark"}],
    }


def make_study():
    verdict = make_verdict()
    return make_result() | {
        "verdicts": [verdict],
        "parts": [
            {"id": "a", "title": "Problem A", "text": ["It begins."], "includes": ["models"]},
            {"id": "b", "title": "Problem B", "includes": ["gallery", "attacks"]},
        ],
        "sections": make_sections(),
    }


def order(page):
    return [attributes["id"] for attributes in page.all("section")]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return report(tmp_path_factory.mktemp("study"), make_study())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_markup_is_well_formed_and_every_link_leads_somewhere(text, page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} == {*page.sections(), "costs"}
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "<script" not in text and "http:" not in text and "https:" not in text
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", text))


def test_parts_hold_what_they_claim_and_the_rest_follows(page):
    rest = ["data", "training", "confusion", "classes", "curves", "transfer", "explanations"]
    parts = ["a", "models", "b", "gallery", "attacks", "costs-section"]
    last = ["appendix", *rest, "loose", "records", "run"]
    assert order(page) == ["key-figures", *parts, *last]


def test_without_parts_sections_come_before_the_records(tmp_path):
    study = make_study()
    del study["parts"]
    del study["sections"][0]["part"]
    ids = order(Page(report(tmp_path, study)))
    assert ids[-5:] == ["gallery", "costs-section", "loose", "records", "run"]
    assert "appendix" not in ids


def test_a_part_may_claim_what_this_result_lacks(tmp_path):
    study = make_study() | {"gallery": []}
    study["verdicts"][0]["evidence"] = [{"text": "Gallery", "href": "#gallery"}]
    page = Page(report(tmp_path, study))
    assert "gallery" not in page.sections()
    assert "Gallery" in page.words[None]
    assert "#gallery" not in {link["href"] for link in page.all("a")}


def test_answers_come_before_the_contents(text):
    places = [text.index(word) for word in ("The second paragraph", "Which one?", "<nav", "<main")]
    assert places == sorted(places)


def test_contents_are_grouped_by_part(text):
    contents = text[text.index("<nav") : text.index("</nav>")]
    links = re.findall(r'href="#([a-z-]+)"', contents)
    assert links[:6] == ["key-figures", "a", "models", "b", "gallery", "attacks"]
    assert contents.count("<ul>") == 1 + 3


def test_tables_say_what_the_result_says(page):
    words = page.text("costs-section")
    assert "Latency" in words
    assert "dense 0 % 3.21 ± 0.12 – 82 % (69–90) as trained" in words
    assert f"{EVIL} 80 % 3.00 ± 0.20 −2.5 (−3.0 to −2.0) 82 % (69–90) –" in words
    assert "Accuracy n = 50" in words and "Mean ms" in words and "What it costs." in words


def test_row_and_column_headers_have_their_scope(text):
    start = text.index('<div class="block" id="costs">')
    drawn = text[start : text.index("</table>", start)]
    assert '<tr class="highlight">' in drawn
    assert drawn.count('scope="row"') == 2
    heads = re.findall(r'<th scope="(\w+)"( colspan="\d")?( rowspan="2")?', drawn)
    assert heads[:3] == [
        ("col", "", ' rowspan="2"'),
        ("col", "", ' rowspan="2"'),
        ("colgroup", ' colspan="4"', ""),
    ]
    assert all(attributes.get("scope") for attributes in Page(text).all("th"))


def test_every_row_of_a_table_is_as_wide_as_its_head(text):
    def width(row):
        spans = re.findall(r"<t[hd](?=[ >])([^>]*)", row)
        return sum(int((re.findall(r'colspan="(\d)"', span) or [1])[0]) for span in spans)

    for drawn in re.findall(r'<table class="generic.*?</table>', text, flags=re.S):
        rows = drawn.split("<tr")[1:]
        widths = {width(row) for row in rows if "</td>" in row}
        assert widths == {width(rows[0])}


def test_charts_have_names_legends_and_numbers(text, page):
    words = page.text("costs-section")
    assert "cnn 0 % 80 % (70–90)" in words and "cnn, tuned 0 % 85 %" in words
    assert "cnn 50 % –" in words and "dense 16 21" in words
    images = [tag for tag in page.all("div") if tag.get("role") == "img"]
    labels = {tag["aria-label"] for tag in images}
    assert "Accuracy: accuracy over sparsity; the numbers are in the table below" in labels
    assert "╌" in text  # the dashed line in the legend
    assert "seed 0 cnn 82 % (69–90)" in words and "PGD cnn 1.50 ± 0.25" in words


def test_pictures_have_tiles_with_words(page):
    tiles = [tag for tag in page.all("img") if EVIL in tag["alt"] or tag["alt"].endswith("dog")]
    assert [tag["alt"] for tag in tiles] == [
        f"original, cat {EVIL}",
        f"a title of its own, cat {EVIL}",
        f"overlay, cat {EVIL}",
        f"change, cat {EVIL}",
        "change, dog",
    ]
    words = page.text("costs-section")
    assert "changenone" in words and "overlaygolf" in words


def test_folded_blocks_show_their_title_alone(text):
    for title in ("Norms", "Why"):
        summary = f"<summary><h3>{title}</h3></summary>"
        before = text[: text.index(summary)]
        assert re.search(r"<details[^>]*>\s*$", before) and "open" not in before[-60:]


def test_the_records_are_folded_with_parts_and_capped(tmp_path, page):
    assert "The records of 4 attacks" in page.text("records")
    study = make_study()
    attack = study["attacks"][0]
    attack["records"] *= 200
    study["attacks"] = [attack] * 100
    drawn = report(tmp_path, study)
    assert "200 images, the first 50 shown; all are in result.json" in Page(drawn).text("records")
    assert len(drawn) < 15e6


def test_a_long_gallery_is_folded(tmp_path):
    result = make_result()
    result["gallery"] = [result["gallery"][0]] * 13
    drawn = report(tmp_path, result)
    gallery = drawn[drawn.index('<section id="gallery">') : drawn.index('<section id="records">')]
    assert re.findall(r"<details[^>]*>", gallery) == ['<details class="group">']


def test_the_same_study_gives_the_same_bytes(tmp_path, text):
    assert report(tmp_path, make_study()) == text


def test_bars_begin_at_zero():
    """The length of a bar is what it says, so it must not begin anywhere else."""
    rows = [
        (figures.series(index), {"value": value, "low": None, "high": None})
        for index, value in enumerate((90.0, 91.0))
    ]
    drawn = {bars: figures.intervals({"a": rows}, "x", False, bars) for bars in (False, True)}
    ticks = {bars: re.findall(r"<text[^>]*>([0-9.]+)</text>", text) for bars, text in drawn.items()}
    assert ticks[True][0] == "0" and "0" not in ticks[False]


def test_names_that_meet_in_a_chart_differ_in_colour():
    def chart(*names):
        axis = {"title": ""}
        series = [{"name": name, "x": [], "y": []} for name in names]
        return {"kind": "chart", "x": axis, "y": axis, "series": series}

    names = [f"series {index}" for index in range(7)]
    result = make_result()
    result["sections"] = [
        {"blocks": [chart(*names[:3]), chart("cnn", *names[2:]), chart(*"abcdefghijkl")]}
    ]
    assigned = looks.assign(result)
    assert assigned["mlp"] == figures.series(0) and assigned["cnn"] == figures.series(1)
    assert len({assigned[name].css for name in ("cnn", *names[2:])}) == 6
    assert len({assigned[name].css for name in names[:3]}) == 3
    assert len({assigned[name] for name in "abcdefghijkl"}) == 12
    assert not {assigned["mlp"], assigned["cnn"]} & {assigned[n] for n in [*names, *"abcdefghijkl"]}


def test_short_cells_stay_on_one_line_and_long_ones_do_not():
    words = ["L2, 10 %", "no difference at all", "no difference at all."]
    drawn = table({"columns": [{"title": "a"}], "rows": [[text] for text in words]})
    found = [row["cells"][0]["text"] for row in drawn["rows"]]
    assert found == ["L2,\xa010\xa0%", "no\xa0difference\xa0at\xa0all", "no difference at all."]


def test_a_rate_keeps_its_n_where_n_differs():
    other = {"count": 3, "n": 10, "rate": 0.3, "low": 0.1, "high": 0.6}
    columns = [{"title": "a"}, {"title": "b"}]
    drawn = table({"columns": columns, "rows": [["x", RATE], ["y", other], ["z", NO_RATE]]})
    details = [row["cells"][1]["detail"].replace("\xa0", " ") for row in drawn["rows"]]
    assert details == ["(69–90, n = 50)", "(10–60, n = 10)", "(n = 0)"]
    assert drawn["columns"][1]["unit"] == ""


@pytest.mark.parametrize(
    ("values", "percent", "shares"),
    [
        ([0.0, 1.0, 4.0], False, [0, 0.25, 1]),
        ([-1.0, 0.0, 1.0], False, [0, 0.5, 1]),
        ([0.2, 0.5, None], True, [0.2, 0.5, 0]),
        ([0.0, 0.0, 0.0], False, [0, 0, 0]),
    ],
)
def test_heat_is_coloured_from_zero_or_from_the_least(values, percent, shares):
    block = {"rows": ["a"], "columns": list("xyz"), "values": [values], "percent": percent}
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


BLOCKS = ("sections", 0, "blocks")
PLACE = "`sections[0].blocks"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((*BLOCKS, 0, "kind"), "graph", PLACE + "[0].kind` must be one of ('table', 'chart', 'int"),
        ((*BLOCKS, 0, "rows", 1), ["a", 1], PLACE + "[0].rows[1]` must have 6 items"),
        ((*BLOCKS, 0, "rows", 0, 0), RATE, PLACE + "[0].rows[0][0]` must be text, a number or nu"),
        ((*BLOCKS, 0, "rows", 0, 1), [1], PLACE + "[0].rows[0][1]` must be text, a number, null"),
        ((*BLOCKS, 0, "rows", 0, 4, "low"), ..., PLACE + "[0].rows[0][4].low` is missing"),
        ((*BLOCKS, 0, "rows", 0, 2), {}, PLACE + "[0].rows[0][2].value` is missing"),
        ((*BLOCKS, 0, "highlight"), [2], PLACE + "[0].highlight` must hold indices of the 2 rows"),
        ((*BLOCKS, 0, "columns"), [], PLACE + "[0].columns` must hold at least one"),
        ((*BLOCKS, 0, "columns", 1, "decimals"), -1, "columns[1].decimals` must be 0 or more"),
        ((*BLOCKS, 0, "id"), "Costs!", PLACE + "[0].id` must be an id of a-z, 0-9 and -"),
        ((*BLOCKS, 1, "series", 0, "y"), [1], PLACE + "[1].series[0].y` must have 2 items"),
        ((*BLOCKS, 1, "series", 0, "low"), None, PLACE + "[1].series[0]` must have both `low`"),
        ((*BLOCKS, 1, "series", 1, "dashed"), False, "must not look as `sections[0].blocks[1].ser"),
        ((*BLOCKS, 3, "groups", 0, "items", 0, "value"), 3, "items[0].value` must be an object"),
        ((*BLOCKS, 5, "rows", 0, "tiles"), [None], PLACE + "[5].rows[0].tiles` must have 4 items"),
        ((*BLOCKS, 5, "rows", 0, "tiles", 0, "style"), "blur", "tiles[0].style` must be one of"),
        ((*BLOCKS, 5, "rows", 0, "tiles", 0, "style"), "heat", "tiles[0].map` is missing, and the"),
        (
            (*BLOCKS, 5, "rows", 0, "tiles", 2, "map"),
            encode(MAP[:4]),
            "tiles[2].map` must have shape (8, 8), got (4, 8)",
        ),
        ((*BLOCKS, 5, "rows", 0, "tiles", 0, "image"), encode(MAP), "image` must be [H, W, 1]"),
        ((*BLOCKS, 6, "values"), [[RATE]], PLACE + "[6].values` must have 2 items"),
        ((*BLOCKS, 6, "values", 0, 0), "x", "values[0][0]` must be a number, null or a rate"),
        ((*BLOCKS, 7, "title"), None, PLACE + "[7].title` is missing, and a folded block"),
        (
            (*BLOCKS, 8, "evidence", 0, "href"),
            "https://x",
            "evidence[0].href` must be # and the id",
        ),
        (("verdicts", 0, "evidence", 0, "href"), "#nowhere", "`verdicts[0].evidence[0].href` must"),
        (("verdicts", 0, "confidence"), ..., "`verdicts[0].confidence` is missing"),
        (("sections", 0, "part"), "z", "`sections[0].part` must be one of ('a', 'b'), got 'z'"),
        (("sections", 1, "id"), "b", "`sections[1].id` must be unique, got 'b': that is `parts[1]"),
        (("sections", 1, "id"), "run", "`sections[1].id` must be unique, got 'run': that is the r"),
        (("parts", 0, "includes"), ["x"], "`parts[0].includes` must be of ('suites', 'data', "),
        (("parts", 0, "includes"), ["gallery"], "`parts[1].includes` has 'gallery', and so has"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, place, value, message):
    study = json.loads(json.dumps(make_study()))
    inner = study
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = copy.deepcopy(value)
    with pytest.raises(ValueError, match=re.escape(message)):
        report(tmp_path, study)


def test_a_part_of_which_the_run_has_nothing_is_no_chapter(tmp_path):
    study = make_study()
    study["parts"].append({"id": "empty", "title": "Of another run"})
    assert "Of another run" not in report(tmp_path, study)
