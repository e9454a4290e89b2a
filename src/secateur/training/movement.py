r"""Movement: weights that training moves towards zero are removed, whatever their size.

Sanh, Wolf & Rush, 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683; by
blocks, Lagunas et al., 2021, arXiv:2109.04838.  Scores S are learned next to the weights W: the
forward computes with :math:`W \odot M(S)`, and the gradient passes through M as if it were S, so
that :math:`\partial L / \partial S = \partial L / \partial (W \odot M) \odot W`, where M is 0 too.

*Hard*, with a ``sparsity``: M keeps the largest scores, of each tensor or, with a global scope, of
all.  *Soft*, with a ``threshold`` :math:`\tau`: M keeps where :math:`\sigma(S) \geq \tau`, and the
loss gains ``strength`` times the mean of :math:`\sigma(S)`; it is the strength, not the threshold,
that decides how much goes.  Both approach their goal on the schedule, cubic by default; after that
the scores go on learning, and which weights are masked still changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from secateur.masks import masking
from secateur.runtime.distributed import reduced_each
from secateur.runtime.values import moved, not_finite
from secateur.selection.targets import Selectable, normalized
from secateur.settings import granularity_from, stores_transposed
from secateur.types import Factored, Masks

from .method import STRICT, Method, methods
from .run import Run


@methods.register
@dataclass(config=STRICT, kw_only=True)
class Movement(Method):
    """Learned scores (Sanh et al., 2020, arXiv:2005.07683), one per unit of the granularity.

    The gradient of a unit's score is the sum over the unit, of a group over all of its slices.
    Scores have an optimizer of their own: they are in no optimizer of yours, not decayed, clipped
    or saved with the model.  Its learning rate follows yours: the same share of its peak.  A bias
    is masked where its whole row is.
    """

    score_lr: Annotated[float, Field(gt=0)] = 1e-2
    """Learning rate of the scores when yours is at its peak."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """What the scores learn with."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the penalty, reached with the threshold; soft only."""
    prior: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """What scores start from: so many times the criterion's, of which each target's mean is 1."""
    min_kept: Annotated[float, Field(ge=0, le=1)] = 0.005
    """Share of every tensor or group that stays, whatever its scores, as in the authors' code."""

    defaults: ClassVar[Mapping[str, Any]] = {"schedule": "cubic"}
    continuous: ClassVar[bool] = True
    learns_masks: ClassVar[bool] = True

    def attach(self, run: Run) -> None:
        self._run = run
        tensors = dict(run.model.named_parameters())
        self._scores: dict[str, Tensor] = {}
        for i, each in enumerate(run.selectables):
            first = each.parts[0]
            weight = tensors[first.tensor]
            units = first.granularity.units(weight.shape)
            dtype = torch.promote_types(weight.dtype, torch.float32)
            self._scores[each.name] = torch.zeros(units, dtype=dtype, device=weight.device)
            stay = max(each.request.keep_at_least, ceil(self.min_kept * units))
            request = replace(each.request, keep_at_least=stay)
            run.selectables[i] = replace(each, request=request)
        self._start_from_the_criterion()
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self._optimizer = kinds[self.optimizer](list(self._scores.values()), lr=self.score_lr)
        self._users: dict[str, list[Selectable]] = {}
        for each in run.selectables:
            for name in dict.fromkeys(part.tensor for part in each.parts):
                self._users.setdefault(name, []).append(each)
        whole = {name: torch.ones(tensors[name].shape, dtype=torch.bool) for name in self._users}
        masking.put_on(run.model, whole, differentiable=True)

    @torch.no_grad()
    def _start_from_the_criterion(self) -> None:
        if not self.prior:
            return
        known = self._run.scores(self._run.tensors(), {})
        for each, scores in zip(self._run.selectables, known, strict=True):
            own = self._scores[each.name]
            own.copy_(self.prior * normalized(scores, "mean").to(own))

    def step(self, *, learning_rate_share: float, loss_scale: float) -> None:
        gradients = self._gradients(loss_scale)
        if not gradients or not_finite(gradients):
            return  # the loss scale was too large: the optimizer skipped this step too
        for name, score in self._scores.items():
            score.grad = gradients[name] + self._penalty_gradient(name)
        for group in self._optimizer.param_groups:
            group["lr"] = self.score_lr * learning_rate_share
        self._optimizer.step()
        self._optimizer.zero_grad()

    def scores(self) -> Mapping[str, Tensor]:
        soft = {e.name for e in self._run.selectables if e.request.threshold is not None}
        return {n: s.sigmoid() if n in soft else s.clone() for n, s in self._scores.items()}

    def complete(self, masks: Masks) -> Masks:
        return Factored(masks, self._bias_masks(masks))

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self._scores), "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            for name, score in self._scores.items():
                score.copy_(state["scores"][name])
        self._optimizer.load_state_dict(state["optimizer"])

    def _gradients(self, loss_scale: float) -> dict[str, Tensor]:
        """Return the gradient of each score that the last backwards left in the masks."""
        taken = masking.take_gradients(self._run.model)
        left = {name: gradient / loss_scale for name, gradient in taken.items()}
        if not left:
            return {}
        decided = self._run.keeps
        keeps = {
            place: dict(zip(decided, moved(list(decided.values()), place), strict=True))
            for place in {gradient.device for gradient in left.values()}
        }
        mine = {each.name: self._gradient(each, left, keeps) for each in self._run.selectables}
        return reduced_each(mine, "mean")

    def _gradient(
        self,
        each: Selectable,
        left: Mapping[str, Tensor],
        keeps: Mapping[torch.device, Mapping[str, Tensor]],
    ) -> Tensor:
        """Return the gradient of a score here; what other selectables have masked adds nothing."""
        score = self._scores[each.name]
        total = torch.zeros_like(score)
        for part in each.parts:
            gradient = left.get(part.tensor)
            if gradient is None:
                continue
            stay = keeps[gradient.device]
            for other in self._users[part.tensor]:
                if other.name != each.name and other.name in stay:
                    given = {part.tensor: gradient}
                    mask = other.masks(stay[other.name], given, only=part.tensor)[part.tensor]
                    gradient = gradient * mask
            total += part.granularity.rows(gradient).to(score).sum(1)
        return total

    def _penalty_gradient(self, name: str) -> Tensor | float:
        run = self._run
        soft = [e.name for e in run.selectables if e.request.threshold is not None]
        if name not in soft:
            return 0.0
        s = self._scores[name].sigmoid()
        return self.strength * run.share * s * (1 - s) / (len(s) * len(soft))

    def _bias_masks(self, masks: Masks) -> Masks:
        found: dict[str, Tensor] = {}
        for path, module in self._run.model.named_modules():
            name = f"{path}.bias" if path else "bias"
            mask = masks.get(f"{path}.weight" if path else "weight")
            bias = module._parameters.get("bias")
            if mask is None or mask.ndim < 2 or bias is None or name in masks:
                continue
            rows = granularity_from("out_channel", transposed=stores_transposed(module))
            assert rows is not None
            alive = rows.rows(mask).any(1)
            if alive.shape == bias.shape:
                found[name] = alive
        return found
