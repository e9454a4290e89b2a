"""Under which names, and in which pieces, a model of transformers saves its tensors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

Kinds = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Name → shape and type of a tensor."""


def published(model: nn.Module, kinds: Kinds) -> Kinds | None:
    """Return what ``save_pretrained`` makes of tensors: names as on the hub, experts one by one.

    None where a model is no transformers model, or its tensors are saved under their own names.
    Nothing is computed: the tensors have no numbers.

    >>> published(nn.Linear(2, 2), {"weight": ((2, 2), torch.float32)})
    """
    library: Any = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    from transformers.core_model_loading import revert_weight_conversion

    state = {n: torch.empty(shape, dtype=of, device="meta") for n, (shape, of) in kinds.items()}
    found = revert_weight_conversion(model, state)
    if found.keys() == state.keys():
        return None
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
