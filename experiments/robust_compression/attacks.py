"""What is measured under attack, a stage for each: AutoAttack, curves, transfer, combined networks."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.robust_compression.networks import EPSILON, Study, Variant
from jaxrobust import evaluation, studies
from jaxrobust.attacks import FGSM, PGD, CarliniWagnerLinf
from jaxrobust.defenses import Ensemble
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.reports.pictures import encode_array
from jaxrobust.studies import suite_run
from jaxrobust.studies.outcomes import pack, rate_of, right_ones, unpack
from jaxrobust.training.compression.budget_schedules import LONGEST_STEP
from jaxrobust.types import Attack

# Of combined networks: 0.1 and 32 are the source's.
EPSILONS, STEPS = (EPSILON, 0.1), 32
MEMBERS, ATTACKS = ("natural", "robust", "combined"), ("PGD", "CW", "APGD")
PANEL_EPSILONS = (0.0, 0.016, 0.03, 0.06, 0.1, 0.2, 0.3)
PANEL_STEPS, NUM_PANELS = 7, 3  # 7 are the source's


def pgd(epsilon: float, num_steps: int) -> PGD:
    """PGD whose steps together reach 2.5 times as far as its ball does; a single one less."""
    return PGD(epsilon, epsilon * min(2.5 / num_steps, LONGEST_STEP), num_steps)


def auto_attack(study: Study, num_attacks: int | None = None) -> dict[str, Attack]:
    """All of AutoAttack, or as many of its attacks as are asked for."""
    suite = evaluation.auto_attack_suite(EPSILON, num_classes=study.dataset.num_classes)
    suite = dict(itertools.islice(suite.items(), num_attacks))
    steps = study.settings.suite_steps
    return suite if steps is None else studies.suites.shortened(suite, steps)


def run_suite(study: Study, variant: Variant, num_attacks: int | None) -> dict[str, Any]:
    """Attacks a network; returns a SUITE of docs/result_format.md."""
    attacked = suite_run.SuiteRun(
        study.run,
        auto_attack(study, num_attacks),
        "AutoAttack",
        variant.name,
        (study.classifier(variant), *study.attacked(variant.seed)),
        study.attacked_rows(variant.seed),
        study.run.folder / "suite" / variant.stem,
    )
    return attacked.record(f"attack {variant.name}")


def curve(study: Study, variant: Variant) -> dict[str, Any]:
    """Algorithm 2: accuracy under PGD over epsilon, until it is below chance; a CURVE."""
    return study.run.stages.remember(
        f"curve of {variant.name}",
        lambda progress: evaluation.robustness_curve(
            pgd(EPSILON, study.settings.curve_steps),
            study.classifier(variant),
            *study.attacked(variant.seed),
            study.settings.curve_epsilons,
            key=study.run.key,
            model=variant.name,
            stop_below=1 / study.dataset.num_classes,
            progress=progress,
        ),
    )


def transfer(study: Study, source: Variant, targets: list[Variant]) -> list[dict[str, Any]]:
    """Algorithm 3: PGD on one network, shown to all; a CURVE for each target."""
    return study.run.stages.remember(
        f"transfer from {source.name}",
        lambda progress: evaluation.transfer_curves(
            pgd(EPSILON, min(20, study.settings.curve_steps)),
            {target.name: study.classifier(target) for target in targets},
            source.name,
            *study.attacked(source.seed),
            study.settings.curve_epsilons,
            key=study.run.key,
            progress=progress,
        ),
    )


def under_fgsm(study: Study, variants: list[Variant]) -> list[evaluation.Rate]:
    """What each of one network's variants has right of the attacked images under FGSM."""

    def right(variant: Variant) -> np.ndarray:
        images, labels = study.attacked(variant.seed)
        classifier = study.classifier(variant)
        report = _attacked(study, FGSM(EPSILON), classifier, images, labels)
        return report.attacked & right_ones(classifier, report.images, labels)

    return study.run.stages.remember(
        f"FGSM on natural networks, {variants[0].network}",
        lambda _: [rate_of(right(variant)) for variant in variants],
    )


