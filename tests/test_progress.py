"""Progress bars: drawn on a terminal, a line a minute anywhere else."""

import io
import sys
import types

import pytest

from sam_jax import progress
from sam_jax.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def work(bar, clock, steps=300):
    for step in range(steps):
        clock.seconds += 1
        bar.update()
        bar.set_postfix_str(f"loss {step}")  # shows the bar at once on a terminal


def test_a_bar_in_a_file_is_a_line_a_minute(monkeypatch, clock, capsys):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with ProgressBar(total=300, desc="training", mininterval=0) as bar:
        work(bar, clock)
        ProgressBar.write("a message")
    lines = file.getvalue().splitlines()
    assert len(lines) == 1 + 5 + 1
    assert all(line.startswith("training:") for line in lines)
    assert ("0/300" in lines[0], "60/300" in lines[1], "300/300" in lines[-1]) == (True, True, True)
    assert "\r" not in file.getvalue()
    assert file.getvalue().endswith("\n")
    assert capsys.readouterr().out == "a message\n"


def test_bars_in_a_file_that_are_not_to_stay_or_are_inside_others_are_whole_lines(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    for _ in ProgressBar(range(2), "outer"):
        list(ProgressBar(range(3), "inner", leave=False))
    list(ProgressBar(range(3), "soon over", delay=9))
    list(ProgressBar(range(3), "not at all", disable=True))
    names = [line.partition(":")[0] for line in file.getvalue().splitlines()]
    assert names == ["outer", "inner", "inner", "outer"]
    assert "\r" not in file.getvalue()


def test_a_bar_on_a_terminal_is_drawn_again_and_again(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with ProgressBar(total=30, desc="training", mininterval=0) as bar:
        work(bar, clock, 30)
    assert terminal.getvalue().count("\r") > 30
    assert terminal.getvalue().count("\n") == 1
