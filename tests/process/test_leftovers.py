"""After a result is dropped nothing of the library is left in the process."""

from __future__ import annotations

import gc
import math
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.masks import masking
from secateur.masks.classes import _Masked

from .process import changed, process_state

X = torch.ones(2, 8)


def model() -> nn.Module:
    class Own(nn.Sequential):
        """A class that nobody else holds."""

    return Own(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def prune(net: nn.Module) -> Any:
    return sc.prune(net, X, 0.5)


def prune_in_place(net: nn.Module) -> Any:
    return sc.prune(net, X, 0.5, inplace=True)


def with_data(net: nn.Module) -> Any:
    return sc.prune(net, X, 0.5, data=[torch.rand(4, 8) for _ in range(3)])


def in_a_loop(net: nn.Module) -> Any:
    pruner = sc.Pruner(net, {"sparsity": 0.5, "steps": 2, "schedule": "linear"}, X)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        net(X).sum().backward()
        optimizer.step()
        pruner.step()
    return pruner


def finished(net: nn.Module) -> Any:
    return in_a_loop(net).finish(inplace=False)


def analyzed(net: nn.Module) -> Any:
    return sc.analyze(net, X)


@pytest.mark.parametrize(
    "job",
    [
        with_data,
        in_a_loop,
        *(pytest.param(f, marks=pytest.mark.slow) for f in (analyzed, prune, prune_in_place)),
        pytest.param(finished, marks=pytest.mark.slow),
    ],
    ids=lambda f: f.__name__,
)
def test_process_when_what_was_made_is_dropped_then_nothing_is_left(
    job: Callable[[nn.Module], Any],
) -> None:
    job(model())
    gc.collect()
    before = {k: v for k, v in process_state().items() if not k.endswith("numbers")}
    for _ in range(3):
        net = model()
        kind, made = weakref.ref(type(net)), job(net)
        alive = [weakref.ref(net), weakref.ref(made), kind]
        del net, made
        gc.collect()
        assert [each() for each in alive] == [None] * 3
    after = {k: v for k, v in process_state().items() if not k.endswith("numbers")}
    assert changed(before, after) == []


def test_masked_classes_when_models_are_dropped_then_they_are_gone() -> None:
    def classes() -> int:
        gc.collect()
        return len(type.__subclasses__(_Masked))

    def put_on() -> None:
        class Layer(nn.Linear):
            """Of one model."""

        net = nn.Sequential(Layer(4, 4))
        masking.put_on(net, {"0.weight": torch.eye(4)})

    put_on()
    before = classes()
    for _ in range(5):
        put_on()
    assert classes() == before


def test_hook_of_optimizers_when_a_pruner_dies_in_a_step_then_the_step_goes_on() -> None:
    gc.collect()
    prune_in_place(model())  # what other tests have left goes with the next object that is made
    before = process_state()["hooks of optimizers"]
    net, other = model(), nn.Linear(2, 2)
    held = [sc.Pruner(net, {"sparsity": 0.5}, X)]
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: held.clear())
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert held == []
    del net
    prune_in_place(model())
    gc.collect()
    assert process_state()["hooks of optimizers"] <= before


@pytest.mark.parametrize("hidden", [(), ("0",)])
def test_hooks_when_a_teacher_is_dropped_then_the_model_has_none(hidden: tuple[str, ...]) -> None:
    net = model().train()
    told = sc.Distillation(net, hidden=hidden)
    loss = told(net(X).sum())
    teacher = weakref.ref(told.teacher)
    assert net._forward_hooks
    del told, loss
    gc.collect()
    assert teacher() is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_math_when_a_forward_imports_a_module_then_it_keeps_the_real_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_late.py").write_text("from math import gcd, isqrt, log\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    class Late(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            import imported_late  # type: ignore[import-not-found]

            return super().forward(x) / imported_late.log(x.shape[1] + 1)

    sc.prune(nn.Sequential(Late(8, 16), nn.ReLU(), nn.Linear(16, 4)), X, 0.5)
    late = sys.modules.pop("imported_late")
    assert [late.gcd, late.isqrt, late.log] == [math.gcd, math.isqrt, math.log]
