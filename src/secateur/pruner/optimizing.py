"""What optimizers do to a model between pruning steps, seen just before they step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.errors import ConfigError
from secateur.masks.optimizers import LastStep, Scaler, add_gradient
from secateur.selection.running import RunningScores
from secateur.training import Method


class Optimizing:
    """Lets a criterion and a method see each step of any optimizer that steps a model.

    Args:
        model: of which parameters are stepped.
        method: told before the optimizer steps, and asked for a penalty.
        statistics: of the criterion, which reads gradients.
        scaler: your ``GradScaler``, if there is one.

    Attributes:
        gates: returns what else is scored by gradients, by name; they are cleared as they are read.
    """

    def __init__(
        self, model: nn.Module, method: Method, statistics: RunningScores, scaler: Scaler | None
    ):
        self.model = model
        self.method = method
        self.statistics = statistics
        self.scaler = scaler
        self.last = LastStep()
        self.gates: Callable[[], Mapping[str, Tensor]] = dict

    def before(self, optimizer: Optimizer) -> None:
        """Read the gradients that an optimizer is about to use, and add those of a penalty."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}

        def ours() -> Iterator[nn.Parameter]:
            return (p for p in self.model.parameters() if id(p) in held)

        if next(ours(), None) is None:
            return
        self.last.seen(optimizer, self.scaler)
        self.observe(ours())
        self.method.before(optimizer)
        penalty: Any = self.method.penalty()
        if penalty is None:
            return
        if not isinstance(penalty, Tensor) or penalty.numel() != 1:
            said = tuple(penalty.shape) if isinstance(penalty, Tensor) else type(penalty).__name__
            name = type(self.method).__name__
            raise ConfigError(f"{name}.penalty() must return a tensor of one number, not {said}")
        if penalty.requires_grad:
            add_gradient(penalty, [p for p in ours() if p.requires_grad])

    def observe(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Read the gradients of these parameters, by default of all of the model."""
        if not self.statistics.parts:
            return
        only = None if parameters is None else {id(p) for p in parameters}
        named = self.model.named_parameters()
        self.statistics.observe({n: p for n, p in named if only is None or id(p) in only})
        gates = self.gates()
        self.statistics.observe(gates)
        for gate in gates.values():
            gate.grad = None

    def learn(self) -> None:
        """Let the method learn, unless the optimizer skipped this step (as a GradScaler may)."""
        last = self.last
        if not last.fresh and not last.ever:  # an optimizer that is none of torch's
            self.observe()
        if last.fresh or not last.ever:
            self.method.step(learning_rate_share=last.share, loss_scale=last.scale)
        last.fresh = False
