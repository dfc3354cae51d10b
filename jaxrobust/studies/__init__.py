"""What the experiment scripts share: a command line, timed stages, result.json and its pictures."""

from jaxrobust.studies import blocks
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
    "Stages",
    "blocks",
    "commit",
    "configuration",
    "encode_array",
    "environment",
    "explanations",
    "finish",
    "gallery",
    "model_entry",
    "open_run",
    "result_header",
    "right_and_wrong",
    "run_script",
    "spread",
]
