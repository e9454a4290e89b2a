"""Tokens by chance: what a language model is watched on where nobody gives data.

Of a channel that follows a table of tokens, weights may say less than nothing: tokens that are
frequent in training leave small weights where much goes through.  Which channels carry something
shows even on tokens drawn at random.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.graph.program import Ref
from secateur.structure import Structure
from secateur.types import Example, call_arguments

TOKENS = 1024
"""How many are drawn, in batches like the example."""
MOST_BATCHES = 32
SAME = {"aten.view", "aten.reshape", "aten._unsafe_view", "aten.unsqueeze", "aten.squeeze"} | {
    f"aten.{name}" for name in ("alias", "clone", "detach", "expand", "_to_copy", "slice")
}
"""Operations whose result holds the numbers of their input, in another form."""


def random_tokens(example: Example, structure: Structure) -> list[Example]:
    """Return batches like the example with other tokens in it; none where it has no tokens.

    Tokens are whole numbers that an input brings and the model looks up in a table; of several
    tables the largest is the vocabulary.  What else the example holds (masks, positions) stays.
    Numbers that are no tokens are not made up: a model that takes floats gets no batches.

    Args:
        example: the example inputs.
        structure: what ``analyze`` found on them.

    >>> from torch import nn
    >>> from secateur import analyze
    >>> net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> ids = torch.zeros(2, 16, dtype=torch.long)
    >>> batches = random_tokens(ids, analyze(net, ids))
    >>> len(batches), int(torch.stack([args[0] for args in batches]).max())
    (32, 49)
    """
    leaves, tree = tree_flatten(call_arguments(example))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    rows = _vocabulary(structure)
    if not rows or any(leaves[i].is_floating_point() for i in places):
        return []
    tokens = {places[number]: size for number, size in rows.items()}
    count = ceil(TOKENS / max(1, sum(leaves[i].numel() for i in tokens)))
    generator = torch.Generator().manual_seed(0)
    batches = list[Example]()
    for _ in range(min(count, MOST_BATCHES)):
        drawn = list(leaves)
        for i, size in tokens.items():
            ids = torch.randint(size, leaves[i].shape, generator=generator)
            drawn[i] = ids.to(leaves[i])
        args, kwargs = tree_unflatten(drawn, tree)
        batches.append(kwargs or args)
    return batches


def _vocabulary(structure: Structure) -> dict[int, int]:
    """Return the inputs that are looked up in the largest table: number of a tensor → rows."""
    r = structure.inferred.recording
    place = {value: number for number, value in enumerate(r.inputs)}
    found: dict[int, int] = {}
    for op in r.ops:
        kind = op.name.rsplit(".", 1)[0]
        given = [a.value for a in op.args if isinstance(a, Ref)]
        if kind in SAME and given[:1] and given[0] in place:
            place |= {out.value: place[given[0]] for out in op.outputs}
        elif kind == "aten.embedding" and given[1] in place:
            number, size = place[given[1]], r.shapes[given[0]][0]
            found[number] = min(size, found.get(number, size))
    largest = max(found.values(), default=0)
    return {number: size for number, size in found.items() if size == largest}
