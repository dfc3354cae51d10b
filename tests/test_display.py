"""What a long stage says of itself."""

import contextlib
import io
import signal

import pytest

from jaxrobust import studies
from jaxrobust.studies import ctrl_c, display


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def shown(monkeypatch, terminal):
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def test_a_log_has_a_line_every_half_minute(monkeypatch, clock):
    screen = shown(monkeypatch, terminal=False)
    shows = display.Display("PGD")
    for second in range(100):
        clock[0] = 100.0 + second
        shows("PGD", 10 * second, 2000)
    shows("PGD", 2000, 2000)
    assert screen.getvalue().splitlines() == [
        "PGD: 300/2,000, 10/s, 3 min left",
        "PGD: 600/2,000, 10/s, 2 min left",
        "PGD: 900/2,000, 10/s, 110 s left",
    ]


def test_a_terminal_has_one_line_that_changes(monkeypatch, clock):
    screen = shown(monkeypatch, terminal=True)
    with studies.Stages()("PGD") as shows:
        for done in range(1, 4):
            clock[0] += 2.0
            shows("PGD", done, 10)
    lines = screen.getvalue().split("\r\033[K")
    assert lines[0] == "PGD ...\n"
    assert lines[1:4] == [
        "PGD: 1/10, 0.5/s, 18 s left",
        "PGD: 2/10, 0.5/s, 16 s left",
        "PGD: 3/10, 0.5/s, 14 s left",
    ]
    assert lines[4].startswith("PGD: ") and lines[4].endswith(" s\n") and "\n" not in lines[3]


def test_what_is_under_way_is_said_where_the_name_does_not_say_it(monkeypatch, clock):
    screen = shown(monkeypatch, terminal=False)
    shows = display.Display("PGD on cnn")
    for what in ("PGD", "epsilon 8/255"):
        clock[0] += 40.0
        shows(what, 1, 3)
    first, second = screen.getvalue().splitlines()
    assert first.startswith("PGD on cnn: 1/3") and second.startswith(
        "PGD on cnn, epsilon 8/255: 1/3"
    )


def test_compiling_does_not_count_as_slow(monkeypatch, clock):
    screen = shown(monkeypatch, terminal=True)
    shows = display.Display("PGD")
    clock[0] += 60.0
    shows("PGD", 0, 100)
    clock[0] += 1.0
    shows("PGD", 20, 100)
    assert screen.getvalue().endswith("PGD: 20/100, 20/s, 4 s left")


def test_long_times_are_in_the_unit_that_fits():
    assert display.describe(1, 7201, 1, 1.0) == "1/7,201, 1/s, 2.0 h left"
    assert display.describe(5, 5, 0, 0.0) == "5/5"


def test_a_ctrl_c_that_got_lost_stops_the_stage_all_the_same():
    stages, handler = studies.Stages(), signal.getsignal(signal.SIGINT)
    with ctrl_c.remembered(), stages("attack") as shows:
        shows("", 1, 3)
        # As in a callback of the garbage collector, which prints the exception and goes on.
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            shows("", 2, 3)
        shows("", 3, 3)
    assert signal.getsignal(signal.SIGINT) is handler
    with ctrl_c.remembered():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stages("next"):
            pass
