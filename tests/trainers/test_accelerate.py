"""The Accelerate recipe in examples/: trains, prunes, resumes, saves a smaller model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import secateur as sc
from tests.trained import net


@pytest.fixture(scope="module")
def recipe() -> Any:
    path = Path(__file__).resolve().parents[2] / "examples" / "accelerate_finetune.py"
    spec = importlib.util.spec_from_file_location("accelerate_finetune", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_recipe_when_it_runs_and_resumes_then_the_model_is_half_and_saved(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_way = recipe.SPARSITY.replace(steps=2, every=15)
    monkeypatch.setattr(recipe, "SPARSITY", half_way)
    monkeypatch.setattr(recipe, "DigitsNet", net)
    dense = sc.analyze(recipe.DigitsNet(), recipe.load_digits().train_images[:2]).cost().macs
    recipe.main(tmp_path, epochs=1)
    result = recipe.main(tmp_path, epochs=2, resume=True)
    assert result.verification.passed
    left = sc.analyze(result.model, recipe.load_digits().train_images[:2]).cost().macs
    assert 0.4 * dense < left <= 0.5 * dense
    assert (tmp_path / "small" / "plan.json").is_file()
