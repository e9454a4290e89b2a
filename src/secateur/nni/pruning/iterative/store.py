"""The folder of a run of tasks: models and masks as safetensors, everything else as JSON.

    {log_dir}/{start of the run}/origin/            the model, its masks and goals as they came
                                /best_result/       of the best task so far
                                /intermediate_result/{task}/
                                /.tasks             JSON: what became of each task

A model that was cut is a folder of ``save_pruned``, which ``load_pruned`` reads onto the model that
came; another is ``model.safetensors``, its state.  NNI pickles models and masks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.runtime.io import write_tensors, write_text
from secateur.shrinking import save_pruned
from secateur.shrinking.history import History

Masks = Mapping[str, Mapping[str, Tensor]]


class Store:
    """Writes what a run of tasks makes; see the module's docstring."""

    def __init__(self, log_dir: str | os.PathLike[str]):
        started = datetime.now().strftime("%Y-%m-%d-%H-%M-%S-%f")
        self.folder = Path(log_dir) / started

    def origin(self, model: nn.Module, masks: Masks, config: Sequence[Mapping[str, Any]]) -> None:
        """Write what the run began with."""
        self._write("origin", model, masks, config)

    def best(self, model: nn.Module, masks: Masks, config: Sequence[Mapping[str, Any]]) -> None:
        """Write the best result so far in place of the last."""
        self._write("best_result", model, masks, config)

    def intermediate(
        self, task: int, model: nn.Module, masks: Masks, config: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the result of a task."""
        self._write(f"intermediate_result/{task}", model, masks, config)

    def tasks(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write what became of each task."""
        write_text(self.folder / ".tasks", json.dumps(list(records), indent=1) + "\n")

    def _write(
        self, name: str, model: nn.Module, masks: Masks, config: Sequence[Mapping[str, Any]]
    ) -> None:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if History.of(model).steps:
            save_pruned(model, folder)
        else:
            write_tensors(folder / "model.safetensors", dict(model.state_dict()))
        named = masks.items()
        flat = {f"{n}.{t}" if n else t: m for n, by in named for t, m in by.items()}
        write_tensors(folder / "masks.safetensors", flat)
        write_text(folder / "config_list.json", json.dumps(list(config), indent=1) + "\n")
