r"""Group lasso: all slices of what is removed together shrink together, and then they go.

Yuan & Lin, 2006 (the group lasso); over dependency groups, Fang et al., 2023, "DepGraph: Towards
Any Structural Pruning", arXiv:2301.12900.  The loss gains
:math:`\lambda \sum_k \gamma_k \sqrt{\sum_w \|w_k\|^2}`, where the inner sum goes over all slices
that go with position k: the weights that make it, its norm's scale and bias, and the weights that
read it.  What is small already shrinks faster: :math:`\gamma_k` rises from 1 for the largest
position of a group to :math:`2^\alpha` for the smallest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from secateur.runtime.distributed import whole
from secateur.selection.targets import Selectable, normalized

from .method import STRICT, Method, methods
from .run import Run

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@methods.register
@dataclass(config=STRICT, kw_only=True)
class GroupLasso(Method):
    """A norm over all slices of a dependency group in the loss (DepGraph; arXiv:2301.12900).

    Scores are these norms.  What is masked is not penalised, and nothing is once the goal is
    reached: give the config a ``start`` of as many steps as the weights are to shrink.  Other
    granularities are groups of one tensor's weights; of single weights it is the L1 penalty.
    """

    strength: NonNegative = 1e-3
    """Lambda: weight of the sum of norms in the loss."""
    alpha: NonNegative = 4.0
    """The smallest position of a group is penalised ``2 ** alpha`` times as much as the largest."""

    def attach(self, run: Run) -> None:
        self._run = run
        self._decided: Mapping[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # the same, where the weights are

    def penalty(self) -> Tensor | None:
        if self._run.share == 1:
            return None
        parameters = self._parameters()
        total: Tensor | None = None
        for each in self._run.selectables:
            norms = _norms(each, parameters)
            term = (self._shares(norms.detach(), self._stays(each.name, norms)) * norms).sum()
            total = term if total is None else total.to(term.device) + term
        return None if total is None else self.strength * total

    def scores(self) -> Mapping[str, Tensor]:
        parameters = {name: tensor.detach() for name, tensor in self._parameters().items()}
        return {
            each.name: normalized(_norms(each, parameters), each.normalize).float()
            for each in self._run.selectables
        }

    def _stays(self, name: str, norms: Tensor) -> Tensor:
        """Return where nothing is masked, without waiting for the device at every step."""
        if self._decided is not self._run.keeps:
            self._decided, self._kept = self._run.keeps, {}
        if name not in self._kept:
            kept = self._decided.get(name)
            everywhere = torch.ones_like(norms, dtype=torch.bool)
            self._kept[name] = everywhere if kept is None else kept.to(norms.device)
        return self._kept[name]

    def _shares(self, norms: Tensor, stays: Tensor) -> Tensor:
        """Return gamma, between 1 and ``2 ** alpha``; 0 for what is masked."""
        gone = ~stays  # filled, not chosen: a scalar to choose would be copied to the device
        low = norms.masked_fill(gone, torch.inf).amin()
        high = norms.masked_fill(gone, -torch.inf).amax()
        span = (high - low).clamp(min=torch.finfo(norms.dtype).tiny)
        return torch.exp2(self.alpha * (high - norms) / span).masked_fill(gone, 0.0)

    def _parameters(self) -> dict[str, Tensor]:
        used = {part.tensor for each in self._run.selectables for part in each.parts}
        named = self._run.model.named_parameters(remove_duplicate=False)
        return {name: whole(parameter) for name, parameter in named if name in used}


def _norms(each: Selectable, parameters: Mapping[str, Tensor]) -> Tensor:
    """Return the L2 norm over all slices of each position, ``(positions,)``."""
    found: list[Tensor] = []
    for part in each.parts:
        rows = part.granularity.rows(parameters[part.tensor])
        exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
        size = torch.linalg.vector_norm(exact, dim=1)
        found.append(size.to(found[0].device) if found else size)
    # of norms, not the root of a sum of squares: its gradient where all is zero is 0, and no NaN
    norms: Tensor = torch.linalg.vector_norm(torch.stack(found), dim=0)
    return norms
