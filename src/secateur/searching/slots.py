"""Which trial is whose: every slot of a search is evaluated once, by whoever is there.

A search of ``n`` trials has the slots 0 … n − 1.  Optuna's trials are attempts at them: one that
failed, or whose worker died, is made again as another trial with the same parameters and slot.
All is read from the study, so that nothing depends on what a worker remembers, and two who do the
same at once are told apart by the number that the storage gave them: the lower one stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from .alive import Heartbeat, has_ended, this_process

log = logging.getLogger(__name__)

RETRY, WORKER, BEAT, INTERVAL, SUPERFLUOUS, ERROR = (
    f"secateur:{word}"
    for word in ("retry of", "worker", "beat", "interval", "superfluous", "error")
)
"""User attributes of trials."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
ALIVE = (TrialState.RUNNING, TrialState.WAITING)
MOST_FAILURES = 3
"""Attempts at one slot; then it is given up, and counts as done."""
MISSED = 4
"""Heartbeats that a worker may miss."""
POLL = 0.5
"""Seconds between two looks at what others do."""
ENDED = (UpdateFinishedTrialError, ValueError)
"""What Optuna raises of a trial that somebody else has ended."""

Slots = dict[int, list[FrozenTrial]]


def slots_of(trials: Iterable[FrozenTrial]) -> Slots:
    """Return slot → the trials that are attempts at it, by their numbers."""
    found: Slots = {}
    count = 0
    for trial in sorted(trials, key=lambda trial: trial.number):
        slot = trial.user_attrs.get(RETRY)
        if type(slot) is not int:
            slot, count = count, count + 1
        found.setdefault(slot, []).append(trial)
    return found


def slot_of(slots: Slots, number: int) -> int:
    """Return the slot that a trial is an attempt at."""
    return next(slot for slot, tries in slots.items() if any(t.number == number for t in tries))


def winner(tries: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial that counts of the attempts at one slot, if any has finished."""
    return next((trial for trial in tries if trial.state in FINISHED), None)


def given_up(tries: Sequence[FrozenTrial]) -> bool:
    """Tell whether so many attempts failed that there will be no other."""
    failed = [t for t in tries if t.state == TrialState.FAIL and SUPERFLUOUS not in t.user_attrs]
    return len(failed) >= MOST_FAILURES and not any(t.state in (*FINISHED, *ALIVE) for t in tries)


def cause_of(tries: Sequence[FrozenTrial]) -> str:
    """Return what the first attempt that failed raised, as far as it was seen."""
    said = (str(t.user_attrs[ERROR]) for t in tries if ERROR in t.user_attrs)
    return next(said, "the death of its process")


class Worker:
    """Takes slots of a study, one after the other, until all are done by somebody.

    Args:
        study: that is shared.
        total: how many slots there are.
        heartbeat: seconds between two signs of life.
    """

    def __init__(self, study: Study, total: int, heartbeat: float):
        self.study = study
        self.total = total
        self.heartbeat = heartbeat
        self._seen: dict[int, tuple[Any, float]] = {}

    def slots(self) -> Slots:
        """Return the slots of this search, and what was tried."""
        every = slots_of(self.study.get_trials(deepcopy=False))
        return {slot: tries for slot, tries in every.items() if slot < self.total}

    def done(self) -> int:
        """Return how many slots need nothing more."""
        return sum(winner(t) is not None or given_up(t) for t in self.slots().values())

    def take(self) -> tuple[int, Trial] | None:
        """Return a slot and a trial of one's own, or None when all slots are done.

        Waits while others work on the last of them, since they may die.
        """
        while True:
            self._bury()
            slots = self.slots()
            self._reopen(slots)
            undone = [t for t in slots.values() if winner(t) is None and not given_up(t)]
            states = {trial.state for tries in undone for trial in tries}
            if len(slots) < self.total or TrialState.WAITING in states:
                if (taken := self._asked()) is not None:
                    return taken
            elif not undone:
                return None
            elif TrialState.RUNNING in states:
                time.sleep(POLL)

    def _asked(self) -> tuple[int, Trial] | None:
        """Ask for a trial; None where somebody else has its slot."""
        trial = self.study.ask()
        trial.set_user_attr(WORKER, this_process())
        trial.set_user_attr(INTERVAL, self.heartbeat)
        slots = slots_of(self.study.get_trials(deepcopy=False))
        slot = slot_of(slots, trial.number)
        others = [t for t in slots[slot] if t.number != trial.number]
        ahead = any(
            t.state in FINISHED or (t.state in ALIVE and t.number < trial.number) for t in others
        )
        if not ahead and slot < self.total:
            return slot, trial
        trial.set_user_attr(SUPERFLUOUS, True)
        fail(self.study, trial)
        return None

    def _bury(self) -> None:
        """End the trials of workers that are no more."""
        now = time.monotonic()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            beat = trial.user_attrs.get(BEAT, 0)
            last, since = self._seen.get(trial.number, (None, now))
            if last != beat:
                last, since = beat, now
            self._seen[trial.number] = last, since
            silent = now - since > MISSED * trial.user_attrs.get(INTERVAL, self.heartbeat)
            if silent or has_ended(trial.user_attrs.get(WORKER)):
                log.info("trial %d: its worker is gone, it is tried again", trial.number)
                fail(self.study, trial.number)

    def _reopen(self, slots: Slots) -> None:
        """Queue what has failed once more, with the parameters that it had."""
        for slot, tries in slots.items():
            if all(t.state == TrialState.FAIL for t in tries) and not given_up(tries):
                params = next((t.params for t in reversed(tries) if t.params), {})
                self.study.enqueue_trial(params, user_attrs={RETRY: slot})

    def alive(self, trial: Trial) -> Heartbeat:
        """Return a context in which others see that the trial is being worked on."""

        def beat(count: int) -> bool:
            try:
                trial.set_user_attr(BEAT, count)
            except ENDED:  # somebody thought it dead, and tries it again
                return False
            return True

        return Heartbeat(beat, self.heartbeat, trial.storage.remove_session)


def fail(study: Study, trial: Trial | int, why: str = "") -> None:
    """End a trial that came to nothing, unless somebody else has."""
    try:
        if why and isinstance(trial, Trial):
            trial.set_user_attr(ERROR, why)
        study.tell(trial, state=TrialState.FAIL)
    except ENDED:
        log.debug("the trial was ended by somebody else")
