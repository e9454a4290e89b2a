"""transformers: architectures from tiny configs, each with the head that lets most of it be cut.

A row of ``ARCHITECTURES`` is: model type → (what it does, arguments of its config besides those of
its kind).  The kinds are in ``KINDS``: the auto class, the arguments that most configs of the kind
share, and the example input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.types import Example

VOCABULARY, LENGTH = 100, 9


def _tokens() -> Example:
    return {"input_ids": torch.randint(5, VOCABULARY, (2, LENGTH))}


def _pairs() -> Example:
    words = torch.randint(5, VOCABULARY, (2, LENGTH))
    return {"input_ids": words, "decoder_input_ids": words.flip(1)[:, :7].contiguous()}


def _images(side: int = 64) -> Example:
    return {"pixel_values": torch.randn(2, 3, side, side)}


_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_PICTURE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
    "num_labels": 7,
}

KINDS: Mapping[str, tuple[str, Mapping[str, Any], Callable[[], Example]]] = {
    "decoder": ("AutoModelForCausalLM", _TEXT, _tokens),
    "encoder": ("AutoModelForSequenceClassification", {**_TEXT, "num_labels": 7}, _tokens),
    "sequence": ("AutoModelForSeq2SeqLM", _TEXT, _pairs),
    "image": ("AutoModelForImageClassification", _PICTURE, _images),
    "stages": ("AutoModelForImageClassification", {"num_labels": 7}, _images),
}

_GQA = {"num_key_value_heads": 2, "head_dim": 16}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_EXPERTS = {**_GQA, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_SMALL_EXPERTS = {**_EXPERTS, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 48}
_D_MODEL = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "decoder_start_token_id": 1,
}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 2}
_T5 |= {"num_heads": 4, "decoder_start_token_id": 0}
_LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
_WINDOWS = {
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "num_attention_heads": [2, 4],
    "patch_size": 4,
    "window_size": 4,
}
_STAGES = {"hidden_sizes": [32, 64], "depths": [1, 1], "num_labels": 7}

ARCHITECTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # Decoders: rotary positions, gated feed-forward, grouped queries.
    "llama": ("decoder", _GQA),
    "mistral": ("decoder", _GQA),
    "qwen2": ("decoder", _GQA),
    "qwen3": ("decoder", _GQA),
    "gemma": ("decoder", _GQA),
    "gemma2": ("decoder", _GQA),
    "phi": ("decoder", {}),
    "phi3": ("decoder", _GQA),
    "olmo2": ("decoder", _GQA),
    "cohere": ("decoder", _GQA),
    "stablelm": ("decoder", _GQA),
    "starcoder2": ("decoder", _GQA),
    "granite": ("decoder", _GQA),
    "glm": ("decoder", _GQA),
    "nemotron": ("decoder", _GQA),
    # Decoders of the GPT kind.
    "gpt2": ("decoder", _GPT),
    "gpt_neo": ("decoder", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}),
    "gpt_neox": ("decoder", {}),
    "gptj": ("decoder", {**_GPT, "rotary_dim": 8}),
    "codegen": ("decoder", {**_GPT, "rotary_dim": 8}),
    "bloom": ("decoder", {"n_layer": 2, "n_head": 4}),
    "falcon": ("decoder", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("decoder", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "opt": ("decoder", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    # Experts, latent attention, state spaces.
    "mixtral": ("decoder", _EXPERTS),
    "qwen3_moe": ("decoder", _SMALL_EXPERTS),
    "olmoe": ("decoder", _EXPERTS),
    "gpt_oss": ("decoder", _EXPERTS),
    "deepseek_v3": ("decoder", _LATENT),
    "mamba": ("decoder", {"state_size": 8}),
    "mamba2": ("decoder", {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 2}),
    # Encoders.
    "bert": ("encoder", {}),
    "roberta": ("encoder", {}),
    "distilbert": ("encoder", {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}),
    "electra": ("encoder", {"embedding_size": 64}),
    "albert": ("encoder", {"embedding_size": 32}),
    "mpnet": ("encoder", {}),
    "deberta-v2": ("encoder", {}),
    "convbert": ("encoder", {"embedding_size": 64}),
    "modernbert": ("encoder", {"global_attn_every_n_layers": 2, "cls_token_id": 1}),
    # Encoders with decoders.
    "t5": ("sequence", _T5),
    "bart": ("sequence", _D_MODEL),
    "m2m_100": ("sequence", _D_MODEL),
    # Images.
    "vit": ("image", {}),
    "beit": ("image", {}),
    "dinov2": ("image", {}),
    "swin": ("image", _WINDOWS),
    "swinv2": ("image", _WINDOWS),
    "segformer": ("image", {"num_attention_heads": [1, 2, 4, 8]}),
    "convnextv2": ("image", {**_STAGES, "num_stages": 2}),
    "resnet": ("image", {**_STAGES, "embedding_size": 32}),
    "poolformer": ("image", {}),
    "regnet": ("stages", {**_STAGES, "embedding_size": 32, "groups_width": 16}),
}

MODELS = tuple(ARCHITECTURES)


def make(name: str) -> tuple[nn.Module, Example]:
    """Return a tiny model of the architecture, and an example input."""
    import transformers

    kind, arguments = ARCHITECTURES[name]
    auto, shared, example = KINDS[kind]
    settings = {**shared, **arguments}
    config = transformers.AutoConfig.for_model(name, **settings)
    model = getattr(transformers, auto).from_config(config)
    side = settings.get("image_size", 64)
    return model, _images(side) if example is _images else example()
