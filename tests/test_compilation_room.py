"""Compiled programs are let go before Linux refuses the process more memory mappings."""

import mmap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxrobust import compilation

AT_FIRST = dict(compilation._room)  # before any program is let go

has_mappings = pytest.mark.skipif(
    compilation._share_of_mappings() == 0, reason="only Linux limits a process's memory mappings"
)


@pytest.fixture(autouse=True)
def looking_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(compilation, "_room", AT_FIRST | {"next look": 0.0})


def traced_by(calls: int) -> list[int]:
    """Returns how often a function has been traced after each of some calls."""
    traces, counts = [], []

    @compilation.jit
    def plus_one(x: jax.Array) -> jax.Array:
        traces.append(None)
        return x + 1

    for _ in range(calls):
        assert float(plus_one(jnp.float32(1))) == 2.0
        counts.append(len(traces))
    return counts


@pytest.mark.parametrize("share", [0.49, 0.51])
def test_programs_are_let_go_above_half_of_the_limit(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(None))
    monkeypatch.setattr(compilation, "_share_of_mappings", lambda: share)
    traced_by(3)
    # What is left could not be let go, so the second look waits for more.
    assert len(cleared) == (share > 0.5)


def test_a_program_is_compiled_again_and_gives_the_same_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert traced_by(3) == [1, 1, 1]
    # The second and the third call let go, after which a tenth of the limit is taken.
    shares = iter([0.1, 0.6, 0.1, 0.6, 0.1, 0.54])
    monkeypatch.setattr(compilation, "_share_of_mappings", lambda: next(shares))
    assert traced_by(4) == [1, 2, 3, 3]


@has_mappings
def test_the_mappings_of_programs_are_counted_and_given_back() -> None:
    before = compilation._share_of_mappings()
    for size in range(1, 41):
        compilation.jit(lambda x, size=size: jnp.sort(x * size))(jnp.ones(size))
    full = compilation._share_of_mappings()
    assert before < full < 1
    compilation._room["most"] = (before + full) / 2
    compilation.make_room()
    assert compilation._share_of_mappings() < (before + full) / 2


@has_mappings
def test_mappings_of_other_kinds_are_counted_as_linux_counts_them() -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    before = compilation._share_of_mappings()
    # Mappings that can be shared with another process never merge with their neighbours.
    made = [mmap.mmap(-1, mmap.PAGESIZE) for _ in range(2_000)]
    grown = (compilation._share_of_mappings() - before) * limit
    assert 1_900 < grown < 2_100
    for mapping in made:
        mapping.close()


def test_a_lowered_program_makes_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(None))
    monkeypatch.setattr(compilation, "_share_of_mappings", lambda: 0.7)
    compilation.jit(lambda x: x).lower(jnp.float32(1)).compile()
    assert cleared


def test_on_a_gpu_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(None))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compilation, "_share_of_mappings", lambda: 0.7)
    compilation.make_room()
    assert not cleared


def test_nothing_is_looked_at_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(compilation, "_SECONDS_BETWEEN_LOOKS", 60.0)
    monkeypatch.setattr(compilation, "_share_of_mappings", lambda: looks.append(None) or 0.0)
    traced_by(5)
    assert len(looks) == 1


def test_elsewhere_than_on_linux_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(compilation.Path, "read_bytes", missing)
    assert compilation._share_of_mappings() == 0.0
