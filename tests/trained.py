"""The digits, in the hands of three trainers: a loop of one's own, Lightning, Hugging Face."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.demo.digits import Digits, DigitsNet, load_digits
from secateur.nni import LightningEvaluator, TorchEvaluator, TransformersEvaluator
from tests.zoo import torchvision_models

BATCH = 64
METHODS: dict[str, dict[str, Any]] = {
    "admm": {"method": "admm", "method_options": {"interval": 2, "rho": 0.5}, "start": 5},
    "admm of weights": {
        "method": "admm",
        "method_options": {"interval": 2, "rho": 0.5},
        "start": 5,
        "granularity": "element",
        "types": ["Conv2d"],
    },
    "lottery": {"method": "lottery", "steps": 2, "every": 3},
    "lottery of weights": {
        "method": "lottery",
        "method_options": {"rewind_to": 1},
        "steps": 2,
        "every": 3,
        "granularity": "element",
        "types": ["Conv2d"],
    },
    "learning rate": {
        "method": "lottery",
        "method_options": {"rewind": "learning_rate"},
        "steps": 2,
        "every": 3,
    },
}
VARIANTS = ("admm", "admm of weights", "lottery of weights", "learning rate")
RESUMED = [
    pytest.param(settings, id=name, marks=pytest.mark.slow if name in VARIANTS else ())
    for name, settings in METHODS.items()
]
"""Methods that a trainer must resume bit for bit, besides its own."""


@cache
def digits() -> Digits:
    return load_digits()


def net(seed: int = 0, width: int = 8) -> DigitsNet:
    """Return a small ResNet with random weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsNet(width=width, blocks=1)


class Labelled(nn.Module):
    """A classifier as Hugging Face's Trainer wants it: a loss when there are labels."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixels)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@dataclass
class Live:
    """A model and what trains it, as a user has built them."""

    model: nn.Module
    evaluator: Any
    example: Any
    hooks: Callable[[], int]
    batches: int = len(digits().train_labels) // BATCH

    def logits(self, images: Tensor) -> Tensor:
        """Return the outputs in eval mode."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            out = self.model(images)
        self.model.train(training)
        return out["logits"] if isinstance(out, dict) else out

    def loss(self) -> float:
        """Return the loss on the test images."""
        return float(F.cross_entropy(self.logits(digits().test_images), digits().test_labels))


def live(kind: str, folder: Path) -> Live:
    """Return a small network with random weights and its trainer: "loop", "lightning" or "hf"."""
    torchvision_models()  # Lightning and transformers import torchvision
    return LIVE[kind](folder)


def _loader() -> DataLoader[Any]:
    data = TensorDataset(digits().train_images, digits().train_labels)
    order = torch.Generator().manual_seed(0)
    return DataLoader(data, BATCH, shuffle=True, drop_last=True, generator=order)


def accuracy(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        guessed = model(digits().test_images).argmax(1)
    return float((guessed == digits().test_labels).float().mean())


def training_step(batch: list[Tensor], model: nn.Module) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def training_func(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training_step: Callable[..., Tensor],
    lr_scheduler: Any = None,
    max_steps: int | None = None,
    max_epochs: int | None = None,
) -> None:
    """Train as NNI's users write it."""
    model.train()
    loader, step = _loader(), 0
    for _ in range(max_epochs or 100):
        for batch in loader:
            optimizer.zero_grad()
            training_step(batch, model).backward()
            optimizer.step()
            step += 1
            if step == max_steps:
                return


def _loop(folder: Path) -> Live:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    evaluator = TorchEvaluator(training_func, optimizer, training_step, evaluating_func=accuracy)
    example = torch.zeros(2, 1, 8, 8)
    evaluator.dummy_input = example

    def hooks() -> int:
        return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)

    return Live(model, evaluator, example, hooks)


def _lightning(folder: Path) -> Live:
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            return training_step(batch, self)

        def test_step(self, batch: list[Tensor], index: int) -> None:
            right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("default", right)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return _loader()

        def test_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(digits().test_images, digits().test_labels), 600)

    trainer = pl.Trainer(
        max_epochs=1000,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    model, built = Classifier(), len(trainer.callbacks)
    example = torch.zeros(2, 1, 8, 8)

    def hooks() -> int:
        left = sum(len(o._optimizer_step_post_hooks) for o in trainer.optimizers)
        return left + len(trainer.callbacks) - built

    return Live(model, LightningEvaluator(trainer, Data(), example), example, hooks)


def _hf(folder: Path) -> Live:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    def rows(images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
        pairs = zip(images, labels, strict=True)
        return [{"pixels": image, "labels": label} for image, label in pairs]

    data = digits()
    model = Labelled(net())
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            dataloader_drop_last=True,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=rows(data.train_images, data.train_labels),  # type: ignore[arg-type]
        eval_dataset=rows(data.test_images, data.test_labels),  # type: ignore[arg-type]
    )
    trainer.remove_callback(PrinterCallback)
    built = len(trainer.callback_handler.callbacks)
    example = {"pixels": torch.zeros(2, 1, 8, 8)}

    def hooks() -> int:
        return len(trainer.callback_handler.callbacks) - built

    return Live(model, TransformersEvaluator(trainer, example), example, hooks)


LIVE: dict[str, Callable[[Path], Live]] = {"loop": _loop, "lightning": _lightning, "hf": _hf}
