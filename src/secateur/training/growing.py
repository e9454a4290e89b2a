r"""Growing regularisation: a penalty that rises on what ranks last, until it can go unnoticed.

Wang et al., 2021, "Neural Pruning via Growing Regularization", arXiv:2012.09243 (GReg-1).  What the
whole goal would remove is chosen once; from then on the loss gains
:math:`\frac{\lambda_t}{2} \|w\|^2` over all slices of it, and :math:`\lambda_t` rises in equal
steps, from 0 to its ceiling at the first pruning step.  The network has that long to move what
these weights do to those that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from secateur.errors import ConfigError
from secateur.runtime.distributed import whole

from .method import STRICT, Method, methods
from .run import Run


@methods.register
@dataclass(config=STRICT, kw_only=True)
class Growing(Method):
    """A penalty that rises on what ranks last (GReg; Wang et al., 2021, arXiv:2012.09243).

    What ranks last is what the config's criterion says after the first ``choose_at`` calls of
    ``step``, so that one of gradients has seen some; then it stays chosen.  Give the config a
    ``start`` of as many steps as the penalty is to rise.  At the first pruning step the criterion
    decides again, on weights of which the chosen have shrunk; with the goal reached the penalty
    ends.
    """

    ceiling: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """The largest lambda: in the end, weights that go lose ``learning rate × ceiling`` of
    themselves in each step, and more with momentum."""
    choose_at: Annotated[int, Field(ge=1)] = 1
    """The call of ``step`` that chooses what goes."""

    def attach(self, run: Run) -> None:
        self._run, self._calls = run, 0
        self._goes: dict[str, Tensor] = {}  # by parameter, True where it is penalised
        self._first = run.config.start + run.config.every
        if self._first <= self.choose_at:
            raise ConfigError(
                f"growing: the first pruning step is call {self._first}, and what goes is chosen "
                f"at call {self.choose_at}: give a start of as many steps as the penalty is to rise"
            )

    def penalty(self) -> Tensor | None:
        if not self._goes or self._run.share == 1:
            return None
        parameters = dict(self._run.model.named_parameters(remove_duplicate=False))
        total: Tensor | None = None
        for name, goes in self._goes.items():
            weight = whole(parameters[name])
            exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
            term = torch.linalg.vector_norm(exact * goes).square()
            total = term if total is None else total.to(term.device) + term
        return None if total is None else self._strength() / 2 * total

    def _strength(self) -> float:
        steps = self._first - self.choose_at
        return self.ceiling * min((self._calls - self.choose_at + 1) / steps, 1.0)

    def step(self, *, learning_rate_share: float, loss_scale: float) -> None:
        self._calls += 1
        if self._calls == self.choose_at:
            weights = self._run.tensors()
            masks = self._run.masks_of(weights)
            self._goes = {name: ~mask.to(weights[name].device) for name, mask in masks.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self._calls, "goes": dict(self._goes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights = self._run.tensors()
        goes = {n: mask.to(weights[n].device, copy=True) for n, mask in state["goes"].items()}
        for name, mask in goes.items():
            if mask.dtype != torch.bool or mask.shape != weights[name].shape:
                raise ValueError(f"what goes of {name!r} is no bool tensor of its shape")
        self._calls, self._goes = int(state["calls"]), goes
