"""What scripts import from NNI is at the same place, and does what it did there."""

from __future__ import annotations

import copy
import warnings
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur.nni
from secateur.errors import ConfigError, NotHereError
from secateur.masks.masking import masks_on
from secateur.nni import TorchEvaluator, pruning
from secateur.nni.base.compressor import Compressor, Distiller, Pruner, Quantizer
from secateur.nni.base.setting import (
    DistillatoinSetting,
    PruningSetting,
    QuantizationSetting,
    canonicalize_settings,
)
from secateur.nni.speedup import ModelSpeedup
from secateur.nni.utils import (
    auto_set_denpendency_group_ids,
    compute_sparsity_compact2origin,
    compute_sparsity_mask2compact,
)
from secateur.nni.utils.counter import count_flops_params
from secateur.nni.utils.external.external_replacer import TransformersAttentionReplacer

NAMES = {
    "": [
        "TorchEvaluator",
        "LightningEvaluator",
        "TransformersEvaluator",
        "DeepspeedTorchEvaluator",
        "trace",
    ],
    "pruning": [
        *("LevelPruner", "L1NormPruner", "L2NormPruner", "FPGMPruner", "SlimPruner"),
        *("TaylorPruner", "MovementPruner", "LinearPruner", "AGPPruner"),
    ],
    "utils": [
        *("TorchEvaluator", "LightningEvaluator", "TransformersEvaluator", "Evaluator"),
        *("DeepspeedTorchEvaluator", "auto_set_denpendency_group_ids"),
        *("compute_sparsity_compact2origin", "compute_sparsity_mask2compact"),
    ],
    "utils.counter": ["count_flops_params"],
    "utils.external.external_replacer": ["TransformersAttentionReplacer"],
    "speedup": ["ModelSpeedup", "auto_set_denpendency_group_ids"],
    "base.compressor": ["Compressor", "Pruner", "Quantizer", "Distiller"],
    "base.setting": ["PruningSetting", "canonicalize_settings", "INPUT_PREFIX", "OUTPUT_PREFIX"],
    "common.types": ["SCHEDULER"],
    "common.concrete_trace_utils": ["concrete_trace"],
}


@pytest.mark.parametrize("path", NAMES)
def test_path_when_imported_then_nnis_public_names_are_there(path):
    module = import_module(f"secateur.nni.{path}".rstrip("."))
    assert [name for name in NAMES[path] if not hasattr(module, name)] == []


@pytest.mark.parametrize(
    ("path", "name", "why"),
    [
        ("quantization", "QATQuantizer", "torchao"),
        ("quantization_speedup", "ModelSpeedupTensorRT", "torchao"),
        ("distillation", "DynamicLayerwiseDistiller", "training step"),
        ("utils", "Scaling", "secateur.scoring.granularity"),
    ],
)
def test_path_when_a_name_is_out_of_scope_then_the_import_says_what_to_do(path, name, why):
    with pytest.raises(ImportError, match=f"secateur.nni.{path}.{name}: .*{why}"):
        exec(f"from secateur.nni.{path} import {name}", {})
    with pytest.raises(ImportError):
        exec(f"from secateur.nni.{path} import nothing", {})


@pytest.mark.parametrize("kind", [Quantizer, Distiller])
def test_base_when_it_is_out_of_scope_then_making_one_says_what_to_do(kind):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(NotHereError, match="secateur does not quantise|training step"):
        kind(model, [])
    pruner = Pruner(model, [{"op_names": ["0"], "sparse_ratio": 0.5}])
    with pytest.raises(NotHereError):
        kind.from_compressor(pruner, [])


def test_base_pruner_then_it_is_that_of_all_pruners_and_takes_masks():
    model = nn.Sequential(nn.Linear(3, 2))
    pruner = Pruner(model, [{"op_names": ["0"], "sparse_ratio": 0.4}])
    pruner.update_masks({"0": {"weight": torch.eye(2, 3), "bias": torch.ones(2)}})
    assert torch.equal(pruner.get_masks()["0"]["weight"], torch.eye(2, 3))
    assert Compressor is Pruner
    assert all(issubclass(getattr(pruning, name), Pruner) for name in NAMES["pruning"])


