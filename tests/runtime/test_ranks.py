"""An error on one of two ranks is the same error on both, and neither waits in vain."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from tests import failing, ranks

SAID = r"^[\w.]+ on rank \d: | \(on rank \d\)|^rank \d (?=decided)"
"""What only says which rank it was."""


@pytest.fixture(scope="module")
def found(processes, tmp_path_factory) -> Callable[[list[str]], list[dict[str, Any]]]:
    """What each rank raised, by form; many forms in one pair of processes."""

    @cache
    def of(names: tuple[str, ...]) -> list[dict[str, Any]]:
        folder = str(tmp_path_factory.mktemp("failing"))
        return ranks.both_ranks(processes, folder, list(names), failing.__name__)

    return lambda names: of(tuple(names))


@pytest.mark.parametrize("name", failing.FEW)
def test_call_when_one_rank_fails_then_all_raise_its_error_and_go_on_together(name, found):
    _check(name, found(failing.FEW))


@pytest.mark.slow
@pytest.mark.parametrize("name", failing.NAMES)
def test_call_when_one_rank_fails_in_many_ways_then_all_raise_its_error(name, found):
    _check(name, found(failing.NAMES))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["between calls", "in a call"])
def test_call_when_a_rank_is_killed_then_the_other_says_so_and_its_model_is_as_before(
    when, processes, tmp_path
):
    started = [
        processes.Process(target=failing.gone, args=(rank, str(tmp_path), when), daemon=True)
        for rank in range(2)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0, -signal.SIGKILL]
    left = torch.load(tmp_path / "left.pt", weights_only=True)
    assert left["changed"] == []
    assert len(left["raised"]) == 2
    for kind, text in left["raised"]:
        assert kind == "DivergenceError"
        assert "one is gone or never came" in text
        assert "calibrate" in text
        assert len(text) < 2000


def _check(name: str, found: list[dict[str, Any]]) -> None:
    for rank, results in enumerate(found):
        for form, result in results.items():
            assert isinstance(result, dict), f"rank {rank}, {form}:\n{result}"
    here, there = (results[name] for results in found)
    kinds, texts = zip(here["raised"], there["raised"], strict=True)
    assert all(kinds), f"no error on a rank: {kinds}, {texts}"
    plain = [re.sub(SAID, "", text.strip("'")) for text in texts]  # a KeyError's has quotes
    assert plain[0] == plain[1]
    assert kinds[0] == kinds[1] or kinds[0] == "RankError"
    assert len(max(texts, key=len)) < 2000
    assert here["changed"] == there["changed"] == []
    assert here["masks"] == there["masks"]
    assert here["masks"]
