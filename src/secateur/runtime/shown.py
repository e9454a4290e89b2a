"""What prints as tables a person can read: in a terminal, as text, in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.jupyter import JupyterMixin

from secateur.errors import printable


class Shown(JupyterMixin, ABC):
    """``print`` writes what Rich shows, without colours; a notebook shows it as HTML."""

    text_width: ClassVar[int] = 100

    @abstractmethod
    def rows(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield what is shown, one renderable below the other."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(Group(*self.rows(options)), options):
            yield segment._replace(text=_sayable(segment.text, console.encoding))

    def __str__(self) -> str:
        console = Console(width=self.text_width, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return printable(captured.get())


def _sayable(text: str, encoding: str) -> str:
    r"""Return a text with what an encoding does not know written as an escape.

    >>> _sayable("a\udc80 → é", "latin-1")
    'a\\udc80 \\u2192 é'
    """
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # a stream may name an encoding that Python does not have
        return printable(text)
