"""What is streamed is, bit for bit, what is pruned in memory, and loads where the result says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from tests.streaming.checkpoints import batches, example, saved, weights_in, without_cache

GROUPS = {"sparsity": 0.5, "what": ["width", "heads"]}
MASKS = {
    "granularity": "element",
    "criterion": "wanda",
    "repair": "none",
    "names": ["model.layers.*"],
    "sparsity": 0.5,
}
OBS = {**MASKS, "criterion": "obs", "repair": "sparse", "granularity": "2:4", "sparsity": None}
OBS = {key: value for key, value in OBS.items() if value is not None}


def pruned_both_ways(
    name: str, folder: Path, dtype: torch.dtype, settings: dict[str, Any]
) -> tuple[Any, Any]:
    """Return the results in memory and streamed, which is in ``folder / "out"``."""
    model = saved(name, folder / "dense", dtype)
    data, x = batches(), example()
    streamed = sc.prune_checkpoint(
        folder / "dense", folder / "out", x, data=data, verify=False, **settings
    )
    fed = [without_cache(model, batch) for batch in data]
    whole = sc.prune(model, without_cache(model, x), data=fed, verify=False, **settings)
    return whole, streamed


def assert_same(whole: Any, streamed: Any, out: Path) -> None:
    assert streamed.plan.keep == whole.plan.keep
    found, expected = weights_in(out), whole.model.state_dict()
    tied = {name for name in expected if name not in found}
    assert {expected[n].data_ptr() for n in tied} <= {expected[n].data_ptr() for n in found}
    wrong = [n for n in found if not torch.equal(found[n], expected[n])]
    assert not wrong


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("gpt2", torch.float32),
        *(
            pytest.param(n, d, marks=pytest.mark.slow)
            for d in (torch.float32, torch.bfloat16)
            for n in ("llama", "mistral", "qwen3", "gemma2", "gpt2", "bert", "mixtral")
        ),
    ],
)
def test_prune_checkpoint_when_groups_go_then_is_the_model_pruned_in_memory(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole, streamed = pruned_both_ways(name, tmp_path, dtype, GROUPS)
    assert any(whole.plan.keep)
    assert_same(whole, streamed, tmp_path / "out")


@pytest.mark.parametrize(
    "settings",
    [MASKS, pytest.param(OBS, marks=pytest.mark.slow)],
    ids=["wanda", "obs 2:4, repaired"],
)
def test_prune_checkpoint_when_single_weights_go_then_has_the_masks_of_memory(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    whole, streamed = pruned_both_ways("llama", tmp_path, torch.float32, settings)
    assert_same(whole, streamed, tmp_path / "out")
    weight = weights_in(tmp_path / "out")["model.layers.1.mlp.down_proj.weight"]
    assert float((weight == 0).float().mean()) == 0.5


SAID: dict[str, tuple[str, dict[str, Any], str]] = {
    "less than one": ("llama", {**GROUPS, "sparsity": 0.2}, "is less than one position of"),
    "out of reach": ("gpt2", {"sparsity": 0.9, "of": "params", "strict": False}, "cannot go"),
}


@pytest.mark.parametrize("name", SAID)
def test_prune_checkpoint_when_memory_has_something_to_say_then_it_is_said_too(
    name: str, tmp_path: Path
) -> None:
    model, settings, said = SAID[name]
    whole, streamed = pruned_both_ways(
        model, tmp_path, torch.float32, {**settings, "criterion": "l1", "repair": "none"}
    )
    assert any(said in each for each in (*whole.warnings, *whole.notes))
    assert streamed.warnings == whole.warnings
    assert set(whole.notes) <= set(streamed.notes)


def test_prune_checkpoint_when_a_config_says_the_sizes_then_the_class_itself_loads(
    tmp_path: Path,
) -> None:
    model = saved("llama", tmp_path / "dense")
    out, x = tmp_path / "out", without_cache(model, example())
    result = sc.prune_checkpoint(tmp_path / "dense", out, x, data=batches(), **GROUPS)
    assert result.rebuilt
    assert result.verification is not None
    assert result.verification.passed
    stock = type(model).from_pretrained(out).eval()
    assert (stock.config.num_attention_heads, stock.config.intermediate_size) == (2, 32)
    ours = sc.load_pruned(out, type(model).from_pretrained(tmp_path / "dense")).eval()
    with torch.no_grad():
        assert torch.equal(stock(**x).logits, ours(**x).logits)
    told = json.loads((out / "blocks.json").read_text())
    assert [each["block"] for each in told] == ["model.layers.0", "model.layers.1"]
    for each in told:
        assert each["masked == smaller"]["difference"] <= each["masked == smaller"]["tolerance"]
        error = each["error of the stream"]
        assert 0 < error["after"] < error["before repair"]
    assert not (out / ".streaming").exists()


@pytest.mark.slow
def test_prune_checkpoint_when_no_config_says_the_sizes_then_ours_loads(
    tmp_path: Path,
) -> None:
    model = saved("gpt2", tmp_path / "dense")
    out, x = tmp_path / "out", without_cache(model, example())
    result = sc.prune_checkpoint(
        tmp_path / "dense", out, x, data=batches(2), sparsity=0.5, verify=False
    )
    assert result.config is None
    assert not (out / "config.json").exists()
    small = sc.load_pruned(out, type(model).from_pretrained(tmp_path / "dense")).eval()
    with torch.no_grad():
        assert torch.equal(small(**x).logits, sc.from_pretrained(out)(**x).logits)


@pytest.mark.slow
def test_prune_checkpoint_when_a_budget_is_of_parameters_then_it_is_met(tmp_path: Path) -> None:
    saved("llama", tmp_path / "dense")
    result = sc.prune_checkpoint(
        tmp_path / "dense",
        tmp_path / "out",
        example(),
        data=batches(2),
        sparsity=0.3,
        of="params",
        alike=True,
        repair="none",
        verify=False,
        what=["width"],
    )
    share = 1 - result.after.params / result.before.params
    assert 0.3 <= share < 0.33
    assert [goal.met for goal in result.goals] == [True]


def test_prune_checkpoint_when_no_config_of_transformers_says_the_result_then_ours_loads_it(
    tmp_path: Path,
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 128, "intermediate_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=4)  # 3 divide no 128
    dense = LlamaForCausalLM(config).eval()
    dense.save_pretrained(tmp_path / "dense")
    x = {"input_ids": torch.arange(8)[None]}
    data = [{"input_ids": torch.randint(0, 50, (4, 16))} for _ in range(4)]
    how: dict[str, Any] = {"sparsity": 0.25, "what": ["width", "heads"], "data": data}
    streamed = sc.prune_checkpoint(tmp_path / "dense", tmp_path / "out", x, **how)
    whole = sc.prune(dense, x, **how)
    whole.save(tmp_path / "whole")
    assert streamed.loads_with == whole.loads_with
    assert "refused" in streamed.loads_with
    found, expected = (sc.from_pretrained(tmp_path / name).eval() for name in ("out", "whole"))
    assert torch.equal(found(**x).logits, expected(**x).logits)
    assert not list((tmp_path / "out").glob("config.json"))
