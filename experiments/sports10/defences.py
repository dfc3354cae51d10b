"""Problem B: defences, attacked by those who know them and by those who do not; a certificate."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10 import folds
from experiments.sports10.folds import Variant
from experiments.sports10.networks import SUBJECTS
from experiments.sports10.study import Study
from jaxrobust import data, defenses, evaluation, models, pruning, studies, training
from jaxrobust.attacks import PGD
from jaxrobust.evaluation.answers import as_float
from jaxrobust.studies import ANY, comparison
from jaxrobust.studies.outcomes import right_ones

SIGMA = 0.25  # of the noise of randomised smoothing, in pixel units
RADII = (0.0, 0.125, 0.25, 0.375, 0.5)
SMALL = 0.01  # the second epsilon
# Shares of the bare network's epochs; an epoch of adversarial training takes as long as three of these.
ADVERSARIAL_SHARE, NOISE_SHARE = 2 / 5, 1 / 2
# Noisy copies of an image: for the attack's mean, for the vote, for the certificate.
COPIES = (16, 200, 1000)
ALARMS, BITS = 0.05, 5  # the false alarms of detectors, and the depth of a squeezed pixel in bits
# The names of the defences in the report, and in the files of the attacks on them.
WORDS = {
    "none": "none",
    "jpeg_75": "JPEG, quality 75",
    "jpeg_30": "JPEG, quality 30",
    "blur": "Gaussian smoothing, sigma 1",
    "adversarial": "adversarial training",
    "two_seeds": "ensemble of two seeds",
    "twins": "ensemble with its pruned and its int8 twin",
    "mean_probabilities": "ensemble with the robust network, mean probabilities",
    "mean_logits": "ensemble with the robust network, mean logits",
    "smoothing": "randomised smoothing",
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Noisy:
    """An augmentation followed by Gaussian noise, for training the network of randomised smoothing."""

    augment: data.augment.Augmentation | data.Resized
    sigma: float  # standard deviation of the noise in pixel units

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Augments float32 [B, H, W, C]; the result can be outside [0, 1]."""
        first, second = jax.random.split(key)
        moved = self.augment(first, images)
        return moved + self.sigma * jax.random.normal(second, moved.shape)


def measure(study: Study) -> None:
    """Adds the facts of the defences."""
    for name in study.defended:
        record = functools.partial(_answers, study, name)
        study.run.measure(f"answers of the defences, {name}", record)
        # The trainings are read back.
        trained = {"none": study.trained(name, study.config.seed)}
        trained["adversarial"] = _fitted(study, name, "adversarially")
        trained["smoothing"] = _fitted(study, name, "with noise")
        for defence, fitted in trained.items():
            keys = {"network": name, "defence": defence}
            study.facts.add("epochs of the defence", keys, value=len(fitted.history))
        if calibrated(study, name) is not None:
            record = functools.partial(_detect, study, name)
            study.run.measure(f"detectors, {name}", record)
        for epsilon in epsilons(study):
            compare(study.facts, name, epsilon)


def epsilons(study: Study) -> tuple[float, ...]:
    """Returns the small and the main epsilon, or only the main one if it is not larger."""
    main = study.config.epsilon
    return (SMALL, main) if main > SMALL else (main,)


def copies(study: Study) -> tuple[int, int, int]:
    """Returns `COPIES`, or fewer with --quick."""
    return (4, 20, 100) if study.config.quick else COPIES


def compare(facts: studies.Facts, network: str, epsilon: float) -> None:
    """Compares each defence's accuracy under an attacker who knows it with the bare network's."""

    def bare(keys: dict[str, Any]) -> dict[str, Any] | None:
        return None if keys["defence"] == "none" else keys | {"defence": "none"}

    keys = {"network": network, "attacker": "adaptive", "epsilon": epsilon}
    known = facts.where("defended accuracy", keys, defence=ANY)
    facts.extend(comparison.over_images(facts, known, bare, "defended difference"))


def twins(study: Study, name: str) -> tuple[Variant, Variant]:
    """Returns the smaller forms with which a network answers as an ensemble."""
    return Variant(name, "pruned", study.config.sparsities[-1]), Variant(name, "int8")


