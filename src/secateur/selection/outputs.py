"""How much there is where a layer's outputs go: beside it an error is large or small.

Half of one layer's outputs may be nothing beside the residual stream that they are added to, and a
tenth of another's all that the next layer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.sums import product_with, sum_behind
from secateur.runtime.model import scale_of_norm
from secateur.scoring.readings import Patches, Reading
from secateur.structure import Structure

Sums = dict[str, Tensor]


class Outputs:
    """Sums of what layers' outputs are added to, by the layers' weights.

    Attributes:
        scales: what a norm behind a layer multiplies each of its outputs by, ``(outputs,)``.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Sums] = {}
        self.new: dict[str, Sums] = {}
        self.scales: dict[str, Tensor] = {}
        self.rows: Callable[[Tensor], Tensor | None] = lambda _: None
        """Which rows of a tensor are no padding."""
        self._added: set[str] = set()

    def wanted(
        self, model: nn.Module, structure: Structure | None, names: set[str]
    ) -> dict[int, Callable[[Tensor], None]]:
        """Return what is to be called with what the operations that add make."""
        found: dict[int, Callable[[Tensor], None]] = {}
        self._added = set()
        for name in names if structure is not None else ():
            assert structure is not None
            recording = structure.inferred.recording
            product = product_with(recording, name)
            summed = sum_behind(recording, product) if product is not None else None
            if summed is None or product is None:
                continue
            if summed.norm is not None:
                self.scales[name] = scale_of_norm(model, summed.norm).detach()
            channel = 1 if "conv" in product.name else -1
            found[summed.at] = partial(self._add, name, channel)
            self._added.add(name)
        return found

    def observe(self, reading: Reading, out: Tensor) -> None:
        """Add a layer's own outputs, if they are added to nothing."""
        if reading.arrangement.name not in self._added:
            self._add(reading.arrangement.name, 1 if isinstance(reading, Patches) else -1, out)

    def _add(self, name: str, channel: int, out: Tensor) -> None:
        rows = self.rows(out) if channel == -1 else None
        x = out.detach().movedim(channel, -1).reshape(-1, out.shape[channel]).float()
        x = x if rows is None else x[rows]
        found = {
            "sum": x.sum(0).double(),
            "square": x.square().sum(0).double(),
            "rows": torch.tensor(float(len(x)), dtype=torch.float64),
        }
        add(self.new.setdefault(name, {}), found)

    def variance(self, name: str) -> float | None:
        """Return the summed variances of what a layer's outputs are added to, if it is known."""
        if name not in self.sums:
            return None
        sums = self.sums[name]
        rows = sums["rows"].clamp(min=1)
        spread = (sums["square"] / rows - (sums["sum"] / rows).square()).clamp(min=0).sum()
        return max(float(spread), 1e-30)

    def scaled(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight whose rows have the scale of the norm behind it."""
        scale = self.scales.get(name)
        if scale is None or len(scale) != len(weight):
            return weight
        return weight * scale.to(weight).reshape(-1, *[1] * (weight.ndim - 1))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {n: dict(s) for n, s in self.sums.items()}, "scales": dict(self.scales)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {name: dict(sums) for name, sums in state.get("sums", {}).items()}
        self.scales = dict(state.get("scales", {}))


def add(total: Sums, more: Mapping[str, Tensor]) -> None:
    """Add sums to what was summed before."""
    for name, value in more.items():
        total[name] = total[name].to(value.device) + value if name in total else value
