"""Ways to break files and processes; each returns what came of it, for tests and benchmarks."""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from secateur.runtime.io import BOUND, read_tensors, read_text_of, write_tensors
from secateur.runtime.together import seal_of
from secateur.shrinking.document import PLAN, bound_to, signed

CALLS = ("open", "os.", "shutil.", "tempfile.", "fcntl.")
KILLED, DONE, FAILED = 9, 0, 1


def file_calls(act: Callable[[], object], inside: Path, at: int | None = None) -> int:
    """Run something in a child, which dies at its ``at``-th call about files inside of a folder.

    Returns:
        ``KILLED``, ``DONE`` or ``FAILED`` (it raised).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python ≥ 3.12 warns of forks beside threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    dying_at(act, inside, at)
    return FAILED  # it never comes back


def dying_at(act: Callable[[], object], inside: Path, at: int | None) -> None:
    """Run something in this process, which dies at a call, as ``file_calls`` has it, or after."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        about = any(isinstance(a, (str, os.PathLike)) and str(inside) in str(a) for a in arguments)
        if event.startswith(CALLS) and (about or event == "fcntl.flock"):
            if seen == at:
                os._exit(KILLED)
            seen += 1

    status = FAILED
    try:
        sys.addaudithook(hook)
        act()
        status = DONE
    finally:
        os._exit(status)


def kills(
    act: Callable[[], object], inside: Path, *, step: int = 1, most: int = 300
) -> Iterator[int]:
    """Kill something at each of its calls about files in turn; yield at which, until it is done."""
    for at in range(0, most, step):
        status = file_calls(act, inside, at)
        if status == DONE:
            return
        assert status == KILLED, f"it raised at call {at}"
        yield at
    raise AssertionError(f"it is not done after {most} calls")


def flipped(data: bytes, chance: Random) -> bytes:
    """Return data with one bit flipped."""
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def truncated(data: bytes, chance: Random) -> bytes:
    """Return a beginning of data."""
    return data[: chance.randrange(len(data))]


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**400,
    1.5,
    "",
    "../x",
    "0.stride",
    "\ud800",
    [],
    {},
    [[1]],
]
"""What comes into a document in place of what was there."""


def edited(value: Any, draw: Random, less: float = 0.1) -> Any:
    """Return a document of which one part, anywhere in it, is another.

    Args:
        value: the document.
        draw: what chooses.
        less: how likely something is left out; with 0 all keys and items stay.
    """
    if isinstance(value, dict) and value and draw.random() >= less:
        key = draw.choice(sorted(value))
        if draw.random() < less:
            return {k: v for k, v in value.items() if k != key}
        if draw.random() < 0.1:
            return {**value, draw.choice(["more", "0.stride[0]", "config.x"]): value[key]}
        return {**value, key: edited(value[key], draw, less)}
    if isinstance(value, list) and value and draw.random() >= less:
        at = draw.randrange(len(value))
        return [*value[:at], edited(value[at], draw, less), *value[at + 1 :]]
    if type(value) in (int, float) and abs(value) < 1e9 and draw.random() < 0.6:
        return draw.choice([value + 1, value - 1, value * 2, value / 2, int(value) // 2])
    return draw.choice(ODD)


def variants(document: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield a document with each part of it left out, doubled or altered in turn, and which."""
    for way in _ways(document):
        value = _at(document, way)
        for other in _others(value):
            yield way, _with(document, way, lambda held, key, o=other: held.__setitem__(key, o))
        yield way, _with(document, way, lambda held, key: held.__delitem__(key))
        if isinstance(way[-1], int):
            yield way, _with(document, way, lambda held, key: held.insert(key, held[key]))


def _ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if way:
        yield way
    inner = enumerate(value) if isinstance(value, list) else ()
    for key, each in value.items() if isinstance(value, dict) else inner:
        yield from _ways(each, (*way, key))


def _at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def _others(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return [each for each in (None, True, False) if each is not value]
    if isinstance(value, (int, float)):
        made = value + 1, value - 1, value * 2, value / 2, int(value) // 2
        return [other for other in made if other != value]
    return []


def _with(document: Any, way: tuple[Any, ...], change: Callable[[Any, Any], object]) -> Any:
    made = copy.deepcopy(document)
    change(_at(made, way[:-1]), way[-1])
    return made


def forge(folder: Path, document: dict[str, Any]) -> None:
    """Let a folder have another plan.json, and make all digests anew, those in other files too."""
    bound = bound_to(json.dumps(document))
    files = dict(document["files"]) if isinstance(document.get("files"), dict) else {}
    for path in folder.glob("*.safetensors"):
        if path.name in files and read_text_of(path).startswith(BOUND):
            write_tensors(path, read_tensors(path), text=bound)
            files[path.name] = asdict(seal_of(path))
    made = {**document, "files": files} if files else document
    (folder / PLAN).write_text(signed(made))


def resign(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a plan.json says, with the digests of what it says then, as a forger would."""
    document = json.loads((folder / PLAN).read_text())
    change(document)
    forge(folder, document)


def replaced(folder: Path, old: str, new: str) -> None:
    """Replace a text in a plan.json, likewise."""
    text = json.dumps(json.loads((folder / PLAN).read_text()))
    assert old in text
    forge(folder, json.loads(text.replace(old, new)))
