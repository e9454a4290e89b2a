"""Fold constants: what a removed position emits moves into the bias of the layers that read it.

A masked channel whose BatchNorm bias is not masked emits the same number everywhere.  A layer that
reads it adds ``weight[:, channel] · constant`` to all its outputs, which its bias can do as well,
or, with the sign turned, the running mean of the BatchNorm that follows it.  With zero padding the
constant stops at the border, and no bias can say that: there the mean over all places is folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.graph.layout import labels
from secateur.graph.program import Ref
from secateur.graph.record import evaluating
from secateur.structure import Structure
from secateur.types import Example, Masks

from .verify import run

STEADY = 1e-5  # how far, relative to its size, a constant may vary


@dataclass(frozen=True)
class Folding:
    """Positions that are removed though they emit a constant, and the masks under which they do."""

    masks: Masks
    constants: Mapping[str, Tensor]  # group → bool (size,)
    completed: Masks  # with what is removed besides

    def amounts(
        self, model: nn.Module, structure: Structure, example: Example
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return what to add to which tensors once the masks are complete, and notes.

        The model is masked by ``masks`` alone, so that it still emits the constants.
        """
        readers = {name: list(_readers(model, structure, name)) for name in self.constants}
        inputs = _inputs(model, example, {r for each in readers.values() for r in each if r})
        constants: dict[str, Tensor] = {}  # reader → value of each of its input channels
        notes = []
        for name, gone in self.constants.items():
            found = {
                r: _constant(structure, name, gone, model, r, inputs.get(r, []))
                for r in readers[name]
                if r
            }
            count = f"{name}: {int(gone.sum())} removed positions emitted a constant"
            if None in readers[name] or any(value is None for value in found.values()):
                notes.append(f"{count}, which no bias can take over; it is masked too")
                continue
            for reader, value in found.items():
                assert value is not None
                constants[reader] = constants[reader] + value if reader in constants else value
            notes.append(f"{count}; it is folded into {', '.join(found) or 'nothing'}")
        added: dict[str, Tensor] = {}
        for reader, value in constants.items():
            tensor, amount, even = _amount(model, structure, reader, value, inputs[reader][0])
            mask = self.completed.get(tensor)
            added[tensor] = amount if mask is None else amount * mask.to(amount)
            if not even:
                notes.append(
                    f"{reader}: zero padding stops a constant at the border; its mean is folded"
                )
        return added, notes


def _readers(model: nn.Module, structure: Structure, group: str) -> Iterator[str | None]:
    """Yield the path of each layer that sums over a group; None where it is no layer to fold in."""
    seen = set()
    for site in structure.inferred.sites_of(structure[group].atom):
        if site.weight is None:
            continue
        path, _, name = site.weight[0].rpartition(".")
        module = model.get_submodule(path)
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, nn.modules.conv._ConvNd) and module.groups == 1
        )
        if path in seen:
            continue
        seen.add(path)
        yield path if plain and name == "weight" and _absorber(model, structure, path) else None


def _absorber(model: nn.Module, structure: Structure, path: str) -> tuple[str, int] | None:
    """Return the tensor that can take a constant over, and the sign with which it does."""
    r = structure.inferred.recording
    if getattr(model.get_submodule(path), "bias", None) is not None:
        canonical = r.names.get(f"{path}.bias")
        alone = list(r.names.values()).count(str(canonical)) == 1  # not another layer's too
        return (f"{path}.bias", 1) if alone else None
    weight = r.parameters.get(r.names.get(f"{path}.weight", ""))
    made = [op.outputs[0] for op in r.ops if weight in op.reads]
    users = [op for op in r.ops if len(made) == 1 and made[0].value in op.reads]
    if len(users) != 1 or "batch_norm" not in users[0].name or made[0].value in r.outputs:
        return None
    means = {Ref(value): name for name, value in r.buffers.items()}
    mean = means.get(users[0].args[3])
    return (mean, -1) if mean is not None else None


def _inputs(model: nn.Module, example: Example, paths: set[str]) -> dict[str, list[Tensor]]:
    """Return what each of the layers reads, on the example and on fresh inputs."""
    seen: dict[str, list[Tensor]] = {}

    def watch(path: str) -> RemovableHandle:
        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.setdefault(path, []).append(inputs[0].detach())

        return model.get_submodule(path).register_forward_pre_hook(see)

    hooks = [watch(path) for path in paths]
    try:
        run(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _channel(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear) else 1


def _constant(
    structure: Structure,
    group: str,
    gone: Tensor,
    model: nn.Module,
    path: str,
    inputs: list[Tensor],
) -> Tensor | None:
    """Return the value of each input channel of a layer: the constant, 0 where there is none.

    None if a value varies between places or inputs after all.
    """
    module = model.get_submodule(path)
    dim = 0 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 1
    label = labels(structure.tensor(f"{path}.weight")[dim].axis, structure[group].atom)
    here = (label >= 0) & gone[label.clamp(min=0)]
    if not inputs:
        return None
    rows = torch.cat([x.movedim(_channel(module), 0).flatten(1) for x in inputs], 1)
    value = rows[:, 0].clone()
    steady = (rows - value[:, None]).abs().amax(1) <= STEADY * (1 + value.abs())
    if not bool(steady[here.to(rows.device)].all()):
        return None
    return value.masked_fill(~here.to(value.device), 0)


def _amount(
    model: nn.Module, structure: Structure, path: str, value: Tensor, like: Tensor
) -> tuple[str, Tensor, bool]:
    """Return the tensor to change, by how much, and whether the output is the same everywhere."""
    module = model.get_submodule(path)
    absorber = _absorber(model, structure, path)
    assert absorber is not None
    tensor, sign = absorber
    channel = _channel(module)
    shape = [1] * like.ndim
    shape[channel] = -1
    with evaluating(model), torch.no_grad():
        one = torch.zeros_like(like[:1])
        change = module(one + value.view(shape)) - module(one)
    change = change.movedim(channel, 0).flatten(1)
    mean = change.mean(1)
    even = bool(torch.allclose(change, mean[:, None], rtol=1e-4, atol=1e-6))
    return tensor, sign * mean, even
