"""An error on one of two ranks is the same error on both, and neither waits in vain."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

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
