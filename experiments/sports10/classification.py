"""Problem A: accuracy and its uncertainty, confusions, and maps that explain the answers."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.sports10.robustness import methods
from experiments.sports10.study import Study
from jaxrobust import attribution, evaluation, studies
from jaxrobust.evaluation.classification import predictions, softmax
from jaxrobust.reports.pictures import decode_array, encode_array
from jaxrobust.studies import ANY, comparison

CASCADED = ("saliency", "integrated_gradients", "grad_cam", "hires_cam", "eigen_cam")


def measure(study: Study) -> dict[str, Any]:
    """Adds the facts of this problem; returns the records and pictures that its template draws."""
    remember, entries, explained = study.run.stages.remember, [], []
    for name in study.config.models:
        entry = remember(f"evaluate {name}", functools.partial(_evaluate, study, name))
        entries.append(entry | {"description": None})  # earlier runs saved a description
        explained += remember(f"explain {name}", functools.partial(_explain, study, name))
    _counts(study)
    _seeds(study, entries)
    _folds(study)
    _ensembles(study)
    maps = remember(f"maps of every method, {study.chosen}", functools.partial(_maps, study))
    _faithfulness(study, maps)
    maps["maps"] = {method: decode_array(array) for method, array in maps["maps"].items()}
    maps["steps"] = _num_steps(study)
    return {"entries": entries, "explanations": explained, "maps": maps}


def _evaluate(study: Study, name: str, _: Any) -> dict[str, Any]:
    """Returns the record of the network of the first seed, with the accuracy of all seeds."""
    fitted, test = study.trained(name, study.config.seed), study.test(name)
    entry = studies.model_entry(
        name,
        study.base(name),
        test.images,
        test.labels,
        study.class_names,
        trained=studies.Trained(fitted.history, fitted.seconds_per_epoch),
    )
    seeds = []
    for seed in study.seeds_of(name):
        fitted = study.trained(name, seed)
        classifier = study.classifier(name, fitted.variables)
        found = evaluation.evaluate(classifier, test.images, test.labels)
        kept = {"seed": seed, "accuracy": found["accuracy"], "epochs": len(fitted.history)}
        if study.watches(name) == "test":
            right = [round(row["validation_accuracy"] * len(test)) for row in fitted.history]
            kept["best"] = evaluation.rate(max(right), len(test))
        seeds.append(kept)
    return entry | {"seeds": seeds}


def _explain(study: Study, name: str, _: Any) -> list[dict[str, Any]]:
    """Explains an image that the network has right and one that it has wrong, of three classes."""
    base, test = study.base(name), study.test(name)
    answers = evaluation.logits(base, test.images).argmax(axis=1)
    chosen = studies.right_and_wrong(answers, test.labels, num_classes=3)
    return studies.explanations(
        base, test.images, test.labels, chosen, model=name, class_names=study.class_names
    )


def _counts(study: Study) -> None:
    """Adds the number of photographs of each class."""
    dataset = study.dataset(study.config.models[0])
    for split in ("train", "test"):
        counts = np.bincount(getattr(dataset, split).labels, minlength=dataset.num_classes)
        for name, count in zip(dataset.class_names, counts, strict=True):
            study.facts.add("photographs", split=split, label=name, value=count)


def _seeds(study: Study, entries: list[dict[str, Any]]) -> None:
    """Adds the accuracy of every seed, and the mistakes of the first, most frequent first."""
    facts = study.facts
    for entry in entries:
        network = entry["name"]
        facts.add("parameters", network=network, value=entry["num_parameters"])
        for row in entry["seeds"]:
            keys = {"network": network, "seed": row["seed"]}
            facts.add_rate("accuracy", keys, row["accuracy"])
            facts.add("epochs", keys, value=row["epochs"])
            if "best" in row:
                facts.add_rate("accuracy of the best epoch", keys, row["best"])
        mistakes = evaluation.mistakes(entry["evaluation"]["confusion_matrix"])
        facts.add("mistakes", network=network, value=sum(count for *_, count in mistakes))
        for true, taken, count in mistakes:
            keys = {"label": study.class_names[true], "answer": study.class_names[taken]}
            facts.add("mistake", keys, network=network, value=count)
    measured = facts.where("accuracy", network=ANY, seed=ANY)
    facts.extend(comparison.means(measured, "seed", "accuracy over seeds"))


def _folds(study: Study) -> None:
    """Adds the held-out accuracies, and tests of the differences between networks."""
    facts, compared = study.facts, []
    dense = facts.where("right of held-out", network=ANY, kind="dense", sparsity=0.0)
    right = {fact.keys["network"]: np.asarray(fact.outcomes) for fact in dense}
    held_out = {n: facts.add("held-out accuracy", network=n, outcomes=r) for n, r in right.items()}
    for a, b in itertools.combinations(right, 2):
        keys = {"network": b, "against": a}
        compared.append(comparison.paired(held_out[b], held_out[a], "held-out difference", keys))
        facts.add("only this right", keys, value=int((right[b] & ~right[a]).sum()))
        facts.add("only other right", keys, value=int((right[a] & ~right[b]).sum()))
    facts.extend(comparison.corrected(compared))


def _ensembles(study: Study) -> None:
    """Adds the accuracy of ensembles of networks that differ in their seed."""
    name, seeds, test = study.chosen, study.seeds_of(study.chosen), study.test(study.chosen)
    members = [study.classifier(name, study.trained(name, seed).variables) for seed in seeds]
    probabilities = [softmax(evaluation.logits(member, test.images)) for member in members]
    size = sum(leaf.size for leaf in jax.tree.leaves(members[0].variables["params"]))
    for count in range(1, len(seeds) + 1) if len(seeds) > 1 else ():
        right = [
            int((np.mean(chosen, axis=0).argmax(axis=1) == test.labels).sum())
            for chosen in itertools.combinations(probabilities, count)
        ]
        facts, of = study.facts, {"network": name, "members": count}
        facts.add("ensemble accuracy", of, value=np.mean(right) / len(test))
        facts.add("ensemble choices", of, value=len(right))
        facts.add("ensemble parameters", of, value=count * size)
        facts.add("ensemble fewest", of, value=min(right))
        facts.add("ensemble most", of, value=max(right))


def _num_steps(study: Study) -> int:
    """Returns the number of steps of the curves of deletion and insertion."""
    return 5 if study.config.quick else 20


def _maps(study: Study, progress: Any) -> dict[str, Any]:
    """Runs every method of attribution on one network: maps of a few images, figures of all."""
    name, quick = study.chosen, study.config.quick
    classifier, test, images = study.base(name), study.test(name), study.pixels(name)
    predicted = predictions(evaluation.logits(classifier, test.images))
    chosen = studies.right_and_wrong(predicted, test.labels, num_classes=3)
    found: dict[str, Any] = {"images": chosen, "answers": predicted[chosen].tolist()}
    found |= {"maps": {}, "scores": {}, "layers": [], "correlations": {}}

    def judge(method: str, maps: Any) -> None:
        curves = {"deletion": attribution.deletion_curve, "insertion": attribution.insertion_curve}
        what, steps = (classifier, images, maps, jnp.asarray(predicted)), _num_steps(study)
        found["scores"][method] = {
            kind: np.asarray(curve(*what, num_steps=steps)["auc"]).tolist()
            for kind, curve in curves.items()
        }

    allowed = methods(study, name)
    for done, method in enumerate(allowed, start=1):
        explain = attribution.METHODS[method]
        maps = np.asarray(explain(study.key, classifier, images, jnp.asarray(predicted)))
        found["maps"][method] = encode_array(maps[chosen].astype(np.float32))
        judge(method, maps)
        progress(method, done, len(allowed) + 2)
    judge("random", attribution.random_maps(study.key, images.shape[:3]))
    cascaded = [method for method in CASCADED if method in allowed]
    for method in cascaded[:1] if quick else cascaded:
        cascade = attribution.cascading_randomisation(
            study.key,
            attribution.METHODS[method],
            lambda variables: dataclasses.replace(classifier, variables=variables),
            classifier.variables,
            images[:: 15 if quick else 3],
        )
        found["layers"] = list(cascade["layers"])
        found["correlations"][method] = np.asarray(cascade["rank_correlation"]).tolist()
    return found


def _faithfulness(study: Study, maps: dict[str, Any]) -> None:
    """Adds deletion and insertion, also against random maps, and correlations under randomisation."""
    for method, scores in maps["scores"].items():
        keys = {"network": study.chosen, "method": method}
        for kind, values in scores.items():
            study.facts.add_mean(kind, keys, values)
            if method != "random":
                gaps = np.array(values, float) - np.array(maps["scores"]["random"][kind], float)
                study.facts.add_mean(f"{kind} to random", keys, gaps)
        for layers, values in enumerate(maps["correlations"].get(method, ()), start=1):
            study.facts.add_mean("randomised correlation", keys, values, layers=layers)
