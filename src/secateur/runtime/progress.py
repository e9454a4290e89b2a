"""How a run goes, on a terminal: of your own loop, and over calibration batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from rich import progress
from rich.console import Console


class Steps(Protocol):
    """A run that goes on in steps, such as a ``Pruner``."""

    on_prune: list[Callable[[dict[str, float]], None]]

    @property
    def steps(self) -> int:
        """How many pruning steps there will be."""

    @property
    def updates(self) -> int:
        """How many there have been."""

    @property
    def progress(self) -> str:
        """Where the run is, in one line."""


T = TypeVar("T")


SOON = 2.0
"""Seconds from which on it is shown that something takes a while."""
_busy = threading.Lock()  # held by the one bar that is there: within it others are silent


def shown(
    items: Iterable[T], doing: str, console: Console | None = None, *, left: bool = False
) -> Iterator[T]:
    """Yield items with a bar that grows, once it takes longer than a moment, on a terminal.

    ``left``: also say how long it will take still.

    >>> list(shown([1, 2], "counting"))
    [1, 2]
    """
    with _later(doing, items, console, left=left) as bar:
        for item in items:
            yield item
            bar()


@contextmanager
def during(doing: str, console: Console | None = None) -> Iterator[None]:
    """Show that something is done, once it takes longer than a moment, on a terminal.

    >>> with during("thinking"):
    ...     pass
    """
    with _later(doing, (), console):
        yield


@contextmanager
def _later(
    doing: str, items: Iterable[Any], console: Console | None, *, left: bool = False
) -> Iterator[Callable[[], object]]:
    """Yield what advances a bar that appears after ``SOON``, or never."""
    console = console or Console(stderr=True)
    if not console.is_terminal or not _busy.acquire(blocking=False):
        yield lambda: None
        return
    counts = isinstance(items, Sized) and len(items) > 0
    columns = [progress.TextColumn(doing), progress.BarColumn(), progress.TimeElapsedColumn()]
    columns[2:2] = [progress.MofNCompleteColumn()] if counts else []
    columns += [progress.TextColumn("left"), progress.TimeRemainingColumn()] if left else []
    bar = progress.Progress(*columns, console=console, transient=True)
    task = bar.add_task(doing, total=len(items) if isinstance(items, Sized) and counts else None)
    timer = threading.Timer(SOON, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda: bar.advance(task)
    finally:
        timer.cancel()
        timer.join()  # it may be about to start the bar
        bar.stop()
        _busy.release()


class Progress:
    """Within it a bar grows towards the goal, and each pruning step is a line above it.

    Trainers have bars of their own; this is for a loop that has none.  Nothing is shown where the
    console is no terminal.

    Args:
        pruner: what the loop steps.
        console: where to show it; by default the standard error.

    >>> import torch
    >>> from torch import nn
    >>> from secateur import Pruner
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> pruner = Pruner(net, {"sparsity": 0.5, "schedule": "linear", "steps": 2}, torch.zeros(1, 8))
    >>> with Progress(pruner):
    ...     for _ in range(2):
    ...         metrics = pruner.step()  # after your optimizer.step()
    """

    def __init__(self, pruner: Steps, console: Console | None = None):
        self.pruner = pruner
        console = console or Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("pruning"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("pruning", total=pruner.steps)

    def __enter__(self) -> Self:
        self._show()
        self._bar.start()
        self.pruner.on_prune.append(self._report)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pruner.on_prune.remove(self._report)
        self._bar.stop()

    def _report(self, metrics: dict[str, float]) -> None:
        if not self._bar.disable:
            self._bar.console.print(self.pruner.progress, highlight=False)
        self._show()

    def _show(self) -> None:
        self._bar.update(self._task, completed=self.pruner.updates)
