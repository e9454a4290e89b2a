"""What each block of a model is given beside the stream, seen in a forward without the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from secateur.errors import ModelError
from secateur.graph.program import Recording
from secateur.replacements import in_plain_operations
from secateur.runtime.batches import DATA_IS_TRUE, arguments, call, padding
from secateur.runtime.forward import evaluating, undisturbed
from secateur.runtime.undo import Undo

from .alone import Rest, taken
from .chain import Chain


class _Enough(BaseException):
    """Ends a forward when the last block was called; no ``except Exception`` stops it."""


@dataclass(frozen=True)
class Calls:
    """How the blocks are called on one batch.

    Attributes:
        stream: what the first block is given.
        rests: for each block, what it is given besides.
        tokens: masks of the positions that hold data, by names that say so.
    """

    stream: Tensor
    rests: tuple[Rest, ...]
    tokens: Mapping[str, Tensor]


def read_before(recording: Recording, chain: Chain) -> list[str]:
    """Return the parameters that are read before the last block ends, and lie in no block."""
    calls = {call.path: call for call in recording.calls if call.path in chain.paths}
    end = calls[chain.paths[-1]].ops.stop
    read = {recording.owner[value] for op in recording.ops[:end] for value in op.reads}
    named = {value: name for name, value in recording.parameters.items()}
    found = [named[value] for value in sorted(read) if value in named]
    return [name for name in found if chain.owner(name) is None]


def calls_of(model: nn.Module, chain: Chain, batch: Any) -> Calls:
    """Return how the blocks are called on a batch; what is read before them has its weights.

    Raises:
        ConfigError: the model refuses the batch.
    """
    stream, rests = _called(model, chain, batch, lambda x: x)
    tokens = dict(zip(DATA_IS_TRUE, padding(model, batch), strict=False))
    return Calls(stream, tuple(rests), tokens)


def check_apart(model: nn.Module, chain: Chain, batch: Any) -> None:
    """Raise a ModelError if what blocks are given besides depends on what blocks return."""
    _, one = _called(model, chain, batch, lambda x: x)
    _, other = _called(model, chain, batch, lambda x: torch.zeros_like(x) + 0.5)
    for path, here, there in zip(chain.paths, one, other, strict=True):
        if not _same(here, there):
            raise ModelError(
                f"{type(model).__name__}: {path} is given more that depends on the blocks before "
                "it than what the last one returns; prune it in memory, without streaming"
            )


def _same(one: Rest, other: Rest) -> bool:
    (a, form), (b, other_form) = tree_flatten(one), tree_flatten(other)
    if form != other_form:
        return False
    return all(
        torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y or x == y
        for x, y in zip(a, b, strict=True)
    )


@torch.no_grad()
def _called(
    model: nn.Module, chain: Chain, batch: Any, made: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Rest]]:
    """Return the first stream, and what else each block gets where blocks make such a stream."""
    streams, rests = list[Tensor](), list[Rest]()
    passed = chain.passed(model)

    def stub(*given: Any, **options: Any) -> Any:
        stream, rest = taken(passed, given, options)
        streams.append(stream)
        rests.append(rest)
        if len(rests) == len(chain.paths):
            raise _Enough
        out = made(stream)
        if chain.returns is None:
            return out
        return tuple(out if is_stream else None for is_stream in chain.returns)

    with (
        undisturbed(model),
        evaluating(model),
        in_plain_operations(model),
        _instead(model, stub, chain),
    ):
        arguments(model, batch)  # its own errors are said before
        try:
            call(model, batch)
        except _Enough:
            return streams[0], rests
    raise ModelError(f"{type(model).__name__} does not run its blocks on this batch")


@contextmanager
def _instead(model: nn.Module, stub: Callable[..., Any], chain: Chain) -> Iterator[None]:
    """Let blocks do something else for that long."""
    with Undo() as undo:
        for path in chain.paths:
            block = model.get_submodule(path)
            undo(partial(vars(block).pop, "forward", None))
            vars(block)["forward"] = stub
        yield
