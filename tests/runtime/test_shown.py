"""What prints itself does so in any console: narrow, old, or of few characters."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import secateur as sc


class Named(nn.Module):
    """Its layers have names that few encodings can say, and one that none can."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("a\ud800é", nn.Linear(4, 8))
        self.add_module("[red]→\x1b[31m", nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self._modules.values()
        return second(first(x).relu())  # type: ignore[misc]


@cache
def shown() -> tuple[Any, ...]:
    net, x = Named(), torch.ones(2, 4)
    return sc.analyze(net, x), sc.prune(net, x, 0.5)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "utf-16"])
@pytest.mark.parametrize("width", [2, 20, 100])  # rich takes one off for old Windows
def test_print_when_the_console_cannot_say_a_name_then_it_is_escaped(
    encoding: str, width: int
) -> None:
    for options in ({}, {"legacy_windows": True}, {"force_terminal": True}):
        for each in shown():
            file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
            Console(file=file, width=width, **options).print(each)  # type: ignore[arg-type]
            file.flush()
            said = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
            assert said.strip()
            assert "ud800" in said or width < 100 or each is not shown()[0]


def test_str_when_a_name_is_no_text_then_it_can_be_written() -> None:
    for each in (*shown(), *shown()[0].groups):
        assert str(each).encode()
