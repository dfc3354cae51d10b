"""What the experiment scripts share: a command line, timed stages, result.json and its pictures."""

from jaxrobust.studies import blocks, suite_run, suites
from jaxrobust.studies.classifiers import (
    check_classifier,
    describe_inputs,
    load_classifier,
    load_model,
    num_parameters,
)
from jaxrobust.studies.examples import Examples, load_examples
from jaxrobust.studies.pictures import explanations, gallery, right_and_wrong, spread
from jaxrobust.studies.results import (
    commit,
    configuration,
    encode_array,
    environment,
    model_entry,
    result_header,
)
from jaxrobust.studies.script import Stages, finish, open_run, run_script

__all__ = [
    "Examples",
    "Stages",
    "blocks",
    "check_classifier",
    "commit",
    "configuration",
    "describe_inputs",
    "encode_array",
    "environment",
    "explanations",
    "finish",
    "gallery",
    "load_classifier",
    "load_examples",
    "load_model",
    "model_entry",
    "num_parameters",
    "open_run",
    "result_header",
    "right_and_wrong",
    "run_script",
    "spread",
    "suite_run",
    "suites",
]
