"""The report says what result.json says, harms nobody, and complains clearly."""

import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from report_pages import EVIL, SECTIONS, Page, encode, make_result, report

from jaxrobust.reports import write_report
from jaxrobust.reports.__main__ import main


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return report(tmp_path_factory.mktemp("run"), make_result())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_markup_is_well_formed_and_the_contents_lead_somewhere(page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.all("a")]
    assert set(targets) == page.sections()
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_section_is_there(page):
    always = {"key-figures", "data", "models", "training", "confusion", "classes", "run"}
    assert page.sections() == always.union(*SECTIONS.values())


def test_nothing_is_fetched(text, page):
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert page.all("script") == [] and page.all("iframe") == []
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", text))
    policies = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_text_from_the_result_is_escaped(text, page):
    assert "<script" not in text
    assert EVIL in page.text(None)
    assert EVIL in page.text("confusion")
    assert "$\\frac" in page.text("classes")


def test_labels_in_figures_are_escaped(tmp_path):
    result = make_result()
    result["attacks"][0]["label"] = EVIL
    text = report(tmp_path, result)
    assert "<script" not in text and Page(text).open == []


def test_numbers_are_those_of_the_result(page):
    assert "82 % accuracy (69–90, n = 50)" in page.text("key-figures")
    models = page.text("models")
    assert "141,610" in models and "82 % (69–90, n = 50) 0.734 0.660 3 1.2" in models
    assert "cat 17 0.71 0.61 0.66 0.71 0.61 0.66" in page.text("classes")
    assert "PGD, linf 0.03 82 % (69–90, n = 50) 8 % (0–30, n = 50) 1.234 0.0288 93 % 3.0" in (
        page.text("attacks")
    )
    assert "PGD, linf 0.03, target cat 82 % (69–90, n = 50) – 1.234" in page.text("attacks")
    assert "mlp 82 %(69–90, n = 50) 82 %" in page.text("transfer")
    assert "0.01 – (n = 0)" in page.text("curves")
    assert "cat 13 4 0" in page.text("confusion")


def test_the_strongest_attack_is_the_one_that_leaves_least(page):
    figures = page.text("key-figures")
    assert "20 % robust accuracy (0–30, n = 50) under FGSM" in figures
    assert "8 % robust accuracy (0–30, n = 50) under PGD, linf 0.03" in figures
    assert "24 %" not in figures


def test_records_show_predictions_and_logits(page):
    records = page.text("records")
    assert f"7 cat cat (90 %) {EVIL} (> 99 %) yes yes 0.812 0.0300 2" in records
    assert "3.25 −1.50 –" in records and "0.50 4.75 0.00" in records


def test_gallery_and_explanations_have_their_tiles(page):
    tiles = page.all("img")
    # Explanations: 2 of the MLP, 3 of the CNN. Gallery: 5 and 7.
    assert len(tiles) == 2 + 3 + 5 + 7
    assert all(tile["alt"] and tile["loading"] == "lazy" for tile in tiles)
    assert all(tile["class"] == "pixelated" and tile["width"] == "8" for tile in tiles)
    gallery = page.text("gallery")
    assert "perturbation× 10.0" in gallery and "mlp: PGD 1 of 1 shown succeeded" in gallery
    assert f"cnn: PGD, target {EVIL}" in gallery
    assert gallery.count("Grad-CAM") == 1 + 2  # the caption, and the tiles of the CNN alone
    assert "Grad-CAM at layer conv5" in page.text("explanations")


def test_only_the_first_gallery_group_is_open(text):
    gallery = text[text.index('<section id="gallery">') : text.index('<section id="records">')]
    assert re.findall(r"<details[^>]*>", gallery) == [
        '<details class="group" open>',
        '<details class="group">',
    ]


def test_settings_environment_and_timings_are_listed(page):
    run = page.text("run")
    assert "train.batch_size 32" in run and "resume –" in run and "note " + EVIL in run
    assert "train cnn 12.3" in run and "Commit–" in run and "device a cpu" in run


