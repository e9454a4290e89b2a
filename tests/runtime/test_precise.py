"""What a model computes in another type, with masks put on where parameters are read."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.runtime import parts
from secateur.runtime.precise import Precisely, held_precisely

CPU = torch.device("cpu")


class Reads(nn.Module):
    """A weight that is read in one way."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x, self.weight)


F = nn.functional
READS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[[Tensor, Tensor], Tensor]]] = {
    "linear": ((24, 16), (2, 16), F.linear),
    "linear of several dimensions": ((24, 16), (2, 3, 16), F.linear),
    "times it": ((16, 24), (2, 16), torch.matmul),
    "times a vector": ((24, 16), (16,), lambda x, w: w @ x),
    "added to a bias": ((16, 24), (2, 16), lambda x, w: torch.addmm(w[0], x, w, beta=2, alpha=3)),
    "added to a column": ((16, 24), (2, 16), lambda x, w: torch.addmm(x[:, :1], x, w)),
    "batches": ((4, 16, 24), (4, 2, 16), torch.bmm),
    "one of several": ((4, 24, 16), (2, 16), lambda x, w: F.linear(x, w[1])),
    "each of several": ((4, 24, 16), (2, 16), lambda x, w: sum(F.linear(x, e) for e in w.unbind())),
    "parts of it": (
        (24, 16),
        (2, 16),
        lambda x, w: torch.cat([F.linear(x, p) for p in w.split(7)], 1),
    ),
    "folded": ((24, 16), (2, 4), lambda x, w: F.linear(x, w.view(96, 4))),
    "turned": ((3, 8, 16), (2, 16), lambda x, w: x @ w.permute(1, 2, 0)[5]),
    "a diagonal": ((16, 16), (2, 16), lambda x, w: x * w.diagonal()),
    "convolution": ((24, 6, 3), (2, 6, 9), F.conv1d),
    "convolution of planes": ((8, 6, 3, 3), (2, 6, 5, 5), F.conv2d),
    "in groups": ((24, 3, 3), (2, 6, 9), lambda x, w: F.conv1d(x, w, groups=2)),
    "transposed": ((6, 24, 3), (2, 6, 9), F.conv_transpose1d),
    "rows": ((30, 16), (5,), lambda x, w: F.embedding((x.abs() * 9).long() % 30, w)),
    "detached": ((24, 16), (2, 16), lambda x, w: F.linear(x, w.detach())),
    "its data": ((24, 16), (2, 16), lambda x, w: F.linear(x, w.data)),
    "a sum": ((24, 16), (2, 16), lambda x, w: x @ (w + w.flip(0)).T),
}


@pytest.mark.parametrize("size", [64, 2**30], ids=["in parts", "at once"])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("read", READS)
def test_precisely_when_a_masked_weight_is_read_then_it_is_as_if_it_had_been_masked(
    read: str, own: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "BYTES", size)
    shape, given, how = READS[read]
    model = Reads(shape, how).to(own)
    x = torch.randn(given, dtype=torch.float64)
    masks = [torch.rand(shape) > 0.3, torch.rand(shape[0], *[1] * (len(shape) - 1)) > 0.3]
    masked = copy.deepcopy(model).double()
    for mask in masks:
        masked.weight.data *= mask
    before = model.weight.detach().clone()
    mode = Precisely(torch.float64, CPU, masks={id(model.weight): masks})
    with torch.no_grad(), mode:
        found = model(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, masked(x).detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(model.weight, before)


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 9),
    bias=st.booleans(),
    size=st.integers(1, 2000),
)
@settings(deadline=None, max_examples=60)
def test_precisely_when_a_weight_is_read_in_parts_then_no_output_is_lost(
    rows: int, columns: int, bias: bool, size: int
) -> None:
    layer = nn.Linear(columns, rows, bias=bias)
    x = torch.randn(3, columns, dtype=torch.float64)
    mode = Precisely(torch.float64, CPU)
    held = [layer.bias] if bias else []
    before, parts.BYTES = parts.BYTES, size
    try:
        with torch.no_grad(), held_precisely(held, mode), mode:
            found = layer(x)
    finally:
        parts.BYTES = before
    torch.testing.assert_close(found, layer.double()(x).detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    "view", [lambda w: w, lambda w: w[0], lambda w: w.T], ids=["it", "row", "T"]
)
def test_precisely_when_a_masked_weight_is_written_then_that_is_an_error(
    view: Callable[[Tensor], Tensor],
) -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    before = weight.detach().clone()
    masks = {id(weight): [torch.tensor([[True], [False], [True]])]}
    with torch.no_grad(), Precisely(torch.float64, CPU, masks=masks):
        looked_at = view(weight)
        with pytest.raises(RuntimeError, match="masked as it is read"):
            looked_at.add_(1)
    assert torch.equal(weight, before)
