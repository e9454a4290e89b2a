"""PEFT's adapters on masked and pruned models: trained and merged without losing zeros.

An adapter is dense: ``W + BA`` has no zeros left where ``W`` has them.  ``merge`` keeps them, and
says how much of what was learned fell on them; after ``keep_zeros`` nothing does, as the adapter
then trains what is merged.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.masks import masking
from secateur.masks.classes import fill
from secateur.runtime.extras import library
from secateur.runtime.model import check_model
from secateur.runtime.undo import Undo, undoable
from secateur.types import Masks

NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What a weight may be made of to be added to; any other stands for quantised ones."""

REFUSED = (ValueError, RuntimeError, NotImplementedError, AttributeError)
"""What PEFT raises for what it cannot merge; a layer that has no merge is an AttributeError."""


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


def merge(model: nn.Module) -> Merged:
    """Merge PEFT's active adapters into the weights of the model, and keep its zeros.

    Zeros are where masks are on, and else where a weight was exactly zero before: N:M patterns,
    elements and channels.  The merged weights are those that PEFT's own ``merge_and_unload`` makes,
    times that pattern.  A tensor that was zero throughout, as fresh biases are, has no pattern.

    Args:
        model: a ``PeftModel`` of LoRA or another tuner that adds to weights, or trains copies of
            modules; its base model is changed in place.

    Returns: the base model without adapters; parameters that PEFT froze stay frozen.

    Raises:
        ModelError: it is no such model; adapters are merged already, or disabled; a base weight is
            quantised, sharded, on ``meta``, or shared with a layer that has no adapter; or PEFT
            cannot merge it.  Nothing has changed.
        MissingExtraError: PEFT is not installed.

    >>> from peft import LoraConfig, get_peft_model
    >>> from secateur import prune
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
    tuner = _tuner(model)
    layers = dict(_layers(tuner.model))
    _check_shared(tuner.model, layers)
    changes = {path: _tried(path, layer) for path, layer in layers.items()}
    with Undo(lasting=True):
        masked = {path: _bare(layer) for path, layer in layers.items()}
        try:
            merged = Merged(tuner.merge_and_unload())
        except REFUSED as error:
            raise ModelError(f"PEFT cannot merge this model: {error}") from error
    for path, found in changes.items():
        module = merged.model.get_submodule(path)
        _make_zeros(module, found)
        masked[path].put_on(module)
        for name, change in found.items():
            merged.add(f"{path}.{name}", change)
    return merged


def keep_zeros(model: nn.Module) -> None:
    """Let LoRA's adapters change only weights that are not zero, from now on.

    A layer then computes with ``W + M * BA``, where ``M`` is 0 wherever ``W`` is (masks that are on
    included, also as they change): what is trained is what ``merge`` makes, N:M patterns too.  The
    product is as large as the weight, for each layer with an adapter that a backward goes through.
    Say it again for a model whose adapters were loaded: no file of PEFT's holds it.

    Args:
        model: a ``PeftModel`` of LoRA, before it is trained.

    Raises:
        ModelError: it is no such model, or one whose adapters are no plain LoRA of layers (DoRA and
            other variants, whole parameters, fused attention); nothing has changed.
        MissingExtraError: PEFT is not installed.

    >>> from peft import LoraConfig, get_peft_model
    >>> net = nn.Sequential(nn.Linear(4, 4))
    >>> net[0].weight.data[:, :2] = 0
    >>> adapted = get_peft_model(net, LoraConfig(target_modules=["0"], init_lora_weights=False))
    >>> keep_zeros(adapted)
    >>> bool((adapted(torch.eye(4))[:2] == net[0].base_layer.bias).all())  # as before
    True

    See also:
        ``merge``, which works without it, and then says what it had to leave out.
    """
    check_model(model)
    tuner = _tuner(model)
    lora = library("peft.tuners.lora.layer", "peft", "keep_zeros()", "peft")
    found = [(p, m) for p, m in tuner.model.named_modules() if isinstance(m, lora.LoraLayer)]
    if not found:
        raise ModelError(f"this {type(model).__name__} has no LoRA layers")
    for path, layer in found:
        if why := _no_place(layer, (lora.ParamWrapper, lora.MultiheadAttention)):
            raise ModelError(
                f"{path!r} {why}: leave it out of the adapter, or train without keep_zeros()"
            )
    for _, layer in found:
        for adapter in layer.scaling:
            undoable(partial(layer.lora_variant.pop, adapter, None))
            layer.lora_variant[adapter] = Sparse()


def _no_place(layer: Any, fused: tuple[type, ...]) -> str | None:
    """Say why what an adapter adds to a layer cannot be masked, or None."""
    if isinstance(layer, fused):
        return f"is adapted by PEFT's {type(layer).__name__}, which has no place for a mask"
    for adapter, variant in layer.lora_variant.items():
        if not isinstance(variant, Sparse):
            return f"has no plain LoRA but a {type(variant).__name__} in its adapter {adapter!r}"
    weight = getattr(layer.get_base_layer(), "weight", None)
    if weight is None or not (weight != 0).any():
        return "has no weight that is not zero, so that nothing of it could be learned"
    return None


class Sparse:
    """LoRA whose product is zero where the weight is: one of PEFT's variants."""

    def supports_lora_conversion(self) -> bool:
        return False

    def forward(
        self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        base = module.get_base_layer()
        given = {"weight": self.change(module, active_adapter, base.weight)}
        if getattr(base, "bias", None) is not None:
            given["bias"] = torch.zeros_like(base.bias, dtype=given["weight"].dtype)
            if module.lora_bias[active_adapter]:
                scaling = module.scaling[active_adapter]
                given["bias"] = module.lora_B[active_adapter].bias * scaling
        if x.is_floating_point():  # what an embedding is given is not
            x = module.lora_dropout[active_adapter](x)
        return result + torch.func.functional_call(base, given, (x,))

    def change(self, module: Any, adapter: str, weight: Tensor) -> Tensor:
        """Return what an adapter adds to a weight."""
        made: Tensor = module.get_delta_weight(adapter)
        return made * (weight != 0)

    def merge_safe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        made = self.change(module, active_adapter, orig_weight)
        return orig_weight + made.to(orig_weight.dtype)

    def merge_unsafe(self, module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    def unmerge(self, module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        made = self.change(module, active_adapter, orig_weight)
        return orig_weight - made.to(orig_weight.dtype)


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
    module = _base(layer)
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


def _tuner(model: nn.Module) -> Any:
    peft = library("peft", "peft", "a model with adapters", "peft")
    tuners = library("peft.tuners.tuners_utils", "peft", "a model with adapters", "peft")
    kind = type(model).__name__
    if not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        injected = any(isinstance(m, tuners.BaseTunerLayer) for m in model.modules())
        hint = " around its adapters: build it with get_peft_model()" if injected else ""
        raise ModelError(f"a PeftModel is needed, and this {kind} is none{hint}")
    if not isinstance(model.base_model, tuners.BaseTuner):
        raise ModelError(f"the adapters of this {kind} add to its inputs, and have no weights")
    return model.base_model


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what PEFT puts in the place of modules, by path; the outermost of each place."""
    tuners = library("peft.tuners.tuners_utils", "peft", "a model with adapters", "peft")
    other = library("peft.utils.other", "peft", "a model with adapters", "peft")
    last = None
    for path, module in model.named_modules():
        if last is not None and path.startswith(f"{last}."):
            continue
        if isinstance(module, (tuners.BaseTunerLayer, other.AuxiliaryTrainingWrapper)):
            yield path, module
            last = path


def _base(layer: Any) -> nn.Module:
    """Return the module that PEFT has put a layer in the place of."""
    found: nn.Module = (
        layer.original_module if hasattr(layer, "original_module") else layer.get_base_layer()
    )
    return found


def _plain(name: str) -> str:
    """Return the name that a parameter has when a layer inside, too, is without its adapter."""
    return name.replace("base_layer.", "")


def _check_shared(model: nn.Module, layers: Mapping[str, Any]) -> None:
    """Look for weights that a merge would change for layers without an adapter, too."""
    holders: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), []).append(module)
    for path, layer in layers.items():
        inside = {id(module) for module in layer.modules()}
        for name, parameter in _base(layer).named_parameters():
            if any(id(module) not in inside for module in holders[id(parameter)]):
                raise ModelError(
                    f"{_plain(name)!r} of {path!r} is shared with another layer (tied weights), "
                    "which a merge would change, too: untie them before the adapter is put on"
                )


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
    weights = dict(_base(layer).named_parameters())
    odd = [name for name, p in weights.items() if not _addable(p)]
    if odd or not weights:
        name = _plain(odd[0]) if odd else "weight"
        raise ModelError(
            f"{name!r} of {path!r} is quantised, sharded or on meta, so that nothing can be added "
            "to it: load the base model whole, in floating point, and its adapter onto that"
        )
    twin = copy.deepcopy(layer)
    masking.take_off(twin)  # what it reads as is what is merged into
    before = {_plain(n): p.detach().clone() for n, p in _base(twin).named_parameters()}
    try:
        after = _unwrapped(twin)
    except REFUSED as error:
        raise ModelError(f"PEFT cannot merge {path!r}: {error}") from error
    return {
        name: _Change.of(before[name], value.detach())
        for name, value in after.named_parameters()
        if name in before
    }


def _addable(parameter: Tensor) -> bool:
    plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
    return plain and parameter.dtype in NUMBERS and not parameter.is_meta


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
