"""A goal that cannot be met is an error that says why, or the first line of the result."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.cli import main
from secateur.errors import GoalError
from secateur.structure import Structure

X = torch.randint(0, 40, (2, 6), generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A vocabulary that cannot go, a width that only goes inexactly, and one that may go."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm = nn.LayerNorm(16)
        self.third, self.fourth = nn.Linear(16, 48), nn.Linear(48, 40)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.norm(x + self.second(self.first(x).relu()))
        return self.fourth(self.third(x).relu())


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def lost(structure: Structure, result: sc.Result, of: str) -> float:
    before, after = result.before, result.after
    return 1 - getattr(after, of) / getattr(before, of)


UNREACHABLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "params": ({"of": "params", "sparsity": 0.9}, ["90.0% of params", "inexact=True lets"]),
    "macs": ({"of": "macs", "sparsity": 0.99}, ["99.0% of macs cannot go"]),
    "frozen": ({"of": "params", "sparsity": 0.9}, ["frozen:", "along 'embed' (40): a vocabulary"]),
    "exclude": ({"of": "macs", "sparsity": 0.8, "exclude": ["third"]}, ["left out", "'third'"]),
    "names": ({"of": "params", "sparsity": 0.5, "names": ["first"]}, ["left out", "'third' (48)"]),
    "bound": ({"of": "params", "sparsity": 0.5, "max_sparsity": 0.3}, ["max_sparsity=0.3 is in"]),
    "round": ({"of": "macs", "sparsity": 0.6, "round_to": 32}, ["round_to=32 is in the way"]),
    "uniform": ({"sparsity": 0.5, "max_sparsity": 0.1}, ["channels cannot go", "max_sparsity=0.1"]),
    "global": ({"sparsity": 0.5, "scope": "global", "max_sparsity": 0.2}, ["max_sparsity=0.2"]),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_prune_when_the_goal_cannot_be_met_then_the_error_says_what_is_in_the_way(
    net, settings, said
):
    with pytest.raises(GoalError, match="strict=False") as caught:
        sc.prune(net, X, **settings)
    for words in said:
        assert words in str(caught.value)


@pytest.mark.parametrize(("settings", "said"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_prune_when_it_is_not_strict_then_as_much_goes_and_the_first_line_says_so(
    net, settings, said
):
    result = sc.prune(net, X, **settings, strict=False)
    first = str(result).splitlines()[0]
    assert first.startswith("warning ")
    assert "cannot go, at most" in first
    if settings.get("of", "channels") != "channels":
        said_most = float(result.warnings[0].partition("at most ")[2].partition("%")[0]) / 100
        assert abs(lost(result.structure, result, settings["of"]) - said_most) < 1e-3


def test_prune_when_a_goal_is_more_than_whole_heads_then_the_error_names_what_lets_more_go():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(16, 2, 4, dropout=0, batch_first=True).eval()
    net = nn.Sequential(nn.Linear(3, 16), net, nn.Linear(16, 2))
    x = torch.randn(2, 5, 3)
    with pytest.raises(GoalError, match="whole heads go, one of them stays") as caught:
        sc.prune(net, x, 0.6, of="params")
    most = float(str(caught.value).partition("grid='fine' lets ")[2].partition("%")[0]) / 100
    result = sc.prune(net, x, most - 0.02, of="params", grid="fine")
    assert lost(result.structure, result, "params") >= most - 0.02


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_prune_when_the_goal_is_just_within_reach_then_it_is_met(net, of, part):
    most = sc.prune(net, X, of=of, sparsity=1.0, strict=False)
    asked = part * lost(most.structure, most, of)
    result = sc.prune(net, X, of=of, sparsity=asked)
    assert lost(result.structure, result, of) >= asked - 1e-9
    assert not [w for w in result.warnings if "cannot go" in w]


def nearest_of_all(structure: Structure, goal: float, step: int, of: str) -> float:
    """Return the smallest share that meets a goal when widths are multiples of a step."""
    sizes = {g.name: g.size for g in structure.exact}
    rungs = [[k for k in range(1, n + 1) if k % step == 0 or k == n] for n in sizes.values()]
    whole = getattr(structure.cost(), of)
    costs = (
        getattr(structure.cost(dict(zip(sizes, counts, strict=True))), of)
        for counts in product(*rungs)
    )
    return min(share for cost in costs if (share := 1 - cost / whole) >= goal - 1e-9)


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("step", [8, 16, 32])
@pytest.mark.parametrize("goal", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("widths", [(32, 48, 64), (64, 128, 96), (24, 40)], ids=str)
def test_prune_when_widths_are_rounded_then_the_goal_is_met_and_hardly_overshot(
    widths, goal, step, of
):
    torch.manual_seed(0)
    pairs = zip((8, *widths), (*widths, 4), strict=True)
    net = nn.Sequential(*(layer for a, b in pairs for layer in (nn.Linear(a, b), nn.Tanh())))
    x = torch.randn(2, 8)
    structure = sc.analyze(net, x)
    if any(step > width for width in widths):
        pytest.skip("no multiple fits a layer, which then keeps any number")
    result = sc.prune(net, x, of=of, sparsity=goal, round_to=step)
    best = nearest_of_all(structure, goal, step, of)
    assert goal - 1e-9 <= lost(structure, result, of) <= best + 0.04
    assert all(k % step == 0 for k in result.plan.counts.values())


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("round_to", [1, 5, 8])
def test_prune_when_channels_are_asked_for_then_rounding_is_no_failure(net, sparsity, round_to):
    sc.prune(net, X, sparsity=sparsity, round_to=round_to)


def test_pruner_when_the_goal_cannot_be_met_then_it_is_said_before_training(net):
    config = sc.Config(of="macs", sparsity=0.99, schedule="linear", steps=4)
    with pytest.raises(GoalError, match=r"99\.0% of macs cannot go"):
        sc.Pruner(net, config, X)


def test_print_when_a_layer_keeps_less_than_a_tenth_then_the_head_warns(net):
    result = sc.prune(net, X, sparsity=0.95, names=["third"])
    assert result.squeezed == {"third": (3, 48)}
    line = "warning squeezed below a tenth of the width: third (keeps 3 of 48)"
    assert str(result).splitlines()[0] == line
    assert not sc.prune(net, X, sparsity=0.9, names=["third"]).warnings


def test_command_when_the_goal_cannot_be_met_then_it_fails_unless_best_effort(
    tmp_path, capsys, monkeypatch
):
    (tmp_path / "small_net.py").write_text(
        "import torch\n"
        "def net():\n"
        "    torch.manual_seed(0)\n"
        "    layers = torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 400)\n"
        "    return torch.nn.Sequential(*layers)\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ["prune", "small_net.py:net", "--input", "1,8", "--of", "macs", "--sparsity", "0.95"]
    assert main([*command, "--out", "small"]) != 0
    assert "cannot go, at most" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()
    assert main([*command, "--dry-run", "--best-effort", "--json"]) == 0
    assert "cannot go" in json.loads(capsys.readouterr().out)["warnings"][0]
    assert main([*command, "--out", "small", "--best-effort"]) == 0
    assert capsys.readouterr().out.lstrip().startswith("warning 95.0% of macs cannot go")
