"""The ways in which a program is pruned: by settings, plans, steps, and by masks made elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from secateur import Config, Plan, Pruner, Result
from secateur.nni.speedup import ModelSpeedup

from .draw import Draw

Masks = dict[str, Tensor]


@dataclass
class Cut:
    """What the library returned, and the masks that it was given, if any were.

    ``dense`` is the model that was pruned, where it is not the program's.
    """

    result: Result
    given: Masks | None = None
    dense: nn.Module | None = None


Way = Callable[[Draw, nn.Module, Any], Cut]
WAYS: dict[str, Way] = {}


def way(function: Way) -> Way:
    WAYS[function.__name__] = function
    return function


def settings(d: Draw) -> dict[str, Any]:
    chosen: dict[str, Any] = {"sparsity": d.pick(0.25, 0.5, 0.5, 0.7), "seed": d.randrange(1000)}
    chosen["strict"] = False
    chosen["criterion"] = d.pick("random", "random", "l1", "l2", "fpgm")
    if d.chance(0.3):
        chosen["scope"] = "global"
    if d.chance(0.15):
        chosen["of"] = d.pick("params", "macs")
    if d.chance(0.15):
        chosen["grid"] = "coarse"
    if d.chance(0.1):
        chosen["uniform"] = True
    if d.chance(0.1):
        chosen["round_to"] = 2
    if d.chance(0.15):
        chosen["inexact"] = True
    return chosen


@way
def prune(d: Draw, model: nn.Module, example: Any) -> Cut:
    return Cut(secateur.prune(model, example, **settings(d)))


@way
def steps(d: Draw, model: nn.Module, example: Any) -> Cut:
    """A ``Pruner`` in a loop that does not train, so that the dense weights stay what they are."""
    config = Config.from_dict({**settings(d), "schedule": "linear", "steps": 2})
    with torch.inference_mode(False):
        twin = copy.deepcopy(model)
    pruner = Pruner(twin, config, example)
    pruner.step()
    pruner.step()
    return Cut(pruner.finish())


@way
def twice(d: Draw, model: nn.Module, example: Any) -> Cut:
    """What was pruned is pruned again."""
    first = secateur.prune(model, example, **settings(d)).model
    return Cut(secateur.prune(first, example, **settings(d)), dense=copy.deepcopy(first))


@way
def repaired(d: Draw, model: nn.Module, example: Any) -> Cut:
    """Data chooses, and what stays makes up for what is masked: the dense weights are new ones."""
    criterion = d.pick("activation", "elimination", "wanda", "obs", "fluctuation", "l2")
    config = Config.from_dict({**settings(d), "criterion": criterion})
    with torch.inference_mode(False):
        twin = copy.deepcopy(model)
    data = [batch(d, example) for _ in range(4)]
    pruner = Pruner(twin, config, example)
    pruner.calibrate(data)
    pruner.step()
    pruner.repair(data, d.pick("least_squares", "least_squares", "bias"))
    return Cut(pruner.finish(inplace=False), dense=twin)


def batch(d: Draw, example: Any) -> tuple[Tensor, ...]:
    """Other values of the example's shapes and kinds."""
    made = torch.Generator().manual_seed(d.randrange(2**31))
    return tuple(
        torch.randn(x.shape, generator=made).to(x)
        if x.is_floating_point()
        else x.flatten()[torch.randperm(x.numel(), generator=made)].reshape(x.shape)
        for x in example
    )


@way
def plan(d: Draw, model: nn.Module, example: Any) -> Cut:
    """Any positions of any groups, as far as the structure says that they are exact."""
    structure = secateur.analyze(model, example)
    keeps: dict[str, Tensor] = {}
    known = {group.name: group for group in structure.groups}
    inexact = d.chance(0.1)
    for group in structure.groups:
        family = [group.name, *group.sized]
        if group.name in keeps or not (inexact or all(known[n].exact for n in family)):
            continue
        least = max(known[n].least for n in family)
        step = max(known[n].step for n in family)
        size = min(known[n].size for n in family)
        counts = [n for n in range(least, size + 1) if not n % step]
        if counts and d.chance(0.8):
            count = d.choice(counts)
            for name in family:
                keeps[name] = torch.zeros(known[name].size, dtype=torch.bool)
                keeps[name][d.sample(range(known[name].size), count)] = True
    made = Plan.from_keeps(structure, keeps)
    return Cut(secateur.apply_plan(model, made, example))


def masks(d: Draw, model: nn.Module) -> Masks:
    """Masks of whole rows or columns, or of single weights, of some tensors."""
    found: Masks = {}
    share = d.pick(0.2, 0.5, 0.7)
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        # a norm of a masked row is zero, and the masked model not a number
        if not own or "parametrizations" in path or not d.chance(0.7):
            continue
        many = d.chance(0.15)
        rows: dict[int, Tensor] = {}
        for name, p in own.items():
            full = f"{path}.{name}" if path else name
            if many:
                found[full] = _kept(d, p.numel(), 0.4).view(p.shape)
            elif p.ndim == 1 or (name.startswith("bias") and d.chance(0.8)):
                if d.chance(0.8) or p.shape[0] not in rows:
                    found[full] = rows.setdefault(p.shape[0], _kept(d, p.shape[0], share)).clone()
            elif p.ndim:
                dim = d.pick(0, 0, 0, 1, p.ndim - 1)
                keep = _kept(d, p.shape[dim], share)
                if dim == 0:
                    keep = rows.setdefault(p.shape[0], keep)
                shape = [1] * p.ndim
                shape[dim] = -1
                found[full] = keep.view(shape).expand(p.shape).clone()
    return found


def _kept(d: Draw, size: int, share: float) -> Tensor:
    keep = torch.tensor([not d.chance(share) for _ in range(size)])
    keep[d.randrange(size)] = True
    return keep


@way
def shrink(d: Draw, model: nn.Module, example: Any) -> Cut:
    given = masks(d, model)
    constants = d.pick("fold", "fold", "mask")
    return Cut(secateur.shrink(model, given, example, constants=constants), given)


@way
def speedup(d: Draw, model: nn.Module, example: Any) -> Cut:
    """NNI's face, in place on a copy, with masks by module and target."""
    given = masks(d, model)
    nested: dict[str, dict[str, Tensor | None]] = {}
    for name, mask in given.items():
        path, _, last = name.rpartition(".")
        nested.setdefault(path, {})[last] = mask.float()
    with torch.inference_mode(False):  # where a copy would run nowhere else
        twin = copy.deepcopy(model)
    job = ModelSpeedup(twin, example, nested)
    job.speedup_model()
    assert job.result is not None
    return Cut(job.result, given)
