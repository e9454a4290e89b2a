"""``plan.json``: how a pruned model came about, read strictly, written for people to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateur.errors import FileError, PlanError
from secateur.runtime.io import BOUND, read_text
from secateur.runtime.together import Seal
from secateur.settings import problems_in

from .history import History
from .implied import Implied, Length
from .plan import plans_of

PLAN = "plan.json"
SCHEMA = 3
"""The newest form: 2 says what was taken out of lists, 3 says what
makes each number, and has a digest of its own."""
SHOWN = 12  # problems that one error lists


MOST_STEPS = 1 << 12  # plans that followed each other


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Reshaped(_Part):
    before: tuple[int, ...] = Field(max_length=16)
    after: tuple[int, ...] = Field(max_length=16)


Size: TypeAlias = Annotated[int, Field(ge=0)]
Epsilon: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]


Each: TypeAlias = Annotated[tuple[str | int | float | bool | None, ...], Field(max_length=1 << 12)]


class _Length(_Part):
    step: int = Field(ge=0)
    terms: tuple[tuple[int, tuple[str, ...]], ...] = Field(max_length=1 << 12)
    over: int = Field(ge=1)
    power: float = Field(ge=-16, le=16, allow_inf_nan=False)


class _Changed(_Part):
    before: Size | Epsilon | Each | None
    after: Size | Epsilon | Each
    of: tuple[_Length, ...] | None = Field(None, min_length=1, max_length=MOST_STEPS)


class _Taken(_Part):
    size: int = Field(ge=1, le=1 << 16)
    kept: tuple[int, ...] = Field(min_length=1, max_length=1 << 16)


class _Passing(_Part):
    input: int | str
    output: tuple[bool, ...] | None


class _File(_Part):
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Table = Literal["shapes", "attributes", "replaced", "dropped", "taken", "tied", "buffers"]
Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 40)]
FileName: TypeAlias = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=200)]


class Document(_Part):
    """What ``plan.json`` holds."""

    format: Literal["secateur.pruned"]
    schema_: int = Field(alias="schema")
    secateur: str
    model: str
    steps: list[dict[str, Any]] = Field(max_length=MOST_STEPS)
    shapes: dict[str, _Reshaped]
    attributes: dict[str, _Changed]
    replaced: dict[str, str]
    dropped: dict[str, _Passing]
    taken: dict[str, _Taken] = {}
    tied: dict[str, str]
    buffers: dict[str, bool] = {}  # is it part of the state dict? Files of 0.1.0's start lack it
    files: dict[FileName, _File] = {}  # that it goes with; likewise
    entries: dict[Table, Count] | None = None  # how many each of the tables above has
    sha256: str | None = None  # of all the rest, as ``signed`` has it; since schema 3

    @property
    def seals(self) -> dict[str, Seal]:
        """Name of a file that it goes with → what tells that from others."""
        return {name: Seal(file.size, file.sha256) for name, file in self.files.items()}


class _Dated(BaseModel):
    """The version of a file's form, whatever else is in it."""

    model_config = ConfigDict(strict=True)
    schema_: int = Field(alias="schema")


def read(path: Path) -> Document:
    """Return what a plan.json holds; FileError where it is damaged, foreign or newer."""
    return understood(read_text(path), path)


def understood(text: str, path: Path, *, verify: bool = True) -> Document:
    """Return what the text of a plan.json holds; FileError as ``read``.

    Args:
        text: of the file.
        path: of the file, for messages.
        verify: compare its digest, too.
    """
    check_schema(text, SCHEMA, path)
    try:
        document = Document.model_validate_json(text)
    except ValidationError as error:
        wrong = [f"{place}: {why}" if place else why for place, why in problems_in(error, ())]
        raise FileError(listed(f"{path} is damaged, or no plan of secateur", wrong)) from error
    if verify and (document.sha256 or document.schema_ >= 3) and document.sha256 != _digest(text):
        raise FileError(
            f"{path} is damaged, or was edited: it is not what was saved, by its own SHA-256 "
            "(verify_digests=False loads it, if it fits the model)"
        )
    return document


def counted(document: Mapping[str, Any]) -> dict[str, int]:
    """Return how many entries each table of a plan has, so that one that is left out is missed."""
    return {name: len(document[name]) for name in get_args(Table) if name in document}


