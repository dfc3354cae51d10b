"""The trainings themselves: loss over epochs with an alarm, weights, natural networks compressed."""

import functools
from typing import Any

import numpy as np

from experiments.robust_compression import networks, published
from experiments.robust_compression.config import EPSILON
from experiments.robust_compression.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.attacks import FGSM
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.evaluation.collapse import LossAlarm
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of, right_ones

PART = "training-part"
FAR = 0.05  # a residual beyond which the last projection takes more than a little away
_NUM_BINS = 61


def sections(study: Study) -> list[dict[str, Any]]:
    """Losses, weights, ratios."""
    return [losses(study), weights(study), ratios(study)]


def alarm(study: Study, variant: Variant) -> LossAlarm:
    """Whether the loss of the compressed network exploded: of the same attack after every epoch."""
    history = study.facts[variant]["history"]
    return evaluation.loss_alarm(
        [row.get("validation_loss") for row in history], study.dataset.num_classes
    )


def losses(study: Study) -> dict[str, Any]:
    """Figures 4.3, 4.4 and B.4: the loss over the epochs, with what changed in them."""
    charts, rows = [], []
    for network in study.config.networks:
        lines = [
            blocks.line(
                f"{variant.share}, {epsilon_label(radius)}",
                [row["epoch"] for row in study.facts[variant]["history"]],
                [row.get("validation_loss") for row in study.facts[variant]["history"]],
                dashed=number > 0,
            )
            for number, radius in enumerate(study.radii_of(network))
            for variant in study.pair(network, radius)
        ]
        charts.append(
            blocks.chart(
                f"{network}: loss over the epochs",
                "epoch",
                "loss under attack",
                lines,
                f"Of {len(study.validation)} images that are not trained on, in nats, under PGD with "
                f"{study.config.max_steps} steps of the whole epsilon of training in every epoch; of "
                "the network as it is compressed by the share of that epoch, with BatchNorm statistics "
                "of its own; of dense networks with moving averages, which lag behind the weights: in "
                "early epochs lines of the two kinds say little of each other. In the legend the "
                "share kept and the epsilon of training.",
            )
        )
    for variant in study.robust():
        found = alarm(study, variant)
        rows.append(
            [
                variant.name,
                study.facts[variant]["history"][-1].get("validation_loss"),
                found["rise"],
                "-" if found["explosion_epoch"] is None else f"epoch {found['explosion_epoch']}",
                f"from epoch {found['collapse_epoch']}" if found["collapsed"] else "-",
            ]
        )
    first = study.pair(study.main, study.config.radii[0])[-1]
    stages = [
        [row["epoch"], *(row.get(name) for name in ("epsilon", "steps", "kept", "learning_rate"))]
        for row in study.facts[first]["history"]
    ]
    return blocks.section(
        "losses",
        "The adversarial loss as networks are compressed",
        [
            *charts,
            blocks.table(
                [
                    "Network",
                    blocks.column("Last loss", decimals=3),
                    blocks.column("Above its lowest", unit="%", decimals=0),
                    "Explosion",
                    "No better than a guess",
                ],
                rows,
                "Explosion: the first epoch whose loss is a quarter above the lowest before it. No "
                "better than a guess: a loss of ln K or more to the end.",
                title="The alarm",
                folded=len(rows) > 10,
            ),
            projection(study),
            blocks.table(
                [
                    "Epoch",
                    blocks.column("epsilon", decimals=4),
                    blocks.column("Steps", decimals=0),
                    blocks.column("Kept", unit="%", decimals=1),
                    blocks.column("Learning rate", decimals=4),
                ],
                stages,
                f"Of {first.name}; epsilon, steps and learning rate are those of every method. The "
                "source raises epsilon every T/3 epochs, steps in between, and lowers the share kept; "
                "here epsilon is whole by half of the epochs, and no two of them change in one.",
                title="What changed in which epoch",
                folded=True,
            ),
        ],
        part=PART,
    )


def projection(study: Study) -> dict[str, Any]:
    """What the last projection costs, and what BatchNorm's statistics do."""
    rows = []
    for variant in study.robust():
        facts = study.facts[variant]
        final, residual = facts["final"] or {}, facts["residual"]
        rows.append(
            [
                variant.name,
                *(final.get(f"accuracy_{name}") for name in ("before", "projected", "after")),
                residual,
                "far" if residual is not None and residual > FAR else "",
                facts["right_as_trained"] / len(study.test),
                study.accuracy(variant),
            ]
        )
    return blocks.table(
        [
            "Network",
            blocks.column("before", unit="%", decimals=1, group="Under attack, of validation"),
            blocks.column("projected", unit="%", decimals=1, group="Under attack, of validation"),
            blocks.column(
                "statistics anew", unit="%", decimals=1, group="Under attack, of validation"
            ),
            blocks.column("Residual", decimals=4),
            "",
            blocks.column("as trained", unit="%", decimals=1, group="Clean, of the test images"),
            blocks.column(
                "statistics anew", unit="%", decimals=1, group="Clean, of the test images"
            ),
        ],
        rows,
        "Before: what was trained. Projected: the sparse network with the statistics of before, then "
        "with its own; of methods in phases at the end of the phase that compresses, before the "
        "retraining. Residual: how far ADMM's weights are from the sparse ones at its end, over their "
        f"length; far: above {FAR:g}, ADMM has not come to the set. As trained: with the statistics "
        "that the training gave back, moving averages where it compressed nothing. All networks are "
        "saved and attacked with statistics estimated anew.",
        title="What the last projection costs",
        folded=len(rows) > 10,
    )


