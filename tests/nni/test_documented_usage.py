"""NNI's documented ways of use, each as its users write it; only the import lines are changed.

``nni.trace`` stays where they have it.  Every script prunes, unwraps, cuts and goes on training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from secateur import nni
from secateur.nni import LightningEvaluator, TorchEvaluator, TransformersEvaluator
from secateur.nni.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    SlimPruner,
    TaylorPruner,
)
from secateur.nni.speedup import ModelSpeedup
from secateur.nni.utils import auto_set_denpendency_group_ids
from tests import trained
from tests.trained import digits, net

device = torch.device("cpu")


def loader() -> DataLoader[Any]:
    data = TensorDataset(digits().train_images, digits().train_labels)
    return DataLoader(data, batch_size=128, shuffle=True, drop_last=True)


def training_step(batch: Any, model: Any, *args: Any, **kwargs: Any) -> Tensor:
    return F.cross_entropy(model(batch[0].to(device)), batch[1].to(device))


def training_model(
    model: Any,
    optimizer: Any,
    training_step: Any,
    lr_scheduler: Any = None,
    max_steps: int | None = None,
    max_epochs: int | None = None,
    *args: Any,
    **kwargs: Any,
) -> None:
    assert max_steps is not None or max_epochs is not None
    total_steps = max_steps if max_steps else 10**6
    total_epochs = max_epochs if max_epochs else 100
    current_step = 0
    model.train()
    for _ in range(total_epochs):
        for batch in loader():
            optimizer.zero_grad()
            loss = training_step(batch, model)
            loss.backward()
            optimizer.step()
            current_step += 1
            if current_step >= total_steps:
                return
        if lr_scheduler is not None:
            lr_scheduler.step()


def evaluating_model(model: Any) -> float:
    model.eval()
    with torch.no_grad():
        guessed = model(digits().test_images).argmax(dim=1)
    return float((guessed == digits().test_labels).float().mean())


def zeros(model: Any, name: str) -> float:
    return float((model.get_submodule(name).weight == 0).float().mean())


def assert_cut_and_trainable(model: Any, masks: Any, params: int, kept: float = 0.5) -> None:
    weights = [mask["weight"] for mask in masks.values()]
    left = sum(float(weight.sum()) for weight in weights) / sum(map(torch.numel, weights))
    assert left == pytest.approx(kept, abs=0.02)
    for weight in weights:  # whole output channels, or none of one
        rows = weight.flatten(1) if weight.ndim > 1 else weight[:, None]
        assert torch.equal(rows.amax(1), rows.amin(1))
    assert sum(p.numel() for p in model.parameters()) < params
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SGD(model.parameters(), lr=0.01)  # NNI: build the optimizer anew after speedup
    training_model(model, optimizer, training_step, max_steps=1)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert model(torch.rand(3, 1, 8, 8)).shape == (3, 10)


# the pruners that need no training: a quick start


def test_quickstart_with_l1_norm() -> None:
    model = net()
    params = sum(p.numel() for p in model.parameters())
    config_list = [
        {"op_types": ["Conv2d"], "sparse_ratio": 0.5},
        {"op_names": ["stem.0"], "exclude": True},
    ]
    pruner = L1NormPruner(model, config_list)
    _, masks = pruner.compress()
    for name, mask in masks.items():
        assert name != "stem.0"
        assert float(mask["weight"].sum() / mask["weight"].numel()) == 0.5
    pruner.unwrap_model()
    ModelSpeedup(model, torch.rand(3, 1, 8, 8).to(device), masks).speedup_model()
    assert_cut_and_trainable(model, masks, params)


def test_level_pruner() -> None:
    model = net()
    config_list = [{"op_types": ["Linear", "Conv2d"], "sparse_ratio": 0.8}]
    pruner = LevelPruner(model, config_list)
    _masked_model, masks = pruner.compress()
    pruner.unwrap_model()
    assert zeros(model, "head") == pytest.approx(0.8, abs=0.01)
    assert sorted(masks["head"]) == ["bias", "weight"]


def test_l2_norm_pruner_with_dependency_groups() -> None:
    model = net()
    params = sum(p.numel() for p in model.parameters())
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    dummy_input = torch.rand(2, 1, 8, 8)
    config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)
    pruner = L2NormPruner(model, config_list)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    ModelSpeedup(model, dummy_input, masks).speedup_model()
    assert_cut_and_trainable(model, masks, params)


def test_fpgm_pruner_with_masks_in_a_file(tmp_path: Path) -> None:
    model = net()
    params = sum(p.numel() for p in model.parameters())
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.25, "op_names_re": ["stages.*"]}]
    pruner = FPGMPruner(model, config_list)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    torch.save(masks, tmp_path / "masks.pth")
    model = ModelSpeedup(model, torch.rand(2, 1, 8, 8), str(tmp_path / "masks.pth")).speedup_model()
    assert_cut_and_trainable(model, masks, params, kept=0.75)


# the pruners that train, with a TorchEvaluator


def torch_evaluator(model: Any) -> TorchEvaluator:
    traced_optimizer = nni.trace(Adam)(model.parameters(), lr=1e-3)
    traced_scheduler = nni.trace(torch.optim.lr_scheduler.StepLR)(traced_optimizer, step_size=1)
    return TorchEvaluator(
        training_func=training_model,
        optimizers=traced_optimizer,
        training_step=training_step,
        lr_schedulers=traced_scheduler,
        dummy_input=torch.rand(2, 1, 8, 8),
        evaluating_func=evaluating_model,
    )


def test_slim_pruner() -> None:
    model = net().to(device)
    params = sum(p.numel() for p in model.parameters())
    config_list = [
        {"op_types": ["BatchNorm2d"], "sparse_ratio": 0.5, "global_group_id": "all_norms"}
    ]
    evaluator = torch_evaluator(model)
    pruner = SlimPruner(model, config_list, evaluator, training_steps=5, regular_scale=0.1)
    _, masks = pruner.compress(max_steps=None, max_epochs=1)
    pruner.unwrap_model()
    ModelSpeedup(model, evaluator.dummy_input, masks).speedup_model()
    assert_cut_and_trainable(model, masks, params)


def test_taylor_pruner() -> None:
    model = net().to(device)
    params = sum(p.numel() for p in model.parameters())
    config_list = [
        {
            "op_types": ["Conv2d"],
            "target_settings": {
                "weight": {"sparse_ratio": 0.5, "granularity": "out_channel"},
                "bias": {"align": {"module_name": None, "target_name": "weight", "dims": [0]}},
            },
        }
    ]
    evaluator = torch_evaluator(model)
    pruner = TaylorPruner(model, config_list, evaluator, training_steps=5)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    ModelSpeedup(model, evaluator.dummy_input, masks).speedup_model()
    assert_cut_and_trainable(model, masks, params)


def test_linear_pruner_over_l1_norm() -> None:
    model = net().to(device)
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    sub_pruner = L1NormPruner(model, config_list)
    pruner = LinearPruner(sub_pruner, 2, 4, evaluator=torch_evaluator(model))
    _, masks = pruner.compress(8, None)
    pruner.unwrap_model()
    assert zeros(model, "stages.0.conv1") == 0.5


def test_agp_pruner_over_taylor() -> None:
    model = net().to(device)
    params = sum(p.numel() for p in model.parameters())
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    evaluator = torch_evaluator(model)
    sub_pruner = TaylorPruner(model, config_list, evaluator, training_steps=2)
    scheduled_pruner = AGPPruner(sub_pruner, interval_steps=2, total_times=3)
    _, masks = scheduled_pruner.compress(max_steps=2 * 3, max_epochs=None)
    scheduled_pruner.unwrap_model()
    ModelSpeedup(model, evaluator.dummy_input, masks).speedup_model()
    assert_cut_and_trainable(model, masks, params)


def test_movement_pruner_soft_then_taylor_with_agp_as_in_the_bert_tutorial() -> None:
    """Attention by movement in blocks, then the rest by Taylor, the first masks kept."""
    model = net().to(device)
    evaluator = torch_evaluator(model)
    movement = MovementPruner(
        model,
        [
            {
                "op_types": ["Linear"],
                "sparse_threshold": 0.1,
                "max_sparse_ratio": 0.5,
                "granularity": [5, 8],
            }
        ],
        evaluator,
        warmup_step=2,
        cooldown_begin_step=6,
        regular_scale=10,
    )
    _, attention_masks = movement.compress(8, None)
    movement.unwrap_model()
    assert set(attention_masks) == {"head"}
    taylor = TaylorPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], evaluator, 2)
    agp = AGPPruner(taylor, 2, 2)
    _, ffn_masks = agp.compress(4, None)
    agp.unwrap_model()
    blocks = attention_masks["head"]["weight"].unfold(0, 5, 5).unfold(1, 8, 8).flatten(2)
    assert torch.equal(blocks.amax(2), blocks.amin(2))
    assert float(blocks.mean()) >= 0.5  # the most that may go
    masks = {**attention_masks, **ffn_masks}
    params = sum(p.numel() for p in model.parameters())
    ModelSpeedup(model, evaluator.dummy_input, masks).speedup_model()
    assert_cut_and_trainable(model, ffn_masks, params)


def test_movement_pruner_hard_fused_with_a_norm_pruner() -> None:
    model = net().to(device)
    evaluator = torch_evaluator(model)
    norm = L1NormPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}], evaluator)
    pruner = MovementPruner.from_compressor(
        norm,
        [{"op_types": ["Linear"], "sparse_ratio": 0.5, "granularity": [1, 1]}],
        warmup_step=1,
        cooldown_begin_step=3,
        evaluator=evaluator,
    )
    _, masks = pruner.compress(4, None)
    pruner.unwrap_model()
    assert zeros(model, "head") == 0.5
    assert zeros(model, "stages.1.conv1") == 0.5


# the other evaluators


def test_lightning_evaluator(tmp_path: Path) -> None:
    live = trained.live("lightning", tmp_path)
    pl_trainer = nni.trace(live.evaluator.trainer)
    pl_data = nni.trace(live.evaluator.data_module)
    evaluator = LightningEvaluator(pl_trainer, pl_data, dummy_input=live.example)
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    pruner = TaylorPruner(live.model, config_list, evaluator, training_steps=3)
    _, masks = pruner.compress(5, None)
    pruner.unwrap_model()
    assert zeros(live.model, "net.stages.1.conv1") == 0.5
    params = sum(p.numel() for p in live.model.parameters())
    ModelSpeedup(live.model, live.example, masks).speedup_model()
    assert sum(p.numel() for p in live.model.parameters()) < params
    pl_trainer.fit_loop.max_epochs = pl_trainer.current_epoch + 1
    pl_trainer.fit(live.model, pl_data)


def test_transformers_evaluator(tmp_path: Path) -> None:
    live = trained.live("hf", tmp_path)
    evaluator = TransformersEvaluator(nni.trace(live.evaluator.trainer), dummy_input=live.example)
    config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    sub_pruner = FPGMPruner(live.model, config_list, evaluator)
    pruner = AGPPruner(sub_pruner, interval_steps=2, total_times=2)
    _, masks = pruner.compress(max_steps=5, max_epochs=None)
    pruner.unwrap_model()
    assert zeros(live.model, "net.stages.1.conv1") == 0.5
    params = sum(p.numel() for p in live.model.parameters())
    ModelSpeedup(live.model, live.example, masks).speedup_model()
    assert sum(p.numel() for p in live.model.parameters()) < params
    trainer = live.evaluator.trainer
    trainer.args.max_steps = 2
    trainer.train()
