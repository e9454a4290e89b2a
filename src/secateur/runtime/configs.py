"""What in a transformers model's ``config.json`` names code that somebody would have to fetch.

Transformers reads a repository of kernels out of it, and runs what it downloads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from secateur.errors import FileError

from .io import read_text

IMPLEMENTATION = ("attn_implementation", "experts_implementation")
CODE = ("auto_map", *IMPLEMENTATION)
"""What is in the keys of a config that may name code to fetch."""


def without_code(told: Any) -> Any:
    """Return a config's entries without those that name code, in the configs inside it too.

    >>> without_code({"text_config": {"attn_implementation": "somebody/kernel", "hidden_size": 8}})
    {'text_config': {'hidden_size': 8}}
    """
    if not isinstance(told, dict):
        return told
    plain = [key for key in told if not any(word in key for word in CODE)]
    return {key: without_code(told[key]) for key in plain}


def check_no_code(path: Path) -> None:
    """Refuse a config that names kernels to fetch; ``auto_map`` is nothing without trust.

    Raises:
        FileError: it does, or is damaged.
    """
    try:
        named = next(_kernels(json.loads(read_text(path))), None)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error}") from error
    if named is not None:
        raise FileError(
            f"{path} names code to fetch, {named[0]}: {brief(named[1])}. A folder is not trusted "
            "with that: take the entry out, or build the model yourself"
        )


def _kernels(told: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(told, dict):
        for inner, value in told.items():
            named = key if any(word in key for word in IMPLEMENTATION) else str(inner)
            yield from _kernels(value, named)
    elif isinstance(told, str) and "/" in told and any(word in key for word in IMPLEMENTATION):
        yield key, told