# settings of a module class


@pytest.mark.parametrize(
    "given",
    [nn.Linear(1, 1), nn.Linear, "Linear", type("Mine", (nn.Linear,), {})],
    ids=["an instance", "a class", "a name", "a subclass"],
)
def test_canonicalize_settings_when_a_target_has_its_own_then_it_goes_before_the_shortcut(given):
    own = {"bias": {"sparse_ratio": 0.6}}
    entry = {"target_names": ["weight", "bias"], "sparse_ratio": 0.5, "target_settings": own}
    found = canonicalize_settings(given, entry, mode="pruning")
    assert (found["weight"]["sparse_ratio"], found["bias"]["sparse_ratio"]) == (0.5, 0.6)
    aligned = canonicalize_settings(given, {"sparse_ratio": 0.5})["bias"]["align"]
    assert aligned == {"module_name": None, "target_name": "weight", "dims": (0,)}


def test_pruning_setting_when_registered_then_a_pruner_knows_the_class():
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.arange(4.0))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    with pytest.raises(ConfigError, match="without known targets"):
        PruningSetting.get("AGainOfNobody", {})
    PruningSetting.register("Gain", {"gain": {"sparse_ratio": None, "granularity": "element"}})
    pruner = pruning.L1NormPruner(
        nn.Sequential(Gain()), [{"op_types": ["Gain"], "sparse_ratio": 0.5}]
    )
    assert pruner.compress()[1]["0"]["gain"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("setting", [QuantizationSetting, DistillatoinSetting])
def test_settings_when_out_of_scope_then_each_call_says_so(setting):
    for call in (setting.register, setting.get):
        with pytest.raises(NotHereError):
            call("Linear", {})
    for mode in ("quantization", "distillation"):
        with pytest.raises(NotHereError):
            canonicalize_settings("Linear", {}, mode)


# counting


class Grouped(nn.Module):
    """Convolutions, one of them grouped, that meet in a sum, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 32, 3, groups=4)
        self.three = nn.Conv2d(16, 32, 3)
        self.hidden = nn.Linear(32 * 4 * 4, 20)
        self.out = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.one(x))
        x = (self.two(x) + self.three(x)).flatten(1)
        return F.log_softmax(self.out(self.hidden(x).relu()), -1)


def macs() -> dict[str, int]:
    return {
        "one": 36 * 16 * 9,
        "two": 16 * 32 * 4 * 9,
        "three": 16 * 32 * 16 * 9,
        "hidden": 512 * 20,
        "out": 200,
    }


@pytest.mark.parametrize("x", [(3, 1, 8, 8), torch.zeros(5, 1, 8, 8), (torch.zeros(1, 1, 8, 8),)])
def test_count_flops_params_then_both_are_those_of_one_sample(x):
    model = Grouped().train()
    flops, params, rows = count_flops_params(model, x, verbose=False)
    assert {row["name"]: row["flops"] for row in rows} == macs()
    assert flops == sum(macs().values())
    assert params == sum(p.numel() for n, p in model.named_parameters() if "norm" not in n)
    assert rows[1]["weight_shape"] == (32, 4, 3, 3)
    assert rows[1]["output_size"][1:] == (32, 4, 4)
    assert rows[1]["module_type"] == "Conv2d"
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_count_flops_params_when_full_then_norms_count_too(capsys):
    model = Grouped()
    _, params, rows = count_flops_params(model, (1, 1, 8, 8), mode="full")
    assert params == sum(p.numel() for p in model.parameters())
    assert "norm" in [row["name"] for row in rows]
    assert "FLOPs total" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="got 'fll'"):
        count_flops_params(model, (1, 1, 8, 8), mode="fll")  # type: ignore[arg-type]


def test_count_flops_params_when_masks_are_on_then_masked_weights_do_not_count():
    model = Grouped()
    pruning.L1NormPruner(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]).compress()
    flops, _, _ = count_flops_params(model, (1, 1, 8, 8), verbose=False)
    half = {n: m / 2 if n in ("one", "two", "three") else m for n, m in macs().items()}
    assert flops == sum(half.values())
    assert masks_on(model)


def test_count_flops_params_when_the_user_counts_a_class_then_those_numbers_stand():
    def mine(module: nn.Module, x: Any, y: Tensor) -> dict[str, Any]:
        return {"flops": y.numel(), "params": 7}

    _, params, rows = count_flops_params(
        nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), (1, 4), {nn.ReLU: mine}, verbose=False
    )
    assert [(row["name"], row["flops"]) for row in rows] == [("1", 8), ("0", 4)]
    assert params == 17


# the whole way, with every pruner


def steps(
    model: nn.Module, optimizer: Any, step: Any, scheduler: Any, most: Any, epochs: Any
) -> None:
    for _ in range(6):
        optimizer.zero_grad()
        step((torch.randn(8, 1, 8, 8), torch.randint(0, 10, (8,))), model).backward()
        optimizer.step()


def loss(batch: Any, model: nn.Module) -> Tensor:
    return F.nll_loss(model(batch[0]), batch[1])


def evaluator(model: nn.Module) -> TorchEvaluator:
    sgd = secateur.nni.trace(torch.optim.SGD)(model.parameters(), lr=0.01, momentum=0.9)
    return TorchEvaluator(steps, sgd, loss, dummy_input=torch.rand(8, 1, 8, 8))


PLAIN = ("LevelPruner", "L1NormPruner", "L2NormPruner", "FPGMPruner")
TRAINED = {"SlimPruner": (6,), "TaylorPruner": (3,), "MovementPruner": (1, 5)}


@pytest.mark.parametrize("schedule", ["", "AGPPruner", "LinearPruner"])
@pytest.mark.parametrize("name", [*PLAIN, *TRAINED])
def test_pruner_when_groups_are_set_by_nnis_way_then_layers_lose_three_quarters(name, schedule):
    torch.manual_seed(0)
    model = Grouped()
    dense, example = copy.deepcopy(model), torch.rand(8, 1, 8, 8)
    config = [
        {"op_types": ["Linear"], "exclude_op_names": ["out"]},
        {"op_names": ["one", "two", "three"]},
    ]
    common = {"sparse_ratio": 0.75, "granularity": "out_channel"}
    config = auto_set_denpendency_group_ids(model, [{**c, **common} for c in config], example)
    kind = getattr(pruning, name)
    pruner = (
        kind(model, config)
        if name in PLAIN
        else kind(model, config, evaluator(model), *TRAINED[name])
    )
    if schedule:
        pruner = getattr(pruning, schedule)(pruner, 2, 3, evaluator(model))
    _, masks = pruner.compress(*((6, None) if schedule or name in TRAINED else ()))
    pruner.unwrap_model()
    said = compute_sparsity_mask2compact(model, masks, config)
    assert [entry["total_sparsity"] for entry in said] == [0.75] * 4
    for layer in ("one", "two", "three", "hidden"):
        alive = masks[layer]["weight"].flatten(1).amax(1)
        assert torch.equal(masks[layer]["bias"], alive), layer
    assert torch.equal(masks["two"]["bias"], masks["three"]["bias"])

    small = ModelSpeedup(model, example, masks).speedup_model()
    for layer in ("one", "two", "three", "hidden"):
        before, after = dense.get_submodule(layer), small.get_submodule(layer)
        assert after.weight.shape[0] == before.weight.shape[0] // 4, layer
    assert small(example).shape == (8, 10)
    said = compute_sparsity_compact2origin(dense, small, [{"op_types": ["Conv2d"], **common}])
    assert 0.75 < said[0]["total_sparsity"] < 0.95


def test_speedup_when_given_nnis_replacer_of_attention_then_it_is_accepted_without_a_word():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    masks = {"0": {"weight": torch.ones(8, 1), "bias": torch.ones(8)}}
    masks["0"]["weight"][:3] = masks["0"]["bias"][:3] = 0
    replacer = TransformersAttentionReplacer(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelSpeedup(model, torch.rand(2, 4), masks, customized_replacers=[replacer]).run()
    assert model[0].out_features == 5
