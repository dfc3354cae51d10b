"""Functions as jax traces them: the equations are a key, and closed-over arrays become arguments.

`as_argument` converts any classifier to a form that compiled code takes. What the classifier closes
over is read again at each call, and functions with equal equations share compiled code.
"""

from jaxrobust.programs.arguments import (
    as_argument,
    call,
    check_logits,
    explained,
    is_settled,
    logits_shape,
)
from jaxrobust.programs.describing import DescribedLayer, Description, describe
from jaxrobust.programs.evaluating import nested, walk
from jaxrobust.programs.guarding import guard
from jaxrobust.programs.naming import for_the_cpu, words
from jaxrobust.programs.steps import Nested, Step, StepList
from jaxrobust.programs.tracing import Program, fast, inside, trace
from jaxrobust.programs.watching import Watch, fingerprint

__all__ = [
    "DescribedLayer",
    "Description",
    "Nested",
    "Program",
    "Step",
    "StepList",
    "Watch",
    "as_argument",
    "call",
    "check_logits",
    "describe",
    "explained",
    "fast",
    "fingerprint",
    "for_the_cpu",
    "guard",
    "inside",
    "is_settled",
    "logits_shape",
    "nested",
    "trace",
    "walk",
    "words",
]
