"""NNI's ``auto_set_denpendency_group_ids``, also under the name that it meant."""

from __future__ import annotations

from typing import Any

from torch import nn

from secateur.graph.axes import Axis, atoms
from secateur.structure import Structure, analyze
from secateur.types import Example

from .config_list import TargetSetting, parse, resolve

_KINDS = ("op_types", "op_names", "op_names_re")
_SELECTORS = (*_KINDS, *(f"exclude_{kind}" for kind in _KINDS), "op_partial_names")


def auto_set_dependency_group_ids(
    model: nn.Module, config_list: list[dict[str, Any]], dummy_input: Example
) -> list[dict[str, Any]]:
    """Return a config_list in which modules that must lose the same channels share a group id.

    Modules are tied when their output channels are one axis: through a residual, a product, a
    depthwise convolution.  What a grouped convolution reads or makes also gets
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
    >>> for entry in auto_set_dependency_group_ids(Residual(), config, torch.zeros(1, 4))[1:]:
    ...     print(entry)
    {'op_names': ['a'], 'sparse_ratio': 0.5, 'dependency_group_id': 'a'}
    {'op_names': ['b'], 'sparse_ratio': 0.5, 'dependency_group_id': 'a'}
    """
    targets = [t for t in resolve(parse(config_list), model) if _is_weight(t)]
    structure = analyze(model, dummy_input, ragged=True)
    axis: dict[str, frozenset[int]] = {}
    parts: dict[str, int] = {}
    for target in targets:
        dim = getattr(target.granularity, "dim", None)
        if dim is not None:
            found = structure.tensor(target.name)[dim].axis
            axis[target.module] = frozenset(map(id, atoms(found)))
            parts[target.module] = _equal_parts(structure, found)
    families: dict[frozenset[int], list[TargetSetting]] = {}
    for target in targets:
        if target.module in axis:
            families.setdefault(axis[target.module], []).append(target)
    added = []
    for members in families.values():
        blocks = parts[members[0].module]
        for member in members if len(members) > 1 or blocks > 1 else ():
            entry = _entry(config_list, member)
            if len(members) > 1:
                entry["dependency_group_id"] = members[0].module
            if blocks > 1:
                entry["internal_metric_block"] = blocks
            added.append(entry)
    return [*config_list, *added]


auto_set_denpendency_group_ids = auto_set_dependency_group_ids  # NNI's spelling


def _is_weight(target: TargetSetting) -> bool:
    return target.target == "weight" and target.align is None and target.shape is not None


def _equal_parts(structure: Structure, axis: Axis) -> int:
    """Return the number of consecutive parts of an axis that must keep equally many positions."""
    pieces = list(atoms(axis))
    families = {structure.family(piece) for piece in pieces}
    equal = {piece.size * len(pieces) for piece in pieces} == {axis.size}
    return len(pieces) if equal and len(families) == 1 and families != {None} else 1


def _entry(config_list: list[dict[str, Any]], target: TargetSetting) -> dict[str, Any]:
    """Return the entry that selected a target, for its module alone."""
    original = config_list[target.entry - 1]
    kept = {k: v for k, v in original.items() if k not in _SELECTORS}
    return {"op_names": [target.module], **kept}
