"""Makes blocks from what `evaluation` and `studies` measure: models, attacks, suites and curves.

Each function takes dicts that functions of these packages return, and returns blocks without a heading.
If there is nothing to show, it returns no blocks.
"""

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust.reports import blocks, formatting
from jaxrobust.reports.blocks import Block, column
from jaxrobust.reports.markdown import escape
from jaxrobust.reports.pictures import decode_array

Entry = Mapping[str, Any]

BANNERS = {
    "sound": "The sanity checks found no sign of gradient masking.",
    "suspicious": "Suspicious: take the robust accuracy for an upper bound.",
    "gradient masking": "Looks like gradient masking: do not trust the robust accuracy.",
}
"""What a verdict of `evaluation.sanity` means for the robust accuracy, from the best to the worst."""

# More of these than a reader looks at would only make the page slow or long.
_MAX_RECORDS, _MAX_ALL_RECORDS, _MAX_LOGITS = 200, 5000, 20
_MAX_OPEN, _MAX_OPEN_EXAMPLES = 4, 12
_LOGITS_APART = 2 * "\N{NO-BREAK SPACE}"
# Files of earlier releases do not say which images their mean norms are over: it is these.
_ALL = "all images attacked"


def key_figures(
    models: Sequence[Entry],
    attacks: Sequence[Entry] = (),
    suites: Sequence[Entry] = (),
    diagnostics: Sequence[Entry] = (),
) -> list[Block]:
    """Shows each model's accuracy, its lowest robust accuracies and the verdict of its sanity checks.

    Args:
      models: Records of `studies.model_entry`.
      attacks: Records of `evaluation.summarise`.
      suites: Records of `evaluation.summarise_suite`.
      diagnostics: Records of `evaluation.sanity`, each with the model's name as "model".
    """
    checked = [
        {"model": one["model"]} | one["diagnostics"] for one in suites if one.get("diagnostics")
    ]
    worst: dict[str, str] = {}
    for item in sorted(
        [*checked, *diagnostics], key=lambda item: list(BANNERS).index(item["verdict"])
    ):
        worst[item["model"]] = item["verdict"]
    columns: _Columns = [
        ("Model", lambda model: model["name"]),
        ("Accuracy", lambda model: model["evaluation"]["accuracy"]),
    ]
    for group, entries in (("The strongest suite", suites), ("The strongest attack", attacks)):
        least = {model["name"]: _strongest(model["name"], entries) for model in models}
        for title, key in (("Robust accuracy", "robust_accuracy"), ("Under", "label")):
            found = {name: entry.get(key) for name, entry in least.items()}
            columns.append((column(title, group=group), _of_model(found)))
    columns.append(("Sanity checks", _of_model(worst)))
    doubts = [
        blocks.notice("doubtful", f"**{escape(model['name'])}:** {BANNERS[worst[model['name']]]}")
        for model in models
        if worst.get(model["name"], "sound") != "sound"
    ]
    return [*_table(models, columns, _note("key-figures")), *doubts]


def _strongest(model: str, entries: Sequence[Entry]) -> Entry:
    """Returns the entry with a model's lowest robust accuracy, the last one of equals; {} if none."""
    known = [
        {"label": ", ".join(one["name"] for one in entry.get("attacks", ())), **entry}
        for entry in reversed(entries)
        if entry["model"] == model
        and formatting.finite((entry.get("robust_accuracy") or {}).get("rate"))
    ]
    return min(known, key=lambda entry: entry["robust_accuracy"]["rate"], default={})


def _of_model(found: Mapping[str, Any]) -> Callable[[Entry], Any]:
    return lambda model: found.get(model["name"])


def models(entries: Sequence[Entry]) -> list[Block]:
    """Shows the sizes and accuracies of models, and the accuracy with each seed if there are several.

    Args:
      entries: Records of `studies.model_entry`.
    """
    columns: _Columns = [
        ("Model", lambda entry: entry["name"]),
        (column("Parameters", decimals=0), lambda entry: entry["num_parameters"]),
        ("Accuracy", lambda entry: entry["evaluation"]["accuracy"]),
        (column("Loss", decimals=3), lambda entry: entry["evaluation"]["loss"]),
        (column("Macro F1", decimals=3), lambda entry: entry["evaluation"]["macro"]["f1"]),
        (column("Epochs", decimals=0), lambda entry: len(entry["training"]["epochs"]) or None),
        (column("Time per epoch", "s"), lambda entry: entry["training"]["seconds_per_epoch"]),
        ("Description", lambda entry: entry.get("description")),
    ]
    drawn = _table(entries, columns, _note("models"))
    drawn += _warnings(entries, lambda entry: entry["evaluation"])
    return drawn + [_seeds(entry) for entry in entries if len(entry.get("seeds") or ()) > 1]


