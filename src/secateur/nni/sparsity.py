"""How much of what a config_list selects is gone: from a model's masks, or from a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .config_list import parse, resolve
from .settings import modern


def compute_sparsity_compact2origin(
    origin_model: nn.Module, compact_model: nn.Module, config_list: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the entries, each with the share of its weights that the smaller model lacks.

    The share is ``total_sparsity``, 0 where an entry selects no weight.

    Raises:
        ConfigError: the config_list does not fit the model.

    >>> dense, small = nn.Sequential(nn.Linear(4, 8)), nn.Sequential(nn.Linear(4, 2))
    >>> entry = {"op_types": ["Linear"], "sparse_ratio": 0.75}
    >>> compute_sparsity_compact2origin(dense, small, [entry])[0]["total_sparsity"]
    0.75
    """

    return _with_sparsity(
        origin_model, config_list, lambda module: _weight(compact_model, module).numel()
    )


def compute_sparsity_mask2compact(
    compact_model: nn.Module,
    compact_model_masks: Mapping[str, Mapping[str, Tensor | None]],
    config_list: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the entries, each with the share of its weights that is masked.

    The share is ``total_sparsity``, 0 where an entry selects no weight.

    Raises:
        ConfigError: the config_list does not fit the model.

    >>> import torch
    >>> model, masks = nn.Sequential(nn.Linear(4, 2)), {"0": {"weight": torch.eye(2, 4)}}
    >>> entry = {"op_types": ["Linear"], "sparse_ratio": 0.5}
    >>> compute_sparsity_mask2compact(model, masks, [entry])[0]["total_sparsity"]
    0.75
    """

    def left(module: str) -> int:
        weight = _weight(compact_model, module)
        mask = compact_model_masks.get(module, {}).get("weight")
        return weight.numel() if mask is None else int(mask.expand(weight.shape).count_nonzero())

    return _with_sparsity(compact_model, config_list, left)


def _weight(model: nn.Module, module: str) -> Tensor:
    weight = model.get_submodule(module).weight
    assert isinstance(weight, Tensor)  # it is a target
    return weight


def _with_sparsity(
    model: nn.Module, config_list: Sequence[Mapping[str, Any]], left: Callable[[str], int]
) -> list[dict[str, Any]]:
    targets = resolve(parse(modern(config_list)), model)
    found = []
    for number, entry in enumerate(config_list, 1):
        mine = [t for t in targets if t.entry == number and t.target == "weight"]
        total = sum(_weight(model, t.module).numel() for t in mine)
        kept = sum(left(t.module) for t in mine)
        share = 1 - kept / total if total else 0.0
        found.append({**copy.deepcopy(dict(entry)), "total_sparsity": share})
    return found
