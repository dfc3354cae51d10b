"""Measurements under attack: AutoAttack, curves over epsilon, transfer, and combined networks."""

import itertools
from typing import Any

import numpy as np

from experiments.robust_compression.networks import EPSILON, Study, Variant
from jaxrobust import evaluation
from jaxrobust.attacks import FGSM, PGD, Attack, CarliniWagnerLinf
from jaxrobust.defenses import Ensemble
from jaxrobust.evaluation import Execution, Sweep
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.reports import blocks
from jaxrobust.reports.pictures import decode_array, encode_array
from jaxrobust.studies import ANY, comparison, records, suite_names, suite_run
from jaxrobust.studies.outcomes import pack, rate_of, right_ones, unpack
from jaxrobust.training.compression.budget_schedules import LONGEST_STEP

# For combined networks; 0.1 and 32 are from the source.
EPSILONS, STEPS = (EPSILON, 0.1), 32
MEMBERS, ATTACKS = ("natural", "robust", "combined"), ("PGD", "CW", "APGD")
PANEL_EPSILONS = (0.0, 0.016, 0.03, 0.06, 0.1, 0.2, 0.3)
PANEL_STEPS, NUM_PANELS = 7, 3  # the 7 steps are from the source


def pgd(epsilon: float, num_steps: int) -> PGD:
    """Returns PGD whose steps together are 2.5 epsilon long; a step is at most LONGEST_STEP epsilon."""
    return PGD(epsilon, epsilon * min(2.5 / num_steps, LONGEST_STEP), num_steps)


def auto_attack(study: Study, num_attacks: int | None = None) -> dict[str, Attack]:
    """Returns AutoAttack, or only the first `num_attacks` of its attacks."""
    suite = evaluation.auto_attack_suite(EPSILON, num_classes=study.dataset.num_classes)
    few, steps = itertools.islice(suite.items(), num_attacks), study.settings.suite_steps
    return {name: suite_names.shortened(attack, steps) for name, attack in few}


def run_suites(study: Study) -> None:
    """Runs AutoAttack on every robust network: all of it, or only its first two attacks."""
    for variant in study.settings.robust():
        is_full = study.settings.fully_attacked == "all" or variant.method in ("dense", "irregular")
        attacked = suite_run.SuiteRun(
            study.run,
            auto_attack(study, None if is_full else 2),
            "AutoAttack",
            variant.name,
            study.target(variant),
            study.attacked_rows(variant.seed),
            Execution(path=study.run.folder / "suite" / variant.stem),
        )
        records.add_suite(study.run.facts, attacked.record(f"attack {variant.name}"), variant)


def curves(study: Study) -> None:
    """Measures accuracy under PGD over epsilon, until it is below chance (algorithm 2)."""
    settings, pairs = study.settings, itertools.chain.from_iterable(study.settings.pairs())
    for variant in itertools.chain.from_iterable(map(settings.seeded, pairs)):
        curve = study.run.stages.remember(
            f"curve of {variant.name}",
            lambda progress, variant=variant: evaluation.robustness_curve(
                pgd(EPSILON, settings.curve_steps),
                *study.target(variant),
                Sweep(settings.curve_epsilons, stop_below=1 / study.dataset.num_classes),
                key=study.run.key,
                model=variant.name,
                execution=Execution(progress=progress),
            ),
        )
        records.add_curve(study.run.facts, curve, variant, attack="PGD")


def transfer(study: Study, after: str) -> dict[str, Any]:
    """Shows images of PGD on the strongest and the weakest network to all networks (algorithm 3).

    The networks are of all architectures and radii. The strongest and the weakest are chosen by the
    accuracy after the attack `after` and those before it.
    """
    facts, settings = study.run.facts, study.settings
    targets = [one.but(seed=settings.seed) for pair in settings.pairs() for one in pair]
    whole = [facts.of("robust accuracy", target, after=after).value for target in targets]
    sources = {"strongest": targets[np.argmax(whole)], "weakest": targets[np.argmin(whole)]}
    if sources["strongest"] == sources["weakest"]:
        del sources["weakest"]
    within = max(epsilon for epsilon in settings.curve_epsilons if epsilon <= EPSILON + 1e-9)
    for made_on, source in sources.items():
        found = study.run.stages.remember(
            f"transfer from {source.name}",
            lambda progress, source=source: evaluation.transfer_curves(
                pgd(EPSILON, settings.curve_steps),
                {target.name: study.classifier(target) for target in targets},
                source.name,
                *study.attacked(source.seed),
                settings.curve_epsilons,
                key=study.run.key,
                execution=Execution(progress=progress),
            ),
        )
        for target, curve in zip(targets, found, strict=True):
            records.add_curve(facts, curve, target, attack="PGD", made_on=made_on)
            left = {point["epsilon"]: point["robust_accuracy"]["rate"] for point in curve["points"]}
            if target not in sources.values():
                lost = left[0.0] - left[within]
                facts.add("accuracy lost", target, made_on=made_on, value=lost)
    if len(sources) == 2:
        over, name = ("network", "method", "kept", "radius", "seed"), "accuracy lost"
        found = facts.where(name, made_on=ANY, **dict.fromkeys(over, ANY))
        facts.extend(comparison.means(found, over, f"mean {name}"))
        strong = [fact for fact in found if fact.keys["made_on"] == "strongest"]
        gaps = comparison.less(facts, strong, lambda keys: keys | {"made_on": "weakest"}, name)
        facts.extend(comparison.means(gaps, (*over, "made_on"), f"mean {name} difference"))
    return {"sources": sources, "targets": targets}


