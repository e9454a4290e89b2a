"""NNI 2.x's config_list: its canonical form, and the same in 3.0's words.

Each layer belongs to the last entry that selects it; what that one excludes belongs to none.  An
entry with ``sparsity`` falls into one of each layer, one with ``total_sparsity`` stays as it is.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> rules = [{"op_types": ["Linear"], "sparsity": 0.5}, {"op_names": ["2"], "exclude": True}]
>>> [goal.entry() for goal in canonical(rules, model)]
[{'op_names': ['0'], 'total_sparsity': 0.5}]
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import nn

from secateur.errors import ConfigError, did_you_mean
from secateur.nni.config_list import parse, selected
from secateur.nni.targets import class_name, known_class

DEFAULT_TYPES = (
    *(f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose") for rank in (1, 2, 3)),
    *("Linear", "Bilinear", "PReLU", "Embedding", "EmbeddingBag"),
)
"""What "default" stands for in ``op_types``."""
ONE_EACH = ("sparsity", "sparsity_per_layer", "sparse_ratio")
GOALS = (*ONE_EACH, "total_sparsity")
MOST = ("max_sparsity_per_layer", "max_sparse_ratio")
SELECTORS = (
    *("op_types", "op_names", "op_partial_names", "op_names_re"),
    *("exclude_op_types", "exclude_op_names", "exclude_op_names_re"),
)
KEYS = (*SELECTORS, *GOALS, *MOST, "exclude", "rho")
RHO = 1e-4


@dataclass(frozen=True)
class Goal:
    """Some layers, and the share of their weights that is to go."""

    names: tuple[str, ...]
    sparsity: float
    most: float | None = None
    """Of each layer at most this share goes."""
    rho: float | None = None

    def entry(self) -> dict[str, Any]:
        """Return this as one entry of a config_list, in NNI 2.x's keys."""
        more = {"max_sparsity_per_layer": self.most, "rho": self.rho}
        said = {key: value for key, value in more.items() if value is not None}
        return {"op_names": list(self.names), "total_sparsity": self.sparsity, **said}


def canonical(config_list: object, model: nn.Module) -> list[Goal]:
    """Return what each layer is to lose, in the order of the entries.

    Names and types that match nothing are warned of, as in NNI; an entry that selects nothing with
    a weight, a list that leaves nothing to prune, a key that is none and a goal out of range are
    errors.

    Raises:
        ConfigError: one for all problems.
    """
    if not isinstance(config_list, (list, tuple)):
        raise ConfigError(f"a config_list must be a list of dicts, got {config_list!r}.")
    if not config_list:
        raise ConfigError("the config_list is empty: give an entry with op_types or op_names.")
    problems = [p for n, raw in enumerate(config_list, 1) for p in _problems(n, raw)]
    if problems:
        raise ConfigError(*problems)
    taken: set[str] = set()
    found: list[list[Goal]] = []
    for number, raw in reversed(list(enumerate(config_list, 1))):
        names = [name for name in _selected(number, raw, model) if name not in taken]
        taken.update(names)
        if names and raw.get("exclude") is not True:
            found.append(_goals(raw, names))
    if not found:
        raise ConfigError("the config_list leaves no layer to prune: all that it names is excluded")
    return [goal for goals in reversed(found) for goal in goals]


def modern(
    goals: Sequence[Goal], model: nn.Module, *, pooled: bool = False, granularity: str | None = None
) -> list[dict[str, Any]]:
    """Return goals as a config_list of NNI 3.0; ``pooled`` ranks the layers of one together."""
    entries: list[dict[str, Any]] = []
    for number, goal in enumerate(goals):
        common: dict[str, Any] = {"sparse_ratio": goal.sparsity}
        if granularity is not None:
            common["granularity"] = granularity
        if pooled:
            most = 0.99 if goal.most is None else goal.most
            common |= {"global_group_id": number, "max_sparse_ratio": most}
        for known in (True, False):
            names = [n for n in goal.names if known_class(model.get_submodule(n)) == known]
            weight = {} if known else {"target_names": ["weight"]}
            if names:
                entries.append({"op_names": names, **weight, **common})
    return entries


def _goals(raw: Mapping[str, Any], names: Sequence[str]) -> list[Goal]:
    each = next((raw[key] for key in ONE_EACH if key in raw), None)
    most = next((raw[key] for key in MOST if raw.get(key) is not None), None)
    if isinstance(most, Mapping):  # of a list that NNI has written
        most = min(most.values(), default=None)
    if each is not None:
        return [Goal((name,), each, most, raw.get("rho")) for name in names]
    return [Goal(tuple(names), raw["total_sparsity"], most, raw.get("rho"))]


