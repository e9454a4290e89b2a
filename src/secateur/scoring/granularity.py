"""What is removed together: how a tensor falls into units, and back.

A granularity cuts a tensor into rows, ``(units, elements)``, one row for each unit of weights
that is kept or removed as one, and expands one decision per unit to a mask of the tensor's
shape:

>>> weight = torch.arange(6.0).reshape(3, 2)
>>> Channel(0).rows(weight).sum(dim=1)
tensor([1., 5., 9.])
>>> Channel(0).expand(torch.tensor([True, False, True]), (3, 2))
tensor([[ True,  True],
        [False, False],
        [ True,  True]])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from secateur.errors import ConfigError, MaskError

Shape = Sequence[int]


@runtime_checkable
class Granularity(Protocol):
    """A frozen value that knows how a tensor falls into units."""

    @property
    def sparsity(self) -> float | None:
        """The share that it removes by itself, such as a half of 2:4; None where a goal says it."""
        return None

    @property
    def patterned(self) -> bool:
        """Whether masks make a pattern that is none any more when rows or columns go."""
        return False

    def units(self, shape: Shape) -> int:
        """Return how many units a tensor of this shape has; ConfigError where it cannot fit."""
        ...

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the weights of each unit as one row, shape ``(units, elements)``."""
        ...

    def expand(self, keep: Tensor, shape: Shape) -> Tensor:
        """Return a new bool mask of ``shape`` from one decision per unit, ``(units,)``."""
        ...

    def clusters(self, shape: Shape) -> int:
        """Return in how many equal runs of units the sparsity is met one by one."""
        return 1


Reader = Callable[[object, bool], Granularity | None]
"""From a setting, and whether the weights have their input channels first, to what it means."""


@dataclass(frozen=True)
class Form:
    """How a granularity is written in a config, and what it removes as one."""

    removes: str
    read: Reader
    shown: str | None = None
    """What an error shows where it is no name but a pattern of many."""


FORMS: dict[str, Form] = {}
"""By what users write: a name, or a word for a pattern of names."""


def form(written: str, removes: str, shown: str | None = None) -> Callable[[Reader], Reader]:
    """Register how a granularity is written; the function returns None where it is not."""

    def register(read: Reader) -> Reader:
        FORMS[written] = Form(removes, read, shown)
        return read

    return register


@form("group", "All that the model's structure cuts together: a channel and what reads it.")
def _group(setting: object, transposed: bool) -> Granularity | None:
    return None  # which slices that is, only the structure knows


@form(
    "element",
    "Every weight for itself; what has lost all is cut out, if no config says the shapes.",
)
def _element(setting: object, transposed: bool) -> Granularity | None:
    return Element() if setting == "element" else None


@form("out_channel", "The weights that make one output channel of a layer.")
def _out_channel(setting: object, transposed: bool) -> Granularity | None:
    return Channel(int(transposed)) if setting == "out_channel" else None


@form("in_channel", "The weights that read one input channel of a layer.")
def _in_channel(setting: object, transposed: bool) -> Granularity | None:
    return Channel(int(not transposed)) if setting == "in_channel" else None


@form(
    "n:m",
    "Single weights: n of every m consecutive ones along the input go: 2:4, or 1:4 (three stay).",
    "'n:m' such as '2:4'",
)
def _pattern(setting: object, transposed: bool) -> Granularity | None:
    found = isinstance(setting, str) and re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", setting)
    return NM(int(found[1]), int(found[2])) if found else None


@form(
    "balanced:sizes",
    "Single weights, the same share of every tile of these sizes, such as balanced:1,16.",
    "'balanced:sizes' such as 'balanced:1,16'",
)
def _balanced(setting: object, transposed: bool) -> Granularity | None:
    found = isinstance(setting, str) and re.fullmatch(r"balanced:(\d{1,9}(?:,\d{1,9})*)", setting)
    return Balanced(tuple(map(int, found[1].split(",")))) if found else None


