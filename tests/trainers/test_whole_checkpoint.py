"""Of a Trainer's checkpoints, the newest that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.masks.resume import write_state

pytest.importorskip("transformers", reason="a Trainer's checkpoints need transformers")


def test_whole_checkpoint_when_the_last_ones_are_torn_then_is_the_one_before(
    tmp_path: Path,
) -> None:
    from secateur.trainers.transformers import STATE, whole_checkpoint

    assert whole_checkpoint(tmp_path) is None
    for number in (9, 10, 11, 12):
        (tmp_path / f"checkpoint-{number}").mkdir()
    for number in (9, 10, 11):
        write_state(tmp_path / f"checkpoint-{number}" / STATE, {"calls": number})
    torn = tmp_path / "checkpoint-11" / STATE
    torn.write_bytes(torn.read_bytes()[:-3])
    assert whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
