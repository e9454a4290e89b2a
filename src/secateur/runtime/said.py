"""What torch's own layers say of their sizes: ``in_features``, ``num_channels`` and the like.

Their forward never reads these numbers, so that no operation tells what they are of.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

SAYS: list[tuple[tuple[type, ...], dict[str, tuple[str, int, str | None]]]] = [
    ((nn.Linear,), {"in_features": ("weight", 1, None), "out_features": ("weight", 0, None)}),
    (
        (nn.Bilinear,),
        {
            "in1_features": ("weight", 1, None),
            "in2_features": ("weight", 2, None),
            "out_features": ("weight", 0, None),
        },
    ),
    (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        {"in_channels": ("weight", 0, None), "out_channels": ("weight", 1, "groups")},
    ),
    (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        {"in_channels": ("weight", 1, "groups"), "out_channels": ("weight", 0, None)},
    ),
    ((nn.modules.batchnorm._NormBase,), {"num_features": ("weight", 0, None)}),
    ((nn.GroupNorm,), {"num_channels": ("weight", 0, None)}),
    (
        (nn.Embedding, nn.EmbeddingBag),
        {"num_embeddings": ("weight", 0, None), "embedding_dim": ("weight", 1, None)},
    ),
]
"""Classes, and for each attribute of theirs the tensor, its dimension, and what multiplies it."""


def said_by(module: nn.Module) -> Mapping[str, tuple[str, int, str | None]]:
    """Return for each such attribute of a module the tensor, its dimension, and what multiplies it.

    >>> said_by(nn.Linear(2, 3))["out_features"]
    ('weight', 0, None)
    """
    return next((says for classes, says in SAYS if isinstance(module, classes)), {})
