"""Of a Trainer's checkpoints, the newest that is whole; kills while it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from secateur import Pruner
from secateur.errors import FileError
from secateur.masks.resume import write_state
from tests.faults import DONE, KILLED, dying_at
from tests.trained import Labelled, net
from tests.zoo import torchvision_models

from .test_transformers import CONFIG, EXAMPLE, callback, trainer

pytest.importorskip("transformers", reason="a Trainer's checkpoints need transformers")
torchvision_models()  # which transformers imports

from secateur.trainers.transformers import STATE, TRAINER_STATE, whole_checkpoint  # noqa: E402


def test_whole_checkpoint_when_the_last_ones_are_torn_then_is_the_one_before(
    tmp_path: Path,
) -> None:
    assert whole_checkpoint(tmp_path) is None
    for number in (9, 10, 11, 12):
        (tmp_path / f"checkpoint-{number}").mkdir()
    for number in (9, 10, 11):
        write_state(tmp_path / f"checkpoint-{number}" / STATE, {"calls": number})
    torn = tmp_path / "checkpoint-11" / STATE
    torn.write_bytes(torn.read_bytes()[:-3])
    assert whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def made(folder: Path) -> tuple[Any, Pruner]:
    """A Trainer that saves at its fourth and eighth step, and its pruner."""
    model = Labelled(net())
    pruner = Pruner(model, CONFIG, EXAMPLE)
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    return trainer(model, folder, callback(pruner), **saving), pruner


def run(folder: Path) -> dict[str, Any]:
    """Train, and return what comes of it."""
    trained, pruner = made(folder)
    trained.train()
    return {**pruner.masks, **trained.model.state_dict()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> dict[str, Any]:
    """What comes of a run that nobody kills."""
    return run(tmp_path_factory.mktemp("whole"))


def resumed(folder: Path) -> dict[str, Any]:
    """Resume as a user does."""
    trained, pruner = made(folder)
    left = any(path.name.startswith("checkpoint-") for path in folder.iterdir())
    trained.train(resume_from_checkpoint=left or None)
    return {**pruner.masks, **trained.model.state_dict()}


def killed(folder: Path, at: int) -> None:
    """Run until a call about files in the folder: in a process of its own."""
    torch.set_num_threads(1)
    dying_at(lambda: run(folder), folder, at)


def check_kill(processes: Any, at: int, folder: Path, expected: dict[str, Any]) -> bool:
    """Kill a run at a call about files, and resume; tell whether it was killed at all."""
    process = processes.Process(target=killed, args=(folder, at), daemon=True)  # forks may hang
    process.start()
    process.join(120)
    status = process.exitcode
    assert status in (KILLED, DONE)
    folder.mkdir(exist_ok=True)
    first = folder / "checkpoint-4"
    if (first / TRAINER_STATE).is_file() and not (first / STATE).is_file():
        with pytest.raises(FileError, match="is missing"):  # nothing before it to go back to
            resumed(folder)
        return status == KILLED
    if whole_checkpoint(folder) == str(folder / "checkpoint-8"):
        return status == KILLED  # the run was over, and a Trainer that goes on makes one step more
    found = resumed(folder)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), (at, name)
    return status == KILLED


@pytest.mark.parametrize("at", [21, pytest.param(30, marks=pytest.mark.slow)])
def test_resume_when_a_run_was_killed_in_its_second_save_then_ends_as_one_that_was_not(
    processes: Any, at: int, tmp_path: Path, whole: dict[str, Any]
) -> None:
    assert check_kill(processes, at, tmp_path / "run", whole)
    assert (tmp_path / "run" / "torn-checkpoint-8").is_dir()


@pytest.mark.slow
def test_resume_when_a_run_was_killed_anywhere_then_ends_as_one_that_was_not(
    processes: Any, tmp_path: Path, whole: dict[str, Any]
) -> None:
    at = 0
    while check_kill(processes, at, tmp_path / f"run{at}", whole):
        at += 1
    assert at > 30