def combined(
    study: Study, natural: Variant, robust: Variant, known: np.ndarray
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Table C.1: a natural and a robust network, and the mean of their probabilities.

    Yields (keys, which of the attacked images it has right); "made_on" is the member whose images the
    combination is shown, `known` what the robust network keeps after two attacks of AutoAttack.
    """
    found = study.run.stages.remember(
        f"combined networks, {robust.network}",
        lambda progress: _combined(study, natural, robust, known, progress),
    )
    attacked = itertools.product(ATTACKS, EPSILONS, (None, *MEMBERS[:2]))
    cases = [(None, None, None), *attacked]
    for member, (attack, epsilon, made_on) in itertools.product(MEMBERS, cases):
        digits = found[member].get(_label(attack, epsilon, made_on))
        if digits is not None:
            of = {"network": robust.network, "member": member, "made_on": made_on}
            yield of | {"attack": attack, "epsilon": epsilon}, unpack(digits, len(known))


def _label(attack: str | None, epsilon: float | None = None, made_on: str | None = None) -> str:
    """What an attack is called in the record of combined networks, in earlier runs too."""
    words = "no attack" if epsilon is None else f"{attack}, {epsilon_label(epsilon)}"
    return f"{words}, made on {made_on}" if made_on else words


def _combined(
    study: Study, natural: Variant, robust: Variant, known: np.ndarray, progress: Any
) -> dict[str, dict[str, str]]:
    """{member: {label: outcomes, packed}}."""
    pair = (study.classifier(natural), study.classifier(robust))
    whole, (images, labels) = Ensemble(pair), study.attacked(robust.seed)
    closest = CarliniWagnerLinf(num_steps=10 * study.settings.curve_steps)
    found: dict[str, dict[str, str]] = {member: {} for member in MEMBERS}

    def keep(member: str, right: np.ndarray, *of: Any) -> None:
        found[member][_label(*of)] = pack(right)

    for done, (member, function) in enumerate(zip(MEMBERS, (*pair, whole), strict=True), start=1):
        keep(member, right_ones(function, images, labels), None)
        smallest = _attacked(study, closest, function, images, labels)
        for epsilon in EPSILONS:
            report = _attacked(study, pgd(epsilon, combined_steps(study)), function, images, labels)
            kept = report.predictions == report.labels
            keep(member, report.attacked & kept, "PGD", epsilon)
            if function is not whole:
                keep("combined", right_ones(whole, report.images, labels), "PGD", epsilon, member)
            beaten = smallest.success & (smallest.linf <= epsilon)
            keep(member, smallest.attacked & ~beaten, "CW", epsilon)
        progress(done, len(MEMBERS) + 1)
    suite = auto_attack(study, 2)
    strong = evaluation.attack_suite(suite, whole, images, labels, key=study.run.key)
    keep("robust", known, "APGD", EPSILON)
    keep("combined", strong.robust, "APGD", EPSILON)
    return found


def combined_steps(study: Study) -> int:
    """Of PGD on combined networks: the source's, or fewer where curves have fewer."""
    return min(STEPS, study.settings.curve_steps)


def panels(study: Study, variants: Sequence[Variant], right: np.ndarray) -> list[dict[str, Any]]:
    """Figures 3.1 and A.2: images that all networks have right, as PGD on each makes them.

    Returns [{"label", "kept": of the network, "images" and "answers": for each of PANEL_EPSILONS}];
    an image is an ARRAY of docs/result_format.md. Where no image is right, any are shown.
    """

    def attack(_: Any) -> list[dict[str, Any]]:
        rows = np.flatnonzero(right) if right.any() else np.arange(len(right))
        rows = rows[np.linspace(0, len(rows) - 1, NUM_PANELS + 2).astype(int)[1:-1]]
        images, labels = study.test.images[rows], study.test.labels[rows]
        found: list[dict[str, Any]] = [
            {"label": int(label), "kept": variant.kept, "images": [], "answers": []}
            for label in labels
            for variant in variants
        ]
        for epsilon, (place, variant) in itertools.product(PANEL_EPSILONS, enumerate(variants)):
            classifier = study.classifier(variant)
            made, said = images / np.float32(255), evaluation.logits(classifier, images)
            if epsilon:
                report = _attacked(study, pgd(epsilon, PANEL_STEPS), classifier, images, labels)
                made, said = report.images, report.logits
            tiles = zip(np.rint(255 * made).astype(np.uint8), said.argmax(1), strict=True)
            for row, (image, answer) in zip(found[place :: len(variants)], tiles, strict=True):
                row["images"].append(encode_array(image))
                row["answers"].append(int(answer))
        return found

    return study.run.stages.remember("images over epsilon", attack)


def _attacked(study: Study, attack: Attack, function: Any, images: Any, labels: Any) -> Any:
    return evaluation.attack_dataset(attack, function, images, labels, key=study.run.key)
