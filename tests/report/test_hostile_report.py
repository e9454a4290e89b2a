"""A report of somebody else's draws text as text, and neither hangs nor fails in other words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ConfigError, FileError
from secateur.report import report_of, to_markdown
from secateur.report.facts import Report
from secateur.report.figures import MOST_PIECES, strip
from secateur.settings import read_settings


@pytest.fixture(scope="module")
def facts() -> str:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return report_of(sc.prune(net, torch.zeros(1, 8), sparsity=0.5), net).to_text()


@pytest.mark.parametrize("size", [0, -1, 10**12, 10**400])
def test_from_text_when_a_size_is_none_then_file_error(facts, size):
    data = json.loads(facts)
    data["structure"]["groups"][0]["size"] = size
    with pytest.raises(FileError, match="is no report"):
        Report.from_text(json.dumps(data), "it")


@pytest.mark.parametrize("kept", [[[0, 10**12]], [[3, 1]], [[0, 3], [2, 5]], [[-1, 2]], [[0, 16]]])
def test_from_text_when_kept_positions_are_none_then_file_error(facts, kept):
    data = json.loads(facts)
    data["structure"]["groups"][0]["kept"] = kept
    with pytest.raises(FileError, match="is no report"):
        Report.from_text(json.dumps(data), "it")


def test_from_text_when_it_is_of_a_newer_version_then_it_says_so(facts):
    data: dict[str, Any] = {**json.loads(facts), "schema": 2, "new": 1}
    with pytest.raises(FileError, match="newer than 1"):
        Report.from_text(json.dumps(data), "it")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, (dict, list)) and part:
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key)


ODD = [10**400, 10**12, -1, 0, 1e308, -1e308, 5e-324, True, None, "", "x" * 5000, "\ud800\n`|"]


@pytest.mark.parametrize("odd", ODD, ids=map(str, range(12)))
def test_from_text_when_any_part_is_another_then_it_is_drawn_or_file_error(facts, odd):
    for path in leaves(json.loads(facts)):
        data = held = json.loads(facts)
        for key in path[:-1]:
            held = held[key]
        held[path[-1]] = odd
        try:
            text = to_markdown(Report.from_text(json.dumps(data), "it"))
        except FileError as error:
            text = str(error)
        assert len(text) < 20_000, path


def test_strip_when_there_are_many_ranges_then_each_position_is_counted_once():
    for size in (997, 4096, 1 << 31):
        step = max(size // 1500, 2)
        kept = tuple((i, i + step // 2) for i in range(0, size - step, step))
        found = strip(SimpleNamespace(size=size, kept=kept))  # type: ignore[arg-type]
        share = sum(last - first + 1 for first, last in kept) / size
        assert len(found) <= MOST_PIECES or len(kept) <= MOST_PIECES
        assert sum(width * density for _, width, density in found) == pytest.approx(share, abs=0.05)


def test_to_markdown_when_text_is_hostile_then_it_is_text(facts):
    evil = "x\n\n# head\n```\n<script>alert(1)</script>\n```` [a](javascript:b) | `c`"
    data = json.loads(facts)
    data["structure"]["model"] = data["loads_with"] = data["reproduce"] = evil
    data["structure"]["groups"][0]["name"] = evil
    data["notes"] = [evil]
    text = to_markdown(Report.from_text(json.dumps(data), "it"))
    fence, body = text.partition("## Again\n\n")[2].split("\n", 1)
    inside, rest = body.split(f"\n{fence}\n")
    assert inside == evil
    outside = [line for line in (text.partition("## Again")[0] + rest).splitlines() if line]
    assert "# head" not in outside
    assert not any(line.startswith("```") for line in outside)
    table = [line for line in outside if line.startswith("|")]
    assert not any("<script" in line.replace("\\<", "") for line in outside if line not in table)


@pytest.mark.parametrize(
    "text",
    ['sparsity: !!int ""', "sparsity: !!bool foo", "a: " + "9" * 10**5, "? [a]\n: b", "\x00"],
)
def test_read_settings_when_a_value_is_none_then_config_error(tmp_path: Path, text: str):
    pytest.importorskip("yaml")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        sc.Config.load(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", ["none.yaml", "folder.yaml", "loop.yaml", "x" * 300 + ".yaml"])
def test_read_settings_when_there_is_no_file_then_config_error(tmp_path: Path, name: str):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / name)
