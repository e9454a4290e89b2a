"""What criteria need from data, collected while the model trains or sees calibration batches.

A criterion says by its keyword-only names what it needs.  One that needs ``grad`` is computed at
every optimizer step, and what is kept is the running sum of its scores: one number per unit, never
one per weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ConfigError
from secateur.runtime.distributed import reduced, whole
from secateur.scoring.criteria import criteria, needs

from .targets import Part, Selectable

PER_STEP = ("grad",)
"""Statistics that exist at an optimizer step only."""


class RunningScores:
    """The running scores of selectables whose criterion needs data.

    Ranks may have seen different data: scores are averaged over them before they are used.
    """

    def __init__(self, selectables: Sequence[Selectable]):
        self.parts: dict[str, tuple[Selectable, Part]] = {}
        for each in selectables:
            if set(needs(criteria[each.criterion])) & set(PER_STEP):
                for i, part in enumerate(each.scoring):
                    self.parts[f"{each.name}.{i}"] = each, part
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def observe(self, parameters: Mapping[str, Tensor]) -> None:
        """Add the scores of this step, from the gradients that the given parameters have now."""
        for key, (each, part) in self.parts.items():
            parameter = parameters.get(part.tensor)
            if parameter is None or parameter.grad is None:
                continue
            weight = whole(parameter.detach())
            rows = part.granularity.rows(whole(parameter.grad.detach()))
            score = each.part_score(part, weight, grad=rows).float()
            if key in self.sums:  # on the CPU, where they come from a file
                score = self.sums[key].to(score.device) + score
            self.sums[key] = score
            self.counts[key] = self.counts.get(key, 0) + 1

    def score(
        self, each: Selectable, tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return the scores of a selectable, from weights or from what was observed.

        Raises:
            ConfigError: its criterion needs data, and none was seen since the last pruning step.
        """
        if f"{each.name}.0" not in self.parts:
            return each.score(tensors, generator)
        found = []
        for i, part in enumerate(each.scoring):
            key = f"{each.name}.{i}"
            if key not in self.sums:
                raise ConfigError(
                    f"criterion {each.criterion!r} needs gradients, and {part.tensor!r} had none: "
                    "step() comes after loss.backward() and the optimizer's step() in each "
                    "iteration, and the parameter must require gradients; without an optimizer "
                    "call observe() after backward(), before gradients are set to None"
                )
            found.append(reduced(self.sums[key] / self.counts[key], "mean"))
        return each.combine(found)

    def reset(self) -> None:
        """Forget what was observed: the masks have changed, and with them the model."""
        self.sums.clear()
        self.counts.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {k: v.clone() for k, v in state.get("sums", {}).items()}
        self.counts = {k: int(v) for k, v in state.get("counts", {}).items()}
