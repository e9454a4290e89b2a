"""Libraries built on einops: models of one process do not get each other's sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from tests.zoo import torchvision_models

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(16)[None]
SIZES = {"image_size": 32, "num_classes": 5, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}


def vit(module: str, kind: str) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        torchvision_models()
        library = pytest.importorskip(module)
        return getattr(library, kind)(**SIZES, dim_head=8, patch_size=8).eval(), IMAGE

    return build


def decoder(**more: object) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        library = pytest.importorskip("x_transformers")
        layers = library.Decoder(dim=32, depth=2, heads=4, attn_dim_head=8, **more)
        model = library.TransformerWrapper(num_tokens=20, max_seq_len=32, attn_layers=layers)
        return model.eval(), IDS

    return build


MODELS = {
    "ViT": vit("vit_pytorch", "ViT"),
    "SimpleViT": vit("vit_pytorch.simple_vit", "SimpleViT"),
    "DeepViT": vit("vit_pytorch.deepvit", "DeepViT"),
    "decoder": decoder(),
    "decoder with rotary positions": decoder(rotary_pos_emb=True),
}


def said(structure: sc.Structure) -> list[str]:
    groups = [f"{g} {g.sized} {g.frozen}" for g in (*structure.groups, *structure.frozen)]
    return [*groups, *map(str, structure.inferred.attributes)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of these libraries' own
def test_analyze_when_other_models_were_pruned_before_then_it_is_as_it_was_at_first():
    first = {name: said(sc.analyze(*build())) for name, build in MODELS.items()}
    for build in MODELS.values():
        model, x = build()
        model(x)
        assert sc.prune(model, x, 0.5).verification.passed
    assert {name: said(sc.analyze(*build())) for name, build in MODELS.items()} == first


@pytest.mark.filterwarnings("ignore")
def test_analyze_when_another_model_ran_and_was_analysed_then_it_is_as_it_was_at_first():
    first = said(sc.analyze(*MODELS["ViT"]()))
    for name in ("SimpleViT", "decoder"):
        model, x = MODELS[name]()
        model(x)
        sc.analyze(model, x)
    assert said(sc.analyze(*MODELS["ViT"]())) == first


@pytest.mark.filterwarnings("ignore")
def test_prune_when_a_vit_loses_heads_then_each_block_counts_its_own():
    model, x = MODELS["ViT"]()
    structure = sc.analyze(model, x)
    heads = [g.name for g in structure.groups if g.size == 4]
    assert len(heads) == 2
    keep = {heads[0]: (0, 1), heads[1]: (0, 1, 3)}
    result = sc.apply_plan(model, sc.Plan(keep), x)
    assert [attention.heads for attention, _ in result.model.transformer.layers] == [2, 3]
    assert result.verification.passed
