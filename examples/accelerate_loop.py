"""Prune in an Accelerate loop: from one process to many by `accelerate launch`, unchanged.

The pruner is made on the bare model, before `prepare` wraps it.

    pip install "secateur[demo,hf]"
    accelerate launch examples/accelerate_loop.py --epochs 10
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.demo.digits import DigitsNet, accuracy, load_digits


def main(epochs: int = 10, rows: int | None = None) -> sc.Result:
    torch.manual_seed(0)
    data = load_digits()
    bare = DigitsNet(width=16, blocks=1)
    dataset = TensorDataset(data.train_images[:rows], data.train_labels[:rows])
    loader = DataLoader(dataset, batch_size=64, shuffle=True)

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    optimizer = torch.optim.AdamW(bare.parameters(), lr=3e-3)
    total = epochs * len(loader)
    config = sc.Config(
        sparsity=0.5, of="macs", schedule="cubic", start=total // 3, steps=max(1, total // 3)
    )
    pruner = sc.Pruner(bare, config, data.test_images[:1])
    model, optimizer, loader = accelerator.prepare(bare, optimizer, loader)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            accelerator.backward(cross_entropy(model(images), labels))
            optimizer.step()
            pruner.step()

    result = pruner.finish()
    accelerator.print(result)
    small = result.model.cpu().eval()
    accelerator.print(f"accuracy of the smaller model: {accuracy(small, data):.1f} %")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    main(**vars(parser.parse_args()))