def _seeds(entry: Entry) -> Block:
    rates = [row["accuracy"]["rate"] for row in entry["seeds"]]
    known = [100 * rate for rate in rates if formatting.finite(rate)]
    mean = formatting.number(statistics.mean(known) if known else None, 1)
    deviation = formatting.number(statistics.stdev(known) if len(known) > 1 else None, 1)
    return blocks.table(
        [column("Seed", decimals=0), "Accuracy"],
        [[row["seed"], row["accuracy"]] for row in entry["seeds"]],
        _note("seeds", mean=mean, deviation=deviation),
        title=f"{entry['name']} over {len(rates)} seeds",
    )


def training(entries: Sequence[Entry]) -> list[Block]:
    """Draws loss and accuracy over the epochs, in two charts for each model that has epochs.

    Args:
      entries: Records of `studies.model_entry`.
    """
    recorded = [
        (entry, {q: _recorded(entry, q) for q in ("loss", "accuracy")}) for entry in entries
    ]
    recorded = [(entry, lines) for entry, lines in recorded if any(lines.values())]
    losses = [value for _, lines in recorded for line in lines["loss"] for value in line["y"]]
    top = 1.05 * max(losses, default=1.0) or 1.0
    drawn = []
    for position, (entry, lines) in enumerate(recorded):
        attack = entry["training"].get("attack")
        title = f"{entry['name']} under {attack}" if attack else entry["name"]
        drawn += [
            blocks.chart(
                f"{title}: {axis['title']}",
                "epoch",
                axis,
                lines[axis["title"]],
                folded=position >= _MAX_OPEN,
            )
            for axis in (
                blocks.axis("loss", limits=(0, top)),
                blocks.axis("accuracy", percent=True),
            )
            if lines[axis["title"]]
        ]
    validated = any(len(line) > 1 for _, lines in recorded for line in lines.values())
    notes = ["training", "validation"] if validated else ["training"]
    return _after(notes, drawn)


def _recorded(entry: Entry, quantity: str) -> list[Any]:
    """Returns the lines of a quantity: on the training images and on the validation images."""
    lines = []
    for part, words in (("train", "training"), ("validation", "validation")):
        rows = [
            (row["epoch"], row.get(f"{part}_{quantity}")) for row in entry["training"]["epochs"]
        ]
        known = [(epoch, value) for epoch, value in rows if formatting.finite(value)]
        if known:
            over, values = zip(*known, strict=True)
            look = {"dashed": part == "train", "model": entry["name"]}
            lines.append(blocks.line(words, over, values, **look))
    return lines


def classes(entries: Sequence[Entry]) -> list[Block]:
    """Shows precision, recall and F1 of each class.

    Args:
      entries: Records of `studies.model_entry`, or {"name", "evaluation"} with a result of
        `evaluation.evaluate`.
    """
    scores = {"precision": "Precision", "recall": "Recall", "f1": "F1"}
    columns: list[str | Block] = ["Class", column("Support", decimals=0)]
    tables: list[dict[str, Any]] = []
    support: dict[str, Any] = {}
    for entry in entries:
        columns += [column(title, decimals=2, group=entry["name"]) for title in scores.values()]
        tables.append({row["class"]: row for row in entry["evaluation"]["per_class"]})
        support = {name: row["support"] for name, row in tables[-1].items()} | support
    rows: list[list[Any]] = [
        [name, count, *(table.get(name, {}).get(score) for table in tables for score in scores)]
        for name, count in support.items()
    ]
    means = [entry["evaluation"]["macro"][score] for entry in entries for score in scores]
    if not rows:
        return []
    rows.append(["Mean of the classes", None, *means])
    return [blocks.table(columns, rows, _note("classes"), highlight=[len(rows) - 1])]


