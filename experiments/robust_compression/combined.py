"""A natural and a robust network as one: table C.1, attacked as a whole and through its members."""

import functools
from typing import Any

import numpy as np

from experiments.robust_compression import attacking, networks, published
from experiments.robust_compression.config import EPSILON
from experiments.robust_compression.study import Study, Variant
from jaxrobust import evaluation
from jaxrobust.attacks import CarliniWagnerLinf
from jaxrobust.defenses import Ensemble
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.studies import blocks
from jaxrobust.studies.outcomes import pack, rate_of, right_ones, unpack

PART = "robustness"
EPSILONS = (EPSILON, 0.1)  # 0.1 is the source's
STEPS = 32  # likewise
WHOLE = "combined"
MEMBERS = ("natural", "robust", WHOLE)


def members(study: Study, network: str) -> tuple[Variant, Variant]:
    """(natural, robust), dense."""
    radius = study.config.radii[0]
    seed = study.seeds[0]
    return Variant(network, radius=0.0, seed=seed), Variant(network, radius=radius, seed=seed)


def outcomes(study: Study, network: str) -> dict[str, dict[str, np.ndarray]]:
    """{member: {attack: bool [N], which of the attacked images it has right}}."""
    count = len(study.attacked)
    return {
        member: {name: unpack(digits, count) for name, digits in found.items()}
        for member, found in study.combined[network].items()
    }


def make(study: Study) -> None:
    """Attacks members and wholes, into the study's records."""
    for network in study.config.networks:
        study.combined[network] = study.stages.remember(
            f"combined networks, {network}",
            functools.partial(_attack, study, network),
        )


def _attack(study: Study, network: str, progress: Any) -> dict[str, dict[str, str]]:
    natural, robust = (study.classifier(variant) for variant in members(study, network))
    whole = Ensemble((natural, robust))
    functions: dict[str, Any] = dict(zip(MEMBERS, (natural, robust, whole), strict=True))
    split, steps = study.attacked, _steps(study)
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in MEMBERS}
    work = len(MEMBERS) * (len(EPSILONS) + 1) + 1
    done = 0
    for name, function in functions.items():
        found[name]["no attack"] = right_ones(function, split.images, split.labels)
        for epsilon in EPSILONS:
            label = f"PGD, {epsilon_label(epsilon)}"
            report = evaluation.attack_dataset(
                attacking.pgd(epsilon, steps), function, split.images, split.labels, key=study.key
            )
            found[name][label] = report.attacked & (report.predictions == report.labels)
            if name != WHOLE:
                shown = right_ones(functions[WHOLE], report.images, split.labels)
                found[WHOLE][f"{label}, made on {name}"] = shown
            progress(done := done + 1, work)
        closest = CarliniWagnerLinf(num_steps=10 * study.config.curve_steps)
        report = evaluation.attack_dataset(
            closest, function, split.images, split.labels, key=study.key
        )
        for epsilon in EPSILONS:
            beaten = report.success & (report.linf <= epsilon)
            found[name][f"CW, {epsilon_label(epsilon)}"] = report.attacked & ~beaten
        progress(done := done + 1, work)
    # What the robust network alone keeps is known.
    known = study.standing(members(study, network)[1], attacking.common_attack(study))
    found["robust"]["APGD, 8/255"] = known
    strong = evaluation.attack_suite(
        attacking.first_two(study), functions[WHOLE], split.images, split.labels, key=study.key
    )
    found[WHOLE]["APGD, 8/255"] = strong.robust
    return {name: {k: pack(v) for k, v in each.items()} for name, each in found.items()}


def _steps(study: Study) -> int:
    """Of PGD: the source's, or fewer where curves have fewer."""
    return min(STEPS, study.config.curve_steps)


def section(study: Study) -> dict[str, Any]:
    """The table for each network, the source's rows below ours."""
    tables = []
    labels = [
        *(f"PGD, {epsilon_label(epsilon)}" for epsilon in EPSILONS),
        *(f"CW, {epsilon_label(epsilon)}" for epsilon in EPSILONS),
        "APGD, 8/255",
    ]
    with_source = study.dataset.name in ("cifar10", "cifar10_jpeg")
    for network in study.config.networks:
        found = outcomes(study, network)
        rows: list[list[Any]] = []
        for member in MEMBERS:
            right = found[member]
            known = [rate_of(right[label]) if label in right else None for label in labels]
            rows.append([member, rate_of(right["no attack"]), *known])
        for made_on in MEMBERS[:2]:
            shown = [found[WHOLE].get(f"{label}, made on {made_on}") for label in labels]
            cells: list[Any] = [None if each is None else rate_of(each) for each in shown]
            rows.append([f"combined, shown what was made on {made_on}", None, *cells])
        family = networks.NETWORKS[network].source
        if with_source:
            for member, (benign, pgd, cw) in published.COMBINED[family].items():
                cells = [None, pgd / 100, None, cw / 100, None]
                rows.append([f"source's {family}, {member}", benign / 100, *cells])
        tables.append(
            blocks.table(
                [
                    "Attacked",
                    blocks.column("No attack", unit="%", decimals=1),
                    *(blocks.column(label, unit="%", decimals=1) for label in labels),
                ],
                rows,
                f"{network}, dense; of {len(study.attacked)} test images, Wilson's 95 % intervals. PGD "
                f"with {_steps(study)} steps; CW: the smallest perturbation in linf that it finds is "
                "beyond epsilon; APGD: APGD-CE, then APGD-T.",
                title=network,
            )
        )
    return blocks.section(
        "combined",
        "A natural and a robust network together",
        tables,
        part=PART,
        text=[
            "The mean of both networks' probabilities. Whoever attacks the combination has both of "
            "them: PGD, CW and APGD are made on the whole. Images that were made on one member alone "
            "are shown to it besides. The source does not say which of the two it did. Under PGD at "
            f"0.1 its robust ResNet keeps {published.COMBINED['ResNet']['robust'][1]:g} %, under "
            "AutoAttack at 0.03, a smaller ball, "
            f"{published.AUTO_ATTACK['ResNet'][0.1][1.0][-1]:g} %: if both tables are of one network, "
            "its PGD was far from the worst of its ball. Ours are dense networks."
        ],
    )
