"""NNI's replacer of attention, accepted and not needed."""

from __future__ import annotations

from typing import Any

from torch import nn


class TransformersAttentionReplacer:
    """Stands among ``customized_replacers`` of ``ModelSpeedup``, which cuts attention without it.

    Args:
        model: any module.
        parser: accepted for NNI's signature, and not needed.
    """

    def __init__(self, model: nn.Module, parser: Any = None):
        self.model = model
        self.parser = parser
