"""Drop residual blocks: those that are named, or as many as go with the least harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from torch import nn

from secateur.errors import ConfigError, ScoreError, did_you_mean
from secateur.graph.blocks import Block, outermost
from secateur.graph.sums import products, sum_behind
from secateur.repair import Repair, repairs
from secateur.repair import repair as refit
from secateur.replacements.passing import Passing
from secateur.runtime.batches import held
from secateur.runtime.copying import copied, own
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.values import as_number
from secateur.structure import Structure, analyze
from secateur.types import Example

from .apply import cut_and_verify
from .plan import Plan
from .rankings import block_rankings
from .result import Result


@in_ordinary_mode
def drop_blocks(
    model: nn.Module, names: Sequence[str] | float, example_inputs: Example, **options: Any
) -> Result:
    """Drop residual blocks from a deep copy of a model: what each is given goes on as it is.

    They are taken out of the list that held them and the rest is counted anew, where the model then
    computes the same; elsewhere they stay in their place and return their input.

    Args:
        model: any module; it is not touched.
        names: of ``analyze(model, example_inputs).blocks``; or how many go, or what share below 1,
            of the outermost, or of those within where a single one holds all.
        example_inputs: as for ``analyze``; without a cache, which would keep what the blocks made.
        options: the fields of ``Dropping``: data, by, greedy, repair, verify.

    Raises:
        ConfigError: there is no data to choose by or to repair with, so many cannot go, or an
            option is unknown or of another type.
        UnknownNameError: there is no such ranking or repair.
        PlanError: a name is none of a residual block.
        ShrinkError, VerificationError: without them it does not run, or computes another thing.

    >>> import torch
    >>> net = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, dropout=0) for _ in range(3)))
    >>> x = torch.randn(3, 4, 8)
    >>> [(block.name, block.params) for block in analyze(net, x).blocks][:2]
    [('0', 600), ('1', 600)]
    >>> small = drop_blocks(net, ["1"], x)
    >>> small.after.params, small.verification.passed, len(small.model)
    (1200, True, 2)
    >>> len(drop_blocks(net, 2, x, data=[torch.randn(8, 4, 8)], by="error").model)
    1

    See also:
        ``Plan``, whose ``drop`` says it as data, together with channels to keep.
    """
    asked, names = Dropping.of(options), _named(names)
    check_model(model)
    batches = asked.batches(names)
    dense, model = model, copied(model, borrowing=True)
    structure = analyze(model, example_inputs)
    chosen = {} if isinstance(names, list) else _chosen(dense, structure, names, batches, asked)
    notes = [f"{name}: dropped by {asked.by}, {score:.3g}" for name, score in chosen.items()]
    plan = Plan({}, tuple(names if isinstance(names, list) else chosen))
    plan.check(structure)
    record = _repaired(model, structure, plan, batches, asked.repair)
    how: dict[str, Any] = {"notes": notes, "verify": asked.verify}
    result = cut_and_verify(model, structure, plan, {}, example_inputs, **how)
    own(model, dense)
    return result.with_repair(record)


@dataclass(frozen=True, kw_only=True)
class Dropping:
    """How blocks are chosen, and what makes up for them.

    Attributes:
        data: batches of inputs, to choose blocks by and to repair with.
        by: a ranking of blocks: "influence" (one pass for all) or "error" (one for each).
        greedy: rank the others again whenever one is chosen; else all by the whole model.
        repair: of ``secateur.repairs``, or "none": what adds to the stream behind a dropped block
            is refitted, so that the sum is what the dense model's was.
        verify: compare with the model in which what the blocks add is masked to zero, or, where no
            mask does that, with the one that skips them.  Without, no block is taken out of its
            list: that is only done where it was seen to change nothing.
    """

    data: Iterable[Any] | None = None
    by: str = "influence"
    greedy: bool = False
    repair: str = "none"
    verify: bool = True

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Dropping:
        """Return what options say; ConfigError names those that are unknown or of another type."""
        known = [each.name for each in fields(cls)]
        problems = [
            f"unknown option {n!r}.{did_you_mean(n, known)}" for n in options.keys() - known
        ]
        problems += [
            f"{name} must be True or False, got {options[name]!r}"
            for name in ("greedy", "verify")
            if not isinstance(options.get(name, True), bool)
        ]
        if problems:
            raise ConfigError(*problems)
        return cls(**options)

    def batches(self, names: Sequence[str] | float) -> list[Any]:
        """Return the batches, if there are any; ConfigError where they are needed."""
        block_rankings[self.by]
        if self.repair != "none":
            repairs[self.repair]
        if self.data is not None:
            return held(self.data)
        if self.repair != "none" or isinstance(names, (int, float)):
            what = f"repair={self.repair!r}"
            what = what if self.repair != "none" else f"choosing {_many(names)} blocks"
            raise ConfigError(f"{what} needs data=batches of inputs; or name the blocks that go")
        return []


def _named(names: object) -> list[str] | float:
    """Return names of blocks, how many or what share; ConfigError for what is none of these."""
    if type(names) is int or (type(names) is float and 0 <= names <= 1):
        return names
    if isinstance(names, (list, tuple, set, frozenset)) and all(type(n) is str for n in names):
        return list(names)
    raise ConfigError(
        "names must be a list of names of blocks, how many go, or what share below 1, got "
        f"{names!r}"
    )


def _many(names: object) -> str:
    return f"{names:.0%} of the" if isinstance(names, float) else f"{names}"


def _chosen(
    model: nn.Module,
    structure: Structure,
    asked_for: float,
    batches: Sequence[Any],
    asked: Dropping,
) -> dict[str, float]:
    """Return the blocks that matter least, with their scores."""
    rank = block_rankings[asked.by]
    outer = outermost(structure.blocks)
    if not outer:
        raise ConfigError(
            f"{structure.model} has no block that can go: a module that returns what it is given "
            "plus something, or is one of several alike, and of which nothing else is read or "
            "returned (as a cache of keys and values may be: try use_cache=False in the example)"
        )
    count = asked_for if isinstance(asked_for, int) else int(asked_for * len(outer) + 1e-9)
    if not count and asked_for:
        raise ConfigError(
            f"{asked_for:.0%} of {len(outer)} blocks is none: {1 / len(outer):.3g} is one"
        )
    if not 0 < count < len(outer):
        raise ConfigError(
            f"{count} blocks cannot go: {structure.model} has {len(outer)} to choose from, and one "
            "stays"
        )
    chosen: dict[str, float] = {}
    skipped: dict[str, Passing] = {}
    while len(chosen) < count:
        left = [block for block in outer if block.name not in chosen]
        scores = rank(model, left, batches, skipped)
        if len(scores) != len(left):
            raise ScoreError(
                f"the ranking {asked.by!r} must return a score for each of {len(left)} blocks, and "
                f"returned {len(scores)}"
            )
        if wrong := [score for score in scores if not isfinite(as_number(score))]:
            raise ScoreError(
                f"the ranking {asked.by!r} must return numbers, and gives {wrong[0]!r}"
            )
        ranked = sorted(zip(scores, left, strict=True), key=lambda pair: pair[0])
        for score, block in ranked[: 1 if asked.greedy else count]:
            chosen[block.name] = score
            skipped |= passing([block])
    return chosen


def _repaired(
    model: nn.Module, structure: Structure, plan: Plan, batches: Sequence[Any], how: str
) -> Repair | None:
    """Refit what adds to the stream behind the dropped blocks; return the record, if one is."""
    if how == "none" or not plan.drop:
        return None
    blocks = [structure.block(name) for name in plan.drop]
    masks = plan.masks(structure)
    also = frozenset(writers(structure, blocks))
    skipped = passing([block for block in blocks if not block.exact])
    values, record = refit(model, masks, structure, batches, how, also=also, skipped=skipped)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in values.items():
        tensors[name].data = value
    return record


def writers(structure: Structure, blocks: Sequence[Block]) -> Iterator[str]:
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


def passing(blocks: Iterable[Block]) -> dict[str, Passing]:
    """Return how each of some blocks passes its input on."""
    return {block.name: (block.position, block.returns) for block in blocks}
