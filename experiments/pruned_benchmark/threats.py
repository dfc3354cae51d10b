"""The seven attacks, with the source's parameters and with those of their papers at 8/255.

The source runs ART with the parameters of its table 7. Read against ART's code they mean:

    CW      10 steps for each of 10 constants, the default of ART: it stops before it has found the
            smallest perturbation, or any.
    DF      an overshoot of 1e-6, so that images end on the base network's own boundary, and 5 steps.
    FGSM    0.2 of the range from black to white; table 7's 100 iterations do not exist.
    BiM     epsilon 1: every image may become any other.
    PGD     ART starts at the image by default: this is BiM with epsilon 0.3.
    APGD    five starts, of which the later attack only what the first has left; here one.
    UP      epsilon 10 where pixels end at 1: no bound at all; one pass over the test images.

ART's CW halves and doubles its steps by a line search of its own; here it is the paper's Adam, with as
many steps and constants. DeepFool here steps 1e-4 beyond the boundary besides. Both leave images that
are wrong without an attack as they are, where ART moves them too.
"""

import dataclasses
from typing import Any

from jaxrobust.attacks import APGD, BIM, FGSM, PGD, CarliniWagner, DeepFool, RandomNoise
from jaxrobust.types import Attack

ATTACKS = ("CW", "DF", "FGSM", "BiM", "PGD", "APGD", "UP")  # the source's names and order
NOISE = "noise"  # uniform in the ball: what an attack has to beat, and much at 0.3
NAMES = (*ATTACKS, NOISE)
# As files and stages are named; `words` is for readers.
SETTINGS = ("source", "8/255")

EPSILON = 8 / 255
RADIUS = (
    0.5  # of the l2 ball in which CW's and DeepFool's perturbations count, and usual on CIFAR-10
)
SMALL = 1 / 255  # where networks that were not trained against attacks still differ
WHITE_BOX = ("FGSM at 8/255", "PGD at 8/255", "APGD at 1/255")


def words(setting: str) -> str:
    """One of `SETTINGS` in words."""
    return "source's parameters" if setting == "source" else setting


@dataclasses.dataclass(frozen=True)
class Universal:
    """Arguments of `evaluation.universal_perturbation`.

    Attributes:
      epsilon: Radius of the linf ball.
      max_passes: Over the images.
      num_steps: Of DeepFool.
      overshoot: Of DeepFool.
      on_test: Whether it is made on the images that it is then shown with, as in the source; else on
        as many training images, as "universal" promises.
    """

    epsilon: float
    max_passes: int
    num_steps: int = 10
    overshoot: float = 0.02
    on_test: bool = False


UNIVERSAL_BATCH = 4  # DeepFool on so many images together; 1 is the paper's, and slower


def attacks(max_steps: int | None = None) -> dict[str, dict[str, Attack | Universal]]:
    """{setting: {name: attack}}, with at most so many steps where that is given."""
    source: dict[str, Any] = {
        "CW": CarliniWagner(
            learning_rate=0.01, initial_constant=0.01, num_iterations=10, num_searches=10
        ),
        "DF": DeepFool(overshoot=1e-6, num_steps=5),
        "FGSM": FGSM(0.2),
        "BiM": BIM(1.0, 0.1, 100, keep="last"),
        "PGD": PGD(0.3, 0.1, 100, random_start=False, keep="last"),
        "APGD": APGD(0.3, num_iterations=100),
        "UP": Universal(1.0, max_passes=1, on_test=True),
        NOISE: RandomNoise(0.3),
    }
    honest: dict[str, Any] = {
        "CW": CarliniWagner(
            learning_rate=0.01, initial_constant=0.01, num_iterations=100, num_searches=5
        ),
        "DF": DeepFool(),
        "FGSM": FGSM(EPSILON),
        "BiM": BIM(EPSILON, 2 / 255, 10),
        "PGD": PGD(EPSILON, 2 / 255, 20),
        "APGD": APGD(EPSILON, num_iterations=100),
        "UP": Universal(EPSILON, max_passes=5),
        NOISE: RandomNoise(EPSILON),
    }
    return {
        setting: {name: _cut(attack, max_steps) for name, attack in found.items()}
        for setting, found in zip(SETTINGS, (source, honest), strict=True)
    }


def white_box(max_steps: int | None = None) -> dict[str, Attack]:
    """What is made on every network itself: `WHITE_BOX`, and the smallest perturbation.

    Of the seven those that a CPU can make on every network. CW would take as long as all of it; BiM
    is PGD here, but for its start.
    """
    pgd, apgd = PGD(EPSILON, 2 / 255, 20), APGD(SMALL, num_iterations=50)
    made: tuple[Attack, ...] = (FGSM(EPSILON), pgd, apgd)
    found: dict[str, Attack] = dict(zip(WHITE_BOX, made, strict=True)) | {"DeepFool": DeepFool()}
    return {name: _cut(attack, max_steps) for name, attack in found.items()}


def _cut(attack: Any, max_steps: int | None) -> Any:
    if max_steps is None:
        return attack
    steps = {"num_steps", "num_iterations", "num_searches", "max_passes"}
    fields = steps & {field.name for field in dataclasses.fields(attack)}
    fewer = {name: min(getattr(attack, name), max_steps) for name in fields}
    return dataclasses.replace(attack, **fewer)
