"""What prints as tables a person can read: in a terminal, as text, in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.jupyter import JupyterMixin

from secateur.errors import printable


class Shown(JupyterMixin, ABC):
    """``print`` writes what Rich shows, without colours; a notebook shows it as HTML."""

    text_width: ClassVar[int] = 100

    @abstractmethod
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield what is shown, as Rich asks for it."""

    def __str__(self) -> str:
        console = Console(width=self.text_width, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return printable(captured.get())
