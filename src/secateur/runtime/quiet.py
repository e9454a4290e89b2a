"""No warnings of a trial; those of other threads are shown as before."""

from __future__ import annotations

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


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warning of the trial that runs inside.

    ``warnings.catch_warnings`` would change the filters of the whole process, and leave them so
    where another thread leaves one of its own meanwhile.

    >>> with quiet():
    ...     warnings.warn("of a trial", stacklevel=1)
    """
    filters: list[Any] = warnings.filters  # type: ignore[assignment]
    item = ("ignore", _Here(), Warning, None, 0)
    with alone(), Undo() as undo:
        undo(partial(_without, filters, item))
        filters.insert(0, item)
        yield


def _without(filters: list[Any], item: object) -> None:
    for each in (filters, warnings.filters):  # the same, but where another thread has caught some
        each[:] = [kept for kept in each if kept is not item]  # type: ignore[index]
