"""What masks are measured by: modules that multiply their parameters by hand, in each call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class ByHand(nn.Module):
    """A module that is called with products in place of its parameters."""

    def __init__(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module, self.masks = module, dict(masks)

    def forward(self, *args: Any) -> Any:
        own = dict(self.module.named_parameters())
        return functional_call(self.module, {n: p * self.masks[n] for n, p in own.items()}, args)


def by_hand(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Let every module of a model that has parameters itself multiply them by hand.

    Names of parameters change; their order does not.
    """
    for path, module in list(model.named_modules()):
        own = {
            n: masks[f"{path}.{n}"].to(p.dtype) for n, p in module.named_parameters(recurse=False)
        }
        if own:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, ByHand(module, own))
    return model
