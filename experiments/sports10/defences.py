"""Problem B: defences, each attacked as if unknown and as if known; a certificate."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.networks import RECIPES
from experiments.sports10.robustness import report_of
from experiments.sports10.study import Study
from jaxrobust import data, defenses, evaluation
from jaxrobust.attacks import PGD
from jaxrobust.evaluation.classification import predictions
from jaxrobust.studies import blocks

PART = "b"
SIGMA = 0.25  # of the noise of randomised smoothing, in pixel units
RADII = (0.0, 0.125, 0.25, 0.375, 0.5)
EOT_SAMPLES, VOTES = 16, 200


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Noisy:
    """An augmentation followed by Gaussian noise, as randomised smoothing wants its network trained.

    Attributes:
      augment: Applied first.
      sigma: Standard deviation of the noise in pixel units.
    """

    augment: data.augment.Augmentation
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
    config = study.recipe(name)
    epsilon = study.config.epsilon
    fitted = study.fit(
        name,
        f"train {name} adversarially",
        dataclasses.replace(
            config, seed=study.config.seed, num_epochs=max(1, config.num_epochs * 2 // 3)
        ),
        attack=PGD(epsilon, epsilon, 2),
    )
    return study.classifier(name, fitted.variables)


def _noise_trained(study: Study, name: str) -> Any:
    fitted = study.fit(
        name,
        f"train {name} with noise",
        dataclasses.replace(study.recipe(name), seed=study.config.seed),
        augment=Noisy(RECIPES[name].augment, SIGMA),
    )
    return study.classifier(name, fitted.variables)


def _defences(study: Study, progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    name = study.config.models[-1]
    test, base = study.test(name), study.base(name)
    robust, noisy = adversarially_trained(study, name), _noise_trained(study, name)
    seeds = study.seeds_of(name)
    others = [study.classifier(name, study.trained(name, s).variables) for s in seeds[1:2]]
    second = others[0] if others else robust
    epsilons = (0.01, study.config.epsilon)
    samples = 4 if study.config.quick else EOT_SAMPLES
    votes = 20 if study.config.quick else VOTES
    defended: dict[str, tuple[Any, Any]] = {  # (what is attacked by who knows it, what answers)
        "none": (base, base),
        "JPEG, quality 75": (defenses.Preprocessed(base, defenses.JPEG(75), "true"),) * 2,
        "JPEG, quality 30": (defenses.Preprocessed(base, defenses.JPEG(30), "true"),) * 2,
        "Gaussian smoothing, sigma 1": (
            defenses.Preprocessed(base, defenses.GaussianBlur(1.0), "true"),
        )
        * 2,
        "adversarial training": (robust, robust),
        "ensemble of two seeds": (defenses.Ensemble((base, second)),) * 2,
        "ensemble with the robust network, mean probabilities": (defenses.Ensemble((base, robust)),)
        * 2,
        "ensemble with the robust network, mean logits": (
            defenses.Ensemble((base, robust), average="logits"),
        )
        * 2,
        "randomised smoothing": (
            defenses.Smoothed(noisy, SIGMA, samples, jax.random.key(1), common_noise=True),
            defenses.Smoothed(noisy, SIGMA, votes, jax.random.key(2), common_noise=True),
        ),
    }
    naive = {epsilon: report_of(study, study.pgd(epsilon), name) for epsilon in epsilons}
    rows, groups, standing = [], [], {}
    for done, (words, (attacked, answering)) in enumerate(defended.items(), start=1):
        clean = predictions(evaluation.logits(answering, test.images)) == test.labels
        row: list[Any] = [words, _rate(clean)]
        items = []
        for epsilon in epsilons:
            unknown = clean & (
                predictions(evaluation.logits(answering, naive[epsilon].images)) == test.labels
            )
            report = study.attack(study.pgd(epsilon), f"{name} with {words}", attacked, test)
            known = clean & (
                predictions(evaluation.logits(answering, report.images)) == test.labels
            )
            # Who knows the defence can also do as if he did not.
            row += [_rate(unknown), _rate(known & unknown)]
            standing[words] = (known & unknown).tolist()  # at the last, the main epsilon
            if epsilon == epsilons[0]:
                items = [
                    {"name": "unknown", "value": row[-2]},
                    {"name": "adaptive", "value": row[-1]},
                ]
        rows.append(row)
        groups.append({"name": words, "items": items})
        progress(done, len(defended) + 1)
    chart, radius_rows = _certificate(study, name, noisy, defended["randomised smoothing"])
    facts = {
        "defences": {
            row[0]: {"clean": row[1], "small": row[3], "main": row[5], "standing": standing[row[0]]}
            for row in rows
        },
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
                "50 test "
                "photographs. JPEG: through the derivative of the codec with rounding passed straight "
                "through (BPDA). Gaussian smoothing: its own derivative. Randomised smoothing: "
                "mean over "
                f"{samples} noisy copies (EOT); {votes} other copies answer. Adversarial "
                "training: PGD with 2 steps "
                f"at {study.config.epsilon:g}; unknown means examples of the bare network. The "
                "adaptive figure counts a "
                "photograph as lost if either attack fools it.",
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
                "trained with "
                "this noise: 100 copies choose the class, 1,000 bound its probability, alpha .001. "
                "What is certified must not exceed what an attack leaves.",
                title="The certificate",
            ),
        ],
        part=PART,
    )
    return section, facts


def _certificate(
    study: Study, name: str, noisy: Any, smoothed: tuple[Any, Any]
) -> tuple[dict[str, Any], list[list[Any]]]:
    test = study.test(name)
    images = jnp.asarray(test.images / np.float32(255))
    found = defenses.certify(
        study.key, noisy, images, SIGMA, num_samples=100 if study.config.quick else 1000
    )
    certified = [
        evaluation.rate(int(entry["count"]), int(entry["n"]))
        for entry in defenses.certified_accuracy(test.labels, found, RADII)
    ]
    attacked, answering = smoothed
    left = []
    for radius in RADII:
        right = predictions(evaluation.logits(answering, test.images)) == test.labels
        if radius:
            attack = PGD(radius, radius / 5, 5 if study.config.quick else 20, norm="l2")
            report = study.attack(attack, f"{name} with randomised smoothing", attacked, test)
            right &= predictions(evaluation.logits(answering, report.images)) == test.labels
        left.append(_rate(right))
    chart = blocks.chart(
        "Certified and attacked accuracy of randomised smoothing",
        "l2 radius",
        "accuracy",
        [
            blocks.line("certified", RADII, certified),
            blocks.line("right under attack", RADII, left, dashed=True),
        ],
        "The truth lies between the two.",
        percent=True,
    )
    return chart, [list(row) for row in zip(RADII, certified, left, strict=True)]


def _rate(right: np.ndarray) -> evaluation.Rate:
    return evaluation.rate(int(right.sum()), len(right))
