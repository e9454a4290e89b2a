"""Pruning in a Hugging Face ``Trainer``."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers import TrainerCallback

from secateur.errors import ConfigError, FileError
from secateur.masks.resume import read_state
from secateur.pruner import Pruner
from secateur.runtime.io import read_text, write_text
from secateur.runtime.ranks import on_all_ranks, rank
from secateur.shrinking import Result
from secateur.training.distillation import TEMPERATURE, WEIGHT, Distillation, taught

from .same import check_begins, check_trained

log = logging.getLogger(__name__)

STATE = "pruner.safetensors"
TEACHER = "teacher.sha256"
"""Beside it, the digest of the teacher's weights."""


IGNORED = -100
"""The label of what does not count."""
TRAINER_STATE = "trainer_state.json"
"""What a Trainer writes last of its own."""


_training: list[tuple[Callable[[], Any], Callable[[], Any]]] = []
"""States of trainings that go on, and the callback of each; both weakly."""


def whole_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Return the newest checkpoint that was written to its end, or None.

    A Trainer that is killed while it saves leaves a folder that is torn, and resumes from that.
    ``PruningCallback`` writes its state last and whole, so that a folder which has one is whole.
    """
    found = _checkpoints(output_dir)
    number = _newest_whole(found)
    return None if number is None else str(found[number])


def set_torn_aside(output_dir: str | os.PathLike[str]) -> list[str]:
    """Rename checkpoints that were not written to their end, so that no Trainer resumes from them.

    These are the folders without the Trainer's own state, and those that are newer than one with
    the pruner's, and have none.  They become ``torn-checkpoint-…``, whose paths are returned.
    """
    found = _checkpoints(output_dir)
    number = _newest_whole(found)
    torn = [
        path
        for n, path in found.items()
        if not (path / TRAINER_STATE).is_file() or (number is not None and n > number)
    ]
    return [place for place in map(_set_aside, torn) if place]


def _set_aside(path: Path) -> str | None:
    place = path.with_name(f"torn-{path.name}")
    while place.exists():
        place = place.with_name(f"{place.name}-again")
    try:
        path.rename(place)
    except FileNotFoundError:  # another rank was faster
        return None
    log.warning("%s was not written to its end: it is %s now", path, place)
    return str(place)


def _checkpoints(output_dir: str | os.PathLike[str]) -> dict[int, Path]:
    """Return a Trainer's checkpoints by the step that they were made at."""
    numbered = ((p.name.removeprefix("checkpoint-"), p) for p in Path(output_dir).glob("check*"))
    return {int(number): p for number, p in numbered if number.isdecimal() and p.is_dir()}


