"""``merge``: PEFT's adapters go into the weights, and what was zero stays zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.masks import masking
from secateur.masks.classes import fill
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.undo import undoable
from secateur.types import Masks

from .peft import REFUSED, base_of, layers_of, plain_name, tuner_of, weights_of


@dataclass
class Merged:
    """A model without adapters, and what became of its zeros.

    Attributes:
        model: of the class that it had before PEFT wrapped it; masks that were on are on.
        zeros: parameter name → how many of its elements were zero, and are.
        left_out: parameter name → the share of what adapters change there that fell on zeros and
            was left out, by sums of squares, in [0, 1].
        notes: what else there is to know.
    """

    model: nn.Module
    zeros: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, change: _Change) -> None:
        """Take down what became of a tensor."""
        if change.zero is not None:
            self.zeros[name] = int(change.zero.sum())
        if change.left_out is not None:
            self.left_out[name] = change.left_out
        if change.revived:
            self.notes.append(f"{name} was zero throughout, and is what was learned now")

    def __str__(self) -> str:
        lines = [
            f"adapters merged into {len(self.left_out)} tensors; "
            f"{sum(self.zeros.values()):,} zeros kept in {len(self.zeros)} of them"
        ]
        if most := max(self.left_out.values(), default=0.0):
            worst = max(self.left_out, key=lambda name: self.left_out[name])
            mean = sum(self.left_out.values()) / len(self.left_out)
            lines.append(
                f"left out, as it fell on zeros: {mean:.0%} of what was learned, up to {most:.0%} "
                f"in {worst}; after keep_zeros() adapters learn what is merged"
            )
        return "\n".join([*lines, *self.notes])


@in_ordinary_mode
def merge(model: nn.Module) -> Merged:
    """Merge PEFT's active adapters into the weights of the model, and keep its zeros.

    Zeros are where masks are on, and else where a weight was exactly zero before: N:M patterns,
    elements and channels.  The merged weights are those that PEFT's own ``merge_and_unload`` makes,
    times that pattern.  A tensor that was zero throughout, as fresh biases are, has no pattern.

    Args:
        model: a ``PeftModel`` of LoRA or another tuner that adds to weights, or trains copies of
            modules; its base model is changed in place.

    Returns: the base model without adapters; parameters that PEFT froze stay frozen.  Meanwhile
        the adapted weights are held twice, to put them back if the call is interrupted.

    Raises:
        ModelError: it is no such model; adapters are merged already, or disabled; a base weight is
            quantised, sharded, on ``meta``, or shared with a layer that has no adapter; or PEFT
            cannot merge it.  Nothing has changed.
        MissingExtraError: PEFT is not installed.

    >>> from peft import LoraConfig, get_peft_model
    >>> from secateur import keep_zeros, prune
    >>> net = nn.Sequential(nn.Linear(8, 16))
    >>> sparse = prune(net, torch.zeros(1, 8), granularity="2:4", criterion="l1").model
    >>> adapted = get_peft_model(sparse, LoraConfig(r=2, target_modules=["0"]))
    >>> keep_zeros(adapted)  # and train it
    >>> merged = merge(adapted)
    >>> type(merged.model[0]).__name__, merged.zeros["0.weight"]
    ('Linear', 64)

    See also:
        ``keep_zeros``, without which an adapter learns what no sparse weight can hold.
    """
    check_model(model)
    tuner = tuner_of(model)
    idle = sorted(set(tuner.peft_config) - set(tuner.active_adapters))
    layers = dict(layers_of(tuner.model))
    _check_shared(tuner.model, layers)
    changes = {path: _tried(path, layer) for path, layer in layers.items()}
    masked = {path: _bare(layer) for path, layer in layers.items()}
    _register(tuner, layers.values())
    merged = Merged(_without_adapters(tuner))
    for path, found in changes.items():
        module = merged.model.get_submodule(path)
        _make_zeros(module, found)
        masked[path].put_on(module)
        for name, change in found.items():
            merged.add(f"{path}.{name}", change)
    merged.notes += [f"adapter {name!r} was not active, and is gone" for name in idle]
    return merged


def _register(tuner: nn.Module, layers: Iterable[Any]) -> None:
    """Register what takes a merge back: where modules are, what they hold, and weights' values."""
    for module in tuner.modules():
        undoable(partial(_put_back, vars(module), _held(module)))
    if (config := getattr(getattr(tuner, "model", None), "config", None)) is not None:
        undoable(partial(_put_back, vars(config), dict(vars(config))))
    for layer in layers:
        for parameter in base_of(layer).parameters():
            undoable(partial(_refill, parameter, parameter.data, parameter.detach().clone()))


