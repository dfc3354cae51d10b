"""Templates: what they put on the page, what they refuse, and that text stays text."""

import dataclasses

import numpy as np
import pytest

from jaxrobust import evaluation
from jaxrobust.reports import markdown, tables
from jaxrobust.studies import Facts, words

RIGHT = np.array([True] * 3 + [False])
ESTIMATE = {"value": 0.012, "low": -0.003, "high": 0.027}


@dataclasses.dataclass(frozen=True)
class Variant:
    network: str
    sparsity: float = 0.0

    @property
    def words(self):
        return "dense" if not self.sparsity else f"{100 * self.sparsity:g} %"

    @property
    def published(self):
        return {"family": "ResNet", "sparsity": self.sparsity}


DENSE, PRUNED = Variant("mlp"), Variant("mlp", 0.5)


@pytest.fixture
def facts():
    facts = Facts()
    facts.add("accuracy", DENSE, outcomes=RIGHT)
    facts.add("accuracy", PRUNED, outcomes=~RIGHT)
    facts.add("gap", PRUNED, value=-0.5, low=-0.8, high=-0.2, p=0.01234, n=4)
    facts.add("accuracy", family="ResNet", sparsity=0.5, source="003", value=0.4)
    return facts


@pytest.fixture
def render(tmp_path, facts):
    def rendered(text, **names):
        template = tmp_path / "report.md.j2"
        template.write_text(text)
        return words.render(template, facts, {"dense": DENSE, "pruned": PRUNED} | names)

    return rendered


def test_a_template_is_a_summary_and_blocks(render):
    summary, blocks = render(
        "First.\n\nSecond, {{ n }}.\n\n# Part {{ name }} *x* {#part}\n\nWords.\n\n"
        "## Section {#section}\nMore\nwords.\n\nA paragraph.\n",
        n=1593,
        name="a_b",
    )
    assert summary == ["First.", "Second, 1,593."]
    assert [block["kind"] for block in blocks] == ["heading", "text", "heading", "text"]
    assert [block.get("level") for block in blocks] == [1, None, 2, None]
    assert blocks[0]["title"] == "Part a_b x" and blocks[0]["id"] == "part"
    assert blocks[3]["text"] == "More\nwords.\n\nA paragraph."


def test_blocks_stand_where_they_are_called(render):
    _, blocks = render(
        "Summary.\n## S {#s}\nBefore.\n{% call table([column('Variant', show='words'), "
        "column('Accuracy', 'accuracy')], [dense, pruned], title='T') %}\n"
        "   Of {{ fact('accuracy', dense).n }} images,\n   no more.\n{% endcall %}\nAfter."
    )
    assert [block["kind"] for block in blocks] == ["heading", "text", "table", "text"]
    table = blocks[2]
    assert table["caption"] == "Of 4 images,\nno more." and table["title"] == "T"
    assert [row[0] for row in table["rows"]] == ["dense", "50 %"]
    assert [row[1]["count"] for row in table["rows"]] == [3, 1]


def columns_of(render, columns, rows="[dense, pruned]"):
    head = "Summary.\n{{ table([column('V', show='words'), "
    text = head + columns + "], " + rows + ") }}"
    (table,) = render(text)[1]
    return [c["title"] for c in table["columns"]], [row[1:] for row in table["rows"]]


def test_columns_look_facts_up(render):
    _, rows = columns_of(render, "column('points', 'gap', scale=100), column('p', 'gap', show='p')")
    assert rows[0] == [None, None]
    assert rows[1][0] == {"value": -50.0, "low": pytest.approx(-80), "high": pytest.approx(-20)}
    assert rows[1][1] == 0.01234


def test_columns_of_other_keys(render):
    source = "column('Source', 'accuracy', of='published', source='003', unit='%')"
    titles, rows = columns_of(render, source)
    assert titles == ["V", "Source"] and rows == [[None], [0.4]]


def test_a_column_without_facts(render):
    titles, _ = columns_of(render, "column('X', 'speed', optional=true), column('A', 'accuracy')")
    assert titles == ["V", "A"]
    with pytest.raises(ValueError, match=r"column 'X' has no cell: there is no fact 'speed'"):
        columns_of(render, "column('X', 'speed')")
    # Measured of others: an empty column, which is no mistake.
    titles, rows = columns_of(render, "column('Gap', 'gap')", "[dense]")
    assert titles == ["V", "Gap"] and rows == [[None]]
    # A key that was forgotten is one.
    with pytest.raises(ValueError, match="no fact 'gap' with the keys network; the existing ones"):
        columns_of(render, "column('Gap', 'gap', sparsity=none)")


