"""An interrupt at any line of the library leaves a training that goes on, and that resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .interrupts import drawn, interrupted
from .trainings import HuggingFace, Lightning, Training

KINDS = {"hugging face": HuggingFace, "lightning": Lightning}


@pytest.mark.parametrize(
    ("kind", "many"),
    [
        ("hugging face", 1),
        pytest.param("lightning", 1, marks=pytest.mark.slow),
        *(pytest.param(kind, 60, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_training_when_it_is_interrupted_then_it_goes_on_and_resumes(
    kind: str, many: int, tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # a child has none of the threads of the pool
    job: Training = KINDS[kind](tmp_path)
    moments = [*drawn(job.build, job, many, seed=many)]
    job.whole = job.trained()
    found = [interrupted(job.build, job, moment, job.judged) for moment in moments]
    assert [each for each in found if each] == []
    assert len(found) == many