def confusion(entries: Sequence[Entry]) -> list[Block]:
    """Shows confusion matrices.

    Args:
      entries: Records, as in `classes`.
    """
    drawn: list[Block] = []
    for entry in entries:
        matrix = entry["evaluation"]["confusion_matrix"]
        if matrix:
            names = [row["class"] for row in entry["evaluation"]["per_class"]]
            sizes = len(matrix), max(len(row) for row in matrix)
            rows, columns = ([class_name(names, k) for k in range(size)] for size in sizes)
            drawn.append(
                blocks.heat(
                    *(rows, columns, matrix, ("true", "predicted")),
                    title=entry["name"],
                    decimals=0,
                    by_row=True,
                    folded=len(drawn) >= _MAX_OPEN,
                )
            )
    return _after(["confusion"], drawn)


def attacks(entries: Sequence[Entry]) -> list[Block]:
    """Shows the results of attacks on models: a table, and charts of the rates.

    Args:
      entries: Records of `evaluation.summarise`.
    """
    over = {entry.get("norms_of", _ALL) for entry in entries}
    mixed = len(over) > 1
    columns: _Columns = [
        ("Model", lambda entry: entry["model"]),
        ("Attack", titled),
        ("Success rate", lambda entry: entry["success"]),
        ("Robust accuracy", lambda entry: entry.get("robust_accuracy")),
        (column("Mean ℓ₂", decimals=3), lambda entry: entry["mean_l2"]),
        (column("Mean ℓ∞", decimals=4), lambda entry: entry["mean_linf"]),
        ("Means over", lambda entry: entry.get("norms_of", _ALL) if mixed else None),
        (column("Mean confidence", "%", 1), lambda entry: entry["mean_confidence"]),
        (column("Median steps", decimals=1), lambda entry: entry.get("median_steps")),
    ]
    means = "what the column beside them says" if mixed else "".join(over)
    drawn = _table(entries, columns, _note("attacks", over=means)) + _warnings(entries)
    dots = [*_dots(entries, "robust_accuracy"), *_dots(entries, "success")]
    return drawn + _after(["intervals"], dots)


def _dots(entries: Sequence[Entry], key: str) -> list[Block]:
    groups: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry.get(key):
            group = titled(entry)
            while entry["model"] in groups.setdefault(group, {}):
                group += ", again"  # two settings of an attack may have one label
            groups[group][entry["model"]] = entry[key]
    title = {"robust_accuracy": "Robust accuracy", "success": "Success rate"}[key]
    return [blocks.intervals(title, groups)] if groups else []


