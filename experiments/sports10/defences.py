"""Problem B: defences, each attacked as if unknown and as if known; a certificate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.networks import SUBJECTS
from experiments.sports10.robustness import report_of
from experiments.sports10.study import Study, rate_of
from jaxrobust import data, defenses, evaluation, training
from jaxrobust.attacks import PGD
from jaxrobust.evaluation.answers import as_float
from jaxrobust.evaluation.classification import predictions
from jaxrobust.studies import blocks

PART = "b"
SIGMA = 0.25  # of the noise of randomised smoothing, in pixel units
RADII = (0.0, 0.125, 0.25, 0.375, 0.5)
SMALL = 0.01  # the second epsilon
# Of the bare network's epochs: each epoch of adversarial training costs three.
ADVERSARIAL_SHARE, NOISE_SHARE = 2 / 5, 1 / 2
# Noisy copies of an image: for the attack's mean, for the vote, for the certificate.
COPIES = (16, 200, 1000)
SMOOTHING = "randomised smoothing"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Noisy:
    """An augmentation followed by Gaussian noise, as randomised smoothing wants its network trained.

    Attributes:
      augment: Applied first.
      sigma: Standard deviation of the noise in pixel units.
    """

    augment: data.augment.Augmentation | data.Resized
    sigma: float

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Augments float32 [B, H, W, C]; what it returns leaves [0, 1]."""
        first, second = jax.random.split(key)
        moved = self.augment(first, images)
        return moved + self.sigma * jax.random.normal(second, moved.shape)


def sections(study: Study) -> list[dict[str, Any]]:
    """The section on defences."""
    return [study.section("defences", lambda progress: _defences(study, progress))]


def adversarially_trained(study: Study, name: str) -> Any:
    """The network trained on PGD's points at the main epsilon; returns a classifier."""
    epsilon = study.config.epsilon
    fitted = study.fit(
        name,
        f"train {name} adversarially",
        _shorter(study, name, ADVERSARIAL_SHARE, adversary=PGD(epsilon, epsilon, 2)),
    )
    return study.classifier(name, fitted.variables)


def _shorter(study: Study, name: str, share: float, **changes: Any) -> training.Recipe:
    recipe = study.recipe(name)
    num_epochs = max(1, round(share * recipe.num_epochs))
    return dataclasses.replace(recipe, seed=study.config.seed, num_epochs=num_epochs, **changes)


def _noise_trained(study: Study, name: str) -> Any:
    augmentation: Any = SUBJECTS[name].training.augmentation
    fitted = study.fit(
        name,
        f"train {name} with noise",
        _shorter(study, name, NOISE_SHARE, augmentation=Noisy(augmentation, SIGMA)),
    )
    return study.classifier(name, fitted.variables)


@dataclasses.dataclass(frozen=True)
class Defence:
    """A defence as the two attackers meet it.

    Attributes:
      attacked: Images -> logits with a gradient: what an attacker who knows it attacks.
      answer: Images [N, H, W, C] -> classes, int [N].
    """

    attacked: Any
    answer: Callable[[Any], np.ndarray]


def _deterministic(classifier: Any) -> Defence:
    return Defence(classifier, lambda images: predictions(evaluation.logits(classifier, images)))


def _smoothing(study: Study, noisy: Any) -> Defence:
    """Attacked through its mean probabilities, answers by the votes that the certificate is about."""
    samples, votes = _copies(study)[:2]

    def answer(images: Any) -> np.ndarray:
        counts = defenses.smoothed_counts(
            jax.random.key(2), noisy, jnp.asarray(as_float(images)), SIGMA, votes
        )
        return np.asarray(counts).argmax(axis=1)

    smoothed = defenses.Smoothed(noisy, SIGMA, samples, jax.random.key(1), common_noise=True)
    return Defence(smoothed, answer)


def _defended(study: Study, name: str) -> dict[str, Defence]:
    """The defences by name."""
    base, robust = study.base(name), adversarially_trained(study, name)
    found = {
        "none": base,
        "JPEG, quality 75": defenses.Preprocessed(base, defenses.JPEG(75), "true"),
        "JPEG, quality 30": defenses.Preprocessed(base, defenses.JPEG(30), "true"),
        "Gaussian smoothing, sigma 1": defenses.Preprocessed(
            base, defenses.GaussianBlur(1.0), "true"
        ),
        "adversarial training": robust,
    }
    for seed in study.seeds_of(name)[1:2]:
        second = study.classifier(name, study.trained(name, seed).variables)
        found["ensemble of two seeds"] = defenses.Ensemble((base, second))
    found["ensemble with the robust network, mean probabilities"] = defenses.Ensemble(
        (base, robust)
    )
    found["ensemble with the robust network, mean logits"] = defenses.Ensemble(
        (base, robust), average="logits"
    )
    smoothing = _smoothing(study, _noise_trained(study, name))
    if study.config.quick:
        found = {words: found[words] for words in [*list(found)[:5:2], list(found)[-1]]}
    return {words: _deterministic(f) for words, f in found.items()} | {SMOOTHING: smoothing}


