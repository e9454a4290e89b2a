"""An interrupt at any line leaves the model and the process as they were."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.nni import TorchEvaluator
from secateur.nni.pruning import L1NormPruner, TaylorPruner
from secateur.nni.utils.counter import count_flops_params
from tests.zoo import torchvision_models

from .interrupts import drawn, interrupted

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).view(2, 3, 6, 6)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 4, 8),
            nn.ReLU(),
            nn.Linear(8, 4),
        )


def layer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


class Configured(nn.Module):
    """Says its width in an object inside of another, which it holds too."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = SimpleNamespace(width=8)
        self.config = SimpleNamespace(inner=self.sizes, version=2)
        self.up, self.down = nn.Linear(108, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x.flatten(1)).relu()
        return self.down(hidden.view(-1, self.sizes.width))


def configured() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Configured()


def analyze(model: nn.Module) -> Any:
    return sc.analyze(model, X)


def prune(model: nn.Module) -> Any:
    return sc.prune(model, X, 0.5, inplace=True)


def repair(model: nn.Module) -> Any:
    return sc.prune(model, X, 0.5, inplace=True, data=[X + i for i in range(4)])


def prune_layer(model: nn.Module) -> Any:
    return sc.prune(model, X.reshape(2, -1)[:, :80].reshape(2, 10, 8), 0.5, inplace=True)


def fold(model: nn.Module) -> Any:
    mask = torch.arange(8) > 3
    masks = {"0.weight": mask[:, None, None, None].expand(8, 3, 3, 3), "0.bias": mask}
    return sc.shrink(model, masks, X, inplace=True)


WEIGHTS = [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}]
VALUES = [{"op_names": ["3", "6"], "target_names": ["weight", "_output_"], "sparse_ratio": 0.5}]


def trained(optimizer: torch.optim.Optimizer) -> Any:
    """Return an evaluator whose training leaves weights and gradients as they are."""

    def train(model: nn.Module, optimizer: Any, step: Any, *_: Any) -> None:
        for _ in range(3):
            step(X, model).backward()
            optimizer.step()
            optimizer.zero_grad()

    return TorchEvaluator(train, optimizer, lambda x, model: model(x).sum(), dummy_input=X)


def nni_masks(model: nn.Module) -> Any:
    with torch.no_grad():
        return L1NormPruner(model, WEIGHTS).compress()


def nni_values(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.eval().parameters(), lr=0.0)
    try:
        TaylorPruner(model, VALUES, trained(optimizer), training_steps=2).compress()
    except KeyboardInterrupt:
        for parameter in model.parameters():
            parameter.grad = None
        model.train()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        raise


def nni_costs(model: nn.Module) -> Any:
    said = {nn.Linear: lambda *_: {"flops": 1, "params": 1}}
    return count_flops_params(model, X, custom_ops=said, verbose=False)


def adapted() -> nn.Module:
    torchvision_models()  # which PEFT imports by way of transformers
    from peft import LoraConfig, get_peft_model

    model = net()
    sc.Pruner(model, sc.Config(sparsity=0.5, granularity="element"), X).step()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["3", "6"], modules_to_save=["8"])
        config.init_lora_weights = False
        return get_peft_model(model, config)


JOBS = {
    "merge": (adapted, sc.merge),
    "NNI's masks": (net, nni_masks),
    "NNI's values": (net, nni_values),
    "NNI's costs": (net, nni_costs),
    "analyze": (net, analyze),
    "prune": (net, prune),
    "repair": (net, repair),
    "attention": (layer, prune_layer),
    "fold": (net, fold),
    "config": (configured, prune),
}


@pytest.mark.parametrize("job", ["repair", pytest.param("fold", marks=pytest.mark.slow)])
def test_interrupt_when_it_comes_at_a_drawn_line_then_model_and_process_are_as_before(
    job: str,
) -> None:
    _at_drawn_lines(*JOBS[job], many=3)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_interrupt_when_it_comes_at_many_lines_then_model_and_process_are_as_before(
    job: str,
) -> None:
    _at_drawn_lines(*JOBS[job], many=60 if "NNI" in job else 200)


def _at_drawn_lines(
    build: Callable[[], nn.Module],
    job: Callable[[nn.Module], Any],
    many: int,
) -> None:
    torch.set_num_threads(1)  # a child has none of the threads of the pool
    found = [interrupted(build, job, moment) for moment in drawn(build, job, many, seed=many)]
    assert [each for each in found if each] == []
    assert len(found) == many
