"""torch's own fused layers, written in plain operations with every size a number of its own.

Some layers of torch hide what they compute: ``nn.LSTM`` runs another fused operation on each
device, and ``nn.MultiheadAttention`` welds its inner width to its outer one.  While a model is
traced, each such layer is an instance of its replacement: a subclass with the same tensors and
results, whose forward is plain.  After a cut a layer gets its own class back, unless only the
replacement can express the new sizes; then it stays, and ``isinstance`` and state dict are as ever.

A new replacement is one class with ``replaces`` above it.
"""

from __future__ import annotations

from secateur.registry import import_all

from .table import in_plain_operations as in_plain_operations
from .table import name_of as name_of
from .table import replacement_of as replacement_of

import_all(__name__, __path__)