def _defences(study: Study, progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    name = study.chosen
    test = study.test(name)
    # The smaller one first; it is left out where the main one is no larger.
    main = study.config.epsilon
    epsilons = (SMALL, main) if main > SMALL else (main,)
    defended = _defended(study, name)
    naive = {epsilon: report_of(study, study.pgd(epsilon), name) for epsilon in epsilons}
    rows, groups = [], []
    standing: dict[str, list[Any]] = {}
    for done, (words, defence) in enumerate(defended.items(), start=1):
        clean = defence.answer(test.images) == test.labels
        row: list[Any] = [words, rate_of(clean)]
        standing[words] = []
        for epsilon in epsilons:
            unknown = clean & (defence.answer(naive[epsilon].images) == test.labels)
            report = naive[epsilon]
            if words != "none":
                report = study.attack(
                    study.pgd(epsilon), f"{name} with {words}", defence.attacked, test
                )
            known = clean & (defence.answer(report.images) == test.labels)
            # Who knows the defence can also do as if he did not.
            row += [rate_of(unknown), rate_of(known & unknown)]
            standing[words].append((known & unknown).tolist())
        rows.append(row)
        items = zip(("unknown", "adaptive"), row[2:4], strict=True)
        groups.append(
            {"name": words, "items": [{"name": kind, "value": value} for kind, value in items]}
        )
        progress(done, len(defended) + 1)
    chart, radius_rows = _certificate(study, name, defended[SMOOTHING])
    facts = {
        "defences": {
            row[0]: {"clean": row[1], "known": row[3::2], "standing": standing[row[0]]}
            for row in rows
        },
        "defended at": epsilons,
        "defended": name,
        "certified": radius_rows,
    }
    section = blocks.section(
        "defences",
        "Defences, attacked twice",
        [
            {
                "kind": "intervals",
                "title": f"Robust accuracy under PGD at {epsilons[0]:g}",
                "percent": True,
                "groups": groups,
                "caption": "An attacker who does not know the defence attacks the bare network and "
                "shows the defended one what he found; the adaptive one attacks the defence itself.",
            },
            blocks.table(
                [
                    "Defence",
                    "Clean accuracy",
                    *(
                        blocks.column(kind, group=f"Robust accuracy, epsilon {epsilon:g}")
                        for epsilon in epsilons
                        for kind in ("unknown", "adaptive")
                    ),
                ],
                rows,
                f"All on {name}, the first seed, PGD with {study.config.num_steps} steps on the "
                f"{len(test)} test photographs. JPEG: through the derivative of the codec with "
                "rounding passed straight through (BPDA). Gaussian smoothing: its own derivative. "
                "Randomised smoothing: attacked through the mean over the same "
                f"{_copies(study)[0]} noisy copies in every step (EOT), answered by the votes of "
                f"{_copies(study)[1]} others. Adversarial training: PGD with 2 steps at "
                f"{study.config.epsilon:g}; unknown means examples of the bare network. The "
                "adaptive figure counts a photograph as lost if either attack fools it. Epochs: "
                f"{study.recipe(name).num_epochs} of the bare network, "
                f"{_shorter(study, name, ADVERSARIAL_SHARE).num_epochs} of adversarial training, "
                f"{_shorter(study, name, NOISE_SHARE).num_epochs} with noise, which is added to "
                "images of the training size: what these lose on clean photographs is not their "
                "defence's doing alone.",
            ),
            chart,
            blocks.table(
                [
                    blocks.column("Radius, l2", decimals=3),
                    "Certified",
                    "Right under PGD, l2, EOT",
                ],
                radius_rows,
                f"Randomised smoothing with sigma {SIGMA:g} (Cohen et al. 2019), on a network "
                f"trained with this noise: 100 copies choose the class, {_copies(study)[2]:,} bound "
                "its probability, alpha 0.001. What is certified is a lower bound of what any "
                "attack leaves; PGD gives an upper one.",
                title="The certificate",
            ),
        ],
        part=PART,
    )
    return section, facts


def _copies(study: Study) -> tuple[int, int, int]:
    """`COPIES`, or what --quick makes of them."""
    return (4, 20, 100) if study.config.quick else COPIES


def _certificate(
    study: Study, name: str, smoothing: Defence
) -> tuple[dict[str, Any], list[list[Any]]]:
    test = study.test(name)
    images = jnp.asarray(as_float(test.images))
    noisy = smoothing.attacked.logits_fn
    found = defenses.certify(study.key, noisy, images, SIGMA, num_samples=_copies(study)[2])
    certified = [
        evaluation.rate(int(entry["count"]), int(entry["n"]))
        for entry in defenses.certified_accuracy(test.labels, found, RADII)
    ]
    right = smoothing.answer(test.images) == test.labels
    left = []
    for radius in RADII:
        if radius:
            attack = PGD(radius, radius / 5, 5 if study.config.quick else 20, norm="l2")
            report = study.attack(attack, f"{name} with {SMOOTHING}", smoothing.attacked, test)
            # A smaller radius lies within a larger one.
            right = right & (smoothing.answer(report.images) == test.labels)
        left.append(rate_of(right))
    chart = blocks.chart(
        "Certified and attacked accuracy of randomised smoothing",
        "l2 radius",
        "accuracy",
        [
            blocks.line("certified", RADII, certified),
            blocks.line("right under attack", RADII, left, dashed=True),
        ],
        "Any attack within the l2 radius leaves at least the lower line (each certificate with "
        "probability 0.999, for the exact majority vote), and PGD the upper one.",
        percent=True,
    )
    return chart, [list(row) for row in zip(RADII, certified, left, strict=True)]
