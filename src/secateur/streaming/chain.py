"""The blocks of a model: modules of one list that hand one stream of activations on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import ModelError
from secateur.graph.program import ModuleCall, Recording, Ref
from secateur.replacements.passing import argument
from secateur.structure import Structure


@dataclass(frozen=True)
class Chain:
    """Blocks that run one after the other, each on what the one before it returns.

    Attributes:
        paths: of the blocks, in the order in which they run.
        position: of the argument that is the stream.
        returns: for each part of a tuple that a block returns, whether it is the stream (the others
            are None); None where it returns the stream itself.
    """

    paths: tuple[str, ...]
    position: int | str
    returns: tuple[bool, ...] | None

    def stream(self, out: Any) -> Any:
        """Return the stream of what a block returned."""
        return out if self.returns is None else out[self.returns.index(True)]

    def passed(self, model: nn.Module) -> tuple[int, str]:
        """Return position and name of the argument that is the stream."""
        return argument(type(model.get_submodule(self.paths[0])), self.position)

    def owner(self, tensor: str) -> str | None:
        """Return the block that a tensor lies in, by its name."""
        return next((path for path in self.paths if tensor.startswith(f"{path}.")), None)


def chain_of(model: nn.Module, structure: Structure) -> Chain:
    """Return the chain of blocks that holds most of a model's parameters.

    Raises:
        ModelError: there is none.
    """
    recording = structure.inferred.recording
    found, why = list[Chain](), list[str]()
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            paths = [f"{path}.{name}" if path else name for name in module._modules]
            chain = _chained(recording, paths)
            if isinstance(chain, Chain):
                found.append(chain)
            else:
                why.append(f"{path}: {chain}")
    if not found:
        reasons = "; ".join(why[:3]) or "it has no list of modules"
        raise ModelError(
            f"{type(model).__name__} has no blocks that can be pruned one after the other, each on "
            f"what the one before it returns ({reasons}): prune it in memory, without streaming"
        )
    sizes = {n: p.numel() for n, p in model.named_parameters()}

    def held(chain: Chain) -> int:
        return sum(size for name, size in sizes.items() if chain.owner(name))

    return max(found, key=held)


def _chained(recording: Recording, paths: list[str]) -> Chain | str:
    """Return the chain that modules of a list are, or why they are none."""
    calls = [call for call in recording.calls if call.path in paths]
    if [call.path for call in calls] != paths:
        return "they do not run once each, in their order"
    positions: set[int | str] | None = None
    for before, call in zip(calls, calls[1:], strict=False):
        stream = _stream(before)
        if stream is None:
            return f"{before.path} returns more than one tensor"
        given = {at for at, value in call.inputs.items() if value == stream}
        positions = given if positions is None else positions & given
    first, last = calls[0], calls[-1]
    if not positions or _stream(last) is None or not positions & first.inputs.keys():
        return "one is not given what the one before it returns"
    forms = {_returned(call) for call in calls}
    if len(forms) > 1:
        return "they return different things"
    for call in calls:
        if leak := next(_leaks(recording, call), None):
            return f"{call.path} makes what is read outside of it ({leak})"
    return Chain(tuple(paths), min(positions & first.inputs.keys(), key=str), forms.pop())


def _parts(call: ModuleCall) -> tuple[Any, ...]:
    return call.output if isinstance(call.output, tuple) else (call.output,)


def _stream(call: ModuleCall) -> int | None:
    """Return the one value that a block returns."""
    made = [part for part in _parts(call) if part is not None]
    return made[0].value if len(made) == 1 and isinstance(made[0], Ref) else None


def _returned(call: ModuleCall) -> tuple[bool, ...] | None:
    if not isinstance(call.output, tuple):
        return None
    return tuple(part is not None for part in call.output)


def _leaks(recording: Recording, call: ModuleCall) -> Iterator[str]:
    """Yield the operations outside of a block that read what it made and did not return."""
    out, inside = _stream(call), range(call.ops.start, call.ops.stop)
    passed = {recording.owner[value] for value in (*call.inputs.values(), out) if value is not None}
    made = {ref.value for i in inside for ref in recording.ops[i].outputs}
    made = {value for value in made if recording.owner[value] not in passed}
    for op in recording.ops[call.ops.stop :]:
        if made.intersection(op.reads):
            yield f"{op.name} in {op.module!r}"
    if made.intersection(recording.outputs):
        yield "an output of the model"
