"""torch's own fused layers, written in plain operations with every size a number of its own.

Some layers of torch hide what they compute: ``nn.LSTM`` runs another fused operation on each
device, and ``nn.MultiheadAttention`` welds its inner width to its outer one.  While a model is
traced, each such layer is an instance of its replacement: a subclass with the same tensors and
results, whose forward is plain.  After a cut a layer gets its own class back, unless only the
replacement can express the new sizes; then it stays, and ``isinstance`` and state dict are as ever.

A new replacement is one class with ``replaces`` above it.
"""

from __future__ import annotations

from . import attention, recurrent  # each registers its replacements
from .table import REPLACEMENTS, in_plain_operations, name_of, replacement_of, replaces

__all__ = [
    "REPLACEMENTS",
    "attention",
    "in_plain_operations",
    "name_of",
    "recurrent",
    "replacement_of",
    "replaces",
]
