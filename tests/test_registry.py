"""A name for a function: one decorator, near names, shell patterns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

import secateur
from secateur import Method, criteria, schedules
from secateur.costs import COSTS
from secateur.costs.cost import Cost, Count, cost
from secateur.errors import ConfigError, ScoreError, UnknownNameError
from secateur.registry import Registry


@pytest.fixture
def colours() -> Registry:
    registry = Registry("colour")

    @registry.register
    def red() -> str:
        return "#f00"

    @registry.register
    def dark_red() -> str:
        return "#800"

    @registry.register
    def blue() -> str:
        return "#00f"

    return registry


def test_register_when_decorating_then_the_function_itself_comes_back(colours):
    def green() -> str:
        return "#0f0"

    assert colours.register(green) is green
    assert colours["green"] is green


def test_register_when_a_name_is_taken_then_value_error_and_the_first_stays(colours):
    first = colours["red"]

    def red() -> str:
        return "other"

    with pytest.raises(ValueError, match="colour 'red' is registered already"):
        colours.register(red)
    assert colours["red"] is first


def test_registry_when_read_then_it_is_a_sorted_mapping(colours):
    assert isinstance(colours, Mapping)
    assert list(colours) == ["blue", "dark_red", "red"]
    assert len(colours) == 3
    assert "red" in colours
    assert "green" not in colours
    assert colours.get("green") is None
    assert repr(colours) == "colour: blue, dark_red, red"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*", ["blue", "dark_red", "red"]), ("*red", ["dark_red", "red"]), ("x*", []), ("R*", [])],
)
def test_search_when_given_a_shell_pattern_then_the_names_that_match(colours, pattern, found):
    assert colours.search(pattern) == found


def test_getitem_when_the_name_is_unknown_then_the_nearest_and_all_are_told(colours):
    with pytest.raises(UnknownNameError) as caught:
        colours["rde"]
    assert str(caught.value) == (
        "unknown colour 'rde'. Did you mean 'red'? Known: blue, dark_red, red."
    )


@pytest.mark.parametrize("name", [None, 3, ["red"], ("red",)])
def test_getitem_when_the_name_is_no_text_then_unknown_name_error(colours, name):
    with pytest.raises(UnknownNameError):
        colours[name]


def test_package_when_imported_then_its_criteria_and_schedules_are_registered():
    assert {"magnitude", "l1", "l2", "fpgm", "random"} <= set(criteria)
    assert {"constant", "linear", "cubic"} <= set(schedules)


class NoSettings(Method):
    """Not declared as a dataclass."""


class NoUnit(Cost):
    def of(self, count: Count) -> float:
        return 1.0


class Letters(Cost):
    words = "watts"  # type: ignore[assignment]

    def of(self, count: Count) -> float:
        return 1.0


class Thief(Cost):
    words = ("things", "params")

    def of(self, count: Count) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("register", "given", "said"),
    [
        (schedules.register, lambda: 1.0, r"must be a function \(progress\), got \(\)"),
        (schedules.register, 0.5, "not a float"),
        (secateur.repairs.register, lambda system: system.weight, "damping"),
        (secateur.kinds.register, lambda groups: set(), r"\(inferred, groups\)"),
        (secateur.allocators.register, lambda: None, r"\(case\)"),
        (secateur.block_rankings.register, lambda model: [], "blocks, batches, skipped"),
        (secateur.methods.register, type("Plain", (), {}), "derived from secateur.Method"),
        (secateur.methods.register, NoSettings, "'no_settings'.*dataclass"),
        (cost, type("Plain", (), {}), "derived from Cost"),
        (cost, NoUnit, "'NoUnit' must say its unit in words"),
        (cost, Letters, "words must be a tuple of units, not 'watts'"),
        (cost, Thief, "the unit 'params' is of 'params'"),
    ],
)
def test_register_when_it_cannot_be_called_as_it_will_be_then_it_is_refused(
    register: Any, given: Any, said: str
) -> None:
    known = [*secateur.methods, *schedules, *secateur.kinds, *secateur.allocators, *COSTS]
    with pytest.raises(ValueError, match=said):
        register(given)
    assert known == [
        *(*secateur.methods, *schedules, *secateur.kinds, *secateur.allocators, *COSTS)
    ]


def test_prune_when_what_somebody_registered_returns_another_number_then_score_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for registry in (criteria, secateur.block_rankings, secateur.methods):
        monkeypatch.setattr(registry, "_functions", dict(registry._functions))
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(4, 8)

    @criteria.register
    def too_few(rows: Tensor) -> Tensor:
        return rows.abs().amax(1)[1:]

    with pytest.raises(ScoreError, match="criterion 'too_few' must return one score for each of"):
        secateur.prune(net, x, 0.5, "too_few")

    @secateur.block_rankings.register
    def none(model: Any, blocks: Any, batches: Any, skipped: Any) -> list[float]:
        return []

    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0) for _ in range(3)]
    y = torch.randn(2, 4, 8)
    with pytest.raises(ScoreError, match="the ranking 'none' must return a score for each of 3"):
        secateur.drop_blocks(nn.Sequential(*layers).eval(), 1, y, data=[y], by="none")

    @secateur.methods.register
    @dataclass(kw_only=True)
    class Elsewhere(Method):
        def scores(self) -> Mapping[str, Tensor]:
            return {"00": torch.ones(32)}

    config = secateur.Config(sparsity=0.5, method="elsewhere")
    with pytest.raises(ConfigError, match="'00', which is not selected. Did you mean '0'"):
        secateur.Pruner(net, config, x).step()


LINEAR, RELU = nn.Linear, nn.ReLU


def three_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(LINEAR(8, 32), RELU(), LINEAR(32, 16), RELU(), LINEAR(16, 8)).eval()


WRONG: dict[str, tuple[str, Any, str]] = {
    "a schedule that ends early": ("schedule", lambda progress: progress / 2, "must end at 1"),
    "a schedule that goes back": (
        "schedule",
        lambda progress: 1 - progress if progress < 1 else 1.0,
        "must never fall",
    ),
    "a schedule beyond the goal": ("schedule", lambda progress: 2 * progress, "from 0 to 1"),
    "a schedule without numbers": ("schedule", lambda progress: float("nan"), "from 0 to 1"),
    "a schedule of nothing": ("schedule", lambda progress: None, "gives None"),
    "a kind of nothing": ("what", lambda inferred, groups: None, "names of groups, not None"),
    "a kind of one name": ("what", lambda inferred, groups: "0", "names of groups, not '0'"),
    "a kind of other names": ("what", lambda inferred, groups: {"0", "00"}, "there is no '00'"),
    "an allocation of nothing": ("allocate", lambda case: None, "a function of a strength"),
    "too few shares": ("allocate", lambda case: lambda ratio: [ratio], "for each of the 2"),
    "shares above 1": ("allocate", lambda case: lambda ratio: [2.0, 2.0], "from 0 to 1"),
    "shares of nothing": ("allocate", lambda case: lambda ratio: [0.5] * 2, "nothing go at 0"),
    "no shares": ("allocate", lambda case: lambda ratio: None, "gives None"),
    "shares that fall": (
        "allocate",
        lambda case: lambda ratio: [ratio, ratio * (1 - ratio)],
        "none may fall",
    ),
    "a weight of another shape": (
        "repair",
        lambda system, *, damping: system.weight[:1],
        "must return a weight of shape",
    ),
    "no weight": ("repair", lambda system, *, damping: None, "not NoneType"),
    "a weight that is no number": (
        "repair",
        lambda system, *, damping: system.weight / 0 * system.mask,
        "NaN or infinite weights",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_prune_when_what_somebody_registered_returns_something_else_then_that_is_said(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, function, said = WRONG[case]
    registries = {
        "schedule": schedules,
        "what": secateur.kinds,
        "allocate": secateur.allocators,
        "repair": secateur.repairs,
    }
    for registry in registries.values():
        monkeypatch.setattr(registry, "_functions", dict(registry._functions))
    registries[setting].register_as("mine")(function)
    secateur.allocators.facts["mine"] = secateur.allocators.facts["owl"]
    net, x = three_layers(), torch.randn(64, 8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    calls = {
        "schedule": lambda: secateur.Config(sparsity=0.5, steps=4, schedule="mine"),
        "what": lambda: secateur.prune(net, x, 0.5, what=["mine"]),
        "allocate": lambda: secateur.prune(net, x, 0.5, of="params", allocate="mine"),
        "repair": lambda: secateur.prune(net, x, 0.5, data=[x, x], repair="mine"),
    }
    with pytest.raises((ConfigError, ScoreError), match=said):
        calls[setting]()
    assert all(torch.equal(before[name], now) for name, now in net.state_dict().items())


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0, None, 0.0])
def test_prune_when_a_cost_of_somebody_is_no_amount_then_config_error(
    amount: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mine(Cost):
        words = ("things",)

        def of(self, count: Count) -> float:
            return amount

    monkeypatch.setitem(COSTS, "mine", Mine)
    with pytest.raises(ConfigError, match="must return an amount|costs 0 of it"):
        secateur.prune(three_layers(), torch.randn(4, 8), 0.5, of="mine")


@pytest.mark.parametrize("score", [float("nan"), "0.5", None])
def test_drop_blocks_when_a_ranking_gives_no_numbers_then_score_error(
    score: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankings = secateur.block_rankings
    monkeypatch.setattr(rankings, "_functions", dict(rankings._functions))

    @rankings.register
    def mine(model: Any, blocks: Any, batches: Any, skipped: Any) -> list[Any]:
        return [score, *[0.5] * (len(blocks) - 1)]

    layers = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0) for _ in range(3)]
    y = torch.randn(2, 4, 8)
    with pytest.raises(ScoreError, match="the ranking 'mine' must return numbers"):
        secateur.drop_blocks(nn.Sequential(*layers).eval(), 1, y, data=[y], by="mine")


def test_prune_when_a_criterion_writes_to_its_rows_then_the_model_keeps_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(criteria, "_functions", dict(criteria._functions))
    monkeypatch.setattr(criteria, "facts", dict(criteria.facts))

    @criteria.register
    def in_place(rows: Tensor) -> Tensor:
        return rows.abs_().sum(1)

    @criteria.register
    def in_place_of_grad(rows: Tensor, *, grad: Tensor) -> Tensor:
        return grad.mul_(rows).abs_().sum(1)

    x = torch.randn(4, 8)
    for name, granularity in itertools.product(
        ["in_place", "in_place_of_grad"], ["group", "out_channel"]
    ):
        net = three_layers()
        net(x).square().mean().backward()
        before = {n: (p.clone(), p.grad.clone()) for n, p in net.named_parameters()}
        pruner = secateur.Pruner(
            net, secateur.Config(sparsity=0.5, criterion=name, granularity=granularity), x
        )
        pruner.calibrate([x], loss=lambda model, batch: model(batch).square().mean())
        pruner.decide()
        for n, p in net.named_parameters():
            assert torch.equal(p, before[n][0])
            assert torch.equal(p.grad, before[n][1])


HOOKS: dict[str, tuple[str, Any, str]] = {
    "a penalty that is a number": ("penalty", lambda self: 0.5, "penalty.. must return a tensor"),
    "a penalty of many numbers": ("penalty", lambda self: torch.ones(3), r"not \(3,\)"),
    "no scores": ("scores", lambda self: None, "must return tensors by name, not None"),
    "scores in a list": ("scores", lambda self: {"0": [1.0]}, "a tensor of 32 scores, not list"),
    "too few scores": ("scores", lambda self: {"0": torch.ones(3)}, r"32 scores, not \(3,\)"),
}


@pytest.mark.parametrize("case", HOOKS)
def test_pruner_when_a_hook_of_a_method_returns_something_else_then_config_error(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, hook, said = HOOKS[case]
    monkeypatch.setattr(secateur.methods, "_functions", dict(secateur.methods._functions))
    secateur.methods.register(dataclass(kw_only=True)(type("Mine", (Method,), {name: hook})))
    net, x = three_layers(), torch.randn(4, 8)
    pruner = secateur.Pruner(net, secateur.Config(sparsity=0.5, method="mine", steps=2), x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).sum().backward()
    with pytest.raises(ConfigError, match=said):  # noqa: PT012
        optimizer.step()
        pruner.step()


def test_register_when_a_hook_of_a_method_is_misspelt_then_value_error() -> None:
    kind = type("Mine", (Method,), {"penality": lambda self: None})
    with pytest.raises(ValueError, match=r"nothing calls penality\(\). Did you mean 'penalty'"):
        secateur.methods.register(dataclass(kw_only=True)(kind))


@pytest.mark.parametrize("made", [[1.0], None, torch.ones(32, dtype=torch.complex64)])
def test_prune_when_a_criterion_returns_no_scores_then_score_error(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(criteria, "_functions", dict(criteria._functions))
    monkeypatch.setattr(criteria, "facts", dict(criteria.facts))

    @criteria.register
    def mine(rows: Tensor) -> Any:
        return made

    with pytest.raises(ScoreError, match="must return one score for each of"):
        secateur.prune(three_layers(), torch.randn(4, 8), 0.5, "mine")
