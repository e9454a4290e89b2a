"""How a forward is run to look at it: everything is as before afterwards, also when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn

from secateur.runtime import drawing
from secateur.runtime.forward import evaluating, full_precision, random_kept


def fail_inside(context: AbstractContextManager[None], look: Callable[[], bool]) -> None:
    with context:
        assert look()
        raise KeyError


def test_evaluating_when_the_body_raises_then_each_module_is_in_its_own_mode() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    net[1].eval()
    with pytest.raises(KeyError):
        fail_inside(evaluating(net), lambda: not any(m.training for m in net.modules()))
    assert [module.training for module in net.modules()] == [True, True, False]


@pytest.mark.parametrize("alone", [True, False])
def test_random_kept_when_numbers_are_drawn_then_the_next_are_as_without(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "_only_thread", lambda: alone)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with random_kept():
        if alone:  # else what another thread has drawn would be put back with the seed
            torch.manual_seed(4)
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("before", [True, False])
def test_full_precision_when_the_body_raises_then_precision_is_as_before(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", before)
    with pytest.raises(KeyError):
        fail_inside(full_precision(), lambda: cudnn.allow_tf32 is False)
    assert cudnn.allow_tf32 is before


@pytest.fixture
def recurrent_layers_differ() -> Iterator[None]:
    """Let convolutions and recurrent layers have precisions of their own."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    conv.fp32_precision = "ieee"
    yield
    conv.fp32_precision = before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="flags of torch 2.9")
@pytest.mark.usefixtures("recurrent_layers_differ")
def test_full_precision_when_the_finer_flags_are_set_then_they_are_as_before() -> None:
    cudnn = torch.backends.cudnn
    with pytest.raises(KeyError):
        fail_inside(full_precision(), lambda: cudnn.rnn.fp32_precision == "ieee")
    assert (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision) == ("ieee", "tf32")
