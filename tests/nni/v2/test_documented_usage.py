"""NNI 2.10's documented ways of use, each as its users write it; only the import lines are changed.

``nni.trace`` stays where they have it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD, Adam

from secateur import nni
from secateur.nni.pytorch import TorchEvaluator
from secateur.nni.pytorch.pruning import (
    AGPPruner,
    AMCPruner,
    AutoCompressPruner,
    L1NormPruner,
    LotteryTicketPruner,
    MovementPruner,
    PruningScheduler,
    SimulatedAnnealingPruner,
    TaylorFOWeightPruner,
)
from secateur.nni.pytorch.pruning.tools import AGPTaskGenerator
from secateur.nni.pytorch.speedup import ModelSpeedup
from secateur.nni.pytorch.utils.counter import count_flops_params
from tests.trained import digits, net

device = torch.device("cpu")
dummy_input = torch.rand(4, 1, 8, 8).to(device)


def loader() -> list[tuple[Tensor, Tensor]]:
    images, labels = digits().train_images[:384], digits().train_labels[:384]
    return list(zip(images.split(128), labels.split(128), strict=True))


def trainer(model: Any, optimizer: Any, criterion: Any) -> None:
    model.train()
    for data, target in loader():
        optimizer.zero_grad()
        loss = criterion(model(data.to(device)), target.to(device))
        loss.backward()
        optimizer.step()


def training_func(
    model: Any,
    optimizers: Any,
    criterion: Any,
    lr_schedulers: Any = None,
    max_steps: int | None = None,
    max_epochs: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    model.train()
    current_step = 0
    for _ in range(max_epochs or 1):
        for data, target in loader():
            optimizers.zero_grad()
            loss = criterion(model(data.to(device)), target.to(device))
            loss.backward()
            optimizers.step()
            current_step += 1
            if max_steps and current_step == max_steps:
                return
        if lr_schedulers is not None:
            lr_schedulers.step()


def finetuner(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trainer(model, optimizer, F.cross_entropy)


def evaluator(model: Any) -> float:
    model.eval()
    with torch.no_grad():
        pred = model(digits().test_images.to(device)).argmax(dim=1)
    return 100.0 * float((pred == digits().test_labels).float().mean())


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def speed_up(model: nn.Module, masks: Any) -> None:
    """Cut as the scripts do; what is cut is smaller, and computes what the masked model does."""
    before = params(model)
    speedup = ModelSpeedup(model, dummy_input, masks)
    assert speedup.speedup_model() is model
    assert speedup.result.verification.passed
    assert speedup.result.verification.exact
    assert params(model) < before


def whole_channels(masks: Any) -> bool:
    """Tell whether each output channel is masked as a whole, or not at all."""
    rows = [by["weight"].flatten(1) for by in masks.values()]
    return all(torch.equal(r.amax(1), r.amin(1)) for r in rows)


def left(small: nn.Module, config_list: Any) -> float:
    """Return the share of the weights of a config's layers that a smaller model has."""
    names = [name for entry in config_list for name in entry["op_names"]]
    sizes = [[m.get_submodule(n).weight.numel() for n in names] for m in (small, net())]
    return sum(sizes[0]) / sum(sizes[1])


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # log_dir is "." by default


def test_quick_start_and_speedup() -> None:
    model = net().to(device)
    config_list = [
        {"sparsity_per_layer": 0.5, "op_types": ["Linear", "Conv2d"]},
        {"exclude": True, "op_names": ["head"]},
    ]
    pruner = L1NormPruner(model, config_list)
    _, masks = pruner.compress()
    for mask in masks.values():
        assert float(mask["weight"].sum() / mask["weight"].numel()) == 0.5
    assert "head" not in masks
    assert whole_channels(masks)
    pruner._unwrap_model()
    speed_up(model, masks)
    assert model.stages[0].conv1.out_channels == net().stages[0].conv1.out_channels / 2
    optimizer = SGD(model.parameters(), 1e-2)
    trainer(model, optimizer, F.cross_entropy)
    small = copy.deepcopy(model.state_dict())
    trainer(model, optimizer, F.cross_entropy)
    assert any(not torch.equal(v, small[n]) for n, v in model.state_dict().items())


