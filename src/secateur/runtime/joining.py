"""Uneven numbers of batches: torch lets ranks that have run out follow the others' reductions.

It knows those of DDP.  A rank that has left the loop makes no call of a pruner's any more, so that
the others would wait for it, or be answered by what was meant for DDP: hence that is refused.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from secateur.errors import ConfigError

from .ranks import world


class Joining:
    """Whether a model is trained in a block of ``join()``, by way of a wrapper that is found once.

    Args:
        model: the bare one.
    """

    def __init__(self, model: nn.Module):
        self._model = weakref.ref(model)
        self._wrappers: list[weakref.ref[Any]] | None = None

    def refuse(self) -> None:
        """Refuse to go on in such a block, as all ranks that are in it do.

        Raises:
            ConfigError: this is in one.
        """
        if world() == 1:
            return
        if self._wrappers is None:
            self._wrappers = [weakref.ref(each) for each in _wrappers(self._model())]
        found = [wrapper for each in self._wrappers if (wrapper := each()) is not None]
        joined = [each for each in found if each._join_config.enable]  # also after the block
        if any(_is_in(each, joined) for each in _all(Join) if joined):
            raise ConfigError(
                "this is in a block of join(), in which ranks may run out of batches: they would "
                "miss pruning steps, for which the others wait. Give all ranks as many batches "
                "(DistributedSampler(…, drop_last=True) with DataLoader(…, drop_last=True)) and "
                "train without join(), or call step() after the block, once an epoch"
            )


def _wrappers(model: nn.Module | None) -> list[Any]:
    wrappers = _all(DistributedDataParallel)
    return [each for each in wrappers if any(part is model for part in each.module.modules())]


def _is_in(join: Any, wrappers: list[Any]) -> bool:
    return join._enable and any(one is each for one in join._joinables for each in wrappers)


def _all(kind: type) -> list[Any]:
    """Return all objects of a class that are alive: torch keeps no list of these."""
    return [each for each in gc.get_objects() if issubclass(type(each), kind)]
