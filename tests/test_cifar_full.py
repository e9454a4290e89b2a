"""The script for a GPU runs from its first row to its table, without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cifar_full
from benchmarks.graphed import SGD

QUICK = ["dense"]


@pytest.mark.usefixtures("shared_data")
@pytest.mark.parametrize(
    "rows", [QUICK, pytest.param([*cifar_full.ROWS][1:], marks=pytest.mark.slow)], ids=str
)
def test_main_when_time_is_short_then_each_row_meets_its_goal(
    rows: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    if "tp group norm" in rows:
        pytest.importorskip("torch_pruning")
    words = f"cifar_full --smoke --minutes 0.01 --speedups 2.57 --out {tmp_path} --rows".split()
    monkeypatch.setattr(sys, "argv", [*words, *rows])
    assert cifar_full.main() == 0
    lines = (tmp_path / "cifar_full.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    made = {row["row"]: row["macs"] for row in found}
    assert list(made) == rows
    assert all(row["steps"] > 0 for row in found)
    assert all(share <= 1 / 2.57 for name, share in made.items() if name != "dense")
    shown = capsys.readouterr().out
    assert all(f"| {row} | " in shown for row in rows)


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_step_when_the_rate_is_on_the_device_then_is_torchs_own(share: float) -> None:
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(mine.state_dict())
    ours = SGD(list(mine.parameters()))
    ours.share.fill_(share)
    rate = ours.param_groups[0]["lr"] * share
    known = torch.optim.SGD(
        theirs.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    for _ in range(4):
        x = torch.randn(5, 3)
        for model, optimizer in ((mine, ours), (theirs, known)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)
