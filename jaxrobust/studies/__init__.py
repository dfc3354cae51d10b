"""Code that experiment scripts share: a command line, timed stages, facts and result.json."""

from jaxrobust.studies import comparison, records, suite_names, suite_run
from jaxrobust.studies.classifiers import (
    check_classifier,
    describe_inputs,
    load_model,
    num_parameters,
)
from jaxrobust.studies.command_line import check_settings, preset, run_script
from jaxrobust.studies.examples import Examples, load_examples
from jaxrobust.studies.facts import ANY, Fact, Facts, load_facts, load_outcomes
from jaxrobust.studies.galleries import explanations, gallery, right_and_wrong, spread
from jaxrobust.studies.results import (
    Trained,
    commit,
    configuration,
    environment,
    model_entry,
)
from jaxrobust.studies.run import Run, start
from jaxrobust.studies.stages import Stages, plain

__all__ = [
    "ANY",
    "Examples",
    "Fact",
    "Facts",
    "Run",
    "Stages",
    "Trained",
    "check_classifier",
    "check_settings",
    "commit",
    "comparison",
    "configuration",
    "describe_inputs",
    "environment",
    "explanations",
    "gallery",
    "load_examples",
    "load_facts",
    "load_model",
    "load_outcomes",
    "model_entry",
    "num_parameters",
    "plain",
    "preset",
    "records",
    "right_and_wrong",
    "run_script",
    "spread",
    "start",
    "suite_names",
    "suite_run",
]
