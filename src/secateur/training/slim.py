r"""Slim: scales that a penalty has made small are removed.

Liu et al., 2017, "Learning Efficient Convolutional Networks through Network Slimming",
arXiv:1708.06519: the loss gains :math:`\lambda \sum |\gamma|` over the scales of the batch norms,
and the channels with the smallest :math:`|\gamma|` of the whole network go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from secateur.errors import NoMatchError
from secateur.selection.targets import Part, Selectable

from .method import STRICT, Method, methods
from .run import Run


@methods.register
@dataclass(config=STRICT, kw_only=True)
class Slim(Method):
    """Sparsity of norm scales by an L1 penalty (Liu et al., 2017, arXiv:1708.06519).

    Scores are the absolute scales, and are compared over the whole network unless the config says
    otherwise (``scope``, ``normalize``).  Scales that are masked are not penalised.  The scale of
    what no norm follows is the L2 norm of its unit of weights (group lasso; Wen et al., 2016,
    arXiv:1608.03665); it is not ranked together with norm scales.
    """

    strength: Annotated[float, Field(ge=0)] = 1e-4
    """The paper's lambda: weight of the sum of absolute scales in the loss."""

    defaults: ClassVar[Mapping[str, Any]] = {"scope": "global", "normalize": "none"}

    def attach(self, run: Run) -> None:
        self._run = run
        self._scales: dict[str, list[Part]] = {}
        shapes = {n: p.ndim for n, p in run.model.named_parameters()}
        for each in run.selectables:
            scales = [p for p in each.parts if shapes[p.tensor] == 1 and _is_scale(p.tensor)]
            if scales:
                self._scales[each.name] = scales
        others = [s for s in run.selectables if s.name not in self._scales]
        pools = {s.request.pool for s in run.selectables if s not in others} - {None}
        mixed = [s.name for s in others if s.request.pool in pools]
        if mixed:
            raise NoMatchError(
                f"slim: no norm scales the channels of {', '.join(mixed)}, which cannot be ranked "
                "with those that have one; exclude them, or give them a scope of their own"
            )
        self._scales |= {each.name: list(each.scoring) for each in others}

    def penalty(self) -> Tensor | None:
        parameters = dict(self._run.model.named_parameters())
        masks = self._run.masks
        parts = {(p.tensor, p.granularity): p for scales in self._scales.values() for p in scales}
        total: Tensor | None = None
        for part in parts.values():
            scale: Tensor = parameters[part.tensor]
            if part.tensor in masks:
                scale = scale * masks[part.tensor].to(scale.device)
            size = _sizes(part, scale).sum()
            total = size if total is None else total.to(size.device) + size
        return None if total is None else self.strength * total

    def scores(self) -> Mapping[str, Tensor]:
        parameters = dict(self._run.model.named_parameters())
        return {each.name: self._score(each, parameters) for each in self._run.selectables}

    def _score(self, each: Selectable, parameters: Mapping[str, Tensor]) -> Tensor:
        found = []
        for part in self._scales[each.name]:
            found.append(_sizes(part, parameters[part.tensor].detach()).float())
        return each.combine(found)


def _is_scale(tensor: str) -> bool:
    return tensor.rpartition(".")[2] == "weight"


def _sizes(part: Part, tensor: Tensor) -> Tensor:
    """Return the L2 norm of each unit; of a single scale, its absolute value."""
    sizes: Tensor = torch.linalg.vector_norm(part.granularity.rows(tensor), dim=1)
    return sizes