def weights(study: Study) -> dict[str, Any]:
    """Figures 4.1, 4.2, B.2 and B.3: histograms, zeros apart."""
    charts, rows = [], []
    for network in study.config.networks:
        exclude, radius = networks.NETWORKS[network].exclude, study.config.radii[0]
        natural = study.natural(network)[0]
        pair = study.pair(network, radius)
        every = [natural, *pair]
        raw = {v: _histogram(study, v, exclude, False) for v in every}
        # Both in one frame, in which the narrower one is more than a spike.
        limit = 5 * max(raw[natural]["std"], raw[pair[0]]["std"])
        framed = {v: _histogram(study, v, exclude, False, limit) for v in (natural, pair[0])}
        charts.append(
            _chart(
                f"{network}: natural and robust, dense",
                "weight",
                {"natural": framed[natural], "robust": framed[pair[0]]},
                "The outermost bins hold what lies beyond them.",
            )
        )
        charts.append(
            _chart(
                f"{network}: robust, dense and compressed",
                "weight over the largest",
                {v.share: _histogram(study, v, exclude, True) for v in pair},
                "Scaled to the largest weight of each network, as in the source.",
            )
        )
        for variant in every:
            found = raw[variant]
            rows.append(
                [
                    f"{network}, {variant.words}",
                    found["n"],
                    found["zeros"] / found["n"],
                    found["std"],
                    found["largest"],
                    study.accuracy(variant),
                ]
            )
    return blocks.section(
        "weights",
        "What the weights look like",
        [
            *charts,
            blocks.table(
                [
                    "Network",
                    blocks.column("Weights", decimals=0),
                    blocks.column("Exactly 0", unit="%", decimals=2),
                    blocks.column("Deviation of the others", decimals=4),
                    blocks.column("Largest", decimals=3),
                    blocks.column("Clean accuracy", unit="%", decimals=1),
                ],
                rows,
                "Kernels without stem and classifier; in the histograms zeros are left out, and counts "
                "are logarithmic.",
                title="Zeros, deviation, largest",
            ),
        ],
        part=PART,
    )


def deviation(study: Study, variant: Variant) -> float:
    """Of the weights of a network that are not 0, stem and classifier left out."""
    exclude = networks.NETWORKS[variant.network].exclude
    return _histogram(study, variant, exclude, False)["std"]


def _histogram(
    study: Study,
    variant: Variant,
    exclude: tuple[str, ...],
    normalise: bool,
    limit: float | None = None,
) -> dict[str, Any]:
    params = study.classifier(variant).variables["params"]
    return evaluation.weight_histogram(
        params, _NUM_BINS, limit=limit, normalise=normalise, exclude=exclude
    )


def _chart(title: str, x: str, found: dict[str, dict[str, Any]], caption: str) -> dict[str, Any]:
    zeros = {name: each["zeros"] / each["n"] for name, each in found.items() if each["zeros"]}
    words = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zeros.items())
    return blocks.chart(
        title,
        x,
        "weights",
        # Empty bins, which a logarithmic axis has no place for, are gaps.
        [
            blocks.line(name, each["middles"], each["counts"], steps=True)
            for name, each in found.items()
        ],
        f"{caption} Zeros, which are not drawn: {words}." if words else f"{caption} No zeros.",
        log_y=True,
    )


def ratios(study: Study) -> dict[str, Any]:
    """Figure B.1: naturally trained networks over the share kept, natural and under FGSM."""
    charts, rows = [], []
    # The source's table 4.1 has the natural accuracy of dense networks on two data sets.
    place = {"cifar10": 1, "cifar10_jpeg": 1, "cifar100": 2}.get(study.dataset.name)
    for network in study.config.networks:
        variants = study.natural(network)
        shares = [variant.kept for variant in variants]
        clean = [study.accuracy(variant) for variant in variants]
        attacked = study.stages.remember(
            f"FGSM on natural networks, {network}",
            functools.partial(_all_under_fgsm, study, variants),
        )
        charts.append(
            blocks.chart(
                f"{network}, trained naturally",
                "share of the weights kept",
                "accuracy",
                [
                    blocks.line("natural images", shares, clean),
                    blocks.line("FGSM, 8/255", shares, attacked),
                ],
                "One network each; Wilson's 95 % intervals.",
                percent=True,
                percent_x=True,
            )
        )
        rows += [
            [f"{network}, {v.share}", share, right, left]
            for v, share, right, left in zip(variants, shares, clean, attacked, strict=True)
        ]
        if place is not None:
            family = networks.NETWORKS[network].source
            known = published.NATURAL[family][place] / 100
            rows.append([f"{network}: source's {family}", 1.0, known, None])
    return blocks.section(
        "ratios",
        "Natural networks over the share kept",
        [
            *charts,
            blocks.table(
                [
                    "Network",
                    blocks.column("Kept", unit="%", decimals=1),
                    blocks.column("Natural", unit="%", decimals=1),
                    blocks.column("FGSM", unit="%", decimals=1),
                ],
                rows,
                f"Natural: of all {len(study.test)} test images; FGSM at 8/255: of the "
                f"{len(study.attacked)} that are attacked.",
                title="Accuracy over the share kept",
                folded=True,
            ),
        ],
        part=PART,
    )


def _all_under_fgsm(study: Study, variants: list[Variant], _: Any) -> list[evaluation.Rate]:
    return [rate_of(_under_fgsm(study, variant)) for variant in variants]


def _under_fgsm(study: Study, variant: Variant) -> np.ndarray:
    """Which of the attacked images it has right under FGSM; those wrong before are wrong."""
    split, classifier = study.attacked, study.classifier(variant)
    report = evaluation.attack_dataset(
        FGSM(EPSILON), classifier, split.images, split.labels, key=study.key
    )
    return report.attacked & right_ones(classifier, report.images, split.labels)