def _twin(study: Study, variant: Variant) -> models.Classifier:
    variables = folds.weights(study, variant, study.config.seed)
    return study.classifier(variant.network, pruning.dequantize(variables))


def calibrated(study: Study, name: str) -> tuple[str, data.Split] | None:
    """Returns what a detector is made for: a training, and photographs that it held out.

    This is the network of the first seed and the photographs that its recipe watches, or the network
    and the held-out photographs of the first fold; None if there is neither. Test photographs that a
    recipe watches do not count.
    """
    if study.watches(name) == "split":
        return "seed", study.watched(name, study.config.seed)
    return ("fold", study.held_out(name, 0)) if name in study.folded else None


def _detect(study: Study, name: str, facts: studies.Facts, progress: Any) -> None:
    """Adds how often detectors find attacks at a false alarm rate of 5 % on held-out photographs."""
    given, test, seed = calibrated(study, name), study.test(name), study.config.seed
    assert given is not None
    fold = None if given[0] == "seed" else 0
    network = study.classifier(name, study.trained(name, seed, fold).variables)
    coarse = defenses.Preprocessed(network, defenses.BitDepth(BITS))
    versions = (
        network,
        coarse,
        defenses.Preprocessed(network, defenses.MedianSmoothing(2), "true"),
    )

    def scores(images: Any) -> dict[str, np.ndarray]:
        logits = [jnp.asarray(evaluation.logits(version, images)) for version in versions]
        squeezed = defenses.squeezing_score(*logits)
        return {
            "squeezing": np.asarray(squeezed),
            "confidence": np.asarray(defenses.confidence_score(logits[0])),
        }

    held_out, clean = scores(given[1].images), scores(test.images)
    thresholds = {kind: defenses.detection_threshold(held_out[kind], ALARMS) for kind in held_out}
    right = right_ones(network, test.images, test.labels)
    for kind, threshold in thresholds.items():
        facts.add("false alarm", network=name, detector=kind, outcomes=clean[kind] > threshold)
        facts.add("held-out photographs", network=name, detector=kind, value=len(held_out[kind]))
    # Who knows the detectors makes the answers to the image and to its squeezed versions agree.
    attackers = {"unknowing": network, "adaptive": defenses.Ensemble(versions)}
    works = list(itertools.product(epsilons(study), attackers.items()))
    unseen: dict[Any, np.ndarray] = {}  # what the unknowing attacker reached
    for done, (epsilon, (attacker, target)) in enumerate(works, start=1):
        words = f", {given[0]}, with {'squeezers' if attacker == 'adaptive' else 'a detector'}"
        report = study.attack(study.make("PGD", epsilon), name, target, words)
        fooled = right & ~right_ones(network, report.images, test.labels)
        for kind, found in scores(report.images).items():
            if attacker == "adaptive" and kind != "squeezing":
                continue  # this attack does not know the detector
            keys = {"network": name, "detector": kind, "attacker": attacker, "epsilon": epsilon}
            seen = found > thresholds[kind]
            facts.add("detected", keys, outcomes=seen[fooled])
            # Who knows the detector can also attack the bare network.
            unseen[kind, epsilon] = fooled & ~seen | unseen.get((kind, epsilon), False)
            facts.add("fooled unseen", keys, outcomes=unseen[kind, epsilon][right])
        progress(f"{attacker} at {epsilon}", done, len(works))


def _fitted(study: Study, name: str, how: str) -> training.FitResult:
    """Trains a network "adversarially" or "with noise"; a finished training is read back."""
    share, changes = NOISE_SHARE, dict[str, Any]()
    if how == "adversarially":
        epsilon = study.config.epsilon
        share, changes["adversary"] = ADVERSARIAL_SHARE, PGD(epsilon, epsilon, 2)
    else:
        augment: Any = SUBJECTS[name].training.augmentation
        changes["augmentation"] = Noisy(augment, SIGMA)
    recipe = study.recipe(name, study.config.seed, share, **changes)
    return study.kept(name, study.fit(name, f"train {name} {how}", recipe))


