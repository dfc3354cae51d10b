"""result.json: where an experiment's numbers go, with everything needed to make them again."""

import base64
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust._version import __version__

FORMAT = 1


def environment() -> dict[str, Any]:
    """Versions, device and commit: what a figure depends on besides its configuration."""
    versions = {name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    device = jax.devices()[0]
    return {
        "jaxrobust": __version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
        "num_cpus": os.cpu_count(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, marked where files differ from it; None outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def encode_array(array: Any) -> dict[str, Any]:
    """An array for JSON: {"dtype", "shape", "base64"}, little endian, C order."""
    array = np.ascontiguousarray(array)
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode(),
    }


def configuration(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def claim_run(folder: Path, config: dict[str, Any]) -> None:
    """Makes a run's folder this configuration's own, or recognises that it already is.

    Args:
      folder: results/<experiment>/<run>.
      config: JSON values.

    Raises:
      ValueError: The folder holds results of another configuration; they are left as they are. The
        message names the settings that differ.
    """
    path = folder / "config.json"
    if path.exists():
        theirs = json.loads(path.read_text())
        differing = [
            f"{name}: {theirs.get(name)!r} there, {config.get(name)!r} here"
            for name in sorted({*theirs, *config})
            if theirs.get(name) != config.get(name)
        ]
        if differing:
            raise ValueError(
                f"{folder} holds results of another configuration ({'; '.join(differing)}). "
                "Choose another `--run` name, or remove the folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a kill leaves the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _finite(value: Any) -> Any:
    """NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
