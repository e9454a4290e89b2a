"""Prune while fine-tuning with Accelerate: one process or many, any precision, resumable.

    accelerate launch examples/accelerate_finetune.py --folder runs/digits
    accelerate launch examples/accelerate_finetune.py --folder runs/digits --resume

The lines that secateur adds to such a loop end in "# secateur".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch.nn.functional as F
from accelerate import Accelerator
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

import secateur as sc
from secateur.demo.digits import DigitsNet, accuracy, load_digits

SPARSITY = sc.Config(
    criterion="taylor", sparsity=0.5, of="macs", schedule="cubic", steps=10, every=9
)


def main(folder: Path, *, resume: bool = False, epochs: int = 8) -> sc.Result:
    """Train from the start or from the checkpoint in ``folder``, prune on the way, cut, save."""
    accelerator = Accelerator(gradient_accumulation_steps=2)
    data = load_digits()
    model = DigitsNet()
    example = data.train_images[:2]
    pruner = sc.Pruner(model, SPARSITY, example)  # secateur: of the bare model
    model, optimizer, loader = accelerator.prepare(
        model,
        AdamW(model.parameters(), lr=3e-3, weight_decay=0.05),
        DataLoader(TensorDataset(data.train_images, data.train_labels), 32, shuffle=True),
    )
    checkpoint = folder / "checkpoint"
    if resume:
        accelerator.load_state(str(checkpoint))
        pruner.load(checkpoint / "pruner.safetensors")  # secateur
    while pruner.calls < epochs * len(loader) // 2:
        model.train()
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                if accelerator.sync_gradients:
                    metrics = pruner.step()  # secateur
                optimizer.zero_grad()
        accelerator.print(f"loss {loss.item():.3f}, {metrics}")
        accelerator.save_state(str(checkpoint))
        pruner.save(checkpoint / "pruner.safetensors")  # secateur
    result = pruner.finish()
    accelerator.print(f"accuracy {accuracy(result.model.cpu().eval(), data):.1f} %\n{result}")
    if accelerator.is_main_process:
        result.save(folder / "small")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    main(given.folder, resume=given.resume)
