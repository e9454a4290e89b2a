"""The ``secateur`` command.  A new command is a file here and a row in ``commands.COMMANDS``.

Commands speak through exit codes: 0 done, 1 failed (one line on stderr), 2 called wrongly.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import ConfigError, MissingExtraError, SecateurError, shortened

from .commands import COMMANDS, place_of
from .declared import described
from .status import DONE, FAILED, USAGE

if TYPE_CHECKING:
    from cyclopts import App


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 1 when it failed, 2 when it was called wrongly.

    ``--debug`` shows the traceback of an error instead of its message alone.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"])
    except BrokenPipeError:  # whoever read this, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # a model's own code may raise anything
        if debug:
            raise
        print(f"error: {shortened(_one_line(error))}", file=sys.stderr)
        return FAILED


def _one_line(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return "; ".join(" ".join(problem.split()).rstrip(".") for problem in error.problems)
    text = " ".join(str(error).split())
    if isinstance(error, SecateurError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _run(words: list[str]) -> int:
    try:
        from cyclopts import CycloptsError
    except ImportError as error:
        raise MissingExtraError("the secateur command", "cyclopts", "cli") from error
    empty = [word for word in words if word.startswith("--") and word.endswith("=")]
    empty += [word for word, value in pairwise(words) if word.startswith("--") and not value]
    if empty:
        raise ConfigError(f"{empty[0].rstrip('=')}: no text is given for it; is a variable empty?")
    try:
        status = application()(words)
    except CycloptsError:  # cyclopts has printed what is wrong
        return USAGE
    return status if isinstance(status, int) else DONE


def application() -> App:
    """Return the command line: every command with its options, help and examples."""
    from cyclopts import App
    from rich.console import Console

    app = App(
        name="secateur",
        help="Make PyTorch models smaller.",
        help_epilogue=_examples(*(examples[0] for examples in COMMANDS.values())),
        help_format="plaintext",
        version=lambda: version("secateur"),
        exit_on_error=False,
        result_action="return_value",
        error_console=Console(stderr=True, soft_wrap=True),
        error_formatter=lambda error: f"error: {' '.join(str(error).split())}",
    )
    for order, (command, examples) in enumerate(COMMANDS.items()):
        place = place_of(command)
        app.command(  # by its place: only the one that runs is imported
            f"{__name__}.{place}:{place}",
            name=command,
            help=described(Path(__file__).parent / f"{place}.py", place),
            sort_key=order,
            help_epilogue=_examples(*examples),
        )
    app.register_install_completion_command()
    return app


def _examples(*lines: str) -> str:
    shown = "\n".join(f"  {line}" for line in lines)
    return f"Examples:\n\n{shown}\n\n--debug shows the traceback of an error."
