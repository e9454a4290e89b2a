"""Fold constants: what a removed position emits moves into the bias of the layers that read it.

A masked channel whose BatchNorm bias is not masked emits the same number everywhere.  A layer that
reads it adds ``weight[:, channel] · constant`` to all its outputs, which its bias can do as well,
or, with the sign turned, the running mean of the BatchNorm that follows it.  With zero padding the
constant stops at the border, and no bias can say that: there the mean over all places is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.layout import among, labels
from secateur.graph.program import Ref
from secateur.runtime.forward import evaluating, undisturbed
from secateur.runtime.undo import Undo, unhook
from secateur.structure import Structure
from secateur.types import Example, Masks, call_arguments

READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
STEADY = 1e-5  # how far, relative to its size, a constant may vary

Inputs = dict[str, list[tuple[Tensor, int] | None]]
"""Path of a layer → what it read at each call, and which version of it; None if that is unknown."""


@dataclass(frozen=True)
class Folding:
    """Positions that are removed though they emit a constant."""

    constants: Mapping[str, Tensor]  # group → bool (size,)
    completed: Masks  # with what is removed besides
    inputs: Inputs | None = None  # of a forward under the masks, if there was one

    def amounts(
        self,
        model: nn.Module,
        structure: Structure,
        example: Example,
        others: Iterable[Example] = (),
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return what to add to which tensors once the masks are complete, and notes.

        The model is masked only by what was given, so that it still emits the constants.  Of
        ``others``, inputs of other lengths, the first that it takes is looked at as well: what is
        constant in the example may end where a length is padded.
        """
        inputs = self.inputs
        stateful = structure.inferred.recording.stateful
        if inputs is None or stateful:
            # what it keeps may change what is constant
            inputs = _read(model, *[example] * (2 if stateful else 1))
        for other in others:
            try:
                more = _read(model, other)
            except Exception:  # what a model says of a length that it does not take is its own
                continue
            inputs = {path: [*read, *more.get(path, ())] for path, read in inputs.items()}
            break
        with torch.no_grad():
            return self._amounts(model, structure, inputs)

    def _amounts(
        self, model: nn.Module, structure: Structure, inputs: Inputs
    ) -> tuple[dict[str, Tensor], list[str]]:
        place = _Absorbers(model, structure)
        readers = {name: list(place.readers(name)) for name in self.constants}
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
            absorber = place.absorber(reader)
            assert absorber is not None  # else it would be no reader
            tensor, sign = absorber
            layer = model.get_submodule(reader)
            read = inputs[reader][0]
            assert read is not None  # else it would have no constant
            amount, even = _effect(layer, value, read[0].shape)
            mask = self.completed.get(tensor)
            added[tensor] = sign * (amount if mask is None else amount * mask.to(amount))
            if not even:
                notes.append(
                    f"{reader}: zero padding stops a constant at the border; its mean is folded"
                )
        return added, notes


def _read(model: nn.Module, *examples: Example) -> Inputs:
    """Return what each layer that can fold reads in forwards, one after the other."""
    with (
        undisturbed(model, examples),
        evaluating(model),
        torch.no_grad(),
        watching(model) as inputs,
    ):
        for args, kwargs in map(call_arguments, examples):
            model(*args, **kwargs)
    return inputs


