"""A plan: which positions each group keeps.  Data: it can be costed, saved, compared, applied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as brief
from typing import Any

import torch
from torch import Tensor

from secateur.errors import PlanError, UnknownNameError, did_you_mean
from secateur.runtime.forbidding import Forbidden
from secateur.selection.select import Request, select
from secateur.structure import Structure
from secateur.types import Factored, Masks

from .completion import complete, group_masks

SCHEMA = 1
MOST_POSITIONS = 1 << 20  # of a group; far beyond the size of any dimension that is pruned
MOST_IN_ALL = 1 << 24  # of all groups and steps of a file; each takes some 40 bytes of memory


@dataclass(frozen=True)
class Plan:
    """Group name → the positions that it keeps, ascending.  Groups that lose nothing are absent.

    ``drop`` names residual blocks that go as a whole.

    >>> from torch import nn
    >>> from secateur.structure import analyze
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> structure = analyze(net, torch.zeros(1, 8))
    >>> plan = Plan({"0": (0, 1, 5)})
    >>> plan.check(structure)
    >>> plan.counts, structure.cost(plan).params
    ({'0': 3}, 43)

    See also:
        ``apply_plan``, which cuts by one; ``load_plans``, which reads those of a saved model.
    """

    keep: Mapping[str, tuple[int, ...]]
    drop: tuple[str, ...] = ()

    @classmethod
    def from_keeps(cls, structure: Structure, keeps: Mapping[str, Tensor]) -> Plan:
        """Return a plan from bool tensors ``(size,)`` by group; True is kept.

        Raises:
            PlanError: a group is unknown or frozen, a size is wrong, or nothing would be left.
        """
        size = {g.name: g.size for g in (*structure.groups, *structure.frozen)}
        wrong = [
            f"group {name!r} has {size[name]} positions, and its keep mask {tuple(keep.shape)}"
            for name, keep in keeps.items()
            if name in size and tuple(keep.shape) != (size[name],)
        ]
        if wrong:
            raise PlanError("\n".join(wrong))
        kept = {
            name: tuple(torch.nonzero(keep.cpu()).flatten().tolist())
            for name, keep in keeps.items()
            if name not in size or not bool(keep.all())
        }
        plan = cls(kept)
        plan.check(structure)
        return plan

    @classmethod
    def from_masks(cls, structure: Structure, masks: Mapping[str, Tensor]) -> Plan:
        """Return the plan that masks allow, partial or not; see ``secateur.shrinking.completion``.

        Raises:
            MaskError: a mask fits no parameter of the model.
        """
        return cls.from_keeps(structure, complete(structure, masks).keeps)

    @classmethod
    def from_scores(
        cls, structure: Structure, scores: Mapping[str, Tensor], sparsity: float
    ) -> Plan:
        """Return the plan that removes the share ``sparsity`` of each group's lowest scores.

        Args:
            structure: of the model.
            scores: group name → one score per position ``(size,)``; smaller matters less.
            sparsity: in [0, 1]; ``floor(size * sparsity)`` positions go, and one always stays.

        Raises:
            ScoreError: a score is NaN or infinite.
            PlanError: a group is unknown or frozen, or its scores have another size.

        >>> import torch
        >>> from secateur import analyze
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2))
        >>> structure = analyze(net, torch.zeros(1, 2))
        >>> Plan.from_scores(structure, {"0": torch.tensor([4.0, 1.0, 3.0, 2.0])}, 0.5).keep
        {'0': (0, 2)}
        """
        known = {g.name: (g.least, g.step) for g in structure.groups}
        limits = [known.get(name, (1, 1)) for name in scores]
        requests = [
            Request(score, sparsity=sparsity, keep_at_least=least, round_to=step)
            for score, (least, step) in zip(scores.values(), limits, strict=True)
        ]
        keeps = select(requests, list(scores)).keeps
        return cls.from_keeps(structure, dict(zip(scores, keeps, strict=True)))

    @property
    def counts(self) -> dict[str, int]:
        """How many positions each group keeps."""
        return {name: len(positions) for name, positions in self.keep.items()}

    def forbidden(self, structure: Structure) -> list[Forbidden]:
        """Return where a router is not to choose what goes, in the model that a cut equals."""
        return [
            each
            for name in self.keep
            if structure[name].unchosen
            for each in structure.forbidden(name, self._kept(structure, name))
        ]

    def _kept(self, structure: Structure, name: str) -> Tensor:
        keep = torch.zeros(structure[name].size, dtype=torch.bool)
        keep[list(self.keep[name])] = True
        return keep

    def masks(self, structure: Structure) -> Masks:
        """Return the complete masks that this plan amounts to.

        Raises:
            PlanError: it does not fit the model.
        """
        self.check(structure)
        keeps = {name: self._kept(structure, name) for name in self.keep}
        gone = torch.zeros((), dtype=torch.bool)
        blocks = map(structure.block, self.drop)
        dropped = {
            name: gone.expand(structure.tensor(name).shape)
            for b in blocks
            for name in b.masks or ()
        }
        return Factored(group_masks(structure, keeps), dropped)

    def check(self, structure: Structure) -> None:
        """Raise a ``PlanError`` with all reasons why this plan does not fit a model, if any."""
        known = {g.name: g for g in structure.groups}
        frozen = {g.name: g for g in structure.frozen}
        wrong = [
            f"block {name!r} is named twice, or lies in another that is dropped"
            for i, name in enumerate(self.drop)
            if any(f"{name}.".startswith(f"{o}.") for o in (*self.drop[:i], *self.drop[i + 1 :]))
        ]
        for name in self.drop:
            try:
                structure.block(name)
            except UnknownNameError as error:
                wrong.append(str(error))
        for name, kept in self.keep.items():
            group = known.get(name)
            if group is None:
                why = f": it is frozen: {frozen[name].frozen}" if name in frozen else ""
                hint = did_you_mean(name, known) if name not in frozen else ""
                wrong.append(f"group {name!r} of {structure.model} cannot be cut{why}.{hint}")
            elif not kept:
                wrong.append(f"group {name!r} would keep nothing; at least one position must stay")
            elif list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= group.size:
                wrong.append(f"group {name!r} has positions 0…{group.size - 1}, each at most once")
            elif len(kept) % group.step or len(kept) < group.least:
                wrong.append(
                    f"group {name!r} must keep a multiple of {group.step} and at least "
                    f"{group.least} positions, not {len(kept)}"
                )
            else:
                wrong += self._unbalanced(structure, name, known)
        if wrong:
            raise PlanError("\n".join(wrong))

    def _unbalanced(self, structure: Structure, name: str, known: Mapping[str, Any]) -> list[str]:
        counts = self.counts
        mine = counts[name]
        return [
            f"groups {name!r} and {other!r} must keep equally many positions, not {mine} and "
            f"{counts.get(other, known[other].size)}"
            for other in known[name].sized
            if counts.get(other, known[other].size) != mine
            and (name < other or other not in counts)  # said once of two that are both cut
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON: kept positions as inclusive ranges ``[first, last]``."""
        return {
            "schema": SCHEMA,
            "keep": {name: list(_ranges(kept)) for name, kept in self.keep.items()},
            **({"drop": list(self.drop)} if self.drop else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """Return the plan that ``to_json`` wrote; takes a dict or its text.

        Raises:
            PlanError: it is no plan, or one of a newer schema.

        >>> Plan.from_json(Plan({"conv1": (0, 1, 2, 5)}).to_json()).keep
        {'conv1': (0, 1, 2, 5)}
        """
        try:
            data = json.loads(data) if isinstance(data, (str, bytes)) else data
        except (ValueError, RecursionError) as error:
            raise _no_plan(error) from error
        return plans_of([data])[0]


def plans_of(data: Sequence[Any]) -> tuple[Plan, ...]:
    """Return the plans of several ``to_json``, whose positions are limited together.

    Raises:
        PlanError: one is no plan, or of a newer schema.
    """
    try:
        for each in data:
            if (schema := each["schema"]) > SCHEMA:
                raise PlanError(f"plan schema {brief(schema)} is newer than {SCHEMA}: upgrade")
        total = sum(_counted(ranges) for each in data for ranges in each["keep"].values())
        if total > MOST_IN_ALL:  # a file must not be able to fill the memory
            raise ValueError(f"it keeps {total} positions, more than {MOST_IN_ALL}")
        return tuple(map(_plan_of, data))
    except PlanError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _no_plan(error) from error


def _plan_of(data: Any) -> Plan:
    keep = {str(name): _positions(ranges) for name, ranges in data["keep"].items()}
    drop = data.get("drop", [])
    if not isinstance(drop, list) or not all(isinstance(name, str) for name in drop):
        raise ValueError("drop must be a list of names")
    return Plan(keep, tuple(drop))


def _no_plan(error: Exception) -> PlanError:
    return PlanError(f"this is no plan: {type(error).__name__}: {error}")


def _counted(ranges: Any) -> int:
    """Return how many positions inclusive ranges hold; ValueError where they do not ascend."""
    last, total = -1, 0
    for first, end in ranges:
        if type(first) is not int or type(end) is not int or not last < first <= end:
            raise ValueError(f"[{first!r}, {end!r}] is no range of positions after {last}")
        if end > MOST_POSITIONS:  # a file must not be able to fill the memory
            raise ValueError(f"[{first}, {end}] ends beyond position {MOST_POSITIONS}")
        total += end - first + 1
        last = end
    return total


def _positions(ranges: Any) -> tuple[int, ...]:
    return tuple(i for first, end in ranges for i in range(first, end + 1))


def _ranges(positions: Iterable[int]) -> Iterable[list[int]]:
    run: list[int] = []
    for p in positions:
        if run and p == run[1] + 1:
            run[1] = p
        else:
            if run:
                yield run
            run = [p, p]
    if run:
        yield run
