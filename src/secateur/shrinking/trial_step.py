"""How an optimizer's state lies along a parameter: seen in a step of its own on a small tensor.

State is an optimizer's own affair, and equal numbers tell little: for a square weight nobody can
read off a vector whether it holds one number per row or per column.  So the optimizer is asked: it
makes the state of a parameter whose dimensions all have other sizes, and again of the same
parameter with zeros attached, which shows what is a mean over all positions.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log2, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_flatten_with_path

from secateur.runtime.forward import random_kept

LARGEST = 130
"""Some optimizers keep another state of small dimensions (below 16, or 128) than of larger ones."""
MOST_ELEMENTS = 2**22
SMALL = (5, 7, 11, 13, 17, 19)


@dataclass(frozen=True)
class Lies:
    """How one tensor of an optimizer's state lies along its parameter.

    Attributes:
        shape: in the trial.
        follows: for each of its dimensions that of the parameter, or None.
        powers: dimension of the parameter that is averaged away → with which power of its size.
    """

    shape: tuple[int, ...]
    follows: tuple[int | None, ...]
    powers: Mapping[int, float] = field(default_factory=dict)


def tensors_of(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a parameter's state, which may be nested, by the path to each.

    >>> list(tensors_of({"step": 1, "rows": [torch.zeros(2), torch.zeros(3)]}))
    ["['rows'][0]", "['rows'][1]"]
    """
    leaves, _ = tree_flatten_with_path(state)
    return {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def layout_of(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor, shape: tuple[int, ...]
) -> dict[str, Lies]:
    """Return how the state that an optimizer keeps of a parameter of this shape lies along it.

    Args:
        optimizer: it is not touched, nor are its hooks called.
        group: the parameter group with the settings that hold.
        parameter: says the dtype and the device.
        shape: of the parameter.

    Raises:
        Exception: whatever the optimizer raises, where it cannot make a step by itself.

    >>> adam = torch.optim.Adam([weight := nn.Parameter(torch.zeros(4, 4))])
    >>> layout_of(adam, adam.param_groups[0], weight, (4, 4))["['exp_avg']"].follows
    (0, 1)
    >>> factored = torch.optim.Adafactor([weight])
    >>> layout_of(factored, factored.param_groups[0], weight, (4, 4))["['col_var']"]
    Lies(shape=(1, 5), follows=(None, 1), powers={0: 1.0})
    """
    sizes = _distinct(shape)
    place = {size: dim for dim, size in enumerate(sizes) if size > 1}
    made = _states(optimizer, group, parameter, sizes, None)
    found = {}
    for path, tensor in made.items():
        follows = tuple(place.get(size) for size in tensor.shape)
        found[path] = Lies(tuple(tensor.shape), follows)
    partial = {p for p, lies in found.items() if lies.shape != sizes and any(_dims(lies))}
    for dim in range(len(sizes)) if partial else ():
        padded = _states(optimizer, group, parameter, sizes, dim)
        for path in partial:
            lies = found[path]
            power = _power(made[path], padded[path], lies.follows, dim)
            if power and dim not in lies.follows:
                found[path] = Lies(lies.shape, lies.follows, {**lies.powers, dim: power})
    return found


def _dims(lies: Lies) -> list[bool]:
    return [dim is not None for dim in lies.follows]


def _distinct(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return sizes much like a shape's, no two of them the same but where they are 1.

    >>> _distinct((512, 512, 3, 3))
    (130, 131, 3, 4)
    """
    sizes: list[int] = []
    for size in shape:
        size = min(size, LARGEST)
        while size > 1 and size in sizes:
            size += 1
        sizes.append(size)
    if prod(sizes) > MOST_ELEMENTS:
        sizes = [min(size, small) for size, small in zip(sizes, SMALL, strict=False)]
    return tuple(sizes)


@torch.no_grad()
def _states(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
    sizes: tuple[int, ...],
    padded: int | None,
) -> dict[str, Tensor]:
    """Return the state that is made of a parameter in one step; ``padded`` with as many zeros."""
    generator = torch.Generator().manual_seed(0)

    def drawn() -> Tensor:
        values = torch.randn(sizes, generator=generator)
        if padded is not None:
            values = torch.cat([values, torch.zeros_like(values)], padded)
        return values.to(parameter)

    trial = nn.Parameter(drawn(), parameter.requires_grad)
    trial.grad = drawn()
    twin: Any = object.__new__(type(optimizer))
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    twin.__dict__.update(
        vars(optimizer)
        | {
            "state": defaultdict(dict),
            "param_groups": [copy.deepcopy(settings) | {"params": [trial]}],
            "_optimizer_step_pre_hooks": OrderedDict(),
            "_optimizer_step_post_hooks": OrderedDict(),
        }
    )
    step = type(optimizer).step
    if getattr(step, "hooked", False):  # without the hooks that see every step in the process
        step = step.__wrapped__  # type: ignore[attr-defined]
    with random_kept():
        step(twin)
    return tensors_of(twin.state[trial])


def _power(once: Tensor, padded: Tensor, follows: tuple[int | None, ...], dim: int) -> float:
    """Return p where numbers are divided by sizeᵖ: 1 for a mean, ½ for its root, 0 for a sum."""
    for place, followed in enumerate(follows):
        if followed == dim:
            padded = padded.narrow(place, 0, once.shape[place])
    if padded.shape != once.shape or not once.is_floating_point():
        return 0.0
    there = once != 0
    ratios = (padded[there] / once[there]).double()
    if not len(ratios) or not bool((ratios > 0).all()):
        return 0.0
    power = -log2(float(ratios.median()))
    even = bool(torch.allclose(ratios, ratios.median(), rtol=0.05))
    return round(2 * power) / 2 if even else 0.0
