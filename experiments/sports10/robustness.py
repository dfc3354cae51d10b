"""Problem B: white-box attacks, what they do to the maps, and transfer between networks."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.config import EPSILONS
from experiments.sports10.networks import SUBJECTS
from experiments.sports10.study import Study, estimate
from jaxrobust import attribution, evaluation, studies
from jaxrobust.evaluation import AttackReport
from jaxrobust.studies import blocks
from jaxrobust.types import Attack

PART = "b"
CURVE = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)


def main_attacks(study: Study) -> list[Any]:
    """FGSM and PGD at the main epsilon, untargeted and targeted."""
    return [
        make(targeted=targeted) for targeted in (False, True) for make in (study.fgsm, study.pgd)
    ]


def report_of(study: Study, attack: Any, name: str) -> AttackReport:
    """An attack on the first seed's network."""
    return study.attack(attack, name, study.base(name), study.test(name))


def typed(study: Study) -> dict[str, Any]:
    """The attacks, gallery, curves and transfer tables that every report of a study has."""
    kinds = ("attacks", "gallery", "transfer", "curves", "diagnostics")
    found: dict[str, list[Any]] = {kind: [] for kind in kinds}
    for attack in main_attacks(study):
        for name in study.config.models:
            report = report_of(study, attack, name)
            found["attacks"].append(evaluation.summarise(report, name, study.class_names))
            aim = " to the target" if attack.targeted else ""
            found["gallery"] += study.stages.remember(
                f"pictures of {evaluation.attack_label(attack)}{aim} on {name}",
                functools.partial(_pictures, study, name, report),
            )
        for names in same_size(study):
            table = evaluation.transfer_matrix(
                {name: study.base(name) for name in names},
                {name: report_of(study, attack, name) for name in names},
            )
            aim_of = {"target": study.config.target} if attack.targeted else {}
            found["transfer"].append(table | aim_of)
    for name in study.config.models:
        found["curves"] += study.stages.remember(
            f"curves over epsilon, {name}", functools.partial(_curves, study, name)
        )
    # They compile seven programs: with --quick, for the network that compiles fastest.
    for name in study.config.models[:1] if study.config.quick else study.config.models:
        sane = study.stages.remember(
            f"sanity checks of {name}", functools.partial(_sanity, study, name)
        )
        found["diagnostics"].append({"model": name} | sane)
    return found


def _pictures(study: Study, name: str, report: AttackReport, _: Any) -> list[dict[str, Any]]:
    chosen = studies.spread(report.attacked, study.config.num_recorded)
    return studies.gallery(study.base(name), report, chosen, model=name)


def same_size(study: Study) -> list[list[str]]:
    """Networks that take the same images, two or more of them."""
    sizes: dict[int, list[str]] = {}
    for name in study.config.models:
        sizes.setdefault(SUBJECTS[name].image_size, []).append(name)
    return [names for names in sizes.values() if len(names) > 1]


def _sanity(study: Study, name: str, progress: Any) -> dict[str, Any]:
    test = study.test(name)
    return evaluation.sanity(
        study.base(name),
        test.images,
        test.labels,
        study.config.epsilon,
        key=study.key,
        num_images=2 if study.config.quick else 50,
        progress=progress,
    )


def _curves(study: Study, name: str, progress: Any) -> list[dict[str, Any]]:
    epsilons = CURVE[::2] if study.config.quick or SUBJECTS[name].slow else CURVE
    test = study.test(name)
    attacks: list[Attack] = [study.fgsm(), study.pgd()]
    found = []
    for done, attack in enumerate(attacks, start=1):
        found.append(
            evaluation.robustness_curve(
                attack,
                study.base(name),
                test.images,
                test.labels,
                epsilons,
                key=study.key,
                model=name,
            )
        )
        progress(done, len(attacks))
    return found


def sections(study: Study) -> list[dict[str, Any]]:
    """The sections of this part, in the order of the report."""
    found = [_epsilons(study)]
    if same_size(study):
        found.append(_transfer(study))
    return [*found, _shifts(study)]


def epsilon_attacks(study: Study, targeted: bool) -> list[tuple[str, float, Any]]:
    """(name, epsilon, attack) for FGSM and PGD at the epsilons of report B."""
    epsilons = EPSILONS[1:2] if study.config.quick else EPSILONS
    return [
        (kind, epsilon, make(epsilon, targeted=targeted))
        for kind, make in (("FGSM", study.fgsm), ("PGD", study.pgd))
        for epsilon in epsilons
    ]