def under_fgsm(study: Study, network: str) -> None:
    """Measures the accuracy of naturally trained networks under FGSM (figure B.1)."""
    settings = study.settings
    natural = [one for kind in settings.pair(network, 0.0) for one in settings.seeded(kind)]

    def right(variant: Variant) -> np.ndarray:
        classifier, images, labels = study.target(variant)
        report = _attacked(study, FGSM(EPSILON), classifier, images, labels)
        return report.attacked & right_ones(classifier, report.images, labels)

    found = study.run.stages.remember(
        f"FGSM on natural networks, {network}",
        lambda _: [rate_of(right(variant)) for variant in natural],
    )
    for variant, rate in zip(natural, found, strict=True):
        study.run.facts.add_rate("robust accuracy", variant, rate, attack="FGSM", epsilon=EPSILON)


def combine(study: Study, after: str) -> None:
    """Attacks natural and robust networks and the means of their probabilities (table C.1).

    The key "made_on" is the member on which images were made that are shown to the combination. The
    result of the robust network under two attacks of AutoAttack, of which `after` is the second, is
    already among the facts.
    """
    facts, settings = study.run.facts, study.settings
    attacked = itertools.product(ATTACKS, EPSILONS, (None, *MEMBERS[:2]))
    cases = list(itertools.product(MEMBERS, [(None, None, None), *attacked]))
    for network in settings.networks:
        robust = Variant(network, radius=settings.radii[0], seed=settings.seed)
        known: Any = facts.of("robust accuracy", robust, after=after).outcomes
        found = study.run.stages.remember(
            f"combined networks, {network}",
            lambda progress, robust=robust, known=known: _combined(study, robust, known, progress),
        )
        for member, (attack, epsilon, made_on) in cases:
            digits = found[member].get(_label(attack, epsilon, made_on))
            if digits is not None:
                of = {"network": network, "member": member, "attack": attack, "epsilon": epsilon}
                name = "robust accuracy" if attack else "accuracy"
                facts.add(name, of, made_on=made_on, outcomes=unpack(digits, len(known)))
    wholes: dict[str, Any] = {"member": "combined", "attack": ("PGD", "APGD"), "epsilon": EPSILON}
    measured = facts.where("robust accuracy", network=ANY, **wholes)
    control, name = {"member": "robust"}, "robust accuracy difference"
    facts.extend(comparison.over_images(facts, measured, lambda keys: keys | control, name))


def _label(attack: str | None, epsilon: float | None = None, made_on: str | None = None) -> str:
    """Returns the name of an attack in the record of combined networks; finished runs have it too."""
    words = "no attack" if epsilon is None else f"{attack}, {epsilon_label(epsilon)}"
    return f"{words}, made on {made_on}" if made_on else words


def _combined(
    study: Study, robust: Variant, known: np.ndarray, progress: Any
) -> dict[str, dict[str, str]]:
    """Returns {member: {label: packed outcomes}}."""
    pair = study.classifier(robust.but(radius=0.0)), study.classifier(robust)
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
        progress(member, done, len(MEMBERS) + 1)
    suite = auto_attack(study, 2)
    strong = evaluation.attack_suite(suite, whole, images, labels, key=study.run.key)
    keep("robust", known, "APGD", EPSILON)
    keep("combined", strong.robust, "APGD", EPSILON)
    return found


def combined_steps(study: Study) -> int:
    """Returns the steps of PGD on combined networks: the source's, or as few as curves have."""
    return min(STEPS, study.settings.curve_steps)


def panels(study: Study) -> dict[str, Any]:
    """Draws images over epsilon, made on the dense and on the smallest network (figures 3.1 and A.2).

    Both networks have the clean images right, if there are such images.
    """
    settings, names = study.settings, study.dataset.class_names
    pair = settings.pair(settings.networks[0], settings.radii[0])
    shown = [variant.but(seed=settings.seed) for variant in (pair[0], pair[-1])]

    def attack(_: Any) -> list[dict[str, Any]]:
        right = [study.run.facts.of("accuracy", variant).outcomes for variant in shown]
        rows = np.flatnonzero(np.logical_and.reduce(right))
        rows = rows if len(rows) else np.arange(len(study.test))
        rows = rows[np.linspace(0, len(rows) - 1, NUM_PANELS + 2).astype(int)[1:-1]]
        images, labels = study.test.images[rows], study.test.labels[rows]
        found: list[dict[str, Any]] = [
            {"label": int(label), "kept": variant.kept, "images": [], "answers": []}
            for label in labels
            for variant in shown
        ]
        for epsilon, (place, variant) in itertools.product(PANEL_EPSILONS, enumerate(shown)):
            classifier = study.classifier(variant)
            made, said = images / np.float32(255), evaluation.logits(classifier, images)
            if epsilon:
                report = _attacked(study, pgd(epsilon, PANEL_STEPS), classifier, images, labels)
                made, said = report.images, report.logits
            tiles = zip(np.rint(255 * made).astype(np.uint8), said.argmax(1), strict=True)
            for row, (image, answer) in zip(found[place :: len(shown)], tiles, strict=True):
                row["images"].append(encode_array(image))
                row["answers"].append(int(answer))
        return found

    rows = []
    for row in study.run.stages.remember("images over epsilon", attack):
        answers = zip(row["images"], row["answers"], strict=True)
        tiles = [blocks.tile(decode_array(image), text=names[answer]) for image, answer in answers]
        share = Variant("", kept=row["kept"]).share
        rows.append((f"{names[row['label']]}, {share}", tiles))
    columns = [epsilon_label(epsilon) if epsilon else "clean" for epsilon in PANEL_EPSILONS]
    return blocks.pictures(rows, columns=columns)


def _attacked(study: Study, attack: Attack, function: Any, images: Any, labels: Any) -> Any:
    return evaluation.attack_dataset(attack, function, images, labels, key=study.run.key)
