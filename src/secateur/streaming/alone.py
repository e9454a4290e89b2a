"""A block as a model of its own, in which everything has the name that it has in the whole one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from secateur.replacements.passing import given

from .chain import Chain

Rest = list[Any]
"""What a block is given beside the stream: positional arguments, with a gap, and keywords."""


class Alone(nn.Module):
    """One block of a chain: it takes the stream, and what else the block was given.

    The stream is copied first.  So there is an operation that makes what the block adds to, as
    there is in the whole model, and nothing writes to what was given.
    """

    def __init__(self, block: nn.Module, path: str, chain: Chain, model: nn.Module):
        super().__init__()
        self.chain = chain
        self.path = path
        self.passed = chain.passed(model)
        *holders, last = path.split(".")
        place: nn.Module = self
        for name in holders:
            place.add_module(name, nn.Module())
            place = place.get_submodule(name)
        place.add_module(last, block)

    def forward(self, stream: Tensor, rest: Rest, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return the stream behind the block; ``tokens`` says which positions hold data."""
        arguments, options = put(self.passed, stream.clone(), rest)
        out: Tensor = self.chain.stream(self.get_submodule(self.path)(*arguments, **options))
        return out


def taken(
    passed: tuple[int, str], arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Tensor, Rest]:
    """Return the stream among what a block is given, and the rest."""
    stream: Tensor = given(passed, arguments, dict(options))
    position, name = passed
    if position < len(arguments):
        arguments = (*arguments[:position], None, *arguments[position + 1 :])
    return stream, [arguments, {key: x for key, x in options.items() if key != name}]


def put(
    passed: tuple[int, str], stream: Tensor, rest: Rest
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a block is given, of the stream and the rest."""
    arguments, options = rest
    position, name = passed
    if position < len(arguments):
        return (*arguments[:position], stream, *arguments[position + 1 :]), dict(options)
    return tuple(arguments), {**options, name: stream}