def _epsilons(study: Study) -> dict[str, Any]:
    """Success, norms and confidences at each epsilon, as report B lists them."""
    tables, charts = [], []
    for targeted in (False, True):
        rows, lines = [], []
        for name in study.config.models:
            for kind in ("FGSM", "PGD"):
                chosen = [a for a in epsilon_attacks(study, targeted) if a[0] == kind]
                rates = []
                for _, epsilon, attack in chosen:
                    report = report_of(study, attack, name)
                    rates.append(evaluation.success_rate(report))
                    rows.append([name, kind, epsilon, rates[-1], *measures(report)])
                epsilons = [epsilon for _, epsilon, _ in chosen]
                lines.append(
                    blocks.line(
                        f"{name}, {kind}",
                        epsilons,
                        [rate["rate"] for rate in rates],
                        dashed=kind == "FGSM",
                        model=name,
                    )
                )
        aim = f"to {study.config.target}" if targeted else "untargeted"
        tables.append(
            blocks.table(
                ["Network", "Attack", blocks.column("Epsilon", decimals=2), "Success", *MEASURES],
                rows,
                CAPTION,
                title=f"FGSM and PGD, {aim}",
                folded=targeted,
            )
        )
        charts.append(
            blocks.chart(
                f"Success, {aim}",
                "epsilon",
                "success rate",
                lines,
                "Dashed: FGSM. The intervals are in the table.",
                percent=True,
            )
        )
    text = (
        "Report B names l2 norms of 0.0823 at epsilon 0.01 up to 0.8226 at 0.10. A sign step "
        "changes each of 3,072 values by epsilon, which makes 0.55 and 5.5 before clipping to [0, "
        "1]; the norms measured here are of that size, the published ones a seventh of it. Its "
        "success rates are ninths and twentieths: at most 20 photographs, of which each is 5 "
        "points."
    )
    return blocks.section(
        "epsilons", "Success over epsilon", [*charts, *tables], part=PART, text=[text]
    )


MEASURES = [
    blocks.column("l2", decimals=2, group="Mean norm"),
    blocks.column("linf", decimals=3, group="Mean norm"),
    blocks.column("wrong class", unit="%", decimals=0, group="Mean confidence in"),
    blocks.column("target", unit="%", decimals=0, group="Mean confidence in"),
    blocks.column("Steps for half", decimals=0),
]
CAPTION = (
    "Success is of the photographs that the network has right (targeted: of those of other "
    "classes). Norms are means over the successes, in pixel units; an l2 norm of 64x64 pixels is "
    "larger than one of 32x32 at the same epsilon. The confidence in the wrong class is the mean over "
    "successes, that in the target over all attacked. Steps for half: after so many, half of the "
    "photographs attacked were fooled; a dash where that never happened."
)


def measures(report: AttackReport) -> list[Any]:
    """Norms, confidences and the steps that half of the attacks needed: the columns MEASURES."""
    wins, confidences = report.success & report.attacked, evaluation.confidences(report)
    target = confidences["target"]
    return [
        float(report.l2[wins].mean()) if wins.any() else None,
        float(report.linf[wins].mean()) if wins.any() else None,
        confidences["wrong"]["mean"],
        None if target is None else target["mean"],
        evaluation.steps_for_success(report),
    ]


