"""Compiled programs are let go before Linux refuses the process more memory mappings."""

import mmap
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxrobust import compilation

has_mappings = pytest.mark.skipif(
    compilation._share_of_mappings() == 0, reason="only Linux limits a process's memory mappings"
)


@pytest.fixture(autouse=True)
def looking_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(compilation, "_room", {"next look": 0.0, "most": 0.5})


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
    # What is still there after the first time is not programs, so it is not looked for again.
    assert len(cleared) == (share > 0.5)


def test_a_program_is_compiled_again_and_gives_the_same_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert traced_by(3) == [1, 1, 1]
    shares = iter([0.1, 0.6, 0.1, 0.1])
    monkeypatch.setattr(compilation, "_share_of_mappings", lambda: next(shares))
    assert traced_by(3) == [1, 2, 2]


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
    # Neighbours with other rights do not merge, so each is a mapping of its own.
    rights = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    made = [mmap.mmap(-1, mmap.PAGESIZE, flags=flags, prot=rights[i % 2]) for i in range(2_000)]
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
