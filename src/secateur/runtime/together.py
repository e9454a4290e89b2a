"""Files of a folder that change together, and are told apart from those of another time.

One of them, the head, names the others with their sizes and digests.  New files wait under names of
their own; then the head is replaced, in one step, and from there on the folder is the new one: a
reader takes what the head names where it still waits.  Only then do files get their names.  So a
folder is whole as it was or as it will be, whenever who writes is killed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from secateur.errors import FileError

from .io import digest, opened, settle, write_text

WAITING = re.compile(r"\.(.+)\.[0-9a-f]{16}")


@dataclass(frozen=True)
class Seal:
    """What tells a file from every other: its size in bytes and its SHA-256, in hexadecimal."""

    size: int
    sha256: str


def seal_of(path: Path) -> Seal:
    """Return the seal of a file."""
    with opened(path) as (file, size):
        return Seal(size, digest(file, size))


def place_of(folder: Path, name: str, seal: Seal) -> Path:
    """Return where the file of a seal is: under its name, or still waiting for it."""
    waiting = _waiting(folder, name, seal)
    return waiting if waiting.is_file() else folder / name


@contextmanager
def _opened(path: Path, named: Path) -> Iterator[tuple[Path, BinaryIO, int]]:
    """Open a file where it was seen to wait, or, if it got its name just now, there."""
    with ExitStack() as stack:
        try:
            file, size = stack.enter_context(opened(path))
        except FileError:
            if path == named:
                raise
            path = named
            file, size = stack.enter_context(opened(path))
        yield path, file, size


@contextmanager
def sealed(folder: Path, name: str, seal: Seal, *, verify: bool = True) -> Iterator[Path]:
    """Yield where the file of a seal is, and check that it is that file all the while.

    Args:
        folder: of the file.
        name: of the file.
        seal: as the head has it.
        verify: read it once to compare its digest, too.

    Raises:
        FileError: it is missing, or another one.
    """
    named = folder / name
    with _opened(place_of(folder, name, seal), named) as (path, file, size):
        before = os.fstat(file.fileno())
        if size != seal.size:
            raise FileError(f"{path} has {size} bytes, and had {seal.size} when it was saved")
        if verify and digest(file, size) != seal.sha256:
            raise FileError(f"{path} is damaged or of another save: its SHA-256 is another")
        yield path
        with _opened(path, named) as (_, now, _):  # it may have got its name meanwhile
            if not os.path.samestat(before, os.fstat(now.fileno())):
                raise FileError(f"{path} was replaced while it was read")


def publish(
    folder: Path,
    files: Mapping[str, Path],
    old: Mapping[str, Seal],
    head: str,
    text_of: Callable[[dict[str, Seal]], str],
    gone: Iterable[str] = (),
) -> None:
    """Let new files take the place of old ones, all at once; hold ``alone_in(folder)`` meanwhile.

    Args:
        folder: where they go.
        files: name → where the new file is now, on the same file system.
        old: what the head that is there names.
        head: name of the file that names the others.
        text_of: its text, given the seals of the new files.
        gone: names of files that are no part of the new ones.
    """
    seals = {name: seal_of(path) for name, path in files.items()}
    text = text_of(seals)
    for name, seal in old.items():  # those that somebody was killed before naming
        if (waiting := _waiting(folder, name, seal)).is_file():
            waiting.replace(folder / name)
    places = {name: _waiting(folder, name, seal) for name, seal in seals.items()}
    try:
        for name, path in files.items():
            settle(path)
            path.replace(places[name])
        _sync(folder)
        write_text(folder / head, text)
    except BaseException:
        if not _says(folder / head, text):
            for place in places.values():
                place.unlink(missing_ok=True)
        raise
    _sync(folder)
    for name, place in places.items():
        place.replace(folder / name)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    known = {*files, *old, *gone}
    for path in folder.iterdir():
        match = WAITING.fullmatch(path.name)
        if match and match[1] in known:
            path.unlink(missing_ok=True)


def _waiting(folder: Path, name: str, seal: Seal) -> Path:
    """Return where a new file waits until the head names it."""
    return folder / f".{name}.{seal.sha256[:16]}"


def _says(path: Path, text: str) -> bool:
    try:
        with opened(path) as (file, size):
            return file.read(size) == text.encode()
    except FileError:
        return False


def _sync(folder: Path) -> None:
    """Let the names of a folder's files be on the disk."""
    if hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
