"""Products with large weights, computed for some of the weight's outputs at a time.

What reads a weight in another type, or masked, makes a copy of it first.  Each output needs its own
row of the weight alone, so a copy of some rows is enough, then of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BYTES = 2**20  # of a weight in the type that is computed in, at a time
aten = torch.ops.aten


class Outputs(NamedTuple):
    """Where an operation has its weight, the weight its outputs, and the result has them."""

    weight: int  # place among the arguments
    of_weight: int  # dimension
    of_result: int
    beside: int | None = None  # place of what is added to each output: a bias


OUTPUTS = {
    aten.mm.default: Outputs(1, 1, 1),
    aten.addmm.default: Outputs(2, 1, 1, 0),
    aten.bmm.default: Outputs(1, 2, 2),
    aten.mv.default: Outputs(0, 0, 0),
    aten.convolution.default: Outputs(1, 0, 1, 2),
}
TRANSPOSED, GROUPS = 6, 8  # among the arguments of a convolution


def in_parts(
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    costly: Callable[[Tensor], int],
    given: Callable[[Any], Any],
    viewed: Callable[[Any, tuple[Any, ...]], Any],
) -> Tensor | None:
    """Return what an operation makes, if it can be made in parts, and its weight is large.

    Args:
        func: an operation of aten, with its arguments.
        costly: how many bytes a copy takes that must be made of a tensor to read it, or 0.
        given: makes that copy.
        viewed: calls an operation that views a tensor.
    """
    where = OUTPUTS.get(func)
    if where is None or (func is aten.convolution.default and not _ordinary(args)):
        return None
    weight = args[where.weight]
    size = weight.shape[where.of_weight]
    count = min(-(-costly(weight) // BYTES), size)
    if count < 2:
        return None
    rest = [None if i == where.weight else given(x) for i, x in enumerate(args)]
    step = -(-size // count)
    whole: Tensor | None = None
    for start in range(0, size, step):
        some = list(rest)
        part = aten.slice.Tensor, (weight, where.of_weight, start, start + step)
        some[where.weight] = given(viewed(*part))
        if where.beside is not None:
            some[where.beside] = _beside(rest[where.beside], size, start, start + step)
        part_made = func(*some, **kwargs)
        if whole is None:  # not a list: what is small would split what each copy leaves free
            whole = _room_for(part_made, where.of_result, size)
        whole.narrow(where.of_result, start, part_made.shape[where.of_result]).copy_(part_made)
    return whole


def _room_for(part: Tensor, dim: int, size: int) -> Tensor:
    """Return an empty tensor like a part, of another size, laid out as it is."""
    shape = [size if d == dim else n for d, n in enumerate(part.shape)]
    order = sorted(range(part.ndim), key=lambda d: part.stride(d), reverse=True)
    return torch.empty_permuted(shape, order, dtype=part.dtype, device=part.device)


def _ordinary(args: tuple[Any, ...]) -> bool:
    return not args[TRANSPOSED] and args[GROUPS] == 1


def _beside(added: Any, size: int, start: int, end: int) -> Any:
    """Return what is added to some of the outputs: one for all of them stays."""
    per_output = isinstance(added, Tensor) and added.ndim > 0 and added.shape[-1] == size
    return added[..., start:end] if per_output and size > 1 else added
