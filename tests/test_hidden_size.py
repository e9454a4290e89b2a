"""The hidden size of language models whose norms take no mean away: exact, and in their config."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from tests import zoo

zoo.torchvision_models()  # which transformers imports
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2}
KEPT = tuple(i for i in range(32) if i % 4 != 1)


class Logits(nn.Module):
    """An encoder and decoder of which only the logits are returned, and not the hidden states."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, decoder_input_ids=ids).logits


def t5(**settings: Any) -> nn.Module:
    config = transformers.T5Config(**T5, num_heads=4, **settings)
    return Logits(transformers.T5ForConditionalGeneration(config))


def decoder(name: str, config: str = "", **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        kind = getattr(transformers, config or f"{name}Config")
        return getattr(transformers, f"{name}ForCausalLM")(kind(**SIZES | settings))

    return make


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": decoder("Llama"),
    "llama, tied, biased": decoder("Llama", tie_word_embeddings=True, attention_bias=True),
    "qwen2": decoder("Qwen2"),
    "qwen3": decoder("Qwen3"),
    "mistral": decoder("Mistral"),
    "mixtral": decoder("Mixtral", num_local_experts=4),
    "gemma": decoder("Gemma"),
    "gemma2": decoder("Gemma2"),
    "gemma3": decoder("Gemma3", "Gemma3TextConfig"),
    "olmo2": decoder("Olmo2"),
    "phi3": decoder("Phi3"),
    "granite": decoder("Granite"),
    "t5": t5,
    "t5, untied, gated": lambda: t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
}
IN_CONFIG = ("llama", "llama, tied, biased", "qwen2", "mistral", "mixtral", "phi3", "granite")
"""Those whose other norms and scales do not come from the same numbers."""
FAST = ("llama", "qwen3", "gemma3", "t5")


def built(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for path, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.5 if "norm" in path else 0.2)
        return model, torch.randint(3, 64, (2, 9))


def hidden(structure: sc.Structure) -> sc.Group:
    """Return the group that the columns of the embedding are."""
    (found,) = (
        g
        for g in structure.groups
        if any("embed_tokens" in m.tensor or "shared" in m.tensor for m in g.members)
    )
    return found


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(ids)
    return out if isinstance(out, Tensor) else out.logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in MODELS]
)
def test_hidden_size_when_it_is_cut_then_smaller_is_masked_and_loads(name, tmp_path):
    model, ids = built(name)
    group = hidden(sc.analyze(model, ids))
    assert group.exact
    result = sc.apply_plan(model, sc.Plan({group.name: KEPT}), ids)
    assert result.verification.exact
    assert result.verification.passed
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for path, mask in result.masks.items():
            masked.get_parameter(path).mul_(mask)
    found, expected = logits(result.model, ids), logits(masked, ids)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    result.save(tmp_path / "ours")
    loaded = sc.load_pruned(tmp_path / "ours", copy.deepcopy(model))
    assert torch.equal(logits(loaded, ids), found)
    assert (result.config is not None) == (name in IN_CONFIG)
    if result.config is not None:
        eps = model.config.rms_norm_eps
        assert result.config["hidden_size"] == (32, 24)
        assert result.config["rms_norm_eps"] == (eps, pytest.approx(eps * 32 / 24))
        assert len(result.config) == 2
        assert result.rebuilt
        result.model.save_pretrained(tmp_path / "stock")
        stock = type(model).from_pretrained(tmp_path / "stock")
        assert torch.equal(logits(stock, ids), found)


@pytest.mark.filterwarnings("ignore")
def test_hidden_size_when_norms_of_heads_are_cut_too_then_both_are_exact():
    model, ids = built("qwen3")
    structure = sc.analyze(model, ids)
    norms = [n for n, _ in model.named_parameters() if "q_norm" in n]
    groups = [g for g in structure.groups if any(m.tensor in norms for m in g.members)]
    assert groups
    assert all(g.exact for g in groups)
    plan = {hidden(structure).name: KEPT}
    plan |= {n: tuple(range(g.size // 2)) for g in groups for n in (g.name, *g.sized)}
    result = sc.apply_plan(model, sc.Plan(plan), ids)
    assert result.plan.keep.keys() == plan.keys()
    assert result.verification.exact
    assert result.verification.passed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hidden_size_of_a_trained_llama_when_300_of_384_stay_then_the_stock_class_loads_it(
    shared_data, tmp_path
):
    folder = zoo.shared_data_folder() / "docs_lm" / "llama"
    if not folder.is_dir():
        pytest.skip(f"no language model at {folder}")
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, 32))
    group = hidden(sc.analyze(model, ids))
    norms = model.get_input_embeddings().weight.detach().norm(dim=0)
    kept = tuple(sorted(norms.topk(300).indices.tolist()))
    result = sc.apply_plan(model, sc.Plan({group.name: kept}), ids)
    assert group.exact
    assert result.verification.exact
    assert result.verification.passed
    assert result.config is not None
    assert result.config["hidden_size"] == (384, 300)
    result.model.save_pretrained(tmp_path)
    stock = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(stock, ids), logits(result.model, ids))
