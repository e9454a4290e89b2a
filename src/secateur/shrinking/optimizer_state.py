"""``cut_optimizer``: the state of an optimizer goes on with the parameters that were cut.

Parameters are cut in place and stay the objects that they were, so an optimizer still holds them.
What it remembers of each (momenta, squares of gradients) has the old shape until it is cut too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import keystr, tree_map_with_path

from secateur.errors import AxisError, OptimizerError

from .history import Shape
from .result import Result
from .slices import Slices
from .trial_step import Lies, layout_of, tensors_of

KEPT = ("state", "param_groups")
"""Attributes of an optimizer in which it keeps what is its own."""


def cut_optimizer(optimizer: Optimizer, result: Result) -> None:
    """Cut an optimizer's state as the parameters that it holds were cut.

    Then the next step of the smaller model is that of the masked one, for what is left.  Settings,
    parameter groups, schedulers and the steps counted stay.  Call it once after each cut in place:
    ``Pruner.finish()``, ``prune(..., inplace=True)``, ``shrink(..., inplace=True)``.

    How a state lies along its parameter is not guessed from shapes but seen in a step that the
    optimizer makes on a small tensor; means over a dimension (Adafactor's rows and columns) become
    means over what is left of it.  An optimizer whose step depends on the *size* of a tensor
    (Adafactor's clipping and its scale by the parameter) goes on as for a tensor of the new size;
    so does one that holds the scale of a norm over what was cut (RMSNorm), which took up a factor.

    Args:
        optimizer: any of torch's or like them; a wrapper that has the real one as ``optimizer``
            (Accelerate's) may be given too.
        result: of the cut.

    Raises:
        OptimizerError: it holds none of the model's parameters, or its state cannot be cut; it is
            as it was before.

    >>> from torch import nn
    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> optimizer = torch.optim.AdamW(net.parameters())
    >>> net(torch.ones(1, 8)).sum().backward()
    >>> optimizer.step()
    >>> result = prune(net, torch.zeros(1, 8), sparsity=0.5, inplace=True)
    >>> cut_optimizer(optimizer, result)
    >>> optimizer.state[net[0].weight]["exp_avg"].shape
    torch.Size([8, 8])
    """
    inner = _innermost(optimizer)
    names = {id(p): name for name, p in result.model.named_parameters()}
    held = [(g, p) for g in inner.param_groups for p in g["params"] if id(p) in names]
    if not held:
        raise _stranger(inner, result)
    slices = Slices(result.structure, result.plan)
    known = set(slices.names())
    _check_elsewhere(inner, {names[id(p)] for _, p in held} & known, slices)
    layouts: dict[Any, dict[str, Lies] | Exception] = {}
    left: dict[Tensor, Any] = {}
    for group, parameter in held:
        name, state = names[id(parameter)], inner.state.get(parameter)
        if name in known and state:
            one = _State(inner, group, parameter, name, slices, layouts)
            left[parameter] = one.cut(state)
    inner.state.update(left)  # nothing has changed before all could be cut


def _check_elsewhere(optimizer: Optimizer, cut: Collection[str], slices: Slices) -> None:
    """Raise an OptimizerError where state is kept in an attribute, or among a group's settings.

    What is as large as a parameter was, and is none, is taken for that: whose it is nothing says.
    """
    before = {shape: name for name in sorted(cut) if (shape := slices.shape(name))}
    flat = {prod(shape): name for shape, name in before.items()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    rest: dict[str, Any] = {k: v for k, v in vars(optimizer).items() if k not in KEPT}
    for number, group in enumerate(optimizer.param_groups):
        rest |= {f"param_groups[{number}][{k!r}]": v for k, v in group.items() if k != "params"}
    for where, value in rest.items():
        for path, tensor in tensors_of(value).items():
            name = before.get(tuple(tensor.shape), flat.get(tensor.numel()))
            if id(tensor) in held or tensor.numel() <= 1 or name is None:
                continue
            raise OptimizerError(
                f"{type(optimizer).__name__} keeps a tensor {tuple(tensor.shape)} in {where}{path},"
                f" as large as {name!r} was, and not in its state: whose it is nothing says, and "
                "it cannot be cut. Make a new optimizer for the model"
            )


def _stranger(optimizer: Optimizer, result: Result) -> OptimizerError:
    return OptimizerError(
        f"the {type(optimizer).__name__} holds no parameter of the smaller "
        f"{type(result.model).__name__}: it was made for another model, or for the dense one "
        "that was copied. Cut in place (inplace=True), or make a new one for result.model"
    )


class _State:
    """The state of one parameter while it is cut."""

    def __init__(
        self,
        optimizer: Optimizer,
        group: Mapping[str, Any],
        parameter: Tensor,
        name: str,
        slices: Slices,
        layouts: dict[Any, dict[str, Lies] | Exception],
    ):
        self.optimizer, self.name, self.slices = optimizer, name, slices
        self.before = slices.shape(name)
        self.after = tuple(slices.of(name, torch.empty(self.before, device="meta")).shape)
        key = (id(group), self.before, parameter.dtype, parameter.device)
        if key not in layouts and self.before != self.after:
            try:
                layouts[key] = layout_of(optimizer, group, parameter, self.before)
            except Exception as error:  # another's optimizer may refuse a step without its closure
                layouts[key] = error
        self.layout = layouts.get(key, {})

    def cut(self, state: Any) -> Any:
        """Return what is left of a parameter's state; one that is cut already stays."""
        sized = {p: self._sizes(p, t) for p, t in tensors_of(state).items() if t.numel() > 1}
        shapes = {path: tuple(tensor.shape) for path, tensor in tensors_of(state).items()}
        if any(shapes[path] == after != before for path, (before, after) in sized.items()):
            return state
        return tree_map_with_path(self._left, state)

    def _sizes(self, path: str, tensor: Tensor) -> tuple[Shape, Shape]:
        """Return the shape of a tensor of the state for the parameter before and after the cut."""
        if self.before == self.after:
            if tensor.ndim == 1 and tensor.numel() > prod(self.before):
                raise self._error(path, tensor, "which holds more than one parameter's")
            return tuple(tensor.shape), tuple(tensor.shape)
        follows = self._lies(path, tensor).follows
        if follows == (None,) and tensor.numel() == prod(self.before):
            raise self._error(path, tensor, "the parameter laid flat")
        pairs = list(zip(follows, tensor.shape, strict=True))
        before = tuple(length if dim is None else self.before[dim] for dim, length in pairs)
        after = tuple(length if dim is None else self.after[dim] for dim, length in pairs)
        if tuple(tensor.shape) not in (before, after):
            was = f"and the parameter was {self.before} before this cut"
            raise self._error(path, tensor, was)
        return before, after

    def _left(self, path: Any, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.numel() <= 1 or self.before == self.after:
            return value
        lies = self._lies(keystr(path), value)
        try:
            kept = self.slices.of(self.name, value, lies.follows)
        except (AxisError, NotImplementedError, RuntimeError) as error:
            raise self._error(keystr(path), value, str(error)) from error
        factor = prod((self.before[d] / self.after[d]) ** p for d, p in lies.powers.items())
        return kept * factor if factor != 1 else kept

    def _lies(self, path: str, value: Tensor) -> Lies:
        whole = Lies(self.before, tuple(range(len(self.before))))
        if isinstance(self.layout, dict):
            lies = self.layout.get(path)
            if lies is not None and len(lies.shape) == value.ndim:
                return lies
        if tuple(value.shape) in (self.before, self.after):
            return whole
        why = f": {self.layout}" if isinstance(self.layout, Exception) else ""
        raise self._error(path, value, f"and how it lies along the parameter is not known{why}")

    def _error(self, path: str, value: Tensor, why: str) -> OptimizerError:
        return OptimizerError(
            f"the state {path} that {type(self.optimizer).__name__} keeps of {self.name!r} is "
            f"{tuple(value.shape)}, {why}; it cannot be cut. Make a new optimizer for the model"
        )


def _innermost(optimizer: Any) -> Optimizer:
    """Return the optimizer that holds the state, inside wrappers that hand it on."""
    while "state" not in vars(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
