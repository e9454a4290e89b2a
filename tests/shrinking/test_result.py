"""What comes back: a table that a person reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur import Result, prune, shrink


class Net(nn.Module):
    """A body and a tied pair of tables, so that a save has something to tie."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(torch.relu(x + self.down(torch.relu(self.up(x)))))


EXAMPLE = torch.arange(12).reshape(2, 6)


@pytest.fixture(scope="module")
def result() -> Result:
    torch.manual_seed(0)
    return prune(Net(), EXAMPLE, sparsity=0.5)


def test_print_when_pruned_then_costs_check_and_where_it_loads_are_told(result):
    text = str(result)
    assert "Net: 50% of the units of 2 groups removed" in text
    for words in ("parameters", "MACs", "peak activation bytes", "checked: outputs differ by"):
        assert words in text
    assert "loads with: secateur.load_pruned, onto a freshly built Net" in text
    assert text.count("note") == text.count("note scored on random tokens") == 1


@pytest.mark.parametrize("data", [None, [torch.randn(8, 4) for _ in range(4)]])
def test_print_when_read_from_the_top_then_questions_are_answered_before_figures(data):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = prune(net, torch.zeros(1, 4), sparsity=0.4, of="macs", data=data)
    text = " ".join(str(result).split())
    dense = "distance from the dense model: not" if data is None else "repair 'least_squares'"
    order = ["Sequential: ", "goal: ", "checked: ", dense, "loads with: ", "next: ", "parameters"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert ("with data=" in text) == (data is None)


def test_print_when_there_are_notes_or_no_check_then_it_says_so():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    text = str(prune(net, torch.zeros(1, 4), sparsity=1.0, verify=False))
    assert "not checked (verify=False)" in text
    assert "note 0: keeps 1 of 8 units instead of 0" in text


def test_print_when_nothing_was_removed_then_it_says_nothing():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "nothing of 0 groups removed" in str(prune(net, torch.zeros(1, 4), sparsity=0.0))


def test_costs_when_pruned_then_they_are_those_of_the_models(result):
    assert result.before.params == sum(p.numel() for p in Net().parameters())
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_shrink_when_two_names_of_a_tied_weight_have_masks_then_both_count():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    one, two = (torch.ones(4, 4, dtype=torch.bool) for _ in range(2))
    one[0, 0], two[1, 1] = False, False
    result = shrink(net, {"0.weight": one, "2.weight": two}, torch.zeros(1, 4))
    assert torch.equal(result.masks["0.weight"], one & two)
