"""A name for a function: one decorator, near names, shell patterns."""

from __future__ import annotations

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
