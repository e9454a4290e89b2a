"""Is what is trained what is pruned, and is what is loaded of its size?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.pruner import Pruner
from secateur.shrinking import Result


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


def check_sizes(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse weights of before a cut for a model that was cut, or the other way round.

    It is a hook that torch calls before it loads a state.  Of other misfits torch tells by itself.

    Raises:
        ConfigError: all tensors of another shape are larger there than here, or all smaller.

    >>> check_sizes(nn.Linear(4, 2), nn.Linear(4, 3).state_dict(), "")
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: the checkpoint is of before the cut: 'weight' is (3, 4) there, ...
    """
    pairs = {
        name: (tuple(state[prefix + name].shape), tuple(parameter.shape))
        for name, parameter in module.named_parameters()
        if isinstance(state.get(prefix + name), Tensor)
    }
    other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    lengths = [len(there) - len(here) for there, here in other.values()]
    differences = [a - b for pair in other.values() for a, b in zip(*pair, strict=False)]
    if not other or any(lengths) or min(differences) < 0 < max(differences):
        return
    name, (there, here) = next(iter(other.items()))
    if max(differences) > 0:
        raise ConfigError(
            f"the checkpoint is of before the cut: {name!r} is {there} there, and {here} in this "
            "model. Use the model as it is (ckpt_path=None); or, to cut the best one, leave "
            "finish=True out, load its weights into the model, and call pruner.finish() then"
        )
    raise ConfigError(
        f"the checkpoint is of after a cut: {name!r} is {there} there, and {here} in this model. "
        "To go on pruning take a checkpoint of before; to go on with the smaller model save it "
        "with result.save(), load it with secateur.load_pruned, and train that without this pruner"
    )


def check_average(callbacks: Sequence[Any], result: Result | None) -> None:
    """Refuse to evaluate a model that was cut with an average of its dense weights.

    Raises:
        ConfigError: a callback holds such an average, which it would put in place of the weights.
    """
    if result is None or result.unchanged:
        return
    for callback in callbacks:
        if getattr(callback, "_average_model", None) is not None:
            raise ConfigError(
                f"{type(callback).__name__} holds an average of the weights of before the cut, and "
                "would put it in place of the smaller ones: the average is in the model already "
                "since the fit has ended, so evaluate it in a Trainer without this callback"
            )
