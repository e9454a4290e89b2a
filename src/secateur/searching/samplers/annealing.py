"""Simulated annealing, as NNI 2 has it, with a scale for scores."""

from __future__ import annotations

from dataclasses import replace
from statistics import pstdev
from typing import Any

from secateur.searching.annealing import Annealing, Walk

from .options import accepted, checked
from .ours import Together, Tried
from .table import Make, Setting, sampler


class AnnealingSampler(Together):
    """Each trial is a step from the shares that were accepted last.

    Without ``score_scale`` it is a quarter of the standard deviation of the scores that were seen.
    """

    def __init__(self, setting: Setting):
        super().__init__(setting)
        options: dict[str, Any] = checked(Annealing, setting.options)
        self.scale: float | None = options.pop("score_scale", None)
        given = {} if self.scale is None else {"score_scale": self.scale}
        self.annealing = accepted(lambda: Annealing(**options, **given))

    def shares(self, tried: list[Tried], slot: int) -> list[float]:
        walk = self._walk(tried) or self.annealing.begun(self.space.first, 0.0)
        coldest = max(walk.temperature, self.annealing.stop_temperature)
        return self.annealing.step(replace(walk, temperature=coldest), self.random(slot))

    def _walk(self, tried: list[Tried]) -> Walk | None:
        """Return where the walk stands after all that was evaluated."""
        walk = None
        for i, each in enumerate(tried):
            if walk is None:
                walk = self.annealing.begun(each.shares, each.score)
                continue
            seen = [other.score for other in tried[: i + 1]]
            scale = self.scale or pstdev(seen) / 4 or 1.0
            draw = self.random("accepted", each.slot).random()
            scaled = replace(self.annealing, score_scale=scale)
            walk = scaled.judged(walk, each.shares, each.score, draw)
        return walk


@sampler()
def annealing(setting: Setting) -> Make:
    """A walk that takes worse steps while it is hot, as in NNI 2.  Kirkpatrick et al., 1983"""
    one = AnnealingSampler(setting)
    return lambda seed: one