@pytest.mark.slow
def test_dependency_aware() -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    pruner = L1NormPruner(model, config_list, mode="dependency_aware", dummy_input=dummy_input)
    _, masks = pruner.compress()
    pruner.show_pruned_weights()
    pruner._unwrap_model()
    one, other = masks["stages.1.conv2"]["weight"], masks["stages.1.shortcut.0"]["weight"]
    assert torch.equal(one.flatten(1).amax(1), other.flatten(1).amax(1))
    speed_up(model, masks)
    assert model.stages[0].conv2.out_channels == 4


def test_taylor_with_a_trainer_and_exported_files() -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "sparsity": 0.5, "op_partial_names": ["stages"]}]
    optimizer = nni.trace(Adam)(model.parameters(), lr=0.001)
    pruner = TaylorFOWeightPruner(
        model, config_list, trainer, optimizer, F.cross_entropy, training_batches=2
    )
    _, masks = pruner.compress()
    pruner.export_model(model_path="model.pth", mask_path="mask.pth")
    pruner._unwrap_model()
    assert all(name.startswith("stages") for name in masks)
    assert {float(by["weight"].mean()) for by in masks.values()} == {0.5}
    assert whole_channels(masks)
    written, masked = load_file("model.pth"), model.state_dict()
    assert all(torch.equal(written[name], masked[name]) for name in masked)
    speed_up(model, "mask.pth")
    assert model.stages[1].conv1.out_channels == net().stages[1].conv1.out_channels / 2


@pytest.mark.slow
def test_movement_with_an_evaluator() -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "op_partial_names": ["stages"], "sparsity": 0.48}]
    traced_optimizer = nni.trace(Adam)(model.parameters(), lr=0.01)
    movement_evaluator = TorchEvaluator(training_func, traced_optimizer, F.cross_entropy)
    pruner = MovementPruner(
        model=model,
        config_list=config_list,
        evaluator=movement_evaluator,
        training_epochs=4,
        training_steps=12,
        warm_up_step=2,
        cool_down_beginning_step=9,
        regular_scale=10,
        movement_mode="soft",
    )
    _, masks = pruner.compress()
    pruner.show_pruned_weights()
    shares = [float(by["weight"].mean()) for by in masks.values()]
    assert all(0 < share <= 1 for share in shares)
    assert min(shares) < 1  # a threshold for learned scores, not a ratio
    assert set(masks["stages.0.conv1"]) == {"weight"}
    pruner._unwrap_model()
    for name, by_target in masks.items():
        assert not model.get_submodule(name).weight[by_target["weight"] == 0].any()


@pytest.mark.slow
@pytest.mark.parametrize("written", ["older", "newer"])
def test_iterative_pruning(written: str) -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    kw_args: dict[str, Any] = {
        "model": model,
        "config_list": config_list,
        "pruning_algorithm": "l1",
        "total_iteration": 2,
        "log_dir": ".",
        "keep_intermediate_result": False,
        "speedup": True,
        "pruning_params": {},
    }
    if written == "older":
        kw_args |= {"finetuner": finetuner, "dummy_input": dummy_input, "evaluator": None}
    else:
        optimizer = nni.trace(SGD)(model.parameters(), lr=0.01)
        kw_args["evaluator"] = TorchEvaluator(
            training_func, optimizer, F.cross_entropy, dummy_input=dummy_input
        )
    pruner = AGPPruner(**kw_args)
    pruner.compress()
    _, model, masks, best_acc, best_config_list = pruner.get_best_result()
    assert (masks, best_acc) == ({}, None)
    assert left(model, best_config_list) == pytest.approx(0.5, abs=0.02)
    assert model(dummy_input).shape == (4, 10)


@pytest.mark.slow
def test_pruning_scheduler() -> None:
    model = net()
    pruner = L1NormPruner(None, None)
    config_list = [{"op_types": ["Conv2d"], "sparsity": 0.5}]
    task_generator = AGPTaskGenerator(
        2, model, config_list, log_dir=".", keep_intermediate_result=True
    )
    scheduler = PruningScheduler(
        pruner, task_generator, finetuner=finetuner, speedup=True, dummy_input=dummy_input,
        evaluator=None, reset_weight=False
    )  # fmt: skip
    scheduler.compress()
    number, model, masks, _, best_config_list = scheduler.get_best_result()
    assert (number, masks) == (2, {})
    assert left(model, best_config_list) == pytest.approx(0.5, abs=0.02)
    assert model(dummy_input).shape == (4, 10)


