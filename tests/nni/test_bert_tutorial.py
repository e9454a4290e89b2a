"""NNI's tutorial for BERT on a tiny one: attention, then feed-forward layers, then embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur import nni
from secateur.nni import TransformersEvaluator
from secateur.nni.base.setting import PruningSetting
from secateur.nni.pruning import AGPPruner, MovementPruner, TaylorPruner
from secateur.nni.speedup import ModelSpeedup
from tests.zoo import torchvision_models

LAYER = r"bert\.encoder\.layer\.[0-9]*\."
ATTENTION = {
    "op_types": ["Linear"],
    "op_names_re": [LAYER + r"attention\..*"],
    "sparse_threshold": 0.5,
    "max_sparse_ratio": 0.8,
    "granularity": [8, 8],
}
FEED_FORWARD = [
    {"op_types": ["Linear"], "op_names_re": [LAYER + "intermediate"], "sparse_ratio": 0.5},
    {
        "op_types": ["Linear"],
        "op_names_re": [LAYER + r"output\.dense"],
        "target_names": ["weight"],
        "granularity": "in_channel",
        "sparse_ratio": 0.25,
    },
]


WORDS = {"module_name": "bert.embeddings.word_embeddings", "target_name": "weight", "dims": [1]}
EMBEDDINGS = [
    {
        "op_types": ["Embedding"],
        "op_names_re": [r"bert\.embeddings.*"],
        "sparse_ratio": 0.5,
        "dependency_group_id": 1,
        "granularity": [-1, 1],
    },
    {
        "op_names_re": [LAYER + "attention$", LAYER + "output$"],
        "target_names": ["_output_"],
        "target_settings": {"_output_": {"align": WORDS}},
    },
    {
        "op_names_re": [LAYER + r"attention\.output\.dense", LAYER + r"output\.dense"],
        "target_names": ["weight"],
        "target_settings": {"weight": {"granularity": "out_channel", "align": WORDS}},
    },
]


def bert() -> Any:
    torchvision_models()  # transformers imports torchvision
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    )


def sentences() -> tuple[Tensor, Any]:
    tokens = torch.randint(2, 60, (128, 12), generator=torch.Generator().manual_seed(0))
    labels = (tokens == 7).any(1).long()
    return tokens, [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def trainer_of(model: Any, rows: Any, folder: Path) -> Any:
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=32,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = nni.trace(Trainer)(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer


def test_tutorial_when_run_as_documented_then_bert_is_smaller_and_computes_the_same(
    tmp_path: Path,
) -> None:
    model = bert()
    tokens, rows = sentences()
    dummy_input = {"input_ids": tokens[:2]}
    evaluator = TransformersEvaluator(trainer_of(model, rows, tmp_path), dummy_input=dummy_input)

    movement = MovementPruner(model, [ATTENTION], evaluator, 4, 10, regular_scale=10)
    _, attention = movement.compress(16, None)
    movement.unwrap_model()
    agp = AGPPruner(TaylorPruner(model, FEED_FORWARD, evaluator, 2), 2, 3)
    _, feed_forward = agp.compress(6, None)
    agp.unwrap_model()
    masks = {**attention, **feed_forward}

    assert len(masks) == 12
    for name, mask in attention.items():
        blocks = mask["weight"].reshape(4, 8, 4, 8).mean((1, 3))
        assert set(blocks.flatten().tolist()) <= {0.0, 1.0}, name
        assert 0.0 < float(1 - blocks.mean()) <= 0.8, name
    before = sum(p.numel() for p in model.parameters())
    masked = model.eval()(**dummy_input).logits
    speedup = ModelSpeedup(model, dummy_input, masks)
    speedup.speedup_model()
    assert sum(p.numel() for p in model.parameters()) < 0.8 * before
    torch.testing.assert_close(model(**dummy_input).logits, masked, atol=1e-4, rtol=1e-4)


def test_tutorial_when_embeddings_are_pruned_then_hidden_positions_go_on_request(
    tmp_path: Path,
) -> None:
    model = bert()
    tokens, rows = sentences()
    align = {"module_name": None, "target_name": "weight", "dims": [0]}
    for kind in ("BertAttention", "BertOutput"):
        PruningSetting.register(kind, {"_output_": {"align": align, "apply_method": "mul"}})
    evaluator = TransformersEvaluator(trainer_of(model, rows, tmp_path))  # and no dummy_input
    agp = AGPPruner(TaylorPruner(model, EMBEDDINGS, evaluator, 2), 2, 3)
    _, masks = agp.compress(6, None)
    kept = masks["bert.embeddings.word_embeddings"]["weight"].amax(0)
    assert kept.sum() == 16
    seen: list[Tensor] = []
    hook = model.bert.encoder.layer[0].register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model.eval()(tokens[:2])
    hook.remove()
    assert not seen[0][..., kept == 0].any()
    assert seen[0][..., kept == 1].all()
    agp.unwrap_model()
    for name in ("position_embeddings", "token_type_embeddings"):
        assert torch.equal(masks[f"bert.embeddings.{name}"]["weight"].amax(0), kept)

    before = sum(p.numel() for p in model.parameters())
    dense = ModelSpeedup(model, tokens[:2], masks)
    dense.speedup_model()
    assert sum(p.numel() for p in model.parameters()) == before
    assert any("stay unless inexact=True" in note for note in dense.result.notes)
    masked = model(tokens[:2]).logits.detach()
    speedup = ModelSpeedup(model, tokens[:2], masks, inexact=True)
    speedup.speedup_model()
    assert sum(p.numel() for p in model.parameters()) < 0.55 * before
    assert model.bert.embeddings.LayerNorm.normalized_shape == (16,)
    assert not torch.allclose(model(tokens[:2]).logits, masked, rtol=1e-3)
    told = [w for w in speedup.result.warnings if "on request" in w and " relative" in w]
    assert len(told) == 1
    assert "inexact" in str(speedup.result.verification)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)  # and it trains on
    model.train()(tokens[:2], labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
