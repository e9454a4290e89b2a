"""AMC: an agent learns, from whole models and their scores, what to remove from which unit."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, pstdev
from typing import Any

from secateur.searching.amc import Episode, walked
from secateur.searching.ddpg import Agent, Learning, episode
from secateur.searching.seeds import seed_of

from .options import accepted, checked
from .ours import Together, Tried
from .table import Make, Setting, sampler

FEW = {"discount": 0.0, "lr_a": 3e-4, "tau": 0.05, "updates": 8, "init_delta": 0.2, "rmsize": 2000}
"""How it learns from tens of models, where the paper's has hundreds.

All layers of a model have its one reward, so that what a critic foresees of later ones adds nothing
but its own errors, of which there are many while it has seen few models.
"""
LAST_DELTA = 0.05
"""The standard deviation of the exploration in the last trial."""


class AmcSampler(Together):
    """An agent that is taught by all trials that are finished, in their order.

    Its first policy is what pruning without a search does.  It is kept in memory as long as trials
    only follow, and made again from the study's where they do not.
    """

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.learning = _learning(setting)
        self._taught: tuple[int, ...] = ()
        self._agent: Agent | None = None

    def shares(self, tried: list[Tried], slot: int) -> list[float]:
        agent = self._after(tried)
        draws = iter(range(len(self.space.units)))

        def act(state: tuple[float, ...]) -> float:
            return agent.action(state, seed=seed_of(self.setting.seed, slot, next(draws)))

        return list(walked(self.space, act).shares)

    def _after(self, tried: list[Tried]) -> Agent:
        """Return an agent that has learned from what was tried, once the warm-up is over."""
        if len(tried) <= self.learning.warmup:
            return self._agent or self._new()
        order = tuple(each.slot for each in tried)
        if self._agent is None or order[: len(self._taught)] != self._taught:
            self._agent, self._taught = self._new(), ()
        for each in tried[len(self._taught) :]:
            seen = self._replayed(each)
            reward = self._reward(each, tried)
            self._agent.learn(episode(seen.states, seen.shares, reward))
        self._taught = order
        return self._agent

    def _new(self) -> Agent:
        width = len(self._replayed(Tried(0, self.space.first, 0.0)).states[0])
        return Agent(width, self.learning, self.setting.seed)

    def _replayed(self, each: Tried) -> Episode:
        """Return the states that led to the shares of a trial."""
        shares = iter(each.shares)
        return walked(self.space, lambda state: next(shares))

    def _reward(self, each: Tried, tried: list[Tried]) -> float:
        """Return a score, of whatever scale, in standard deviations of those of the warm-up."""
        first = [other.score for other in tried[: self.learning.warmup + 1]]
        return (each.score - mean(first)) / (pstdev(first) or 1.0)


def _learning(setting: Setting) -> Learning:
    given = checked(Learning, setting.options)
    usual: dict[str, Any] = {**FEW, "warmup": setting.trials // 4}
    learning = accepted(lambda: Learning(**{**usual, **given}))
    if "delta_decay" not in given:
        left = max(1, setting.trials - learning.warmup)
        decay = min(1.0, LAST_DELTA / learning.init_delta) ** (1 / left)
        learning = replace(learning, delta_decay=decay)
    if learning.first_action is None:
        learning = replace(learning, first_action=mean(setting.space.first))
    return learning


@sampler()
def amc(setting: Setting) -> Make:
    """An agent that walks through the layers and learns what to remove.  He et al., 2018"""
    one = AmcSampler(setting)
    return lambda seed: one
