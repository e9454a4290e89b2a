"""A search in a database: workers share it, one is killed, and nothing is lost or made twice."""

from __future__ import annotations

import signal
import threading
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from secateur.errors import ConfigError
from secateur.searching.slots import slots_of, winner
from secateur.searching.storage import released, storage_at
from tests.postgres import postgres
from tests.searches import drawn, likeness, search, work


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_search_when_two_share_a_database_and_one_is_killed_then_every_trial_is_there_once(
    sampler: str, processes: BaseContext
) -> None:
    options = {"trials": 16, "sampler": sampler, "same": ["evaluate"]}
    with postgres() as url:
        children: list[Any] = [
            processes.Process(target=work, args=(url, dies_at, options))  # type: ignore[attr-defined]
            for dies_at in (4, None)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(240)
        assert [child.exitcode for child in children] == [-signal.SIGKILL, 0]
        storage = storage_at(url)
        with released(storage):
            found = search(storage, **options)
            complete = sum(t.state.name == "COMPLETE" for t in found.study.trials)
        assert [t.slot for t in found.trials] == list(range(16))
        assert not found.failed
        assert complete == 16
        assert all(t.cost <= 0.5 or sampler == "nsga2" for t in found.trials)
        with pytest.raises(ConfigError, match="goal: "):
            search(url, **{**options, "sparsity": 0.3})


@pytest.mark.slow
def test_search_when_in_a_database_then_tries_what_it_does_in_a_file(tmp_path: Path) -> None:
    with postgres() as url:
        assert drawn(search(url, sampler="tpe")) == drawn(
            search(tmp_path / "a.journal", sampler="tpe")
        )


def test_search_when_many_workers_are_there_at_once_then_every_trial_is_there_once(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.journal"
    search(path, trials=0)
    made: list[int] = []

    def evaluate(model: nn.Module) -> float:
        made.append(1)
        return likeness(model)

    threads = [
        threading.Thread(target=search, args=(path, evaluate), kwargs={"trials": 12})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    found = search(path, trials=12, same=["evaluate"])
    assert [t.slot for t in found.trials] == list(range(12))
    assert len(made) == 12
    ended = slots_of(found.study.trials)
    assert all(sum(t.state.is_finished() for t in ended[slot]) >= 1 for slot in range(12))
    assert all(winner(ended[slot]) is not None for slot in range(12))


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("postgresql://me:secret@nowhere.invalid/x", r"psycopg"),
        ("nodialect://me:secret@host/x", "cannot be opened"),
        ("redis://:secret@host/0", "pickles"),
        (7, "give a path"),
    ],
)
def test_storage_when_it_cannot_be_used_then_says_so_without_a_password(
    place: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        search(place)
    assert "secret" not in str(caught.value)
