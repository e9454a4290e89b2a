"""The channels of inputs and outputs around modules whose class does not say where they are.

The recorded forward does: the channels of a value are the dimension that it shares with the
parameters of the nearest operation that has any, of those that led to it or else of those that read
it.  Of several, it is the one that lives on the most parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from secateur.graph.axes import atoms
from secateur.graph.program import Op, Ref
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
    search = _Search(structure)

    def place(target: TargetSetting) -> TargetSetting:
        if not unplaced(target, model):
            return target
        found = (search.channels(value) for value in _values(target, model, structure))
        dim = next((dim for dim in found if dim is not None), None)
        return target if dim is None else replace(target, granularity=Channel(dim))

    return tuple(map(place, targets))


class _Search:
    """Looks for the nearest operation with parameters, before a value and after it."""

    def __init__(self, structure: Structure):
        self.inferred = structure.inferred
        self.made = {ref.value: op for op in self.inferred.recording.ops for ref in op.outputs}
        groups = (*structure.groups, *structure.frozen)
        # on how many dimensions of parameters each atom lives
        self.lives = {id(g.atom): sum(m.role != "buffer" for m in g.members) for g in groups}

    def channels(self, value: int) -> int | None:
        """Return the dimension of a value's channels, or None where nothing near has parameters."""
        typed = self.inferred.types.get(value)
        if typed is None:
            return None
        on = [{id(a) for a in atoms(d.axis)} & self.lives.keys() for d in typed.dims]
        for back in (True, False):
            for near in self._levels(value, back):
                shared = [place & near for place in on]
                if any(shared):
                    most = [sum(self.lives[key] for key in place) for place in shared]
                    return max(i for i, count in enumerate(most) if count == max(most))
        return None

    def _levels(self, value: int, back: bool) -> Iterator[set[int]]:
        """Yield the atoms of the parameters of operations one, two, … steps from a value."""
        seen, front = {value}, [value]
        readers = self.inferred.recording.readers
        while front:
            if back:
                ops = [self.made[v] for v in front if v in self.made]
            else:
                ops = [op for v in front for op in readers.get(v, ())]
            yield {key for op in ops for key in self._parameters(op)}
            reached = [v for op in ops for v in (op.reads if back else _written(op))]
            front = [v for v in dict.fromkeys(reached) if v not in seen]
            seen.update(front)

    def _parameters(self, op: Op) -> set[int]:
        types = (self.inferred.types.get(value) for value in op.reads)
        held = [typed for typed in types if typed is not None and typed.static]
        found = {id(a) for typed in held for d in typed.dims for a in atoms(d.axis)}
        return {key for key in found if self.lives.get(key)}


def _written(op: Op) -> list[int]:
    return [ref.value for ref in op.outputs]


def _values(target: TargetSetting, model: nn.Module, structure: Structure) -> Iterator[int]:
    """Yield the recorded values that a target was in the forward."""
    side, key = key_of(target.target)
    for call in structure.inferred.recording.calls:
        if call.path != target.module:
            continue
        if side == "input":
            given = [call.inputs.get(w) for w in ways(model.get_submodule(target.module), key)]
            yield from (value for value in given if value is not None)
        else:
            parts = call.output if isinstance(call.output, (tuple, dict)) else (call.output,)
            if isinstance(parts, dict) and isinstance(key, int):
                parts = tuple(parts.values())
            named = dict(parts if isinstance(parts, dict) else enumerate(parts))
            if isinstance(found := named.get(key), Ref):
                yield found.value
