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
from secateur.types import Example, Masks, call_arguments

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
        with evaluating(model), torch.no_grad():
            return self._amounts(model, structure, example, readers)

    def _amounts(
        self,
        model: nn.Module,
        structure: Structure,
        example: Example,
        readers: Mapping[str, list[str | None]],
    ) -> tuple[dict[str, Tensor], list[str]]:
        inputs = _inputs(model, example, {r for each in readers.values() for r in each if r})
        constants: dict[str, Tensor] = {}  # reader → value of each of its input channels
        notes = []
        for name, gone in self.constants.items():
            found = {
                r: _constant(structure, name, gone, model.get_submodule(r), r, inputs.get(r, []))
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
            absorber = _absorber(model, structure, reader)
            assert absorber is not None  # else it would be no reader
            tensor, sign = absorber
            amount, even = _effect(model.get_submodule(reader), value, inputs[reader][0])
            mask = self.completed.get(tensor)
            added[tensor] = sign * (amount if mask is None else amount * mask.to(amount))
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
    made = [op.outputs[0].value for op in r.readers.get(weight, ())] if weight is not None else []
    users = r.readers.get(made[0], []) if len(made) == 1 else []
    if len(users) != 1 or "batch_norm" not in users[0].name or made[0] in r.outputs:
        return None
    means = {Ref(value): name for name, value in r.buffers.items()}
    mean = means.get(users[0].args[3])
    return (mean, -1) if mean is not None else None


def _inputs(model: nn.Module, example: Example, paths: set[str]) -> dict[str, list[Tensor]]:
    """Return what each of the layers reads, at each of its calls."""
    seen: dict[str, list[Tensor]] = {}

    def watch(path: str) -> RemovableHandle:
        def see(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.setdefault(path, []).append(inputs[0].detach())

        return model.get_submodule(path).register_forward_pre_hook(see)

    hooks = [watch(path) for path in paths]
    args, kwargs = call_arguments(example)
    try:
        with torch.random.fork_rng(devices=[]):
            model(*args, **kwargs)
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
    module: nn.Module,
    path: str,
    inputs: list[Tensor],
) -> Tensor | None:
    """Return the value of each input channel of a layer: the constant, 0 where there is none.

    None if a value varies between places or calls after all, or was never seen.
    """
    dim = 0 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 1
    label = labels(structure.tensor(f"{path}.weight")[dim].axis, structure[group].atom)
    here = ((label >= 0) & gone[label.clamp(min=0)]).nonzero().flatten()
    channel = _channel(module)
    seen = [x.index_select(channel, here.to(x.device)).movedim(channel, 0) for x in inputs]
    if not seen:
        return None
    low = torch.stack([x.flatten(1).amin(1) for x in seen]).amin(0)
    high = torch.stack([x.flatten(1).amax(1) for x in seen]).amax(0)
    if bool((high - low > STEADY * (1 + high.abs())).any()):
        return None
    return low.new_zeros(len(label)).index_copy(0, here.to(low.device), high)


def _effect(module: nn.Module, value: Tensor, like: Tensor) -> tuple[Tensor, bool]:
    """Return what constant inputs add to each output channel, and whether equally everywhere.

    It is the mean over all places; the layer runs on as few of them as tell.
    """
    channel = _channel(module)
    shape = [1] * like.ndim
    shape[channel] = -1
    zeros = like.new_zeros(_few(module, like))
    change = module(zeros + value.view(shape)) - module(zeros)
    change = change.movedim(channel, 0).flatten(1)
    mean = change.mean(1)
    return mean, bool(torch.allclose(change, mean[:, None], rtol=1e-4, atol=1e-6))


def _few(module: Any, like: Tensor) -> list[int]:
    """Return the shape of the smallest input that shows a layer's answer to constants."""
    if isinstance(module, nn.Linear):
        return [1] * (like.ndim - 1) + [like.shape[-1]]
    space = like.shape[2:]
    if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):  # a subclass may pad by itself
        steps = zip(module.dilation, module.kernel_size, strict=True)
        if module.padding_mode != "zeros" or not any(module._reversed_padding_repeated_twice):
            space = torch.Size(dilation * (size - 1) + 1 for dilation, size in steps)
    return [1, like.shape[1], *space]