def _problems(number: int, raw: object) -> list[str]:
    """Return what is wrong with an entry, whatever the model is."""
    place = f"entry {number}"
    if not isinstance(raw, Mapping):
        return [f"{place}: must be a dict, got {raw!r}."]
    problems = [
        f"{place}, key {key!r}: unknown key.{did_you_mean(key, KEYS)}"
        for key in map(str, raw)
        if key not in KEYS
    ]
    problems += [f"{place}, key {key!r}: {wrong}" for key, wrong in _no_words(raw).items()]
    if not any(raw.get(key) for key in ("op_types", "op_names", "op_partial_names", "op_names_re")):
        problems.append(f"{place}: selects no modules; give op_types or op_names.")
    if raw.get("exclude") not in (None, True, False) or type(raw.get("exclude")) is int:
        problems.append(f"{place}, key 'exclude': must be True or False, got {raw['exclude']!r}.")
    elif raw.get("exclude") is not True:
        problems += _goal_problems(place, raw)
    return problems


def _no_words(raw: Mapping[str, Any]) -> dict[str, str]:
    """Return by key what is wrong with the words by which an entry selects."""
    found = {}
    for key in SELECTORS:
        value = raw.get(key)
        if isinstance(value, str):
            found[key] = f"must be a list, got {value!r}; write [{value!r}]."
        elif value is not None and not isinstance(value, (list, tuple, set, frozenset)):
            found[key] = f"must be a list of texts, got {value!r}."
        elif odd := [word for word in value or () if not isinstance(word, str)]:
            found[key] = f"must be a list of texts, got {odd[0]!r} in it."
    return found


def _goal_problems(place: str, raw: Mapping[str, Any]) -> list[str]:
    goals = [key for key in GOALS if key in raw]
    problems = []
    if len(goals) != 1:
        given = f"got {', '.join(goals)}" if goals else "got none"
        problems.append(f"{place}: needs one of sparsity and total_sparsity, {given}.")
    for key in goals:
        if not _is_number(raw[key]) or not 0 <= raw[key] < 1:
            problems.append(f"{place}, key {key!r}: must be in [0, 1), got {raw[key]!r}.")
    for key in (*MOST, "rho"):
        value: Any = raw.get(key)
        each = value.values() if isinstance(value, Mapping) and key != "rho" else [value]
        if value is not None and not all(_is_number(v) and v > 0 for v in each):
            problems.append(f"{place}, key {key!r}: is out of range, got {value!r}.")
        elif value is not None and key != "rho" and any(v > 1 for v in each):
            problems.append(f"{place}, key {key!r}: must be at most 1, got {value!r}.")
    if problems:
        return problems
    asked = raw[goals[0]]
    below = [k for k in MOST if k in raw and _is_number(raw[k]) and raw[k] < asked]
    return [f"{place}: {k}={raw[k]!r} is less than {goals[0]}={asked!r} asks for." for k in below]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _selected(number: int, raw: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the modules that an entry selects."""
    words = {key: list(raw[key]) for key in SELECTORS if raw.get(key)}
    if "default" in words.get("op_types", ()):
        present = {class_name(module) for module in model.modules()}
        others = [kind for kind in words["op_types"] if kind != "default"]
        words["op_types"] = others + [k for k in DEFAULT_TYPES if k in present]
    partial = [f".*{re.escape(part)}" for part in words.pop("op_partial_names", ())]
    words["op_names_re"] = [*words.get("op_names_re", ()), *partial]
    if not words["op_names_re"]:
        del words["op_names_re"]
    known = {
        "op_types": {class_name(module) for module in model.modules()},
        "op_names": {name for name, _ in model.named_modules(remove_duplicate=False)},
    }
    for key, there in known.items():
        for odd in [word for word in words.get(key, ()) if word not in there]:
            hint = did_you_mean(odd, there)
            warnings.warn(f"entry {number}, key {key!r}: {odd!r} matches nothing.{hint}",
                          UserWarning, stacklevel=4)  # fmt: skip
            words[key].remove(odd)
        if key in raw and key in words and not words[key] and key == "op_types":
            return _none(number)
    words = {key: value for key, value in words.items() if value}
    if not any(key in words for key in ("op_types", "op_names", "op_names_re")):
        return _none(number)
    (entry,) = parse([words])
    chosen, problems = selected(entry, model)
    if problems:
        raise ConfigError(*(f"entry {number}{problem}" for problem in problems))
    found = [n for n in chosen if getattr(model.get_submodule(n), "weight", None) is not None]
    if not found and raw.get("exclude") is not True:
        kinds = ", ".join(dict.fromkeys(class_name(model.get_submodule(name)) for name in chosen))
        raise ConfigError(f"entry {number}: selects nothing that has a weight ({kinds}).")
    return found


def _none(number: int) -> list[str]:
    raise ConfigError(f"entry {number}: selects no module of this model.")
