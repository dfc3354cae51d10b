"""Writes the comparison as Markdown: chooses the rows, while parity.md.j2 has the text."""

import math
from pathlib import Path
from typing import Any

from experiments.benchmarks.parity import compare
from jaxrobust import packages
from jaxrobust.reports import formatting

LISTS = ("networks", "cells", "minimal_norms")  # of result.json
_CELL = ("network", "norm", "epsilon", "attack")
_ENVIRONMENT = ("jaxrobust", "jax", "jaxlib", "device", "torch_device")
Row = dict[str, Any]


def markdown(results: list[Row]) -> str:
    """Returns docs/results/parity.md, from the result.json of at least one run.

    If runs have the same comparison, the one with more images or seeds is used.

    Raises:
      ValueError: Runs have different settings or versions, or different weights or images of a network,
        or the same comparison with the same number of images and seeds.
    """
    with packages.extra("reports", "The table of a comparison"):
        import jinja2

    first = results[0]
    for run in results[1:]:
        for name, one in _shared(first).items():
            if one != (other := _shared(run)[name]):
                runs = f"{one} in {first['run']!r} and {other} in {run['run']!r}"
                raise ValueError(f"`results` must share {name}, got {runs}.")
    networks, cells, norms = ([row for run in results for row in run[name]] for name in LISTS)
    cells, norms = _once(cells), _once(norms)
    environments = [run["environment"] for run in results]
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters["epsilon"] = formatting.epsilon
    return jinja.get_template("parity.md.j2").render(
        first=first,
        commits=dict.fromkeys(
            str(commit) for e in environments for commit in e["commits_of_stages"] or [e["commit"]]
        ),
        cores=sorted({e["num_cores"] for e in environments}),
        threads=sorted({e["torch_threads"] for e in environments}),
        networks=_networks(networks),
        cells=cells,
        norms=norms,
        infinite=(None, math.inf),  # an infinite median, as read from JSON or as computed
        count_of=compare.counted,
    )


def _shared(run: Row) -> Row:
    """Returns the values that must be equal for runs in one table."""
    environment = {f"environment.{name}": run["environment"][name] for name in _ENVIRONMENT}
    return {name: run[name] for name in ("effort", "per_image", "peer_versions")} | environment


def _once(rows: list[Row]) -> list[Row]:
    """Returns each comparison once, from the run with the most images times seeds."""
    groups: dict[Any, dict[int, list[Row]]] = {}
    for row in rows:
        size = row["num_images"] * len(row["ours"].get("robust", [None]))
        group = groups.setdefault(tuple(row.get(name) for name in _CELL), {})
        group.setdefault(size, []).append(row)
    largest = {key: group[max(group)] for key, group in groups.items()}
    twice = [" ".join(map(str, key)) for key, group in largest.items() if len(group) > 1]
    if twice:
        raise ValueError(
            f"`results` must have each comparison once, got twice: {', '.join(twice)}."
        )
    return [row for group in largest.values() for row in group]


def _networks(facts: list[Row]) -> list[Row]:
    """Returns each network once, with its largest difference of logits in any run."""
    networks: dict[str, Row] = {}
    for fact in facts:
        known = networks.setdefault(fact["name"], fact)
        if known["fingerprint"] != fact["fingerprint"]:
            raise ValueError(f"`results` must share networks, got two named {fact['name']!r}.")
        worst = max(known["logits_difference"], fact["logits_difference"])
        larger = max(known, fact, key=lambda one: one["num_images"])
        networks[fact["name"]] = larger | {"logits_difference": worst}
    return list(networks.values())
