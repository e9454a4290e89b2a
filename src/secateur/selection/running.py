"""What criteria need from data, collected while the model trains or sees calibration batches.

A criterion says by its keyword-only names what it needs.  What comes from forwards is summed by
``Calibration``.  One that needs ``grad`` is computed at every optimizer step, and what is kept is
the running sum of its scores: one number per unit, never one per weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ConfigError
from secateur.runtime.distributed import reduced, whole
from secateur.scoring.criteria import criteria
from secateur.structure import Structure

from .calibration import Calibration
from .targets import Part, Selectable

FALLBACK = "l2"
"""Scores a group that no operation multiplies, such as a table that is only added."""


OUTPUT = "output"


class RunningScores:
    """The scores of selectables, with what their criteria need.

    Ranks may have seen different data: scores are averaged over them before they are used.
    """

    def __init__(self, selectables: Sequence[Selectable], structure: Structure | None = None):
        self.structure = structure
        self.parts: dict[str, tuple[Selectable, Part]] = {}
        asking = [each for each in selectables if criteria.asks(each.criterion, "forward")]
        self.calibration = Calibration(asking)
        self.calibration.outputs.summing = any(each.normalize == OUTPUT for each in asking)
        for each in selectables:
            if criteria.asks(each.criterion, "backward"):
                for i, part in enumerate(each.scoring):
                    self.parts[f"{each.name}.{i}"] = each, part
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []

    @torch.no_grad()
    def observe(self, parameters: Mapping[str, Tensor]) -> None:
        """Add the scores of this step, from the gradients that the given parameters have now."""
        for key, (each, part) in self.parts.items():
            parameter = parameters.get(part.tensor)
            if parameter is None or parameter.grad is None:
                continue
            weight = whole(parameter.detach())
            rows = part.granularity.rows(whole(parameter.grad.detach()))
            statistics = self.calibration.values(each, part, weight)
            score = each.part_score(part, weight, grad=rows, **statistics).float()
            if key in self.sums:  # on the CPU, where they come from a file
                score = self.sums[key].to(score.device) + score
            self.sums[key] = score
            self.counts[key] = self.counts.get(key, 0) + 1

    def score(
        self, each: Selectable, tensors: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Return the scores of a selectable, from weights or from what was observed.

        Raises:
            ConfigError: its criterion needs data, and none was seen since the last pruning step; or
                it is no error of outputs, and is to be normalised as one.
        """
        if each.normalize == OUTPUT and criteria.facts[each.criterion].error is None:
            raise ConfigError(
                f"normalize={OUTPUT!r} needs a criterion that is an error of outputs ("
                f"{', '.join(n for n in criteria if criteria.facts[n].error)}), not "
                f"{each.criterion!r}"
            )
        if f"{each.name}.0" in self.parts:
            return self._averaged(each)
        if not criteria.asks(each.criterion, "forward"):
            return each.score(tensors, generator)
        self.calibration.check(each.criterion)
        parts = self.calibration.known(each)
        if not parts and criteria.facts[each.criterion].experts:
            raise ConfigError(
                f"criterion {each.criterion!r}: in the batches no product with the experts of "
                f"{each.name!r} was seen as it is known, rows sorted by expert or all experts at "
                "once (in transformers: model.set_experts_implementation('grouped_mm'))"
            )
        if not parts:
            self.notes.append(
                f"{each.name}: nothing multiplies it, so {each.criterion!r} knows nothing of it; "
                f"it is ranked by {FALLBACK!r}"
            )
            return replace(each, criterion=FALLBACK).score(tensors, generator)
        if criteria.facts[each.criterion].experts:
            self.notes += self.calibration.starved(each, parts[0], tensors[parts[0].tensor])
        found = [self._of_forwards(each, part, tensors[part.tensor], generator) for part in parts]
        if each.normalize != OUTPUT:
            return each.combine(found)
        return torch.stack(found).sum(0) / self._cost(each)

    def _cost(self, each: Selectable) -> float:
        """Return what one position costs: of two errors alike, the one that saves more goes first.

        It is counted in MACs: where a goal is met at all, they say how long the rest takes.
        """
        if self.structure is None or each.group is None:
            return 1.0
        return max(self.structure.macs_per_index(each.group), 1.0)

    def _of_forwards(
        self, each: Selectable, part: Part, weight: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the scores of a part; for "output" as mean squares, in shares of what is there."""
        outputs, error = self.calibration.outputs, criteria.facts[each.criterion].error
        given = outputs.scaled(part.tensor, weight) if error else weight
        statistics = self.calibration.values(each, part, weight)
        score = each.part_score(part, given, generator=generator, **statistics)
        if each.normalize != OUTPUT:
            return score
        variance = outputs.variance(part.tensor)
        if variance is None:
            raise ConfigError(
                f"normalize={OUTPUT!r}: the outputs of {part.tensor!r} were not seen in the "
                "batches: the forward runs other operations there than on the example. Give an "
                "example like the batches, or another normalize"
            )
        return (score.square() if error == "root" else score) / variance

    def _averaged(self, each: Selectable) -> Tensor:
        """Return the mean of the scores at the steps since the last pruning step."""
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
        self.calibration.outdate()

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": dict(self.sums),
            "counts": dict(self.counts),
            "calibration": self.calibration.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums = {k: v.clone() for k, v in state.get("sums", {}).items()}
        self.counts = {k: int(v) for k, v in state.get("counts", {}).items()}
        self.calibration.load_state_dict(state.get("calibration", {}))
