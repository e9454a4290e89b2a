"""What a loop over an input's places puts together is as long as the input: tables stay whole."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

WIDTH, ROWS = 12, 40
Layer = Callable[[Tensor], Tensor]


def filled(layer: Layer, x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], x.shape[1], WIDTH)
    for i, each in enumerate(x.unbind(1)):
        out[:, i] = layer(each)
    return out


FORMS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "stack": lambda c, x: torch.stack([c(x[:, i]) for i in range(x.shape[1])], 1),
    "first": lambda c, x: torch.stack([c(s) for s in x.unbind(1)]).transpose(0, 1),
    "cat": lambda c, x: torch.cat([c(s).unsqueeze(1) for s in x.unbind(1)], 1),
    "slices": lambda c, x: torch.cat([c(x[:, i : i + 1]) for i in range(x.shape[1])], 1),
    "split": lambda c, x: torch.cat([c(s) for s in x.split(1, 1)], 1),
    "rows": lambda c, x: torch.stack([torch.stack([c(s) for s in row]) for row in x]),
    "flat": lambda c, x: torch.cat([c(s) for s in x.unbind(1)], -1).unflatten(-1, (-1, WIDTH)),
    "dstack": lambda c, x: torch.dstack([c(s) for s in x.unbind(1)]).transpose(1, 2),
    "twice": lambda c, x: torch.cat([torch.stack([c(s) for s in x.unbind(1)], 1)] * 2, 1),
    "one more": lambda c, x: torch.stack([c(s) for s in (x[:, 0], *x.unbind(1))], 1),
    "filled": filled,
}


class Model(nn.Module):
    """A loop, then a table of places, of which as much is read as the loop put together."""

    def __init__(self, loop: Callable[[Layer, Tensor], Tensor]):
        super().__init__()
        self.loop = loop
        self.into, self.table = nn.Linear(6, WIDTH), nn.Parameter(torch.randn(1, ROWS, WIDTH))
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.loop(self.into, x)
        return self.down(self.up(y + self.table[:, : y.shape[1]]).relu())


@pytest.mark.parametrize("form", FORMS)
def test_table_when_it_is_cut_where_a_loop_ended_then_it_stays_whole(form: str) -> None:
    torch.manual_seed(0)
    model = Model(FORMS[form]).double().eval()
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    result = sc.prune(model, x, sparsity=0.5, verify=False)
    assert result.model.table.shape[1] == ROWS
    assert result.model.up.out_features == 5
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep in result.masks.items():
            masked.get_parameter(name).mul_(keep)
        for length in (3, 6, 11):
            other = torch.randn(2, length, 6, dtype=torch.float64)
            torch.testing.assert_close(result.model(other), masked(other), rtol=1e-9, atol=1e-9)


def test_table_when_it_follows_a_recurrent_layer_then_it_stays_whole() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.GRU(6, WIDTH, batch_first=True)
            self.table, self.head = nn.Parameter(torch.randn(1, ROWS, WIDTH)), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x)[0]
            return self.head(y + self.table[:, : y.shape[1]])

    result = sc.prune(Tagger(), torch.randn(2, 6, 6), sparsity=0.5)
    assert result.model.table.shape == (1, ROWS, WIDTH // 2)
