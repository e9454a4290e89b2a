"""One reader of what was pruned, as sums over data say it: all that a repair is given.

It knows nothing of models: a linear layer, one group of a convolution and one expert are all a
weight that multiplies inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import ScoreError
from secateur.runtime.values import not_finite

LEAST = 1e-7
"""The least damping: below it, rounding would decide what data does not."""


@dataclass(frozen=True, eq=False)
class System:
    """``y = x Wᵀ``: the weight, what may stay of it, and second moments of inputs and outputs.

    ``X`` (rows, features) is what the pruned model feeds the reader, ``Y`` (rows, out) what the
    dense model's reader gives, without its bias.  Where a bias or a norm behind can hold an
    intercept, both are centred.  All tensors share one device, and all but the mask one dtype.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> weight = torch.tensor([[3.0, 4.0]])
    >>> mask = torch.tensor([[True, False]])
    >>> system = System.of(weight, mask, x)
    >>> system.error(weight), system.error(weight * mask)
    (tensor([0.]), tensor([8.]))

    Raises:
        ScoreError: a weight or a moment is NaN or infinite.
    """

    weight: Tensor
    """The dense weight, ``(out, features)``."""
    gram: Tensor
    """``XᵀX / rows``, ``(features, features)``."""
    cross: Tensor
    """``XᵀY / rows``, ``(features, out)``."""
    energy: Tensor
    """The mean of ``Y²``, ``(out,)``."""
    mask: Tensor
    """Bool, ``(out, features)``: True is kept."""
    rows: int
    """How many rows of inputs were seen."""

    def __post_init__(self) -> None:
        named = {"weight": self.weight, "Gram matrix": self.gram}
        named |= {"cross moment": self.cross, "output energy": self.energy}
        if wrong := not_finite(named):
            raise ScoreError(
                f"the {wrong[0]} of a reader that is repaired holds NaN or infinite values: look"
                " for the calibration batch whose activations do"
            )

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor, x: Tensor, y: Tensor | None = None) -> System:
        """Return the system of inputs ``(rows, features)`` and outputs ``(rows, out)``.

        Without outputs, they are what the weight makes of the inputs.
        """
        y = x @ weight.T if y is None else y
        rows = len(x)
        return cls(weight, x.T @ x / rows, x.T @ y / rows, y.square().mean(0), mask, rows)

    def error(self, weight: Tensor) -> Tensor:
        """Return each output's mean squared error with another weight, ``(out,)``.

        What is left of it beside the energy is rounded at the energy's scale.
        """
        moved = (weight @ self.gram - 2 * self.cross.T) * weight
        return (self.energy + moved.sum(1)).clamp(min=0)

    def ridge(self, damping: float) -> Tensor:
        """Return what a damping adds to the diagonal: its share of the inputs' mean square.

        Inputs that are always zero, as those that were removed are, do not count for the mean.
        Moments that were summed in float32 do not know less than ``LEAST``, which is added always.

        >>> zero_or_two = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
        >>> System.of(torch.ones(1, 2), torch.ones(1, 2).bool(), zero_or_two).ridge(0.5)
        tensor(2.)
        """
        diagonal = self.gram.diagonal()
        live = diagonal > 0
        mean = diagonal.where(live, 0).sum() / live.sum().clamp(min=1)
        return max(damping, LEAST) * mean.where(live.any(), torch.ones_like(mean))
