"""What an operation multiplies a parameter by, as the rows of matrices.

A reading is one operation that contracts an input with a parameter.  Whatever the operation is, it
computes ``y = x wᵀ`` in each of its systems: the groups of a convolution, the experts of a stack.
A new operation is one function below ``reads``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .arrangement import Arrangement, View, of_kernel, of_matrix

Reduce = Callable[[Tensor, tuple[int, ...]], Tensor]
"""A function of a tensor and the dimensions that it sums over."""

PLACES = 64
"""Of the output of a convolution for each image that become rows, at least."""

Chunks = Iterator[tuple[slice, Tensor, Tensor | None]]

Sampled = Iterator[tuple[slice, slice, Tensor, Tensor]]

CHUNK = 1 << 24
"""Elements of the patches of a convolution that exist at once: 64 MiB."""


@dataclass
class Reading:
    """One operation that reads a part of a parameter.

    ``source`` is the input as the operation got it; readings of one source share what is computed
    of it.
    """

    arrangement: Arrangement
    source: Tensor
    view: View

    routes: tuple[Tensor, ...] = field(default=(), kw_only=True)
    """The indices that its rows were chosen by: two forwards may have chosen others."""
    chosen_of: float | None = field(default=None, kw_only=True)
    """From how many rows they were chosen: what an expert did not see counts as well."""

    ends: list[int] = field(default_factory=list, kw_only=True)
    """Where the rows of each system end, if the forward itself has sorted them."""

    def whole(self) -> Tensor:
        """Return how many rows there were to read, ``(1,)``."""
        rows = self.count()[:1]
        return rows if self.chosen_of is None else torch.full_like(rows, self.chosen_of)

    @property
    def in_turn(self) -> bool:
        """Whether rows are those of the first sample, then of the second, and so on."""
        return True

    @property
    def systems(self) -> int:
        return self.arrangement.sizes[0]

    @property
    def features(self) -> int:
        """Channels, at each tap of a kernel."""
        return self.arrangement.sizes[2] * self.arrangement.sizes[3]

    @property
    def shared(self) -> Any:
        """What is equal for readings that multiply the same rows, while ``source`` is alive."""
        x = self.source
        memory = x.data_ptr(), x.shape, x.stride(), x.dtype, x._version
        return type(self), *memory, self.systems, self.features, self._geometry

    @property
    def _geometry(self) -> Any:
        """What of the operation, besides the input, says what the rows are."""
        return None

    def total(self, reduce: Reduce) -> Tensor:
        """Return the sums over all rows, ``(systems, channels)``."""
        raise NotImplementedError

    def count(self) -> Tensor:
        """Return how many rows there are, ``(systems,)``."""
        raise NotImplementedError

    def parts(self, made: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield systems, and their rows ``(systems, rows, *)`` of what was made of the output."""
        raise NotImplementedError

    def sampled(self, made: Tensor, samples: int) -> Sampled:
        """Yield systems, samples, and their inputs beside what has the output's form.

        A gradient, say: nothing that the operation adds to the product is taken off.

        Args:
            made: what has the form of the output.
            samples: how many the forward ran on; rows are theirs in turn.  Where these cannot be
                shared among them, all are of one.

        Yields:
            ``(systems, samples, rows, features)`` and ``(systems, samples, rows, out)``.
        """
        raise NotImplementedError

    def chunks(self, output: Tensor | None = None, *, places: int = PLACES) -> Chunks:
        """Yield systems, their inputs ``(systems, rows, features)`` and what came out of those.

        All rows come, but of a convolution a sample: so many ``places`` of each image, or more.
        """
        raise NotImplementedError


