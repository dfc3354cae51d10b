"""The comparison as Markdown: numbers here, words in parity.md.j2."""

import math
from pathlib import Path
from typing import Any

from experiments.benchmarks.parity import compare
from jaxrobust.reports import formatting

_LISTS = ("networks", "cells", "minimal_norms")
_CELL = ("network", "norm", "epsilon", "attack")
Row = dict[str, Any]


def markdown(results: list[Row]) -> str:
    """docs/parity.md from the result.json of runs on other networks or norms, at least one.

    Raises:
      ValueError: Runs of other settings or versions, a network of other weights or images, or a
        comparison that is there twice, of as many images and seeds. Of others the larger counts.
    """
    import jinja2

    first = results[0]
    for run in results[1:]:
        for name, one in _shared(first).items():
            if one != (other := _shared(run)[name]):
                runs = f"{one} in {first['run']!r} and {other} in {run['run']!r}"
                raise ValueError(f"`results` must share {name}, got {runs}.")
    networks, cells, norms = ([row for run in results for row in run[name]] for name in _LISTS)
    cells = _most_judged(cells)
    _check_once(cells + norms)
    environments = [run["environment"] for run in results]
    unlike = [row for row in cells if row["ours"]["robust"] != row["ours"]["by_our_own_reckoning"]]
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
        cells=[_averaged(row) for row in cells],
        norms=norms,
        infinite=(None, math.inf),  # of a median, read from JSON or just computed
        counts={"robust images": compare.counted(cells), "minimal norms": compare.counted(norms)},
        num_unlike=len(unlike),
    )


def _shared(run: Row) -> Row:
    """What runs must share to stand in one table."""
    names = ("jaxrobust", "jax", "jaxlib", "device", "torch_device")
    environment = {f"environment.{name}": run["environment"][name] for name in names}
    return {name: run[name] for name in ("effort", "per_image", "peer_versions")} | environment


def _most_judged(cells: list[Row]) -> list[Row]:
    """Without the comparisons that another one made on more images, or with more seeds."""

    def size(cell: Row) -> int:
        return cell["num_images"] * len(cell["ours"]["robust"])

    most: dict[tuple, int] = {}
    for cell in cells:
        key = tuple(cell[name] for name in _CELL)
        most[key] = max(most.get(key, 0), size(cell))
    return [cell for cell in cells if size(cell) == most[tuple(cell[name] for name in _CELL)]]


def _check_once(rows: list[Row]) -> None:
    keys = [tuple(row.get(name) for name in _CELL) for row in rows]
    twice = sorted({" ".join(map(str, key)) for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"`results` must hold a comparison once, got twice: {', '.join(twice)}.")


def _networks(facts: list[Row]) -> list[Row]:
    """Each network once: its largest difference of logits in any run."""
    networks: dict[str, Row] = {}
    for fact in facts:
        known = networks.setdefault(fact["name"], fact)
        if known["fingerprint"] != fact["fingerprint"]:
            raise ValueError(f"`results` must share networks, got two called {fact['name']!r}.")
        larger = max(known, fact, key=lambda one: one["num_images"])
        worst = max(known["logits_difference"], fact["logits_difference"])
        clean = 100 * larger["num_right"] / larger["num_images"]
        networks[fact["name"]] = larger | {"logits_difference": worst, "percent_right": clean}
    return list(networks.values())


def _averaged(row: Row) -> Row:
    """A comparison with means over the seeds, where result.json has sums."""

    def means(side: Row) -> Row:
        if "error" in side:
            return side
        num_seeds = len(side["robust"])
        found = {name: side.get(name, 0) / num_seeds for name in ("outside", "difference")}
        return found | {"robust": sum(side["robust"]) / num_seeds, "num_seeds": num_seeds}

    peers = {library: means(peer) for library, peer in row["peers"].items()}
    holds = [peer["holds"] for peer in row["peers"].values() if "holds" in peer]
    verdict = {"holds": all(holds) if holds else None}  # None: every peer broke
    return row | verdict | {"ours": means(row["ours"]), "peers": peers}
