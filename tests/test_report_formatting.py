"""What a report is made of: arrays, pictures, numbers."""

import base64
import html
import math
import re

import numpy as np
import pytest
from report_pages import EVIL, encode

from jaxrobust.reports import decode_array
from jaxrobust.reports.formatting import confidence, number, rate_interval, rate_value, seconds
from jaxrobust.reports.markdown import escape, links, render
from jaxrobust.reports.pictures import data_uri, heat, overlay, perturbation, to_rgb


@pytest.mark.parametrize(
    "text",
    [
        *(EVIL, "# a", "1. b", "2) b", "- c", "+ d", "a\\b", "[x](#y)", "![x](y)", "`c`", "&amp;"),
        *("~~~", "===", "_a_ __b__", "<http://x>", "a *b* **c**", "> d", "---", "a_b"),
    ],
)
def test_escaped_text_is_shown_as_it_is(text):
    assert html.unescape(render(escape(text))) == f"<p>{text}</p>\n"


def test_links_are_found_wherever_they_stand():
    assert list(links("[a](#b) and\n\n- *[c](https://d)*, \\[e](f), `[g](h)`")) == [
        "#b",
        "https://d",
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_are_decoded(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    decoded = decode_array(encode(array))
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float64"}, "`dtype` must be one of"),
        ({"shape": [3]}, "must hold 3 bytes for uint8 of shape (3,), got 2"),
        ({"shape": [-1, -2]}, "must hold 2 bytes for uint8 of shape (-1, -2)"),
        ({"base64": "A?=="}, "`base64` cannot be decoded"),
    ],
)
def test_arrays_that_cannot_be_decoded(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        decode_array(encode(np.zeros(2, np.uint8)) | change)


def test_the_perturbation_fills_the_range_around_grey():
    image = np.full((1, 3, 1), 100, np.uint8)
    adversarial = (image / 255 + np.array([[[-0.02], [0.0], [0.01]]])).astype(np.float32)
    picture, factor = perturbation(image, adversarial)
    assert factor == pytest.approx(25, rel=1e-4)
    np.testing.assert_array_equal(picture[0, :, 0], [0, 128, 191])
    unchanged, none = perturbation(image, image)
    assert none is None and np.all(unchanged == 128)


def test_maps_are_stretched_to_their_own_range():
    values = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)
    np.testing.assert_array_equal(heat(values), heat(3 + 10 * values))
    coloured = heat(values).astype(int).sum(-1)
    assert coloured[0, 0] < coloured[0, 1] < coloured[1, 0] < coloured[1, 1]
    flat = heat(np.full((2, 2), 5.0, np.float32))
    np.testing.assert_array_equal(flat, np.broadcast_to(heat(values)[0, 0], (2, 2, 3)))
    with_nan = heat(np.array([[np.nan, 0.0], [2.0, 4.0]], np.float32))
    np.testing.assert_array_equal(with_nan[1], heat(values)[1])


def test_the_overlay_covers_only_where_the_map_is_high():
    image = np.full((1, 2, 3), 90, np.uint8)
    picture = overlay(image, np.array([[0.0, 1.0]], np.float32))
    np.testing.assert_allclose(picture[0, 0], [90, 90, 90], atol=1)
    assert picture[0, 1, 0] > 150 and picture[0, 1, 2] < 90  # the yellow end of viridis


def test_pngs_keep_every_pixel():
    import io

    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    prefix, data = data_uri(pixels).split(",")
    assert prefix == "data:image/png;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(decoded, pixels)
    floats = to_rgb(np.array([[[0.0], [0.5], [2.0], [np.nan]]], np.float32))
    np.testing.assert_array_equal(floats[0, :, 2], [0, 128, 255, 0])


@pytest.mark.parametrize(
    ("n", "count", "expected"),
    [
        (50, 41, "82 %"),
        (50, 50, "100 %"),
        (50, 0, "0 %"),
        (500, 498, "99.6 %"),
        (500, 2, "0.4 %"),
        (10000, 8231, "82.3 %"),
        (10000, 9999, "99.99 %"),
    ],
)
def test_rates_show_what_the_sample_supports(n, count, expected):
    rate = {"count": count, "n": n, "rate": count / n, "low": 0.1, "high": 0.9}
    assert rate_value(rate).replace("\xa0", " ") == expected
    assert f"n = {n:,})" in rate_interval(rate).replace("\xa0", " ")


def test_numbers_are_written_for_readers():
    assert number(-0.5, 1) == "−0.5" and number(0.0, 2) == "0.00"
    assert number(2e-7, 3) == "2.0e−07"
    assert seconds(0.123) == "0.12" and seconds(7200) == "7,200"
    assert [confidence(x).replace("\xa0", " ") for x in (0, 0.004, 0.5, 0.999, 1)] == [
        "0 %",
        "< 1 %",
        "50 %",
        "> 99 %",
        "100 %",
    ]
    for show in (number, seconds, confidence):
        assert show(None) == show(math.nan) == show(-math.inf) == "–"
