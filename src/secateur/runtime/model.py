"""What is no model that can be looked at: said at once, before torch says it in other words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from secateur.errors import ModelError

PARALLEL = {  # by name, as these are slow to import
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel",
}
COMPILED = "torch._dynamo.eval_frame.OptimizedModule"


def check_model(model: Any) -> None:
    """Look at what was given for a model.

    Raises:
        ModelError: it is no ``torch.nn.Module``, one whose weights have no shapes yet, or a wrapper
            (of DDP, ``torch.compile`` or TorchScript), around the whole or a part.

    >>> check_model(nn.Linear)
    Traceback (most recent call last):
        ...
    secateur.errors.ModelError: a model is needed, not the class Linear: give Linear(...)
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"a model is needed, not {_said(model)}")
    for path, module in model.named_modules():
        if wrapped := _wrapped(module):
            where = f"its {path!r} is {wrapped}" if path else f"this is {wrapped}"
            raise ModelError(f"a model of plain modules is needed, and {where}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in tensors if is_lazy(tensor)]:
        more = f" and {len(lazy) - 1} more" if len(lazy) > 1 else ""
        raise ModelError(
            f"{lazy[0]!r}{more} of this {type(model).__name__} has no shape yet, as lazy layers "
            "have none before their first forward: run the model once on an input"
        )


def _wrapped(module: nn.Module) -> str | None:
    """Say what a wrapper is whose forward is not its module's own, and what to give instead."""
    bases = {f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__}
    name = type(module).__name__
    if not bases.isdisjoint(PARALLEL):
        return f"wrapped in {name}: give .module, prune, and wrap what comes of it"
    if any(getattr(hook, "offload", False) for hook in _hooks_of(module)):
        return (
            f"a {name} whose weights accelerate keeps elsewhere until they are used: load the "
            "model whole, or give its folder to secateur prune --stream"
        )
    if COMPILED in bases:
        return "what torch.compile made: give ._orig_mod, prune, and compile what comes of it"
    if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):  # which may not be set
        return (
            "what torch.export made, whose shapes are fixed: give the module that it was made "
            "from, prune, and export what comes of it"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return (
            f"a scripted or traced {name}, whose shapes are fixed and whose operations are hidden: "
            "give the module that it was made from, prune, and script what comes of it"
        )
    return None


def _hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """Return accelerate's hooks around a module's forward."""
    hook = vars(module).get("_hf_hook")
    return tuple(getattr(hook, "hooks", (hook,)))


def _said(given: Any) -> str:
    """Say what was given, and what to give."""
    kind = type(given).__name__
    if isinstance(given, type):
        name = given.__name__
        return f"the class {name}: give {name}(...)"
    if isinstance(given, Mapping):
        return f"a {kind}: build the model, and let it load_state_dict() that"
    if callable(given):
        name = getattr(given, "__name__", kind)
        return (
            f"the callable {name!r}, whose weights nobody can find: give the torch.nn.Module that "
            "it calls, or make it the forward of one"
        )
    return f"{kind}: give a torch.nn.Module"


def scale_of_norm(model: nn.Module, variance: str) -> Tensor:
    """Return what a norm multiplies each channel by, from the name of its variance's buffer."""
    norm = model.get_submodule(variance.rpartition(".")[0])
    deviation = (model.get_buffer(variance) + getattr(norm, "eps", 0.0)).sqrt()
    weight = getattr(norm, "weight", None)
    return (1 if weight is None else weight.detach()) / deviation
