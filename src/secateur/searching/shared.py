"""The part of a search that its storage holds: a study, and workers who take its trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, CmaEsSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from secateur.errors import ConfigError, shortened

from .bar import Bar
from .found import Search, Tried
from .identity import claim, weights_digest
from .job import Job
from .options import Direction, Options
from .samplers import FRONTS, Setting, Slotted, samplers
from .samplers.ours import SHARES
from .seeds import seed_of
from .slots import ENDED, Worker, cause_of, fail, given_up, winner
from .space import MOST, NEAR, Allocation, Space
from .storage import Place, attributes_of, opened_study, quiet, released, storage_at

ALONE = "secateur:alone"
"""User attribute of a study: what pruning does without it, which may have taken long to find."""
REMOVED, COST, GOAL = "secateur:removed", "secateur:cost", "share that goes"
EQUAL = 0.5
"""Any number: shares that are equal stay so when they meet the goal."""


@dataclass
class Shared:
    """A search in its storage; see ``secateur.search`` for the fields."""

    job: Job
    space: Space
    sampler: str | BaseSampler
    storage: Place | None
    trials: int
    options: Options
    given: Mapping[str, Any]

    @property
    def fronts(self) -> bool:
        """Tell whether value against cost is looked for, and not one best."""
        return isinstance(self.sampler, str) and self.sampler in FRONTS

    @property
    def seed(self) -> int:
        return self.job.pruner.config.seed

    @cached_property
    def study(self) -> Study:
        """The study, which is known to be of this search."""
        directions: list[Direction] = [self.options.direction]
        if self.fronts:
            directions.append("minimize")
        pruner, name = self.options.pruner or MedianPruner(), self.options.name
        known = attributes_of(self.opened, name).get(ALONE)
        if known is not None:
            self.space.resume(known)
        study = opened_study(self.opened, name, directions, self._sampler(), pruner)
        claim(study, self._facts(), self.given, self.options.same)
        if known is None:
            study.set_user_attr(ALONE, self.space.alone)
        return study

    @cached_property
    def opened(self) -> BaseStorage:
        """The storage that the study is in."""
        default = Path(f"{self.options.name}.journal")
        return storage_at(default if self.storage is None else self.storage)

    def _sampler(self) -> BaseSampler:
        if isinstance(self.sampler, CmaEsSampler):
            raise ConfigError(
                "Optuna's CmaEsSampler keeps a pickle in the storage, which is not read here; "
                "sampler='cmaes' is the same algorithm without"
            )
        if isinstance(self.sampler, BaseSampler):
            if self.options.sampler_options:
                raise ConfigError("sampler_options are for samplers by name; give them to yours")
            given = self.sampler
            return Slotted(lambda seed: given, self.seed, self._first())
        higher = self.options.direction == "maximize"
        setting = Setting(self.space, self.trials, self.seed, higher, self.options.sampler_options)
        return Slotted(samplers[self.sampler](setting), self.seed, self._first())

    def _first(self) -> list[dict[str, float]]:
        """Return what the first trials draw: what pruning does alone, and equal shares."""
        equal = (EQUAL,) * len(self.space.units)
        found = [
            dict(zip(self.space.units, each, strict=True)) for each in (self.space.first, equal)
        ]
        return [each | ({GOAL: 1 - self.space.goal} if self.fronts else {}) for each in found]

    def _facts(self) -> dict[str, Any]:
        """Return what makes trials comparable with each other."""
        config = self.job.pruner.config.model_dump(mode="json", exclude_defaults=True)
        return {
            "model": type(self.job.pruner.model).__name__,
            "weights": weights_digest(self.job.pruner.model),
            "config": config,
            "goal": self.space.goal,
            "units": self.space.facts(),
            "direction": self.options.direction,
            "sampler": str(self.sampler),
            "sampler_options": dict(self.options.sampler_options),
            "repair": self.job.repair,
            "trained": self.job.train is not None,
        }

    def work(self, notes: Sequence[str] = ()) -> Search:
        """Take trials until all are done by somebody; return what was found, with these notes."""
        with released(self.opened), quiet():
            with Bar(self.trials) as bar:
                worker = Worker(self.study, self.trials, self.options.heartbeat)
                self._show(bar, worker)
                while (taken := worker.take()) is not None:
                    self._attempt(worker, *taken)
                    self._show(bar, worker)
            return self.found(notes)

    def _attempt(self, worker: Worker, slot: int, trial: Trial) -> None:
        """Run a trial; one that fails can be taken by somebody else at once."""
        try:
            with worker.alive(trial):
                self._run(slot, trial)
        except BaseException as error:
            fail(self.study, trial, shortened(f"{type(error).__name__}: {error}", 300))
            error.add_note(f"in trial {slot} of the search {self.options.name!r}")
            raise

    def _run(self, slot: int, trial: Trial) -> None:
        """Make and evaluate one trial, and tell how it ended."""
        made = self._drawn(trial)
        trial.set_user_attr(SHARES, list(made.shares))
        trial.set_user_attr(REMOVED, dict(made.removed))
        trial.set_user_attr(COST, made.cost)
        seed = seed_of(self.seed, slot)
        smaller = self.job.pruned(made.removed, seed).model

        def stop(step: int, value: float) -> bool:
            if self.fronts:  # Optuna stops on one value alone
                return False
            trial.report(value, step)
            return trial.should_prune()

        value = self.job.score(smaller, seed_of(seed, "evaluate"), stop)
        values = None if value is None else [value, made.cost] if self.fronts else value
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        try:
            self.study.tell(trial, values, state=state)
        except ENDED:  # it was taken for dead; another trial has its slot
            if not self.study.trials[trial.number].state.is_finished():
                raise

    def _drawn(self, trial: Trial) -> Allocation:
        """Return the allocation of a trial, which meets the goal."""
        _ = trial.relative_params  # also of a trial with given shares: some samplers count them
        goal = self.space.goal
        if self.fronts:
            goal = 1 - trial.suggest_float(GOAL, 0.0, 1 - goal)
        shares = [trial.suggest_float(unit, 0.0, MOST) for unit in self.space.units]
        if tuple(shares) == self.space.first and self.space.cost(shares) <= goal + NEAR:
            return self.space.made(shares)  # as pruning does alone, which may take a little more
        return self.space.settled(shares, goal)

    def _show(self, bar: Bar, worker: Worker) -> None:
        found = self.found()
        best = f"best {found.best.value:.5g} (trial {found.best.slot})" if found.whole else ""
        bar.show(worker.done(), best)

    def found(self, notes: Sequence[str] = ()) -> Search:
        """Return what is known by now."""
        with quiet():
            slots = Worker(self.study, self.trials, self.options.heartbeat).slots()
        finished = {slot: winner(tries) for slot, tries in slots.items()}
        trials = [_tried(slot, trial) for slot, trial in sorted(finished.items()) if trial]
        unmet, goals = self.job.pruner.budget.unmet, self.job.pruner.budget.goals
        failed = [slot for slot, tries in sorted(slots.items()) if given_up(tries)]
        return Search(
            study=self.study,
            trials=tuple(trial for trial in trials if trial is not None),
            failed=tuple(failed),
            cause=cause_of(slots[failed[0]]) if failed else "",
            of=" and ".join(goal.cost.name() for goal in goals) or self.job.pruner.config.of,
            goal=self.space.goal,
            higher=self.options.direction == "maximize",
            fronts=self.fronts,
            job=self.job,
            seed=self.seed,
            warnings=([unmet] if unmet else []) + list(notes),
        )


def _tried(slot: int, trial: FrozenTrial) -> Tried | None:
    """Return what a finished trial says; None where it was stopped before it said anything."""
    if not trial.values:
        return None
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    return Tried(
        slot,
        dict(trial.user_attrs[REMOVED]),
        trial.values[0],
        float(trial.user_attrs[COST]),
        (trial.datetime_complete - trial.datetime_start).total_seconds(),
        stopped=trial.state == TrialState.PRUNED,
    )