def _defended(study: Study, name: str) -> dict[str, Any]:
    """Returns the defences by their keys, as differentiable functions from images to logits."""
    base = study.base(name)
    robust = study.classifier(name, _fitted(study, name, "adversarially").variables)
    found = {
        "none": base,
        "jpeg_75": defenses.Preprocessed(base, defenses.JPEG(75), "true"),
        "jpeg_30": defenses.Preprocessed(base, defenses.JPEG(30), "true"),
        "blur": defenses.Preprocessed(base, defenses.GaussianBlur(1.0), "true"),
        "adversarial": robust,
    }
    for seed in study.seeds_of(name)[1:2]:
        second = study.classifier(name, study.trained(name, seed).variables)
        found["two_seeds"] = defenses.Ensemble((base, second))
    found["twins"] = defenses.Ensemble((base, *(_twin(study, kind) for kind in twins(study, name))))
    found["mean_probabilities"] = defenses.Ensemble((base, robust))
    found["mean_logits"] = defenses.Ensemble((base, robust), average="logits")
    if study.config.quick:
        found = {key: found[key] for key in ("none", "jpeg_30", "adversarial", "twins")}
    noisy = study.classifier(name, _fitted(study, name, "with noise").variables)
    key, samples = jax.random.key(1), copies(study)[0]
    smoothed = defenses.Smoothed(noisy, SIGMA, samples, key, common_noise=True)
    return found | {"smoothing": smoothed}


def _right(study: Study, defence: Any, images: Any, labels: np.ndarray) -> np.ndarray:
    """Returns which images a defence has right; smoothing answers by votes over noisy copies."""
    if not isinstance(defence, defenses.Smoothed):
        return right_ones(defence, images, labels)
    pixels = jnp.asarray(as_float(images))
    votes = defenses.smoothed_counts(
        jax.random.key(2), defence.logits_fn, pixels, SIGMA, copies(study)[1]
    )
    return np.asarray(votes).argmax(axis=1) == labels


def _answers(study: Study, name: str, facts: studies.Facts, progress: Any) -> None:
    """Adds which photographs each defence has right, clean and under both attackers."""
    test, defended = study.test(name), _defended(study, name)
    attacks = {epsilon: study.make("PGD", epsilon) for epsilon in epsilons(study)}
    naive = {epsilon: study.attack(attack, name) for epsilon, attack in attacks.items()}
    for done, (key, defence) in enumerate(defended.items(), start=1):
        keys: dict[str, Any] = {"network": name, "defence": key}
        clean = _right(study, defence, test.images, test.labels)
        facts.add("defended accuracy", keys, outcomes=clean)
        for epsilon, report in naive.items():
            unknown = clean & _right(study, defence, report.images, test.labels)
            if key != "none":
                report = study.attack(attacks[epsilon], name, defence, f" with {WORDS[key]}")
            # An attacker who knows the defence can also attack the bare network.
            known = unknown & _right(study, defence, report.images, test.labels)
            for attacker, right in (("unknowing", unknown), ("adaptive", known)):
                keys |= {"attacker": attacker, "epsilon": epsilon}
                facts.add("defended accuracy", keys, outcomes=right)
        progress(key, done, len(defended) + 1)
    _certify(study, name, facts, defended["smoothing"])


def _certify(study: Study, name: str, facts: studies.Facts, smoothed: Any) -> None:
    """Adds, at each radius, the certified accuracy and the accuracy under PGD within the radius."""
    test, num_samples = study.test(name), copies(study)[2]
    images = jnp.asarray(as_float(test.images))
    sampling = defenses.Sampling(num_samples)
    found = defenses.certify_smoothed(study.key, smoothed.logits_fn, images, SIGMA, sampling)
    certified = defenses.certified_within(test.labels, found, RADII)
    right = _right(study, smoothed, test.images, test.labels)
    for radius, entry in zip(RADII, certified, strict=True):
        if radius:
            attack = PGD(radius, radius / 5, 5 if study.config.quick else 20, norm="l2")
            report = study.attack(attack, name, smoothed, f" with {WORDS['smoothing']}")
            # An attack within a smaller radius counts for a larger one too.
            right = right & _right(study, smoothed, report.images, test.labels)
        rate = evaluation.rate(int(entry["count"]), int(entry["n"]))
        facts.add_rate("certified accuracy", {"network": name, "radius": radius}, rate)
        facts.add("smoothed accuracy", network=name, radius=radius, outcomes=right)
