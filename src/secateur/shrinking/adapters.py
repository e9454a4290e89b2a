"""Adapters that lost ranks: a config beside the model says how many they have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from .history import Shape

FACTORS = (".lora_A.", ".lora_embedding_A.")
"""What PEFT calls the first factors, ``(rank, features)``."""


def ranks_cut(model: nn.Module, shapes: Mapping[str, tuple[Shape, Shape]]) -> Iterator[str]:
    """Yield a warning where ranks of PEFT's adapters were cut, which its config does not say.

    Args:
        model: the smaller one.
        shapes: parameter → its shape before and after.
    """
    if not hasattr(model, "peft_config"):
        return
    cut = {
        name: (before[0], after[0])
        for name, (before, after) in shapes.items()
        if any(factor in f".{name}" for factor in FACTORS) and before[0] != after[0]
    }
    for name, (before, after) in list(cut.items())[:1]:
        more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
        yield (
            f"adapters lost ranks ({name}: {before} to {after}{more}), and their config says as "
            "many as before: what PEFT saves of them does not load. Merge them before (merge), or "
            "keep the ranks: allocation={'*.lora_A.*': 0}"
        )
