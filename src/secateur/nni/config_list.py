"""From a config_list and a model to one typed record for each target.

>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> entries = parse([{"op_types": ["Linear"], "exclude_op_names": ["2"], "sparse_ratio": 0.5}])
>>> for target in resolve(entries, model):
...     print(target.name, target.sparse_ratio, target.granularity, target.align)
0.weight 0.5 Channel(dim=0) None
0.bias None None Align(module_name='0', target_name='weight', dims=(0,))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from torch import nn

from secateur.errors import ConfigError, NoMatchError, did_you_mean

from .settings import GOALS, Entry, load, parse
from .targets import Align, TargetSetting, class_name, register_module, target_settings

__all__ = [
    "Align",
    "Entry",
    "TargetSetting",
    "load",
    "parse",
    "register_module",
    "resolve",
    "selected",
]


def resolve(
    entries: Sequence[Entry], model: nn.Module, *, default_granularity: str = "out_channel"
) -> tuple[TargetSetting, ...]:
    """Return one record for each target that the entries select, an aligned one after its source.

    A later entry replaces what earlier ones said of the same target; ``exclude`` drops the module.
    ``default_granularity`` is "out_channel" or "element".
    Raises one ConfigError for all problems, NoMatchError if a selector matches nothing.
    """
    if default_granularity not in ("out_channel", "element"):
        raise ConfigError(
            f"default_granularity must be out_channel or element, got {default_granularity!r}."
        )
    modules = dict(model.named_modules())
    found: dict[str, TargetSetting] = {}
    unmatched: list[str] = []
    problems: list[str] = []
    for number, entry in enumerate(entries, 1):
        chosen, lost = selected(entry, model)
        unmatched += [f"entry {number}{problem}" for problem in lost]
        if entry.exclude:
            found = {name: each for name, each in found.items() if each.module not in chosen}
            continue
        made = 0
        for name, lenient in chosen.items():
            records, wrong = target_settings(
                entry, number, name, modules[name], default_granularity, lenient=lenient
            )
            problems += [f"entry {number}: {problem}" for problem in wrong]
            made += len(records) + len(wrong)
            for record in records:
                found.pop(record.name, None)
                found[record.name] = record
        if not made and not lost:
            unmatched.append(f"entry {number}: selects nothing that can be pruned.")
    problems += _global_problems(found.values())
    problems += _dependency_problems(found.values())
    if not problems:  # a source that failed above is not missing
        problems = [
            problem for each in found.values() for problem in _align_problems(each, found, modules)
        ]
    if unmatched or problems:
        raise (ConfigError if problems else NoMatchError)(*unmatched, *problems)
    place = {name: index for index, name in enumerate(modules)}
    return tuple(
        sorted(found.values(), key=lambda each: (len(_sources(each, found)), place[each.module]))
    )


def selected(entry: Entry, model: nn.Module) -> tuple[dict[str, bool], list[str]]:
    """Return the selected modules (→ whether a regular expression alone found it), and problems."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): name for name, module in model.named_modules()}
    problems: list[str] = []

    def hits(key: str) -> set[str]:
        all_found: set[str] = set()
        for wanted in getattr(entry, key):
            found = {name for name in modules if _matches(key, wanted, name, modules[name])}
            if not found:
                kinds = [class_name(module) for module in modules.values()]
                known = dict.fromkeys(kinds if key.endswith("types") else modules)
                hint = did_you_mean(wanted, known)
                problems.append(f", key {key!r}: {wanted!r} matches no module.{hint}")
            all_found |= {first[id(modules[name])] for name in found}
        return all_found

    named, by_regex, typed = hits("op_names"), hits("op_names_re"), hits("op_types")
    chosen = named | by_regex if entry.op_names or entry.op_names_re else typed
    if entry.op_types:
        chosen &= typed
    for key in ("exclude_op_names", "exclude_op_names_re", "exclude_op_types"):
        chosen = chosen - hits(key)
    if not chosen and not problems:
        problems.append(": selects no module; its keys rule each other out.")
    return {name: name not in named | typed for name in modules if name in chosen}, problems


def _matches(key: str, wanted: str, name: str, module: nn.Module) -> bool:
    if key.endswith("types"):
        return class_name(module) == wanted
    return bool(re.match(wanted, name)) if key.endswith("re") else name == wanted


def _global_problems(settings: Iterable[TargetSetting]) -> list[str]:
    problems = []
    for group, members in _groups(settings, "global_group_id").items():
        problems += _goal_problem(f"global_group_id {group!r}", members, "sparse_ratio")
    return problems


def _dependency_problems(settings: Iterable[TargetSetting]) -> list[str]:
    problems = []
    for group, members in _groups(settings, "dependency_group_id").items():
        place = f"dependency_group_id {group!r}"
        for goal in GOALS:
            problems += _goal_problem(place, members, goal)
        sizes = {each.name: each.units for each in members if each.units is not None}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name!r} {count}" for name, count in sizes.items())
            problems.append(f"{place}: its members must have equally many scores, got {told}.")
    return problems


def _groups(settings: Iterable[TargetSetting], key: str) -> dict[int | str, list[TargetSetting]]:
    groups: dict[int | str, list[TargetSetting]] = {}
    for each in settings:
        if getattr(each, key) is not None and each.align is None:
            groups.setdefault(getattr(each, key), []).append(each)
    return groups


def _goal_problem(place: str, members: Sequence[TargetSetting], goal: str) -> list[str]:
    one = members[0]
    for other in members:
        if getattr(other, goal) != getattr(one, goal):
            return [
                f"{place}: its members must have one {goal},"
                f" got {getattr(one, goal)} for {one.name!r} (entry {one.entry})"
                f" and {getattr(other, goal)} for {other.name!r} (entry {other.entry})."
            ]
    return []


def _sources(setting: TargetSetting, found: Mapping[str, TargetSetting]) -> list[str]:
    """Return the names of what a target is aligned to, and that to, up to one with scores.

    The chain ends at a missing target, and where it meets itself.
    """
    chain: list[str] = []
    each: TargetSetting | None = setting
    while each and each.align and each.align.name not in chain:
        chain.append(each.align.name)
        each = found.get(each.align.name)
    return chain


def _align_problems(
    setting: TargetSetting, found: Mapping[str, TargetSetting], modules: Mapping[str, nn.Module]
) -> list[str]:
    if setting.align is None:
        return []
    place = f"entry {setting.entry}: {setting.name!r} is aligned to {setting.align.name!r}"
    source = found.get(setting.align.name)
    if source is None:
        module = setting.align.module_name
        near = "" if module in modules else did_you_mean(module, modules)
        return [f"{place}, which is not pruned.{near}"]
    if setting.name in _sources(setting, found):
        return [f"{place}, which is aligned to it in turn; give one of them a sparse_ratio."]
    if source.shape is None or setting.shape is None:
        return []
    rank = len(source.shape)
    if not all(-rank <= dim < rank for dim in setting.align.dims):
        return [f"{place}, whose {rank} dimensions do not include {list(setting.align.dims)}."]
    given = prod(source.shape[dim] for dim in setting.align.dims)
    needed = prod(setting.shape) if setting.units is None else setting.units
    if given != needed:
        return [f"{place}, which has {given} positions where it needs {needed}."]
    return []
