"""What a folder's ``record.json`` may ask for by itself: data, never code.

A record says how the dense model is built.  What only chooses among models that are installed, by
plain numbers, is used; what would import or run something takes ``--trust``, or is named on the
command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from os.path import isfile  # which answers for every text
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from secateur.errors import ConfigError

from .build import LIBRARIES, REMOTE
from .inputs import SHAPE

FETCHING = (REMOTE, "pretrained", "weights", "weights_backbone")
"""Arguments that bring weights or code from elsewhere where they are true."""
MOST_ELEMENTS = 1 << 28
"""Of an example input that a record asks for."""


def check_plain(
    place: Path, model: str, arguments: Mapping[str, Any], inputs: Sequence[str]
) -> None:
    """Refuse what would run code that the folder chose.

    Args:
        place: of the record.
        model: as MODEL on the command line.
        arguments: for what builds it.
        inputs: words of ``--input``.

    Raises:
        ConfigError: it would; the message says what would be imported, and what to do.
    """
    wrong = next(_running(model, arguments, inputs), None)
    if wrong is not None:
        raise ConfigError(
            f"{place} {wrong}. A folder is not trusted with that: give --trust if you would run "
            "code of whoever wrote it, or name the dense model yourself (secateur compare DENSE DIR"
            ", secateur.load_pruned in Python)"
        )


def _running(model: str, arguments: Mapping[str, Any], inputs: Sequence[str]) -> Iterator[str]:
    prefix, _, name = model.partition(":")
    known = not model or (prefix in LIBRARIES and name)  # "": it does not say
    if not known and not isfile(Path(model) / "config.json"):
        where, colon, what = model.rpartition(":")
        if colon and where:
            yield f"asks to import {_short(where)} and to call {_short(what)} of it"
        yield f"names {_short(model)}, which is no model of a library and no Hugging Face folder"
    for key, value in arguments.items():
        if not _is_plain(value) or (key in FETCHING and value):
            yield f"gives the argument {_short(key)}: {_short(value)}, which may fetch or run"
    for word in inputs:
        match = SHAPE.fullmatch(word)
        if match is None:
            yield f"asks to import {_short(word)} for the example inputs"
        elif prod(int(size) for size in match["shape"].split(",")[:32]) > MOST_ELEMENTS:
            yield f"asks for an example input of {_short(word)}, more than {MOST_ELEMENTS} numbers"


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a number, None, or a short list of these: text may name a file."""
    if isinstance(value, list):
        return len(value) <= 64 and all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else brief(value)
    return repr(text if len(text) <= 120 else f"{text[:60]}…{text[-50:]}")
