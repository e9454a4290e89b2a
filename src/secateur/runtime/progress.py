"""How a run goes, on a terminal: of your own loop, and over calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Protocol, Self, TypeVar

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


def shown(items: Iterable[T], doing: str, console: Console | None = None) -> Iterator[T]:
    """Yield items with a bar that grows, once it takes longer than a moment, on a terminal.

    >>> list(shown([1, 2], "counting"))
    [1, 2]
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = (
        progress.TextColumn(doing),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=len(items) if isinstance(items, Sized) else None)


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
