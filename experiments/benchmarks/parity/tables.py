"""The comparison as Markdown."""

import math
from typing import Any

from experiments.benchmarks.parity import matrix

_Lines = list[str]
_WORDS = {
    "torchattacks": "torchattacks",
    "art": "ART",
    "foolbox": "foolbox",
    "adversarial-robustness-toolbox": "ART",
}

_LISTS = ("networks", "cells", "minimal_norms")
_CELL = ("network", "norm", "epsilon", "attack")
# What runs must share to stand in one table: paths into result.json.
_SHARED = (
    ("effort",),
    ("per_image",),
    ("peer_versions",),
    *(("environment", name) for name in ("jaxrobust", "jax", "jaxlib", "device", "torch_device")),
)


def markdown(results: list[dict[str, Any]]) -> str:
    """docs/parity.md from the result.json of runs on other networks or norms.

    Args:
      results: As experiments/benchmarks/parity/__main__.py writes them, at least one.

    Raises:
      ValueError: Runs of other settings or versions, a network of other weights or images, or a
        comparison that is there twice, of as many images and seeds. Of others the larger counts.
    """
    _check_alike(results)
    merged = {name: [row for run in results for row in run[name]] for name in _LISTS}
    networks = _networks(merged["networks"])
    merged["cells"] = _most_judged(merged["cells"])
    _check_once(merged["cells"] + merged["minimal_norms"])
    sections = [
        _introduction(results, merged),
        _network_table(networks),
        _cell_table(merged["cells"]),
        _norm_table(merged["minimal_norms"]),
        _unmatched_table(),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _check_alike(results: list[dict[str, Any]]) -> None:
    first = results[0]
    for run in results[1:]:
        for path in _SHARED:
            one, other = first, run
            for name in path:
                one, other = one[name], other[name]
            if one != other:
                raise ValueError(
                    f"`results` must share {'.'.join(path)}, got {one} in {first['run']!r} and "
                    f"{other} in {run['run']!r}."
                )


def _most_judged(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the comparisons that another one made on more images, or with more seeds."""

    def size(cell: dict[str, Any]) -> int:
        return cell["num_images"] * len(cell["ours"]["robust"])

    most: dict[tuple, int] = {}
    for cell in cells:
        key = tuple(cell[name] for name in _CELL)
        most[key] = max(most.get(key, 0), size(cell))
    return [cell for cell in cells if size(cell) == most[tuple(cell[name] for name in _CELL)]]


def _check_once(rows: list[dict[str, Any]]) -> None:
    keys = [tuple(row.get(name) for name in _CELL) for row in rows]
    twice = sorted({" ".join(map(str, key)) for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"`results` must hold a comparison once, got twice: {', '.join(twice)}.")


def _networks(facts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each network once: its largest difference of logits in any run."""
    networks: dict[str, dict[str, Any]] = {}
    for fact in facts:
        known = networks.setdefault(fact["name"], fact)
        if known["fingerprint"] != fact["fingerprint"]:
            raise ValueError(f"`results` must share networks, got two called {fact['name']!r}.")
        larger = max(known, fact, key=lambda one: one["num_images"])
        worst = max(known["logits_difference"], fact["logits_difference"])
        networks[fact["name"]] = larger | {"logits_difference": worst}
    return list(networks.values())


def _introduction(results: list[dict[str, Any]], merged: dict[str, list[dict[str, Any]]]) -> _Lines:
    first = results[0]
    environment = first["environment"]
    commits = dict.fromkeys(
        str(commit)
        for run in results
        for commit in run["environment"]["commits_of_stages"] or [run["environment"]["commit"]]
    )
    versions = [f"jaxrobust {environment['jaxrobust']} at {', '.join(commits)}"]
    versions += [f"jax {environment['jax']}"]
    versions += [f"{_WORDS.get(k, k)} {v}" for k, v in first["peer_versions"].items()]
    cores = sorted({run["environment"]["num_cores"] for run in results})
    threads = sorted({run["environment"]["torch_threads"] for run in results})
    counts = [
        f"{name}: {_verdicts([peer for row in merged[rows] for peer in row['peers'].values()])}"
        for name, rows in (("robust images", "cells"), ("minimal norms", "minimal_norms"))
        if merged[rows]
    ]
    unlike = [row for row in merged["cells"] if row["ours"]["robust"] != _claimed(row)]
    return [
        "# Strength beside PyTorch's attack libraries",
        "",
        "Made by `python -m experiments.benchmarks.parity`; do not edit. The same weights and the same "
        "images on both sides; a network's logits agree before anything is compared. An image counts "
        "as robust where the clean one is right, and the one that the attack returned is right too or "
        "lies outside the ball or [0, 1]. PyTorch computes this from the images of both sides alike, "
        "whatever a library says of them.",
        "",
        f"- Versions: {', '.join(versions)}.",
        f"- Devices: jax on {environment['device']}, {_counted(cores, 'core')}; PyTorch on "
        f"{environment['torch_device']}, {_counted(threads, 'thread')}.",
        f"- Settings: {', '.join(f'{k} {v}' for k, v in first['effort'].items())}; one start for each "
        "attack, all nine wrong classes for targeted ones. Radii are those at which our APGD-CE leaves "
        "robust accuracies well between 10 and 90 %. Attacks are as the libraries ship them: PGD and "
        "MI-FGSM of jaxrobust return the best point on their way, torchattacks' the last.",
        "- Every attack that draws anything is made with as many seeds as stand there. Robust images "
        f"hold if over all seeds together we leave at most one image in {first['per_image']} more "
        "robust than the peer does; minimal norms hold if our median is at most 2 % above the peer's.",
        *(f"- In all, {words}." for words in counts),
        f"- In {len(unlike)} of {len(merged['cells'])} attacks PyTorch's rounding changes the number "
        "of robust images that jaxrobust itself reports.",
    ]


def _verdicts(peers: list[dict[str, Any]]) -> str:
    judged = [peer["holds"] for peer in peers if "holds" in peer]
    broke = len(peers) - len(judged)
    words = f"{sum(judged)} of {len(judged)} comparisons hold"
    return f"{words}; {broke} could not be made, the peer broke" if broke else words


def _claimed(row: dict[str, Any]) -> list[int]:
    return row["ours"]["by_our_own_reckoning"]


def _counted(numbers: list[int], noun: str) -> str:
    words = " or ".join(map(str, numbers))
    return f"{words} {noun}" if numbers == [1] else f"{words} {noun}s"


def _network_table(networks: list[dict[str, Any]]) -> _Lines:
    lines = [
        "## Networks",
        "",
        "| network | images (n) | clean accuracy | largest difference of logits | trained |",
        "|---|---|---|---|---|",
    ]
    for network in networks:
        clean = f"{100 * network['num_right'] / network['num_images']:.1f} %"
        difference = f"{network['logits_difference']:.1e}"
        start = [network["name"], network["num_images"]]
        lines.append(_row([*start, clean, difference, _trained(network)]))
    return lines


def _cell_table(cells: list[dict[str, Any]]) -> _Lines:
    lines = [
        "## Robust images",
        "",
        "Of n, the mean over the seeds; in brackets, how many more than the peer we leave. AutoAttack "
        "of torchattacks is the intersection of its four attacks, each made on all images: what "
        "withstood its APGD-CE, APGD-T, FAB-T and Square; ours is the suite as users run it, each "
        "attack on what withstood those before it. FAB of jaxrobust returns the closest image "
        "that fools, also where that lies outside the ball. An empty place: the library has no such "
        "attack, or not in this norm.",
        "",
        "| network | norm | epsilon | attack | n | seeds | jaxrobust | torchattacks | ART | holds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in cells:
        seeds = len(row["ours"]["robust"])
        peers = [_peer(row["peers"].get(library)) for library in ("torchattacks", "art")]
        holds = [peer["holds"] for peer in row["peers"].values() if "holds" in peer]
        verdict = ("yes" if all(holds) else "**no**") if holds else "-"
        start = [row["network"], row["norm"], f"{row['epsilon']:.3g}", row["attack"]]
        mine = f"{_mean(row['ours']['robust'])}{_outside(row['ours'])}"
        lines.append(_row([*start, row["num_images"], seeds, mine, *peers, verdict]))
    return lines


def _norm_table(norms: list[dict[str, Any]]) -> _Lines:
    lines = [
        "## Minimal norms",
        "",
        "The median over the n images that are right when clean; where nothing was found, infinite. In "
        "brackets, for how many something was found. As many steps on both sides.",
        "",
        "| network | attack | norm | n | jaxrobust | peer | median of the peer | ratio | holds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in norms:
        for library, peer in row["peers"].items():
            start = [row["network"], row["attack"], row["norm"], row["num_images"]]
            start += [_found(row["ours"]), _WORDS[library]]
            if "error" in peer:
                lines.append(_row([*start, "broke", "", "-"]))
                continue
            ratio = "" if peer["ratio"] is None else f"{peer['ratio']:.3f}"
            verdict = "yes" if peer["holds"] else "**no**"
            lines.append(_row([*start, _found(peer), ratio, verdict]))
    return lines


def _unmatched_table() -> _Lines:
    return [
        "## Without a peer",
        "",
        "What these libraries lack or compute otherwise; the tests check these attacks by closed forms "
        "and by the invariants of all attacks.",
        "",
        "| attack | norm | why |",
        "|---|---|---|",
        *(_row(row) for row in matrix.UNMATCHED),
    ]


def _row(columns: Any) -> str:
    return "| " + " | ".join(str(column) for column in columns) + " |"


def _found(side: dict[str, Any]) -> str:
    median = side["median"]
    words = "infinite" if median is None or math.isinf(median) else f"{median:.4f}"
    return f"{words} ({side['found']})"


def _peer(peer: dict[str, Any] | None) -> str:
    if peer is None:
        return ""
    if "error" in peer:
        return "broke"
    difference = peer["difference"] / len(peer["robust"])
    words = f"{difference:+.3g}" if difference else "0"
    return f"{_mean(peer['robust'])} ({words}){_outside(peer)}"


def _mean(counts: list[int]) -> str:
    return f"{sum(counts) / len(counts):.3g}"


def _outside(side: dict[str, Any]) -> str:
    # A sum in result.json, and here the mean over the seeds as all else.
    outside = side["outside"] / len(side["robust"])
    return f", {outside:.3g} outside" if outside else ""


def _trained(network: dict[str, Any]) -> str:
    recipe = network["recipe"]
    if isinstance(recipe["training"], str):
        return f"{recipe['data']}, {recipe['training']}"
    epochs = f"{recipe['data']}, {recipe['training']['num_epochs']} epochs"
    if "attack" not in recipe:
        return epochs
    teacher = recipe["attack"]
    words = f"{teacher['name']}-{teacher['num_steps']} at {255 * teacher['epsilon']:.0f}/255"
    return f"{epochs} under {words}, from the standard one"
