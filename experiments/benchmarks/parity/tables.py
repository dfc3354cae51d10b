"""The comparison as Markdown."""

import math
from typing import Any

_WORDS = {
    "torchattacks": "torchattacks",
    "art": "ART",
    "foolbox": "foolbox",
    "adversarial-robustness-toolbox": "ART",
}


_LISTS = ("networks", "cells", "minimal_norms")


def markdown(results: list[dict[str, Any]]) -> str:
    """docs/parity.md from the result.json of runs on other networks or norms.

    Args:
      results: As experiments/benchmarks/parity/__main__.py writes them, at least one.
    """
    merged = {name: [row for run in results for row in run[name]] for name in _LISTS}
    networks = {network["name"]: network for network in merged["networks"]}
    commits = dict.fromkeys(run["environment"]["commit"] for run in results)
    first = results[0]
    result = first | merged | {"networks": list(networks.values())}
    environment, effort = result["environment"], result["effort"]
    versions = [f"jaxrobust {environment['jaxrobust']} at {', '.join(map(str, commits))}"]
    versions += [f"jax {environment['jax']} on {environment['device']}"]
    versions += [f"{_WORDS.get(k, k)} {v}" for k, v in result["peer_versions"].items()]
    cells = [peer for row in result["cells"] for peer in row["peers"].values()]
    judged = [peer for peer in cells if "holds" in peer]
    lines = [
        "# Strength beside PyTorch's attack libraries",
        "",
        "Made by `python -m experiments.benchmarks.parity`; do not edit. The same weights and the same "
        "images on both sides; a network's logits agree to 1e-4 before anything is compared. An image "
        "counts as robust where the clean one is right, and the one that the attack returned is right "
        "too or lies outside the ball or [0, 1]; this is computed from the images, not from what a "
        "library says of them.",
        "",
        f"- Versions: {', '.join(versions)}; {environment['num_cpus']} CPU cores.",
        f"- Settings: {', '.join(f'{k} {v}' for k, v in effort.items())}; one start for each attack, "
        "all nine wrong classes for targeted ones; seed "
        f"{result['config']['seed']}. Radii are those at which our APGD-CE leaves robust accuracies "
        "well between 10 and 90 %.",
        f"- A comparison holds if we leave at most one image in {result['per_image']} more robust "
        f"than the peer does: {sum(p['holds'] for p in judged)} of {len(judged)} hold"
        + (f"; {len(cells) - len(judged)} peers broke." if len(cells) > len(judged) else "."),
        "",
        "## Networks",
        "",
        "| network | images | clean accuracy | largest difference of logits | trained |",
        "|---|---|---|---|---|",
    ]
    for network in result["networks"]:
        clean = f"{100 * network['num_right'] / network['num_images']:.1f} %"
        difference = f"{network['logits_difference']:.1e}"
        start = [network["name"], network["num_images"]]
        lines.append(_row([*start, clean, difference, _trained(network)]))
    lines += [
        "",
        "## Robust images",
        "",
        "In brackets: how many more than the peer we leave.",
        "",
        "| network | norm | epsilon | attack | jaxrobust | torchattacks | ART | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["cells"]:
        peers = [_peer(row["peers"].get(library)) for library in ("torchattacks", "art")]
        holds = [peer["holds"] for peer in row["peers"].values() if "holds" in peer]
        verdict = ("yes" if all(holds) else "**no**") if holds else "-"
        start = [row["network"], row["norm"], f"{row['epsilon']:.3g}", row["attack"]]
        lines.append(_row([*start, row["ours"]["robust"], *peers, verdict]))
    lines += [
        "",
        "## Minimal norms",
        "",
        "The median over the images that are right when clean; where nothing was found, infinite. It "
        "holds if ours is at most 2 % above the peer's with the same number of steps.",
        "",
        "| network | attack | norm | jaxrobust | peer | median of the peer | ratio | holds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["minimal_norms"]:
        for library, peer in row["peers"].items():
            start = [row["network"], row["attack"], row["norm"], _number(row["ours"]["median"])]
            if "error" in peer:
                lines.append(_row([*start, _WORDS[library], "broke", "", "-"]))
                continue
            ratio = "" if peer["ratio"] is None else f"{peer['ratio']:.3f}"
            verdict = "yes" if peer["holds"] else "**no**"
            lines.append(_row([*start, _WORDS[library], _number(peer["median"]), ratio, verdict]))
    return "\n".join(lines) + "\n"


def _row(columns: Any) -> str:
    return "| " + " | ".join(str(column) for column in columns) + " |"


def _number(value: float | None) -> str:
    return "infinite" if value is None or math.isinf(value) else f"{value:.4f}"


def _peer(peer: dict[str, Any] | None) -> str:
    if peer is None:
        return ""
    if "error" in peer:
        return "broke"
    outside = f", {peer['outside']} outside" if peer["outside"] else ""
    difference = f"{peer['difference']:+d}" if peer["difference"] else "0"
    return f"{peer['robust']} ({difference}{outside})"


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
