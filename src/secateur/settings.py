"""What the two faces of a configuration share: field types, sentences for problems, files.

A setting is plain data (from YAML, JSON, TOML or keywords).  ``secateur.config`` and
``secateur.nni`` read it into different values, with the same words for the same mistakes.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from math import isclose
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, ValidationError

from .errors import ConfigError, FileError, MissingExtraError, did_you_mean
from .runtime.io import read_text
from .scoring.granularity import FORMS, Granularity

GOALS = ("sparsity", "threshold", "min_sparsity", "max_sparsity")


def listed(value: object) -> object:
    """Return a list as the tuple that is stored; a bare string is the commonest slip."""
    if isinstance(value, str):
        raise ValueError(f"must be a list: write [{value!r}].")
    return tuple(value) if isinstance(value, list) else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(listed)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


GROUP = "group"
"""The granularity that the model's structure says."""


def granularity_from(
    value: object, *, transposed: bool = False, known: Collection[str] = FORMS
) -> Granularity | None:
    """Return what a granularity setting means; None for "group", which the model's structure says.

    ``transposed`` weights have their input channels in dimension 0, as ConvTranspose2d has.
    Raises ConfigError, with the nearest of the ``known`` names.

    >>> granularity_from("out_channel"), granularity_from("out_channel", transposed=True)
    (Channel(dim=0), Channel(dim=1))
    >>> granularity_from("2:4"), granularity_from([1, -1])
    (NM(n=2, m=4), Tile(sizes=(1, -1)))
    """
    if value == GROUP and GROUP in known:
        return None
    for form in FORMS.values():
        if (meant := form.read(value, transposed)) is not None:
            return meant
    patterns = {name: form.shown for name, form in FORMS.items() if form.shown}
    names = [name for name in known if name not in patterns]
    *shown, last = [*names, *patterns.values()]
    raise ConfigError(
        f"unknown granularity {brief(value)}.{did_you_mean(value, names)}"
        f" Known: {', '.join(shown)}, or {last}."
    )


def stores_transposed(module: object) -> bool:
    """Tell whether a module's weight has its input channels in dimension 0.

    >>> from torch import nn
    >>> stores_transposed(nn.ConvTranspose2d(2, 3, 1)), stores_transposed(nn.Conv2d(2, 3, 1))
    (True, False)
    """
    kinds = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1D")  # Conv1D: GPT-2
    return any(kind.__name__ in kinds for kind in type(module).__mro__)


def problems_in(error: ValidationError, keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return (dotted place, sentence) for each problem; ``keys`` are the known ones."""
    found: list[tuple[str, str]] = []
    for problem in error.errors(include_url=False):
        place = ".".join(map(str, problem["loc"]))
        given = problem["input"]
        cause = problem.get("ctx", {}).get("error")
        if problem["type"] == "extra_forbidden":
            name = str(problem["loc"][-1])
            found.append((place, f"unknown key {name!r}.{did_you_mean(name, keys)}"))
        elif isinstance(cause, ConfigError):
            found += [(place, sentence) for sentence in cause.problems]
        elif cause is not None:
            found.append((place, str(cause)))
        else:
            reason = problem["msg"].replace("Input should be", "must be", 1)
            reason = reason.replace("Field required", "lacks a required key", 1)
            found.append((place, f"{reason}, got {brief(given)}.{_hint(problem, given)}"))
    return found


def _hint(problem: Mapping[str, Any], given: Any) -> str:
    if problem["type"] == "literal_error":
        return did_you_mean(given, re.findall(r"'(\w+)'", problem["msg"]))
    percent = problem["type"] == "less_than_equal" and problem["ctx"]["le"] == 1 and given <= 100
    return f" Did you mean {given / 100:g}?" if percent else ""


def goal_problems(settings: Mapping[str, Any], keys: Sequence[str] = GOALS) -> list[str]:
    """Return what contradicts what among raw goals; wrong types are left to the field checks.

    ``keys`` are the names of the share, the threshold, the least and the greatest share.

    >>> goal_problems({"sparsity": 0.5, "threshold": 0.1})
    ["'sparsity' and 'threshold' are both given; keep one."]
    """
    goals = {key: settings[key] for key in keys if type(settings.get(key)) in (int, float)}
    share, threshold, low, high = (goals.get(key) for key in keys)
    problems = []
    if share is not None and threshold is not None:
        problems.append(f"{keys[0]!r} and {keys[1]!r} are both given; keep one.")
    if low is not None and high is not None and low > high:
        problems.append(f"{keys[2]!r} ({low}) is greater than {keys[3]!r} ({high}).")
    exact = pattern_share(settings.get("granularity"))
    others = [
        key for key, goal in goals.items() if exact and not isclose(goal, exact, abs_tol=0.01)
    ]
    if others:
        given = ", ".join(map(repr, others))
        problems.append(
            f"granularity {settings['granularity']!r} removes {exact:g} exactly; leave out {given}."
        )
    return problems


def pattern_share(granularity: object) -> float | None:
    """Return n / m for an "n:m" setting, None for every other value."""
    try:
        meant = granularity_from(granularity)
    except ConfigError:
        return None
    return None if meant is None else meant.sparsity


UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, ArithmeticError)
"""What readers raise of values that are none, such as YAML's ``!!int ""``."""


def read_settings(path: str | os.PathLike[str]) -> Any:
    """Return the plain value in a .yaml, .yml, .json or .toml file; ConfigError if malformed."""
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".toml": tomllib.loads,
        ".yaml": _yaml,
        ".yml": _yaml,
    }
    if path.suffix not in readers:
        raise ConfigError(f"{path}: unknown file type; use one of {', '.join(readers)}.")
    try:
        return readers[path.suffix](read_text(path))
    except FileError as error:
        raise ConfigError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not readable as {path.suffix[1:]}: {error}") from error


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("Reading YAML", "PyYAML", "cli") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error
