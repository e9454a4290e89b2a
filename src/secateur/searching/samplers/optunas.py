"""Optuna's own samplers."""

from __future__ import annotations

from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from .options import accepted, checked
from .table import Make, Setting, sampler


@sampler()
def tpe(setting: Setting) -> Make:
    """Tree-structured Parzen estimators: Optuna's own choice.  Bergstra et al., 2011"""
    usual = {"n_startup_trials": max(4, min(10, setting.trials // 4))}
    options = usual | checked(TPESampler, setting.options, without=("seed",))
    return lambda seed: accepted(lambda: TPESampler(seed=seed, **options))


@sampler()
def random(setting: Setting) -> Make:
    """Shares that fall by chance, which others must beat."""
    checked(RandomSampler, setting.options, without=("seed",))
    return lambda seed: RandomSampler(seed=seed)


@sampler(front=True)
def nsga2(setting: Setting) -> Make:
    """A population that moves to the front of value against cost.  Deb et al., 2002"""
    usual = {"population_size": max(4, min(50, setting.trials // 5))}
    options = usual | checked(NSGAIISampler, setting.options, without=("seed",))
    return lambda seed: accepted(lambda: NSGAIISampler(seed=seed, **options))
