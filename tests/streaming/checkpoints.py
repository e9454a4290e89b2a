"""Small checkpoints with random weights, in several shards, and what they are calibrated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.zoo import torchvision_models

SHAPE = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = {**SHAPE, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 2}
CLASSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**GQA, "sliding_window": 8}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**GQA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**GQA, "head_dim": 8}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**GQA, "num_local_experts": 4}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1}
        | {"eos_token_id": 2},
    ),
    "bert": (
        "BertForMaskedLM",
        "BertConfig",
        {**SHAPE, "hidden_size": 32, "intermediate_size": 64},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 60, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
    ),
}


def saved(name: str, folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    """Save a model with random weights; return it as its own loader reads it."""
    torchvision_models()
    import transformers

    kind, config, shape = CLASSES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, config)(**{**shape, **more}, dtype=dtype)
        model = getattr(transformers, kind)(made).to(dtype)
        for parameter in model.parameters():  # norms and biases too
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size="20KB", save_original_format=False)
    return type(model).from_pretrained(folder).eval()


def batches(count: int = 4, rows: int = 4, length: int = 32) -> list[dict[str, torch.Tensor]]:
    """Return batches of tokens, of which some are padding."""
    generator = torch.Generator().manual_seed(1)
    ends = torch.tensor([length, length - 4, length - 11, length])[:rows, None]
    mask = (torch.arange(length)[None] < ends).long()
    ids = torch.randint(60, (count, rows, length), generator=generator)
    return [{"input_ids": each, "attention_mask": mask.clone()} for each in ids]


def example() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(12)[None] % 60}


def without_cache(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch as streaming passes it on."""
    return {"use_cache": False, **batch} if hasattr(model.config, "use_cache") else batch


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a folder's weights."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= load_file(path)
    return found
