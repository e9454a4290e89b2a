"""A loop's progress on a terminal, and nowhere else."""

from __future__ import annotations

import io
import threading
import time

import pytest
import torch
from rich.console import Console
from torch import nn

from secateur import Config, Progress, Pruner
from secateur.runtime import progress


@pytest.fixture
def pruner() -> Pruner:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    config = Config(sparsity=0.5, schedule="linear", steps=2, every=2)
    return Pruner(net, config, torch.zeros(1, 4))


def shown(pruner: Pruner, *, terminal: bool, calls: int = 4) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    with Progress(pruner, console):
        for _ in range(calls):
            pruner.step()
    return console.file.getvalue()


def test_progress_when_on_a_terminal_then_shows_a_line_per_pruning_step_and_a_bar(
    pruner: Pruner,
) -> None:
    text = shown(pruner, terminal=True)
    assert "step 2: 50.0% of the goal, 25.0% masked, scores up to" in text
    assert "step 4: 100.0% of the goal, 50.0% masked, scores up to" in text
    assert "2/2" in text


def test_progress_when_there_is_no_terminal_then_is_quiet(pruner: Pruner) -> None:
    assert shown(pruner, terminal=False).strip() == ""


def test_progress_when_the_loop_raises_then_the_pruner_reports_no_more(pruner: Pruner) -> None:
    with pytest.raises(LookupError), Progress(pruner, Console(file=io.StringIO())):
        raise LookupError
    assert pruner.on_prune == []


def test_progress_when_a_run_goes_on_then_the_bar_starts_where_it_was(pruner: Pruner) -> None:
    pruner.step()
    pruner.step()
    assert "1/2" in shown(pruner, terminal=True, calls=0)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


@pytest.mark.parametrize("soon", [0.0, 60.0])
def test_bar_when_something_takes_a_while_then_it_is_shown_and_before_that_not(
    monkeypatch: pytest.MonkeyPatch, soon: float
) -> None:
    monkeypatch.setattr(progress, "SOON", soon)
    console = terminal()
    found = []
    for item in progress.shown(range(3), "counting", console):
        time.sleep(0.1)
        found.append(item)
    with progress.during("thinking", console):
        time.sleep(0.1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert found == [0, 1, 2]
    for word in ("counting", "3/3", "thinking"):
        assert (word in text) == (soon == 0), text


def test_bar_when_another_one_is_there_then_is_silent_and_its_errors_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "SOON", 0.0)
    outer, inner = terminal(), terminal()

    def fail() -> None:
        for _ in progress.shown([1], "inner", inner):
            time.sleep(0.05)
            raise LookupError

    with pytest.raises(LookupError), progress.during("outer", outer):
        fail()
    assert inner.file.getvalue() == ""  # type: ignore[attr-defined]
    with progress.during("again", inner):  # whoever held the place has given it back
        time.sleep(0.05)
    assert "again" in inner.file.getvalue()  # type: ignore[attr-defined]


def test_bar_when_there_is_no_terminal_then_no_thread_is_started() -> None:
    before = threading.active_count()
    with progress.during("thinking", Console(file=io.StringIO())):
        assert threading.active_count() == before
