"""Pruning in a Lightning ``Trainer``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch import Callback
from torch import Tensor, nn

from secateur.pruner import Pruner
from secateur.runtime.undo import unhook_optimizer
from secateur.shrinking import Result
from secateur.training.distillation import TEMPERATURE, WEIGHT, taught

from .same import check_average, check_begins, check_sizes, check_trained

log = logging.getLogger(__name__)

TEACHER = "teacher"
"""Where a state has the digest of the teacher's weights."""


class AfterOptimizerStep(Callback):
    """Calls a function after each step of the first optimizer, while the gradients are still there.

    What it returns is logged.
    """

    def __init__(self, function: Callable[[], Mapping[str, float] | None]):
        self.function = function
        self.metrics: Mapping[str, float] = {}
        self._hooked: tuple[Any, Any] | None = None  # an optimizer, and what is called after it

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        optimizer, hook = self._hooked = trainer.optimizers[0], self._after
        optimizer.register_step_post_hook(hook)

    def _after(self, *_: Any) -> None:
        self.metrics = {f"pruning/{k}": v for k, v in (self.function() or {}).items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.loggers and self.metrics:
            pl_module.log_dict(dict(self.metrics))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not call it then

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._hooked is not None:
            unhook_optimizer(*self._hooked)
            self._hooked = None


class PruningCallback(AfterOptimizerStep):
    """Steps a pruner while a ``Trainer`` fits, logs its metrics, and keeps its state.

    The state is in the Trainer's checkpoints: ``fit(ckpt_path=…)`` goes on pruning where it was.

    Args:
        pruner: a ``Pruner`` of the very LightningModule that is fitted, or of a part of it.
        finish: cut the model at the end of the fit; ``result`` then tells what was done, and is
            None after a ``fast_dev_run`` that pruned nothing.  Checkpoints of before the cut do
            not load from then on.
        teacher: "dense" (a frozen copy of the model as it is now) or a module: what the model also
            learns from, with such a weight, temperature and hidden layers; see
            ``secateur.Distillation``.
    """

    def __init__(
        self,
        pruner: Pruner,
        *,
        finish: bool = False,
        teacher: nn.Module | Literal["dense"] | None = None,
        weight: float = WEIGHT,
        temperature: float = TEMPERATURE,
        hidden: Sequence[str] = (),
    ):
        super().__init__(pruner.step)
        self.pruner = pruner
        self.finish = finish
        self.result: Result | None = None
        self._loading: Any = None  # of the hook that looks at what is loaded
        self.distillation = taught(pruner.model, teacher, weight, temperature, hidden)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            check_average(trainer.callbacks, self.result)
        self._loading = pl_module.register_load_state_dict_pre_hook(check_sizes)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._loading is not None:
            self._loading.remove()
            self._loading = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        check_trained(self.pruner, pl_module)
        if self.finish and not trainer.fast_dev_run:
            check_begins(self.pruner, trainer.estimated_stepping_batches)
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # with 16-mixed
        self.pruner.scaler = scaler or self.pruner.scaler
        if self.distillation is not None:
            self.distillation.forget()  # an earlier fit may have been stopped in a step
        super().on_train_start(trainer, pl_module)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self.distillation is not None:
            scaler = self.pruner.scaler
            scale = 1.0 if scaler is None else scaler.get_scale()
            self.distillation.add_to(loss, scale / trainer.accumulate_grad_batches)

    def state_dict(self) -> dict[str, Any]:
        state = self.pruner.state_dict()
        return state if self.distillation is None else state | {TEACHER: self.distillation.digest()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        digest = state.pop(TEACHER, None)
        if self.distillation is not None and digest is not None:
            self.distillation.check(digest)
        self.pruner.load_state_dict(state)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self.finish and (self.pruner.keeps or not trainer.fast_dev_run):
            self.result = self.pruner.finish()
        elif self.finish:
            log.warning(
                "fast_dev_run ended before the first pruning step: nothing was cut, and result is "
                "None"
            )
        if self.distillation is not None:  # last: a fit that is stopped before goes on with it
            self.distillation.close()
