"""A search that is broken off, by an error or a signal, goes on as if it had not been."""

from __future__ import annotations

import json
import re
import signal
import time
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import optuna
import pytest
from torch import nn

from secateur.errors import ConfigError, FileError
from secateur.pruner.candidates import Candidates
from secateur.searching.identity import GIVEN, KEY
from secateur.searching.shared import ALONE
from secateur.searching.slots import INTERVAL, MOST_FAILURES, RETRY, WORKER, Worker, slots_of
from tests.searches import drawn, inputs, likeness, search, work

SAME: dict[str, Any] = {"same": ["evaluate"]}
"""For an evaluation that is told when to fail, and the one that goes on and is not."""
SAMPLERS = ("random", "tpe", "annealing", "cmaes", "amc", "nsga2")


class Broken(Exception):
    pass


def breaking(at: int) -> Any:
    """Return an evaluation that fails once, in its n-th call."""
    calls = []

    def evaluate(model: nn.Module) -> float:
        calls.append(model)
        if len(calls) == at:
            raise Broken
        return likeness(model)

    return evaluate


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(each, marks=[] if each in ("tpe", "amc", "nsga2") else pytest.mark.slow)
        for each in SAMPLERS
    ],
)
def test_search_when_broken_off_and_resumed_then_tries_what_an_unbroken_one_does(
    sampler: str, tmp_path: Path
) -> None:
    small = {"hidden1": 8, "hidden2": 8, "warmup": 2}  # an agent that learns quickly
    options: dict[str, Any] = {"sampler": sampler}
    if sampler == "amc":
        options |= {"sampler_options": small, "trials": 6}
    whole = search(tmp_path / "whole.journal", **options)
    for at in (1, 7) if sampler != "amc" else (4,):
        with pytest.raises(Broken):
            search(tmp_path / f"{at}.journal", breaking(at), **options)
        again = search(tmp_path / f"{at}.journal", **SAME, **options)
        assert drawn(again) == drawn(whole)
        assert len({tuple(t.allocation.values()) for t in again.trials[2:]}) > 1


def test_search_when_its_process_is_killed_then_goes_on_without_waiting(
    tmp_path: Path, processes: BaseContext
) -> None:
    path, options = tmp_path / "killed.journal", {"sampler": "tpe", "heartbeat": 3600.0, **SAME}
    child: Any = processes.Process(target=work, args=(str(path), 4, options))  # type: ignore[attr-defined]
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    states = [t["state"] for t in _lines(path) if t["op_code"] == 6]
    assert len(states) == 3, "three trials are whole in the file, and the fourth has not ended"
    whole = search(tmp_path / "whole.journal", sampler="tpe")
    assert drawn(search(path, **options)) == drawn(whole)


