"""Every causal and masked language model class of transformers, from tiny configs.

What makes a config of any class small is what its numbers are called: ``SMALL`` says what each is.
A row of ``BESIDES`` is what one class needs to be built at all: what its code asserts of others.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.types import Example
from tests.zoo import torchvision_models

VOCABULARY, LENGTH, LAYERS = 96, 9, 3
MOST = 20_000_000  # parameters: a config that none of the names made small

SMALL: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("vocab_size_per_layer_input", "entity_vocab_size", "n_words"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), 64),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "attention_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_decoder_layers",), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_size", "global_head_dim"), 16),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 96),
    **dict.fromkeys(("ffn_hidden_size", "n_inner", "dff", "dim_ff", "hidden_dim"), 96),
    **dict.fromkeys(("d_inner", "feed_forward_size", "dense_intermediate_size"), 96),
    **dict.fromkeys(("shared_intermediate_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 48),
    **dict.fromkeys(("shared_expert_intermediate_size",), 48),
    **dict.fromkeys(("moe_shared_expert_intermediate_size",), 48),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_num_experts",), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("model_max_length", "max_source_positions", "context_length"), 128),
    **dict.fromkeys(("max_target_positions", "original_max_position_embeddings"), 128),
    **dict.fromkeys(("kv_lora_rank", "o_lora_rank", "q_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("index_head_dim",), 16),
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("swa_num_attention_heads",), 4),
    **dict.fromkeys(("swa_num_key_value_heads",), 2),
    **dict.fromkeys(("swa_head_dim",), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "entity_emb_size", "lru_width"), 64),
    **dict.fromkeys(("image_size",), 32),
    **dict.fromkeys(("patch_size",), 16),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_size"), 32),
    **dict.fromkeys(("pad_token_id", "pad_index"), 0),
    **dict.fromkeys(("bos_token_id", "bos_index"), 1),
    **dict.fromkeys(("eos_token_id", "eos_index", "decoder_start_token_id"), 2),
    **dict.fromkeys(("sep_token_id", "cls_token_id", "unk_index", "mask_index"), 3),
    **dict.fromkeys(("image_token_id", "image_token_index"), 4),
    **dict.fromkeys(("forced_eos_token_id", "eod_token_id"), 2),
}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_OF_LAYERS = {
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
}
_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_REFORMER = {
    "axial_pos_embds_dim": (32, 32),
    "axial_pos_shape": (8, 16),
    "attn_layers": ("local", "lsh", "local"),
    "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4,
}

BESIDES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("bailing_hybrid", "granitemoehybrid", "kimi_linear"), _HYBRID),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {
        "use_cache": False,  # its config lacks what a cache counts
        "encoder_hash_byte_group_vocab": 32,
        "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        "shared_experts_intermediate_size": 48,
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "v_head_dim")},
        **{"swa_head_dim": 24, "swa_qk_nope_head_dim": 16},
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n": {"text_config": _OF_LAYERS},
    "gemma3n_text": _OF_LAYERS,
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_unified": {"text_config": _OF_LAYERS, "vision_config": {"mm_embed_dim": 64}},
    "gemma4_unified_assistant": {"text_config": _OF_LAYERS},
    "gpt_neo": {"attention_types": [[["global"], LAYERS]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {"zero_expert_num": 2, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "reformer": _REFORMER,
    "roc_bert": {
        **dict.fromkeys(("shape_vocab_size", "pronunciation_vocab_size"), VOCABULARY),
        **dict.fromkeys(("shape_embed_dim", "pronunciation_embed_dim"), 32),
    },
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["hybrid", "mamba", "hybrid"]},
    "zamba2": {"layers_block_type": ["hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
    "esmc": {"num_key_value_heads": 4},
    "perceiver": {
        **{"d_latents": 64, "num_latents": 16, "num_self_attends_per_block": LAYERS},
        **dict.fromkeys(("num_self_attention_heads", "num_cross_attention_heads"), 4),
    },
}


def classes() -> dict[str, type[nn.Module]]:
    """Return every class that an Auto class of causal or masked language models makes, by name."""
    torchvision_models()
    from transformers.models.auto import modeling_auto as auto

    found: dict[str, type[nn.Module]] = {}
    for mapping in (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_MASKED_LM_MAPPING):
        for config in mapping:
            made = mapping[config]
            for kind in made if isinstance(made, tuple) else (made,):
                found.setdefault(kind.__name__, kind)
    return found


def quiet() -> None:
    """Let transformers show no progress, and no warnings of tiny configs."""
    from transformers import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def settings(config: Any) -> dict[str, Any]:
    """Return what makes a config of a class small: its numbers, and those of the configs in it."""
    known = {*inspect.signature(config.__init__).parameters, *config.attribute_map}
    known |= {*getattr(config, "__dataclass_fields__", ())}
    renamed = {*config.attribute_map} if known & {*config.attribute_map.values()} else set()
    found = {name: SMALL[name] for name in SMALL if name in known - renamed}
    if "kv_lora_rank" in found:  # latent attention makes keys for each head
        found["num_key_value_heads"] = found["num_attention_heads"]
    for name, inner in getattr(config, "sub_configs", {}).items():
        if inner.__name__ == "AutoConfig" and (inner := _usual(config, name)) is not None:
            found[name] = {"model_type": inner.model_type, **settings(inner)}
        elif inner is not None:
            found[name] = settings(inner)
    return merged(found, BESIDES.get(config.model_type, {}))


def _usual(config: Any, name: str) -> Any:
    """Return the class of a config that one of a class holds where nothing else is said."""
    try:
        return type(getattr(config(), name))
    except Exception:  # it has no usual one
        return None


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return both, the second first, also inside of what both have."""
    found = dict(one)
    for name, value in other.items():
        inner = found.get(name)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        found[name] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return found


def make(kind: type[nn.Module]) -> tuple[nn.Module, Example]:
    """Return a tiny model of a class, with its own initial values, and an example input."""
    known: Any = kind
    config = known.config_class(**settings(known.config_class))
    if is_causal(kind) and hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.device("meta"):
        size = sum(p.numel() for p in known(config).parameters())
    if size > MOST:
        raise ValueError(f"the tiny config makes {size:,} parameters")
    torch.manual_seed(0)
    model = known(config).eval()
    return model, example(model.config)


def is_causal(kind: type[nn.Module]) -> bool:
    """Tell whether a class says one word after the other."""
    return "MaskedLM" not in kind.__name__ and callable(getattr(kind, "generate", None))


def example(config: Any) -> Example:
    """Return words that a model takes, the pair of both sides where it has two."""
    if config.is_encoder_decoder:
        return {"input_ids": words(), "decoder_input_ids": words().flip(1)[:, :7].contiguous()}
    return {"input_ids": words()}


def words() -> Tensor:
    """Return a batch of tokens, (2, length), which are none of the special ones."""
    return torch.randint(5, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
