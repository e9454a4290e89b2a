"""einops' layers, which keep the lengths of their axes twice; traced ones read the public dict.

``Rearrange("b n (h d) -> b h n d", h=4)`` holds ``{"h": 4}``, and apart what its forward reads.
After a cut it is an ordinary layer with other lengths.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .table import replaces

try:
    import einops
    from einops.layers import torch as layers
except ImportError:  # then no model has such a layer
    pass
else:

    class _Lengths:
        @staticmethod
        def extra(module: nn.Module) -> dict[str, Any]:
            return {}

        @staticmethod
        def fits(module: nn.Module) -> bool:
            return True

    @replaces(layers.Rearrange)
    class Rearrange(_Lengths, layers.Rearrange):
        def forward(self, x: Tensor) -> Any:
            return einops.rearrange(x, self.pattern, **self.axes_lengths)

    @replaces(layers.Reduce)
    class Reduce(_Lengths, layers.Reduce):
        def forward(self, x: Tensor) -> Any:
            return einops.reduce(x, self.pattern, self.reduction, **self.axes_lengths)
