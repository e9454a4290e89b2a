"""Trainings with a pruning callback, to be interrupted: what is left must go on, or resume."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur import Config, Pruner
from secateur.masks import masking
from secateur.shrinking.history import History
from tests.trained import BATCH, Labelled, digits
from tests.trainers import test_lightning as lightning
from tests.trainers import test_transformers as huggingface


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        return nn.Sequential(*first, nn.Flatten(), nn.Linear(144, 10))


CONFIG = Config(sparsity=0.5, criterion="taylor", schedule="linear", steps=2)
STEPS = 4


class Training:
    """Trains a model while a pruner is stepped, with checkpoints, and cuts it at the end."""

    example: Any

    def __init__(self, folder: Path):
        self.folder = folder
        self.callback: Any = None
        self.whole: dict[str, Tensor] = {}  # what comes of it when nothing interrupts it

    def build(self) -> nn.Module:
        raise NotImplementedError

    def made(self, pruner: Pruner) -> Any:
        """Return the callback."""
        raise NotImplementedError

    def train(self, model: nn.Module, folder: Path, resume: str | None = None) -> None:
        """Train with the callback, with a checkpoint after each step."""
        raise NotImplementedError

    def newest(self, folder: Path) -> str | None:
        """Return the checkpoint to resume from."""
        raise NotImplementedError

    @property
    def place(self) -> Path:
        return self.folder / str(os.getpid())

    def __call__(self, model: nn.Module) -> None:
        self.callback = None
        torch.manual_seed(0)
        shutil.rmtree(self.place, ignore_errors=True)
        try:
            self.callback = self.made(Pruner(model, CONFIG, self.example))
            self.train(model, self.place)
        except SystemExit as error:  # which Lightning makes of an interrupt
            raise KeyboardInterrupt from error

    def trained(self) -> dict[str, Tensor]:
        """Return what comes of it."""
        model = self.build()
        self(model)
        self.callback = None
        return {name: value.clone() for name, value in model.state_dict().items()}

    def judged(self, model: nn.Module) -> list[str]:
        """Return what is wrong with what an interrupted training has left."""
        wrong = self._resumed()
        if not History.of(model).steps:
            wrong += self._gone_on(model)
        self.callback = None
        found = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
        return [*wrong, *(["hooks are left"] if found else [])]

    def _gone_on(self, model: nn.Module) -> list[str]:
        """Train again, with the same callback where there was one."""
        if self.callback is None:
            if masking.is_masked(model):
                return ["masks without a pruner"]
            self(model)
        else:
            torch.manual_seed(0)
            self.train(model, self.place)
        passed = self.callback.result.verification.passed and History.of(model).steps
        return [] if passed else ["it does not go on"]

    def _resumed(self) -> list[str]:
        """Resume in another model from the newest checkpoint, beside what was interrupted."""
        mine, self.callback = self.callback, None
        newest = self.newest(self.place)
        try:
            if newest is None:
                return []
            model = self.build()
            self.callback = self.made(Pruner(model, CONFIG, self.example))
            self.train(model, self.place.with_name(f"{self.place.name}-resumed"), newest)
            same = model.state_dict()
            wrong = [n for n in self.whole if not torch.equal(same[n], self.whole[n])]
            return [f"resumed from {Path(newest).name}: {n} is another" for n in wrong]
        finally:
            self.callback = mine


class HuggingFace(Training):
    example = huggingface.EXAMPLE

    def build(self) -> nn.Module:
        return Labelled(net())

    def made(self, pruner: Pruner) -> Any:
        return huggingface.callback(pruner, finish=True, teacher="dense")

    def train(self, model: nn.Module, folder: Path, resume: str | None = None) -> None:
        settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
        if resume is not None:
            self.callback.resume_from = resume
        trainer = huggingface.trainer(model, folder, self.callback, **settings)
        trainer.train(resume_from_checkpoint=resume)

    def newest(self, folder: Path) -> str | None:
        from secateur.trainers.transformers import whole_checkpoint

        found = whole_checkpoint(folder)
        over = found and found.endswith(f"-{STEPS}")  # from there a Trainer makes one step more
        return None if over else found


class Lightning(Training):
    example = lightning.EXAMPLE

    def build(self) -> nn.Module:
        model = lightning.classifier()
        model.net = net()
        return model  # type: ignore[no-any-return]

    def made(self, pruner: Pruner) -> Any:
        return lightning.callback(pruner, finish=True, teacher="dense")

    def train(self, model: nn.Module, folder: Path, resume: str | None = None) -> None:
        from lightning.pytorch.callbacks import ModelCheckpoint

        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
        settings = {"max_steps": STEPS, "enable_checkpointing": True}
        trainer = lightning.trainer(folder, self.callback, saver, **settings)
        images = torch.utils.data.TensorDataset(
            digits().train_images[: BATCH * 2], digits().train_labels[: BATCH * 2]
        )
        trainer.fit(model, DataLoader(images, BATCH), ckpt_path=resume)

    def newest(self, folder: Path) -> str | None:
        found = sorted(folder.glob("step=*.ckpt"), key=lambda p: p.stat().st_mtime)
        return str(found[-1]) if found else None