def test_rows_of_lists_and_rows_with_labels(render):
    (table,) = render(
        "S.\n{{ table(['Name', 'Accuracy', 'Word'], [['a', fact('accuracy', dense), 'x']]) }}"
    )[1]
    assert table["rows"][0][1]["rate"] == 0.75
    (table,) = render(
        "S.\n{{ table([column('N'), column('K', show='kind'), column('A', 'accuracy')], "
        "[row(dense, 'ours', kind='k'), row({'network': 'mlp', 'sparsity': 0.5}, 'other', kind='l')],"
        "highlight=[]) }}"
    )[1]
    assert [row[:2] for row in table["rows"]] == [["ours", "k"], ["other", "l"]]
    assert [row[2]["count"] for row in table["rows"]] == [3, 1]
    with pytest.raises(ValueError, match="has no 'nothing' to show"):
        render("S.\n{{ table([column('N', show='nothing')], [dense]) }}")


def test_rows_that_stand_out(render):
    (table,) = render(
        "S.\n{{ table([column('V', show='words')], [dense, pruned], highlight=[pruned]) }}"
    )[1]
    assert table["highlight"] == [1]


def test_charts_of_facts(render):
    (chart,) = render(
        "S.\n{% call chart('T', axis('sparsity', log=true), 'accuracy', [line('mlp', facts.where("
        "'accuracy', network='mlp', sparsity=ANY), x='sparsity'), "
        "level('dense', fact('accuracy', dense), over=[0, 0.5], band=false, dashed=true), line('raw', "
        "x=[0, 1], y=[0.5, none])]) %}C.{% endcall %}"
    )[1]
    first, level, raw = chart["series"]
    assert first["x"] == [0.0, 0.5] and first["y"] == [0.75, 0.25] and len(first["low"]) == 2
    assert level["y"] == [0.75, 0.75] and level["dashed"] and "low" not in level
    assert raw["x"] == [0.0] and chart["caption"] == "C."
    assert chart["x"]["log"] and not chart["y"]["log"] and chart["x"]["title"] == "sparsity"


def test_intervals_bars_and_heat(render):
    _, blocks = render(
        "S.\n{{ intervals(column('I', 'accuracy'), [dense, pruned], group='network', name='words') }}"
        "{{ bars(column('B', show='value'), [row(dense, 'd', value=3)], group='network', "
        "name='label') }}{{ heat(column('H', 'accuracy', unit='%'), [row({'network': 'mlp'}, 'mlp')], "
        "[row({'sparsity': 0.0}, '0'), row({'sparsity': 0.9}, '90')], titles=('made on', "
        "'shown to')) }}"
    )
    intervals, bars, heat = blocks
    assert [item["name"] for item in intervals["groups"][0]["items"]] == ["dense", "50 %"]
    assert bars["bars"] and bars["groups"][0]["items"][0]["value"]["value"] == 3
    assert heat["values"][0][0]["count"] == 3 and heat["values"][0][1] is None
    assert (heat["title"], heat["row_title"], heat["column_title"]) == ("H", "made on", "shown to")
    assert heat["percent"] and "percent" not in intervals


@pytest.mark.parametrize(
    "call, match",
    [
        ("heat(column('T', 'gap', scale=100), [dense], [pruned], titles=('r', 'c'))", "`scale`"),
        ("heat(column('T', 'gap', unit='points'), [dense], [pruned], titles=('r', 'c'))", "unit"),
        (
            "bars(column('T', 'gap', decimals=1), [dense], group='words', name='network')",
            "`decimals`",
        ),
    ],
)
def test_what_a_drawing_has_no_place_for_is_refused(render, call, match):
    with pytest.raises(ValueError, match=f"The column 'T' cannot show its {match}"):
        render(f"S.\n{{{{ {call} }}}}")


def test_titles_of_axes_that_a_macro_wrote_are_text(render):
    (chart,) = render(
        "{% macro name() %}snake_case{% endmacro %}S.\n{{ chart('t', axis(name(), log=true), 'y', "
        "[line('raw', x=[1], y=[0.5])]) }}"
    )[1]
    assert chart["x"]["title"] == "snake_case"


