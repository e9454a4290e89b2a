"""NNI's config_list as typed values: what an entry may say, and which targets a module class has.

op_types, op_names, op_names_re, exclude_op_…   which modules
target_names, target_settings                   which of their tensors
every other key                                 a shortcut into the settings of all of them
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from reprlib import repr as brief
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationError,
)

from secateur.errors import ConfigError, did_you_mean
from secateur.settings import (
    Count,
    Names,
    Number,
    Share,
    goal_problems,
    granularity_from,
    listed,
    problems_in,
    read_settings,
)

GOALS = ("sparse_ratio", "sparse_threshold", "min_sparse_ratio", "max_sparse_ratio")
GRANULARITIES = ("default", "element", "out_channel", "in_channel", "per_channel")

LEGACY = {
    "sparsity": "sparse_ratio",
    "sparsity_per_layer": "sparse_ratio",
    "total_sparsity": "sparse_ratio",
    "max_sparsity_per_layer": "max_sparse_ratio",
    "op_partial_names": "op_names_re",
}
"""NNI 2.x's spelling → NNI 3.0's."""


def _group_id(value: object) -> object:
    if type(value) not in (int, str):
        raise ValueError(f"must be a number or a text, got {brief(value)}.")
    return value


def _granularity(value: object) -> object:
    """Return a name, block sizes, or (sizes, where to add sizes, which size) as it is stored."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple)):
        sizes, side, fill = (*value, *("front", None)[len(value) - 1 :])[:3]
        if len(value) > 3 or side not in ("front", "back") or fill not in (None, 1, -1):
            raise ValueError(f"must be [sizes, 'front' or 'back', 1 or -1], got {brief(value)}.")
        granularity_from(sizes, known=GRANULARITIES)
        return tuple(sizes), side, fill or (1 if side == "front" else -1)
    if not isinstance(value, str) or value not in ("default", "per_channel"):
        granularity_from(value, known=GRANULARITIES)
    return tuple(value) if isinstance(value, list) else value


def _regexes(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}.") from None
    return patterns


def whole_name(name: str) -> str:
    """Return a target's full name: ``_input_`` and ``_output_`` mean position 0."""
    return f"{name}0" if name in ("_input_", "_output_") else name


def _full_names(settings: dict[str, Any]) -> dict[str, Any]:
    full = {whole_name(name): setting for name, setting in settings.items()}
    if len(full) < len(settings):
        raise ValueError("names the same target twice; '_input_' is '_input_0'.")
    return full


GroupId: TypeAlias = Annotated[int | str, PlainValidator(_group_id)]
Granularity: TypeAlias = str | tuple[int, ...] | tuple[tuple[int, ...], str, int]
Regexes: TypeAlias = Annotated[Names, AfterValidator(_regexes)]


class Value(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class AlignSetting(Value):
    """Mask where the source's mask, reduced over all dimensions but ``dims``, is all zero."""

    module_name: str | None = None  # None: the same module
    target_name: Annotated[str, AfterValidator(whole_name)]
    dims: Annotated[tuple[int, ...], BeforeValidator(listed)] = (0,)


class Setting(Value):
    """How one target is pruned."""

    sparse_ratio: Share | None = None
    sparse_threshold: Number | None = None
    min_sparse_ratio: Share | None = None
    max_sparse_ratio: Share | None = None
    global_group_id: GroupId | None = None
    dependency_group_id: GroupId | None = None
    granularity: Annotated[Granularity, PlainValidator(_granularity)] | None = None
    internal_metric_block: Count | None = None
    apply_method: Literal["mul", "add", "bypass"] | None = None
    align: AlignSetting | None = None

    def given(self) -> dict[str, Any]:
        """Return the settings that were written down, None included."""
        return {key: getattr(self, key) for key in self.model_fields_set & SETTINGS}


SETTINGS = frozenset(Setting.model_fields)


class Entry(Setting):
    """One dict of a config_list."""

    op_types: Names = ()
    op_names: Names = ()
    op_names_re: Regexes = ()
    exclude_op_types: Names = ()
    exclude_op_names: Names = ()
    exclude_op_names_re: Regexes = ()
    exclude: bool = False
    target_names: Annotated[Names, AfterValidator(lambda names: tuple(map(whole_name, names)))] = ()
    target_settings: Annotated[dict[str, Setting], AfterValidator(_full_names)] = {}


def parse(config_list: object) -> tuple[Entry, ...]:
    """Return a config_list as typed entries; no model is needed.

    Raises one ConfigError for all problems of the list; entries count from 1.

    >>> parse([{"op_types": ["Linear"], "sparse_ratio": 0.5}])[0].op_types
    ('Linear',)
    >>> parse([{"op_typs": ["Linear"]}])
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: entry 1, key 'op_typs': unknown key. Did you mean 'op_types'?
    entry 1: selects no modules; give op_types, op_names or op_names_re.
    """
    if not isinstance(config_list, (list, tuple)):
        raise ConfigError(f"a config_list must be a list of dicts, got {brief(config_list)}.")
    entries: list[Entry] = []
    problems: list[str] = []
    for number, raw in enumerate(config_list, 1):
        try:
            entries.append(_entry(number, raw))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return tuple(entries)


def modern(config_list: object) -> Any:
    """Return a config_list in NNI 3.0's spelling, with a warning for each older key; not checked.

    >>> modern([{"op_types": ["Linear"], "sparse_ratio": 0.5}])
    [{'op_types': ['Linear'], 'sparse_ratio': 0.5}]
    """
    if not isinstance(config_list, (list, tuple)):
        return config_list
    made, problems = [], []
    for number, raw in enumerate(config_list, 1):
        entry, wrong = _modern(number, dict(raw)) if isinstance(raw, Mapping) else (raw, [])
        made.append(entry)
        problems += wrong
    if problems:
        raise ConfigError(*problems)
    return made


def load(path: str | os.PathLike[str]) -> list[Any]:
    """Return the config_list in a YAML or JSON file, not yet checked; ``parse`` does that."""
    config_list = read_settings(path)
    if not isinstance(config_list, list):
        raise ConfigError(f"{path}: must hold a list of dicts, got {brief(config_list)}.")
    return config_list


def _entry(number: int, raw: object) -> Entry:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"entry {number}: must be a dict, got {brief(raw)}.")
    written, problems = _modern(number, {str(key): value for key, value in raw.items()})
    problems += _contradictions(number, written)
    try:
        entry = Entry.model_validate(written)
    except ValidationError as error:
        spelling = {LEGACY[key]: key for key in raw if isinstance(key, str) and key in LEGACY}
        found = problems_in(error, (*Entry.model_fields, *AlignSetting.model_fields, *LEGACY))
        problems = [
            f"entry {number}, key {spelling.get(place, place)!r}: {_sentence(text)}"
            for place, text in found
        ] + problems
    if problems:
        raise ConfigError(*problems)
    return entry


