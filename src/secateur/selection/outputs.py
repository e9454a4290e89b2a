"""How much there is where a layer's outputs go: beside it an error is large or small.

Half of one layer's outputs may be nothing beside the residual stream that they are added to, and a
tenth of another's all that the next layer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.graph.sums import products, sum_behind
from secateur.runtime.model import scale_of_norm
from secateur.scoring.arrangement import Arrangement
from secateur.scoring.readings import Patches, Reading
from secateur.structure import Structure

Sums = dict[str, Tensor]
Key = tuple[str, Arrangement | None]
"""A weight, and in which of several ways it is read, where its outputs are added to nothing."""


class Outputs:
    """Sums of what layers' outputs are added to, by the layers' weights.

    Attributes:
        summing: whether anybody wants the sums; they take a pass over all outputs.
        scales: what a norm behind a layer multiplies each of its outputs by, ``(outputs,)``.
    """

    def __init__(self, summing: bool = False) -> None:
        self.summing = summing
        self.sums: dict[Key, Sums] = {}
        self.new: dict[Key, Sums] = {}
        self.scales: dict[str, Tensor] = {}
        self.rows: Callable[[Tensor], Tensor | None] = lambda _: None
        """Which rows of a tensor are no padding."""
        self._added: set[str] = set()

    def wanted(
        self, model: nn.Module, structure: Structure | None, names: set[str]
    ) -> dict[int, Callable[[Tensor], None]]:
        """Return what is to be called with what the operations that add make."""
        added: dict[int, list[tuple[Key, int]]] = {}
        self._added = set()
        if structure is None:
            return {}
        recording = structure.inferred.recording
        for name, product in products(recording).items():
            summed = sum_behind(recording, product) if name in names else None
            if summed is None:
                continue
            if summed.norm is not None:
                self.scales[name] = scale_of_norm(model, summed.norm).detach()
            if not self.summing:
                continue
            channel = 1 if "conv" in product.name else -1
            added.setdefault(summed.at, []).append(((name, None), channel))
            self._added.add(name)
        return {at: partial(self._add_each, of) for at, of in added.items()}

    def observe(self, reading: Reading, out: Tensor) -> None:
        """Add a layer's own outputs, if they are added to nothing."""
        how = reading.arrangement
        if self.summing and how.name not in self._added:
            self._add((how.name, how), 1 if isinstance(reading, Patches) else -1, out)

    def _add_each(self, of: Sequence[tuple[Key, int]], out: Tensor) -> None:
        """Add a sum for each of the layers that it is of: there may be two."""
        for key, channel in of:
            self._add(key, channel, out)

    def _add(self, key: Key, channel: int, out: Tensor) -> None:
        rows = self.rows(out) if channel == -1 else None
        x = out.detach().movedim(channel, -1).reshape(-1, out.shape[channel]).float()
        x = x if rows is None else x[rows]
        found = {
            "sum": x.sum(0).double(),
            "square": x.square().sum(0).double(),
            "rows": torch.tensor(float(len(x)), dtype=torch.float64),
        }
        add(self.new.setdefault(key, {}), found)

    def variance(self, name: str) -> float | None:
        """Return the summed variances of what a layer's outputs are added to, if it is known."""
        found = [_variance(sums) for (weight, _), sums in self.sums.items() if weight == name]
        return max(sum(found), 1e-30) if found else None

    def scaled(self, name: str, weight: Tensor) -> Tensor:
        """Return a weight whose rows have the scale of the norm behind it."""
        scale = self.scales.get(name)
        if scale is None or len(scale) != len(weight):
            return weight
        return weight * scale.to(weight).reshape(-1, *[1] * (weight.ndim - 1))

    def state_dict(self) -> dict[str, Any]:
        sums = [
            {"weight": name, "arrangement": how and how.to_dict(), "sums": dict(sums)}
            for (name, how), sums in self.sums.items()
        ]
        return {"sums": sums, "scales": dict(self.scales)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {}
        for each in state.get("sums", ()):
            how = each["arrangement"]
            key = each["weight"], Arrangement.from_dict(how) if how else None
            self.sums[key] = dict(each["sums"])
        self.scales = dict(state.get("scales", {}))


def _variance(sums: Sums) -> float:
    rows = sums["rows"].clamp(min=1)
    return float((sums["square"] / rows - (sums["sum"] / rows).square()).clamp(min=0).sum())


def add(total: Sums, more: Mapping[str, Tensor]) -> None:
    """Add sums to what was summed before."""
    for name, value in more.items():
        total[name] = total[name].to(value.device) + value if name in total else value
