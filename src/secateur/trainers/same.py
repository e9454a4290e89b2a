"""Is what is trained what is pruned?"""

from __future__ import annotations

from torch import nn

from secateur.errors import ConfigError
from secateur.pruner import Pruner


def check_trained(pruner: Pruner, model: nn.Module | None) -> None:
    """Refuse a pruner of another model than the one that is trained.

    Raises:
        ConfigError: neither is a part of the other, and they share no parameter.

    >>> import torch
    >>> from secateur import Config
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> pruner = Pruner(net, Config(sparsity=0.5), torch.zeros(1, 4))
    >>> check_trained(pruner, nn.Sequential(net))
    >>> check_trained(pruner, nn.Linear(4, 8))
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: the pruner is of another Sequential than the one that is ...
    """
    own = pruner.model
    if model is None or own in set(model.modules()) or model in set(own.modules()):
        return
    if {id(p) for p in own.parameters()}.isdisjoint(id(p) for p in model.parameters()):
        raise ConfigError(
            f"the pruner is of another {type(own).__name__} than the one that is trained: make it "
            "of the very model that the trainer has, after it was made (a model_init=… makes "
            "another one in each train())"
        )


def check_begins(pruner: Pruner, steps: float) -> None:
    """Refuse a training that ends before anything is pruned, where its result is to be cut.

    Args:
        steps: of the training, as far as is known; none or infinitely many are not.

    Raises:
        ConfigError: its length does not come to the pruner's first step.

    >>> import torch
    >>> from secateur import Config
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    >>> check_begins(Pruner(net, Config(sparsity=0.5, start=100), torch.zeros(1, 4)), 24)
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: finish=True, and the training ends after 24 steps: pruning ...
    """
    first = pruner.config.start + pruner.config.every
    if 0 < steps < first - pruner.calls:
        raise ConfigError(
            f"finish=True, and the training ends after {int(steps)} steps: pruning begins with "
            f"step {first} (start={pruner.config.start}, every={pruner.config.every}). Train for "
            "longer, or let it begin earlier"
        )
