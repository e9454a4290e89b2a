"""What somebody's modes and defaults are makes no difference to what is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc

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


class OfHalf(nn.Module):
    """Weights of half the bits, which run on float32 inputs only where autocast makes them."""

    def __init__(self, *, itself: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.itself = nn.Linear(8, 16), nn.Linear(16, 4), itself
        self.to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.itself else nullcontext():
            return self.down(self.up(x).relu())  # type: ignore[no-any-return]


def test_prune_when_a_model_runs_only_within_autocast_then_the_error_says_what_to_do() -> None:
    model, x = OfHalf(), torch.ones(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).shape == (2, 4)
        with pytest.raises(sc.errors.TraceError, match=r"let its forward enter torch.autocast"):
            sc.prune(model, x, 0.5)
        assert torch.is_autocast_enabled("cpu")
        assert sc.prune(model, x.bfloat16(), 0.5).after.params == 108
        assert sc.prune(OfHalf(itself=True), x, 0.5).after.params == 108
    with pytest.raises(sc.errors.TraceError) as caught:
        sc.prune(model, x, 0.5)
    assert "autocast" not in str(caught.value)


def test_calibrate_when_only_autocast_would_run_the_data_then_the_error_says_so() -> None:
    model, x = OfHalf(), torch.ones(2, 8)
    says = pytest.raises(sc.errors.ConfigError, match="let its forward enter torch.autocast")
    with torch.autocast("cpu", torch.bfloat16), says:
        sc.prune(model, x.bfloat16(), 0.5, data=[x])
