"""Prune a transformer in a Hugging Face Trainer: one callback, and the Trainer stays as it is.

The digits are read as sequences of 64 grey levels, so that nothing is downloaded.

    pip install "secateur[demo,hf]"
    python examples/hf_trainer.py --epochs 20
"""

from __future__ import annotations

import argparse
from tempfile import TemporaryDirectory

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import secateur as sc
from secateur.demo.digits import load_digits
from secateur.trainers.transformers import PruningCallback


def main(epochs: int = 20, rows: int | None = None) -> sc.Result:
    torch.manual_seed(0)
    data = load_digits()
    tokens = (data.train_images.flatten(1) * 16).long()
    train = [
        {"input_ids": ids, "labels": label}
        for ids, label in zip(tokens[:rows], data.train_labels[:rows], strict=True)
    ]
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=17,
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
            num_labels=10,
        )
    )
    batch = 32
    total = epochs * -(-len(train) // batch)
    config = sc.Config(sparsity=0.5, schedule="cubic", start=total // 3, steps=max(1, total // 3))
    pruner = sc.Pruner(model, config, {"input_ids": tokens[:1]})
    callback = PruningCallback(pruner, finish=True)
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            learning_rate=1e-3,
            logging_steps=max(1, total // 10),
            save_strategy="no",
            report_to=[],
        )
        Trainer(model=model, args=arguments, train_dataset=train, callbacks=[callback]).train()
    result = callback.result
    assert result is not None
    print(result)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    main(**vars(parser.parse_args()))
