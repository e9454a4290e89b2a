"""What a repair did, as facts: how far each reader, and the whole model, is from the dense one."""

from __future__ import annotations

from math import isfinite

from secateur.repair.report import Distance, Repair

from .fact import Count, Fact


class RefitFact(Fact):
    """A reader of what was pruned; errors are shares of its outputs' variance, None if unknown.

    ``damping`` is None where it was left as it was, and ``why`` says so.
    """

    tensor: str
    before: float | None
    after: float | None
    damping: float | None
    rows: Count
    why: str = ""


class DistanceFact(Fact):
    """How far outputs are from the dense model's, as a share of their spread, and in nats."""

    error: float | None
    kl: float | None = None


class RepairFacts(Fact):
    """The record of one repair, measured on batches that were held out."""

    how: str
    refits: tuple[RefitFact, ...]
    before: DistanceFact
    after: DistanceFact
    norms: bool = False


def repair_facts(repair: Repair) -> RepairFacts:
    """Return the record of a repair as plain data; a number that JSON cannot hold is None."""
    return RepairFacts(
        how=repair.how,
        refits=tuple(
            RefitFact(
                tensor=refit.tensor,
                before=_known(refit.before),
                after=_known(refit.after),
                damping=refit.damping,
                rows=refit.rows,
                why=refit.why,
            )
            for refit in repair.refits
        ),
        before=_distance(repair.before),
        after=_distance(repair.after),
        norms=repair.norms,
    )


def _distance(distance: Distance) -> DistanceFact:
    return DistanceFact(error=_known(distance.error), kl=_known(distance.kl))


def _known(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