def test_search_when_two_share_a_file_and_one_is_killed_then_every_trial_is_there_once(
    tmp_path: Path, processes: BaseContext
) -> None:
    path, options = str(tmp_path / "shared.journal"), {"trials": 12, "sampler": "tpe", **SAME}
    children: list[Any] = [
        processes.Process(target=work, args=(path, dies_at, options))  # type: ignore[attr-defined]
        for dies_at in (3, None)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [-signal.SIGKILL, 0]
    found = search(path, **options)
    assert [t.slot for t in found.trials] == list(range(12))
    assert not found.failed
    complete = [t for t in found.study.trials if t.state.name == "COMPLETE"]
    assert len(complete) == 12


def test_search_when_more_trials_are_asked_for_then_the_old_ones_count(tmp_path: Path) -> None:
    few = search(tmp_path / "a.journal", trials=3)
    more = search(tmp_path / "a.journal", trials=5)
    assert drawn(more)[:3] == drawn(few)
    assert len(search(tmp_path / "a.journal", breaking(1), trials=5, **SAME).trials) == 5
    assert len(search(tmp_path / "a.journal", trials=2, **SAME).trials) == 2


def test_search_when_it_goes_on_then_what_pruning_alone_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    error = Candidates.error

    def counted(self: Candidates, *args: Any, **options: Any) -> float:
        asked.append(1)
        return error(self, *args, **options)

    monkeypatch.setattr(Candidates, "error", counted)
    options: dict[str, Any] = {"allocate": "error", "data": [inputs()], "repair": "none"}
    few = search(tmp_path / "a.journal", trials=2, **options)
    assert asked
    asked.clear()
    more = search(tmp_path / "a.journal", trials=4, **options)
    assert not asked
    assert drawn(more) == drawn(search(tmp_path / "b.journal", trials=4, **options))
    assert drawn(more)[:2] == drawn(few)


@pytest.mark.parametrize("alone", [3, {}, {"shares": [0.5]}, {"shares": ["a"] * 3}])
def test_search_when_a_study_says_nonsense_of_pruning_alone_then_that_is_found_anew(
    alone: Any, tmp_path: Path
) -> None:
    search(tmp_path / "a.journal", trials=1)
    text = (tmp_path / "a.journal").read_text().splitlines()
    lines = [json.loads(line) for line in text]
    for line in lines:
        attributes = line.get("user_attr", {})
        if ALONE in attributes:
            attributes[ALONE] = alone
    (tmp_path / "a.journal").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = search(tmp_path / "a.journal", trials=3)
    assert drawn(found) == drawn(search(tmp_path / "b.journal", trials=3))


def test_search_when_a_worker_elsewhere_falls_silent_then_its_trial_is_tried_again(
    tmp_path: Path,
) -> None:
    first = search(tmp_path / "a.journal", trials=2)
    lost = first.study.ask()
    lost.set_user_attr(WORKER, ["another machine", 1, 1])
    found = search(tmp_path / "a.journal", trials=3, heartbeat=0.05)
    assert [t.slot for t in found.trials] == [0, 1, 2]
    assert found.study.trials[lost.number].state.name == "FAIL"
    assert found.study.trials[-1].user_attrs[RETRY] == 2


def test_search_when_a_worker_beats_slower_than_another_then_it_is_not_taken_for_dead(
    tmp_path: Path,
) -> None:
    first = search(tmp_path / "a.journal", trials=1)
    slow = first.study.ask()
    slow.set_user_attr(WORKER, ["another machine", 1, 1])
    slow.set_user_attr(INTERVAL, 60.0)
    impatient = Worker(first.study, 2, heartbeat=0.01)
    for _ in range(3):
        impatient._bury()
        time.sleep(0.05)
    assert first.study.trials[slow.number].state.name == "RUNNING"
    slow.set_user_attr(INTERVAL, 0.01)
    for _ in range(2):
        impatient._bury()
        time.sleep(0.1)
    assert first.study.trials[slow.number].state.name == "FAIL"


def test_search_when_a_trial_fails_again_and_again_then_is_given_up(tmp_path: Path) -> None:
    def never(model: nn.Module) -> float:
        raise Broken

    for _ in range(MOST_FAILURES):
        with pytest.raises(Broken):
            search(tmp_path / "a.journal", never, trials=2)
    found = search(tmp_path / "a.journal", trials=2)
    assert found.failed == (0,)
    assert [t.slot for t in found.trials] == [1]
    assert "every attempt failed: trials 0; the first: Broken" in str(found)


def test_search_when_every_trial_fails_then_says_so_with_the_first_cause(tmp_path: Path) -> None:
    def never(model: nn.Module) -> float:
        raise Broken("no such file")

    for _ in range(2 * MOST_FAILURES):
        with pytest.raises(Broken):
            search(tmp_path / "a.journal", never, trials=2)
    found = search(tmp_path / "a.journal", never, trials=2)
    assert found.failed == (0, 1)
    with pytest.raises(ConfigError, match="2 failed each time, the first with Broken: no such"):
        found.result()


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_journal_when_cut_off_at_any_byte_then_is_read_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    whole = search(path, trials=2, heartbeat=0.02)
    text = path.read_bytes()
    for size in range(len(text) - 300, len(text), 71):
        path.write_bytes(text[:size])
        found = search(path, trials=2, heartbeat=0.02)  # what it says of its worker may be gone
        assert drawn(found) == drawn(whole)
        assert [line["op_code"] for line in _lines(path)]


def test_journal_when_a_line_is_damaged_then_says_which(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    search(path, trials=1)
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-3]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(FileError, match="line 3"):
        search(path)


@pytest.mark.parametrize("text", ["hello\n", "[]\n", '{"op_code": 99}\n', '{"op_code": 4}\n', "\0"])
def test_journal_when_it_is_another_file_then_is_an_error_of_ours(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.journal"
    path.write_text(text)
    if text == "\0":  # a torn first line, of which nothing is lost
        assert len(search(path, trials=1).trials) == 1
        return
    with pytest.raises((FileError, ConfigError), match=r"a\.journal"):
        search(path)


def test_study_when_searched_by_any_sampler_then_holds_no_pickle(tmp_path: Path) -> None:
    for sampler in ("cmaes", "nsga2"):  # those whose state Optuna keeps in the study
        search(tmp_path / "all.journal", sampler=sampler, name=sampler, trials=8)
    for line in _lines(tmp_path / "all.journal"):
        assert "80049" not in json.dumps(line), "how the hexadecimal digits of a pickle begin"
    with pytest.raises(ConfigError, match="sampler='cmaes'"):
        search(tmp_path / "b.journal", sampler=optuna.samplers.CmaEsSampler())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sparsity": 0.4}, "goal: "),
        ({"of": "params"}, "config.of: 'macs' there, 'params' here"),
        ({"sampler": "tpe"}, "sampler: 'random' there, 'tpe' here"),
        ({"direction": "minimize"}, "maximize"),
        ({"exclude": ["0"]}, "units.0"),
        ({"train": lambda model: None}, "trained: False there, True here"),
    ],
)
def test_search_when_the_study_is_of_another_then_says_what_differs(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    search(tmp_path / "a.journal", trials=1)
    with pytest.raises(ConfigError, match="search") as caught:
        search(tmp_path / "a.journal", trials=1, **change)
    assert said in str(caught.value)
    assert len(search(tmp_path / "a.journal", trials=1, name="another", **change).trials) == 1


def test_slots_when_trials_are_retries_then_have_the_slots_of_the_first() -> None:
    def trial(number: int, **attrs: Any) -> optuna.trial.FrozenTrial:
        made = optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attrs)
        made.number = number
        return made

    trials = [trial(0), trial(1), trial(2, **{RETRY: 0}), trial(3), trial(4, **{RETRY: 0})]
    numbers = {slot: [t.number for t in tries] for slot, tries in slots_of(trials).items()}
    assert numbers == {0: [0, 2, 4], 1: [1], 2: [3]}


