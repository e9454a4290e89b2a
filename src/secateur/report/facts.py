"""``report.json``: everything that is known of one pruned model, as plain typed data.

The console, Markdown and HTML draw this and nothing else, so that they cannot disagree.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticSerializationError
from torch import nn

from secateur.costs import Reached
from secateur.errors import FileError, printable
from secateur.graph.cost import Cost
from secateur.runtime.measure import Latency, state_bytes
from secateur.searching import Search
from secateur.shrinking import Result, Verification
from secateur.shrinking.document import check_schema
from secateur.shrinking.plan import Plan
from secateur.structure import Structure

from .fact import Count, Fact
from .repaired import RepairFacts, repair_facts
from .searched import SearchFacts, search_facts

SCHEMA = 1


Size: TypeAlias = Annotated[int, Field(ge=1, le=1 << 31)]


def ascending(ranges: tuple[tuple[int, int], ...] | None) -> tuple[tuple[int, int], ...] | None:
    """Return inclusive ranges of positions as they are; ValueError where they do not ascend."""
    last = -1
    for first, end in ranges or ():
        if not last < first <= end < 1 << 31:
            raise ValueError("ranges of positions must ascend")
        last = end
    return ranges


class Slice(Fact):
    """One dimension of a tensor on which a group lives."""

    tensor: str
    dim: int
    role: Literal["out", "in", "buffer"]


class GroupFact(Fact):
    """A group that may be pruned; ``kept`` are inclusive ranges of positions, None for all."""

    name: str
    size: Size
    kept: Annotated[tuple[tuple[int, int], ...] | None, AfterValidator(ascending)] = None
    params: Count
    macs: float
    exact: bool
    reason: str | None = None
    sized: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    slices: tuple[Slice, ...]

    @model_validator(mode="after")
    def inside(self) -> Self:
        if self.kept and self.kept[-1][1] >= self.size:
            raise ValueError("kept positions must lie inside of the group")
        return self

    @property
    def left(self) -> int:
        if self.kept is None:
            return self.size
        return sum(last - first + 1 for first, last in self.kept)


class FrozenFact(Fact):
    """A group that may not be pruned, and why."""

    name: str
    size: Size
    reason: str
    place: str = ""


class BlockFact(Fact):
    """A residual block, which can be dropped whole."""

    name: str
    params: Count
    macs: Count
    dropped: bool = False


class StructureFacts(Fact):
    """What can be removed from a model, and why the rest cannot."""

    model: str
    params: Count
    macs: Count
    peak_bytes: Count
    groups: tuple[GroupFact, ...]
    frozen: tuple[FrozenFact, ...]
    blocks: tuple[BlockFact, ...] = ()
    unknown: dict[str, str]


class Side(Fact):
    """One of the two models: its costs, and what was measured on it."""

    params: Count
    macs: Count
    peak_bytes: Count
    state_bytes: Count
    latency: Latency | None = None
    scores: dict[str, float] = {}


class Check(Fact):
    """How far the smaller model's outputs are from the masked one's, relative to the largest."""

    difference: float = Field(allow_inf_nan=False)
    tolerance: float
    exact: bool
    inputs: Count
    passed: bool


class GoalFact(Fact):
    """What was asked of a cost, in words, and what was reached; ``gone`` is a share of 1."""

    of: str
    asked: str
    dense: str
    reached: str
    gone: float
    met: bool
    spread: str = ""


class TensorFact(Fact):
    """A parameter before and after: its shape, and the share of it that is masked."""

    name: str
    before: tuple[Count, ...]
    after: tuple[Count, ...]
    masked: float


class Report(Fact):
    """All facts of one run."""

    schema_: int = Field(SCHEMA, alias="schema")
    made: str
    structure: StructureFacts
    before: Side
    after: Side
    tensors: tuple[TensorFact, ...]
    check: Check | None
    repair: RepairFacts | None = None
    search: SearchFacts | None = None
    goals: tuple[GoalFact, ...] = ()
    notes: tuple[str, ...] = ()
    loads_with: str
    history: tuple[dict[str, float], ...] = ()
    config: dict[str, Any] = {}
    reproduce: str = ""
    environment: dict[str, str]

    @classmethod
    def from_text(cls, text: str, place: str) -> Report:
        """Return the report that a JSON text holds.

        Raises:
            FileError: it is none, or one of a newer schema.
        """
        check_schema(text, SCHEMA, place)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise FileError(f"{place} is no report: {where}: {first['msg']}") from error

    def to_text(self) -> str:
        try:
            return self.model_dump_json(indent=1, by_alias=True) + "\n"
        except PydanticSerializationError:  # a name in it is no text that UTF-8 can say
            facts = type(self).model_validate(_printable(self.model_dump(by_alias=True)))
            return facts.model_dump_json(indent=1, by_alias=True) + "\n"


def _printable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_printable(key): _printable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(map(_printable, value))
    return printable(value) if isinstance(value, str) else value


def structure_facts(structure: Structure, plan: Plan | None = None) -> StructureFacts:
    """Return a structure as plain data, with what a plan keeps of each group."""
    kept = plan.to_json()["keep"] if plan else {}
    cost = structure.cost()
    groups = tuple(
        GroupFact(
            name=g.name,
            size=g.size,
            kept=tuple((a, b) for a, b in kept[g.name]) if g.name in kept else None,
            params=g.params,
            macs=structure.macs_per_index(g),
            exact=g.exact,
            reason=str(g.inexact) if g.inexact else None,
            sized=g.sized,
            grid=g.grid,
            slices=tuple(Slice(tensor=m.tensor, dim=m.dim, role=m.role) for m in g.members),
        )
        for g in structure.groups
    )
    frozen = tuple(
        FrozenFact(
            name=g.name,
            size=g.size,
            reason=g.frozen.why if g.frozen else "",
            place=f"{g.frozen.op} in {g.frozen.module!r}" if g.frozen and g.frozen.op else "",
        )
        for g in structure.frozen
    )
    dropped = plan.drop if plan else ()
    blocks = tuple(
        BlockFact(name=b.name, params=b.params, macs=b.macs, dropped=b.name in dropped)
        for b in structure.blocks
    )
    unknown = {op: str(reason) for op, reason in structure.unknown.items()}
    return StructureFacts(
        model=structure.model,
        params=cost.params,
        macs=cost.macs,
        peak_bytes=cost.peak_bytes,
        groups=groups,
        frozen=frozen,
        blocks=blocks,
        unknown=unknown,
    )


def report_of(
    result: Result,
    dense: nn.Module,
    *,
    latency: Mapping[str, Latency] | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    history: Sequence[Mapping[str, float]] = (),
    search: Search | None = None,
    config: Mapping[str, Any] | None = None,
    reproduce: str = "",
) -> Report:
    """Return all facts of a pruned model.

    Args:
        result: of ``prune``, ``shrink`` or ``Pruner.finish``.
        dense: the model as it was before.
        latency: of "before" and "after", from ``secateur.runtime.measure.latency``.
        scores: "before" and "after" → name → value, such as accuracy in %.
        history: one dict per step, each with "step" and what was measured then.
        search: that found the allocation.
        config: the settings that were given.
        reproduce: the command or call that does it again.
    """
    latency, scores = latency or {}, scores or {}
    models = {"before": (dense, result.before), "after": (result.model, result.after)}
    sides = {
        side: _side(model, cost, latency.get(side), scores.get(side, {}))
        for side, (model, cost) in models.items()
    }
    return Report(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        structure=structure_facts(result.structure, result.plan),
        before=sides["before"],
        after=sides["after"],
        tensors=_tensors(result),
        check=_check(result.verification),
        repair=result.repair and repair_facts(result.repair),
        search=search and search_facts(search),
        goals=goal_facts(result.goals),
        notes=(*result.warnings, *result.notes),
        loads_with=result.loads_with,
        history=tuple(dict(step) for step in history),
        config=dict(config or {}),
        reproduce=reproduce,
        environment=environment(),
    )


def _check(found: Verification | None) -> Check | None:
    if found is None:
        return None
    return Check(
        difference=found.difference,
        tolerance=found.tolerance,
        exact=found.exact,
        inputs=found.inputs,
        passed=found.passed,
    )


def goal_facts(goals: Sequence[Reached]) -> tuple[GoalFact, ...]:
    """Return what was asked and reached as plain data."""
    return tuple(GoalFact(**asdict(goal)) for goal in goals)


def environment() -> dict[str, str]:
    """Return what a figure depends on besides the code."""
    return {
        "secateur": version("secateur"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "torch threads": str(torch.get_num_threads()),
    }


def _side(
    model: nn.Module, cost: Cost, latency: Latency | None, scores: Mapping[str, float]
) -> Side:
    return Side(
        params=cost.params,
        macs=cost.macs,
        peak_bytes=cost.peak_bytes,
        state_bytes=state_bytes(model),
        latency=latency,
        scores=dict(scores),
    )


def _tensors(result: Result) -> tuple[TensorFact, ...]:
    """Return all parameters in the order in which the model uses them."""
    recording = result.structure.inferred.recording
    smaller = dict(result.model.named_parameters())
    found = []
    for name, value in recording.parameters.items():
        mask = result.masks.get(name)
        found.append(
            TensorFact(
                name=name,
                before=tuple(recording.shapes[value]),
                after=tuple(smaller[name].shape) if name in smaller else (),
                masked=0.0 if mask is None else 1 - float(mask.float().mean()),
            )
        )
    return tuple(found)