def left_out(document: Document) -> list[str]:
    """Return what tells that an entry of a plan was left out, or added: they are counted in it."""
    if document.entries is None:  # of before they were counted
        return []
    said = {str(name): many for name, many in document.entries.items()}
    found = {name: len(getattr(document, name)) for name in get_args(Table)}
    return [
        f"{PLAN} has {many} entries in {name!r}, and had {said.get(name, 0)} when it was saved"
        for name, many in found.items()
        if many != said.get(name, 0)
    ]


def signed(document: dict[str, Any]) -> str:
    """Return the text of a plan.json, with a digest of what it says, however that is laid out.

    It tells accidents: whoever edits the file on purpose can compute it anew.
    """
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return dump({**rest, "sha256": _digest(json.dumps(rest))}) + "\n"


def unsigned(text: str, path: Path) -> dict[str, Any]:
    """Return what a text says that ``signed`` made.

    Raises:
        FileError: any of it is another.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged: {error}") from error
    if not isinstance(said, dict) or said.get("sha256") is None or said["sha256"] != _digest(text):
        raise FileError(f"{path} is damaged, or was edited: its SHA-256 is another")
    return said


def bound_to(text: str) -> str:
    """Return what the files beside a plan.json say of it: they go with no plan that says another.

    >>> bound_to('{"steps": []}') == bound_to('{"steps": [], "files": {}}')
    True
    """
    return f"{BOUND}{_digest(text, 'files')}"


def _digest(text: str, *without: str) -> str | None:
    """Return the SHA-256 of a document without its own; None where no JSON can say it."""
    try:
        left_out = {"sha256", *without}
        rest = {key: value for key, value in json.loads(text).items() if key not in left_out}
        return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError):  # numbers of too many digits, or too deep
        return None


def check_schema(text: str, known: int, place: object) -> None:
    """Refuse a file of a newer version, which may have what this one does not know.

    Raises:
        FileError: it is one.
    """
    try:
        found = _Dated.model_validate_json(text).schema_
    except ValidationError:  # whatever it is: the reader of its kind says so
        return
    if found > known:
        raise FileError(
            f"{place} has schema {found if found < 10**9 else 'beyond all'}, newer than {known}: "
            "upgrade secateur"
        )


def seals_in(path: Path) -> dict[str, Seal]:
    """Return the seals in a plan.json; none where there is no plan that can be read."""
    try:
        return read(path).seals
    except FileError:
        return {}


def history_of(document: Document) -> History:
    """Return the history that a document tells; FileError where it makes no sense."""
    try:
        return History(
            plans_of(document.steps),
            {name: (s.before, s.after) for name, s in document.shapes.items()},
            {name: (a.before, a.after) for name, a in document.attributes.items()},
            {name: (d.input, d.output) for name, d in document.dropped.items()},
            {path: (t.size, t.kept) for path, t in document.taken.items()},
            _implied(document),
        )
    except PlanError as error:
        raise FileError(f"{PLAN} holds a plan that is none: {error}") from error


def _implied(document: Document) -> dict[str, Implied] | None:
    """Return what makes each number; None of a plan of before schema 3, where nothing said it."""
    if document.schema_ < 3 and not any(a.of for a in document.attributes.values()):
        return None
    found = ((name, changed.of) for name, changed in document.attributes.items())
    return {name: tuple(Length(**dict(each)) for each in of) for name, of in found if of}


def dump(value: Any, margin: str = "") -> str:
    """Return JSON in which what fits on a line, and every list of numbers, is on one."""
    flat = json.dumps(value)
    if not isinstance(value, (dict, list, tuple)):
        return flat
    rows = [json.dumps(key) + ": " for key in value] if isinstance(value, dict) else []
    parts = list(value.values()) if isinstance(value, dict) else value
    if len(margin + flat) <= 100 or not (rows or any(isinstance(part, dict) for part in parts)):
        return flat
    inner = margin + "  "
    lines = [
        inner + row + dump(part, inner)
        for row, part in zip(rows or [""] * len(parts), parts, strict=True)
    ]
    start, end = "{}" if rows else "[]"
    return start + "\n" + ",\n".join(lines) + "\n" + margin + end


def listed(what: str, problems: list[str]) -> str:
    """Return one message for several problems."""
    if len(problems) == 1:
        return f"{what}: {problems[0]}"
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{what}:\n  " + "\n  ".join(problems[:SHOWN]) + more
