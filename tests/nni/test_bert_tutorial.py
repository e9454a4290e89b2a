"""NNI's tutorial for BERT on a tiny one: attention by movement in blocks, the rest by Taylor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from secateur import nni
from secateur.nni import TransformersEvaluator
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


def test_tutorial_when_run_as_documented_then_bert_is_smaller_and_computes_the_same(
    tmp_path: Path,
) -> None:
    torchvision_models()  # transformers imports torchvision
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
        )
    )
    tokens = torch.randint(2, 60, (128, 12))
    labels = (tokens == 7).any(1).long()
    rows: Any = [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=32,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = nni.trace(Trainer)(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    dummy_input = {"input_ids": tokens[:2]}
    evaluator = TransformersEvaluator(trainer, dummy_input=dummy_input)

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
