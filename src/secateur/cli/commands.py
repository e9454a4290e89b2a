"""The commands, in the order in which ``--help`` shows them, each with examples to copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .catalog import list_
from .compare import compare
from .demo import demo
from .export import export
from .inspect import inspect
from .prune import prune
from .report import report

COMMANDS: dict[Callable[..., Any], tuple[str, ...]] = {
    demo: ("secateur demo",),
    inspect: (
        "secateur inspect torchvision:resnet18",
        "secateur inspect net.py:Net --arg width=32 --input 1,3,32,32 --json",
        "secateur inspect my-bert/",
    ),
    prune: (
        "secateur prune torchvision:resnet18 --sparsity 0.5 --of macs --dry-run",
        "secateur prune net.py:Net --weights net.safetensors --input 1,3,32,32 "
        "--sparsity 0.3 --exclude stem --round-to 8 --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --config prune.yaml --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --criterion taylor --sparsity 0.5 "
        "--data net.py:batches --out small",
        "secateur prune net.py:Net --input 1,3,32,32 --sparsity 0.5 --schedule cubic --steps 100 "
        "--train net.py:train --out small",
    ),
    compare: ("secateur compare torchvision:resnet18 small",),
    export: (
        "secateur export small --onnx --torch-export",
        "secateur export small --onnx --dynamic-batch",
    ),
    report: ("secateur report small", "secateur report small --markdown"),
    list_: ("secateur list", 'secateur list "l*"'),
}