def _held(module: nn.Module) -> dict[str, Any]:
    return {k: copy.copy(v) if type(v) in (dict, list) else v for k, v in vars(module).items()}


def _put_back(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    now.clear()
    now.update(before)


def _refill(parameter: Tensor, data: Tensor, values: Tensor) -> None:
    data.copy_(values)
    parameter.data = data


@dataclass(frozen=True)
class _Change:
    """What a merge does to one tensor."""

    zero: Tensor | None  # bool, where it is to stay zero, if anywhere
    left_out: float | None  # None: nothing changes
    revived: bool  # it was zero throughout

    @classmethod
    def of(cls, before: Tensor, after: Tensor) -> _Change:
        zero = before == 0
        squares = (after.double() - before.double()).square()
        total = float(squares.sum())
        if bool(zero.all()):
            return cls(None, 0.0 if total else None, total > 0)
        left_out = float(squares[zero].sum()) / total if total else None
        return cls(zero if bool(zero.any()) else None, left_out, False)


@dataclass(frozen=True)
class _Masked:
    """The masks of a module that were taken off, and the values below them."""

    masks: Masks
    below: Mapping[str, Tensor]
    learned: bool

    def put_on(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        for name, mask in self.masks.items():
            fill(parameters[name], ~mask, self.below[name])
        masking.put_on(module, self.masks, differentiable=self.learned)


def _bare(layer: Any) -> _Masked:
    """Take the masks off the module below a layer, as PEFT cannot write to what is masked."""
    module = base_of(layer)
    on, parameters = masking.masks_on(module), dict(module.named_parameters())
    below = {name: parameters[name].detach()[~mask] for name, mask in on.items()}
    learned = any(mask.requires_grad for mask in masking.held(module))
    found = _Masked(on, below, learned)
    undoable(partial(found.put_on, module))
    masking.take_off(module)
    return found


@torch.no_grad()
def _make_zeros(module: nn.Module, found: Mapping[str, _Change]) -> None:
    parameters = dict(module.named_parameters())
    for name, change in found.items():
        if change.zero is not None:
            fill(parameters[name], change.zero, torch.zeros(int(change.zero.sum())))


def _check_shared(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Look for weights that a merge would change in a place without that adapter, too."""
    adapted = {id(layer) for layer in layers.values()}
    seen, ahead, outside = set[int](), [model], set[int]()
    while ahead:
        module = ahead.pop()
        seen.add(id(module))
        outside.update(map(id, module._parameters.values()))
        ahead += [m for m in module.children() if id(m) not in adapted | seen]
    for path, layer in layers.items():
        own = {id(p): plain_name(name) for name, p in base_of(layer).named_parameters()}
        if twice := own.keys() & outside:
            raise ModelError(
                f"{own[twice.pop()]!r} of {path!r} is shared with another layer (tied weights), "
                "which a merge would change, too: untie them before the adapter is put on"
            )
        outside.update(own)


def _tried(path: str, layer: Any) -> dict[str, _Change]:
    """Merge a copy of one layer, and return what that does to its tensors.

    Raises:
        ModelError: it cannot be merged.
    """
    for inner in layer.modules():
        if getattr(inner, "merged_adapters", None):
            raise ModelError(f"an adapter is merged at {path!r}: unmerge_adapter() first")
        if getattr(inner, "disable_adapters", False):
            raise ModelError(f"adapters are disabled at {path!r}: enable_adapter_layers() first")
    weights_of(path, layer)
    twin = copy.deepcopy(layer)
    masking.take_off(twin)  # what it reads as is what is merged into
    before = {plain_name(n): p.detach().clone() for n, p in base_of(twin).named_parameters()}
    try:
        after = _unwrapped(twin)
    except REFUSED as error:
        raise ModelError(f"PEFT cannot merge {path!r}: {error}") from error
    return {
        name: _Change.of(before[name], value.detach())
        for name, value in after.named_parameters()
        if name in before
    }


def _without_adapters(tuner: Any) -> nn.Module:
    made: nn.Module
    try:
        made = tuner.merge_and_unload()
    except REFUSED as error:
        raise ModelError(f"PEFT cannot merge this model: {error}") from error
    return made


def _unwrapped(layer: Any) -> nn.Module:
    """Merge a layer and return what is left of it, as PEFT does with each of a model."""
    made: nn.Module
    if hasattr(layer, "unload_and_optionally_merge_module"):
        made = layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=True, adapter_names=None
        )
    else:
        layer.merge(safe_merge=True)
        made = layer.get_base_layer()
    return made
