"""From a forward to groups: what is watched, what is left as it was, what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import TraceError
from secateur.structure import analyze
from tests.graph.rules.harness import Case, Net, cut_half, features, numbers, structure_of

# What is watched, and what stays as it was.

_operators = torch.library.Library("secateur_tests", "DEF")
_operators.define("mystery(Tensor x) -> Tensor")
_operators.impl("mystery", lambda x: x.flip(-1), "CompositeExplicitAutograd")


def test_analyze_when_an_operation_is_unknown_then_what_it_touches_is_frozen_by_its_name():
    case = features(
        lambda m, x: torch.ops.secateur_tests.mystery(m.mid(x).relu()),
        mid=nn.Linear(8, 6),
        after=6,
    )
    structure = structure_of(case)
    assert [g.name for g in structure.groups] == ["first"]
    assert list(structure.unknown) == ["secateur_tests.mystery.default"]
    for name in ("mid", "last:1"):
        assert structure[name].frozen.why == "secateur_tests.mystery.default has no rule"
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


class Watched(nn.Module):
    """Holds integers in every way that is traced, and can fail at the end of its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 12), nn.Linear(12, 2)
        self.heads, self.sizes, self.pair, self.flag = 3, [3, 4], (3, 4), True
        self.norm = nn.BatchNorm1d(12)
        self.fail = False
        self.seen: Any = None
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x)).view(-1, self.heads, self.sizes[1]).flatten(1)
        self.seen = self.heads
        if self.fail:
            raise ValueError("at the end")
        return self.last(x)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return every attribute of every module, by type and value."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and name != "seen":
                kinds = [type(v) for v in value] if isinstance(value, (list, tuple)) else None
                found[f"{path}.{name}"] = (type(value), kinds, value)
        found[f"{path} hooks"] = len(module._forward_hooks), len(module._forward_pre_hooks)
    return found


@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_analyze_when_it_is_done_then_the_model_is_as_before(fails, training):
    model = Watched().train(training)
    model.norm.eval()  # a module may have a mode of its own
    model.fail = fails
    before = snapshot(model)
    state = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(TraceError, match="ValueError: at the end"):
            analyze(model, torch.zeros(2, 4))
    else:
        assert analyze(model, torch.zeros(2, 4)).groups
    assert snapshot(model) == before
    assert model.seen is None  # what the forward stored is forgotten
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == state[name][0]
        assert torch.equal(tensor, state[name][1])
    assert torch.equal(torch.get_rng_state(), random)
    assert model(torch.zeros(2, 4)) is not None if not fails else True


def test_analyze_when_the_forward_fails_then_the_error_says_where_and_on_what():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(6, 2))
    with pytest.raises(TraceError) as raised:
        analyze(model, torch.zeros(2, 4))
    message = str(raised.value)
    assert "Sequential failed on the example inputs ((2, 4))" in message


def test_analyze_when_a_module_fails_then_the_error_names_it():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(6, 2))
    with pytest.raises(TraceError, match=r"in '1'"):
        analyze(model, torch.zeros(2, 4))


def test_analyze_when_the_model_is_on_meta_then_the_groups_are_those_of_the_real_one():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    real = analyze(build(), torch.zeros(2, 3, 6, 6))
    with torch.device("meta"):
        model = build()
    found = analyze(model, torch.zeros(2, 3, 6, 6))
    assert [str(g) for g in found.groups] == [str(g) for g in real.groups]
    assert found.cost() == real.cost()
    assert all(p.is_meta for p in [*model.parameters(), *model.buffers()])


def test_shared_module_when_it_is_called_twice_then_its_axes_are_those_of_both_calls():
    case = features(lambda m, x: m.mid(F.relu(m.mid(x))), mid=nn.Linear(8, 8), exact={"first": 8})
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == {"first": 8}
    members = {(m.tensor, m.dim) for m in structure["first"].members}
    assert {("mid.weight", 0), ("mid.weight", 1), ("mid.bias", 0)} <= members
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


def test_tied_weights_when_they_are_cut_then_they_stay_tied():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False))
    model[2].weight = model[0].weight
    case = Case(model, torch.arange(6).view(2, 3))
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == {"0:1": 8}
    result = cut_half(case, structure, structure.exact)
    assert result.model[2].weight is result.model[0].weight
    assert result.verification.difference < 1e-10
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_containers_when_inputs_and_outputs_are_nested_then_all_their_axes_are_frozen():
    model = Net(
        lambda m, x, more: {"y": [m.b(m.a(x)), {"hidden": m.c(more["z"][0])}], "n": 3},
        a=nn.Linear(3, 8),
        b=nn.Linear(8, 2),
        c=nn.Linear(3, 5),
    )
    case = Case(model, {"x": numbers(4, 3), "more": {"z": [numbers(4, 3)]}})
    structure = structure_of(case)
    assert [g.name for g in structure.groups] == ["a"]
    assert structure["c"].frozen.why == "it is the model's output"
    assert structure["a:1"].frozen.why == "it is the model's input"
    assert cut_half(case, structure, structure.exact).verification.difference < 1e-10


def test_constant_when_the_code_holds_a_tensor_then_its_axes_are_frozen():
    constant = numbers(8)
    structure = structure_of(features(lambda m, x: x * constant))
    assert structure["first"].frozen.why == "a constant that is no parameter or buffer"
