"""Small models around one operation: what groups they have, and what cutting them does.

Models are in float64 and every parameter and statistic is random, so that a wrong rule shows in
the output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.graph.groups import Group
from secateur.shrinking import Plan, Result, cut_and_verify, group_masks
from secateur.shrinking.result import MASKED
from secateur.structure import Structure, analyze

FC = {"first": 8, "mid": 6}
GROUPED = {"first": 4, "first[1]": 2, "mid": 3}
HALVES = {"first": 4, "first[1]": 4}
LITERAL = "written in the code"


class Net(nn.Module):
    """A model from a function of itself and its inputs, and what it holds."""

    def __init__(self, function: Callable[..., Any], **held: Any):
        super().__init__()
        self._function = function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self, *args, **kwargs)


@dataclass
class Case:
    """A model, an input, and its groups: name → size, or name → words of the reason."""

    model: nn.Module
    example: Any
    exact: dict[str, int] = field(default_factory=lambda: {"first": 8})
    inexact: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return model.double().eval()


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def chain(first: nn.Module, op: Any, last: nn.Module, example: Any, held: dict[str, Any]) -> Case:
    groups = {k: held.pop(k) for k in ("exact", "inexact", "frozen") if k in held}
    model = Net(lambda m, x: m.last(op(m, m.first(x))), first=first, **held, last=last)
    return Case(model, example, **groups)


def channels(op: Any, space: int = 2, width: int = 8, after: int = 8, **held: Any) -> Case:
    """A convolution, the operation ``op(model, x)``, and a convolution that reads it."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
    example = numbers(2, 3, *[6] * space)
    return chain(conv(3, width, 1), op, conv(after, 2, 1), example, held)


def features(op: Any, width: int = 8, after: int = 8, **held: Any) -> Case:
    """A linear layer, the operation ``op(model, x)``, and a linear layer that reads it."""
    return chain(nn.Linear(3, width), op, nn.Linear(after, 2), numbers(4, 3), held)


def layer(module: nn.Module, space: int = 2, **more: Any) -> Case:
    """The same with a layer of its own between two convolutions."""
    return channels(lambda m, x: m.mid(x), space, mid=module, **more)


def attend(op: Any, width: int = 8, **held: Any) -> Case:
    """Queries, keys and values from three linear layers; ``op(model, q, k, v)``; one that reads."""
    groups = {k: held.pop(k) for k in ("exact", "inexact", "frozen") if k in held}
    layers = {name: nn.Linear(3, width) for name in "qkv"}
    model = Net(
        lambda m, x: m.out(op(m, m.q(x), m.k(x), m.v(x))), **layers, **held, out=nn.Linear(width, 2)
    )
    return Case(model, numbers(2, 5, 3), **groups)


def two(op: Any, a: int = 8, b: int = 8, after: int = 8, **groups: Any) -> Case:
    """Two linear layers of one input, ``op(a(x), b(x))``, and a linear layer that reads it."""
    model = Net(
        lambda m, x: m.c(op(m.a(x), m.b(x))),
        a=nn.Linear(3, a),
        b=nn.Linear(3, b),
        c=nn.Linear(after, 2),
    )
    return Case(model, numbers(4, 3), **groups)


def heads(x: Tensor, *grid: int) -> Tensor:
    return x.view(2, 5, *grid).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(2, 5, -1)


def structure_of(case: Case) -> Structure:
    return analyze(randomised(case.model), case.example)


def cut_half(case: Case, structure: Structure, groups: Iterable[Group]) -> Result:
    """Cut a random half of each group, and of those that must keep as many, and verify."""
    generator = torch.Generator().manual_seed(0)
    names = {name for g in groups for name in (g.name, *g.sized)}
    keeps = {}
    for name in sorted(names):
        size = structure[name].size
        order = torch.randperm(size, generator=generator)
        keeps[name] = torch.zeros(size, dtype=torch.bool)
        keeps[name][order[: (size + 1) // 2]] = True
    return cut_and_verify(
        copy.deepcopy(case.model),
        structure,
        Plan.from_keeps(structure, keeps),
        group_masks(structure, keeps),
        case.example,
        notes=[],
        verify=True,
    )


def over(cases: Mapping[str, Any]) -> Any:
    """Parametrise a test over the values of a table, by their names."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def check(case: Case) -> None:
    """Assert that a case has the groups that it names, and that cutting them does what they say."""
    structure = structure_of(case)
    assert {g.name: g.size for g in structure.exact} == case.exact
    assert {g.name for g in structure.groups if not g.exact} == set(case.inexact)
    for name, words in case.inexact.items():
        assert words in structure[name].inexact.why
    for name, words in case.frozen.items():
        assert words in structure[name].frozen.why
    assert not structure.unknown
    _check_exact(case, structure)
    _check_inexact(case, structure)


def _check_exact(case: Case, structure: Structure) -> None:
    together = [structure.exact] if structure.exact else []
    for groups in (*together, *([g] for g in structure.exact)):
        result = cut_half(case, structure, groups)
        assert result.verification.exact
        assert result.verification.passed
        assert result.verification.difference < 1e-10
        if any(g.size > 1 for g in groups):
            left = sum(p.numel() for p in result.model.parameters())
            assert left == result.after.params < result.before.params


def _check_inexact(case: Case, structure: Structure) -> None:
    for name in case.inexact:
        result = cut_half(case, structure, [structure[name]])
        if structure[name].chosen:  # what is compared never chooses what went
            assert result.verification.exact
            assert result.verification.passed
            assert result.compared_with != MASKED
            continue
        assert not result.verification.exact
        assert result.verification.difference > 1e-6
        assert any(name in note and "inexact" in note for note in result.notes)
