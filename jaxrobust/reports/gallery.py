"""The pictures of a report: explanations by class, and the gallery of attacked images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxrobust.reports import formatting, pictures
from jaxrobust.reports.naming import class_name, grouped, titled

# Nearest neighbour is for enlarging; a larger image is shrunk by the page, and smoothly.
_MAX_PIXELATED = 128


def explanation_groups(
    items: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[tuple[str, list[str], list[Any]]]:
    """The explanations of each model.

    Args:
      items: The EXPLANATIONs of a result.
      names: Of the classes.

    Yields:
      Model, the layers of its Grad-CAM maps, and (class, right and wrong sides) for each class.
    """
    for model, same_model in grouped(items, "model"):
        classes = [_class(*group, names) for group in grouped(same_model, "class")]
        yield model, _layers(same_model), classes


def gallery_groups(
    items: Sequence[dict[str, Any]], names: Sequence[str]
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """The gallery by model and attack; one attack with and without a target makes two groups.

    Args:
      items: The EXAMPLEs of a result.
      names: Of the classes.

    Yields:
      Model, the attack's title, and its examples as the template prints them.
    """
    for model, same_model in grouped(items, "model"):
        for label, same_label in grouped(same_model, "attack"):
            untargeted = [item for item in same_label if item.get("target") is None]
            targeted = [item for item in same_label if item.get("target") is not None]
            if untargeted:
                yield model, label, [_example(item, names) for item in untargeted]
            if targeted:
                targets = {class_name(names, item["target"]) for item in targeted}
                title = titled(label, targets.pop() if len(targets) == 1 else "of its own")
                yield model, title, [_example(item, names) for item in targeted]


def _layers(items: Sequence[dict[str, Any]]) -> list[str]:
    """The layers that the Grad-CAM maps were taken at: one, as a rule."""
    shown = [item["layer"] for item in items if item.get("layer") and item.get("grad_cam")]
    return list(dict.fromkeys(shown))


def _class(
    name: str, items: Sequence[dict[str, Any]], names: Sequence[str]
) -> tuple[str, list[tuple[str, list[dict[str, Any]]]]]:
    """A class's explanations, the right ones first."""
    explanations = [_explanation(item, names) for item in items]
    sides = [
        ("right", [item for item in explanations if item["right"]]),
        ("wrong", [item for item in explanations if not item["right"]]),
    ]
    return name, sides


def _explanation(item: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    image = pictures.decode_array(item["image"])
    tiles = [
        tile(pictures.to_rgb(image), "image"),
        tile(pictures.heat(pictures.decode_array(item["saliency"])), "saliency"),
    ]
    if item.get("grad_cam"):
        grad_cam = pictures.decode_array(item["grad_cam"])
        tiles.append(tile(pictures.overlay(image, grad_cam), "Grad-CAM"))
    return {
        **item,
        "right": item["label"] == item["prediction"],
        "named": class_name(names, item["prediction"]),
        "tiles": tiles,
    }


def _example(item: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    image = pictures.decode_array(item["image"])
    adversarial = pictures.decode_array(item["adversarial"])
    difference, factor = pictures.perturbation(image, adversarial)
    before = (
        f"{class_name(names, item['prediction'])} ({formatting.confidence(item['confidence'])})"
    )
    after = (
        f"{class_name(names, item['adversarial_prediction'])} "
        f"({formatting.confidence(item['adversarial_confidence'])})"
    )

    def explained(prefix: str, source: np.ndarray) -> list[dict[str, Any]]:
        tiles = [tile(pictures.heat(pictures.decode_array(item[f"{prefix}saliency"])), "saliency")]
        if item.get(f"{prefix}grad_cam"):
            grad_cam = pictures.decode_array(item[f"{prefix}grad_cam"])
            tiles.append(tile(pictures.overlay(source, grad_cam), "Grad-CAM"))
        return tiles

    return {
        **item,
        "original": [tile(pictures.to_rgb(image), "original", before), *explained("", image)],
        "difference": tile(difference, "perturbation", amplified(factor)),
        "attacked": [
            tile(pictures.to_rgb(adversarial), "adversarial", after),
            *explained("adversarial_", adversarial),
        ],
    }


def amplified(factor: float | None) -> str:
    """How strongly a perturbation is shown; None is that of two equal images."""
    return "none" if factor is None else f"\N{MULTIPLICATION SIGN} {formatting.number(factor, 1)}"


def tile(pixels: np.ndarray, title: str, text: str = "") -> dict[str, Any]:
    """A picture with its caption; `pixels` is uint8 [H, W, 3]."""
    height, width = pixels.shape[:2]
    return {
        "src": pictures.data_uri(pixels),
        "width": width,
        "height": height,
        "pixelated": max(height, width) <= _MAX_PIXELATED,
        "title": title,
        "text": text,
    }
