"""Every script in examples/ runs, and ends with a smaller, verified model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import zoo

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL: dict[str, dict[str, Any]] = {
    "hf_trainer": {"epochs": 3, "rows": 96},
    "lightning_module": {"epochs": 3, "rows": 128},
    "plain_loop": {"epochs": 3},
}
"""Arguments with which each example takes seconds."""
ELSEWHERE = ("accelerate_finetune",)  # tests/trainers/test_accelerate.py
NEEDS = {
    "hf_trainer": "transformers",
    "lightning_module": "lightning",
}


def test_examples_when_one_is_added_then_it_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SMALL, *ELSEWHERE}


@pytest.mark.filterwarnings("ignore")  # of the trainers, about themselves
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in NEEDS else []) for n in SMALL]
)
def test_example_when_run_on_little_data_then_model_is_smaller_and_verified(name: str) -> None:
    if name in NEEDS:
        zoo.torchvision_models()  # Lightning and transformers import torchvision
        pytest.importorskip(NEEDS[name])
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.random.fork_rng(devices=[]):
        result = module.main(**SMALL[name])
    assert result.after.macs < 0.75 * result.before.macs
    assert result.verification.passed
