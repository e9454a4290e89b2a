"""The demo with almost no training: what it writes, and that it notices a broken promise."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from secateur.demo import tour
from secateur.demo.digits import load_digits


def test_load_digits_when_split_then_no_image_is_lost_and_classes_are_balanced() -> None:
    data = load_digits(0)
    assert len(data.train_labels) + len(data.test_labels) == 1797
    assert torch.bincount(data.test_labels).min() >= 55


def test_run_when_hardly_trained_then_same_network_is_saved_and_loss_of_accuracy_is_named(
    tmp_path: Path,
) -> None:
    console = Console(file=io.StringIO(), width=120)
    record = tour.run(tmp_path, epochs=2, fine_tune_epochs=1, timings=1, console=console)
    assert record.macs_kept <= tour.MACS_KEPT
    assert record.predictions_that_differ == 0
    assert record.output_difference < tour.SAME
    assert (record.points_lost > tour.POINTS_LOST) == any("accuracy" in p for p in record.problems)
    saved = ["model.safetensors", "plan.json", "record.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == saved
    after = record.report.after
    assert after.scores["accuracy, %"] == record.rows["fine-tuned"].accuracy
    assert [row["step"] for row in record.report.history] == [1, 2, 3]
    assert [row["sparsity"] > 0 for row in record.report.history] == [False, False, True]


@pytest.mark.parametrize(
    ("macs_kept", "points_lost", "differ", "gap", "word"),
    [
        (0.31, 0.0, 0, 0.0, "MACs"),
        (0.30, 1.1, 0, 0.0, "accuracy"),
        (0.30, 1.0, 1, 0.0, "disagree"),
        (0.30, 1.0, 0, 1e-3, "relative"),
    ],
)
def test_problems_when_one_promise_is_broken_then_it_alone_is_named(
    macs_kept: float, points_lost: float, differ: int, gap: float, word: str
) -> None:
    (problem,) = tour._problems(macs_kept, points_lost, differ, gap)
    assert word in problem


def test_problems_when_all_is_kept_then_none() -> None:
    assert tour._problems(0.30, 1.0, 0, 1e-6) == ()
