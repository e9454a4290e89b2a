"""Modules that must lose the same channels, as dependency groups of a config_list."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.graph.axes import Axis, atoms
from secateur.structure import Structure, analyze
from secateur.types import Example

from .config_list import TargetSetting, parse, resolve
from .settings import modern, whole_name
from .targets import has_target

_KINDS = ("op_types", "op_names", "op_names_re")
_SELECTORS = (*_KINDS, *(f"exclude_{kind}" for kind in _KINDS), "op_partial_names")


def auto_set_dependency_group_ids(
    model: nn.Module, config_list: list[dict[str, Any]], dummy_input: Example
) -> list[dict[str, Any]]:
    """Return a config_list of one entry per module, in which tied modules share a group id.

    Each entry names its module in ``op_names`` and says what the one that selected it said, in NNI
    3.0's spelling.  Modules are tied when their output channels are one axis: through a residual, a
    product, a depthwise convolution.  What a grouped convolution reads or makes also gets
    ``internal_metric_block``, so that each of its groups loses equally many channels; so does what
    is split into halves that must stay equal.

    Raises:
        ConfigError: the config_list is wrong or does not fit the model.

    >>> import torch
    >>> class Residual(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
    ...     def forward(self, x):
    ...         x = self.a(x)
    ...         return self.c(x + self.b(x).relu())
    >>> config = [{"op_types": ["Linear"], "exclude_op_names": ["c"], "sparse_ratio": 0.5}]
    >>> for entry in auto_set_dependency_group_ids(Residual(), config, torch.zeros(1, 4)):
    ...     print(entry)
    {'op_names': ['a'], 'sparse_ratio': 0.5, 'dependency_group_id': 'a'}
    {'op_names': ['b'], 'sparse_ratio': 0.5, 'dependency_group_id': 'a'}
    """
    config_list = modern(config_list)
    targets = resolve(parse(config_list), model)
    tied = _tied([t for t in targets if _is_weight(t)], analyze(model, dummy_input, ragged=True))
    chosen: dict[tuple[int, str], list[TargetSetting]] = {}
    for target in sorted(targets, key=lambda t: t.entry):
        chosen.setdefault((target.entry, target.module), []).append(target)
    order = {name: place for place, name in enumerate(name for name, _ in model.named_modules())}
    return [
        _entry(config_list[number - 1], model.get_submodule(name), found, tied)
        for (number, name), found in sorted(
            chosen.items(), key=lambda each: (each[0][0], order[each[0][1]])
        )
    ]


auto_set_denpendency_group_ids = auto_set_dependency_group_ids  # NNI's spelling


def _tied(
    targets: Sequence[TargetSetting], structure: Structure
) -> dict[str, dict[str, int | str]]:
    """Return what to set for each weight: its group, and into how many equal parts it falls."""
    axis: dict[str, frozenset[int]] = {}
    parts: dict[str, int] = {}
    families: dict[frozenset[int], list[TargetSetting]] = {}
    for target in targets:
        dim = getattr(target.granularity, "dim", None)
        if dim is not None:
            found = structure.tensor(target.name)[dim].axis
            axis[target.name] = frozenset(map(id, atoms(found)))
            parts[target.name] = _equal_parts(structure, found)
            families.setdefault(axis[target.name], []).append(target)
    made: dict[str, dict[str, int | str]] = {}
    for members in families.values():
        for member in members:
            if len(members) > 1:
                made.setdefault(member.name, {})["dependency_group_id"] = members[0].module
            if parts[members[0].name] > 1:
                made.setdefault(member.name, {})["internal_metric_block"] = parts[members[0].name]
    return made


def _is_weight(target: TargetSetting) -> bool:
    return target.target == "weight" and target.align is None and target.shape is not None


def _equal_parts(structure: Structure, axis: Axis) -> int:
    """Return the number of consecutive parts of an axis that must keep equally many positions."""
    pieces = list(atoms(axis))
    families = {structure.family(piece) for piece in pieces}
    equal = {piece.size * len(pieces) for piece in pieces} == {axis.size}
    return len(pieces) if equal and len(families) == 1 and families != {None} else 1


def _entry(
    original: Mapping[str, Any],
    module: nn.Module,
    targets: Sequence[TargetSetting],
    tied: Mapping[str, Mapping[str, int | str]],
) -> dict[str, Any]:
    """Return what an entry says of one module, with what ties its weight."""
    entry: dict[str, Any] = {"op_names": [targets[0].module]}
    entry |= {k: copy.deepcopy(v) for k, v in original.items() if k not in _SELECTORS}
    for key in ("target_names", "target_settings"):  # a regular expression may have named more
        if key in entry:
            found = [name for name in entry[key] if has_target(module, whole_name(name))]
            entry[key] = found if key == "target_names" else {n: entry[key][n] for n in found}
    ties = next((tied[t.name] for t in targets if t.name in tied), {})
    if ties and sum(t.align is None for t in targets) > 1:  # the others have scores of their own
        own = entry.setdefault("target_settings", {})
        own["weight"] = {**own.get("weight", {}), **ties}
        return entry
    return {**entry, **ties}
