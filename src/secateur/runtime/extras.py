"""Libraries that need not be installed: asked for by name, where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from secateur.errors import MissingExtraError


def library(module: str, package: str, what: str, extra: str = "all") -> Any:
    """Return a module of a library that need not be installed.

    Args:
        module: to import.
        package: that holds it.
        what: needs it, in words.
        extra: of ours, that installs it.

    Raises:
        MissingExtraError: it is not.

    >>> library("json", "json", "this example").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(what, package, extra) from error