@dataclass
class Rows(Reading):
    """A product with a matrix, or with one for each of a batch."""

    x: Tensor  # (systems, rows, features)
    valid: Tensor | None = None  # bool (rows,): those that are data
    turned: bool = False  # the output is (…, out, rows)
    before: Tensor | None = None  # what the operation adds to the product

    def total(self, reduce: Reduce) -> Tensor:
        return reduce(self._inputs, (1,))

    def count(self) -> Tensor:
        return torch.full((len(self.x),), float(self._inputs.shape[1]), device=self.x.device)

    def chunks(self, output: Tensor | None = None, *, places: int = PLACES) -> Chunks:
        yield slice(None), self._inputs, None if output is None else self._outputs(output)

    def parts(self, made: Tensor) -> Iterator[tuple[slice, Tensor]]:
        rows = made.reshape(*self.x.shape[:2], -1)
        yield slice(None), rows if self.valid is None else rows[:, self.valid]

    @property
    def _inputs(self) -> Tensor:
        return self.x if self.valid is None else self.x[:, self.valid]

    def sampled(self, made: Tensor, samples: int) -> Sampled:
        x, y = self.x, self._laid(made)
        if self.valid is not None:
            y = y * self.valid[:, None].to(y)
        samples = samples if x.shape[1] % samples == 0 else 1
        x, y = (t.reshape(len(t), samples, -1, t.shape[-1]) for t in (x, y))
        step = max(1, CHUNK // max(1, len(x) * x.shape[-1] * y.shape[-1]))
        for start in range(0, samples, step):
            some = slice(start, start + step)
            yield slice(None), some, x[:, some], y[:, some]

    def _outputs(self, output: Tensor) -> Tensor:
        y = self._laid(output if self.before is None else output - self.before)
        return y if self.valid is None else y[:, self.valid]

    def _laid(self, y: Tensor) -> Tensor:
        """Return ``(systems, rows, out)``."""
        y = y.transpose(-1, -2) if self.turned and y.ndim > 1 else y
        return y.reshape(*self.x.shape[:2], self.arrangement.sizes[1])


@dataclass
class Routed(Reading):
    """Rows sorted by the matrix of a stack that they meet: the tokens of experts."""

    x: Tensor  # (rows, features)
    valid: Tensor | None = None

    @property
    def _geometry(self) -> Any:
        return tuple(self.ends)

    @property
    def in_turn(self) -> bool:
        return False

    def _parts(self, tensor: Tensor) -> Iterator[Tensor]:
        start = 0
        for end in self.ends:
            here = slice(start, end)
            yield tensor[here] if self.valid is None else tensor[here][self.valid[here]]
            start = end

    def parts(self, made: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for i, part in enumerate(self._parts(made)):
            yield slice(i, i + 1), part[None]

    def total(self, reduce: Reduce) -> Tensor:
        return torch.stack([reduce(part, (0,)) for part in self._parts(self.x)])

    def count(self) -> Tensor:
        return torch.tensor([float(len(p)) for p in self._parts(self.x)], device=self.x.device)

    def chunks(self, output: Tensor | None = None, *, places: int = PLACES) -> Chunks:
        outs = [None] * len(self.ends) if output is None else [p[None] for p in self._parts(output)]
        for i, (x, y) in enumerate(zip(self._parts(self.x), outs, strict=True)):
            yield slice(i, i + 1), x[None], y


@dataclass
class Patches(Reading):
    """A convolution: one row for each place of the output, what its kernel lies on there."""

    x: Tensor  # (N, channels, *space)
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_padding: tuple[int, ...]
    bias: Tensor | None

    def _sample(self, places: int) -> Tensor | None:
        """Return which places of each output, flattened, become rows; None for all.

        A sample knows as much: what lies side by side is alike, and images are many.
        """
        many = self._windows(self._planes(self.x[:1])).shape[2 : 2 + len(self.kernel)].numel()
        wanted = max(places, -(-places * self.features // (16 * max(1, len(self.x)))))
        if many <= wanted:
            return None
        generator = torch.Generator().manual_seed(many)
        chosen = torch.randperm(many, generator=generator)[:wanted].sort().values
        return chosen.to(self.x.device)

    @property
    def _geometry(self) -> Any:
        return self.kernel, self.stride, self.padding, self.dilation, self.output_padding

    def total(self, reduce: Reduce) -> Tensor:
        found = reduce(self.x, (0, *range(2, self.x.ndim)))
        return found.reshape(self.groups, -1)

    def count(self) -> Tensor:
        places = self.x.numel() // max(self.x.shape[1], 1)
        return torch.full((self.groups,), float(places), device=self.x.device)

    def chunks(self, output: Tensor | None = None, *, places: int = PLACES) -> Chunks:
        taps, chosen = torch.Size(self.kernel).numel(), self._sample(places)
        rows = self.x[0, 0].numel() if chosen is None else len(chosen)
        step = max(1, CHUNK // max(1, self.x.shape[1] * taps * rows))
        for start in range(0, len(self.x), step):
            x = self._unfolded(self._planes(self.x[start : start + step]), chosen)
            y = None if output is None else self._outputs(output[start : start + step], chosen)
            yield slice(None), x, y

    def _planes(self, x: Tensor) -> Tensor:
        """Return the input with its padding; of a transposed convolution, with its gaps too."""
        pads = self.padding
        if self.transposed:
            sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], self.stride, strict=True)]
            wide = x.new_zeros(*x.shape[:2], *sizes)
            wide[(slice(None), slice(None), *(slice(None, None, s) for s in self.stride))] = x
            x = wide
            pads = tuple(
                d * (k - 1) - p
                for d, k, p in zip(self.dilation, self.kernel, self.padding, strict=True)
            )
        after = self.output_padding if self.transposed else (0,) * len(pads)
        return F.pad(
            x, [n for p, a in zip(pads[::-1], after[::-1], strict=True) for n in (p, p + a)]
        )

    def _windows(self, x: Tensor) -> Tensor:
        """Return ``(N, channels, *places, *kernel)``, a view."""
        for i, (size, dilation) in enumerate(zip(self.kernel, self.dilation, strict=True)):
            step = 1 if self.transposed else self.stride[i]
            x = x.unfold(2 + i, dilation * (size - 1) + 1, step)[..., ::dilation]
        return x

    def _unfolded(self, x: Tensor, places: Tensor | None) -> Tensor:
        """Return ``(groups, rows, channels of a group · taps)``."""
        x, rank = self._windows(x), len(self.kernel)
        if places is not None:  # before anything is copied
            at = torch.unravel_index(places, x.shape[2 : 2 + rank])
            x = x[(slice(None), slice(None), *at)]  # type: ignore[index]
            x = x.reshape(*x.shape[:3], *[1] * (rank - 1), *x.shape[3:])
        if self.transposed:  # it meets its kernel the other way round
            x = x.flip([*range(-rank, 0)])
        batch, channels = x.shape[:2]
        x = x.reshape(batch, self.groups, channels // self.groups, -1, *x.shape[2 + rank :])
        return x.movedim(3, 2).movedim(0, 1).flatten(1, 2).flatten(2)

    def sampled(self, made: Tensor, samples: int) -> Sampled:
        samples = samples if len(self.x) % samples == 0 else 1
        each = len(self.x) // samples
        rows = self.x.shape[1] * torch.Size(self.kernel).numel() * made[0, 0].numel() * each
        step = max(1, CHUNK // max(1, rows))
        for start in range(0, samples, step):
            some = slice(start, min(samples, start + step))
            of = slice(some.start * each, some.stop * each)
            x, y = self._unfolded(self._planes(self.x[of]), None), self._laid(made[of], None)
            x, y = (t.reshape(len(t), some.stop - some.start, -1, t.shape[-1]) for t in (x, y))
            yield slice(None), some, x, y

    def _outputs(self, output: Tensor, places: Tensor | None) -> Tensor:
        bias = self.bias
        return self._laid(output if bias is None else output - _beside(bias, output.ndim), places)

    def _laid(self, y: Tensor, places: Tensor | None) -> Tensor:
        """Return ``(groups, rows, outputs of a group)``."""
        y = y.reshape(len(y), self.groups, y.shape[1] // self.groups, -1)
        y = y if places is None else y.index_select(3, places)
        return y.movedim(3, 2).movedim(0, 1).flatten(1, 2)


def _beside(bias: Tensor, rank: int) -> Tensor:
    return bias.reshape(1, -1, *[1] * (rank - 2))


Find = Callable[[Any], View | None]
Reader = Callable[..., Reading | None]
READERS: dict[Any, Reader] = {}


def reads(names: str) -> Callable[[Reader], Reader]:
    """Register a function (find, *arguments) → Reading for operations of these names."""

    def register(function: Reader) -> Reader:
        for name in names.split():
            packet = getattr(torch.ops.aten, name, None)
            if packet is not None:  # this version of torch has it
                READERS[packet] = function
        return function

    return register


def reading(func: Any, args: Sequence[Any], kwargs: dict[str, Any], find: Find) -> Reading | None:
    """Return how an operation reads a parameter, or None where it contracts none.

    A complex product is no such reading: what is summed of rows is summed of real ones.
    """
    function = READERS.get(func.overloadpacket)
    if function is None or any(isinstance(x, Tensor) and x.is_complex() for x in args):
        return None
    return function(find, *args, **kwargs)


@reads("mm mv bmm")
def _product(find: Find, x: Tensor, y: Tensor, bias: Tensor | None = None) -> Reading | None:
    """``x @ y``, a matrix or a batch of them each, in which one of the two is a parameter."""
    left, right = _batched(x), _batched(y if y.ndim > 1 else y[:, None])
    in_left, in_right = find(left), find(right)
    turned = in_right is None
    view = in_left if turned else in_right
    if view is None or (not turned and in_left is not None):
        return None
    given = right.transpose(1, 2) if turned else left
    if not view.dims[0]:  # one matrix for the whole batch
        if turned and len(given) > 1:
            return None  # outputs of a batch lie apart
        given = given.reshape(1, -1, given.shape[-1])
    arrangement = of_matrix(view, 0, 1, 2) if turned else of_matrix(view, 0, 2, 1)
    source = y if turned else x
    return Rows(arrangement, source, view, given, turned=turned, before=bias)


def _batched(matrix: Tensor) -> Tensor:
    return matrix if matrix.ndim == 3 else matrix[None]


@reads("addmm addmv baddbmm")
def _added(find: Find, bias: Tensor, x: Tensor, y: Tensor, **scales: Any) -> Reading | None:
    return None if scales else _product(find, x, y, bias)


@reads("linear")
def _linear(find: Find, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Reading | None:
    found = _product(find, x.reshape(-1, x.shape[-1]), weight.t(), bias)
    if found is not None:
        found.source = x
    return found


@reads("_grouped_mm")
def _grouped(
    find: Find, x: Tensor, weight: Tensor, offsets: Tensor | None = None, *_: Any, **__: Any
) -> Reading | None:
    view = find(weight)
    if view is None or offsets is None or x.ndim != 2:
        return None
    return Routed(of_matrix(view, 0, 2, 1), x, view, x, ends=offsets.tolist())


@reads("convolution")
def _convolution(
    find: Find,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Reading | None:
    view = find(weight)
    if (
        view is None
        or not view.whole
        or view.dims != tuple((s,) if s.size > 1 else () for s in view.spans)
    ):
        return None
    rank = weight.ndim - 2

    def full(sizes: Sequence[int]) -> tuple[int, ...]:
        return tuple(sizes) * (rank if len(sizes) == 1 else 1)

    return Patches(
        of_kernel(view, groups, transposed),
        x,
        view,
        x,
        tuple(weight.shape[2:]),
        full(stride),
        full(padding),
        full(dilation),
        groups,
        transposed,
        full(output_padding),
        bias,
    )
