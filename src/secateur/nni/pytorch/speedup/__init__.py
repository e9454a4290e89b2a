"""``ModelSpeedup`` at NNI 2.x's place, with its arguments."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from secateur.nni.speedup import Masks
from secateur.nni.speedup import ModelSpeedup as Newer
from secateur.types import Example


class ModelSpeedup(Newer):
    """As ``secateur.nni.speedup.ModelSpeedup``, called as in NNI 2.x.

    Args:
        model, dummy_input, map_location: as there.
        masks_file: masks, or a file of them.
        customized_replace_func: ignored with a warning, as its successor is.
        batch_dim, confidence, fold_bias, enable_compile: accepted, and not needed.
        ours: verify, constants, inexact, data, repair.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Example,
        masks_file: Masks | str | os.PathLike[str],
        map_location: Any = None,
        batch_dim: int = 0,
        confidence: int = 8,
        customized_replace_func: Any = None,
        fold_bias: bool = False,
        enable_compile: bool = False,
        **ours: Any,
    ):
        replacers = [customized_replace_func] if customized_replace_func else None
        super().__init__(
            model, dummy_input, masks_file, map_location, customized_replacers=replacers, **ours
        )
