"""No warnings and no log of a trial; those of other threads are shown as before."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .alone import alone, in_trial
from .undo import Undo


class _Here:
    """Stands for the pattern of a filter, and matches whatever a trial warns of."""

    def match(self, text: str) -> bool:
        return in_trial()


class _Elsewhere(logging.Filter):
    """Passes what is logged by other threads than a trial's."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not in_trial()


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warning, and nothing that is logged, of the trial that runs inside.

    ``warnings.catch_warnings`` would change the filters of the whole process, and leave them so
    where another thread leaves one of its own meanwhile; so would a level of a logger.

    >>> with quiet():
    ...     warnings.warn("of a trial", stacklevel=1)
    ...     logging.getLogger("a library").warning("of a trial")
    """
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    item = ("ignore", _Here(), Warning, None, 0)
    with alone(), Undo() as undo:
        undo(partial(_without, filters, item))
        filters.insert(0, item)
        elsewhere = _Elsewhere()
        for handler in _handlers():
            undo(partial(handler.removeFilter, elsewhere))
            handler.addFilter(elsewhere)
        yield


def _handlers() -> list[logging.Handler]:
    """Return what shows records of any logger, also where nobody has set one up."""
    loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
    found = [h for each in loggers if isinstance(each, logging.Logger) for h in each.handlers]
    return [*found, *filter(None, [logging.lastResort])]


def _without(filters: list[Any], item: object) -> None:
    for each in (filters, warnings.filters):  # the same, but where another thread has caught some
        each[:] = [kept for kept in each if kept is not item]  # type: ignore[index]
