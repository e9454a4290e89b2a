"""Pruning in a Hugging Face ``Trainer``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from secateur.errors import FileError
from secateur.masks.resume import read_state
from secateur.pruner import Pruner
from secateur.shrinking import Result

STATE = "pruner.safetensors"


def whole_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Return the newest checkpoint that was written to its end, or None.

    A Trainer that is killed while it saves leaves a folder that is torn, and resumes from that.
    ``PruningCallback`` writes its state last and whole, so that a folder which has one is whole:
    ``trainer.train(resume_from_checkpoint=whole_checkpoint(args.output_dir))``.
    """
    numbered = {
        int(path.name.rpartition("-")[2]): path
        for path in Path(output_dir).glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdecimal()
    }
    for number in sorted(numbered, reverse=True):
        try:
            read_state(numbered[number] / STATE)
        except FileError:
            continue  # torn: the one before it
        return str(numbered[number])
    return None


class AfterOptimizerStep(TrainerCallback):
    """Calls a function after each optimizer step, while the gradients are still there.

    What it returns is logged with the next training loss.
    """

    def __init__(self, function: Callable[[], Mapping[str, float] | None]):
        self.function = function
        self.metrics: Mapping[str, float] = {}

    def attach(self, trainer: Any) -> None:
        """Add this callback before all others, so that loggers such as TensorBoard see its log."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        if not getattr(optimizer, "step_was_skipped", False):  # as mixed precision may
            self.metrics = {f"pruning/{k}": v for k, v in (self.function() or {}).items()}

    def on_log(self, args: Any, state: Any, *_: Any, **others: Any) -> None:
        if "loss" in others["logs"]:  # of the training; what evaluate() returns is the user's
            others["logs"].update(self.metrics)
            state.log_history[-1].update(self.metrics)


class PruningCallback(AfterOptimizerStep):
    """Steps a pruner while a ``Trainer`` trains, and keeps its state with the checkpoints.

    Args:
        pruner: a ``Pruner`` of the very model that is trained.
        finish: cut the model at the end of the training; ``result`` then tells what was done.
        resume_from: the checkpoint to resume from, where it is not in the ``output_dir``.
    """

    def __init__(self, pruner: Pruner, *, finish: bool = False, resume_from: str | None = None):
        super().__init__(pruner.step)
        self.pruner = pruner
        self.finish, self.resume_from = finish, resume_from
        self.result: Result | None = None

    def on_train_begin(
        self, args: Any, state: Any, *_: Any, optimizer: Any = None, **__: Any
    ) -> None:
        self.pruner.scaler = getattr(optimizer, "scaler", None) or self.pruner.scaler  # of fp16
        if state.global_step:
            file = self._file(args, state, self.resume_from)
            if not file.is_file():
                raise FileError(f"{file} is missing: give PruningCallback(…, resume_from=…)")
            self.pruner.load(file)

    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self.pruner.save(self._file(args, state))

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.finish:
            self.result = self.pruner.finish()

    def _file(self, args: Any, state: Any, folder: str | None = None) -> Path:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        return Path(folder or checkpoint) / STATE
