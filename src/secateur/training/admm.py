r"""ADMM: weights are pulled to the nearest that are sparse enough, before anything is removed.

Zhang et al., 2018, "A Systematic DNN Weight Pruning Framework using Alternating Direction Method of
Multipliers", arXiv:1804.03294; with whole channels, Zhang et al., 2018, arXiv:1807.11091.  The
loss gains :math:`\frac{\rho}{2} \|W - Z + U\|_F^2`; every ``interval`` calls of ``step`` Z becomes
the projection of :math:`W + U`, what the goal would leave of it, and U gains :math:`W - Z`, so that
the pull on what is to go grows until it is gone.  It starts with the projection of W, and U = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from secateur.errors import ConfigError, did_you_mean
from secateur.runtime.distributed import whole
from secateur.scoring.criteria import criteria
from secateur.selection.allocation import shares

from .method import STRICT, Method, methods
from .run import Run

Rho = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@methods.register
@dataclass(config=STRICT, kw_only=True)
class ADMM(Method):
    """Training with a pull to sparse weights (Zhang et al., 2018, arXiv:1804.03294).

    Give the config a ``start`` of several intervals: so long the weights are only pulled.  What
    goes then are the smallest of the weights themselves, and the pull ends.  Single weights are
    pulled, or groups with all their slices; the criterion is one of weights alone.
    """

    rho: Rho | dict[str, Rho] = 0.3
    """Weight of the pull; or one for each target, by its name or a shell pattern."""
    interval: Annotated[int, Field(ge=1)] = 100
    """Calls of ``step`` from one projection to the next."""

    def attach(self, run: Run) -> None:
        self._run, self._calls = run, 0
        first = run.config.start + run.config.every
        if first < self.interval:
            raise ConfigError(
                f"admm: the first pruning step is call {first}, before the first projection "
                f"(interval={self.interval}): give a start of several intervals"
            )
        _check_criteria(run)
        weights = run.tensors()
        self._rho = _by_tensor(run, self._by_target())
        masks = run.masks_of(weights)
        exact = {name: _exact(weights[name]) for name in self._rho}
        self._z = {name: weight * masks[name].to(weight.device) for name, weight in exact.items()}
        self._u = {name: torch.zeros_like(z) for name, z in self._z.items()}

    def penalty(self) -> Tensor | None:
        if self._run.share == 1:
            return None
        parameters = dict(self._run.model.named_parameters(remove_duplicate=False))
        total: Tensor | None = None
        for name, rho in self._rho.items():
            weight = whole(parameters[name])
            pull = (self._u[name] - self._z[name]).to(weight.device)
            term = rho / 2 * (weight + pull).square().sum()
            total = term if total is None else total.to(term.device) + term
        return total

    def step(self, *, learning_rate_share: float, loss_scale: float) -> None:
        self._calls += 1
        if self._calls % self.interval == 0 and self._run.share < 1:
            self._project()

    @torch.no_grad()
    def _project(self) -> None:
        weights = self._run.tensors()
        moved = {n: weights[n] + u.to(weights[n].device) for n, u in self._u.items()}
        masks = self._run.masks_of({**weights, **moved})
        for name, value in moved.items():
            near = value * masks[name].to(value.device)
            self._z[name].copy_(near)
            self._u[name].copy_(value - near)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self._calls, "z": dict(self._z), "u": dict(self._u)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._calls = int(state["calls"])
        for own, given in ((self._z, state["z"]), (self._u, state["u"])):
            for name, tensor in own.items():
                tensor.copy_(given[name])

    def _by_target(self) -> dict[str, float]:
        """Return the weight of each selectable's pull.

        Raises:
            ConfigError: a name is left out, or a word matches none.
        """
        names = [each.name for each in self._run.selectables]
        if not isinstance(self.rho, dict):
            return dict.fromkeys(names, self.rho)
        found = shares(self.rho, names)
        odd = [w for w in self.rho if not any(w == n or fnmatchcase(n, w) for n in names)]
        problems = [f"admm: rho: {w!r} matches no target.{did_you_mean(w, names)}" for w in odd]
        if left := [name for name in names if name not in found]:
            problems.append(f"admm: rho says nothing of {', '.join(left[:5])}: add '*'")
        if problems:
            raise ConfigError(*problems)
        return found


def _by_tensor(run: Run, rho: Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each tensor's pull: of several targets that it is in, the largest."""
    found: dict[str, float] = {}
    for each in run.selectables:
        for part in each.parts:
            if part.masked:
                found[part.tensor] = max(found.get(part.tensor, 0.0), rho[each.name])
    return found


def _check_criteria(run: Run) -> None:
    """Raise a ConfigError where scores are of more than weights: they cannot rank Z."""
    for each in run.selectables:
        for source in ("forward", "backward"):
            if asked := criteria.asks(each.criterion, source):
                raise ConfigError(
                    f"admm: criterion {each.criterion!r} of {each.name!r} needs {asked[0]}, and "
                    "what is projected are weights: take l2, l1 or magnitude"
                )


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
