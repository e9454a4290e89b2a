"""What is drawn: a seeded source of choices, and the tables of blocks that programs are made of."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")

CHANNELS = {"image": 1, "signal": 1, "sequence": -1, "vector": -1, "graph": -1}
"""The worlds, that is, what tensors look like there, and the dimension that holds the channels:
``(B, C, H, W)``, ``(B, C, T)``, ``(B, T, C)``, ``(B, C)`` and ``(nodes, C)`` with edges."""


class Draw(random.Random):
    """A seeded source of choices, for one block in one world."""

    def __init__(self, seed: object, world: str = "") -> None:
        super().__init__(f"{seed}")
        self.world = world

    @property
    def channel(self) -> int:
        return CHANNELS[self.world]

    @property
    def dims(self) -> int:
        """How many dimensions follow the channels."""
        return {"image": 2, "signal": 1}[self.world]

    def pick(self, *options: T) -> T:
        return self.choice(options)

    def chance(self, share: float = 0.5) -> bool:
        return self.random() < share

    def divisor(self, *numbers: int) -> int:
        """Return a number that divides all of these; not 1, where there is another."""
        common = [n for n in range(1, min(numbers) + 1) if not any(m % n for m in numbers)]
        return self.choice(common[1:] or common)

    def width(self) -> int:
        return self.pick(4, 6, 8, 12)


Builder = Callable[[Draw, int, int], nn.Module]
"""(draw, input channels, output channels) → a module that is called with x and the rest."""


class Table:
    """Builders by world and name, registered where they are defined."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, Builder]] = {world: {} for world in CHANNELS}

    def __call__(self, *worlds: str) -> Callable[[Builder], Builder]:
        def register(builder: Builder) -> Builder:
            for world in worlds:
                self.of[world][builder.__name__] = builder
            return builder

        return register


maps = Table()
"""Blocks that may change the number of channels, and nothing else of the shape."""

sames = Table()
"""Blocks that change no size; they are asked for as many channels as they get."""


class Plain(nn.Module):
    """A module that takes x only, where blocks get x and what the model was given besides."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.inner(x)


class Does(nn.Module):
    """Some layers, and a function of them and x: the forward of a small class."""

    def __init__(self, forward: Callable[..., Tensor], **held: object):
        super().__init__()
        self.does = forward
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.does(self, x, *rest)