def _transfer(study: Study) -> dict[str, Any]:
    """Both directions between the two networks of each report, at every epsilon."""
    pairs = [
        (a, b)
        for a, b in (("mlp", "cnn"), ("simple_cnn", "resnet_small"))
        if {a, b} <= set(study.config.models)
    ] or [(names[0], names[1]) for names in same_size(study)]
    rows, lines = [], []
    for source, shown in [pair for a, b in pairs for pair in ((a, b), (b, a))]:
        for targeted in (False, True):
            for kind in ("FGSM", "PGD"):
                rates = []
                for name, epsilon, attack in epsilon_attacks(study, targeted):
                    if name != kind:
                        continue
                    report = report_of(study, attack, source)
                    found = evaluation.transfer_rates(report, study.base(shown))
                    rates.append((epsilon, found["of_right"]))
                    rows.append(
                        [
                            f"{source} to {shown}",
                            f"{kind}, {'targeted' if targeted else 'untargeted'}",
                            epsilon,
                            found["of_successes"],
                            found["of_right"],
                        ]
                    )
                if not targeted and kind == "PGD":
                    lines.append(blocks.line(f"{source} to {shown}", *zip(*rates, strict=True)))
    return blocks.section(
        "transfer-rates",
        "Transfer among the source's successes",
        [
            blocks.chart(
                "PGD, untargeted, of those right before",
                "epsilon",
                "transfer rate",
                lines,
                "Of the images that fool the source and that the other network has right when clean.",
                percent=True,
            ),
            blocks.table(
                [
                    "From and to",
                    "Attack",
                    blocks.column("Epsilon", decimals=2),
                    "Of all successes",
                    "Of those right before",
                ],
                rows,
                "Of all successes on the source, as report B counts: this includes photographs "
                "that the second network has wrong without any attack, so it flatters transfer to "
                "a weak network. The last column counts only those that it has right when clean "
                "(targeted: does not take for the target). photo_cnn takes larger images, so none "
                "are exchanged with it.",
                folded=True,
                title="All rates",
            ),
        ],
        part=PART,
        text=[
            "Report B finds far more transfer from the ResNet to the SimpleCNN (80 to 100 %) than "
            "back (43 to 79 %) and explains it by the ResNet's capacity. Look at the interval "
            "before the explanation."
        ],
    )


def _shifts(study: Study) -> dict[str, Any]:
    """How far the maps move under attack, with random noise of the same size as the control."""
    return study.stages.remember("shift of maps", lambda progress: _measure_shifts(study, progress))


def _measure_shifts(study: Study, progress: Any) -> dict[str, Any]:
    rows = []
    for done, name in enumerate(study.config.models, start=1):
        classifier, report = study.base(name), report_of(study, study.pgd(), name)
        chosen = np.flatnonzero(report.attacked)
        clean = jnp.asarray(report.clean_images[chosen])
        noise = jax.random.rademacher(study.key, clean.shape, jnp.float32) * study.config.epsilon
        shown = {
            "PGD": (jnp.asarray(report.images[chosen]), report.predictions[chosen]),
            "noise": (jnp.clip(clean + noise, 0, 1), None),
        }
        labels = jnp.asarray(report.clean_predictions[chosen])
        layer = attribution.layers(classifier, clean).default
        methods = ("saliency",) if layer is None else ("saliency", "grad_cam")
        for method in study.methods(name) if name == study.chosen else methods:
            explain = attribution.METHODS[method]
            before = explain(study.key, classifier, clean, labels)
            for kind, (images, answers) in shown.items():
                named = labels if answers is None else jnp.asarray(answers)
                for words, classes in (("the named class", named), ("the true class", labels)):
                    if kind == "noise" and words == "the true class":
                        continue  # the control keeps the class
                    after = explain(study.key, classifier, images, classes)
                    rows.append([name, method.replace("_", "-"), f"{kind}, map of {words}"])
                    rows[-1] += _shift(attribution.map_shift(before, after))
        progress(done, len(study.config.models))
    return blocks.section(
        "map-shift",
        "How far the maps move under attack",
        [
            blocks.table(
                [
                    "Network",
                    "Map",
                    "Against the clean map",
                    blocks.column("Cosine", decimals=2),
                    blocks.column("Rank correlation", decimals=2),
                    blocks.column("Centre of mass moves", unit="pixels", decimals=1),
                    blocks.column("n", decimals=0),
                ],
                rows,
                "Means, with 95 % intervals, over the n photographs that the network has right and "
                f"whose maps are not flat. PGD at epsilon {study.config.epsilon:g}; the control "
                "adds noise of plus or minus epsilon to every value. A map of another class moves "
                "also because it answers another question; that of the true class does not have "
                "this excuse.",
            )
        ],
        part=PART,
        text=[
            "Report B says that attacks make the networks look at the wrong features. If so, maps "
            "must move much more under attack than under noise of the same size."
        ],
    )


def _shift(shift: dict[str, Any]) -> list[Any]:
    found = []
    distances = jnp.linalg.norm(shift["centre_of_mass"], axis=-1)
    for measured in (shift["cosine"], shift["rank_correlation"], distances):
        found.append(estimate(np.asarray(measured, np.float64)))
    return [*found, int(np.isfinite(np.asarray(shift["cosine"])).sum())]
