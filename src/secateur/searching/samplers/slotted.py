"""A sampler that is made anew for each slot: resumed, it draws what it would have drawn.

Optuna's samplers keep in memory nothing but random numbers that go on; with one seed for each
slot, a search that was killed draws the same shares as one that was not, and two machines never
the same.  One that a user made is used as it is: with a seed of its own it draws the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from secateur.searching.seeds import seed_of
from secateur.searching.slots import slot_of, slots_of
from secateur.searching.space import MOST

from .table import Make


class Slotted(BaseSampler):
    """A sampler that is made for each trial, from the seed of its slot.

    Args:
        make: seed → sampler.
        seed: of the search.
        first: what the first slots draw.
    """

    def __init__(self, make: Make, seed: int, first: Sequence[Mapping[str, float]]):
        self._make = make
        self._seed = seed
        self._first = first
        self._slot = 0
        self._now = make(seed)

    def __str__(self) -> str:
        return str(self._now)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._slot = slot_of(slots_of(study.get_trials(deepcopy=False)), trial.number)
        self._now = self._make(seed_of(self._seed, self._slot))
        self._now.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        found = self._now.infer_relative_search_space(study, trial)
        if self._slot < len(self._first):
            return {n: FloatDistribution(0.0, MOST) for n in self._first[self._slot]} | found
        return found

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        found = self._now.sample_relative(study, trial, search_space)
        return dict(self._first[self._slot]) if self._slot < len(self._first) else found

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._now.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self._now.after_trial(study, trial, state, values)