def records(entries: Sequence[Entry], class_names: Sequence[str]) -> list[Block]:
    """Shows the model's answer and logits for each image before and after an attack, folded.

    Args:
      entries: Records of `evaluation.summarise`.
      class_names: K names.
    """
    entries = [entry for entry in entries if entry["records"]]
    most = min(_MAX_RECORDS, _MAX_ALL_RECORDS // max(1, len(entries)))
    columns: _Columns = [
        (column("Image", decimals=0), lambda row: row["index"]),
        ("Label", lambda row: class_name(class_names, row["label"])),
        ("Target", lambda row: _class_or_none(class_names, row.get("target"))),
        ("Before", lambda row: said(row, "clean_", class_names)),
        ("After", lambda row: said(row, "adversarial_", class_names)),
        ("Attacked", lambda row: "yes" if row["attacked"] else "no"),
        ("Success", lambda row: "yes" if row["success"] else "no"),
        (column("ℓ₂", decimals=3), lambda row: row["l2"]),
        (column("ℓ∞", decimals=4), lambda row: row["linf"]),
        (column("Steps", decimals=0), lambda row: row["num_steps"]),
        ("Logits before", lambda row: _logits(row["clean_logits"], class_names)),
        ("Logits after", lambda row: _logits(row["adversarial_logits"], class_names)),
    ]
    drawn = []
    for entry in entries:
        title = f"{entry['model']}: {titled(entry)}, {_images(len(entry['records']))}"
        title += f", the first {most} shown" if len(entry["records"]) > most else ""
        drawn += _table(entry["records"][:most], columns, title=title, folded=True)
    many = any(len(entry["records"][0]["clean_logits"]) > _MAX_LOGITS for entry in entries)
    which = "of the five likeliest classes" if many else "in the order of the classes"
    return _after(["records"], drawn, which=which)


def _logits(logits: Sequence[Any], names: Sequence[str]) -> str:
    """Writes all logits in the order of the classes, or only the five largest if there are many."""
    if len(logits) <= _MAX_LOGITS:
        return _LOGITS_APART.join(formatting.number(value, 2) for value in logits)
    known = [(value, index) for index, value in enumerate(logits) if formatting.finite(value)]
    largest = sorted(known, key=lambda pair: -pair[0])[:5]
    return ", ".join(
        f"{class_name(names, index)} {formatting.number(value, 2)}" for value, index in largest
    )


def suite(summary: Entry) -> list[Block]:
    """Shows a model's robust accuracy after each attack of a suite, and whether to believe it.

    Args:
      summary: A record of `evaluation.summarise_suite`; with "label" and "diagnostics" if these are
        known.
    """
    model, label = summary["model"], summary.get("label")
    checks = sanity(summary["diagnostics"]) if summary.get("diagnostics") else []
    columns: _Columns = [
        ("Attack", lambda attack: attack["name"]),
        ("Settings", lambda attack: attack.get("label")),
        (column("Images fooled", decimals=0), lambda attack: attack.get("fooled")),
        ("Robust accuracy after it", lambda attack: attack["robust_accuracy"]),
        (column("Time", "s"), lambda attack: attack.get("seconds")),
    ]
    clean = {"name": "no attack", "robust_accuracy": summary["clean_accuracy"]}
    rows = [clean, *summary["attacks"]]
    caption = _note("suite") if checks else f"{_note('suite')} {_note('unchecked')}"
    title = f"{model}: {label}" if label else model
    drawn = _table(rows, columns, caption, title=title, highlight=[len(rows) - 1])
    drawn += _warnings([{"warnings": summary.get("warnings")}])
    left = {row["name"]: {model: row["robust_accuracy"]} for row in rows}
    drawn.append(blocks.intervals("What is left after each attack", left, bars=True))
    if summary["saw_nan"]:
        images = _images(summary["saw_nan"])
        drawn.append(blocks.notice("doubtful", _note("nan", images=images)))
    return [*checks[:1], *drawn, *checks[1:]]


def sanity(diagnostics: Entry | Sequence[Entry]) -> list[Block]:
    """Shows whether a robust accuracy can be believed: the verdict and each of the sanity checks.

    Args:
      diagnostics: A record of `evaluation.sanity`, or a list of them; with "model" if the text above
        does not name the model.
    """
    if not isinstance(diagnostics, Mapping):
        return [block for one in diagnostics for block in sanity(one)]
    verdict, model = diagnostics["verdict"], diagnostics.get("model")
    if verdict not in BANNERS:
        raise ValueError(f"`verdict` must be one of {tuple(BANNERS)}, got {verdict!r}.")
    tone = "sound" if verdict == "sound" else "doubtful"
    said = f"{escape(model)}: {BANNERS[verdict]}" if model else BANNERS[verdict]
    marks = {True: "✓ passed", False: "✗ failed", None: "not applicable"}
    columns: _Columns = [
        ("Check", lambda check: check["name"]),
        ("Outcome", lambda check: marks[check.get("passed")]),
        ("What was seen", lambda check: check["detail"]),
    ]
    title = f"Sanity checks{f' of {model}' if model else ''}, {diagnostics['norm']} "
    title += f"{formatting.epsilon(diagnostics['epsilon'])}, {_images(diagnostics['n'])}"
    return [
        blocks.notice(tone, f"**{said}**\n\n{escape(diagnostics['reason'])}"),
        *_table(diagnostics["checks"], columns, title=title, folded=tone == "sound"),
    ]


def curves(entries: Sequence[Entry]) -> list[Block]:
    """Draws robust accuracy over epsilon, in one chart for each attack.

    Args:
      entries: Records of `evaluation.robustness_curve` or `evaluation.curve_from_norms`. An entry may
        have a "suite", {"label", "epsilon", "robust_accuracy"}, which is drawn as a single point.
    """
    drawn = []
    for label, same in _grouped(entries, lambda entry: entry["label"]):
        lines = []
        for entry in same:
            model, suite = entry["model"], entry.get("suite")
            lines.append(_curve(model, entry["points"]))
            if suite:
                look = {"model": model, "scatter": True}
                lines.append(_curve(f"{model}, {suite['label']}", [suite], **look))
        accuracy = blocks.axis("robust accuracy", percent=True)
        drawn.append(blocks.chart(label, "epsilon", accuracy, lines))
    return _after(["curves"], drawn) + _warnings(entries)


def _curve(name: str, points: Sequence[Entry], **look: Any) -> dict[str, Any]:
    known = [point for point in points if formatting.finite(point["epsilon"])]
    known.sort(key=lambda point: point["epsilon"])
    over = [point["epsilon"] for point in known]
    return blocks.line(name, over, [point["robust_accuracy"] for point in known], **look)


def transfer(entries: Sequence[Entry]) -> list[Block]:
    """Shows how often images that fool one model fool another.

    Args:
      entries: Records of `evaluation.transfer_matrix`.
    """
    drawn = [
        blocks.heat(
            *(entry["models"], entry["models"], entry["rates"], ("made on", "shown to")),
            title=titled(entry),
        )
        for entry in entries
    ]
    return _after(["transfer"], drawn) + _warnings(entries)


def explanations(entries: Sequence[Entry], class_names: Sequence[str]) -> list[Block]:
    """Draws images that a model has right and wrong, with the maps that explain the answer.

    Args:
      entries: Records of `studies.explanations`.
      class_names: K names.
    """
    drawn = []
    for model, mine in _grouped(entries, lambda entry: entry["model"]):
        maps = _map_titles(mine)
        layers = dict.fromkeys(e["layer"] for e in mine if e.get("layer") and e.get("grad_cam"))
        by_side = {"right": [e for e in mine if e["label"] == e["prediction"]]}
        by_side["wrong"] = [e for e in mine if e["label"] != e["prediction"]]
        sides = [side for side in by_side if by_side[side]]
        rows = []
        for name in dict.fromkeys(entry["class"] for entry in mine):
            of_class = [[e for e in by_side[side] if e["class"] == name] for side in sides]
            for pair in itertools.zip_longest(*of_class):
                tiles = [tile for e in pair for tile in _explained(e, len(maps), class_names)]
                rows.append((name, tiles))
        title = f"{model}, Grad-CAM at layer {', '.join(layers)}" if layers else model
        columns = [title for side in sides for title in (side, *maps)]
        drawn.append(blocks.pictures(rows, columns=columns, title=title))
    return _after(["explanations"], drawn)


def _explained(entry: Entry | None, num_maps: int, names: Sequence[str]) -> list[Any]:
    """Returns the tiles of an image and its maps; without an entry, the same number of empty tiles."""
    if entry is None:
        return [None] * (1 + num_maps)
    image = decode_array(entry["image"])
    words = f"{said(entry, '', names)}, image {entry['index']}"
    return [blocks.tile(image, text=words), *_maps(entry, "", image, num_maps)]


def _map_titles(entries: Sequence[Entry]) -> list[str]:
    return ["saliency", "Grad-CAM"][: 1 + any(bool(entry.get("grad_cam")) for entry in entries)]


def _maps(entry: Entry, prefix: str, image: np.ndarray, num_maps: int) -> list[Block | None]:
    """Returns the tile of saliency and, if two are wanted, that of Grad-CAM (None if it has none)."""
    cam = entry.get(f"{prefix}grad_cam")
    return [
        blocks.tile(values=decode_array(entry[f"{prefix}saliency"]), style="heat"),
        blocks.tile(image, values=decode_array(cam), style="overlay") if cam else None,
    ][:num_maps]


def gallery(entries: Sequence[Entry], class_names: Sequence[str]) -> list[Block]:
    """Draws images before and after attacks, with the perturbation between them, and maps of both.

    Args:
      entries: Records of `studies.gallery`.
      class_names: K names.
    """
    drawn: list[Block] = []
    for (model, attack, targeted), same in _grouped(
        entries, lambda entry: (entry["model"], entry["attack"], entry.get("target") is not None)
    ):
        if targeted:
            targets = {class_name(class_names, entry["target"]) for entry in same}
            target = targets.pop() if len(targets) == 1 else "of its own"
            attack = titled({"label": attack, "target": target})
        maps = _map_titles(same)
        worked = sum(entry["success"] for entry in same)
        drawn.append(
            blocks.pictures(
                [_example(entry, len(maps), class_names) for entry in same],
                columns=["original", *maps, "perturbation", "adversarial", *maps],
                title=f"{model}: {attack}, {worked} of {len(same)} shown succeeded",
                folded=bool(drawn) or len(same) > _MAX_OPEN_EXAMPLES,
            )
        )
    return _after(["gallery"], drawn)


def _example(entry: Entry, num_maps: int, names: Sequence[str]) -> tuple[str, list[Any], str]:
    image, found = decode_array(entry["image"]), decode_array(entry["adversarial"])
    tiles = [
        blocks.tile(image, text=said(entry, "", names)),
        *_maps(entry, "", image, num_maps),
        blocks.tile(found, style="difference", against=image),
        blocks.tile(found, text=said(entry, "adversarial_", names)),
        *_maps(entry, "adversarial_", found, num_maps),
    ]
    target = _class_or_none(names, entry.get("target"))
    steps = formatting.number(entry["num_steps"], 0)
    facts = [
        f"image {entry['index']}",
        *([] if target is None else [f"target {target}"]),
        "attack succeeded" if entry["success"] else "attack failed",
        f"ℓ₂ {formatting.number(entry['l2'], 3)}",
        f"ℓ∞ {formatting.number(entry['linf'], 4)}",
        f"fooled at step {steps}" if entry["success"] else f"{steps} steps taken",
    ]
    return class_name(names, entry["label"]), tiles, "; ".join(facts)


def class_name(names: Sequence[str], index: int) -> str:
    """Returns the name of a class, or its number if it has no name."""
    return names[index] if 0 <= index < len(names) else str(index)


def titled(entry: Entry) -> str:
    """Returns an attack's label with its target, unless the label already has the target."""
    label, target = str(entry["label"]), entry.get("target")
    suffix = f"target {target}"
    return label if not target or label.endswith(suffix) else f"{label}, {suffix}"


def _class_or_none(names: Sequence[str], index: int | None) -> str | None:
    return None if index is None else class_name(names, index)


def said(entry: Entry, prefix: str, names: Sequence[str]) -> str:
    r"""Returns a model's answer to an image and its confidence, as in "cat (98 %)".

    Args:
      entry: An entry of a gallery or a record.
      prefix: "adversarial\_" for the adversarial image, "" for the image itself.
      names: K class names.
    """
    name = class_name(names, entry[f"{prefix}prediction"])
    return f"{name} ({formatting.confidence(entry[f'{prefix}confidence'])})"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


_Columns = list[tuple[str | Block, Callable[[Entry], Any]]]


def _table(
    entries: Sequence[Entry], columns: _Columns, caption: str = "", **look: Any
) -> list[Block]:
    """Makes a table with a row for each entry, without columns that no entry has a value for."""
    rows = [[value(entry) for _, value in columns] for entry in entries]
    kept = [k for k in range(len(columns)) if any(row[k] is not None for row in rows)]
    cells = [[row[k] for k in kept] for row in rows]
    return [blocks.table([columns[k][0] for k in kept], cells, caption, **look)] if rows else []


def _note(name: str, **values: str) -> str:
    """Returns a note for the reader; `values` are filled in, and must not need an escape."""
    return _notes()[name].format(**values)


@functools.cache
def _notes() -> dict[str, str]:
    text = Path(__file__).with_name("templates").joinpath("notes.md").read_text("utf-8")
    pairs = (part.split("\n", 1) for part in text.split("\n# ")[1:])
    return {name: body.strip().replace("\n", " ") for name, body in pairs}


def _after(notes: Sequence[str], drawn: list[Block], **values: str) -> list[Block]:
    """Puts notes before the blocks; returns [] if there are no blocks."""
    said = " ".join(_note(name, **values) for name in notes)
    return [blocks.text(said), *drawn] if drawn else []


def _grouped(
    entries: Sequence[Entry], key: Callable[[Entry], Any]
) -> Iterator[tuple[Any, list[Entry]]]:
    """Groups entries by their key, in the order of first appearance."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    yield from groups.items()


def _warnings(
    entries: Sequence[Entry], place: Callable[[Entry], Entry] = lambda entry: entry
) -> list[Block]:
    """Shows the warnings of entries, each sentence once, with the models that it is about."""
    about: dict[str, dict[str, None]] = {}
    for entry in entries:
        for sentence in place(entry).get("warnings") or ():
            about.setdefault(sentence, {})[entry.get("model") or entry.get("name") or ""] = None
    said = [": ".join(filter(None, [", ".join(names), one])) for one, names in about.items()]
    return [blocks.notice("doubtful", f"**Warning.** {escape(text)}") for text in said]
