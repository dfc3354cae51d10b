"""Sanity checks: whether a measured robustness can be trusted.

If an attack fails, the classifier may be robust, or its gradients may be hidden from the attack. These
checks detect the second case.

References:
  Carlini et al., "On Evaluating Adversarial Robustness", 2019, sections 4 and 5,
  https://arxiv.org/abs/1902.06705
  Athalye, Carlini, Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018, section 3,
  https://arxiv.org/abs/1802.00420
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxrobust import checks, norms
from jaxrobust.attacks import APGD, Attack, RandomNoise, Square
from jaxrobust.evaluation.attack_report import epsilon_label
from jaxrobust.evaluation.classification import predictions
from jaxrobust.evaluation.execution import KEEP_IT, Execution, check_execution
from jaxrobust.evaluation.gradient_checks import QUESTIONS, check, gradient_checks, many
from jaxrobust.evaluation.search import Prepared, beat, prepare
from jaxrobust.programs import company
from jaxrobust.programs.company import unusual
from jaxrobust.types import LogitsFn, Progress, Stochastic, as_key

_STEPS, _FEW_STEPS, _QUERIES, _DRAWS = 100, 10, 300, 50

# The questions for an image that withstands everything: five times APGD, then APGD with few steps,
# noise and Square.
_ASKED_BY_ATTACKS = 5 * (_STEPS + 1) + (_FEW_STEPS + 1) + _DRAWS + (_QUERIES + 1)

MASKING = ("gradients", "finite differences", "unbounded attack", "black box", "random noise")
"""If one of these checks fails, the verdict is "gradient masking"."""


def sanity(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    epsilon: float,
    *,
    key: jax.Array,
    norm: str = "linf",
    num_images: int = 100,
    execution: Execution = Execution(),
) -> dict[str, Any]:
    """Checks that a classifier withstands attacks because it is robust.

    The white-box attack is APGD with 100 steps on the cross-entropy and, for the images that withstand
    it, on DLR, which does not vanish however large the logits are. "Many" images are at least 2 and
    more than 2 % of those attacked. The checks fail in these cases:

    - same answer twice: the logits of an image change from call to call, with its place in the batch,
      with the other images (as with BatchNorm in training mode), or when it is alone. A `Stochastic`
      classifier is exempt and is attacked through the mean of its samples.
    - logits: the classifier returns probabilities, and a second softmax flattens every loss.
    - gradients: for many images the gradient of the margin (the label against the best other class) is
      zero or not finite, at the image or at a random point of its ball.
    - saturation: for many images that gradient exists, but the gradient of the cross-entropy is zero or
      not finite. Only attacks on the cross-entropy fail because of it.
    - finite differences: for more than a quarter of the images the gradient does not predict how the
      margin changes over one epsilon (cosine below 0.5 over 16 random directions).
    - more steps: 10 steps fool many images that 100 steps do not fool.
    - larger epsilon: many images that are fooled at epsilon are not fooled at twice epsilon.
    - unbounded attack: many images are not fooled although every pixel may take any value. The attack
      starts from noise, so a class for which noise is never taken is easy to leave.
    - black box, random noise: 300 queries of Square, or 50 draws of noise, fool many images that the
      white-box attack does not fool. Square supports linf and l2.

    The verdict is "gradient masking" if any check of `MASKING` fails, else "suspicious" if another
    check fails or no image is classified correctly, else "sound". Sound does not mean robust; it means
    that the attacks work as they should.

    The cost is about that of three runs of APGD on the images that withstand the attacks.

    Args:
      logits_fn: Images float32 [B, H, W, C] in [0, 1] -> logits [B, K].
      images: [N, H, W, C], uint8 or floating point in [0, 1], with N at least 1.
      labels: int [N], the true classes.
      epsilon: The radius for which robustness is claimed, in pixel units, above 0.
      key: A PRNG key.
      norm: "linf", "l2" or "l1".
      num_images: The largest number of images to check, at least 1: the first of those that are
        classified correctly.
      execution: How many images to evaluate at a time; its `search_type` and `path` must have their
        defaults. `progress` is called with (name of the check, questions done, questions in all). All
        questions are those that are needed if every image withstands everything; those that are not
        needed count as done.

    Returns:
      A dict that JSON can hold: {"norm", "epsilon", "n": the number of images checked, "checks":
      [{"name", "passed": bool, or None if it does not apply, "detail": a sentence}], "verdict",
      "reason": one or more sentences}.

    Raises:
      TypeError: The labels are not integers, or `logits_fn` cannot be called.
      ValueError: The epsilon, the norm or a number is out of range, or `attack_dataset` would refuse
        the arguments.
    """
    check_execution(execution)
    execution.refuse("path", "sanity", KEEP_IT)
    execution.refuse("search_type", "sanity", "Its checks are of the classifier in float32.")
    checks.one_of("norm", norm, norms.NORMS)
    largest = 1.0 if norm == "linf" else math.inf
    checks.number("epsilon", epsilon, above=0.0, maximum=largest)
    checks.integer("num_images", num_images, minimum=1)
    epsilon, num_lanes = float(epsilon), execution.num_lanes
    prepared, key = prepare(logits_fn, images, labels, num_lanes, any_rows=True), as_key(key)
    prepared = _right_ones(prepared, num_images)
    n = len(prepared.labels)
    result = {"norm": norm, "epsilon": epsilon, "n": n}
    if not n:
        reason = "No image is classified right, so there is nothing to attack."
        return result | {"checks": [], "verdict": "suspicious", "reason": reason}
    # First the classifier's answers, then its gradients, then attacks.
    asked = _Asked(execution, n * (2 + QUESTIONS + _ASKED_BY_ATTACKS))
    with asked.part("same answer twice", 2 * n):
        found = [_same_answer(prepared, num_lanes), _logits(prepared)]
    is_random = found[0]["passed"] is False
    with asked.part("gradients", QUESTIONS * n) as told:
        found += gradient_checks(prepared, epsilon, norm, key, num_lanes, is_random, told)
    found += _attack_checks(prepared, epsilon, norm, key, asked)
    return result | {"checks": found} | _verdict(found, n)


class _Asked:
    """Counts the questions that have been asked and reports them part by part."""

    def __init__(self, execution: Execution, total: int) -> None:
        self.execution, self._total, self._done = execution, total, 0

    @contextlib.contextmanager
    def part(self, name: str, size: int) -> Iterator[Progress]:
        """Counts the block as `size` questions, whatever totals are reported inside it."""

        def told(_: str, done: int, total: int) -> None:
            asked = self._done + size * done // max(total, 1)
            self.execution.tell(name, asked, self._total)

        yield told
        told(name, 1, 1)
        self._done += size


def _right_ones(prepared: Prepared, num_images: int) -> Prepared:
    right = np.flatnonzero(predictions(prepared.clean_logits) == prepared.labels)[:num_images]
    return dataclasses.replace(
        prepared,
        images=prepared.images[right],
        labels=prepared.labels[right],
        clean_logits=prepared.clean_logits[right],
    )


def _verdict(found: list[dict[str, Any]], n: int) -> dict[str, str]:
    failed = [one for one in found if one["passed"] is False]
    masking = [one for one in failed if one["name"] in MASKING]
    if not failed:
        applied = sum(one["passed"] is not None for one in found)
        return {"verdict": "sound", "reason": f"All {applied} checks hold on {n} images."}
    verdict = "gradient masking" if masking else "suspicious"
    # Probabilities explain what else fails.
    named = (
        [one for one in failed if one["name"] == "logits" or one in masking] if masking else failed
    )
    return {
        "verdict": verdict,
        "reason": " ".join(f"{one['name'].capitalize()}: {one['detail']}" for one in named),
    }


def _same_answer(prepared: Prepared, num_lanes: int) -> dict[str, Any]:
    name, n = "same answer twice", len(prepared.labels)
    if isinstance(prepared.function, Stochastic):
        samples = prepared.function.num_samples
        return check(
            name, None, f"Declared to be random: attacked through the mean of {samples} answers."
        )
    images = prepared.images[:num_lanes]
    found = company.dependence(prepared.function, images, thorough=True)
    if found is not None:
        return check(name, False, str(found))
    return check(name, True, f"The logits of all {n} images are the same at a second look.")


def _logits(prepared: Prepared) -> dict[str, Any]:
    """Checks that the classifier returns logits."""
    noticed = unusual(prepared.clean_logits)
    sentence = " ".join(noticed) or "The classifier returns logits, not probabilities."
    return check("logits", not noticed, sentence)


def _attack_checks(
    prepared: Prepared, epsilon: float, norm: str, key: jax.Array, asked: _Asked
) -> list[dict[str, Any]]:
    """The checks of more steps, a larger epsilon, unbounded attack, black box and random noise."""
    n, shape = len(prepared.labels), prepared.images.shape[1:]

    def fools(name: str, attack: Attack, wanted: np.ndarray) -> np.ndarray:
        """Which wanted images the attack fools, bool [n]. All attacks use one key and equal starts."""
        with asked.part(name, n * (attack.num_steps + 1)) as told:
            if not wanted.any():
                return wanted
            execution = dataclasses.replace(asked.execution, progress=told)
            return beat(attack, prepared, wanted, key=key, execution=execution)[1]

    def apgd(epsilon: float, loss: str, num_steps: int = _STEPS) -> Attack:
        return APGD(epsilon, loss, num_iterations=num_steps, norm=norm)

    everything = np.ones(n, bool)
    by_entropy = fools("white box", apgd(epsilon, "ce"), everything)
    by_white_box = by_entropy | fools("white box", apgd(epsilon, "dlr"), ~by_entropy)
    # Only what the longer or larger attack left, or found, can speak against it.
    by_few = fools("more steps", apgd(epsilon, "ce", _FEW_STEPS), ~by_entropy)
    twice = min(2 * epsilon, _whole_box(norm, shape))
    lost = by_entropy & ~fools("larger epsilon", apgd(twice, "ce"), by_entropy)
    # The following attacks are for images that withstand the white-box attack with any number of steps.
    standing = ~(by_white_box | by_few)
    unbounded = _whole_box(norm, shape)
    left = standing & ~fools("unbounded attack", apgd(unbounded, "ce"), standing)
    left &= ~fools("unbounded attack", apgd(unbounded, "dlr"), left)
    noise = RandomNoise(epsilon, num_steps=_DRAWS - 1, norm=norm)
    by_noise = fools("random noise", noise, standing)
    total, withstand = f"Of {n} images", int((~by_entropy).sum())
    found = [
        check(
            "more steps",
            not many(by_few.sum(), n),
            f"{total} {withstand} withstand {_STEPS} steps of APGD; {_FEW_STEPS} steps fool "
            f"{int(by_few.sum())} of these.",
        ),
        check(
            "larger epsilon",
            not many(lost.sum(), n) if twice > epsilon else None,
            f"{total} {n - withstand} are fooled at epsilon {epsilon_label(epsilon)}; "
            f"{int(lost.sum())} of these are not at {epsilon_label(twice)}.",
        ),
        check(
            "unbounded attack",
            not many(left.sum(), n),
            f"{int(left.sum())} of {n} images stand when every pixel may take any value.",
        ),
    ]
    stands = f"{total} {int(standing.sum())} withstand the white box"
    if norm == "l1" or (norm == "l2" and min(shape[:2]) < 5):
        with asked.part("black box", n * (_QUERIES + 1)):
            pass
        found.append(
            check("black box", None, f"Square does not know {norm} for images of {shape}.")
        )
    else:
        square = Square(epsilon, num_steps=_QUERIES, norm=norm)
        by_square = fools("black box", square, standing)
        sentence = f"{stands}; {_QUERIES} queries of Square fool {int(by_square.sum())} of these."
        found.append(check("black box", not many(by_square.sum(), n), sentence))
    sentence = f"{stands}; {_DRAWS} draws of noise fool {int(by_noise.sum())} of these."
    found.append(check("random noise", not many(by_noise.sum(), n), sentence))
    return found


def _whole_box(norm: str, shape: tuple[int, ...]) -> float:
    """The radius within which all of [0, 1] lies, whatever the image."""
    size = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]
