"""Optimizers and schedulers that users built for one model, made again for its copy."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


def fresh(optimizer: Optimizer, parameters: Mapping[int, nn.Parameter]) -> Optimizer:
    """Return an optimizer of the same class and settings that has not stepped yet.

    Args:
        optimizer: any of torch's, or like them.
        parameters: by the id of a parameter that it holds the one that takes its place; others
            stay.

    >>> import torch
    >>> one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> sgd = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
    >>> pairs = zip(one.parameters(), two.parameters())
    >>> again = fresh(sgd, {id(a): b for a, b in pairs})
    >>> again.param_groups[0]["params"][0] is two.weight, again.defaults["momentum"]
    (True, 0.9)
    """
    held = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    return _fresh(optimizer, {**held, **parameters})


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return what each group of an optimizer is set to, to take it back later."""
    return [{k: _own(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def set_to(optimizer: Optimizer, settings: list[dict[str, Any]]) -> None:
    """Set each group of an optimizer to what ``settings`` returned."""
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update({key: _own(value) for key, value in values.items()})


def rescheduled(scheduler: Any, state: Any, optimizers: Mapping[int, Optimizer]) -> Any:
    """Return a scheduler, or a list of them, in a state of before, that steps other optimizers.

    Args:
        scheduler: any of torch's, nested or not, a sequence of them, or None.
        state: what ``state_of`` returned of it.
        optimizers: by the id of an optimizer the one that takes its place.
    """
    if isinstance(scheduler, (list, tuple)):
        pairs = zip(scheduler, state, strict=True)
        return type(scheduler)([rescheduled(s, held, optimizers) for s, held in pairs])
    if not hasattr(scheduler, "load_state_dict"):
        return scheduler
    made = _on(scheduler, optimizers)
    made.load_state_dict(copy.deepcopy(state))
    for each in (made, *getattr(made, "_schedulers", ())):
        if hasattr(each, "_step_count"):  # at 1 torch asks for an optimizer that it has watched
            each._step_count = max(2, each._step_count)
    return made


def state_of(scheduler: Any) -> Any:
    """Return the state of a scheduler, of each in a sequence, or None."""
    if isinstance(scheduler, (list, tuple)):
        return [state_of(each) for each in scheduler]
    return copy.deepcopy(scheduler.state_dict()) if hasattr(scheduler, "state_dict") else None


def _on(scheduler: Any, optimizers: Mapping[int, Optimizer]) -> Any:
    made = copy.copy(scheduler)
    if "optimizer" in vars(made):
        made.optimizer = optimizers.get(id(made.optimizer), made.optimizer)
    if "_schedulers" in vars(made):  # of a sequence or a chain
        made._schedulers = [_on(each, optimizers) for each in made._schedulers]
    return made


def _fresh(optimizer: Optimizer, known: dict[int, Any]) -> Optimizer:
    """Return a fresh optimizer; ``known`` says by id what takes the place of what, and learns."""
    made = known[id(optimizer)] = copy.copy(optimizer)
    made.state = known[id(optimizer.state)] = defaultdict(dict)
    there, own = dict(vars(made)), type(optimizer)
    for name, value in vars(optimizer).items():
        renewed = name in there and there[name] is not value  # as hooks are
        if not renewed and not callable(getattr(own, name, None)):  # nor what a scheduler patched
            setattr(made, name, _moved(value, known))
    return made


def _moved(value: Any, known: dict[int, Any]) -> Any:
    """Return an attribute of an optimizer as one of a fresh one; what is not known is shared."""
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, Optimizer):
        return _fresh(value, known)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, known.get(id(value.__self__), value.__self__))
    made = value
    if type(value) in (list, tuple, set):
        made = type(value)(_moved(each, known) for each in value)
    elif isinstance(value, dict):
        made = copy.copy(value)
        made.clear()
        made.update({_moved(key, known): _moved(each, known) for key, each in value.items()})
    elif isinstance(value, Tensor) and not value.requires_grad:
        made = value.clone()
    known[id(value)] = made
    return made


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
