"""What of a model and of the process a call must leave as it was, as values to compare."""

from __future__ import annotations

import math
import random
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from secateur.runtime import alone, claims

optimizers: Any = sys.modules["torch.optim.optimizer"]


def state_of(model: nn.Module) -> dict[Any, Any]:
    """Return classes, attributes, modes, hooks and tensors of all modules, comparable."""
    found: dict[Any, Any] = {}
    for path, module in model.named_modules():
        held = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        plain = {
            k: (type(v), v) for k, v in held.items() if isinstance(v, (int, float, str, tuple))
        }
        found[path] = type(module), set(held), plain
        objects = {k: v for k, v in held.items() if isinstance(v, SimpleNamespace)}
        found[path, "objects"] = {k: (id(v), repr(v)) for k, v in objects.items()}
        hooks = module._forward_hooks, module._forward_pre_hooks
        found[path, "hooks"] = [len(each) for each in hooks]
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                values = tensor.shape, tensor.detach().flatten().tolist()
                found[path, name] = id(tensor), values, tensor.requires_grad, tensor.grad is None
    return found


def process_state() -> dict[str, Any]:
    """Return what the process has once, and a call may put something else in the place of."""
    c: Any = torch._C
    return {
        "hooks of modules": [
            len(getattr(module_hooks, f"_global_{name}"))
            for name in (
                "forward_hooks",
                "forward_pre_hooks",
                "forward_hooks_with_kwargs",
                "forward_hooks_always_called",
            )
        ],
        "hooks of optimizers": len(optimizers._global_optimizer_pre_hooks),
        "modes": (c._len_torch_dispatch_stack(), c._len_torch_function_stack()),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "fast path": torch.backends.mha.get_fastpath_enabled,
        "claims": [*claims._claims.values(), claims._owner.get(), *alone._held.values()],
        "warnings": [*warnings.filters],
        "math": [getattr(math, name) for name in ("comb", "gcd", "isqrt", "log", "perm")],
        "scripts": torch.jit.ScriptFunction.__call__,  # type: ignore[attr-defined]
        "torch's numbers": torch.get_rng_state().tolist(),
        "Python's numbers": random.getstate(),
    }


def changed(before: dict[Any, Any], after: dict[Any, Any]) -> list[str]:
    """Return the names of what is another thing than before."""
    return [str(name) for name in {**before, **after} if before.get(name) != after.get(name)]
