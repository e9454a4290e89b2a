"""What comes behind a cut and loses nothing itself: fitted to what it gave before, all the same.

Its inputs are others than the dense model's.  What the readers of a cut could not make up for, it
can in part.
"""

from __future__ import annotations

from secateur.graph.blocks import outermost
from secateur.graph.program import Op, Recording
from secateur.graph.sums import KEEPING, products
from secateur.structure import Structure
from secateur.types import Masks

SAME = KEEPING | {"_to_copy", "slice", "select", "unsqueeze", "squeeze", "add", "div", "mul"}
"""Operations behind a last layer that make no other layer of it."""


def behind(
    structure: Structure, recording: Recording, masks: Masks, *, part: bool = False
) -> frozenset[str]:
    """Return the weights that are fitted besides the readers of what is masked.

    Left out are blocks of which nothing goes, what scores a vocabulary (as large as all else), and
    weights that are read more than once or by several names.

    Args:
        structure: of the dense model.
        recording: of its forward on the data.
        masks: parameter name → bool tensor of its shape.
        part: it is one block of a model, of which something went before.
    """
    cut = {name for name in masks if not bool(masks[name].all())}
    blocks = [] if part else [f"{block.name}." for block in outermost(structure.blocks)]
    whole = tuple(block for block in blocks if not any(name.startswith(block) for name in cut))
    many = {own for name, own in recording.names.items() if name != own}
    return frozenset(
        name
        for name, product in products(recording).items()
        if not name.startswith(whole)
        and name not in many
        and name in recording.parameters
        and not _read_besides(recording, name, product)
        and not _scores_tokens(recording, product)
    )


def _read_besides(recording: Recording, name: str, product: Op) -> bool:
    """Tell whether a weight is looked at by something else, as a vocabulary's rows are."""
    owner = recording.parameters[name]
    users = [op for op in recording.ops if owner in {recording.owner[v] for v in op.reads}]
    return any(op is not product and not _is_view(recording, op, owner) for op in users)


def _is_view(recording: Recording, op: Op, owner: int) -> bool:
    return bool(op.outputs) and all(recording.owner[ref.value] == owner for ref in op.outputs)


def _scores_tokens(recording: Recording, product: Op) -> bool:
    """Tell whether a product makes the model's output, in whatever shape, for each of its ids."""
    ids = [recording.shapes[v] for v in recording.inputs if v in recording.integers]
    outputs = {recording.owner[v] for v in recording.outputs if recording.shapes[v][:-1] in ids}
    made = product.outputs[0].value
    while recording.owner[made] not in outputs:
        users = recording.readers.get(made, [])
        if len(users) != 1 or not _goes_on(recording, users[0], made):
            return False
        made = users[0].outputs[0].value
    return True


def _goes_on(recording: Recording, op: Op, made: int) -> bool:
    """Tell whether an operation makes the same of its input, but for a shape, a type or a bias."""
    others = {recording.owner[value] for value in op.reads if value != made}
    return op.name.split(".")[1] in SAME and others <= set(recording.parameters.values())
