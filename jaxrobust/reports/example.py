"""Draws one attacked image as a picture, for pages other than reports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrobust import files, packages
from jaxrobust.reports import formatting, pictures

# In inches, at 100 dots per inch.
_WIDTH, _HEIGHT, _TILE = 9.0, 2.2, 1.7


def write_example(path: str | Path, entry: dict[str, Any], class_names: Sequence[str]) -> None:
    """Writes a PNG of 900 by 220 pixels that shows what an attack did to one image.

    Five tiles stand in a row, each with words below it: the image, the perturbation (amplified, and
    grey where nothing changed), the adversarial image, and Grad-CAM of both images.

    Args:
      path: The file to write.
      entry: A record of `studies.gallery`, with Grad-CAM.
      class_names: K names.

    Raises:
      ModuleNotFoundError: matplotlib is not installed; the extra `reports` brings it.
      ValueError: The entry has no Grad-CAM, because the network has no layer for it.
    """
    with packages.extra("reports", "A picture of an attacked image"):
        import matplotlib
        from matplotlib.figure import Figure

    if "grad_cam" not in entry:
        raise ValueError("`entry` must have Grad-CAM, but its network has no layer for it.")
    # The user's settings of matplotlib are not used. A "$" in a class name does not begin a formula.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["text.parse_math"] = False
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=100)
        for k, (tile, what, more) in enumerate(_tiles(entry, class_names)):
            left = k * (_WIDTH - _TILE) / 4
            place = (left / _WIDTH, 1 - _TILE / _HEIGHT, _TILE / _WIDTH, _TILE / _HEIGHT)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            axes.imshow(tile)
            middle = (left + _TILE / 2) / _WIDTH
            figure.text(middle, 0.3 / _HEIGHT, what, size=11, ha="center")
            figure.text(middle, 0.08 / _HEIGHT, more, size=9, ha="center", color="0.35")
        # Without matplotlib's version the same input gives the same bytes.
        with files.replace(Path(path)) as file:
            figure.savefig(file, format="png", metadata={"Software": None})


def _tiles(entry: dict[str, Any], class_names: Sequence[str]) -> list[tuple[Any, str, str]]:
    """Returns each tile, uint8 [H, W, 3], with its name and the text below it."""
    names = ("image", "adversarial", "grad_cam", "adversarial_grad_cam")
    image, found, before, after = (pictures.decode_array(entry[name]) for name in names)
    difference, factor = pictures.perturbation(image, found)
    answers = [
        f"“{class_names[entry[f'{when}prediction']]}”, "
        f"{formatting.confidence(entry[f'{when}confidence'])}"
        for when in ("", "adversarial_")
    ]
    return [
        (pictures.to_rgb(image), "image", answers[0]),
        (difference, "perturbation", pictures.amplified(factor)),
        (pictures.to_rgb(found), "adversarial image", answers[1]),
        (pictures.overlay(image, before), "Grad-CAM", "of the image"),
        (pictures.overlay(found, after), "Grad-CAM", "of the adversarial image"),
    ]
