"""Images made on base networks and shown to pruned ones (tables 2, 5, 8, 14 to 16), and white box."""

from typing import Any

import numpy as np

from experiments.pruned_benchmark import comparisons, crafting, over_sparsity, published, threats
from experiments.pruned_benchmark.networks import SHORT
from experiments.pruned_benchmark.study import CRITERION_WORDS, Study, Variant
from jaxrobust import evaluation
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of

PART = "robustness"
_SOURCE_TABLES = {
    "cifar10": {"l2": "2", "geometric_median": "5", "l1": "8"},
    "cifar100": {"l2": "14", "l1": "15", "geometric_median": "16"},
}


def sections(study: Study) -> list[dict[str, Any]]:
    """One section for each setting of the attacks, the smallest perturbations, and the white box."""
    return [
        *(_shown(study, setting) for setting in threats.SETTINGS),
        _smallest(study),
        _white_box(study),
    ]


def source_row(study: Study, network: str, criterion: str, name: str) -> list[float | None]:
    """The source's figures of an attack, as shares: of the base, and at each of our sparsities."""
    tables = published.UNDER_ATTACK.get(study.source_data or "", {}).get(criterion, {})
    row = tables.get(study.family(network), {}).get(name)
    if row is None:
        return [None] * (1 + len(study.config.sparsities))
    by_sparsity = dict(zip((0.0, *published.SPARSITIES), row, strict=True))
    found = [by_sparsity.get(sparsity) for sparsity in (0.0, *study.config.sparsities)]
    return [None if value is None else value / 100 for value in found]