@form(
    "tile sizes",
    "Tiles, one size per trailing dimension, -1 for all of it, such as [8, -1].",
    "a list of tile sizes",
)
def _tiles(setting: object, transposed: bool) -> Granularity | None:
    sizes = isinstance(setting, (list, tuple)) and all(type(size) is int for size in setting)
    return Tile(tuple(setting)) if sizes else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Element(Granularity):
    """Every weight for itself.

    ``apart``: dimensions of which each index loses the same number of weights, as the rows of a
    matrix do where single weights are compared among those of one output.

    >>> Element().units((3, 2)), Element(apart=(0,)).clusters((3, 2))
    (6, 3)
    """

    apart: tuple[int, ...] = ()

    def units(self, shape: Shape) -> int:
        return prod(shape)

    def rows(self, tensor: Tensor) -> Tensor:
        return tensor.permute(self._order(tensor.ndim)).reshape(-1, 1)

    def expand(self, keep: Tensor, shape: Shape) -> Tensor:
        order = self._order(len(shape))
        moved = _checked(keep, self, shape).reshape([shape[dim] for dim in order])
        back = sorted(range(len(shape)), key=order.__getitem__)
        return moved.permute(back).clone(memory_format=torch.contiguous_format)

    def clusters(self, shape: Shape) -> int:
        return prod(shape[dim] for dim in self.apart)

    def _order(self, rank: int) -> list[int]:
        return [*self.apart, *(dim for dim in range(rank) if dim not in self.apart)]


@dataclass(frozen=True)
class Channel(Granularity):
    """One unit for each index of one dimension: ``Channel(0)`` is the output channels of a Conv2d.

    >>> Channel(-1).rows(torch.arange(6).reshape(3, 2))
    tensor([[0, 2, 4],
            [1, 3, 5]])
    """

    dim: int

    def units(self, shape: Shape) -> int:
        return (tuple(shape) or (1,))[self._index(shape)]

    def rows(self, tensor: Tensor) -> Tensor:
        index = self._index(tensor.shape)
        vector = tensor.reshape(1) if tensor.ndim == 0 else tensor
        return vector.movedim(index, 0).unsqueeze(-1).flatten(1)

    def expand(self, keep: Tensor, shape: Shape) -> Tensor:
        along = [1] * len(shape)
        if along:
            along[self._index(shape)] = -1
        spread = _checked(keep, self, shape).reshape(along).expand(tuple(shape))
        return spread.clone(memory_format=torch.contiguous_format)

    def _index(self, shape: Shape) -> int:
        rank = max(len(shape), 1)  # a scalar is a vector of one, as in torch
        if not -rank <= self.dim < rank:
            raise ConfigError(
                f"{self} does not fit a tensor of shape {tuple(shape)}:"
                f" give a dimension from {-rank} to {rank - 1}"
            )
        return self.dim % rank


