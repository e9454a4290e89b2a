"""What torch would say in words of its own, secateur says with what to do; nothing has changed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import (
    ConfigError,
    CopyError,
    ModelError,
    NoMatchError,
    ScoreError,
    SecateurError,
    WriteError,
)
from secateur.runtime.measure import latency

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == before.keys() and all(torch.equal(state[k], before[k]) for k in before)


# what cannot be copied


HELD: dict[str, Callable[[nn.Module], Any]] = {
    "lock": lambda model: threading.Lock(),
    "generator": lambda model: (i for i in range(3)),
    "socket": lambda model: socket.socket(),
    "list": lambda model: [threading.RLock()],
    "thread": lambda model: threading.Thread(target=print),
}


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("place", ["", "2"])
def test_prune_when_an_attribute_cannot_be_copied_then_it_is_named_and_inplace_does(kind, place):
    model = net()
    held = model.get_submodule(place).held = HELD[kind](model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CopyError, match="inplace=True") as caught:
        sc.prune(model, X, sparsity=0.5)
    assert repr(f"{place}.held" if place else "held") in str(caught.value)
    assert same(model, before)
    with pytest.raises(CopyError):
        sc.shrink(model, {}, X)
    with pytest.raises(CopyError):
        sc.apply_plan(model, sc.Plan({"0": (0, 1)}), X)
    assert sc.prune(model, X, sparsity=0.5, inplace=True).model[0].out_features == 8
    if kind == "socket":
        held.close()


# what is no model


NO_MODELS: dict[str, tuple[Any, str]] = {
    "function": (lambda x: x, "the callable '<lambda>'"),
    "class": (nn.Linear, "the class Linear: give Linear(...)"),
    "bound": (net().forward, "the callable 'forward'"),
    "state": (net().state_dict(), "load_state_dict"),
    "nothing": (None, "NoneType: give a torch.nn.Module"),
    "list": ([net()], "list: give a torch.nn.Module"),
    "lazy": (nn.Sequential(nn.LazyLinear(4)), "run the model once"),
    "lazy norm": (nn.Sequential(nn.Conv1d(1, 2, 1), nn.LazyBatchNorm1d()), "'1.weight' and"),
}


@pytest.mark.parametrize(("given", "said"), NO_MODELS.values(), ids=NO_MODELS)
def test_any_entrance_when_it_is_given_no_model_then_it_says_what_to_give(given, said, tmp_path):
    entrances: list[Callable[[], Any]] = [
        lambda: sc.analyze(given, X),
        lambda: sc.prune(given, X, sparsity=0.5),
        lambda: sc.Pruner(given, {"sparsity": 0.5}, X),
        lambda: sc.shrink(given, {}, X),
        lambda: sc.apply_plan(given, sc.Plan({}), X),
        lambda: sc.save_pruned(given, tmp_path),
        lambda: sc.load_pruned(tmp_path, given),
    ]
    for enter in entrances:
        with pytest.raises(ModelError) as caught:
            enter()
        assert said in str(caught.value)


# what cannot be ranked


class Coded(nn.Module):
    """A layer whose weight is quantised by hand."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        codes = torch.arange(128).reshape(16, 8).to(dtype)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.out = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x @ self.codes.to(x.dtype).t() / 64)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "magnitude", "random"])
def test_prune_when_weights_are_whole_numbers_then_the_error_says_quantise_later(dtype, criterion):
    with pytest.raises(ScoreError, match=r"'codes' holds .* prune first and quantise"):
        sc.prune(Coded(dtype), X, 0.5, criterion)


def test_prune_when_a_model_has_packed_its_weights_then_the_error_says_so():
    with pytest.raises(NoMatchError, match="no parameter .a quantised one"):
        sc.prune(nn.Sequential(nn.ReLU()), X, sparsity=0.5)


@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_prune_when_the_model_is_on_meta_then_the_error_says_analyze(criterion):
    with pytest.raises(ScoreError, match=r"'0.weight' is on torch.device\('meta'\).* analyze\(\)"):
        sc.prune(net().to("meta"), X.to("meta"), 0.5, criterion)
    assert sc.analyze(net().to("meta"), X.to("meta")).groups[0].size == 16


# what gives no gradients


def frozen() -> nn.Module:
    return net().requires_grad_(False)


