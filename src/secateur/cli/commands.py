"""The commands, in the order in which ``--help`` shows them, each with examples to copy."""

from __future__ import annotations

import builtins

COMMANDS: dict[str, tuple[str, ...]] = {
    "demo": ("secateur demo",),
    "inspect": (
        "secateur inspect torchvision:resnet18",
        "secateur inspect net.py:Net --arg width=32 --input 1,3,32,32 --json",
        "secateur inspect my-bert/",
    ),
    "prune": (
        "secateur prune torchvision:resnet18 --sparsity 0.5 --of macs --dry-run",
        "secateur prune net.py:Net --weights net.safetensors --input 1,3,32,32 "
        "--sparsity 0.3 --exclude stem --round-to 8 --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --config prune.yaml --out small",
        'secateur prune net.py:Net --input 1,3,32,32 --budget "12 ms" --latency-table here.json '
        "--out small",
        "secateur prune net.py:Net --input 1,3,32,32 --criterion activation --sparsity 0.5 "
        "--data inputs.npz --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --criterion taylor --sparsity 0.5 "
        "--data net.py:batches --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --sparsity 0.5 --schedule cubic --steps 100 "
        "--train net.py:train --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --sparsity 0.5 --train net.py:batches "
        "--evaluate net.py:accuracy --minutes 5 --out small",
    ),
    "search": (
        "secateur search net.py:Net --input 1,3,32,32 --evaluate net.py:accuracy --sparsity 0.5 "
        "--data inputs.npz --trials 40 --sampler tpe --out small",
        "secateur search net.py:Net --input 1,3,32,32 --evaluate net.py:accuracy --sparsity 0.7 "
        "--sampler nsga2 --storage postgresql+psycopg://host/studies --out small",
    ),
    "evaluate": (
        "secateur evaluate small --data text.txt",
        "secateur evaluate my-llama/ --data text.txt --window 512 --stride 256",
    ),
    "compare": ("secateur compare torchvision:resnet18 small",),
    "export": (
        "secateur export small --onnx --torch-export",
        "secateur export small --onnx --dynamic-batch",
        "secateur export small --semi-structured",
    ),
    "report": ("secateur report small", "secateur report small --markdown"),
    "list": ("secateur list", 'secateur list "l*"'),
}
"""Command → examples."""


def place_of(command: str) -> str:
    """Return the name of a command's file, which is its function's too.

    It is the command's own, with an underscore where Python has a function of that name.

    >>> place_of("prune"), place_of("list")
    ('prune', 'list_')
    """
    return f"{command}_" if hasattr(builtins, command) else command
