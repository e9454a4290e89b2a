"""The same optimizer after a cut: its next steps are the masked model's, for what is left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import OptimizerError
from secateur.masks import masking
from secateur.shrinking.slices import Slices

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Net(nn.Module):
    """Convolutions, a norm, a square weight, and a parameter that is no module's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)  # a norm would undo one
        self.norm = nn.BatchNorm2d(8)
        self.next = nn.Conv2d(8, 12, 1)
        self.scale = nn.Parameter(torch.ones(12))
        self.square = nn.Linear(12, 12)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(self.norm(self.conv(x)).relu()).mean((2, 3)) * self.scale
        return self.last(self.square(x).tanh())


OPTIMIZERS: dict[str, Make] = {
    "sgd": partial(torch.optim.SGD, lr=0.1),
    "sgd with momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "amsgrad": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "foreach": partial(torch.optim.AdamW, lr=0.01, foreach=True),
    "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "capturable lr": partial(torch.optim.Adam, lr=torch.tensor(0.01), foreach=False),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": partial(torch.optim.RMSprop, momentum=0.9, centered=True),
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(X), Y)
    loss.backward()
    optimizer.step()
    return loss


def trained(make: Make, steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    model = Net()
    names = dict(model.named_parameters())
    groups: Any = [
        {"params": [p for n, p in names.items() if "norm" in n or "scale" in n], "lr": 0.003},
        {"params": [p for n, p in names.items() if not ("norm" in n or "scale" in n)]},
    ]
    optimizer = make(groups)
    for _ in range(steps):
        loss = step(model, optimizer)
    return model, optimizer, loss


def pair(make: Make) -> tuple[nn.Module, Any, sc.Result, nn.Module, Any]:
    """Return a masked model and its cut twin, each with its own optimizer and the same past."""
    masked, before, _ = trained(make)
    model, optimizer, loss = trained(make)
    result = sc.prune(model, X, sparsity=0.5, inplace=True)
    assert loss.grad_fn is not None  # the last graph is alive
    masking.put_on(masked, result.masks)
    return masked, before, result, model, optimizer


def assert_left(masked: nn.Module, result: sc.Result, *, rtol: float = 1e-4) -> None:
    slices, small = Slices(result.structure, result.plan), dict(result.model.named_parameters())
    for name, parameter in masked.named_parameters():
        expected = slices.of(name, parameter.detach())
        torch.testing.assert_close(small[name].detach(), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_step_when_the_state_was_cut_then_it_is_the_masked_ones(make):
    masked, before, result, model, optimizer = pair(make)
    sc.cut_optimizer(optimizer, result)
    for _ in range(2):
        step(masked, before)
        step(model, optimizer)
    assert_left(masked, result)
    assert model.conv.out_channels == 4
    assert [len(g["params"]) for g in optimizer.param_groups] == [3, 7]


class Factored(torch.optim.Optimizer):
    """A plain factored second moment, as Adafactor's without its scales by the tensor's size."""

    def __init__(self, params: Any, lr: float = 0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state, square = self.state[p], p.grad.square() + 1e-30
                if p.ndim < 2:
                    state["v"] = state.get("v", 0) * 0.9 + square * 0.1
                    p.sub_(group["lr"] * p.grad / state["v"].sqrt())
                    continue
                matrix = square.flatten(1)
                old = state.get("moments", (0, 0))
                rows, columns = (old[i] * 0.9 + matrix.mean(1 - i) * 0.1 for i in range(2))
                state["moments"] = rows, columns
                second = (rows[:, None] * columns / rows.mean()).view_as(p)
                p.sub_(group["lr"] * p.grad / second.sqrt())


@pytest.mark.parametrize("kind", ["torch", "transformers"])
def test_step_when_the_state_is_factored_then_what_is_left_has_the_masked_ones_estimates(kind):
    # masked from the start: rows that are gone have no past, and neither have their means
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 4))
    x, mine, theirs = X.flatten(1), copy.deepcopy(dense), copy.deepcopy(dense)
    structure = sc.analyze(dense, x)
    plan = sc.Plan({g.name: tuple(range(0, g.size, 2)) for g in structure.groups})
    masks = plan.masks(structure)

    def make(model: nn.Module) -> torch.optim.Optimizer:
        if kind == "torch":  # far below the size at which it clips, and scaled by nothing
            return torch.optim.Adafactor(model.parameters(), lr=1e-3, d=1e9, eps=(None, 1.0))
        from transformers.optimization import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1e9}
        return Adafactor(model.parameters(), lr=1e-3, beta1=0.9, **fixed)

    def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), Y).backward()
            optimizer.step()

    optimizers = [make(mine), make(theirs)]
    for model, optimizer in zip((mine, theirs), optimizers, strict=True):
        masking.put_on(model, masks)
        learn(model, optimizer, 3)
    masking.take_off(mine)
    small = sc.shrink(mine, masks, x, inplace=True)
    sc.cut_optimizer(optimizers[0], small)
    learn(mine, optimizers[0], 2)
    learn(theirs, optimizers[1], 2)
    assert_left(theirs, small)


