"""What comes back: a table that a person reads, and files that load into a fresh model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur import Plan, Result, analyze, prune, shrink
from secateur.shrink.cut import Surgery


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
    assert "loads with: a Net that was cut by the same plan" in text
    assert "note" not in text


def test_print_when_there_are_notes_or_no_check_then_it_says_so():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    text = str(prune(net, torch.zeros(1, 4), sparsity=1.0, verify=False))
    assert "not checked (verify=False)" in text
    assert "note 0: keeps 1 of 8 blocks instead of 0" in text


def test_print_when_nothing_was_removed_then_it_says_nothing():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "nothing of 0 groups removed" in str(prune(net, torch.zeros(1, 4), sparsity=0.0))


def test_costs_when_pruned_then_they_are_those_of_the_models(result):
    assert result.before.params == sum(p.numel() for p in Net().parameters())
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_save_when_loaded_into_a_fresh_model_then_it_computes_the_same(result, tmp_path):
    folder = result.save(tmp_path / "deep" / "small")
    plan = Plan.from_json((folder / "plan.json").read_text())
    assert plan == result.plan

    fresh = Net()
    Surgery(fresh).cut(analyze(fresh, EXAMPLE), plan)
    state = load_file(folder / "model.safetensors")
    lacking = fresh.load_state_dict(state, strict=False)
    assert lacking.unexpected_keys == []
    assert lacking.missing_keys == ["head.weight"], "tied parameters are written once"
    assert fresh.head.weight is fresh.embed.weight
    with torch.no_grad():
        assert torch.equal(fresh.eval()(EXAMPLE), result.model.eval()(EXAMPLE))


def test_save_when_written_then_the_record_is_complete_and_no_temporary_file_stays(
    result, tmp_path: Path
):
    folder = result.save(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["model.safetensors", "plan.json"]
    record = json.loads((folder / "plan.json").read_text())
    assert record["model"] == "Net"
    assert record["tied"] == {"head.weight": "embed.weight"}
    assert record["keep"].keys() == result.plan.keep.keys()
    assert record["attributes"] == {k: list(v) for k, v in result.attributes.items()}


def test_save_when_saved_again_then_the_files_are_replaced(result, tmp_path):
    (tmp_path / "plan.json").write_text("old")
    first = result.save(tmp_path) / "model.safetensors"
    bytes_before = first.read_bytes()
    result.save(tmp_path)
    assert first.read_bytes() == bytes_before
    assert Plan.from_json((tmp_path / "plan.json").read_text()) == result.plan


def test_shrink_when_two_names_of_a_tied_weight_have_masks_then_both_count():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    one, two = (torch.ones(4, 4, dtype=torch.bool) for _ in range(2))
    one[0, 0], two[1, 1] = False, False
    result = shrink(net, {"0.weight": one, "2.weight": two}, torch.zeros(1, 4))
    assert torch.equal(result.masks["0.weight"], one & two)
