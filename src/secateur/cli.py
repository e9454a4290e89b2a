"""The ``secateur`` command.  A new command is one function here and its name in ``COMMANDS``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from .errors import MissingExtraError, SecateurError

DONE, FAILED, USAGE = 0, 1, 2


def demo(*, out: Path = Path("secateur-demo"), seed: int = 0) -> int:
    """Train a small network on real digits, prune it, fine-tune it, check it and save it.

    Parameters
    ----------
    out
        Folder for the smaller network, its plan and the record of the run.
    seed
        Seed of the weights, the split of the data and the order of training.
    """
    from .demo import run

    return FAILED if run(out, seed).problems else DONE


COMMANDS = (demo,)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 1 when it failed, 2 when it was called wrongly.

    ``--debug`` shows the traceback of an error instead of its message alone.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"])
    except SecateurError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _run(words: list[str]) -> int:
    try:
        from cyclopts import App, CycloptsError
    except ImportError as error:
        raise MissingExtraError("the secateur command", "cyclopts", "cli") from error
    app = App(
        name="secateur",
        help="Make PyTorch models smaller.",
        version=lambda: version("secateur"),
        exit_on_error=False,
        result_action="return_value",
    )
    for command in COMMANDS:
        app.command(command)
    try:
        status = app(words)
    except CycloptsError:  # cyclopts has printed what is wrong
        return USAGE
    return status if isinstance(status, int) else DONE


if __name__ == "__main__":
    sys.exit(main())
