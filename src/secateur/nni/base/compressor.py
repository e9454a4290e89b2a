"""``Pruner``, the base of all pruners, at NNI's path; quantisers and distillers are not here."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from secateur.nni.absent import refuse
from secateur.nni.pruning.pruner import Pruner

__all__ = ["Compressor", "Distiller", "Pruner", "Quantizer"]

Compressor = Pruner


class _NotHere:
    path: ClassVar[str]

    def __init__(self, *args: Any, **options: Any):
        refuse(self.path)

    @classmethod
    def from_compressor(cls, *args: Any, **options: Any) -> Self:
        """Raise the error that says what to do instead."""
        return cls()


class Quantizer(_NotHere):
    """NNI's base of quantisers: to make one raises NotHereError, which says what to do instead."""

    path = "quantization.Quantizer"


class Distiller(_NotHere):
    """NNI's base of distillers: to make one raises NotHereError, which says what to do instead."""

    path = "distillation.Distiller"