def _sentence(text: str) -> str:  # the place names the key already
    return re.sub(r"^unknown key '.*?'\.", "unknown key.", text)


def _modern(number: int, entry: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return an entry in NNI 3.0's spelling, and what stands in the way."""
    old = [key for key in entry if key in LEGACY]
    problems = []
    for key in old:
        new, value = LEGACY[key], entry.pop(key)
        warnings.warn(
            f"entry {number}: {key!r} is NNI 2.x's spelling; write {new!r}",
            DeprecationWarning,
            stacklevel=4,
        )
        if new in entry:
            problems.append(f"entry {number}, key {key!r}: says {new!r} once more; keep one.")
        if key == "op_partial_names" and isinstance(value, (list, tuple)):
            value = [f".*{re.escape(part)}" for part in value if isinstance(part, str)]
        if key == "total_sparsity":
            entry.setdefault("global_group_id", f"total_sparsity of entry {number}")
        entry[new] = value
    return entry, problems


def _contradictions(number: int, entry: Mapping[str, Any]) -> list[str]:
    problems = []
    place = f"entry {number}"
    if not any(entry.get(key) for key in ("op_types", "op_names", "op_names_re")):
        problems.append(f"{place}: selects no modules; give op_types, op_names or op_names_re.")
    settings = [
        key for key in entry if key in SETTINGS or key in ("target_names", "target_settings")
    ]
    if entry.get("exclude") is True and settings:
        problems.append(f"{place}: 'exclude' leaves nothing to set; remove {', '.join(settings)}.")
    shortcuts = {key: entry[key] for key in entry if key in SETTINGS}
    problems += [f"{place}: {problem}" for problem in _clashes(shortcuts)]
    targets = entry.get("target_settings")
    names = entry.get("target_names")
    for target, own in targets.items() if isinstance(targets, Mapping) else ():
        key = f"{place}, key {f'target_settings.{target}'!r}"
        if isinstance(own, Mapping):
            problems += [f"{key}: {problem}" for problem in _clashes(merged(shortcuts, own))]
        if isinstance(names, (list, tuple)) and names and target not in names:
            problems.append(f"{key}: 'target_names' leaves it out.{did_you_mean(target, names)}")
    return list(dict.fromkeys(problems))


def _clashes(setting: Mapping[str, Any]) -> list[str]:
    problems = goal_problems(setting, GOALS)
    goals = [key for key in GOALS if setting.get(key) is not None]
    if goals and setting.get("align") is not None:
        problems.append(f"an aligned target has no goal of its own; remove {', '.join(goals)}.")
    return problems


def merged(shortcuts: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one target: its own over those of its entry.

    An aligned target takes no goals from its entry, nor one with a goal an alignment.
    """
    if own.get("align") is not None:
        shortcuts = {key: shortcuts[key] for key in shortcuts if key == "apply_method"}
    elif any(own.get(goal) is not None for goal in GOALS):
        shortcuts = {key: shortcuts[key] for key in shortcuts if key != "align"}
    return {**shortcuts, **own}