def test_cut_when_a_weight_is_square_then_rows_and_columns_are_not_mixed_up():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adafactor(net.parameters())
    net(torch.randn(4, 5)).square().mean().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state[net[2].weight])
    structure = sc.analyze(net, torch.zeros(1, 5))
    plan = sc.Plan({"0": (0, 1, 6, 7), "2": (2, 3)})
    result = sc.shrink(net, plan.masks(structure), torch.zeros(1, 5), inplace=True)
    sc.cut_optimizer(optimizer, result)
    left = optimizer.state[net[2].weight]
    assert torch.allclose(left["row_var"], state["row_var"][[2, 3]] * 8 / 4)  # means of fewer
    assert torch.allclose(left["col_var"], state["col_var"][:, [0, 1, 6, 7]] * 8 / 2)
    assert torch.equal(left["step"], state["step"])


def test_cut_when_the_state_is_nested_then_what_is_inside_is_cut():
    model, optimizer, _ = trained(Factored)
    result = sc.prune(model, X, sparsity=0.5, inplace=True)
    sc.cut_optimizer(optimizer, result)
    rows, columns = optimizer.state[model.square.weight]["moments"]
    assert rows.shape == columns.shape == (6,)
    step(model, optimizer)


@pytest.mark.parametrize("make", [OPTIMIZERS["adamw"], torch.optim.Adafactor], ids=["adamw", "af"])
def test_cut_when_it_is_asked_for_twice_then_the_second_changes_nothing(make):
    model, optimizer, _ = trained(make)
    result = sc.prune(model, X, sparsity=0.5, inplace=True)
    sc.cut_optimizer(optimizer, result)
    once = copy.deepcopy(optimizer.state_dict())
    sc.cut_optimizer(optimizer, result)
    twice = optimizer.state_dict()
    for index, state in once["state"].items():
        for key, value in state.items():
            assert torch.equal(value, twice["state"][index][key])


def test_cut_when_there_are_two_then_each_is_followed():
    model, optimizer, _ = trained(OPTIMIZERS["adamw"])
    first = sc.prune(model, X, sparsity=0.5, inplace=True)
    second = sc.prune(model, X, sparsity=0.5, inplace=True)
    sc.cut_optimizer(optimizer, first)
    sc.cut_optimizer(optimizer, second)
    step(model, optimizer)
    assert optimizer.state[model.conv.weight]["exp_avg"].shape == (2, 3, 3, 3)


@pytest.mark.parametrize("make", [OPTIMIZERS["sgd with momentum"], OPTIMIZERS["foreach"]])
@pytest.mark.parametrize("cuts", [1, 2])
def test_step_when_the_state_was_not_cut_then_the_error_names_the_way(make, cuts):
    model, optimizer, _ = trained(make)
    for _ in range(cuts):
        sc.prune(model, X, sparsity=0.5, inplace=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptimizerError, match=r"secateur\.cut_optimizer\(optimizer, result\)"):
        step(model, optimizer)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(before[name], p) for name, p in parameters.items())