@dataclass(frozen=True)
class Tile(Granularity):
    """Rectangular tiles; one size per trailing dimension, -1 for all of it.

    Dimensions before those are cut into single indices, so that ``Tile((1, -1, -1, -1))`` is the
    output channels of a Conv2d and ``Tile((-1, -1))`` its kernels.  Units at the end of a
    dimension that their size does not divide are filled up with zeros, which no mask sees.

    >>> Tile((2, 2)).expand(torch.tensor([True, False]), (2, 3))
    tensor([[ True,  True, False],
            [ True,  True, False]])
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or any(size < 1 and size != -1 for size in self.sizes):
            raise ConfigError(
                f"{self} is no granularity: give one tile size per trailing dimension,"
                " each at least 1, or -1 for the whole dimension"
            )

    def units(self, shape: Shape) -> int:
        return prod(count for count, _ in self._grid(shape))

    def rows(self, tensor: Tensor) -> Tensor:
        grid = self._grid(tensor.shape)
        missing = [n * size - dim for (n, size), dim in zip(grid, tensor.shape, strict=True)]
        whole = pad(tensor, [x for m in reversed(missing) for x in (0, m)])
        tiled = whole.reshape(tuple(chain.from_iterable(grid)))
        outer = range(0, tiled.ndim, 2)
        inner = range(1, tiled.ndim, 2)
        elements = prod(size for _, size in grid)
        return tiled.permute(*outer, *inner).reshape(self.units(tensor.shape), elements)

    def expand(self, keep: Tensor, shape: Shape) -> Tensor:
        grid = self._grid(shape)
        spread = _checked(keep, self, shape).reshape([x for n, _ in grid for x in (n, 1)])
        whole = spread.expand(tuple(chain.from_iterable(grid))).reshape([n * s for n, s in grid])
        return whole[tuple(slice(dim) for dim in shape)].clone(
            memory_format=torch.contiguous_format
        )

    def _grid(self, shape: Shape) -> list[tuple[int, int]]:
        """Return (number of units, size of a tile) for every dimension of ``shape``."""
        if len(self.sizes) > len(shape):
            raise ConfigError(
                f"{self} does not fit a tensor of shape {tuple(shape)}:"
                f" give at most {len(shape)} tile sizes"
            )
        sizes = (1,) * (len(shape) - len(self.sizes)) + self.sizes
        whole = [
            max(dim, 1) if size == -1 else size for dim, size in zip(shape, sizes, strict=True)
        ]
        return [(-(-dim // size), size) for dim, size in zip(shape, whole, strict=True)]


@dataclass(frozen=True)
class Balanced(Granularity):
    """Single weights, of which every tile loses the same number; the sizes are those of ``Tile``.

    >>> Balanced((1, 2)).units((3, 4)), Balanced((1, 2)).clusters((3, 4))
    (12, 6)

    Cao et al., 2019, "Efficient and Effective Sparse LSTM on FPGA with Bank-Balanced Sparsity"
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        Tile(self.sizes)

    @property
    def patterned(self) -> bool:
        """Each tile keeps as many."""
        return True

    def units(self, shape: Shape) -> int:
        return prod(shape)

    def rows(self, tensor: Tensor) -> Tensor:
        self.clusters(tensor.shape)
        return Tile(self.sizes).rows(tensor).reshape(-1, 1)

    def expand(self, keep: Tensor, shape: Shape) -> Tensor:
        place = Tile(self.sizes).rows(torch.arange(prod(shape), device=keep.device).reshape(shape))
        mask = torch.empty(prod(shape), dtype=torch.bool, device=keep.device)
        mask[place.flatten()] = _checked(keep, self, shape)
        return mask.reshape(tuple(shape))

    def clusters(self, shape: Shape) -> int:
        last = tuple(shape)[len(shape) - len(self.sizes) :]
        whole = [n if size == -1 else size for n, size in zip(last, self.sizes, strict=False)]
        if len(self.sizes) > len(shape) or any(n % m for n, m in zip(last, whole, strict=True)):
            raise ConfigError(
                f"balanced:{','.join(map(str, self.sizes))} does not fit a tensor of shape "
                f"{tuple(shape)}: each size must divide its dimension; exclude it, or give others"
            )
        return Tile(self.sizes).units(shape)


@dataclass(frozen=True)
class NM(Granularity):
    """Single weights, of which n in every m consecutive ones along the input are removed.

    The input is dimension 1: the last of a Linear's weight, the channels of a convolution's.
    Rows come in such an order that each m of them form one cluster, so that removing the share
    ``sparsity`` of the units of each of the ``clusters`` gives the n:m pattern.

    >>> NM(2, 4).clusters((3, 8)), NM(2, 4).sparsity
    (6, 0.5)

    Mishra et al., 2021, arXiv:2104.08378 (2:4)
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ConfigError(f"{self.n}:{self.m} is no sparsity pattern: give 0 < n < m")

    @property
    def sparsity(self) -> float:
        """The share that the pattern removes."""
        return self.n / self.m

    @property
    def patterned(self) -> bool:
        """Each ``m`` lose ``n``."""
        return True

    def units(self, shape: Shape) -> int:
        return self.clusters(shape) * self.m

    def rows(self, tensor: Tensor) -> Tensor:
        self.clusters(tensor.shape)
        return tensor.movedim(1, -1).reshape(-1, 1)

    def expand(self, keep: Tensor, shape: Shape) -> Tensor:
        inputs_last = (shape[0], *shape[2:], shape[1]) if len(shape) > 1 else tuple(shape)
        mask = _checked(keep, self, shape).reshape(inputs_last).movedim(-1, 1)
        return mask.clone(memory_format=torch.contiguous_format)

    def clusters(self, shape: Shape) -> int:
        if len(shape) < 2 or shape[1] % self.m:
            raise ConfigError(
                f"{self.n}:{self.m} does not fit a tensor of shape {tuple(shape)}: its dimension 1"
                f" must be a multiple of {self.m}; exclude it"
            )
        return prod(shape) // self.m


def _checked(keep: Tensor, granularity: Granularity, shape: Shape) -> Tensor:
    units = granularity.units(shape)
    if keep.dtype is not torch.bool or tuple(keep.shape) != (units,):
        raise MaskError(
            f"{granularity} of a tensor of shape {tuple(shape)} needs a bool mask of shape"
            f" ({units},), got {keep.dtype} of shape {tuple(keep.shape)}"
        )
    return keep