def _shown(study: Study, setting: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    if setting == "source":
        title = "The source's attacks, made on the base network"
        identifier, text = "shown-source", list(_AS_SOURCE)
    else:
        title = f"The same attacks at {setting}, made on the base network"
        identifier, text = "shown-8-255", list(_AT_EPSILON)
        for network in study.config.networks:
            found.append(
                over_sparsity.chart(
                    study,
                    network,
                    f"{network}: PGD of the base network, {setting}",
                    study.shown[network, setting, "PGD"].__getitem__,
                    "Images made on the base network, shown to all.",
                )
            )
    for network in study.config.networks:
        for criterion in study.config.criteria:
            found.append(shown_table(study, network, criterion, setting))
    return blocks.section(identifier, title, found, part=PART, text=text)


_AS_SOURCE = (
    "Seven attacks with the parameters of the source's table 7, made on the base network and shown to "
    "everything made of it, as the source has it. The base network is attacked white box, all others "
    "are shown another network's images: that they have more of them right is no robustness of theirs. "
    "The control tells what training on alone does to that.",
    "What these parameters mean in ART, which the source used: CW stops after 10 steps for each of 10 "
    "constants, DeepFool leaves its images on the base network's own boundary (overshoot 1e-6), BiM's "
    "epsilon of 1 allows any image, PGD starts at the image and is BiM with epsilon 0.3, the universal "
    "perturbation's epsilon of 10 is no bound where pixels end at 1. At 0.3 most of what was in an "
    f"image is gone: the row {threats.NOISE}, of 11 uniform draws the worst for the base network, says "
    "what that does without a gradient.",
    "Where ours differ from ART's, and so the base network's figures from the source's: CW is the "
    "paper's Adam with as many steps, DeepFool ends 1e-4 beyond the boundary, so that the base network "
    "has its images wrong, APGD has one start, the universal perturbation takes four images together. "
    "CW and DeepFool leave images that the base network has wrong as they are; ART moves them too.",
)
_AT_EPSILON = (
    "Epsilon 8/255 in linf for FGSM, BiM, PGD, APGD and the universal perturbation (made on training "
    "images); CW and DeepFool have none and look for the smallest perturbation in l2. Their images lie "
    "just beyond the base network's boundary, so other networks have most of them right. The row "
    f"{threats.NOISE} is of 11 uniform draws the worst for the base network.",
)


def shown_table(study: Study, network: str, criterion: str, setting: str) -> dict[str, Any]:
    """Two rows for each attack: ours, and where there is one the source's."""
    variants = [Variant(network), Variant(network, "control"), *study.pruned(network, criterion)]
    clean = [rate_of(study.right_of_attacked(v)) for v in variants]
    rows: list[list[Any]] = [["no attack", *clean, *_deltas([r["rate"] for r in clean])]]
    for name in threats.NAMES:
        record = study.shown[network, setting, name]
        rates = [rate_of(record[v]) for v in variants]
        rows.append([name, *rates, *_deltas([r["rate"] for r in rates])])
        theirs = source_row(study, network, criterion, name)
        if setting == "source" and theirs[0] is not None:
            known = [value for value in theirs[1:] if value is not None]
            delta = 100 * (max(known) - theirs[0]) if known else None
            rows.append([f"{name}, source", theirs[0], None, *theirs[1:], delta, None])
    words = CRITERION_WORDS[criterion]
    table = _SOURCE_TABLES.get(study.source_data or "", {}).get(criterion)
    beside = ""
    if setting == "source" and table is not None:
        beside = (
            f" Beside ours the source's {SHORT[study.family(network)]}, of 10,000 images (its table "
            f"{table})."
        )
    return blocks.table(
        [
            "Attack",
            blocks.column("base", unit="%", decimals=1),
            blocks.column("control", unit="%", decimals=1),
            *(
                blocks.column(f"{100 * s:g} %", unit="%", decimals=1, group=words)
                for s in study.config.sparsities
            ),
            blocks.column("the base", unit="points", decimals=1, group="max δ against"),
            blocks.column("the control", unit="points", decimals=1, group="max δ against"),
        ],
        rows,
        f"Of {len(study.attacked)} test images, those wrong without an attack included, as in the "
        "source; 95 % intervals. max δ: the best of the pruned, chosen by these images, less the "
        f"other: that flatters it.{beside}",
        title=f"{network}, {words}",
        folded=criterion != study.shown_criterion,
    )


def _deltas(rates: list[Any]) -> list[float]:
    """The largest of the pruned less the base and less the control, in points."""
    base, control, *pruned = rates
    return [100 * (max(pruned) - base), 100 * (max(pruned) - control)]


def _smallest(study: Study) -> dict[str, Any]:
    """What CW and DeepFool needed on the base networks, with either parameters."""
    rows = []
    ours: dict[str, Any] = threats.attacks(study.config.max_steps)[threats.SETTINGS[-1]]
    for network in study.config.networks:
        for name in ("CW", "DF"):
            for setting in threats.SETTINGS:
                lengths = crafting.smallest(study, network, setting, name)
                found = lengths[np.isfinite(lengths)]
                rows.append(
                    [
                        network,
                        name,
                        "source's" if setting == "source" else "ours",
                        evaluation.rate(len(found), len(lengths)),
                        _median(lengths),
                        evaluation.rate(int((lengths > threats.RADIUS).sum()), len(lengths)),
                    ]
                )
    return blocks.section(
        "smallest",
        "The smallest perturbations",
        [
            blocks.table(
                [
                    "Network",
                    "Attack",
                    "Steps",
                    "Fooled",
                    blocks.column("Median l2 norm", decimals=3),
                    f"Right within l2 {threats.RADIUS:g}",
                ],
                rows,
                "Of the images that the base network has right without an attack. Ours: CW with "
                f"{ours['CW'].num_iterations} steps for each of {ours['CW'].num_searches} constants, "
                f"DeepFool with {ours['DF'].num_steps} steps. An attack that finds "
                "nothing for half of them has no median. Only a minimal-norm attack that fools nearly "
                "all images says something of the network, and not of its own steps.",
            )
        ],
        part=PART,
    )


def _median(lengths: np.ndarray) -> Any:
    """The median with its interval; None where it, or an end of it, is infinite."""
    if not len(lengths):
        return None
    # Of ranks alone, so that what was not found may stand as more than anything that was.
    most = 1e9
    found = evaluation.median_interval(np.minimum(lengths, most))
    if found["median"] >= most / 2:
        return None
    high = found["high"]
    if high is not None and high >= most / 2:
        return found["median"]
    return blocks.estimate(found["median"], found["low"], high)


def _white_box(study: Study) -> dict[str, Any]:
    """Every network attacked itself."""
    last = threats.WHITE_BOX[-1]
    figure = comparisons.white_box_figure(study, last)
    charts = [
        over_sparsity.gaps(study, network, f"{network}: right under {last}, made on each", figure)
        for network in study.config.networks
    ]
    against = {c.variant: c for c in comparisons.white_box(study, last)}
    tables = []
    for network in study.config.networks:
        rows = []
        for variant in study.variants(network):
            found, comparison = study.white_box[variant], against.get(variant)
            lengths = found["norms"][study.right_of_attacked(variant)]
            rows.append(
                [
                    variant.words,
                    rate_of(study.right_of_attacked(variant)),
                    rate_of(found[last]),
                    None if comparison is None else comparison.cell,
                    None if comparison is None else comparison.p_value,
                    _median(lengths),
                    _longer(study, variant),
                    *(rate_of(found[name]) for name in threats.WHITE_BOX[:-1]),
                ]
            )
        tables.append(_white_box_table(network, rows))
    return blocks.section(
        "white-box",
        "Attacks made on the pruned networks themselves",
        [*charts, *_together(study), *tables],
        part=PART,
        text=[
            "An attacker who has the pruned network attacks that. At 8/255 PGD leaves next to nothing "
            "of networks that were not trained against attacks, and what is equally near to nothing "
            "cannot differ: at 1/255, and in the smallest perturbation, it can."
        ],
    )


def _together(study: Study) -> list[dict[str, Any]]:
    """What pruning, by whatever criterion, does to networks that are attacked themselves."""
    sparsities, criteria = study.config.sparsities, study.config.criteria
    rows = {
        f"{name}, points": [
            comparisons.from_pruning(study, comparisons.white_box_figure(study, name), criteria, s)
            for s in sparsities
        ]
        for name in threats.WHITE_BOX
    }
    norm = comparisons.norm_figure(study)
    if all(np.isfinite(norm(v)) for n in study.config.networks for v in study.variants(n)):
        rows["DeepFool's median l2 norm, %"] = [
            comparisons.from_pruning(study, norm, criteria, s, relative=True) for s in sparsities
        ]
    return over_sparsity.together(
        study,
        "Attack",
        rows,
        f"Right of all attacked images, or the norm, less that of "
        f"{comparisons.controls_in_words(study)}{'; means of criteria' if len(criteria) > 1 else ''}. "
        "There is no row of norms where DeepFool fooled less than half of the images of a network.",
    )


def _white_box_table(network: str, rows: list[list[Any]]) -> dict[str, Any]:
    *others, last = threats.WHITE_BOX
    smallest = "DeepFool, l2"
    return blocks.table(
        [
            "Variant",
            "No attack",
            blocks.column("right", group=last),
            blocks.column("to the control", unit="points", decimals=1, group=last),
            blocks.column("p", decimals=4, group=last),
            blocks.column("median norm", decimals=3, group=smallest),
            blocks.column("to the control", decimals=4, group=smallest),
            *others,
        ],
        rows,
        "Right: of all attacked images. Differences to the control are of the images that both have "
        "right without an attack, with 95 % intervals; p is McNemar's, with Holm's correction over all "
        "networks. DeepFool's differences are medians of those of the images on which it fooled both: "
        "positive where a network takes a larger perturbation than the control.",
        title=network,
    )


def _longer(study: Study, variant: Variant) -> Any:
    """How much larger a perturbation the variant takes than the first control, image by image."""
    control = Variant(variant.network, "control")
    if variant.kind == "base" or variant == control:
        return None
    both = study.right_of_attacked(variant) & study.right_of_attacked(control)
    a, b = (study.white_box[v]["norms"] for v in (variant, control))
    both &= np.isfinite(a) & np.isfinite(b)
    if not both.any():
        return None
    found = evaluation.median_interval(a[both] - b[both])
    return blocks.estimate(found["median"], found["low"], found["high"])
