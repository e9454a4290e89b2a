"""The channels of inputs and outputs around modules whose class does not say where they are.

The recorded forward does: of the dimensions of a value, the channels are the one that lives on the
most parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from secateur.graph.axes import atoms
from secateur.graph.program import Ref
from secateur.scoring.granularity import Channel
from secateur.structure import Structure

from .arguments import key_of, ways
from .channels import channel_dim
from .targets import TargetSetting


def unplaced(target: TargetSetting, model: nn.Module) -> bool:
    """Tell whether only a forward can say where the channels of a target are."""
    counts = target.shape is None and isinstance(target.granularity, Channel)
    return counts and channel_dim(model.get_submodule(target.module)) is None


def placed(
    targets: Sequence[TargetSetting], model: nn.Module, structure: Structure
) -> tuple[TargetSetting, ...]:
    """Return targets whose granularity is the dimension of their channels, where a forward tells.

    >>> import torch
    >>> from secateur.structure import analyze
    >>> from secateur.nni.config_list import parse, resolve
    >>> model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 9, 9)
    >>> entry = {"op_names": ["1"], "target_names": ["_output_"], "sparse_ratio": 0.5}
    >>> found = placed(resolve(parse([entry]), model), model, analyze(model, x))
    >>> found[0].granularity
    Channel(dim=1)
    """
    lives = _lives(structure)

    def place(target: TargetSetting) -> TargetSetting:
        if not unplaced(target, model):
            return target
        for value in _values(target, model, structure):
            typed = structure.inferred.types.get(value)
            dims = typed.dims if typed else ()
            on = [sum(lives.get(id(a), 0) for a in atoms(d.axis)) for d in dims]
            if any(on):
                last = max(i for i, count in enumerate(on) if count == max(on))
                return replace(target, granularity=Channel(last))
        return target

    return tuple(map(place, targets))


def _lives(structure: Structure) -> dict[int, int]:
    """Return for each atom on how many dimensions of parameters it lives."""
    groups = (*structure.groups, *structure.frozen)
    return {id(g.atom): sum(m.role != "buffer" for m in g.members) for g in groups}


def _values(target: TargetSetting, model: nn.Module, structure: Structure) -> Iterator[int]:
    """Yield the recorded values that a target was in the forward."""
    side, key = key_of(target.target)
    for call in structure.inferred.recording.calls:
        if call.path != target.module:
            continue
        if side == "input":
            found = [call.inputs.get(w) for w in ways(model.get_submodule(target.module), key)]
            yield from (value for value in found if value is not None)
        else:
            parts = call.output if isinstance(call.output, tuple) else (call.output,)
            if isinstance(key, int) and key < len(parts) and isinstance(parts[key], Ref):
                yield parts[key].value
