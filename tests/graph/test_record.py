"""On real tensors or on fake ones: which forward is recorded, and what is said if none can be."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import TraceError
from secateur.graph import record
from secateur.graph.fakes import standing_in
from secateur.structure import analyze


class Reads(nn.Module):
    """Uses only the rows that are positive, of which nobody knows how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.nonzero(x[:, 0] > 0)[:, 0]
        return self.last(self.first(x[rows]).relu())


@pytest.fixture
def large(monkeypatch):
    """Let every model count as large."""
    monkeypatch.setattr(record, "LARGE", 0)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_analyze_when_the_model_is_on_meta_then_the_groups_are_those_of_the_real_one():
    with torch.device("meta"):
        absent = mlp()
    there = analyze(mlp(), torch.zeros(3, 4))
    assert str(analyze(absent, torch.zeros(3, 4))) == str(there)
    assert all(p.is_meta for p in absent.parameters())


def test_analyze_when_a_large_model_runs_without_values_then_none_are_computed(large):
    seen = []
    model = mlp()
    model.register_forward_hook(lambda *_: seen.append(type(_[2]).__name__))
    assert [g.name for g in analyze(model, torch.zeros(3, 4)).groups] == ["0"]
    assert seen == ["FakeTensor"]


def test_analyze_when_a_large_model_reads_values_then_it_runs_for_real(large):
    structure = analyze(Reads(), torch.ones(3, 4))
    assert [g.name for g in structure.exact] == ["first"]


def test_analyze_when_a_model_on_meta_reads_values_then_the_error_says_what_to_do():
    with torch.device("meta"):
        model = Reads()
    with pytest.raises(TraceError, match="reads values, which tensors on meta do not have"):
        analyze(model, torch.ones(3, 4))
    assert all(p.is_meta and not hasattr(p, "fake_mode") for p in model.parameters())


def test_analyze_when_a_large_model_fails_for_real_too_then_that_error_is_told(large):
    with pytest.raises(TraceError, match="shapes cannot be multiplied"):
        analyze(mlp(), torch.zeros(3, 5))


def test_standing_in_when_the_forward_fails_then_every_tensor_is_back():
    model = nn.BatchNorm1d(3)
    before = dict(model.named_parameters()) | dict(model.named_buffers())

    def fail() -> None:
        with standing_in(model):
            held = model.running_mean, model.weight.data
            raise ValueError({type(tensor).__name__ for tensor in held})

    with pytest.raises(ValueError, match="^{'FakeTensor'}$"):
        fail()
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(after[name] is tensor for name, tensor in before.items())


def test_grouped_mm_when_it_is_fake_then_it_takes_single_precision_as_the_real_one_does():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = (
                nn.Parameter(torch.empty(2, *shape)) for shape in ((4, 8), (8, 4))
            )

        def forward(self, x: Tensor, ends: Tensor) -> Tensor:
            hidden = nn.functional.grouped_mm(x, self.up, offs=ends).relu()
            return nn.functional.grouped_mm(hidden, self.down, offs=ends)

    with torch.device("meta"):
        model = Experts()
    ends = torch.tensor([1, 3], dtype=torch.int32)
    assert [g.size for g in analyze(model, (torch.zeros(3, 4), ends)).exact] == [8]


class Memory:
    def __init__(self, keys: torch.Tensor):
        self.keys = keys


class Remembers(nn.Module):
    """A model that hands out what it will take back, as an object or as a plain tensor."""

    def __init__(self, name: str, *, plain: bool = False):
        super().__init__()
        self.name, self.plain = name, plain
        self.key, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> dict[str, object]:
        keys = self.key(x)
        return {"y": self.out(keys), self.name: keys if self.plain else Memory(keys)}


def test_analyze_when_the_model_hands_out_its_own_memory_then_that_may_shrink():
    model, x = Remembers("memory").eval(), torch.randn(2, 3)
    result = secateur.prune(model, x, sparsity=0.5)
    assert result.model.key.out_features == 4
    assert result.model(x)["memory"].keys.shape == (2, 4)
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize(("name", "plain"), [("state", False), ("memory", True)])
def test_analyze_when_it_is_no_memory_that_it_takes_back_then_it_keeps_its_shape(name, plain):
    structure = analyze(Remembers(name, plain=plain), torch.randn(2, 3))
    assert structure.groups == ()


def test_analyze_when_sizes_and_objects_in_circles_go_out_then_their_tensors_are_found():
    class Circle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> tuple[object, ...]:
            memory = Memory(self.out(self.hidden(x)))
            memory.itself = memory
            return memory, x.shape, (x.shape[0] * 2, "text", None)

    structure = analyze(Circle(), torch.randn(2, 3))
    assert [g.name for g in structure.groups] == ["hidden"]


class Named(dict):
    pass


class Listed(list):
    pass


@pytest.mark.parametrize("wrap", [Named, UserDict, Memory, lambda d: Listed(d.values())])
def test_analyze_when_a_container_of_an_unknown_class_goes_out_then_its_tensors_are_outputs(wrap):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> tuple[object, ...]:
            return (wrap({"y": self.out(self.hidden(x))}),)

    structure = analyze(Wrapped(), torch.randn(2, 3))
    assert [g.name for g in structure.groups] == ["hidden"]
