"""Where a study is kept: a file, a database, or a storage of Optuna's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import Study

from secateur.errors import ConfigError, SecateurError, shortened

from .journal import JournalFile
from .options import Direction, without_password

Place = str | os.PathLike[str] | BaseStorage

TRIES, PAUSE = 6, 0.3
"""To open a database, and seconds between: of two that make its tables at once, one fails."""


def storage_at(place: Place) -> BaseStorage:
    """Return the storage that a path, a URL, or a storage of Optuna's stands for.

    Nothing that is read from a file or a database is ever unpickled.

    Raises:
        ConfigError: it cannot be reached, or its kind needs pickles.
        FileError: the file is damaged, or no study.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     type(storage_at(f"{folder}/study.journal")).__name__
    'JournalStorage'
    """
    if isinstance(place, BaseStorage):
        return place
    if not isinstance(place, (str, os.PathLike)):
        raise ConfigError(
            f"storage={place!r}: give a path, a URL as postgresql://host/name, or one of Optuna's"
        )
    text = os.fspath(place)
    if "://" not in text:
        return _journal(Path(text))
    kind = text.partition("://")[0]
    if kind.startswith("redis"):
        raise ConfigError("storage: Optuna keeps pickles in redis, which are not read here")
    return _database(text)


def _journal(path: Path) -> BaseStorage:
    try:
        return JournalStorage(JournalFile(path))
    except SecateurError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{path} is no study that can be read: {type(error).__name__}: {error}"
        ) from error


def _database(url: str) -> BaseStorage:
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    for tries_left in reversed(range(TRIES)):
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
        except ImportError as error:
            cause = error.__cause__ or error
            raise ConfigError(
                f"storage: the driver of {without_password(url)} is not installed ({cause}): for "
                'PostgreSQL pip install "psycopg[binary]" and write postgresql+psycopg://…'
            ) from error
        except (SQLAlchemyError, RuntimeError) as error:
            if not (tries_left and isinstance(error, DBAPIError)):
                said = str(error).replace(url, without_password(url)).strip().splitlines()
                raise ConfigError(
                    f"storage: {without_password(url)} cannot be opened: "
                    f"{shortened(said[0] if said else '', 400)}"
                ) from error
            time.sleep(PAUSE)
    raise AssertionError("the last try returns or raises")


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna say only what is wrong: a bar shows the rest."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def released(storage: BaseStorage) -> Iterator[None]:
    """Keep no connection open afterwards; the next question opens one again."""
    try:
        yield
    finally:
        storage.remove_session()
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()


def attributes_of(storage: BaseStorage, name: str) -> dict[str, Any]:
    """Return what a study says of itself; nothing where there is none of this name.

    >>> attributes_of(optuna.storages.InMemoryStorage(), "search")
    {}
    """
    try:
        return storage.get_study_user_attrs(storage.get_study_id_from_name(name))
    except KeyError:
        return {}


def opened_study(
    storage: BaseStorage,
    name: str,
    directions: list[Direction],
    sampler: BaseSampler,
    pruner: BasePruner,
) -> Study:
    """Return the study of a name, which is made where there is none."""
    with quiet():
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=directions,
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise ConfigError(
            f"the study {name!r} is made for {found}, and this search for {directions}"
        )
    return study
