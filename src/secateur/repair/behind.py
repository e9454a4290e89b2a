"""What comes behind a cut and loses nothing itself: fitted to what it gave before, all the same.

Its inputs are others than the dense model's.  What the readers of a cut could not make up for, it
can in part.
"""

from __future__ import annotations

import re

from secateur.graph.blocks import outermost
from secateur.graph.program import Op, Recording
from secateur.graph.sums import products
from secateur.structure import Structure
from secateur.types import Masks


def behind(
    structure: Structure, recording: Recording, masks: Masks, *, part: bool = False
) -> frozenset[str]:
    """Return the weights that are fitted besides the readers of what is masked.

    Left out are blocks of which nothing goes; where ids are read, all but the layers of a list that
    lose something (what scores a vocabulary is as large as these); and weights that are read more
    than once or by several names.

    Args:
        structure: of the dense model.
        recording: of its forward on the data.
        masks: parameter name → bool tensor of its shape.
        part: it is one block of a model, of which something went before.
    """
    cut = {name for name in masks if not bool(masks[name].all())}
    blocks = [] if part else [f"{block.name}." for block in outermost(structure.blocks)]
    whole = tuple(block for block in blocks if not any(name.startswith(block) for name in cut))
    reads_ids = bool(recording.integers & {*recording.inputs})
    layers = {_layer_of(name) for name in cut} - {""}
    many = {own for name, own in recording.names.items() if name != own}
    return frozenset(
        name
        for name, product in products(recording).items()
        if not name.startswith(whole)
        and (not reads_ids or _layer_of(name) in layers)
        and name not in many
        and name in recording.parameters
        and not _read_besides(recording, name, product)
    )


def _layer_of(name: str) -> str:
    """Return the path of the layer of a list, the outermost, that a parameter is in.

    >>> _layer_of("model.layers.3.mlp.experts.0.weight"), _layer_of("head.weight")
    ('model.layers.3.', '')
    """
    found = re.match(r"(?:.*?\.)??\d+\.", name)
    return found[0] if found else ""


def _read_besides(recording: Recording, name: str, product: Op) -> bool:
    """Tell whether a weight is looked at by something else, as a vocabulary's rows are."""
    owner = recording.parameters[name]
    users = [op for op in recording.ops if owner in {recording.owner[v] for v in op.reads}]
    return any(op is not product and not _is_view(recording, op, owner) for op in users)


def _is_view(recording: Recording, op: Op, owner: int) -> bool:
    return bool(op.outputs) and all(recording.owner[ref.value] == owner for ref in op.outputs)