def test_verdicts_and_notices(render):
    verdict, notice = render(
        "S.\n{% call verdict('Is it?', see={'the section': 's'}) %}\nYes.\n\n**How sure:** "
        "{{ fact('gap', pruned) | p_value }}.\n{% endcall %}"
        "{% call notice('doubtful') %}Careful.{% endcall %}\n## S {#s}"
    )[1][:2]
    assert verdict["text"] == "Yes.\n\n**How sure:** p = 0.012."
    assert verdict["evidence"] == [{"text": "the section", "href": "#s"}]
    assert notice["tone"] == "doubtful"


def test_blocks_that_python_made(render):
    made = {"kind": "text", "text": "made"}
    found = render("S.\n{{ put(made) }}{{ put([made, made]) }}", made=made)[1]
    assert found == [made] * 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{ fact('accuracy', dense) | estimate }}", "75.0 % (30.1 to 95.4, n = 4)"),
        ("{{ fact('gap', pruned) | estimate(2) }}", "−0.50 (−0.80 to −0.20)"),
        ("{{ fact('accuracy', dense) | percent(0) }}", "75 %"),
        ("{{ gap | points }}", "+1.2 points (−0.3 to +2.7)"),
        ("{{ 0.5 | points }}", "+50.0 points"),
        ("{{ fact('gap', pruned) | number(1) }}", "−0.5"),
        ("{{ ['a', 'b', 'c'] | listed }}", "a, b and c"),
        ("{{ 1 | plural('seed') }}, {{ 2 | plural('seed') }}", "1 seed, 2 seeds"),
        ("{{ tiny | p_value }}", "p < 0.0001"),
        ("{{ 0.031372549 | epsilon }}", "8/255"),
        ("{{ below }}", "−0.25"),
    ],
)
def test_filters(render, text, shown):
    (found,), _ = render(text, gap=ESTIMATE, tiny=1e-9, below=-0.25)
    assert markdown.plain(found).replace("\u00a0", " ") == shown


HOSTILE = "a_b *x* [l](u) `c` <b> & # ~ | resnet_small _e_"


def test_text_stays_text(render):
    summary, _ = render(
        "{{ name }} and {% macro m() %}**{{ name }}**{% endmacro %}{{ m() }}", name=HOSTILE
    )
    assert markdown.plain(summary[0]) == f"{HOSTILE} and {HOSTILE}"
    drawn = markdown.render(render("{{ name }}", name=HOSTILE)[0][0])
    assert drawn == "<p>" + HOSTILE.replace("&", "&amp;").replace("<b>", "&lt;b&gt;") + "</p>\n"
    for start in ("- item", "1. item", "# no heading", "> quote"):
        drawn = markdown.render(render("{{ name }}", name=start)[0][0])
        assert drawn == f"<p>{start.replace('>', '&gt;')}</p>\n"


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        (
            "{{ fact('accuracy', network='cnn') | percent }}",
            ValueError,
            "no fact 'accuracy' of network='cnn'",
        ),
        ("S.\n\n{{ nothing }}", ValueError, "report.md.j2, line 3: 'nothing' is undefined"),
        ("{% if %}", ValueError, "report.md.j2, line 1: Expected an expression"),
        (
            "{{ fact('accuracy', dense) }}",
            ValueError,
            "A sentence cannot hold the fact 'accuracy' itself",
        ),
        ("{{ several }}", ValueError, r"A sentence cannot hold \[1, 2\]"),
        (
            "{{ chart('Speed', 'x', 'y', [line('a', facts.where('speed'), x='sparsity')]) }}",
            ValueError,
            "The chart 'Speed' has no point",
        ),
        (
            "{{ bars(column('Speed', 'speed'), [dense], group='words', name='network') }}",
            ValueError,
            "The chart 'Speed' has no value: no row has a fact 'speed'",
        ),
        (
            "{{ heat(column('', 'speed'), [dense], [{'a': 1}], titles=('r', 'c'), show='a') }}",
            ValueError,
            "The table of 'speed' has no value",
        ),
        (
            "{{ table([column('A', 'accuracy', unit='%', scale=100)], [dense]) }}",
            ValueError,
            "The column 'A' has the unit %, which sets the scale",
        ),
        ("{{ nothing_there }}", ValueError, "A sentence cannot hold None"),
        ("{{ holds }}", ValueError, "A sentence cannot hold True"),
        ("S.\n## No id\n", ValueError, "A heading needs an id"),
        (
            "S.\n{% call verdict('?') %}{{ table(['V'], [['a']]) }}{% endcall %}",
            ValueError,
            "cannot stand within a caption",
        ),
    ],
)
def test_what_a_template_cannot_say(render, text, error, match):
    with pytest.raises(error, match=match):
        render(text, nothing_there=None, holds=True, several=[1, 2])


