"""Prune in your own training loop: the pruner is stepped like a learning-rate scheduler.

python examples/plain_loop.py --epochs 10 --out small
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy

import secateur as sc
from secateur.demo.digits import DigitsNet, accuracy, load_digits


def main(epochs: int = 10, out: str | None = None) -> sc.Result:
    torch.manual_seed(0)
    data = load_digits()
    model = DigitsNet(width=16, blocks=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = list(zip(data.train_images.split(64), data.train_labels.split(64), strict=True))

    # Nothing goes in the first third; then a little more every epoch, up to half of the MACs.
    steps = max(1, epochs // 3)
    config = sc.Config(
        sparsity=0.5,
        of="macs",
        schedule="cubic",
        start=steps * len(batches),
        steps=steps,
        every=len(batches),
    )
    pruner = sc.Pruner(model, config, data.test_images[:1])
    for epoch in range(epochs):
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            metrics = pruner.step()
        model.eval()
        print(f"epoch {epoch}: {accuracy(model, data):.1f} %, sparsity {metrics['sparsity']:.2f}")

    result = pruner.finish()
    print(result)
    print(f"accuracy of the smaller model: {accuracy(result.model, data):.1f} %")
    if out:
        print("saved in", result.save(out))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out")
    main(**vars(parser.parse_args()))
