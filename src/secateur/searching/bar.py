"""How a search goes, on a terminal: trials of all workers, and the best so far."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console


class Bar:
    """Within it a bar grows with the trials; nothing is shown where the console is no terminal."""

    def __init__(self, total: int, console: Console | None = None):
        console = console or Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("searching"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[best]}"),
            progress.TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("searching", total=total, best="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, done: int, best: str) -> None:
        """Show how many trials are done, and the best of them."""
        self._bar.update(self._task, completed=done, best=best)
