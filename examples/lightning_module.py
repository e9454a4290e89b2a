"""Prune a LightningModule: one callback.

pip install "secateur[demo,lightning]"
python examples/lightning_module.py --epochs 10
"""

from __future__ import annotations

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.demo.digits import DigitsNet, accuracy, load_digits
from secateur.trainers.lightning import PruningCallback


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = DigitsNet(width=16, blocks=1)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(epochs: int = 10, rows: int | None = None) -> sc.Result:
    torch.manual_seed(0)
    data = load_digits()
    dataset = TensorDataset(data.train_images[:rows], data.train_labels[:rows])
    loader = DataLoader(dataset, batch_size=64, shuffle=True)
    module = Classifier()
    total = epochs * len(loader)
    config = sc.Config(
        sparsity=0.5, of="macs", schedule="cubic", start=total // 3, steps=max(1, total // 3)
    )
    pruner = sc.Pruner(module.net, config, data.test_images[:1])
    callback = PruningCallback(pruner, finish=True)
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, loader)
    result = callback.result
    assert result is not None
    print(result)
    print(f"accuracy of the smaller model: {accuracy(result.model.eval(), data):.1f} %")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    main(**vars(parser.parse_args()))
