"""A plan says only what an analysis could have said, agrees with itself, and fills no memory."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import FileError, PlanError
from secateur.shrinking import Plan
from tests.faults import resign


class Net(nn.Module):
    """Numbers of all kinds, of which a cut changes ``parts`` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.log = logging.getLogger("of a hostile plan")
        self.log.setLevel(20)
        self.config = SimpleNamespace(layers=2)
        self.parts = (8, 8)
        self.conv = nn.Conv1d(4, 16, 3, stride=2, padding=2, dilation=2)
        self.inner = nn.ModuleList([nn.Linear(8, 8)])
        self.inner[0].config = self.config  # which the root holds first
        self.out = nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(x).mean(-1).split(self.parts, -1)
        return self.out(self.drop(self.inner[0](left * right)))


X = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    sc.prune(Net().eval(), X, sparsity=0.5).save(folder)
    assert sc.load_pruned(folder, Net()).parts == (4, 4)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(whole: dict[str, Any], folder: Path, change: Any, match: str) -> None:
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    resign(folder, change)
    model = Net()
    before = {n: t.clone() for n, t in model.state_dict().items()}, repr(model), model.parts
    with pytest.raises(FileError, match=match) as caught:
        sc.load_pruned(folder, model)
    assert len(str(caught.value)) < 2000
    assert (repr(model), model.parts, model.log.level) == (before[1], before[2], 20)
    assert all(torch.equal(t, before[0][n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("attribute", "before", "after"),
    [
        ("conv.stride[0]", 2, 1),
        ("conv.padding[0]", 2, 1),
        ("conv.dilation[0]", 2, 1),
        ("conv.kernel_size[0]", 3, 1),
        ("drop.p", 0.5, 0.25),
        ("log.level", 20, 10),
        ("inner.0.config.layers", 2, 1),
    ],
)
def test_load_when_no_cut_changes_an_attribute_then_file_error(
    whole, tmp_path, attribute, before, after
):
    def change(document: dict[str, Any]) -> None:
        document["attributes"][attribute] = {"before": before, "after": after}

    refused(whole, tmp_path, change, "no size of a|could have changed|no integer")


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), -1, 1e400, "8", True, [8], -0.5])
def test_load_when_a_number_is_none_then_file_error(whole, tmp_path, value):
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["parts[0]"]["after"] = value

    refused(whole, tmp_path, change, "parts|NaN|Inf")


@pytest.mark.parametrize("ranges", [[[0, 7]], [[0, 6], [15, 15]], [[0, 3], [99, 103]], [[12, 15]]])
def test_load_when_what_is_kept_is_not_what_the_shapes_say_then_file_error(whole, tmp_path, ranges):
    def change(document: dict[str, Any]) -> None:
        keep = document["steps"][0]["keep"]
        keep["inner.0"] = ranges
        document["shapes"]["inner.0.weight"] = {"before": [8, 8], "after": [3, 4]}

    refused(whole, tmp_path, change, "keeps")


@pytest.mark.parametrize("tied", [{"nowhere": "conv.weight"}, {"a": "b"}, {"out.bias": "x"}])
def test_load_when_a_tied_name_does_not_exist_then_file_error(whole, tmp_path, tied):
    refused(whole, tmp_path, lambda d: d["tied"].update(tied), "is tied in the file")


@pytest.mark.parametrize("after", [[32, 4, 3], [0, 4, 3], [8], [8, 4, 3, 1]])
def test_load_when_a_shape_cannot_become_another_then_file_error(whole, tmp_path, after):
    def change(document: dict[str, Any]) -> None:
        document["shapes"]["conv.weight"]["after"] = after

    refused(whole, tmp_path, change, "'conv.weight' cannot become")


def many(groups: int, steps: int, size: int) -> list[dict[str, Any]]:
    keep = {f"g{i}": [[0, size - 1]] for i in range(groups)}
    return [{"schema": 1, "keep": keep} for _ in range(steps)]


@pytest.mark.parametrize(
    "steps", [many(1, 40, 1 << 20), many(64, 1, 1 << 20), many(8, 32, 1 << 17), many(0, 5000, 1)]
)
def test_load_when_a_plan_keeps_too_many_positions_then_no_memory_is_taken(whole, tmp_path, steps):
    tracemalloc.start()
    try:
        refused(whole, tmp_path, lambda d: d.update(steps=steps), "more than|at most")
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("extra", [{"new": 1}, {"steps": {}}, {"files": []}, {"model": 3}])
def test_load_when_the_plan_is_of_a_newer_version_then_it_says_so_whatever_else_is_new(
    whole, tmp_path, extra
):
    refused(whole, tmp_path, lambda d: d.update(schema=4, **extra), "schema 4, newer than 3")


@pytest.mark.parametrize("schema", [10**4000, "2", None, 2.5, True, [], {}])
def test_from_json_when_the_schema_is_anything_then_plan_error_in_few_words(schema):
    with pytest.raises(PlanError) as caught:
        Plan.from_json({"schema": schema, "keep": [] if schema is True else {}})
    assert len(str(caught.value)) < 2000
