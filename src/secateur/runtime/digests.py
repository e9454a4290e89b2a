"""What tells inputs from others: a digest of their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, slice, type(...)),
    *(torch.dtype, torch.device, torch.Size),
)
"""Types whose ``repr`` is all that there is of a value."""


def digest_of(inputs: Any) -> str:
    """Return the SHA-256 of inputs: of the numbers of tensors, and what else they hold as text.

    >>> digest_of({"x": torch.zeros(2)}) == digest_of({"x": torch.zeros(2)})
    True
    >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(1, 2))
    False
    """
    found = sha256()
    for piece in _pieces(inputs, ()):
        found.update(len(piece).to_bytes(8) + piece)
    return found.hexdigest()


def _pieces(value: Any, within: tuple[int, ...]) -> Iterator[bytes]:
    """Yield what a value holds, in its order; what holds itself only once."""
    yield type(value).__qualname__.encode()
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        plain = dense.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        yield plain.view(torch.uint8).numpy().tobytes()
    elif isinstance(value, PLAIN):
        yield repr(value).encode()
    elif id(value) not in within:
        for inner in _parts(value):
            yield from _pieces(inner, (*within, id(value)))


def _parts(value: Any) -> Iterator[Any]:
    """Yield what a container, an array, a dataclass or another object consists of."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name
            yield inner
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, (set, frozenset)):
        yield from sorted(value, key=repr)
    elif hasattr(value, "__array__"):
        yield torch.as_tensor(value.__array__()) if _numeric(value) else repr(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, field.name, None) for field in dataclasses.fields(value))
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type):
        yield value.__dict__


def _numeric(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", "O") in "biufc"