def test_step_when_the_optimizer_is_new_or_has_loaded_the_cut_state_then_it_steps():
    model, optimizer, _ = trained(OPTIMIZERS["adamw"])
    result = sc.prune(model, X, sparsity=0.5, inplace=True)
    sc.cut_optimizer(optimizer, result)
    fresh = torch.optim.AdamW(
        [{"params": group["params"]} for group in optimizer.param_groups], lr=0.01
    )
    fresh.load_state_dict(optimizer.state_dict())
    step(model, fresh)
    step(model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize(
    "make", [torch.optim.LBFGS, partial(torch.optim.LBFGS, history_size=3)], ids=["first", "few"]
)
def test_cut_when_the_state_is_of_all_parameters_at_once_then_the_error_says_so(make):
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(X), Y)
        loss.backward()
        return loss

    optimizer.step(closure)
    result = sc.prune(model, X, sparsity=0.5, inplace=True)
    with pytest.raises(OptimizerError, match="Make a new optimizer"):
        sc.cut_optimizer(optimizer, result)
    with pytest.raises(OptimizerError, match="cut_optimizer"):
        optimizer.step(closure)


class Elsewhere(torch.optim.Optimizer):
    """Momentum that is kept where ``where`` says."""

    def __init__(self, parameters: Any, where: str):
        super().__init__(parameters, {"lr": 0.01})
        self.where, self.moments = where, list[Tensor]()

    def kept(self, group: dict[str, Any], at: int, parameter: Tensor) -> Tensor:
        zeros = [torch.zeros_like(p) for p in group["params"]]
        if self.where == "a group":
            return group.setdefault("moments", zeros)[at]
        if self.where == "an attribute":
            self.moments = self.moments or zeros
            return self.moments[at]
        if self.where == "a dict by name":
            return self.__dict__.setdefault("by_name", {}).setdefault(str(at), zeros[at])
        return self.state[parameter].setdefault("moment", torch.zeros(parameter.numel()))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for at, parameter in enumerate(group["params"]):
                moment = self.kept(group, at, parameter).view_as(parameter)
                moment.mul_(0.9).add_(parameter.grad)
                parameter.sub_(group["lr"] * moment)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("a group", r"param_groups\[0\]\['moments'\]\[0\], as large as '0\.\w+' was"),
        ("an attribute", r"moments\[0\], as large as '0\.\w+' was"),
        ("a dict by name", r"by_name\['0'\], as large as '0\.\w+' was"),
        ("the state, flat", r"\['moment'\].* the parameter laid flat"),
    ],
)
def test_cut_when_the_state_is_not_where_torch_keeps_it_then_the_error_says_where(where, said):
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = Elsewhere(net.parameters(), where)
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    held = [optimizer.kept(optimizer.param_groups[0], i, p) for i, p in enumerate(net.parameters())]
    before = [each.clone() for each in held]
    result = sc.prune(net, torch.ones(2, 6), 0.5, inplace=True)
    with pytest.raises(OptimizerError, match=f"Elsewhere keeps.*{said}|{said}") as caught:
        sc.cut_optimizer(optimizer, result)
    assert "Make a new optimizer" in str(caught.value)
    assert all(map(torch.equal, before, held)), "and nothing was changed"


def test_cut_when_the_optimizer_is_of_the_dense_model_then_the_error_says_inplace():
    model, optimizer, _ = trained(OPTIMIZERS["adamw"])
    result = sc.prune(model, X, sparsity=0.5)
    with pytest.raises(OptimizerError, match="inplace=True"):
        sc.cut_optimizer(optimizer, result)
    step(model, optimizer)


