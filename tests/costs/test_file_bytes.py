"""A goal of bytes is of the file that ``Result.save`` writes, whoever names what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from tests.zoo import torchvision_models

MIXTRAL = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
MIXTRAL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT |= {"intermediate_size": 64, "image_size": 16, "patch_size": 4}
LLAMA = {**MIXTRAL, "tie_word_embeddings": True}
IDS = {"input_ids": torch.arange(12)[None]}


def of_transformers(kind: str, config: str, shape: dict[str, Any]) -> nn.Module:
    torchvision_models()
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, kind)(getattr(transformers, config)(**shape)).eval()  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "experts": (lambda: of_transformers("MixtralForCausalLM", "MixtralConfig", MIXTRAL), IDS),
    "other names": (
        lambda: of_transformers("ViTForImageClassification", "ViTConfig", VIT),
        {"pixel_values": torch.zeros(1, 3, 16, 16)},
    ),
    "tied": (lambda: of_transformers("LlamaForCausalLM", "LlamaConfig", LLAMA), IDS),
    "plain": (
        lambda: nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 4)),
        torch.zeros(2, 8),
    ),
}
WAYS: list[dict[str, Any]] = [{}, {"what": ["width"], "uniform": True}]


@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("way", WAYS, ids=["free", "uniform widths"])
@pytest.mark.parametrize("name", MODELS)
def test_budget_of_bytes_when_saved_then_the_file_is_no_larger(
    name: str, way: dict[str, Any], tmp_path: Path
) -> None:
    make, x = MODELS[name]
    dense = sc.prune(make(), x, 0.01, of="bytes", criterion="l1", **way).goals[0].dense
    whole = float(dense.split()[0]) * {"k": 1e3, "M": 1e6, "": 1.0}[dense.split()[1].rstrip("B")]
    for share in (0.97, 0.9, 0.85):
        budget = int(share * whole)
        result = sc.prune(make(), x, budget=f"{budget} B", criterion="l1", **way)
        result.save(tmp_path / str(share))
        size = (tmp_path / str(share) / "model.safetensors").stat().st_size
        assert result.goals[0].met
        assert size <= budget
        assert size > 0.85 * budget, "and not much smaller: experts lose eight neurons at once"
