"""Where nobody says how layers share a cost, held-out data does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur import defaults
from secateur.defaults import BETWEEN, open_to_data
from secateur.repair import Distance


class Narrowing(nn.Module):
    """Its second layer's units are nearly all copies of two: it can lose more than the first."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 32)
        self.c, self.d = nn.Linear(32, 32), nn.Linear(32, 8)
        if copies:
            with torch.no_grad():
                self.b.weight.copy_(self.b.weight[:2].repeat(16, 1))
                self.b.bias.copy_(self.b.bias[:2].repeat(16))

    def forward(self, x: torch.Tensor) -> Any:
        return self.d(self.c(self.b(self.a(x).tanh()).relu()).tanh())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.norm, self.down = nn.BatchNorm2d(24), nn.Conv2d(24, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        return self.head((x + self.down(self.norm(self.up(x)).relu())).relu().mean((2, 3)))


MODELS: dict[str, Any] = {
    "linear": (lambda: Narrowing(False), (8,)),
    "copies": (lambda: Narrowing(True), (8,)),
    "residual": (Residual, (3, 8, 8)),
}
GOALS: dict[str, dict[str, Any]] = {
    "share": {"sparsity": 0.5, "of": "macs"},
    "amount": {"budget": "1.5 k params"},
    "both": {"budget": ["1.5 k params", "8 kB"]},
}


def made(name: str) -> tuple[nn.Module, torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    return build().eval(), torch.rand(2, *shape), [torch.randn(32, *shape) for _ in range(8)]


def kept(result: sc.Result) -> dict[str, Any]:
    return {name: [*map(int, keep)] for name, keep in result.plan.keep.items()}


@pytest.mark.parametrize(
    ("name", "goal"),
    [
        ("copies", "amount"),
        ("residual", "both"),
        pytest.param("linear", "share", marks=pytest.mark.slow),
        pytest.param("residual", "share", marks=pytest.mark.slow),
    ],
)
def test_prune_when_a_cost_goes_then_it_is_the_way_that_held_out_data_is_nearer_to(
    name: str, goal: str
) -> None:
    model, x, data = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = sc.prune(model, x, data=data, **GOALS[goal])
    ways: tuple[dict[str, Any], ...] = {"criterion": "activation"}, BETWEEN
    every = [sc.prune(model, x, data=data, **GOALS[goal], **way) for way in ways]
    assert found.repair is not None
    assert found.repair.after in [each.repair and each.repair.after for each in every]
    first, second = every
    assert first.repair is not None
    assert second.repair is not None
    best = second if second.repair.after.nearer_than(first.repair.after) else first
    assert kept(found) == kept(best)
    assert found.verification is not None
    assert found.verification.exact
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    (told,) = [note for note in found.notes if note.startswith("what goes is shared out")]
    assert "between layers" in told


def test_prune_when_a_layer_is_of_copies_then_it_gives_most() -> None:
    model, x, data = made("copies")
    found = sc.prune(model, x, 0.5, of="params", data=data)
    assert "is shared out between layers" in str(found.notes)
    left: Any = found.model
    assert left.b.out_features < min(left.a.out_features, left.c.out_features)


def test_prune_when_it_is_in_place_then_it_is_the_same_model() -> None:
    model, x, data = made("residual")
    apart = sc.prune(model, x, 0.4, of="macs", data=data)
    within = sc.prune(model, x, 0.4, of="macs", data=data, inplace=True)
    assert within.model is model
    assert kept(within) == kept(apart)
    assert within.notes == apart.notes
    torch.testing.assert_close(within.model(x), apart.model(x))


@pytest.mark.parametrize(
    "said",
    [
        {"criterion": "l2"},
        {"scope": "local"},
        {"normalize": "none"},
        {"max_sparsity": 0.9},
        {"allocate": "uniform"},
        {"alike": False},
        {"allocation": {"a": 0.3}},
        {"of": "channels"},
        {"repair": "bias"},
        {"repair": "none"},
    ],
    ids=str,
)
def test_prune_when_something_of_it_is_said_then_nothing_is_tried(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearest(*given: Any) -> Any:
        raise AssertionError("tried")

    monkeypatch.setattr("secateur.one_shot.nearest", nearest)
    model, x, data = made("linear")
    found = sc.prune(model, x, **{"sparsity": 0.25, "of": "macs", **said}, data=data)
    assert "is shared out" not in str(found.notes)


def test_open_when_blocks_go_too_then_their_budget_is_shared_by_error_anyway() -> None:
    model = made("linear")[0]
    for what, is_open in ((["width", "depth"], False), (["all"], False), (["width"], True)):
        config = sc.Config(sparsity=0.5, of="params", what=what)
        assert open_to_data(model, config, "least_squares") == is_open


def test_open_when_second_moments_would_fill_the_memory_then_one_way_is_taken() -> None:
    config = sc.Config(sparsity=0.5, of="macs")
    with torch.device("meta"):
        wide = nn.Sequential(nn.Linear(32768, 8), nn.Linear(8, 8))
        narrow = nn.Sequential(nn.Linear(4096, 8), nn.Linear(8, 8))
    assert not open_to_data(wide, config, "least_squares")
    assert open_to_data(narrow, config, "least_squares")


@contextmanager
def failing(monkeypatch: Any) -> Iterator[None]:
    repaired = defaults._repaired

    def refuse(model: Any, config: Any, *rest: Any) -> Any:
        if config.criterion == "obs":
            raise sc.errors.GoalError("not by this way")
        return repaired(model, config, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(defaults, "_repaired", refuse)
        yield


def test_prune_when_one_way_is_refused_then_the_other_is_taken_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, data = made("linear")
    with failing(monkeypatch):
        found = sc.prune(model, x, 0.5, of="macs", data=data)
    assert "not shared between layers by obs: not by this way" in found.notes
    assert kept(found) == kept(sc.prune(model, x, 0.5, "activation", of="macs", data=data))


def test_prune_when_only_one_way_meets_the_goal_then_it_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x, data = made("linear")
    monkeypatch.setattr(Distance, "nearer_than", lambda self, other: self is not other)
    goal: dict[str, Any] = {"sparsity": 0.9, "of": "params", "strict": False, "round_to": 1}
    found = sc.prune(model, x, data=data, **goal)
    alone = sc.prune(model, x, data=data, **goal, **BETWEEN)
    assert any(not each.met for each in alone.goals)
    assert all(each.met for each in found.goals)
