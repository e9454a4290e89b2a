"""``record.json`` of a saved model: how its dense model is built, as far as that is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from secateur.types import Example, call_arguments

RECORD = "record.json"
"""Beside a saved model: how to build the dense one again, and what was measured on the way."""
SCHEMA = 1


@dataclass(frozen=True)
class Source:
    """How to build a dense model again: what was typed, kept beside what was made from it.

    Attributes:
        model: as MODEL on the command line; empty where that is not known.
        arguments: for what builds it.
        weights: a file of them.
        input: words of ``--input``.
    """

    model: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    input: tuple[str, ...] = ()


def record_of(source: Source, **facts: Any) -> str:
    """Return the text that says how the dense model of a saved one is built."""
    record = {"schema": SCHEMA, "source": asdict(source), **facts}
    return json.dumps(record, indent=1) + "\n"


def words_of(example: Example) -> tuple[str, ...]:
    """Return the words of ``--input`` that make inputs like these; none where no words do.

    >>> words_of(torch.zeros(2, 3)), words_of({"ids": torch.tensor([[4, 7]])})
    (('2,3',), ('ids=1,2:8',))
    """
    args, kwargs = call_arguments(example)
    words = [*map(_word, args), *(_named(name, value) for name, value in kwargs.items())]
    return tuple(word for word in words if word) if all(words) else ()


def _named(name: str, value: Any) -> str:
    word = _word(value)
    return f"{name}={word}" if word else ""


def _word(value: Any) -> str:
    """Return the word that makes a tensor like this one; "" for what no word makes."""
    if not isinstance(value, Tensor) or not value.dim() or not value.numel() or value.is_complex():
        return ""
    shape = ",".join(map(str, value.shape))
    if value.is_floating_point():
        return shape
    if value.is_meta or value.dtype is torch.bool or int(value.min()) < 0:
        return ""
    return f"{shape}:{int(value.max()) + 1}"
