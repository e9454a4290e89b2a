"""Lottery: train, remove the smallest, go back to the beginning; what is left is a winning ticket.

Frankle & Carbin, 2019, "The Lottery Ticket Hypothesis", arXiv:1803.03635; back to an early step
rather than to the start, Frankle et al., 2020, arXiv:1912.05671; back in the learning rate alone,
Renda, Frankle & Carbin, 2020, arXiv:2003.02389.  A *round* is ``every`` calls of ``step``; after
each of the ``steps`` rounds the same share of what is left goes, and nothing that is gone comes
back.  After the last one train once more, as long as a round: that is the ticket's own training.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.optim import Optimizer

from secateur.errors import ConfigError
from secateur.masks.classes import fill
from secateur.runtime.distributed import whole
from secateur.runtime.undo import undoable
from secateur.selection.decision import sunk

from .method import STRICT, Method, methods
from .run import Run


@methods.register
@dataclass(config=STRICT, kw_only=True)
class Lottery(Method):
    """Rounds of training, pruning and rewinding (Frankle & Carbin, 2019, arXiv:1803.03635).

    With the weights go biases, the statistics of norms, what your optimizer remembers of them and
    its learning rate, as it was recorded in the first round: until a round's length your scheduler
    is not asked.  The rounds' lengths come from the config: ``every``, and ``steps`` of them.
    """

    rewind: Literal["weights", "learning_rate"] = "weights"
    """What goes back after each round: weights and the learning rate, or this alone."""
    rewind_to: Annotated[int, Field(ge=0)] = 0
    """To how many calls of ``step`` from the start; 0 is the weights that the pruner was given."""

    defaults: ClassVar[Mapping[str, Any]] = {"schedule": "geometric"}

    def attach(self, run: Run) -> None:
        self._run = run
        self._calls = self._rounds = 0
        self._optimizers: list[weakref.ref[Optimizer]] = []
        self._rates: dict[str, list[float]] = {}  # of each parameter group, by its first parameter
        self._steps: dict[str, int] = {}  # of the schedule that each group has made
        self._mark: dict[str, int] = {}  # these, where it goes back to
        self._early: dict[str, Tensor] = {}
        self._memory: dict[str, dict[str, Any]] = {}  # of optimizers, by parameter
        self._stale: list[str] = []  # parameters of which an optimizer remembers the last round
        first = run.config.start + run.config.every
        if self.rewind_to >= first:
            raise ConfigError(
                f"lottery: rewind_to={self.rewind_to} is not before the first pruning step, which "
                f"is call {first}: give a longer every, or an earlier step"
            )
        if self.rewind_to == 0:
            self._remember()

    def before(self, optimizer: Optimizer) -> None:
        if not any(known() is optimizer for known in self._optimizers):
            self._optimizers.append(weakref.ref(optimizer))
        for group, held in self._groups(optimizer):
            key, rate = next(iter(held)), group["lr"]
            at = self._steps.get(key, 0)
            rates = self._rates.setdefault(key, [])
            if self._rounds == 0:
                rates.append(float(rate))
            elif at < len(rates):
                group["lr"] = rate.fill_(rates[at]) if isinstance(rate, Tensor) else rates[at]
            self._steps[key] = at + 1
            for name, parameter in held.items():
                if name in self._stale:
                    self._stale.remove(name)
                    _recall(optimizer, parameter, self._memory.get(name))

    def step(self, *, learning_rate_share: float, loss_scale: float) -> None:
        self._calls += 1
        if self._calls == self.rewind_to:
            self._remember()

    def scores(self) -> Mapping[str, Tensor]:
        """Return the criterion's scores; what is gone is below all others."""
        found = self._run.scores(self._run.tensors(), {})
        keeps = self._run.keeps
        low = min((float(score.min()) for score in found if len(score)), default=0.0)
        named = zip((each.name for each in self._run.selectables), found, strict=True)
        return {n: sunk(s, keeps[n], low) if n in keeps else s for n, s in named}

    @torch.no_grad()
    def pruned(self) -> None:
        if self._rounds == 0 and self._calls < self.rewind_to:
            self._remember()  # steps that a loss scaler skipped have kept it from coming so far
        self._rounds += 1
        self._steps = dict(self._mark)
        if self.rewind == "learning_rate":
            return
        for name, tensor in _tensors(self._run).items():
            everywhere = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
            undoable(partial(fill, tensor, everywhere, whole(tensor.detach()).flatten().clone()))
            fill(tensor, everywhere, self._early[name].flatten())
        self._stale = [name for name, _ in self._run.model.named_parameters()]

    def state_dict(self) -> dict[str, Any]:
        return {
            "calls": self._calls,
            "rounds": self._rounds,
            "rates": {key: list(rates) for key, rates in self._rates.items()},
            "steps": dict(self._steps),
            "mark": dict(self._mark),
            "early": dict(self._early),
            "memory": {name: dict(held) for name, held in self._memory.items()},
            "stale": list(self._stale),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._calls, self._rounds = int(state["calls"]), int(state["rounds"])
        self._rates = {key: [float(r) for r in rates] for key, rates in state["rates"].items()}
        self._steps = {key: int(count) for key, count in state["steps"].items()}
        self._mark = {key: int(count) for key, count in state["mark"].items()}
        self._early = {name: tensor.clone() for name, tensor in state["early"].items()}
        self._memory = {name: dict(held) for name, held in state["memory"].items()}
        self._stale = [str(name) for name in state["stale"]]

    def _remember(self) -> None:
        """Take down where the rounds go back to."""
        self._mark = dict(self._steps)
        if self.rewind == "learning_rate":
            return
        with torch.no_grad():
            self._early = {n: whole(t.detach()).clone() for n, t in _tensors(self._run).items()}
        alive = (known() for known in self._optimizers)
        for optimizer in (each for each in alive if each is not None):
            for _, held in self._groups(optimizer):
                for name, parameter in held.items():
                    self._memory[name] = _copied(optimizer.state.get(parameter, {}))

    def _groups(self, optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield the groups of an optimizer that hold parameters of the model, and these by name."""
        names = {id(p): name for name, p in self._run.model.named_parameters()}
        for group in optimizer.param_groups:
            held = {names[id(p)]: p for p in group["params"] if id(p) in names}
            if held:
                yield group, held


def _tensors(run: Run) -> dict[str, Tensor]:
    """Return the parameters and buffers of the model."""
    return {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}


def _recall(optimizer: Optimizer, parameter: Tensor, held: Mapping[str, Any] | None) -> None:
    """Let an optimizer remember of a parameter what it did, or nothing."""
    optimizer.state.pop(parameter, None)
    if held:
        optimizer.state[parameter] = _copied(held)


def _copied(held: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in held.items()}
