"""jaxrobust: how well an image classifier stands up to an adversary, measured in JAX.

Sub-packages load when they are first used, so `import jaxrobust` costs what `import jax` costs, and
attacking one's own model needs jax and numpy alone.
"""

import importlib
from typing import Any

import jax as _jax  # noqa: F401  (the one import everything shares)

from jaxrobust._version import __version__

_SUBPACKAGES = (
    "attacks",
    "attribution",
    "certificates",
    "checks",
    "compilation",
    "data",
    "defenses",
    "evaluation",
    "export",
    "files",
    "losses",
    "models",
    "norms",
    "ops",
    "packages",
    "programs",
    "pruning",
    "reports",
    "studies",
    "training",
    "types",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"jaxrobust.{name}")
    raise AttributeError(f"module 'jaxrobust' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