def half_frozen() -> nn.Module:
    model = net()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "loss", "said"),
    [
        (frozen, lambda m, b: m(b).sum(), "every parameter is frozen: model.requires_grad_(True)"),
        (half_frozen, lambda m, b: m(b).sum(), "'0.weight' had none"),
        (net, lambda m, b: m(b), "a tensor of one number"),
        (net, lambda m, b: m(b).sum().item(), "a tensor of one number (mean() one), not float"),
        (net, lambda m, b: None, "not NoneType"),
        (net, lambda m, b: m(b).detach().sum(), "or detached"),
        (net, torch.no_grad()(lambda m, b: m(b).sum()), "under no_grad"),
        (net, lambda m, b: m(b).sum() * float("nan"), "NaN"),
    ],
    ids=["frozen", "half", "vector", "float", "none", "detached", "no_grad", "nan"],
)
def test_taylor_when_there_are_no_gradients_then_the_error_says_why(model, loss, said):
    built = model()
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    with pytest.raises((ConfigError, ScoreError)) as caught:
        sc.prune(built, X, 0.5, "taylor", data=[X], loss=loss)
    assert said in str(caught.value)
    assert same(built, before)
    assert all(p.grad is None for p in built.parameters())


# what nothing can be compared with


class Tolerant(nn.Module):
    """A model that takes NaN for zero."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.nan_to_num())


def some_nan() -> Tensor:
    x = X.clone()
    x[1, 2] = float("nan")
    return x


@pytest.mark.parametrize(
    "example", [some_nan(), X * float("nan"), X / 0], ids=["one", "all", "infinite"]
)
@pytest.mark.parametrize("inplace", [True, False])
def test_prune_when_outputs_are_nan_then_the_error_says_that_nothing_is_compared(example, inplace):
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="nothing can be compared"):
        sc.prune(model, example, sparsity=0.5, inplace=inplace)
    assert same(model, before)
    assert sc.prune(model, example, sparsity=0.5, verify=False).model[0].out_features == 8


def test_prune_when_the_model_copes_with_nan_then_it_is_pruned():
    assert sc.prune(Tolerant(), some_nan(), sparsity=0.5).verification.passed


@pytest.mark.parametrize("example", [X.numpy(), None, "text", 3, (X, X), {"y": X}, X[:, :3]])
def test_prune_when_the_example_is_none_then_the_error_is_ours(example):
    with pytest.raises(SecateurError):
        sc.prune(net(), example, sparsity=0.5)


@pytest.mark.parametrize("loss", [None, lambda model, batch: model(batch).sum()])
def test_prune_when_data_is_one_tensor_then_it_is_not_taken_apart_into_samples(loss):
    criterion = "taylor" if loss else "activation"
    with pytest.raises(ConfigError, match=r"data: a tensor .* is no list of batches: give x.split"):
        sc.prune(net(), X, 0.5, criterion, data=X, loss=loss)


def test_prune_when_a_part_of_a_grid_is_named_as_a_module_then_the_error_says_how():
    layers = nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, groups=4), nn.ReLU()
    net = nn.Sequential(*layers, nn.Conv2d(64, 4, 1)).eval()
    x = torch.randn(1, 3, 8, 8)
    assert "0[1]" in {group.name for group in sc.analyze(net, x).groups}
    for field in ("names", "exclude"):
        with pytest.raises(NoMatchError, match=r"part of '0', .*allocation="):
            sc.prune(net, x, 0.5, **{field: ["0[1]"]})


@pytest.mark.parametrize("folder", [None, "", 3])
def test_save_when_no_folder_is_named_then_write_error(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    result = sc.prune(net, torch.zeros(1, 8), 0.5)
    with pytest.raises(WriteError, match="names no folder"):
        result.save(folder)
    assert not list(tmp_path.iterdir())


def test_prune_when_a_model_was_exported_then_it_is_refused():
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    exported = torch.export.export(net, (torch.zeros(2, 8),)).module()
    with pytest.raises(ModelError, match=r"torch\.export made"):
        sc.prune(exported, torch.zeros(2, 8), 0.5)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"runs": 3, "threads": 0}])
def test_latency_when_there_is_nothing_to_run_then_config_error(wrong):
    with pytest.raises(ConfigError, match="at least one"):
        latency({"a": nn.Linear(2, 2)}, torch.zeros(1, 2), **wrong)


@pytest.mark.parametrize("also", [False, True])
def test_prune_when_weights_are_offloaded_then_model_error_says_what_to_do(also):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(net(), execution_device="cpu")
    if also:
        accelerate.hooks.add_hook_to_module(model[0], accelerate.hooks.ModelHook(), append=True)
    with pytest.raises(ModelError, match=r"'0' is a Linear whose weights accelerate.*--stream"):
        sc.prune(model, X, 0.5)


def test_prune_when_accelerate_hooks_move_inputs_only_then_it_is_pruned_as_without():
    hooks = pytest.importorskip("accelerate").hooks
    model, plain = net(), net()
    for layer in model:
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook(execution_device="cpu"))
    small, same_ = sc.prune(model, X, 0.5), sc.prune(plain, X, 0.5)
    assert torch.equal(small.model(X), same_.model(X))
    assert small.model[0].out_features == 8
