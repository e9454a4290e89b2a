"""One operation on a model: mask, cut, compare; and again without the groups that speak against it.

Exactness is never given up: what is left of a plan has passed the check whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from secateur.errors import ShrinkError, VerificationError
from secateur.repair.fold import Folding
from secateur.replacements.passing import skipping
from secateur.runtime.forbidding import forbidding
from secateur.runtime.release import release
from secateur.structure import Structure
from secateur.types import Example, Factored, Masks

from .culprits import innocent, joined, named, parts
from .cut import Surgery
from .history import Changes
from .locate import first_difference
from .plan import Plan
from .rescale import unrounded
from .training_mode import TrainingMode
from .trials import Trial, uneven
from .used import Reads, insist_on_own
from .verify import Check, Verification


@dataclass
class Done:
    """What an operation did: the plan that was applied, and what is known of it."""

    plan: Plan
    masks: Masks
    attributes: Changes
    verification: Verification | None
    folded: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Operation:
    """Cuts a model by a plan, or by as much of it as passes the check.

    Args:
        masks: what is masked whatever is cut; what the plan removes is masked besides.
        folding: constants that go into biases.
        check: compares with the masked model; None leaves that out.
        as_it_is: compare with the model under ``masks`` alone.
    """

    def __init__(
        self,
        surgery: Surgery,
        structure: Structure,
        masks: Masks,
        example: Example,
        folding: Folding | None,
        check: Check | None,
        as_it_is: bool = False,
        besides: str = "",
    ):
        self.surgery = surgery
        self.structure = structure
        self.masks = masks
        self.example = example
        self.folding = folding
        self.check = check
        self.as_it_is = as_it_is
        self.besides = besides  # what to say where nothing can be compared
        self.start = surgery.mark()
        self.training = TrainingMode(surgery.model, example) if check else None

    @property
    def model(self) -> nn.Module:
        return self.surgery.model

    def perform(self, plan: Plan) -> Done:
        """Cut what can be cut, and say what was left whole.

        Raises:
            ShrinkError, VerificationError: nothing can be cut.
            CopyError: the model computes with other parameters than its own.
        """
        plan.check(self.structure)
        every = parts(self.structure, plan)
        exact = [part for part in every if self._exact(part)]
        others = [part for part in every if not self._exact(part)]
        told: list[str] = []
        sure: list[Plan] = []
        if self.check and exact and others:  # among these nobody would see an error of the exact
            _, sure, told = self._settled([], exact)
            every = others
        done, _, more = self._settled(sure, every)
        told += more
        warnings = [_shares(self.structure, plan, done.plan)] if told else []
        return replace(done, notes=[*told, *done.notes], warnings=warnings)

    def _settled(self, sure: list[Plan], some: list[Plan]) -> tuple[Done, list[Plan], list[str]]:
        """Cut what is sure to do well and what of some does; return also which, and notes."""
        notes: list[str] = []
        while True:
            try:
                return self.attempt(joined([*sure, *some])), [*sure, *some], notes
            except ShrinkError as error:
                if not some:
                    raise
                many = len(some)
                some, told = self._spared(sure, some, error)
                if not sure and not some:
                    raise type(error)(_nothing(many, told)) from error
                notes += told

    def _spared(
        self, sure: list[Plan], some: list[Plan], error: ShrinkError
    ) -> tuple[list[Plan], list[str]]:
        """Return those parts that do not make a cut fail, and why the others do."""
        trials = [t for t in (self.check.trials if self.check else ()) if _names(t, error.trial)]

        def fails(tried: Sequence[Plan]) -> ShrinkError | None:
            try:
                self.attempt(joined(tried), trials)
            except ShrinkError as error:
                return error
            return None

        if self.check and (unsteady := fails(sure)) is not None:
            differs = isinstance(unsteady, VerificationError)
            why = "does not compute the same twice" if differs else "fails"
            raise type(unsteady)(
                f"{self.structure.model} cannot be compared, because it {why}, with "
                f"{'less' if sure else 'nothing'} cut: {unsteady}{self.besides}"
            ) from error
        good: list[Plan] = []
        culprits = [(some[0], error)]
        if len(some) > 1:
            good, culprits = innocent(some, fails, sure)
        if not culprits:  # it fails now and then
            raise error
        notes = [
            f"{named(part)} stays whole: {self._why(joined([*sure, *good, part]), found)}"
            for part, found in culprits
        ]
        return good, notes

    def _why(self, plan: Plan, error: ShrinkError) -> str:
        """Say why a part cannot be cut: the error, and the first module whose output differs."""
        if not isinstance(error, VerificationError) or self.check is None:
            return f"{error}"
        ways = [way for trial in self.check.trials for way in trial]
        way = next((way for way in ways if way.name == error.trial), ways[0])
        _, masks = self._mask(plan)
        with self._meant(plan):
            masked = self.check.watched(self.model, way, masks)
        self.surgery.cut(self.structure, plan, masks)
        allowed = self.check.precision.tolerance
        with self._unrounded(self.check):
            smaller = self.check.watched(self.model, way)
        path = first_difference(self.structure, plan, masked, smaller, allowed)
        kind = type(self.model.get_submodule(path)).__name__
        where = f"{path!r} ({kind})" if path else f"{kind} itself"
        return f"{error}; the first module whose output differs is {where}"

    def attempt(self, plan: Plan, trials: Sequence[Trial] = ()) -> Done:
        """Mask, cut and compare; the model stays as it is by then, also when that fails.

        Args:
            plan: what to cut.
            trials: what to compare on besides the example; nothing is everything.
        """
        done, masks = self._mask(plan)
        with self._meant(plan):
            expected = self.check.expect(self.model, trials, masks) if self.check else None
        release()  # what the check read in another type, before copies are made
        done.attributes = self.surgery.cut(self.structure, plan, masks)
        if self.check and expected:
            exact = all(map(self._exact, parts(self.structure, plan)))
            reads = Reads(self.model, {before for before, _ in self.surgery.shapes.values()})
            with self._unrounded(self.check):
                found = self.check.compare(self.model, expected, exact=exact, watching=reads)
            insist_on_own(self.check, reads, self.surgery.shapes)
            done.verification = found
            if not found.passed:
                if self.check.insist():  # a forward may read a parameter past its operations
                    return self.attempt(plan, trials)
                raise VerificationError(
                    f"the smaller {self.structure.model} differs from the masked one by "
                    f"{found.difference:.1e} relative (allowed {found.tolerance:.0e}, on "
                    f"{found.worst}) though every removal is exact",
                    found.worst,
                )
        if self.training:
            self.training.check(self.model)
        return done

    @contextmanager
    def _meant(self, plan: Plan) -> Iterator[None]:
        """Let the masked model skip, and never choose, what no mask of zeros lets it."""
        blocks = map(self.structure.block, plan.drop)
        skipped = {b.name: (b.position, b.returns) for b in blocks if not b.exact}
        with (
            self.surgery.spelled_out(self.structure, plan),
            skipping(self.model, skipped),
            forbidding(self.model, () if self.as_it_is else plan.forbidden(self.structure)),
        ):
            yield

    def _unrounded(self, check: Check) -> AbstractContextManager[None]:
        return unrounded(self.model, self.surgery.rescaled, check.precision.dtype)

    def _mask(self, plan: Plan) -> tuple[Done, Masks]:
        """Take back what was done before, and mask what a plan removes.

        Returns:
            What was done, and the masks of large parameters that are left to the check and the cut:
            a masked copy of all of them would double the memory that the model takes.
        """
        self.surgery.undo(self.start)
        completed = plan.masks(self.structure)
        masks = _both(self.structure, self.masks, completed)
        folded, notes = self._folded(plan, completed)
        due = masks if self.check and not self.as_it_is else self.masks
        later = Factored()
        if due is masks and self.check and self.check.precision.frugal:
            later = masks.only({n for n in masks if len(masks.shape(n)) > 1} - folded.keys())
        self.surgery.mask(Factored(due).only(due.keys() - later.keys()))
        self.surgery.add(folded)
        return Done(plan, masks, {}, None, folded, notes), later

    def _folded(self, plan: Plan, completed: Masks) -> tuple[dict[str, Tensor], list[str]]:
        """Return what to add to biases for the constants of what a plan removes, and notes."""
        if self.folding is None:
            return {}, []
        constants = {n: c for n, c in self.folding.constants.items() if n in plan.keep}
        folding = replace(self.folding, constants=constants, completed=completed)
        others = uneven(self.example, self.structure)
        return folding.amounts(self.model, self.structure, self.example, others)

    def _exact(self, part: Plan) -> bool:
        """Tell whether the check must find nothing; a block equals one that is skipped."""
        groups = map(self.structure.__getitem__, part.keep)
        return all(group.exact or (group.unchosen and not self.as_it_is) for group in groups)


def _names(trial: Trial, name: str) -> bool:
    return any(way.name == name for way in trial)


def _nothing(many: int, notes: Sequence[str]) -> str:
    """Say why no part of a plan can be cut."""
    return "\n".join(
        ["nothing can be cut:" if many == 1 else f"none of {many} parts can be cut:", *notes]
    )


def _both(structure: Structure, given: Masks, completed: Masks) -> Factored:
    """Return the product of masks that were given, under any names, and of others."""
    names = structure.inferred.recording.names  # tied names are one parameter
    own = (Factored({names[n]: given[n].cpu().clone()}) for n in given)
    return Factored(completed, *own)


def _shares(structure: Structure, asked: Plan, done: Plan) -> str:
    """Say what goes, and what would have gone with what was left whole."""
    dense = structure.cost()

    def share(plan: Plan) -> str:
        left = structure.cost(plan)
        macs = left.macs / dense.macs if dense.macs else 1.0
        return (
            f"{1 - left.params / dense.params:.1%} of the parameters and {1 - macs:.1%} of the MACs"
        )

    return (
        f"{share(done)} go, and not {share(asked)} as was decided, because some groups cannot be "
        "cut: the notes name them"
    )
