"""Problem C, layer by layer: where pruning takes its weights, and what each layer can spare."""

from typing import Any

from experiments.sports10.study import Study, percent, right
from jaxrobust import pruning
from jaxrobust.studies import blocks

PART = "c"


def section(study: Study) -> dict[str, Any]:
    """The section of this module."""
    return study.stages.remember("layers", lambda progress: _section(study, progress))


def _section(study: Study, progress: Any) -> dict[str, Any]:
    """Where global pruning takes its weights, and how much each layer matters."""
    found = []
    names = study.config.models[:1] if study.config.quick else study.config.models
    for done, name in enumerate(names, start=1):
        params = study.trained(name, study.config.seed).variables["params"]
        shares = {
            sparsity: pruning.layer_sparsity(
                params, study.pruned(name, sparsity, study.config.seed)[0]
            )
            for sparsity in study.config.sparsities
        }
        rows = [
            [
                path,
                entry["size"],
                *(100 * shares[sparsity][path]["sparsity"] for sparsity in study.config.sparsities),
            ]
            for path, entry in shares[study.config.sparsities[0]].items()
        ]
        found.append(
            blocks.table(
                [
                    "Kernel",
                    blocks.column("Weights", decimals=0),
                    *(
                        blocks.column(
                            percent(s), decimals=1, group="Zeros, %, at a global sparsity of"
                        )
                        for s in study.config.sparsities
                    ),
                ],
                rows,
                title=f"{name}: zeros of each layer",
                folded=True,
            )
        )
        found.append(_sensitivity(study, name))
        progress(done, len(names))
    charts = [block for block in found if block["kind"] == "chart"]
    tables = [block for block in found if block["kind"] == "table"]
    return blocks.section(
        "layers",
        "Layer by layer",
        [*charts, *tables],
        part=PART,
        text=[
            "One layer is pruned at a time, by magnitude and without fine-tuning; the others stay "
            "dense. A line that falls early belongs to a layer that global pruning should spare."
        ],
    )


def _sensitivity(study: Study, name: str) -> dict[str, Any]:
    if name in study.folded:
        variables, split = study.trained_on_fold(name, 0).variables, study.held_out(name, 0)
        words = f"{len(split)} held-out photographs, of the network trained without them."
    else:
        variables = study.trained(name, study.config.seed).variables
        split = study.test(name)
        words = f"{len(split)} test photographs."

    def score(params: Any) -> float:
        classifier = study.classifier(name, dict(variables) | {"params": params})
        return float(right(classifier, split).mean())

    sparsities = (0.9,) if study.config.quick else (0.5, 0.7, 0.8, 0.9, 0.95)
    scores = pruning.sensitivity(variables["params"], sparsities, score)
    base = score(variables["params"])
    lines = []
    paths = pruning.kernel_paths(variables["params"])
    for path in paths:
        points = [(row["sparsity"], row["score"]) for row in scores if row["layer"] == path]
        label = path.removesuffix("/kernel").removesuffix("/conv")
        lines.append(
            blocks.line(label, [0.0, *(p for p, _ in points)], [base, *(v for _, v in points)])
        )
    # More than eight lines are no picture: those that fall deepest are.
    lines = sorted(lines, key=lambda line: line["y"][-1])[:8]
    return blocks.chart(
        f"{name}: sensitivity of its layers",
        "sparsity of the one layer",
        "accuracy",
        lines,
        f"On {words}" + (" The eight most sensitive layers." if len(paths) > 8 else ""),
        percent=True,
        percent_x=True,
    )