def test_search_when_begun_with_other_data_or_functions_then_says_which_and_in_what(
    tmp_path: Path,
) -> None:
    def twice(model: nn.Module) -> float:
        return 2 * likeness(model)

    def train(model: nn.Module, rate: float = 0.1) -> None:
        pass

    given: dict[str, Any] = {"data": [inputs()], "train": train, "evaluate": likeness}
    search(tmp_path / "a.journal", trials=1, **given)
    assert len(search(tmp_path / "a.journal", trials=2, **given).trials) == 2
    for name, other, said in (
        ("data", [inputs() + 1], "1 batches there and here, and other numbers"),
        ("data", [inputs(), inputs()], "1 batches there, 2 batches here"),
        ("evaluate", twice, "likeness there, twice here"),
        ("train", partial(train, rate=0.2), "reads rate: 0.1 there, 0.2 here"),
    ):
        changed = {**given, name: other}
        with pytest.raises(ConfigError, match=f"(?s)another {name}.*{re.escape(said)}"):
            search(tmp_path / "a.journal", trials=3, **changed)
    assert len(search(tmp_path / "a.journal", trials=3, same=[name], **changed).trials) == 3


def test_search_when_nothing_was_evaluated_yet_then_a_repaired_function_is_taken(
    tmp_path: Path,
) -> None:
    with pytest.raises(Broken):
        search(tmp_path / "a.journal", breaking(1))
    assert len(search(tmp_path / "a.journal", trials=1).trials) == 1


def test_search_when_the_study_is_of_an_earlier_version_then_functions_are_not_compared(
    tmp_path: Path,
) -> None:
    found = search(tmp_path / "a.journal", trials=1)
    known = dict(found.study.user_attrs[KEY])
    del known[GIVEN]
    found.study.set_user_attr(KEY, known)
    assert len(search(tmp_path / "a.journal", lambda model: 1.0, trials=2).trials) == 2