def test_the_same_result_gives_the_same_bytes(tmp_path, text):
    """In another process, under other settings of matplotlib and another hash seed."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_result()))
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\n")
    environment = os.environ | {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path)}
    subprocess.run(
        [sys.executable, "-m", "jaxrobust.reports", str(path)],
        check=True,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("key", SECTIONS)
@pytest.mark.parametrize("how", ["absent", "null", "empty"])
def test_a_section_that_is_not_there_is_left_out(tmp_path, page, key, how):
    result = make_result()
    if how == "absent":
        del result[key]
    else:
        result[key] = None if how == "null" else []
    assert page.sections() - Page(report(tmp_path, result)).sections() == SECTIONS[key]


def test_a_model_without_epochs_has_no_training_curves(tmp_path):
    result = make_result()
    for model in result["models"]:
        model["training"] = {"seconds_per_epoch": None, "epochs": []}
    result["models"][0]["evaluation"]["loss"] = math.nan
    page = Page(report(tmp_path, result))
    assert "training" not in page.sections()
    assert "(69–90, n = 50) – 0.660 – –" in page.text("models")


def without_numbers(value, missing):
    """The result with every number that may be missing gone."""
    if isinstance(value, dict):
        kept = {"index", "label", "target", "epoch", "shape", "image_shape", "format"}
        return {
            key: inner
            if key in kept or key.endswith("prediction")
            else without_numbers(inner, missing)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [without_numbers(inner, missing) for inner in value]
    return missing if isinstance(value, int | float) and not isinstance(value, bool) else value


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_numbers_are_dashes(tmp_path, missing):
    page = Page(report(tmp_path, without_numbers(make_result(), missing)))
    assert "– accuracy" in page.text("key-figures")
    assert "cat – – – – – – –" in page.text("classes")
    for section in page.sections():
        assert not re.search(r"\b(nan|NaN|inf|Infinity|None|null)\b", page.text(section))


def test_grey_images_are_drawn(tmp_path):
    result = make_result()
    grey = np.full((8, 8, 1), 128, np.uint8)
    for item in result["explanations"] + result["gallery"]:
        item["image"] = encode(grey)
    for item in result["gallery"]:
        item["adversarial"] = encode((grey / 255).astype(np.float32))
    assert "perturbationnone" in Page(report(tmp_path, result)).text("gallery")


def test_long_records_are_cut_and_say_so(tmp_path):
    result = make_result()
    result["attacks"][0]["records"] *= 201
    assert "201 images, the first 200 shown" in Page(report(tmp_path, result)).text("records")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/result\.json: there is no such file"):
        write_report(tmp_path / "nowhere" / "result.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold an object"),
        ("{}", "`format` must be 1, got None"),
        ('{"format": 2}', "`format` must be 1, got 2"),
        ('{"format": 1}', "`experiment` is missing"),
    ],
)
def test_a_file_that_is_no_result(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        write_report(path)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("attacks", 1, "success", "low"), ..., "`attacks[1].success.low` is missing"),
        (("models", 0, "evaluation"), ..., "`models[0].evaluation` is missing"),
        (("models", 0, "evaluation"), None, "`models[0].evaluation` must be an object, got None"),
        (("models", 0, "num_parameters"), "many", "`models[0].num_parameters` must be a number"),
        (("gallery", 0, "success"), 1, "`gallery[0].success` must be true or false, got 1"),
        (("data", "class_names"), "cat", "`data.class_names` must be a list, got 'cat'"),
        (("title",), 3, "`title` must be text, got 3"),
        (
            ("gallery", 0, "image", "dtype"),
            "int8",
            "`gallery[0].image`: `dtype` must be one of ('uint8', 'float32'), got 'int8'",
        ),
        (("explanations", 1, "image", "shape"), [8, 24], "`explanations[1].image` must be [H, W"),
        (
            ("gallery", 1, "grad_cam", "shape"),
            [4, 16],
            "`gallery[1].grad_cam` must have shape (8, 8), got (4, 16)",
        ),
    ],
)
def test_a_result_with_something_wrong_names_the_place(tmp_path, place, value, message):
    result = json.loads(json.dumps(make_result()))  # a copy that shares nothing
    inner = result
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        report(tmp_path, result)


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    report(tmp_path, make_result())
    before = (tmp_path / "report.html").read_bytes()

    def refuse(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        report(tmp_path, make_result() | {"title": "another"})
    assert (tmp_path / "report.html").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "report.html"}


def test_command_line(tmp_path, capsys):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_result()))
    output = tmp_path / "new" / "page.html"
    assert main([str(path), "--output", str(output)]) == 0
    assert capsys.readouterr().out.strip() == str(output) and output.is_file()
    assert main([str(tmp_path / "other.json")]) == 2
    assert "other.json: there is no such file" in capsys.readouterr().err


def test_the_import_is_cheap():
    code = (
        "import sys, jaxrobust.reports; "
        "print([m for m in ('matplotlib', 'jinja2', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"


def test_what_norms_are_of_and_warnings_are_said(tmp_path):
    """Files of earlier releases have means over all images attacked, and still draw."""
    old = make_result()
    assert "over all images attacked" in report(tmp_path, old) and not any(
        "norms_of" in attack for attack in old["attacks"]
    )
    new = make_result()
    sentence = "The classifier returns probabilities."
    for attack in new["attacks"]:
        attack |= {"norms_of": "successes", "warnings": [sentence]}
    text = report(tmp_path, new)
    assert "over the successes," in text and "†" not in text and sentence in text
    for entry in new["attacks"]:
        entry.pop("warnings")
    assert sentence not in report(tmp_path, new)
    new["attacks"][0].pop("norms_of")
    new["models"][0]["evaluation"]["warnings"] = [sentence]
    new["curves"][0]["warnings"] = new["transfer"][0]["warnings"] = ["Of a curve & more."]
    text = report(tmp_path, new)
    assert "†: over all images attacked" in text and text.count("†") == 3
    assert sentence in text and text.count("Of a curve &amp; more.") == 2
