"""Random programs: none may be pruned into another function without a word; and the judge sees it.

The long form is ``python -m benchmarks.fuzz``; a line of its output is ``Program.read`` again.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import secateur
from tests.fuzz.draw import CHANNELS, Draw, maps, sames
from tests.fuzz.judge import judge
from tests.fuzz.program import Node, Program
from tests.fuzz.shorter import shorter
from tests.fuzz.ways import WAYS, Cut

ALL = tuple(WAYS)
BLOCKS = [(w, name) for table in (maps, sames) for w in CHANNELS for name in table.of[w]]
SEEDS = range(80)
QUICK = 6
"""So many of them are among the default tests."""


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=() if s < QUICK else pytest.mark.slow) for s in SEEDS]
)
def test_program_when_pruned_then_it_is_the_masked_one_or_the_result_says_otherwise(seed: int):
    program = Program.drawn(seed, ALL)
    outcome = judge(program)
    assert not outcome.defect, f"{outcome.kind}: {outcome.detail}\n{program}"


@pytest.mark.parametrize(("world", "name"), BLOCKS)
def test_block_when_drawn_then_runs_and_keeps_all_sizes_but_the_channels(world: str, name: str):
    for seed in range(2):
        program = Program(seed, ((world, (Node(name, seed),)),), "prune")
        model, dim = program.model(), CHANNELS[world]
        x, *rest = program.inputs(0)
        with torch.no_grad():
            before = model.stem(x)
            after = model.steps[0](before, *rest)
        shape = list(before.shape)
        shape[dim] = after.shape[dim]
        assert list(after.shape) == shape
        assert name in maps.of[world] or after.shape == before.shape
        assert bool(after.isfinite().all())


def test_program_when_read_from_its_text_then_builds_the_same_model():
    for seed in range(8):
        program = Program.drawn(seed, ALL)
        again = Program.read(str(program))
        assert again == program
        one, two = program.model().state_dict(), again.model().state_dict()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_weights_when_drawn_then_no_two_of_a_tensor_are_equal():
    for name, tensor in Program.drawn(3, ALL).model().named_parameters():
        assert tensor.unique().numel() == tensor.numel(), name
        assert bool(tensor.all()), name


def halved(model: nn.Module, example: Any) -> secateur.Result:
    return secateur.prune(model, example, sparsity=0.5, criterion="random")


def swapped(d: Draw, model: nn.Module, example: Any) -> Cut:
    """Two inputs of a layer change places: shapes are right, and the function is not."""
    result = halved(model, example)
    weight = result.model.head.weight
    weight.data = weight.data.flip(1)
    return Cut(result)


def less_masked(d: Draw, model: nn.Module, example: Any) -> Cut:
    result = halved(model, example)
    result.masks = {}
    return Cut(result)


def more_masked(d: Draw, model: nn.Module, example: Any) -> Cut:
    """More is gone than what the masks from outside say."""
    return Cut(halved(model, example), given={})


def written(d: Draw, model: nn.Module, example: Any) -> Cut:
    result = halved(model, example)
    model.head.bias.data += 1
    return Cut(result)


def raised(d: Draw, model: nn.Module, example: Any) -> Cut:
    raise IndexError("far away")


def refused(d: Draw, model: nn.Module, example: Any) -> Cut:
    raise secateur.errors.ShrinkError("not this one")


def narrow(d: Draw, model: nn.Module, example: Any) -> Cut:
    """Right on the example, and fails on a larger batch."""
    result = halved(model, example)
    count = len(example[0])

    def check(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > count:
            raise RuntimeError("too many")

    result.model.register_forward_pre_hook(check)
    return Cut(result)


FAULTS = {
    swapped: "silent",
    less_masked: "masks",
    more_masked: "given",
    written: "dense",
    raised: "raw",
    refused: "refused",
    narrow: "size",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_judge_when_the_library_is_wrong_then_says_how(fault: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(WAYS, "prune", fault)
    program = Program(2, (("vector", (Node("linear", 1),)),), "prune")
    assert judge(program).kind == FAULTS[fault]


def test_shorter_when_one_block_is_at_fault_then_leaves_it_alone(monkeypatch: pytest.MonkeyPatch):
    def only_with_a_base(d: Draw, model: nn.Module, example: Any) -> Cut:
        if "base" in str([name for name, _ in model.named_modules()]):
            raise IndexError("at the base")
        return Cut(halved(model, example))

    monkeypatch.setitem(WAYS, "prune", only_with_a_base)
    inner = Node("residual", 1, ((Node("linear", 2), Node("low_rank", 0)),))
    program = Program(2, (("vector", (Node("linear", 1), inner, Node("linear", 3))),), "prune")
    found, outcome = shorter(program, judge(program))
    assert outcome.kind == "raw"
    assert found.stages == (("vector", (Node("low_rank", 0),)),)
