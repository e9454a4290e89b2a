"""``module:name`` and ``file.py:name``: how the command line reaches a user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from os.path import isfile  # which takes any text
from pathlib import Path
from typing import Any

from secateur.errors import ConfigError, did_you_mean


def imported(place: str) -> Any:
    """Return what ``module:name`` or ``path/to/file.py:name`` names.

    Raises:
        ConfigError: there is no such module, file or name; near names are suggested.
    """
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise ConfigError(f"{place!r} names nothing: write module:name or file.py:name")
    if where.endswith(".py"):
        module = _from_file(Path(where))
    else:
        sys.path.insert(0, "")  # as `python -m` does
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise  # their module is there, and misses another one
            raise ConfigError(f"there is no module {error.name!r}, for {place!r}") from error
        finally:
            sys.path.remove("")
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{where} has no {part!r}.{did_you_mean(part, vars(found))}")
        found = getattr(found, part)
    return found


def _from_file(path: Path) -> Any:
    if not isfile(path):
        raise ConfigError(f"there is no file {path}")
    path = path.resolve()
    name = f"secateur_model_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known  # classes stay the same classes
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def called(place: str) -> Any:
    """Return what ``imported`` finds, called if it can be."""
    found = imported(place)
    return found() if callable(found) else found
