"""A damaged state of a run is refused as a whole: nothing of model or pruner has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from secateur import Config, Pruner
from secateur.errors import FileError, SecateurError
from secateur.masks.resume import read_state, write_state
from tests import runs
from tests.faults import flipped


def pruner(kind: str) -> Pruner:
    return Pruner(runs.net().eval(), Config(**runs.SETTINGS[kind]), torch.zeros(2, 6))


@pytest.fixture(scope="module", params=["cubic", "taylor", "movement"])
def saved(request, tmp_path_factory) -> tuple[str, dict[str, Any], bytes]:
    made = pruner(request.param)
    optimizer = torch.optim.SGD(made.model.parameters(), 0.1)
    for _ in range(12):
        made.model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        made.step()
        optimizer.zero_grad()
    path = tmp_path_factory.mktemp("state") / "state"
    made.save(path)
    return request.param, read_state(path), path.read_bytes()


def everything(of: Pruner) -> list[Any]:
    tensors = {**dict(of.model.named_parameters()), **of.keeps, **of.masks}
    values = [tensor.detach().clone() for tensor in tensors.values()]
    kinds = [type(module) for module in of.model.modules()]
    return [list(tensors), values, kinds, of.calls, of.updates, str(of.state_dict())]


def same(a: list[Any], b: list[Any]) -> bool:
    values = all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    return values and a[0] == b[0] and a[2:] == b[2:]


def first(state: dict[str, Any], key: str) -> str:
    return next(iter(state[key]))


def swap(state: dict[str, Any]) -> None:
    name = first(state, "keeps")
    state["keeps"][name] = ~state["keeps"][name]


def clear(state: dict[str, Any]) -> None:
    state["masks"] = {name: torch.ones_like(m) for name, m in state["masks"].items()}


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "keeps contradict masks": swap,
    "masks contradict keeps": clear,
    "a mask less": lambda s: s["masks"].pop(first(s, "masks")),
    "a mask more": lambda s: s["masks"].update({"7.bias": torch.tensor([True, False, True])}),
    "a mask of nothing": lambda s: s["masks"].update(nowhere=torch.ones(3, dtype=torch.bool)),
    "a mask of numbers": lambda s: s["masks"].update({first(s, "masks"): torch.rand(16, 6)}),
    "a mask that is none": lambda s: s["masks"].update({first(s, "masks"): 3}),
    "keeps too long": lambda s: s["keeps"].update({first(s, "keeps"): torch.ones(99).bool()}),
    "keeps of numbers": lambda s: s["keeps"].update({first(s, "keeps"): torch.ones(16)}),
    "below too long": lambda s: s["below"].update({first(s, "below"): torch.ones(1)}),
    "below of nothing": lambda s: s["below"].update(nowhere=torch.ones(1)),
    "below of another type": lambda s: s["below"].update(
        {first(s, "below"): s["below"][first(s, "below")].double()}
    ),
    "before is a list": lambda s: s.update(before=[1]),
    "statistics are text": lambda s: s.update(statistics="x"),
    "statistics of nothing": lambda s: s["statistics"].update(sums={"x": 3}),
    "statistics of calibration": lambda s: s["statistics"].update(calibration={"sums": [3]}),
    "a method that is none": lambda s: s.update(method=3),
    "negative calls": lambda s: s.update(calls=-1),
    "half a call": lambda s: s.update(calls=2.5),
    "a level that is no number": lambda s: s.update(level=float("nan")),
    "notes of numbers": lambda s: s.update(notes=[1, 2]),
    "no calls": lambda s: s.pop("calls"),
    "no masks": lambda s: s.pop("masks"),
    "config": lambda s: s.update(config={"sparsity": 0.1}),
    "a newer version": lambda s: s.update(schema=2),
    "schema": lambda s: s.update(schema="x" * 9999),
    "peak": lambda s: s.update(peak="high"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_load_when_a_state_is_edited_then_it_is_refused_and_nothing_changes(
    saved, edit, tmp_path: Path
):
    kind, state, _ = saved
    state = copy.deepcopy(state)
    EDITS[edit](state)
    write_state(tmp_path / "state", state)
    to = pruner(kind)
    before = everything(to)
    with pytest.raises(SecateurError) as caught:
        to.load(tmp_path / "state")
    assert len(str(caught.value)) < 2000
    assert same(before, everything(to))


def test_load_when_scores_have_another_shape_then_they_are_not_spread_out(saved, tmp_path: Path):
    kind, state, _ = saved
    if kind != "movement":
        pytest.skip("it has no learned scores")
    state = copy.deepcopy(state)
    state["method"]["scores"][first(state, "keeps")] = torch.ones(1)
    write_state(tmp_path / "state", state)
    to = pruner(kind)
    before = everything(to)
    with pytest.raises(FileError, match="shape that it has in this run"):
        to.load(tmp_path / "state")
    assert same(before, everything(to))


@pytest.mark.parametrize("part", ["header", "numbers"])
def test_load_when_a_bit_flips_then_it_is_refused_and_nothing_changes(saved, part, tmp_path: Path):
    kind, _, data = saved
    head = 8 + int.from_bytes(data[:8], "little")
    chance = Random(kind)
    to = pruner(kind)
    before = everything(to)
    for _ in range(50):
        header, numbers = data[:head], data[head:]
        if part == "header":
            header = flipped(header, chance)
        else:
            numbers = flipped(numbers, chance)
        (tmp_path / "state").write_bytes(header + numbers)
        with pytest.raises(SecateurError):
            to.load(tmp_path / "state")
        assert same(before, everything(to))


def test_load_when_the_state_is_of_before_there_were_schemas_then_it_loads(saved, tmp_path: Path):
    kind, state, _ = saved
    state = {key: value for key, value in state.items() if key != "schema"}
    write_state(tmp_path / "state", state)
    to = pruner(kind)
    to.load(tmp_path / "state")
    assert to.calls == 12


def test_write_state_when_keys_hold_slashes_then_each_comes_back(tmp_path: Path):
    state = {"a/b": torch.ones(1), "a": {"b": torch.zeros(1), "b/c": torch.ones(2)}, "a'": {}}
    state |= {"0": torch.ones(3), 0: torch.zeros(3), "a/b'": torch.zeros(4)}
    write_state(tmp_path / "state", state)
    found = read_state(tmp_path / "state")
    assert torch.equal(found["a/b"], torch.ones(1))
    assert torch.equal(found["a"]["b"], torch.zeros(1))
    assert torch.equal(found["0"], torch.ones(3))
    assert torch.equal(found[0], torch.zeros(3))
    assert len(found["a/b'"]) == 4
