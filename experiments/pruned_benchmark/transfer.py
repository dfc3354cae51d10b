"""Images made on one architecture and shown to the others: the source's tables 6 and 9 to 11."""

from typing import Any

from experiments.pruned_benchmark import published_transfer, threats
from experiments.pruned_benchmark.networks import SHORT
from experiments.pruned_benchmark.study import CRITERION_WORDS, Study, Variant
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import rate_of

PART = "transfer-part"
_ORDER = ("APGD", "BiM", "CW", "DF", "FGSM", "PGD", "UP")  # of the source's columns


def section(study: Study) -> list[dict[str, Any]]:
    """Heat maps, and for each surrogate and setting a table; nothing for a single network."""
    if len(study.config.networks) < 2:
        return []
    found = [_heat(study)]
    for setting in threats.SETTINGS:
        for surrogate in study.config.networks:
            found.append(_table(study, surrogate, setting))
    if study.source_data == "cifar10":
        found += _published(study)
    words = CRITERION_WORDS[study.shown_criterion]
    return [
        blocks.section(
            "transfer-tables",
            "Transfer between architectures",
            found,
            part=PART,
            text=[
                "The attacker has a base network of another architecture. Victims are base networks, "
                f"controls, and networks pruned by {words}. A victim's accuracy under transfer depends "
                "on its clean accuracy, which stands before the attacks: most of the source's pruned "
                "networks, fine-tuned, have more right without an attack and so with a weak one. "
                "The best of the pruned networks, max δ, is chosen by these images, which flatters it."
            ],
        )
    ]


def victims(study: Study, surrogate: str) -> list[str]:
    """The other base networks."""
    return [network for network in study.config.networks if network != surrogate]


def _heat(study: Study) -> dict[str, Any]:
    """PGD at our epsilon, from every base network to the other architectures' networks."""
    criterion, sparsity = study.shown_criterion, study.config.sparsities[-1]
    setting = threats.SETTINGS[-1]
    shown = [
        variant
        for network in study.config.networks
        for variant in (
            Variant(network),
            Variant(network, "control"),
            Variant(network, criterion, sparsity),
        )
    ]
    values = [
        [
            None if v.network == surrogate else rate_of(study.shown[surrogate, setting, "PGD"][v])
            for surrogate in study.config.networks
        ]
        for v in shown
    ]
    return {
        "kind": "heat",
        "title": f"Right under PGD at {setting} of another architecture",
        "rows": [variant.name for variant in shown],
        "columns": list(study.config.networks),
        "values": values,
        "row_title": "shown to",
        "column_title": "made on",
        "percent": True,
    }


def _table(study: Study, surrogate: str, setting: str) -> dict[str, Any]:
    rows: list[list[Any]] = []
    for network in victims(study, surrogate):
        variants = [
            Variant(network),
            Variant(network, "control"),
            *study.pruned(network, study.shown_criterion),
        ]
        shares = []
        for variant in variants:
            records = [study.shown[surrogate, setting, name][variant] for name in _ORDER]
            rates = [rate_of(record) for record in records]
            clean = rate_of(study.right_of_attacked(variant))
            rows.append([network, variant.words, clean, *rates])
            shares.append([clean["rate"], *(rate["rate"] for rate in rates)])
        base, control, *pruned = shares
        for words, reference in (("base", base), ("control", control)):
            # In points, in a table of shares.
            deltas = [
                f"{100 * (max(column) - other):+.1f}"
                for *column, other in zip(*pruned, reference, strict=True)
            ]
            rows.append([network, f"max δ, {words}", *deltas])
    return blocks.table(
        ["Victim", "Variant", "No attack", *_ORDER],
        rows,
        f"Accuracy of the victims on {len(study.attacked)} images that attacks made on {surrogate}. "
        "max δ: the best of the pruned networks less base or control, points.",
        title=f"Made on {surrogate}, {threats.words(setting)}",
        folded=True,
    )


def _published(study: Study) -> list[dict[str, Any]]:
    """The source's tables for the surrogates of this run."""
    tables = []
    families = list(dict.fromkeys(map(study.family, study.config.networks)))
    numbers = {"mobilenet_v1": 10, "densenet121": 9, "resnet50": 6, "vgg19": 11}
    for surrogate in families:
        rows: list[list[Any]] = []
        for victim, attacks in published_transfer.TRANSFER[surrogate].items():
            for place, sparsity in enumerate(("0 %", "10 %", "20 %", "30 %", "40 %", "50 %")):
                cells: list[Any] = [
                    _cell(surrogate, victim, name, place, attacks[name][place]) for name in _ORDER
                ]
                rows.append([f"{SHORT[victim]}, {sparsity}", *cells])
        doubted = any(cell[0] == surrogate for cell in published_transfer.IN_DOUBT)
        tables.append(
            blocks.table(
                ["Victim, L2", *(blocks.column(name) for name in _ORDER)],
                rows,
                "Percent of 10,000 images."
                + (
                    " The cell in doubt, 82.2 (?), repeats its neighbour among figures of 9 to 13."
                    if doubted
                    else ""
                ),
                title=f"The source's table {numbers[surrogate]}: made on {SHORT[surrogate]}",
                folded=True,
            )
        )
    return tables


def _cell(surrogate: str, victim: str, name: str, place: int, value: float) -> str:
    in_doubt = (surrogate, victim, name, place) in published_transfer.IN_DOUBT
    return f"{value:g} (?)" if in_doubt else f"{value:g}"
