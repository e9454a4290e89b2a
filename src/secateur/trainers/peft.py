"""PEFT's LoRA on masked and pruned models: trained without losing zeros; ``merging`` merges it.

An adapter is dense: ``W + BA`` has no zeros left where ``W`` has them, so that only a part of what
was learned can be merged.  After ``keep_zeros`` an adapter learns what can.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.runtime.extras import library
from secateur.runtime.model import check_model
from secateur.runtime.undo import undoable

NUMBERS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What a weight may be made of to be added to; any other stands for quantised ones."""
REFUSED = (ValueError, RuntimeError, NotImplementedError, AttributeError)
"""What PEFT raises for what it cannot merge; a layer that has no merge is an AttributeError."""
BESIDE = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways to begin an adapter that leave the base weights as they are."""


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
            other variants, AdaLoRA, whole parameters, fused attention); nothing has changed.
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
    tuner = tuner_of(model)
    lora = library("peft.tuners.lora.layer", "peft", "keep_zeros()", "peft")
    found = [(p, m) for p, m in tuner.model.named_modules() if isinstance(m, lora.LoraLayer)]
    if not found:
        raise ModelError(f"this {type(model).__name__} has no LoRA layers")
    for path, layer in found:
        weights_of(path, layer)
        if why := _no_place(layer, (lora.Linear, lora.Embedding, lora._ConvNd)):
            raise ModelError(
                f"{path!r} {why}: leave it out of the adapter, or train without keep_zeros()"
            )
    for _, layer in found:
        for adapter in layer.scaling:
            undoable(partial(layer.lora_variant.pop, adapter, None))
            layer.lora_variant[adapter] = Sparse()


def _no_place(layer: Any, plain: Any) -> str | None:
    """Say why what an adapter adds to a layer cannot be masked, or None."""
    if not isinstance(layer, plain):
        return f"is adapted by PEFT's {type(layer).__name__}, which has no place for a mask"
    for adapter, variant in layer.lora_variant.items():
        if not isinstance(variant, Sparse):
            return f"has no plain LoRA but a {type(variant).__name__} in its adapter {adapter!r}"
    weight = layer.get_base_layer().weight
    if not (weight != 0).any():
        return "has no weight that is not zero, so that nothing of it could be learned"
    try:
        with torch.no_grad():
            changes = [Sparse().change(layer, adapter, weight) for adapter in layer.scaling]
    except REFUSED as error:
        return f"cannot be merged by PEFT ({error})"
    return None if all(c.shape == weight.shape for c in changes) else "cannot be merged by PEFT"


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


def tuner_of(model: nn.Module) -> Any:
    """Return what holds the adapters of a ``PeftModel``.

    Raises:
        ModelError: it is none, or its adapters have nothing to do with zeros that are there.
        MissingExtraError: PEFT is not installed.
    """
    peft = library("peft", "peft", "a model with adapters", "peft")
    tuners = library("peft.tuners.tuners_utils", "peft", "a model with adapters", "peft")
    kind = type(model).__name__
    if not isinstance(model, (peft.PeftModel, peft.PeftMixedModel)):
        injected = any(isinstance(m, tuners.BaseTunerLayer) for m in model.modules())
        hint = " around its adapters: build it with get_peft_model()" if injected else ""
        raise ModelError(f"a PeftModel is needed, and this {kind} is none{hint}")
    if not isinstance(model.base_model, tuners.BaseTuner):
        raise ModelError(f"the adapters of this {kind} add to its inputs, and have no weights")
    for name, config in model.peft_config.items():
        begun = getattr(config, "init_lora_weights", True)
        if begun not in BESIDE:
            raise ModelError(
                f"adapter {name!r} was put on with init_lora_weights={begun!r}, which has changed "
                "the base weights, zeros too: put it on with init_lora_weights=True"
            )
    return model.base_model


def layers_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
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


def base_of(layer: Any) -> nn.Module:
    """Return the module that PEFT has put a layer in the place of."""
    found: nn.Module = (
        layer.original_module if hasattr(layer, "original_module") else layer.get_base_layer()
    )
    return found


def plain_name(name: str) -> str:
    """Return the name that a parameter has when a layer inside, too, is without its adapter."""
    return name.replace("base_layer.", "")


def weights_of(path: str, layer: Any) -> dict[str, Tensor]:
    """Return the parameters below a layer of PEFT's, by their names there.

    Raises:
        ModelError: nothing can be added to one of them.
    """
    weights: dict[str, Tensor] = dict(base_of(layer).named_parameters())
    odd = [name for name, p in weights.items() if not _addable(p)]
    if odd or not weights:
        name = plain_name(odd[0]) if odd else "weight"
        raise ModelError(
            f"{name!r} of {path!r} is quantised, sharded or on meta, so that nothing can be added "
            "to it: load the base model whole, in floating point, and its adapter onto that"
        )
    return weights


def _addable(parameter: Tensor) -> bool:
    plain = type(parameter) is nn.Parameter and type(parameter.data) is Tensor
    return plain and parameter.dtype in NUMBERS and not parameter.is_meta
