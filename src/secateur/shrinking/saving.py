"""Write a result: the same folder from Python and from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from secateur.runtime.io import write_text

from .exports import REPORTS
from .files import save_with
from .record import RECORD, Source, record_of
from .stock import is_pretrained, is_stock, write_beside, write_dense_config, write_ordinary


def save_result(
    model: nn.Module, source: Source, directory: str | os.PathLike[str], *, config: Any
) -> tuple[Path, bool]:
    """Write a smaller model with its plan, and all that is known of how it is loaded.

    Args:
        model: that was pruned.
        source: how its dense model is built.
        directory: is made where it is missing.
        config: says every shape, so that the model's class may load it; None where none does.

    Returns:
        The folder, and whether the class's own loader was tried on it and made another model, so
        that the folder is one for ours.
    """
    refused = False

    def beside(folder: Path) -> None:
        nonlocal refused
        write_text(folder / RECORD, record_of(source))
        if not is_pretrained(model):
            return
        own = config is not None and write_ordinary(model, folder, config)
        refused = config is not None and not own
        if not own and is_stock(model):
            write_dense_config(model, folder)
        write_beside(model, folder)

    folder = save_with(model, directory, beside=beside)
    for name in REPORTS:
        (folder / name).unlink(missing_ok=True)
    return folder, refused
