"""``nn.RMSNorm`` without an epsilon, which takes that of the type it computes in.

While a model is traced the layer holds that number, so that a cut can change it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .table import replaces


@replaces(nn.RMSNorm)
class RMSNorm(nn.RMSNorm):
    @staticmethod
    def extra(module: nn.Module) -> dict[str, Any]:
        weight = module._parameters.get("weight")
        if vars(module).get("eps") is not None or weight is None:
            return {}
        computed = torch.promote_types(weight.dtype, torch.float32)
        return {"eps": torch.finfo(computed).eps}

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return True
