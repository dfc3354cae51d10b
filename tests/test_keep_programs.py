"""Scripts keep what they have compiled: a second run of the same script compiles nothing."""

import os
import subprocess
import sys

import jax
import pytest

from jaxrobust import compilation

SCRIPT = """
import dataclasses

import jax
import jax.numpy as jnp

from jaxrobust import attacks, models, studies

EVENTS = []


@dataclasses.dataclass(frozen=True)
class Settings:
    \"\"\"None.\"\"\"


def main(settings):
    network = models.create("cnn", widths=(4, 4, 4, 4, 4))
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    classifier = models.Classifier(network.apply, network.init(jax.random.key(1), images))
    attacks.PGD(0.1, 0.03, 2)(jax.random.key(2), classifier, images, jnp.zeros(4, int))
    missed = sum(event == "/jax/compilation_cache/cache_misses" for event in EVENTS)
    print(missed, jax.config.jax_compilation_cache_dir)


jax.monitoring.register_event_listener(lambda event, **_: EVENTS.append(event))
studies.run_script(main, Settings)
"""


def run(folder, **variables):
    (folder / "script.py").write_text(SCRIPT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    found = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=kept | {"XDG_CACHE_HOME": str(folder / "cache"), "JAXROBUST_ONEDNN": "0"} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "UserWarning" not in found.stderr
    missed, where = found.stdout.split()
    return int(missed), where


@pytest.mark.slow
def test_a_second_run_compiles_nothing(tmp_path):
    first, where = run(tmp_path)
    assert first > 0 and where.startswith(str(tmp_path / "cache" / "jaxrobust"))
    assert run(tmp_path) == (0, where)
    # Where users have chosen a folder, it is theirs. Programs of oneDNN cannot be kept in it; of that
    # there is no warning.
    own = str(tmp_path / "own")
    variables = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAXROBUST_ONEDNN": ""}
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=own, **variables)[1] == own


def test_programs_that_were_not_used_for_longest_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here, earlier = compilation.cache_folder(), compilation.cache_folder().with_name("earlier")
    for folder in (here, earlier):
        (folder / "programs").mkdir(parents=True)
        (folder / "onednn.json").write_text("[]")
    paths = [folder / "programs" / name for folder in (here, earlier) for name in ("a", "b")]
    # Written at 4, 3, 2 and 1, and read at 4, 9, 2 and 1.
    for number, path in enumerate(paths):
        path.write_bytes(bytes(10))
        os.utime(path, (9 if number == 1 else 4 - number, 4 - number))
    monkeypatch.setattr(compilation, "_MOST_KEPT", 25)
    before = jax.config.jax_compilation_cache_dir
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before  # that of the tests, which is not ours
    assert all(path.exists() for path in paths)
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        compilation.keep_programs()
        assert jax.config.jax_compilation_cache_dir == str(here / "programs")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert [path.exists() for path in paths] == [True, True, False, False]
    assert (here / "onednn.json").exists() and (earlier / "onednn.json").exists()
    compilation._remove_unused([tmp_path / "gone", *paths], 15)
    assert [path.exists() for path in paths] == [False, True, False, False]