def test_lottery_ticket() -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "sparsity": 0.8}]
    pruner = LotteryTicketPruner(
        model, config_list, "level", 2, log_dir=".", finetuner=finetuner, evaluator=None,
        reset_weight=True
    )  # fmt: skip
    pruner.compress()
    _, model, masks, _, _ = pruner.get_best_result()
    for name, mask in masks.items():
        assert float(mask["weight"].mean()) == pytest.approx(0.2, abs=0.01)
        start = net().get_submodule(name).weight  # what is left is as it was at first
        assert torch.equal(model.get_submodule(name).weight, start * mask["weight"])
    finetuner(model)


@pytest.mark.slow
def test_simulated_annealing() -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "total_sparsity": 0.5}]
    pruner = SimulatedAnnealingPruner(
        model, config_list, evaluator, start_temperature=100, stop_temperature=85,
        cool_down_rate=0.9, pruning_algorithm="l1", pruning_params={}, log_dir=".",
        finetuner=finetuner, speedup=True, dummy_input=dummy_input
    )  # fmt: skip
    pruner.compress()
    _, model, masks, best_acc, best_config_list = pruner.get_best_result()
    assert masks == {}
    assert best_acc == pytest.approx(evaluator(model))
    assert left(model, best_config_list) == pytest.approx(0.5, abs=0.03)
    tasks = pruner.task_generator.tasks
    assert best_acc == max(task.score for task in tasks)
    assert len({tuple(entry["total_sparsity"] for entry in t.config_list()) for t in tasks}) > 1


@pytest.mark.slow
def test_auto_compress() -> None:
    model = net()
    config_list = [{"op_types": ["Conv2d"], "total_sparsity": 0.6}]
    traced_optimizer = nni.trace(SGD)(model.parameters(), lr=0.01, momentum=0.9)
    admm_params = {
        "trainer": trainer,
        "traced_optimizer": traced_optimizer,
        "criterion": F.cross_entropy,
        "iterations": 2,
        "training_epochs": 1,
    }
    sa_params = {"evaluator": evaluator, "stop_temperature": 95}
    pruner = AutoCompressPruner(
        model, config_list, 2, admm_params, sa_params=sa_params, keep_intermediate_result=True,
        finetuner=finetuner
    )  # fmt: skip
    pruner.compress()
    _, model, masks, best_acc, config_list = pruner.get_best_result()
    total = sum(mask["weight"].numel() for mask in masks.values())
    kept = sum(float(mask["weight"].sum()) for mask in masks.values())
    assert kept / total == pytest.approx(0.4, abs=0.01)
    for name, mask in masks.items():
        assert not model.get_submodule(name).weight[mask["weight"] == 0].any()


class InvertedResidual(nn.Module):
    """A block of MobileNetV2 (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        hidden = inputs * 2
        self.add = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            *(nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.add else self.conv(x)


def mobilenet() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()),
            *(InvertedResidual(8, 8, 1), InvertedResidual(8, 16, 2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
        )


@pytest.mark.slow
def test_amc_on_mobilenet_v2() -> None:
    model = mobilenet()
    pre_flops, pre_params, _ = count_flops_params(model, dummy_input, verbose=False)
    config_list = [{"op_types": ["Conv2d"], "total_sparsity": 0.3, "max_sparsity_per_layer": 0.8}]
    ddpg_params = {
        "hidden1": 300, "hidden2": 300, "lr_c": 1e-3, "lr_a": 1e-4, "warmup": 1, "discount": 1.0,
        "bsize": 64, "rmsize": 100, "window_length": 1, "tau": 0.01, "init_delta": 0.5,
        "delta_decay": 0.99, "max_episode_length": 1e9, "epsilon": 50000,
    }  # fmt: skip
    pruner = AMCPruner(
        2, model, config_list, dummy_input, lambda model: evaluator(model) / 100,
        finetuner=finetuner, ddpg_params=ddpg_params, target="flops"
    )  # fmt: skip
    pruner.compress()
    number, small, masks, best_acc, best_config_list = pruner.get_best_result()
    flops, left, _ = count_flops_params(small, dummy_input, verbose=False)
    assert masks == {}
    assert best_acc == pytest.approx(evaluator(small) / 100)
    assert flops < 0.72 * pre_flops  # 30 % of the convolutions' were to go
    assert left < pre_params
    gone = pruner.task_generator.tasks[number].state["current_total_sparsity"]
    assert gone >= 0.28
    assert all(0 <= entry["total_sparsity"] <= 0.8 for entry in best_config_list)
