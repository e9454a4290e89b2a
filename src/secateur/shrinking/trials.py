"""Inputs to compare two models on: the example, its values in another order, other sizes.

A model need not take what is made up here: an assertion, an order of ids or the square of a
patch may speak against it.  So a trial is a name and several ways, of which the first that the
dense model takes is used; what it takes none of is skipped, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.graph.axes import atoms, find
from secateur.structure import Structure
from secateur.types import Example, call_arguments

QUICK = 3e7
"""MACs of a forward up to which there are six trials; beyond it, three."""
MOST_STEP = 32
SHORT = 16
MOST_ROWS = 4  # of a batch, of what is tried besides the example

Change: TypeAlias = Callable[[Tensor, torch.Generator, int], Tensor]
"""From a tensor of the example, random numbers and its place among the tensors to another."""


@dataclass(frozen=True)
class Way:
    """Inputs that may do, made when they are asked for, and what they are."""

    name: str
    make: Callable[[], Example]
    change: Change


Trial: TypeAlias = tuple[Way, ...]
"""What is tried: the first way that the dense model takes."""


@dataclass(frozen=True)
class Varying:
    """A size that may be another: the dimensions of inputs that have it together."""

    places: tuple[tuple[int, int], ...]  # (number of the tensor, dimension)
    size: int

    @property
    def first(self) -> bool:
        """Whether it is the first dimension of all that it is one of: most often a batch."""
        return all(dim == 0 for _, dim in self.places)

    def __str__(self) -> str:
        number, dim = self.places[0]
        return f"shape[{dim}] of input {number}" if number else f"shape[{dim}]"


def trials(example: Example, structure: Structure) -> list[Trial]:
    """Return what two models are compared on, the example first."""
    found: list[Trial] = [(Way("the example", lambda: example, lambda x, *_: x),)]
    sizes = varying(structure)
    batches, others = [v for v in sizes if v.first], [v for v in sizes if not v.first]
    if structure.cost().macs > QUICK:
        return [*found, *_few(example, batches, others)]
    batch = _ways(example, batches, _other)
    return [*found, *fresh(example), *filter(None, (batch, *_lengths(example, others)))]


def fresh(example: Example) -> list[Trial]:
    """Return the trials that have the example's shapes and other values.

    >>> [[way.name for way in trial] for trial in fresh(torch.tensor([1.0, 2.0, 4.0]))]
    [['its values in another order'], ['normal values', 'uniform values']]
    """
    permuted = _way("its values in another order", example, _permuted)
    normal = _way("normal values", example, _normal)
    uniform = _way("uniform values", example, _uniform)
    tensors = [x for x in _tensors(example) if x.numel() and x.dtype != torch.bool]
    found: list[Trial] = []
    if any(map(_varied, tensors)):
        found.append((permuted,))
    if any(x.is_floating_point() or x.is_complex() for x in tensors):
        found.append((normal, uniform))
    elif tensors and not found:
        found.append((uniform,))
    return found


def _lengths(example: Example, others: Sequence[Varying]) -> list[Trial]:
    """Return the trials of a larger and of a smaller size, of several at once where that does.

    The first ways make one size larger and the next smaller, so that they are not mixed up; then
    all go together, as the lengths of ids and of their mask do; the last ways change one alone.
    """
    found = []
    for one, other in ((_larger, _smaller), (_smaller, _larger)):
        ways = _apart(example, others, one, other) + _ways(example, others, one)
        if len(others) > 1:
            ways += tuple(way for v in others for way in _ways(example, [v], one))
        found.append(ways)
    return found


def _likeliest(example: Example, others: Sequence[Varying]) -> list[Trial]:
    """Return the trials of a larger and of a smaller size, in a few ways that most models take."""
    pairs = ((_larger, _smaller), (_smaller, _larger))
    return [
        (_apart(example, others, one, other)[:1] + _ways(example, others, one))[:3]
        for one, other in pairs
    ]


def _apart(
    example: Example, others: Sequence[Varying], *sizes: Callable[[int], list[int]]
) -> Trial:
    return _ways(example, others, *sizes) if len(others) > 1 else ()


def uneven(example: Example, structure: Structure) -> Iterator[Example]:
    """Yield the example with lengths that no window, patch or stride divides, if it has any."""
    others = [v for v in varying(structure) if not v.first]
    for way in _ways(example, others, lambda n: [n + 1, n - 1]):
        yield way.make()


def _few(example: Example, batches: Sequence[Varying], others: Sequence[Varying]) -> list[Trial]:
    """As little as can be: other values with the first sizes, another batch with the second."""
    larger, smaller = _likeliest(example, others)
    values = tuple(way for trial in fresh(example) for way in trial)
    batch = _ways(example, batches, _other)[:1]
    found = [
        (*(_then(v, way) for way in larger for v in values[:1]), *values),
        (*(_then(b, way) for way in smaller for b in batch), *smaller, *batch),
    ]
    return [trial for trial in found if trial]


def varying(structure: Structure) -> list[Varying]:
    """Return the sizes of a model's inputs that its weights do not fix, each with all its places.

    Dimensions that the model adds to each other have one axis, and vary together.
    """
    r, inferred = structure.inferred.recording, structure.inferred
    tensors = {**r.parameters, **r.buffers}
    fixed = {
        _key(inferred.types[tensors[name]].dims[dim].axis)
        for name, dim in inferred.typing.consumed
        if name in tensors
    }
    found: dict[Any, list[tuple[int, int]]] = {}
    for number, value in enumerate(r.inputs):
        for dim, typed in enumerate(inferred.types[value].dims):
            key = _key(typed.axis)
            if key not in fixed and typed.size:
                found.setdefault(("one", dim) if typed.size == 1 else key, []).append((number, dim))
    shapes = [r.shapes[value] for value in r.inputs]
    batches: dict[int, list[tuple[int, int]]] = {}  # they need not meet to be one
    others = []
    for places in found.values():
        size = shapes[places[0][0]][places[0][1]]
        if all(dim == 0 for _, dim in places):
            batches.setdefault(size, []).extend(places)
        else:
            others.append(Varying(tuple(places), size))
    return [*(Varying(tuple(p), size) for size, p in batches.items()), *others]


def _key(axis: Any) -> tuple[int, ...]:
    return tuple(id(atom) for atom in atoms(find(axis)))


def _other(n: int) -> list[int]:
    return [2, 3] if n == 1 else [n + 1, 1] if n < MOST_ROWS else [MOST_ROWS - 1, 1]


def _larger(n: int) -> list[int]:
    return [2 * n, n + _step(n), n + 1] if n <= SHORT else [n + _step(n), 2 * n, n + 1]


def _smaller(n: int) -> list[int]:
    return [n // 2, n - _step(n), n - 1]


def _step(n: int) -> int:
    """Return the largest power of two that divides a size: what patches and strides go by."""
    return min(n & -n, MOST_STEP)


def _ways(
    example: Example, together: Sequence[Varying], *sizes: Callable[[int], list[int]]
) -> Trial:
    """Return ways that give several sizes others at once, the first those of the first function."""
    if not together:
        return ()
    columns = [size(v.size) for v, size in zip(together, cycle(sizes), strict=False)]
    found = []
    for row in dict.fromkeys(zip(*columns, strict=True)):
        if all(new > 0 and new != v.size for new, v in zip(row, together, strict=True)):
            wanted = {p: new for new, v in zip(row, together, strict=True) for p in v.places}
            names = [f"{v} = {new}" for new, v in zip(row, together, strict=True)]
            found.append(_way(", ".join(names), example, partial(_sized, wanted=wanted)))
    return tuple(found)


def _way(name: str, example: Example, change: Change) -> Way:
    """Return what a change of all its tensors makes of an example."""

    def make() -> Example:
        leaves, tree = tree_flatten(call_arguments(example))
        generator = torch.Generator().manual_seed(0)
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        for number, i in enumerate(tensors):
            leaves[i] = change(leaves[i], generator, number)
        args, kwargs = tree_unflatten(leaves, tree)
        return kwargs or args

    return Way(name, make, change)


def _then(first: Way, second: Way) -> Way:
    """Return both changes of one example."""

    def make() -> Example:
        return _way("", first.make(), second.change).make()

    return Way(f"{first.name}, {second.name}", make, second.change)


def _sized(
    x: Tensor, _: torch.Generator, number: int, wanted: Mapping[tuple[int, int], int]
) -> Tensor:
    for dim in range(x.dim()):
        if (number, dim) in wanted:
            x = _continued(x, dim, wanted[number, dim])
    return x


def _continued(x: Tensor, dim: int, size: int) -> Tensor:
    """Return a tensor with more or fewer positions: it goes on as it was, or starts again."""
    n = x.shape[dim]
    if size <= n:
        return x.narrow(dim, 0, size)
    again = x.index_select(dim, torch.arange(size, device=x.device) % n)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or n < 2:
        return again
    steps = x.diff(dim=dim)
    last, step = x.narrow(dim, n - 1, 1), steps.narrow(dim, n - 2, 1)
    if n == 2 or not bool((steps >= 0).all()):
        return again
    if not bool((steps == step).all()):  # places go on by their step, others by as little as can be
        step = steps.amin(dim, keepdim=True).clamp(max=1)
    more = torch.arange(1, size - n + 1, device=x.device)
    shape = [-1 if d == dim else 1 for d in range(x.dim())]
    return torch.cat([x, last + step * more.view(shape)], dim).to(x.dtype)


# values


def _permuted(x: Tensor, generator: torch.Generator, _: int) -> Tensor:
    if x.dtype == torch.bool or x.layout != torch.strided:  # what there is, and what is joined
        return x
    order = torch.randperm(x.numel(), generator=generator).to(x.device)
    return x.flatten()[order].view(x.shape)


def _normal(x: Tensor, generator: torch.Generator, number: int) -> Tensor:
    """Random numbers of the tensor's mean and spread."""
    real = x.is_floating_point() or x.is_complex()
    if not x.numel() or not real or x.layout != torch.strided:
        return _permuted(x, generator, number)
    noise = torch.randn(x.shape, generator=generator, dtype=_real(x)).to(x)
    spread = x.std() if x.numel() > 1 and float(x.std().abs()) > 0 else 1.0
    return noise * spread + x.mean()


def _uniform(x: Tensor, generator: torch.Generator, number: int) -> Tensor:
    """Numbers between the tensor's smallest and largest; between it and 0 or 1 if all are one."""
    if not x.numel() or x.is_complex() or x.dtype == torch.bool or x.layout != torch.strided:
        return _normal(x, generator, number)
    low, high = float(x.min()), float(x.max())
    if low == high:
        low, high = min(0.0, low), max(1.0, high)
    drawn = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    if x.is_floating_point():
        return (low + drawn * (high - low)).to(x)
    return (low + drawn * (high - low + 1)).floor().clamp(max=high).to(x)


def _real(x: Tensor) -> torch.dtype:
    return torch.complex64 if x.is_complex() else torch.float32


def _varied(x: Tensor) -> bool:
    if x.dtype == torch.bool or x.layout != torch.strided:
        return False
    return x.numel() > 1 and bool((x != x.flatten()[0]).any())


def _tensors(example: Example) -> Iterator[Tensor]:
    return (x for x in tree_flatten(example)[0] if isinstance(x, Tensor))
