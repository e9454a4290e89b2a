"""A small training run in a process of its own, that can be killed and goes on where it was."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Pruner

STEPS = 24
CHECKPOINT = 4  # optimizer steps between two

SETTINGS: dict[str, dict[str, Any]] = {
    "cubic": {"sparsity": 0.5, "schedule": "cubic", "steps": 5, "every": 3},
    "taylor": {
        "sparsity": 0.5,
        "criterion": "taylor",
        "schedule": "linear",
        "steps": 4,
        "every": 5,
    },
    "slim": {"sparsity": 0.5, "method": "slim", "steps": 2, "every": 9},
    "movement": {"sparsity": 0.5, "method": "movement", "start": 3, "steps": 12},
    "soft": {
        "threshold": 0.4,
        "granularity": "element",
        "method": "movement",
        "method_options": {"strength": 50.0, "score_lr": 0.2},
        "steps": 12,
    },
    "admm": {
        "sparsity": 0.5,
        "method": "admm",
        "method_options": {"rho": {"*": 0.5}, "interval": 3},
        "start": 14,
    },
    "admm of weights": {
        "sparsity": 0.5,
        "granularity": "element",
        "method": "admm",
        "method_options": {"rho": 0.5, "interval": 4},
        "start": 14,
    },
    "group lasso": {
        "sparsity": 0.5,
        "method": "group_lasso",
        "method_options": {"strength": 0.02},
        "steps": 2,
        "every": 9,
    },
    "growing": {"sparsity": 0.5, "method": "growing", "steps": 2, "every": 9},
    "growing by gradients": {
        "sparsity": 0.5,
        "criterion": "taylor",
        "method": "growing",
        "method_options": {"ceiling": 5.0, "choose_at": 4},
        "start": 14,
    },
    "lottery": {"sparsity": 0.7, "method": "lottery", "steps": 3, "every": 6},
    "lottery of weights": {
        "sparsity": 0.7,
        "granularity": "element",
        "method": "lottery",
        "method_options": {"rewind_to": 3},
        "steps": 2,
        "every": 8,
    },
    "learning rate": {
        "sparsity": 0.7,
        "method": "lottery",
        "method_options": {"rewind": "learning_rate", "rewind_to": 2},
        "steps": 2,
        "every": 8,
    },
}


def net() -> nn.Module:
    """Return a small network with a batch norm and dropout, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 16, bias=False),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(16, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )


def train(kind: str, folder: str) -> dict[str, Tensor]:
    """Train from the last checkpoint in a folder, if there is one, to the end.

    Every few steps all state is written to a new folder, which then takes the place of the last.
    Returns the state at the end, with the weights below the masks.
    """
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = net()
    pruner = Pruner(model, Config(**SETTINGS[kind]), torch.zeros(2, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    last, start = Path(folder) / "last", 0
    if last.exists():
        state = torch.load(last / "trainer.pt", weights_only=True)
        pruner.load(last / "pruner.safetensors")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
        torch.set_rng_state(state["rng"])
        start = state["step"]
    for step in range(start, STEPS):
        if step % CHECKPOINT == 0 and step > start:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rates": rates.state_dict(),
                "rng": torch.get_rng_state(),
                "step": step,
            }
            _replace(last, state, pruner)
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, :3].sum(1) > 0).long()).backward()
        optimizer.step()
        rates.step()
        pruner.step()
    found = {name: value.detach().clone() for name, value in model.named_parameters()}
    found |= {name: value.clone() for name, value in model.named_buffers()}
    return found | {f"mask of {name}": mask for name, mask in pruner.masks.items()}


def _replace(last: Path, state: dict[str, Any], pruner: Pruner) -> None:
    fresh = last.with_name("fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    torch.save(state, fresh / "trainer.pt")
    pruner.save(fresh / "pruner.safetensors")
    old = last.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    if last.exists():
        last.rename(old)
    fresh.rename(last)


def train_and_write(kind: str, folder: str) -> None:
    """Train to the end and leave the final state in a file; the target of a process."""
    torch.save(train(kind, folder), Path(folder) / f".end.{os.getpid()}")
    (Path(folder) / f".end.{os.getpid()}").rename(Path(folder) / "end.pt")
