"""Models that hold functions and objects which refer to the model: a copy computes with its own."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import CopyError
from secateur.runtime.copying import copied

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block()).eval()


def closure(model: nn.Sequential) -> None:
    old = model[0].forward
    model[0].forward = lambda x: old(x)


def wrapped(model: nn.Sequential) -> None:
    old = model[0].forward

    @functools.wraps(old)
    def timed(*args: Any, **kwargs: Any) -> Tensor:
        return old(*args, **kwargs)

    model[0].forward = timed


def bound_function(model: nn.Sequential) -> None:
    block = model[0]
    model[0].forward = types.MethodType(lambda self, x: x + block.down(block.up(x).relu()), block)


def default(model: nn.Sequential) -> None:
    def forward(x: Tensor, block: nn.Module = model[0]) -> Tensor:
        return x + block.down(block.up(x).relu())

    model[0].forward = forward


def keyword_default(model: nn.Sequential) -> None:
    def forward(x: Tensor, *, old: Any = model[0].forward) -> Tensor:
        return old(x)

    model[0].forward = forward


def of_a_partial(model: nn.Sequential) -> None:
    old = model[0].forward
    model[0].forward = functools.partial(lambda scale, x: old(x) * scale, 1.0)


def global_name(model: nn.Sequential) -> None:
    space = {"old": model[0].forward, "__name__": "notebook"}
    exec("def inner(x): return old(x)\ndef forward(x): return inner(x)", space)
    model[0].forward = space["forward"]


def through_functions(model: nn.Sequential) -> None:
    parts = {"layers": [model[0].up, (torch.relu, model[0].down)]}

    def inner(x: Tensor) -> Tensor:
        up, (act, down) = parts["layers"]
        return down(act(up(x)))

    model[0].forward = lambda x: x + inner(x)


def of_itself(model: nn.Sequential) -> None:
    old = model[0].forward

    def forward(x: Tensor, again: int = 1) -> Tensor:
        return forward(x, again - 1) if again else old(x)

    model[0].forward = forward


def hook(model: nn.Sequential) -> None:
    other = model[1]
    model[0].register_forward_hook(lambda module, args, out: out + other.up(args[0])[:, :8])


def pre_hook(model: nn.Sequential) -> None:
    weight = model[0].up.weight
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + weight[:6].mean(),))


def method_of_a_parameter(model: nn.Sequential) -> None:
    block, product = model[0], model[0].up.weight.matmul

    def forward(x: Tensor) -> Tensor:
        return x + block.down((product(x.T).T + block.up.bias).relu())

    model[0].forward = forward


def weak_reference(model: nn.Sequential) -> None:
    model[1].before = weakref.ref(model[0])

    def forward(self: Any, x: Tensor) -> Tensor:
        return x + self.before().down(self.up(x).relu()) + self.down(self.up(x).relu())

    model[1].forward = types.MethodType(forward, model[1])


class Patch:
    def __init__(self, model: nn.Sequential):
        self.model, self.calls = model, 0

    def run(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.model[0].down(self.model[0].up(x).relu())


def outside(model: nn.Sequential) -> None:
    patch = Patch(model)
    model[0].forward = lambda x: patch.run(x)


def in_tables(model: nn.Sequential) -> None:
    block = model[0]
    block.acts = {"first": [(lambda x: block.up(x).relu(), model[1])]}
    block.forward = types.MethodType(
        lambda self, x: x + self.down(self.acts["first"][0][0](x)), block
    )


FORMS = [
    *(closure, wrapped, bound_function, default, keyword_default, of_a_partial, global_name),
    *(through_functions, of_itself, hook, pre_hook, method_of_a_parameter, weak_reference, outside),
    in_tables,
]


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def patched(request: pytest.FixtureRequest) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        model = net()
        request.param(model)
        return model

    return make


def test_copied_when_a_function_refers_to_the_model_then_each_computes_with_its_own(patched):
    model = patched()
    dense = model(X)
    copy = copied(model)
    for each, other in ((copy, model), (model, copy)):
        torch.testing.assert_close(each(X), dense)
        for name, parameter in each.named_parameters():
            before, there = each(X), other(X)
            held = parameter.data
            parameter.data = torch.randn_like(held)
            assert not torch.equal(each(X), before), name
            assert torch.equal(other(X), there), name
            parameter.data = held


def test_copied_when_what_a_function_holds_is_none_of_the_model_then_it_is_shared():
    model, seen = net(), list[int]()
    old = model[0].forward

    def forward(x: Tensor) -> Tensor:
        seen.append(len(x))
        return old(x)

    model[0].forward = forward
    copied(model)(X)
    assert seen == [len(X)]


def test_copied_when_an_object_outside_refers_to_the_model_then_its_own_model_stays():
    model = net()
    patch = Patch(model)
    model[0].forward = lambda x: patch.run(x)
    copied(model)(X)
    assert patch.model is model
    assert patch.calls == 0


@pytest.mark.parametrize("data", [None, [X] * 4], ids=["", "data"])
def test_prune_when_a_function_refers_to_the_model_then_a_copy_is_what_is_cut_in_place(
    patched, data, tmp_path
):
    small = sc.prune(patched(), X, 0.5, data=data)
    assert small.verification is not None
    assert small.verification.passed
    assert small.after.params < small.before.params
    here = patched()
    place = sc.prune(here, X, 0.5, data=data, inplace=True)
    torch.testing.assert_close(small.model(X), place.model(X))
    small.save(tmp_path / "small")
    torch.testing.assert_close(sc.load_pruned(tmp_path / "small", patched())(X), small.model(X))
    computed = small.model(X)
    small.model.load_state_dict({n: v * 2 for n, v in small.model.state_dict().items()})
    assert not torch.allclose(small.model(X), computed)


def of_its_class(model: nn.Sequential) -> None:
    block = model[0]

    class Patched(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + block.down(block.up(x).relu())

    block.__class__ = Patched


class Slots:
    __slots__ = ("block",)

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.block.down(self.block.up(x).relu())

    def __deepcopy__(self, memo: Any) -> Slots:
        return self


def hidden(model: nn.Sequential) -> None:
    model[0].forward = Slots(model[0])


@pytest.mark.parametrize("form", [of_its_class, hidden])
@pytest.mark.parametrize("data", [None, [X] * 4], ids=["", "data"])
def test_prune_when_a_copy_computes_with_its_original_then_copy_error_and_in_place_it_is_cut(
    form, data
):
    model = net()
    form(model)
    dense = model(X)
    with pytest.raises(CopyError, match=r"does not compute with its own '0\..*inplace=True"):
        sc.prune(model, X, 0.5, data=data)
    assert torch.equal(model(X), dense)
    assert sc.prune(model, X, 0.5, inplace=True).after.params < 1104


@pytest.mark.parametrize("form", [of_its_class, hidden])
def test_apply_plan_when_a_copy_computes_with_its_original_then_copy_error(form):
    model = net()
    form(model)
    plan = sc.Plan({"0.up": range(10)})
    with pytest.raises(CopyError, match="does not compute with its own"):
        sc.apply_plan(model, plan, X)


def test_prune_when_an_expert_is_not_chosen_then_no_copy_is_suspected():
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.experts[int(x[0, 0] > 1e9)](x) + self.experts[2](x)

    torch.manual_seed(0)
    result = sc.prune(Chosen().eval(), X, 0.5)
    assert result.verification is not None
    assert result.verification.passed
