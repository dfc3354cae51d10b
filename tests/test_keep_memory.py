"""Scripts keep the memory of arrays that are freed: the next arrays need no new pages."""

import os
import platform
import subprocess
import sys

import pytest

from jaxrobust import compilation

SCRIPT = """
import ctypes
import resource
import sys
import threading

import numpy as np

from jaxrobust import compilation

if "keep" in sys.argv:
    compilation.keep_memory()
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which there would be few


def measure():
    for size in (48, 96):  # in MiB; the heap of a thread has 64
        np.ones(size * 2**20, np.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            np.ones(size * 2**20, np.uint8)
        pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5
        print(pages * resource.getpagesize() / (size * 2**20))


measure()
thread = threading.Thread(target=measure)  # as those in which XLA computes
thread.start()
thread.join()
"""


def new_share(*arguments: str, **variables: str) -> list[float]:
    """Returns the share of its memory that an array of 48 and one of 96 MiB gets anew from Linux.

    First in the main thread, then in another one.
    """
    ours = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line) for line in found.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_the_memory_of_freed_arrays_is_used_again():
    usual, kept = new_share(), new_share("keep")
    assert len(usual) == len(kept) == 4
    assert all(share > 0.4 for share in usual)
    assert all(share < 0.1 for share in kept)
    # Another program does the same with the variables.
    assert all(share < 0.1 for share in new_share(**compilation.variables_that_keep_memory()))
    # A user's own choice is left alone.
    assert all(share > 0.4 for share in new_share("keep", MALLOC_TOP_PAD_="131072"))


def test_the_peers_of_the_benchmarks_have_no_other_choice_than_ours(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "131072")
    assert compilation.variables_that_keep_memory() == {}