@contextmanager
def watching(model: nn.Module) -> Iterator[Inputs]:
    """Collect what each layer that can fold reads while the model runs."""
    inputs: Inputs = {}

    def watch(path: str) -> Any:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:  # no operation, which may be recorded
            known = bool(args) and isinstance(args[0], Tensor)
            inputs.setdefault(path, []).append((args[0], _version(args[0])) if known else None)

        return see

    with Undo() as undo:
        for path, module in model.named_modules():
            if type(module) in READERS:
                see = watch(path)
                undo(partial(unhook, module._forward_pre_hooks, see))
                module.register_forward_pre_hook(see)
        yield inputs


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to, where torch counts that."""
    return -1 if tensor.is_inference() else tensor._version


class _Absorbers:
    """Where a layer can put a constant that it reads."""

    def __init__(self, model: nn.Module, structure: Structure):
        self.model = model
        self.structure = structure
        recording = structure.inferred.recording
        self._means = {Ref(value): name for name, value in recording.buffers.items()}
        self._names = Counter(recording.names.values())

    def readers(self, group: str) -> Iterator[str | None]:
        """Yield the path of each layer that sums over a group; None where none can fold."""
        seen = set()
        for site in self.structure.inferred.sites_of(self.structure[group].atom):
            if site.weight is None:
                continue
            path, _, name = site.weight[0].rpartition(".")
            if path in seen:
                continue
            seen.add(path)
            module = self.model.get_submodule(path)
            # a subclass may do more: standardise its weight, pad by itself
            plain = type(module) in READERS and getattr(module, "groups", 1) == 1
            yield path if plain and name == "weight" and self.absorber(path) else None

    def absorber(self, path: str) -> tuple[str, int] | None:
        """Return the tensor that can take a constant over, and the sign with which it does."""
        r = self.structure.inferred.recording
        if getattr(self.model.get_submodule(path), "bias", None) is not None:
            alone = self._names[r.names.get(f"{path}.bias", "")] == 1  # not another layer's too
            return (f"{path}.bias", 1) if alone else None
        weight = r.parameters.get(r.names.get(f"{path}.weight", ""), -1)
        made = [op.outputs[0].value for op in r.readers.get(weight, ())]
        users = r.readers.get(made[0], []) if len(made) == 1 else []
        if len(users) != 1 or "batch_norm" not in users[0].name or made[0] in r.outputs:
            return None
        mean = self._means.get(users[0].args[3])
        return (mean, -1) if mean is not None else None


def _constant(
    structure: Structure,
    group: str,
    gone: Tensor,
    module: Any,
    path: str,
    inputs: list[tuple[Tensor, int] | None],
) -> Tensor | None:
    """Return the value of each input channel of a layer: the constant, 0 where there is none.

    None if a value varies between places or calls after all, was never seen (an expert that got
    no token), or was overwritten.
    """
    known = [read for read in inputs if read is not None and read[1] == _version(read[0])]
    if not known or len(known) < len(inputs) or not all(x.numel() for x, _ in known):
        return None
    label = labels(structure.tensor(f"{path}.weight")[1].axis, structure[group].atom)
    here = among(label, gone).nonzero().flatten()
    channel = 1 - module.weight.ndim  # from the end: of a batch or of a single input
    seen = [x.index_select(channel, here.to(x.device)).movedim(channel, 0) for x, _ in known]
    low = torch.stack([x.flatten(1).amin(1) for x in seen]).amin(0)
    high = torch.stack([x.flatten(1).amax(1) for x in seen]).amax(0)
    if bool((high - low > STEADY * (1 + high.abs())).any()):
        return None
    return low.new_zeros(label.shape[1]).index_copy(0, here.to(low.device), high)


def _effect(module: Any, value: Tensor, shape: Sequence[int]) -> tuple[Tensor, bool]:
    """Return what constant inputs add to each output channel, and whether equally everywhere.

    Zero padding takes a tap of the kernel away from the outputs near a border: what is returned is
    the mean over all places, as each tap is inside for a share of them.

    >>> conv = nn.Conv1d(1, 1, 3, padding=1)
    >>> _ = nn.init.ones_(conv.weight)
    >>> amount, even = _effect(conv, torch.ones(1), (1, 1, 4))  # 2, 3, 3 and 2 taps are inside
    >>> amount.tolist(), even
    ([2.5], False)
    """
    taps = torch.tensordot(module.weight, value, dims=([1], [0]))  # (out, *kernel)
    rank = taps.ndim - 1
    even = True
    for dim in range(rank if getattr(module, "padding_mode", "") == "zeros" else 0):
        inside = _inside(module, dim, shape[dim - rank]).to(taps)
        even &= bool((inside == 1).all())
        taps = taps * inside.view([-1 if i == dim else 1 for i in range(rank)])
    return taps.reshape(len(taps), -1).sum(1), even


def _inside(module: Any, dim: int, size: int) -> Tensor:
    """Return for each tap of a kernel's dimension the share of outputs for which it is inside."""
    before, after = module._reversed_padding_repeated_twice[::-1][2 * dim : 2 * dim + 2][::-1]
    kernel, step = module.kernel_size[dim], module.dilation[dim]
    outputs = (size + before + after - step * (kernel - 1) - 1) // module.stride[dim] + 1
    first = torch.arange(outputs) * module.stride[dim] - before
    place = first[:, None] + torch.arange(kernel) * step
    return ((place >= 0) & (place < size)).double().mean(0)
