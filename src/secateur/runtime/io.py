"""Files: whole or as they were before, never unpickled, and no more of them than was seen."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import FileError, WriteError, printable

from .scratch import scratch

_umask = os.umask(0)  # there is no way to read it without setting it
os.umask(_umask)
READABLE = 0o666 & ~_umask
CHUNK = 1 << 20  # bytes that are hashed at once
MOST_TEXT = 1 << 28  # bytes; far beyond any file that secateur writes


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let what the system refuses (a full disk, a read-only folder) be a ``WriteError``."""
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise WriteError(f"{path} cannot be written: {why}") from error
    except ValueError as error:
        if "null" not in str(error) and not _is_half(error, str(path)):  # "embedded null byte"
            raise
        raise WriteError(f"{str(path)!r} is no path: {error}") from error


def _is_half(error: ValueError, text: str) -> bool:
    """Tell whether an error says that a text holds half of a pair, which no encoding knows."""
    return isinstance(error, UnicodeEncodeError) and error.object in text


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` if the block succeeds.

    A reader sees the old file or the new one, also when the machine stops in between.

    Raises:
        WriteError: it cannot be written; the old file is as it was.
    """
    path = Path(path)
    with writing(path), scratch(path.parent, path.name) as folder:
        temporary = folder / path.name
        yield temporary
        settle(temporary)
        temporary.replace(path)


def settle(path: Path) -> None:
    """Let a file be on the disk, and readable as others are."""
    path.chmod(READABLE)  # safetensors makes files that only their owner reads
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file."""
    with whole(path) as temporary:
        # half of a pair, as in file names that are no text, is written as \\udc80
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yield it and the size that it has.

    Raises:
        FileError: there is no such file, it cannot be read, or it is a pipe or a device, which
            might never end.
    """
    try:
        # without blocking: who opens a pipe waits for somebody who writes
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte
        raise FileError(f"{str(path)!r} is no path: {error}") from error
    try:
        seen = os.fstat(handle)
        if not S_ISREG(seen.st_mode):
            raise FileError(f"{path} cannot be read: it is no regular file")
    except BaseException:
        os.close(handle)
        raise
    with os.fdopen(handle, "rb") as file:
        yield file, seen.st_size


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the contents of a text file.

    Raises:
        FileError: there is no such file, it is too large, or it is no text.
    """
    with opened(path) as (file, size):
        if size > MOST_TEXT:
            raise FileError(f"{path} has {size} bytes; a file of secateur has at most {MOST_TEXT}")
        try:
            return file.read(size).decode("utf-8")
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise FileError(f"{path} is no text: {error.reason} at {error.start}") from error


BOUND = "plan.json without its digests has SHA-256 "
"""What a file of tensors says in its header, before the digest, of the plan that it goes with."""


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    text: str = "",
    seal: bool = False,
) -> None:
    """Write tensors by name as safetensors; those that share memory are written each on its own.

    ``text`` goes into the file's header, for ``read_text_of``; with ``seal`` also the SHA-256 of
    the file, for ``check_seal``.
    """
    if odd := [each for each in (str(path), *tensors) if printable(each) != each]:
        raise WriteError(
            f"{odd[0]!r} is no text that UTF-8 can say, and no name of a file or of a tensor in "
            f"safetensors: rename it to save {path}"
        )
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous()
        memory = data.untyped_storage()
        alone = memory.nbytes() == data.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        plain[name] = data if alone else data.clone()
    with whole(path) as temporary:
        more = ({"text": text} if text else {}) | ({"sha256": BLANK} if seal else {})
        save_file(plain, temporary, metadata={"format": "pt"} | more)
        if more:
            _in_order(temporary)
        if seal:
            place, _, found = _seal(temporary)
            with temporary.open("rb+") as file:
                file.seek(place)
                file.write(found.encode())


def _in_order(path: Path) -> None:
    """Let a header's texts stand in the order of their names: the same contents, the same bytes."""
    start = b'{"__metadata__":'
    with path.open("rb+") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        assert header.startswith(start)
        told, end = json.JSONDecoder().raw_decode(header.decode(), len(start))
        again = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert len(again.encode()) == len(header.decode()[len(start) : end].encode())
        file.seek(8 + len(start))
        file.write(again.encode())


BLANK = "0" * 64
"""What stands for a file's digest while it is computed."""


def _seal(path: Path) -> tuple[int, str, str]:
    """Return where a file says its digest, what it says there, and what the digest is."""
    with opened(path) as (file, size):
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), size))
        found = re.search(rb'"sha256":"([0-9a-f]{64})"', header)
        if found is None:
            raise FileError(f"{path} is damaged: it does not say its SHA-256")
        start, end = found.span(1)
        blank = length + header[:start] + BLANK.encode() + header[end:]
        return 8 + start, found[1].decode(), digest(file, size - len(blank), blank)


def digest(file: BinaryIO, size: int, before: bytes = b"") -> str:
    """Return the SHA-256 of some bytes and of the next ``size`` of a file, no more than these."""
    found = hashlib.sha256(before)
    while size > 0 and (part := file.read(min(size, CHUNK))):
        found.update(part)
        size -= len(part)
    return found.hexdigest()


def check_seal(path: str | os.PathLike[str]) -> None:
    """Read a file that ``write_tensors(..., seal=True)`` wrote once over.

    Raises:
        FileError: any bit of it is another.
    """
    _, said, found = _seal(Path(path))
    if said != found:
        raise FileError(f"{path} is damaged: its SHA-256 is another than when it was saved")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Raises:
        FileError: there is no such file, or it is truncated or of another kind.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_tensors(f"{folder}/a.safetensors", {"x": torch.arange(3)})
    ...     read_tensors(f"{folder}/a.safetensors")
    {'x': tensor([0, 1, 2])}
    """
    with understood(path):
        return load_file(path)


def read_text_of(path: str | os.PathLike[str]) -> str:
    """Return the text in the header of a safetensors file, "" where there is none.

    Raises:
        FileError: there is no such file, or it is truncated or of another kind.
    """
    with understood(path), safe_open(path, framework="pt") as file:
        return str((file.metadata() or {}).get("text", ""))


@contextmanager
def understood(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let what the reader of safetensors says of a regular file be a ``FileError``."""
    if printable(str(path)) != str(path):
        raise FileError(f"{str(path)!r} is not UTF-8: safetensors reads no such path")
    try:
        with opened(path):
            yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise FileError(f"{path} is damaged, or no safetensors file: {error}") from error
