"""What a forward writes is forgotten after every trace and trial, and each starts from the same."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.runtime.forward import undisturbed

SHARED: dict[str, Any] = {"last": None}


class Net(nn.Module):
    """Two layers, and between them what a form does with the hidden tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("mean", torch.zeros(16))
        self.set_up()

    def set_up(self) -> None: ...

    def between(self, x: Tensor, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(x, self.first(x).relu()))


class BufferAssigned(Net):
    def between(self, x, h):
        self.mean = 0.9 * self.mean + h.mean(0)
        return h + self.mean


class BufferInPlace(Net):
    def between(self, x, h):
        self.mean.mul_(0.9).add_(h.mean(0))
        self.mean[0:1] = self.mean[0:1] * 2
        return h + self.mean


class BufferData(Net):
    def between(self, x, h):
        self.mean.data.add_(h.mean(0))
        self.mean.data = self.mean.data * 2
        return h + self.mean


class BufferByNumpy(Net):
    def between(self, x, h):
        self.mean.numpy()[:] += 0.0
        self.mean.numpy()[0] = 0.0
        return h + self.mean.copy_(h.mean(0))


class BufferRegistered(Net):
    def between(self, x, h):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.ones(8), persistent=False)
        return h * self.table.sum()


class Attributes(Net):
    def set_up(self) -> None:
        self.calls = 0

    def between(self, x, h):
        self.calls += 1
        self.shape, self.kept, self.by_size = x.shape, h, {x.shape[1]: h}
        return h * self.calls


class Containers(Net):
    def set_up(self) -> None:
        self.list, self.deque, self.set = [], deque(maxlen=2), set()
        self.ordered, self.by_name = OrderedDict(), defaultdict(list)

    def between(self, x, h):
        self.list.append(h)
        self.deque.append(x.shape[0])
        self.set.add(x.shape[1])
        self.ordered[x.shape] = 1
        self.by_name["h"].append(h.mean())
        return h * len(self.list) + len(self.by_name["h"])


class Slots:
    __slots__ = ("calls", "kept")

    def __init__(self) -> None:
        self.calls, self.kept = 0, None


class Objects(Net):
    def set_up(self) -> None:
        self.object, self.slots = SimpleNamespace(calls=0, sums=[torch.zeros(3)]), Slots()

    def between(self, x, h):
        self.object.calls += 1
        self.object.sums[0].add_(1)
        self.slots.calls, self.slots.kept = self.slots.calls + 1, h
        return h * self.object.calls * self.slots.calls + self.object.sums[0].sum()


class Numbers(Net):
    def set_up(self) -> None:
        self.torch, self.python = torch.Generator().manual_seed(3), random.Random(1)

    def between(self, x, h):
        drawn = torch.rand(1, generator=self.torch) + torch.rand(1)
        return h * drawn * (self.python.random() + random.random())

    def __deepcopy__(self, memo: Any) -> Numbers:  # torch's generators cannot be copied
        new = type(self)()
        new.load_state_dict(self.state_dict())
        return new


class ParametersInPlace(Net):
    def between(self, x, h):
        with torch.no_grad():
            self.last.weight.mul_(0.5)
        self.last.bias.data.clamp_(-0.1, 0.1)
        return h


class ParameterData(Net):
    def between(self, x, h):
        if not hasattr(self.last.weight, "whole"):
            self.last.weight.whole = self.last.weight.data.clone()
        self.last.weight.data = self.last.weight.whole.sign() * 0.1
        return h


class Average(Net):
    def set_up(self) -> None:
        self.slow = nn.Linear(8, 16)

    def between(self, x, h):
        for slow, fast in zip(self.slow.parameters(), self.first.parameters(), strict=True):
            slow.data.mul_(0.9).add_(fast.data, alpha=0.1)
        return h + self.slow(x)


class ModesAndHooks(Net):
    def set_up(self) -> None:
        self.norm = nn.BatchNorm1d(16)

    def between(self, x, h):
        self.first.register_forward_hook(lambda *_: None)
        self.extra = nn.Identity()
        return self.norm.train().requires_grad_(False)(h)


class OwnInput(Net):
    def forward(self, x):
        return super().forward(x.mul_(2))


class Globals(Net):
    def between(self, x, h):
        SHARED["last"] = h
        type(self).seen = h
        return h


FORMS = Net.__subclasses__()


def state_of(x: Any, seen: dict[int, Any]) -> Any:
    """Return all that an object holds, by value."""
    if isinstance(x, Tensor):
        grad = None if not x.is_leaf or x.grad is None else x.grad.tolist()
        return x.detach().tolist(), x.requires_grad, grad, sorted(vars(x))
    if isinstance(x, (int, float, str, type(None), torch.dtype)) or id(x) in seen:
        return type(x).__name__, str(x) if id(x) not in seen else ""
    seen[id(x)] = x
    if isinstance(x, dict):
        return [(repr(k), type(k).__name__, state_of(v, seen)) for k, v in x.items()]
    if isinstance(x, (list, tuple, set, deque)):
        return type(x).__name__, [state_of(part, seen) for part in x]
    if isinstance(x, torch.Generator):
        return x.get_state().tolist()
    if isinstance(x, random.Random):
        return x.getstate()
    if isinstance(x, Slots):
        return x.calls, state_of(x.kept, seen)
    return type(x).__name__, state_of(getattr(x, "__dict__", None), seen)


def everything(model: nn.Module) -> Any:
    shared = state_of(SHARED, {}), sorted(vars(type(model)))
    return state_of(model, {}), shared, torch.get_rng_state().tolist(), random.getstate()


@pytest.mark.parametrize("form", FORMS)
def test_prune_when_a_forward_writes_state_then_the_model_is_as_before_and_it_verifies(form):
    model, x = form().train(), torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    given, before = x.clone(), everything(model)
    structure = sc.analyze(model, x)
    assert everything(model) == before
    result = sc.apply_plan(
        model, sc.Plan({g.name: tuple(range(g.size // 2)) for g in structure.exact}), x
    )
    assert everything(model) == before
    assert torch.equal(x, given)
    assert result.verification.passed
    assert not set(result.model.state_dict()) ^ set(model.state_dict())


@pytest.mark.parametrize("form", [Attributes, Containers, BufferAssigned, Objects])
def test_prune_when_the_model_was_run_with_gradients_then_it_is_pruned_all_the_same(form):
    model, x = form(), torch.randn(3, 8)
    model(x).sum().backward()
    before = everything(model)
    sc.analyze(model, x)
    sc.apply_plan(model, sc.Plan({}), x)
    assert everything(model) == before


def test_undisturbed_when_a_backward_runs_inside_then_gradients_are_as_before():
    model, x = Net(), torch.randn(3, 8)
    model(x).sum().backward()
    before = everything(model)
    with undisturbed(model):
        model(x).sum().backward()
        model.last.weight.grad = None
    assert everything(model) == before


def test_undisturbed_when_a_hook_tells_somebody_else_then_it_was_told():
    model, told = Net(), []
    model.register_forward_hook(lambda *_: told.append("it ran"))
    with undisturbed(model):
        model(torch.randn(3, 8))
    assert told == ["it ran"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undisturbed_when_parameters_are_only_read_then_none_is_copied(dtype):
    model = Net().to(dtype)
    with undisturbed(model) as apart:
        model(torch.randn(3, 8, dtype=dtype))
        copied = {id(apart.writes._memory[key]) for key in apart.writes._copies}
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    assert weights.isdisjoint(apart.writes._copies)
    assert len(copied) == 1  # a small buffer
