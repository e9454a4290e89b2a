"""Drop residual blocks: those that are named, or as many as go with the least harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from secateur.errors import ConfigError
from secateur.graph.blocks import Block
from secateur.graph.sums import products, sum_behind
from secateur.repair import Repair, repairs
from secateur.repair import repair as refit
from secateur.replacements.passing import Passing, skipping
from secateur.runtime.batches import held
from secateur.runtime.copying import copied, own
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.structure import Structure, analyze
from secateur.types import Example

from .apply import cut_and_verify
from .plan import Plan
from .rankings import rankings
from .result import Result


@in_ordinary_mode
def drop_blocks(
    model: nn.Module,
    names: Sequence[str] | int,
    example_inputs: Example,
    *,
    data: Iterable[Any] | None = None,
    by: str = "influence",
    greedy: bool = False,
    repair: str = "none",
    verify: bool = True,
) -> Result:
    """Drop residual blocks from a deep copy of a model: what each is given goes on as it is.

    They are taken out of the list that held them, and the rest is counted anew, where the model
    then computes the same: places, a cache's numbers, a config.  Where it does not, they stay in
    their place and return their input.

    Args:
        model: any module; it is not touched.
        names: of ``analyze(model, example_inputs).blocks``; or how many go, of those that lie in
            no other block.
        example_inputs: as for ``analyze``; without a cache, which would keep what the blocks made.
        data: batches of inputs, to choose blocks by and to repair with.
        by: a ranking of blocks: "influence" (one pass for all) or "error" (one for each).
        greedy: rank the others again whenever one is chosen; else all by the whole model.
        repair: of ``secateur.repairs``, or "none": the layers behind a dropped block that add to
            its stream are refitted, so that the sum is what the dense model's was.
        verify: compare with the model in which what the blocks add is masked to zero, or, where no
            mask does that, with the one that skips them.

    Raises:
        ConfigError: there is no data to choose by, or to repair with; fewer blocks can go.
        UnknownNameError: there is no such ranking or repair.
        PlanError: a name is none of a residual block.
        ShrinkError, VerificationError: the model does not run without them, or computes another
            thing than it should.

    >>> import torch
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner = nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         return x + self.inner(x)
    >>> net, x = nn.Sequential(Block(), Block(), nn.Linear(8, 2)), torch.randn(3, 8)
    >>> [(block.name, block.params) for block in analyze(net, x).blocks]
    [('0', 72), ('1', 72)]
    >>> small = drop_blocks(net, ["1"], x)
    >>> small.after.params, small.verification.passed
    (90, True)
    >>> small = drop_blocks(net, 1, x, data=[torch.randn(32, 8)], by="error")
    >>> len(small.model)
    2

    See also:
        ``Plan``, whose ``drop`` says it as data, together with channels to keep.
    """
    check_model(model)
    if repair != "none":
        repairs[repair]
    batches = None if data is None else held(data)
    if batches is None and (repair != "none" or isinstance(names, int)):
        what = f"repair={repair!r}" if repair != "none" else f"choosing {names} blocks"
        raise ConfigError(f"{what} needs data=batches of inputs; or name the blocks that go")
    dense, model = model, copied(model, borrowing=True)
    structure = analyze(model, example_inputs)
    notes: list[str] = []
    if isinstance(names, int):
        chosen = _chosen(dense, structure, names, batches or [], by, greedy)
        names = list(chosen)
        notes = [f"{name}: dropped by {by}, {score:.3g}" for name, score in chosen.items()]
    plan = Plan({}, tuple(names))
    plan.check(structure)
    record = None
    if repair != "none":
        record = _repaired(model, structure, plan, batches or [], repair)
    result = cut_and_verify(model, structure, plan, {}, example_inputs, notes=notes, verify=verify)
    own(model, dense)
    result.with_repair(record)
    return result


def _chosen(
    model: nn.Module,
    structure: Structure,
    count: int,
    batches: Sequence[Any],
    by: str,
    greedy: bool,
) -> dict[str, float]:
    """Return the blocks that matter least, with their scores."""
    rank = rankings[by]
    every = structure.blocks
    names = [block.name for block in every]
    outer = [b for b in every if not any(_inside(b.name, n) for n in names)]
    if not 0 < count < len(outer):
        raise ConfigError(
            f"{count} blocks cannot go: {structure.model} has {len(outer)} that lie in no other, "
            "and one stays"
        )
    chosen: dict[str, float] = {}
    skipped: dict[str, Passing] = {}
    while len(chosen) < count:
        left = [block for block in outer if block.name not in chosen]
        with skipping(model, skipped):
            scores = rank(model, left, batches)
        ranked = sorted(zip(scores, left, strict=True), key=lambda pair: pair[0])
        for score, block in ranked[: 1 if greedy else count]:
            chosen[block.name] = score
            skipped |= _passing([block])
    return chosen


def _repaired(
    model: nn.Module, structure: Structure, plan: Plan, batches: Sequence[Any], how: str
) -> Repair:
    """Refit what adds to the stream behind the dropped blocks; return the record."""
    blocks = [structure.block(name) for name in plan.drop]
    masks = plan.masks(structure)
    also = frozenset(_writers(structure, blocks))
    skipped = _passing([block for block in blocks if not block.exact])
    values, record = refit(model, masks, structure, batches, how, also=also, skipped=skipped)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in values.items():
        tensors[name].data = value
    return record


def _writers(structure: Structure, blocks: Sequence[Block]) -> Iterator[str]:
    """Yield the weights behind the first dropped block whose outputs are added to a stream."""
    recording = structure.inferred.recording
    numbers = {id(op): i for i, op in enumerate(recording.ops)}
    gone = tuple(f"{block.name}." for block in blocks)
    first = min(block.ops.start for block in blocks)
    for name, product in products(recording).items():
        if numbers[id(product)] >= first and not name.startswith(gone):
            found = sum_behind(recording, product)
            if found is not None and found.other is not None:
                yield name


def _passing(blocks: Sequence[Block]) -> dict[str, Passing]:
    return {block.name: (block.position, block.returns) for block in blocks}


def _inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")
