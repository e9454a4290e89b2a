"""What somebody's modes and defaults are makes no difference to what is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from .process import changed, process_state
from .test_threads import blocks, convolutions, decided, layer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Any] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("build", [blocks, layer, convolutions])
def test_prune_when_it_is_called_in_a_mode_then_the_plan_is_that_of_no_mode(
    build: Any, mode: str
) -> None:
    pair = build()
    expected = decided(*pair)
    with MODES[mode]():
        before = process_state()
        assert decided(*pair) == expected
        assert changed(before, process_state()) == []
