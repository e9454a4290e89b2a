"""``--data``: calibration inputs from a file or a function of the user's; nothing is unpickled.

A new kind of file is one function here and its ending in ``READERS``; texts are in ``texts.py``.
"""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from os.path import isfile  # which takes any text
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, FileError
from secateur.runtime.extras import library
from secateur.runtime.io import read_tensors

from .places import called
from .texts import MOST_TOKENS, TEXTS, batch_of, is_text, text_batches, text_tokens

MOST_ROWS = 1 << 30
"""More rows than a file has: all of it is one batch."""
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy")


def read_data(place: str, model: nn.Module, folder: str, size: int | None) -> Iterable[Any]:
    """Return the batches that ``--data`` stands for.

    Args:
        place: a file of arrays or of text, or module:function.
        model: what takes the batches.
        folder: where MODEL was read from, for its tokenizer.
        size: samples of a batch that is made from a file, by default as ``batch_of`` says.

    Raises:
        ConfigError: it is none of these, or holds what is no input of the model.
        FileError: the file cannot be read.
        MissingExtraError: it needs a library that is not installed.
    """
    if size is not None and size < 1:
        raise ConfigError(f"--batch-size {size}: a batch has one sample at least")
    ending = Path(place).suffix.lower()
    if is_text(Path(place)):
        return text_batches(Path(place), model, folder, size)
    if ending in PICKLED:
        raise ConfigError(
            f"--data {place}: {ending} files are not read, because reading them can run code; "
            "save tensors with safetensors.torch.save_file, or arrays with numpy.savez"
        )
    if ending in READERS:
        return READERS[ending](Path(place), model, folder, size)
    if ":" in place:
        return called(place)
    raise ConfigError(f"--data {place!r}: give module:function, or a file that ends in {ENDINGS}")


def _arrays(path: Path, model: nn.Module, folder: str, size: int | None) -> list[Any]:
    """Read arrays of numpy."""
    numpy = library("numpy", "numpy", f"--data {path}")
    if not isfile(path):
        raise FileError(f"{path} cannot be read: there is no such file")
    if not is_zipfile(path):  # numpy would try to unpickle it
        raise FileError(f"{path} is damaged, or no .npz file")
    try:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as wrong:
        raise FileError(f"{path} is damaged, or holds more than plain arrays: {wrong}") from wrong
    for name, array in arrays.items():
        kind = getattr(array, "dtype", "bytes")  # as which numpy gives what is no array
        if getattr(kind, "kind", "") not in WIDEST:
            raise ConfigError(f"--data {path}: {name!r} holds {kind}, which are no numbers")
    tensors = {n: torch.from_numpy(a.astype(WIDEST[a.dtype.kind])) for n, a in arrays.items()}
    return _batches(path, tensors, model, size)


def _tensors(path: Path, model: nn.Module, folder: str, size: int | None) -> list[Any]:
    """Read a safetensors file."""
    return _batches(path, read_tensors(path), model, size)


def read_tokens(place: str, model: nn.Module, folder: str) -> tuple[Tensor, int]:
    """Return the ids of a text, one after the other, and how many the model reads at once.

    Args:
        place: a text, or a file of one array of ids: all of them, or a window in each row.
        model: what reads them.
        folder: where MODEL was read from, for its tokenizer.

    Raises:
        ConfigError: it is neither, or holds other things than ids.
        FileError: the file cannot be read.
    """
    path = Path(place)
    if is_text(path):
        return text_tokens(path, model, folder)
    if path.suffix.lower() not in READERS:
        raise ConfigError(f"--data {place!r}: give a file that ends in {ENDINGS}")
    batches = READERS[path.suffix.lower()](path, model, folder, MOST_ROWS)
    found = [list(b.values()) if isinstance(b, Mapping) else [*b] for b in batches]
    if any(len(each) != 1 for each in found) or found[0][0].dtype != torch.int64:
        raise ConfigError(f"--data {place}: give one array of whole numbers, the ids of a text")
    ids = torch.cat([each[0] for each in found])
    return ids.flatten(), ids.shape[1] if ids.ndim == 2 else MOST_TOKENS


READERS: dict[str, Callable[[Path, nn.Module, str, int | None], list[Any]]] = {
    ".npz": _arrays,
    ".safetensors": _tensors,
}
"""Ending of a file of arrays → the function that makes batches of it."""
ENDINGS = ", ".join((*READERS, *TEXTS))
WIDEST = {"b": "bool", "i": "int64", "u": "int64", "f": "float64", "c": "complex128"}
"""Kind of an array's numbers → as what they are read, before the model's own precision."""


def _batches(
    path: Path, tensors: Mapping[str, Tensor], model: nn.Module, size: int | None
) -> list[Any]:
    """Split tensors of one sample per row into batches.

    They are keyword arguments, but positional ones where they have no names of their own (numpy's
    ``arr_0``, …), or where there is one that the model knows no name of.
    """
    lengths = {name: len(t) if t.dim() else 0 for name, t in tensors.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        held = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items()) or "nothing"
        raise ConfigError(
            f"--data {path} holds {held}: give arrays of one sample per row, with as many rows each"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    size = batch_of(min(lengths.values()), size)
    parts = {name: _as_read(t, dtype).split(size) for name, t in tensors.items()}
    batches = [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]
    nameless = all(re.fullmatch(r"arr_\d+", name) for name in parts)
    if len(parts) == 1:
        nameless = not parts.keys() & inspect.signature(model.forward).parameters.keys()
    return [tuple(batch.values()) for batch in batches] if nameless else batches


def _as_read(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return numbers in the precision of the model, and whole ones as embeddings read them."""
    if tensor.is_floating_point():
        return tensor.to(dtype) if dtype else tensor
    return tensor if tensor.dtype is torch.bool or tensor.is_complex() else tensor.long()
