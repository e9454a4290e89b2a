"""What takes up the factor of an average over fewer positions: scales, weights and epsilons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from secateur.graph.axes import Atom
from secateur.graph.gains import Rescaled
from secateur.graph.origins import Attribute
from secateur.replacements import replacement_of
from secateur.runtime.undo import Undo

Count = Callable[[Atom], int]


def rescaled_floats(
    model: nn.Module, found: tuple[Rescaled, ...], count: Count
) -> Iterator[tuple[Attribute, float, float]]:
    """Yield each epsilon that changes, what the model computes with, and what it becomes."""
    for each in found:
        if isinstance(each.what, Attribute) and (ratio := each.ratio(count)) != 1:
            module = model.get_submodule(each.what.path)
            before = each.what.held_by(module)
            if before is None:  # the layer takes that of its type
                before = replacement_of(type(module)).extra(module)[each.what.name]  # type: ignore[union-attr]
            yield each.what, before, before * ratio


def rescaled_tensors(
    state: Mapping[str, Tensor], found: tuple[Rescaled, ...], count: Count
) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter that changes, in double precision: one of a coarser type rounds it."""
    for each in found:
        if isinstance(each.what, str) and each.what in state and (ratio := each.ratio(count)) != 1:
            values = state[each.what].data.double()
            yield each.what, (values + each.shift) * ratio - each.shift


def rounded(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield which rescaled parameters are of so coarse a type that it shows."""
    state = dict(model.named_parameters())
    types = {name: state[name].dtype for name in values if name in state}
    for dtype in dict.fromkeys(types.values()):
        if (eps := torch.finfo(dtype).eps) > 1e-4:
            names = [name for name, found in types.items() if found == dtype]
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield (
                f"{names[0]}{more} took up the factor of a mean over fewer positions, rounded to "
                f"{str(dtype).removeprefix('torch.')} (by {eps / 2:.0e} at most), which the check "
                "leaves out"
            )


@contextmanager
def unrounded(
    model: nn.Module, values: Mapping[str, Tensor], dtype: torch.dtype | None
) -> Iterator[None]:
    """Let rescaled parameters hold what they are before their own type rounds it.

    The rounding of a scale is no fault of a cut, and a check that allowed it would allow faults.

    Args:
        values: by name.
        dtype: what a check computes in; None is the model's own types, in which they are rounded.
    """
    state = dict(model.named_parameters())
    with Undo() as undo:
        for name, exact in values.items() if dtype is not None else ():
            undo(partial(setattr, state[name], "data", state[name].data))
            state[name].data = exact.to(dtype)
        yield
