"""How a parameter is read: which of its dimensions are outputs, and which meet an input.

An operation that multiplies by a parameter sees a view of it: transposed, one expert of a stack,
the rows for the keys of a fused projection.  A view is found by its memory, whatever code made it,
and an arrangement lays what it reads out as matrices ``(systems, out, features)``: one system for
a linear layer, one for each group of a convolution, one for each expert of a stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Consecutive positions of one dimension of a parameter."""

    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class View:
    """Which part of a parameter a tensor shows, dimension by dimension.

    ``dims`` has for each dimension of the tensor the spans of the parameter that lie in it, outer
    to inner; none where it is of size 1 or broadcast.  ``spans`` has every dimension of the
    parameter, as far as it is shown.
    """

    name: str
    dims: tuple[tuple[Span, ...], ...]
    spans: tuple[Span, ...]
    whole: bool
    original: bool = True
    """It is the parameter's own memory, and no copy."""


def spans_of(
    sizes: Sequence[int], strides: Sequence[int], tensor: Tensor, offset: int
) -> tuple[tuple[tuple[Span, ...], ...], tuple[Span, ...]] | None:
    """Return which positions of a base each dimension of a view shows, and all that is shown.

    Args:
        sizes: of the base.
        strides: of the base; no two of its positions share memory.
        tensor: the view.
        offset: where it starts, in elements from the start of the base.

    Returns:
        None where the view shows every other position, a diagonal, or the end of one row and the
        start of the next.

    >>> import torch
    >>> base = torch.zeros(6, 4)
    >>> spans_of((6, 4), (4, 1), base[2:4].t(), 8)[0]
    ((Span(dim=1, start=0, size=4),), (Span(dim=0, start=2, size=2),))
    """
    real = [d for d in range(len(sizes)) if sizes[d] > 1]
    by_stride = {strides[d]: d for d in real}
    start = dict.fromkeys(range(len(sizes)), 0)
    for d in sorted(real, key=lambda d: -strides[d]):
        start[d], offset = divmod(offset, strides[d])
    if offset or any(start[d] >= sizes[d] for d in real):
        return None
    shown: dict[int, Span] = {}
    dims = []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        chain: list[Span] = []
        left = size if size > 1 and stride > 0 else 1
        while left > 1:
            dim = by_stride.get(stride)
            if dim is None or dim in shown:
                return None
            taken = min(left, sizes[dim])
            if start[dim] + taken > sizes[dim] or left % taken or (taken < left and start[dim]):
                return None
            shown[dim] = Span(dim, start[dim], taken)
            chain.insert(0, shown[dim])
            left //= taken
            stride *= sizes[dim]
        dims.append(tuple(chain))
    spans = tuple(shown.get(d, Span(d, start[d], 1)) for d in range(len(sizes)))
    return tuple(dims), spans


@dataclass(frozen=True)
class Arrangement:
    """A part of a parameter as matrices, ``(systems, out, features)``.

    Dimension ``split`` of the part falls into ``groups`` equal pieces and counts as two
    dimensions.  The others say which of these make what; together they are all of them.  A feature
    is a channel of the input at one tap of a kernel.
    """

    name: str
    spans: tuple[Span, ...]
    systems: tuple[int, ...]
    out: tuple[int, ...]
    channels: tuple[int, ...]
    taps: tuple[int, ...] = ()
    groups: int = 1
    split: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that ``from_dict`` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Arrangement:
        spans = tuple(Span(**span) for span in state["spans"])
        lists = {name: tuple(state[name]) for name in ("systems", "out", "channels", "taps")}
        return cls(**{**state, "spans": spans, **lists})

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor of the parameter's shape, ``(systems, out, features)``."""
        view = self._view(tensor)
        sizes = self._sizes(view.shape)
        return view.reshape(sizes[0], sizes[1], sizes[2] * sizes[3])

    def put(self, tensor: Tensor, matrices: Tensor) -> None:
        """Write matrices to the part of a tensor of the parameter's shape, in place."""
        view = self._view(tensor)
        view.copy_(matrices.reshape(view.shape))

    def spread(self, values: Tensor, tensor: Tensor) -> None:
        """Write one value per system and channel to all it meets.

        ``values`` is ``(systems, channels)``, or ``(systems, 1)`` for all channels.
        """
        view = self._view(tensor)
        systems, _, channels, taps = self.sizes
        laid = values.reshape(systems, 1, -1, 1).expand(systems, 1, channels, 1)
        ranks = [len(part) for part in self._parts]
        sizes = list(view.shape)
        sizes[ranks[0] : ranks[0] + ranks[1]] = [1] * ranks[1]
        sizes[len(sizes) - ranks[3] :] = [1] * ranks[3]
        view.copy_(laid.reshape(sizes).expand(view.shape))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """How many systems, outputs, channels and taps there are."""
        sizes = [span.size for span in self.spans]
        if self.groups > 1:
            sizes[self.split : self.split + 1] = [self.groups, sizes[self.split] // self.groups]
        return self._sizes([sizes[d] for part in self._parts for d in part])

    @property
    def _parts(self) -> tuple[tuple[int, ...], ...]:
        return self.systems, self.out, self.channels, self.taps

    def _sizes(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        found, start = [], 0
        for part in self._parts:
            found.append(prod(shape[start : start + len(part)]))
            start += len(part)
        return found[0], found[1], found[2], found[3]

    def _view(self, tensor: Tensor) -> Tensor:
        for span in self.spans:
            tensor = tensor.narrow(span.dim, span.start, span.size)
        if self.groups > 1:
            tensor = tensor.unflatten(self.split, (self.groups, -1))
        return tensor.permute([d for part in self._parts for d in part])


def of_matrix(view: View, batch: int | None, out: int, features: int) -> Arrangement:
    """Return how a product reads a view whose dimensions have these roles.

    >>> span = Span(0, 0, 3), Span(1, 0, 4)
    >>> seen = View("weight", ((span[1],), (span[0],)), span, whole=True)  # transposed
    >>> of_matrix(seen, None, out=1, features=0).sizes
    (1, 3, 4, 1)
    """

    def among(dim: int | None) -> tuple[int, ...]:
        return () if dim is None else tuple(span.dim for span in view.dims[dim])

    used = {*among(batch), *among(out), *among(features)}
    rest = tuple(d for d in range(len(view.spans)) if d not in used)  # of one position each
    return Arrangement(view.name, view.spans, (*rest, *among(batch)), among(out), among(features))


def of_kernel(view: View, groups: int, transposed: bool) -> Arrangement:
    """Return how a convolution reads its kernel, (out, in / groups, *) or (in, out / groups, *)."""
    rank = len(view.spans)
    inner, outer = (1, 2) if groups > 1 else (0, 1)
    taps = tuple(range(outer + 1, rank + (groups > 1)))
    systems = (0,) if groups > 1 else ()
    out, channels = (outer, inner) if transposed else (inner, outer)
    return Arrangement(
        view.name, view.spans, systems, (out,), (channels,), taps, groups=groups, split=0
    )
