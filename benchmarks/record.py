"""How every benchmark records itself: JSON for machines, a Markdown table for people."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return what a figure depends on besides the code."""
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """Return what a row says it was measured on.

    >>> device_name(torch.device("cpu"))
    'CPU'
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def rows_in(path: Path) -> list[dict[str, Any]]:
    """Return the rows that earlier runs kept in a file; none where there is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a file as soon as it is made, so that an interrupted run goes on."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column and words to the left, numbers to the right.

    >>> print(table(["net", "ms", "why"], [["a", "1.0", "fast"]]))
    | net | ms | why |
    |:---|---:|:---|
    | a | 1.0 | fast |
    """
    columns = [[row[i] for row in rows] for i in range(1, len(headings))]
    sides = ["---:" if _is_numbers(column) else ":---" for column in columns]
    lines = [headings, [":---", *sides], *rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text[1] = text[1].replace(" ", "")
    return "\n".join(text)


def _is_numbers(cells: Sequence[str]) -> bool:
    """Tell whether any cell of a column begins as a number does, or all are empty."""
    return any(re.match(r"[-+−±<>≤≥~]?\s?[\d.∞]", cell) for cell in cells) or not any(cells)


def write(name: str, title: str, data: Any, text: str, *, show: bool = True) -> None:
    """Write results/<name>.json and .md, each whole or not at all, and print the text."""
    about = machine()
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    _replace(FOLDER / f"{name}.json", json.dumps({"machine": about, "data": data}, indent=1))
    _replace(FOLDER / f"{name}.md", f"# {title}\n\n{facts}\n\n{text}")
    if show:
        print(text)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