def test_cut_when_a_state_cannot_be_cut_then_all_of_it_is_as_before():
    model, optimizer, _ = trained(OPTIMIZERS["adamw"])
    optimizer.state[model.last.weight]["codes"] = torch.zeros(7)  # in blocks, as of 8 bits
    before = copy.deepcopy(optimizer.state_dict()["state"])
    result = sc.prune(model, X, sparsity=0.5, inplace=True)
    with pytest.raises(OptimizerError, match=r"\['codes'\] that AdamW keeps of 'last.weight'"):
        sc.cut_optimizer(optimizer, result)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(v, after[i][k]) for i, s in before.items() for k, v in s.items())


def test_cut_when_a_pruner_has_finished_then_the_same_loop_goes_on():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=9)  # it patches step()
    pruner = sc.Pruner(model, sc.Config(sparsity=0.5, schedule="linear", steps=3), X)
    for _ in range(3):
        loss = step(model, optimizer)
        schedule.step()
        pruner.step()
    result = pruner.finish()
    sc.cut_optimizer(optimizer, result)
    for _ in range(3):
        loss = step(model, optimizer)
        schedule.step()
    assert torch.isfinite(loss)
    assert model is result.model


# what else is older than a cut


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12), nn.Linear(12, 4))


ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(8, 16, num_layers=2), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x[None])[0][0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight, self.out = self.one.weight, nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(self.first(x).relu()).relu()).relu())


def normed() -> nn.Module:
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    return nn.Sequential(weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4))


@pytest.mark.parametrize("build", [small_net, Recurrent, Tied, normed])
@pytest.mark.parametrize("cuts", [1, 2])
def test_backward_when_losses_of_before_are_held_then_it_is_as_without_them(build, cuts):
    model = build()
    held = []
    for _ in range(cuts):
        held.append(model(ROWS).square().mean())
        held[-1].backward()
        sc.prune(model, ROWS, sparsity=0.4, inplace=True)
        assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    fresh = copy.deepcopy(model)  # nobody holds a graph of it
    for each in (model, fresh):
        each.zero_grad()
        each(ROWS).square().mean().backward()
    for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_backward_when_gradients_are_accumulated_across_a_cut_then_none_is_lost():
    model, masked = small_net(), small_net()
    model(ROWS[:2]).square().sum().backward()
    result = sc.prune(model, ROWS, sparsity=0.5, inplace=True)
    model(ROWS[2:]).square().sum().backward()
    masked(ROWS[:2]).square().sum().backward()
    masking.put_on(masked, result.masks)
    masked(ROWS[2:]).square().sum().backward()
    slices = Slices(result.structure, result.plan)
    for (name, ours), theirs in zip(model.named_parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, slices.of(name, theirs.grad))


def test_backward_when_the_graph_is_older_than_the_cut_then_torch_refuses():
    model = small_net()
    loss = model(ROWS).square().mean()
    sc.prune(model, ROWS, sparsity=0.5, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backward_when_a_cut_has_failed_then_the_graph_of_before_is_good():
    class Stubborn(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self[0](x)
            if int(hidden.shape[-1]) != 16:
                raise RuntimeError("I want 16")
            return self[1](hidden.relu())

    model = Stubborn(nn.Linear(8, 16), nn.Linear(16, 4))
    loss = model(ROWS).square().mean()
    with pytest.raises(sc.errors.SecateurError):
        sc.prune(model, ROWS, sparsity=0.5, inplace=True)
    loss.backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


def test_loop_when_it_is_under_autocast_then_no_cast_of_before_is_used():
    model = small_net()
    optimizer = torch.optim.AdamW(model.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(ROWS).float().square().mean().backward()
        optimizer.step()
        result = sc.prune(model, ROWS, sparsity=0.5, inplace=True)
        sc.cut_optimizer(optimizer, result)
        assert model[0].out_features == 8
        model(ROWS).float().square().mean().backward()
        optimizer.step()
