"""A run's state as one safetensors file: tensors, and the rest as JSON in its header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secateur.errors import FileError
from secateur.runtime.io import check_seal, read_tensors, read_text_of, write_tensors

SCHEMA = 2
WITHOUT_DIGEST = 1
"""The schema of older files, which do not say theirs."""


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write nested dicts and lists of tensors, numbers, text and None; whole, or not at all."""
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    text = json.dumps({"schema": SCHEMA, "state": tree})
    write_tensors(path, tensors, text=text, seal=True)


def read_state(path: str | os.PathLike[str]) -> Any:
    """Return what ``write_state`` wrote.

    Raises:
        FileError: there is no such file, or it is damaged or of another kind.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_state(f"{folder}/a", {"steps": 3, "sums": {0: torch.ones(2)}})
    ...     read_state(f"{folder}/a")
    {'steps': 3, 'sums': {0: tensor([1., 1.])}}
    """
    tensors = read_tensors(path)
    try:
        header = json.loads(read_text_of(path))
        if header["schema"] not in (WITHOUT_DIGEST, SCHEMA):
            raise FileError(f"{path} has schema {header['schema']!r}; this version reads {SCHEMA}")
        if header["schema"] != WITHOUT_DIGEST:
            check_seal(path)
        return _joined(header["state"], tensors)
    except FileError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} holds no state of a pruning run: {error}") from error


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        while path in tensors:  # "a/b" is a key, or two
            path += "'"
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"items": [[k, _split(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_split(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{path}: a {type(value).__name__} cannot be saved")


def _joined(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {k: _joined(v, tensors) for k, v in value}
    if kind == "list":
        return [_joined(v, tensors) for v in value]
    if kind == "value":
        return value
    raise ValueError(f"unknown kind {kind!r}")
