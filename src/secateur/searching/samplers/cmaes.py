"""CMA-ES, on the library that Optuna's is on, whose state is kept in the study as a pickle there.

Here it is made again from the trials, so that nothing has to be unpickled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.errors import ConfigError, MissingExtraError
from secateur.searching.seeds import seed_of
from secateur.searching.space import MOST

from .options import accepted, checked
from .ours import Together, Tried
from .table import Make, Setting, sampler

SIGMA = 0.15
"""The first standard deviation of a share."""


class CmaEsSampler(Together):
    """Generations of shares around a mean, whose spread is learned."""

    def __init__(self, setting: Setting):
        super().__init__(setting)
        try:
            from cmaes import CMA
        except ImportError as error:
            raise MissingExtraError("The sampler 'cmaes'", "cmaes", "search") from error
        self._make = CMA
        known = ("sigma", "population_size")
        options = checked(lambda sigma, population_size: None, setting.options)
        self._options = {name: options[name] for name in known if name in options}
        if self._options.get("population_size", 2) < 2:
            raise ConfigError("sampler_options: population_size must be 2 or more")
        accepted(self._made)

    def shares(self, tried: list[Tried], slot: int) -> list[float]:
        made = self._made()
        size = made.population_size
        for start in range(0, len(tried) - size + 1, size):
            generation = tried[start : start + size]
            made.tell([(np.array(each.shares), -each.score) for each in generation])
        made.reseed_rng(seed_of(self.setting.seed, slot))
        return [float(share) for share in made.ask()]

    def _made(self) -> Any:
        options = {"sigma": SIGMA, **self._options}
        bounds = np.array([[0.0, MOST]] * len(self.space.units))
        return self._make(mean=np.array(self.space.first), bounds=bounds, **options)


@sampler()
def cmaes(setting: Setting) -> Make:
    """Evolution with a covariance matrix that adapts.  Hansen and Ostermeier, 2001"""
    one = CmaEsSampler(setting)
    return lambda seed: one
