"""Files: whole or as they were before, never unpickled."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.errors import FileError

_umask = os.umask(0)  # there is no way to read it without setting it
os.umask(_umask)
READABLE = 0o666 & ~_umask
MOST_TEXT = 1 << 28  # bytes; far beyond any file that secateur writes


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that takes the place of ``path`` if the block succeeds.

    A reader sees the old file or the new one, also when the machine stops in between.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.chmod(READABLE)  # safetensors makes files that only their owner reads
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_text(path: str | os.PathLike[str]) -> str:
    """Return the contents of a text file.

    Raises:
        FileError: there is no such file, it is too large, or it is no text.
    """
    try:
        if (size := Path(path).stat().st_size) > MOST_TEXT:
            raise FileError(f"{path} has {size} bytes; a file of secateur has at most {MOST_TEXT}")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is no text: {error}") from error


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], *, text: str = ""
) -> None:
    """Write tensors by name as safetensors; those that share memory are written each on its own.

    ``text`` goes into the file's header, for ``read_text_of``.
    """
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous()
        memory = data.untyped_storage()
        alone = memory.nbytes() == data.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        plain[name] = data if alone else data.clone()
    with whole(path) as temporary:
        save_file(plain, temporary, metadata={"format": "pt"} | ({"text": text} if text else {}))


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
    try:
        return load_file(path)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise FileError(f"{path} is damaged, or no safetensors file: {error}") from error


def read_text_of(path: str | os.PathLike[str]) -> str:
    """Return the text in the header of a safetensors file, "" where there is none.

    Raises:
        FileError: there is no such file, or it is truncated or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("text", ""))
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise FileError(f"{path} is damaged, or no safetensors file: {error}") from error
