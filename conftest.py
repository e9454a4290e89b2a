"""Collection of docstring examples in modules that import what imports torchvision."""

from __future__ import annotations

from pathlib import Path

from tests.zoo import torchvision_models


def pytest_collect_file(file_path: Path) -> None:
    if file_path.parent.name == "trainers" and file_path.suffix == ".py":
        torchvision_models()