def test_shares_and_p_values_near_a_limit(render):
    nearly = {"count": 9999, "n": 10000, "rate": 0.9999, "low": 0.9994, "high": 1.0}
    shown = render("{{ r | percent }}|{{ r | estimate }}|{{ 1e-4 | percent }}", r=nearly)[0][0]
    one, two, three = shown.replace("\u00a0", " ").split("|")
    assert one == "99.99 %" and two.startswith("99.99 % (99.94 to 100.00") and three == "0.01 %"
    shown = "{{ 0.0496 | p_value }}|{{ 0.04 | p_value }}|{{ nan | p_value }}"
    assert render(shown, nan=float("nan"))[0][0] == "p = 0.0496|p = 0.04|no p-value"


def test_a_p_value_below_its_decimals_is_not_zero(render, facts):
    facts.add("small", DENSE, value=1.0, p=4e-5)
    (table,) = render("S.\n{{ table([column('p', 'small', show='p', decimals=3)], [dense]) }}")[1]
    assert tables.table(table)["rows"][0]["cells"][0]["text"] == "< 0.001"


def test_points_of_a_line_are_sorted_and_points_are_hundredths(render, facts):
    for epsilon in (0.2, 0.1, 0.3):
        facts.add("curve", epsilon=epsilon, value=epsilon)
    text = "S.\n{{ chart('t', 'x', 'y', [line('a', facts.where('curve', epsilon=ANY), x='epsilon')]) }}"
    assert render(text)[1][0]["series"][0]["x"] == [0.1, 0.2, 0.3]
    _, rows = columns_of(render, "column('points', 'gap', unit='points')")
    assert rows[1][0] == {"value": -50, "low": -80, "high": -20}


def test_charts_of_facts_without_a_value_are_empty(render, facts):
    """Such as a rate among no images: they are no mistake of the template."""
    facts.add_rate("success", None, evaluation.rate(0, 0), epsilon=0.1)
    _, blocks = render(
        "S.\n{{ chart('t', 'x', 'y', [line('a', facts.where('success', epsilon=ANY), x='epsilon')]) }}"
        "\n{{ intervals(column('t', 'success'), [row({'epsilon': 0.1}, g='all')], group='g', "
        "name='g') }}"
    )
    assert [block["kind"] for block in blocks] == ["chart", "intervals"]
    assert blocks[0]["series"][0]["x"] == [] and "given" not in blocks[0]["series"][0]


def test_text_cannot_become_structure_and_titles_keep_their_numbers(render):
    name = "a\x0c## Foo {#foo}\u2028\ue0000\ue001"
    _, blocks = render(
        "S.\n## 1. Title {#one}\n{{ name }}\n{% macro of(x) %}{{ x }}{% endmacro %}"
        "{{ table(['V'], [['a']], title='With ' ~ of('a_b')) }}",
        name=name,
    )
    assert [block["kind"] for block in blocks] == ["heading", "text", "table"]
    assert blocks[0]["title"] == "1. Title" and blocks[2]["title"] == "With a_b"


def test_a_list_within_a_list_stays_one(render):
    (block,) = render("S.\n{% call verdict('?') %}\n  Yes.\n\n  - a\n    - b\n{% endcall %}")[1]
    assert block["text"] == "Yes.\n\n- a\n  - b"


def test_a_template_includes_others(render, tmp_path):
    (tmp_path / "more.md.j2").write_text(
        "## More {#more}\n{{ fact('accuracy', dense) | percent }}\n"
    )
    _, blocks = render("S.\n{% include 'more.md.j2' %}")
    assert blocks[0]["id"] == "more" and blocks[1]["text"] == "75.0\u00a0%"


def test_pictures_stand_in_rows(render):
    image = np.zeros((2, 2, 3), np.uint8)
    _, (block,) = render(
        '{% call pictures([("first", [tile(image, text="black")])], columns=["clean"]) %}\n'
        "Words.\n{% endcall %}",
        image=image,
    )
    assert (block["kind"], block["caption"], block["columns"]) == ("pictures", "Words.", ["clean"])
    (row,) = block["rows"]
    assert row["label"] == "first" and row["tiles"][0]["text"] == "black"