def _newest_whole(found: Mapping[int, Path]) -> int | None:
    for number in sorted(found, reverse=True):
        try:
            read_state(found[number] / STATE)
        except FileError:
            continue  # torn: the one before it
        return number
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

    ``train(resume_from_checkpoint=True)`` resumes from the newest that was written to its end: what
    a killed run has left torn is set aside (``set_torn_aside``) when the Trainer is made with this
    callback, or ``attach`` adds it.

    Args:
        pruner: a ``Pruner`` of the very model that is trained.
        finish: cut the model at the end of the training; ``result`` then tells what was done.
        resume_from: the checkpoint to resume from, where it is not in the ``output_dir``.
        teacher: "dense" (a frozen copy of the model as it is now) or a module: what the model also
            learns from, with such a weight, temperature and hidden layers; see
            ``secateur.Distillation``.  It is mixed with the ``loss`` that the model returns.
    """

    def __init__(
        self,
        pruner: Pruner,
        *,
        finish: bool = False,
        resume_from: str | None = None,
        teacher: nn.Module | Literal["dense"] | None = None,
        weight: float = WEIGHT,
        temperature: float = TEMPERATURE,
        hidden: Sequence[str] = (),
    ):
        super().__init__(pruner.step)
        self.pruner = pruner
        self.finish, self.resume_from = finish, resume_from
        self.result: Result | None = None
        self.distillation = taught(pruner.model, teacher, weight, temperature, hidden)
        if self.distillation is not None:
            self.distillation.after_forward(_mix)

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.distillation is not None and self.distillation.waits:
            raise ConfigError(
                "teacher=… is mixed with the loss that the model returns, and there was none: "
                "the Trainer computes it elsewhere (label_smoothing_factor, compute_loss_func), or "
                "labels are missing. There, use secateur.Distillation yourself"
            )
        super().on_optimizer_step(*args, **kwargs)

    def attach(self, trainer: Any) -> None:
        super().attach(trainer)
        set_torn_aside(trainer.args.output_dir)

    def on_init_end(self, args: Any, *_: Any, **__: Any) -> None:
        set_torn_aside(args.output_dir)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        *_: Any,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **__: Any,
    ) -> None:
        check_trained(self.pruner, model)
        self._check_alone(state)
        if self.finish:
            check_begins(self.pruner, state.max_steps)
        self.pruner.scaler = getattr(optimizer, "scaler", None) or self.pruner.scaler  # of fp16
        if self.distillation is not None:
            self.distillation.forget()  # an earlier training may have been stopped in a step
        if state.global_step:
            file = self._file(args, state, self.resume_from)
            if not file.is_file():
                whole = whole_checkpoint(args.output_dir)
                instead = f"resume from {whole}, which is whole, or " if whole else ""
                raise FileError(
                    f"{file} is missing: {instead}give PruningCallback(…, resume_from=…)"
                )
            if self.distillation is not None and (told := file.with_name(TEACHER)).is_file():
                self.distillation.check(read_text(told).strip())
            self.pruner.load(file)

    def _check_alone(self, state: Any) -> None:
        """Refuse a second callback in one training: a checkpoint has one file for a pruner."""
        _training[:] = [(of, who) for of, who in _training if of() is not None]
        if any(of() is state and who() not in (self, None) for of, who in _training):
            raise ConfigError(
                "this Trainer has two PruningCallbacks, and a checkpoint holds the state of one: "
                "prune both models by one Pruner, of the model that holds them, with targets=[…]"
            )
        _training.append((weakref.ref(state), weakref.ref(self)))

    @on_all_ranks
    def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        file = self._file(args, state)
        if self.distillation is not None and rank() == 0:
            write_text(file.with_name(TEACHER), self.distillation.digest() + "\n")
        self.pruner.save(file)

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        self._of_the_best(args, state)
        if self.finish and self.pruner.updates:
            self.result = self.pruner.finish()
        elif self.finish:  # an error would lose the training
            log.warning(
                "nothing is cut: what was loaded as the best is from before the first pruning step."
                " Let the metric ask how much went, or leave load_best_model_at_end out"
            )
        if self.distillation is not None:  # last: a training that is stopped before goes on with it
            self.distillation.close()

    def _of_the_best(self, args: Any, state: Any) -> None:
        """Take the state of the best checkpoint, where its weights were loaded."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is None or Path(best).name == f"checkpoint-{state.global_step}":
            return
        log.warning(
            "%s was loaded as the best, and the pruner's state with it: a metric that does not ask "
            "how much went prefers checkpoints from before the goal was met",
            best,
        )
        self.pruner.load(Path(best) / STATE)

    def _file(self, args: Any, state: Any, folder: str | None = None) -> Path:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        return Path(folder or checkpoint) / STATE


def _mix(distillation: Distillation, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Mix the teacher's loss with the one that a model returns."""
    loss = output.get("loss") if isinstance(output, Mapping) else None
    if loss is not None and distillation.waits:
        output["loss"] = distillation(loss, _share(kwargs))


def _share(inputs: Mapping[str, Any]) -> Tensor | float:
    """Return the share of a step's labels that are in one batch, where the loss is divided so."""
    whole, labels = inputs.get("num_items_in_batch"), inputs.get("labels")
    return 1.0 if whole is None or labels is None else labels.ne(IGNORED).sum() / whole
