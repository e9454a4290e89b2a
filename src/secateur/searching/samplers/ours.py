"""What our samplers have in common: they see what was tried, and say all shares at once."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from secateur.searching.seeds import seed_of
from secateur.searching.slots import slot_of, slots_of, winner
from secateur.searching.space import MOST, Space

from .table import Setting

SHARES = "secateur:shares"
"""User attribute of a trial: the share of each unit, as it was pruned."""


@dataclass(frozen=True)
class Tried:
    """A trial that was evaluated: its slot, the shares that it was pruned by, and its score."""

    slot: int
    shares: tuple[float, ...]
    score: float


class Together(BaseSampler):
    """A sampler of all shares at once, whose only state is the study.

    What it draws depends on the slot and on what is finished by then, in the order in which it was.
    """

    def __init__(self, setting: Setting):
        self.setting = setting
        self.space: Space = setting.space

    @abstractmethod
    def shares(self, tried: list[Tried], slot: int) -> list[float]:
        """Return the share of each unit for a slot, in [0, 1)."""

    def random(self, *of: object) -> Random:
        """Return random numbers that are always the same for what they are of."""
        return Random(seed_of(self.setting.seed, *of))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {name: FloatDistribution(0.0, MOST) for name in self.space.units}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        slots = slots_of(study.get_trials(deepcopy=False))
        drawn = self.shares(self._tried(slots), slot_of(slots, trial.number))
        shares = (min(MOST, max(0.0, share)) for share in drawn)
        return dict(zip(self.space.units, shares, strict=True))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        raise NotImplementedError(f"{self} draws the shares of {list(self.space.units)} alone")

    def _tried(self, slots: dict[int, list[FrozenTrial]]) -> list[Tried]:
        sign = 1 if self.setting.higher else -1
        found = []
        for slot, tries in slots.items():
            trial = winner(tries)
            if (
                trial is None
                or trial.state != TrialState.COMPLETE
                or SHARES not in trial.user_attrs
            ):
                continue
            assert trial.value is not None
            assert trial.datetime_complete is not None
            shares = tuple(map(float, trial.user_attrs[SHARES]))
            when = trial.datetime_complete, slot
            found.append((when, Tried(slot, shares, sign * trial.value)))
        return [tried for _, tried in sorted(found, key=lambda pair: pair[0])]
