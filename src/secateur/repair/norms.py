"""Batch norms whose statistics are estimated anew, from the model as it is now."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.errors import ConfigError
from secateur.runtime.batches import call, held
from secateur.runtime.forward import in_eval_mode
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.undo import Undo


def norms_of(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Return the norms that keep statistics, by name."""
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
    return [(n, m) for n, m in found if m.running_mean is not None]


@in_ordinary_mode
def reestimate_norms(model: nn.Module, data: Iterable[Any]) -> None:
    """Set the running statistics of batch norms to their means over batches, in place.

    After a cut, a channel's mean and variance are others than in training.  All other layers are
    in eval mode meanwhile; modes and everything else are as before.

    Args:
        model: any module with norms that keep statistics.
        data: batches of inputs, of more than one sample each; the more, the better.

    Raises:
        ConfigError: the model has no such norm, or there are no batches; it is unchanged.

    >>> net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).eval()
    >>> reestimate_norms(net, [torch.randn(64, 4), torch.randn(64, 4)])
    >>> int(net[1].num_batches_tracked)
    2
    """
    norms = norms_of(model)
    if not norms:
        raise ConfigError(f"{type(model).__name__} has no batch norm that keeps statistics")
    batches = held(data)
    before = [(m, m.momentum, {k: v.clone() for k, v in m.named_buffers()}) for _, m in norms]
    with Undo(lasting=True) as changed, Undo() as undo:
        for norm, momentum, buffers in before:
            changed(partial(_restore, norm, buffers))
            undo(partial(setattr, norm, "momentum", momentum))
        with in_eval_mode(model), torch.no_grad():
            for _, norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over batches
                norm.train()
            for index, batch in enumerate(batches):
                call(model, batch, index)


@torch.no_grad()
def _restore(norm: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, value in norm.named_buffers():
        value.copy_(buffers[name])
