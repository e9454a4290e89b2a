"""Masks on a module's inputs and outputs, by forward hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, MaskError
from secateur.runtime.forward import evaluating
from secateur.runtime.undo import Undo, undoable, unhook_module

from .arguments import given, key_of, ways
from .channels import batched, fitted
from .config_list import TargetSetting

BLOCKED = -1000.0  # what ``apply_method: add`` puts in front of a softmax


class ActivationMasks:
    """The ``_input_…`` and ``_output_…`` targets of one pruner."""

    def __init__(self, model: nn.Module, targets: Sequence[TargetSetting]):
        self.model = model
        self.targets = targets
        self.masks: dict[str, Tensor] = {}
        self.gates: dict[str, Tensor] = {}  # factors of 1, for their gradients
        self._applied: dict[str, Tensor] = {}
        self._hooks: list[tuple[nn.Module, Any]] = []
        self._modules = {t.name: model.get_submodule(t.module) for t in targets}

    @property
    def on(self) -> bool:
        """Whether the hooks are registered."""
        return bool(self._hooks)

    def observed(
        self, targets: Sequence[TargetSetting], example: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Run the model once and return the mean magnitude of each target over the batch.

        The batch dimension stays, with size 1, so that a mask broadcasts over any batch.
        """
        seen: dict[str, Tensor] = {}

        def look(target: TargetSetting, value: Tensor) -> Tensor:
            module = self._modules[target.name]
            seen[target.name] = batched(module, value.detach()).abs().mean(0, keepdim=True)
            return value

        with self.off(), self._hooked(look, targets), evaluating(self.model), torch.no_grad():
            self.model(*example[0], **example[1])
        missing = [t.name for t in targets if t.name not in seen]
        if missing:
            raise ConfigError(f"the forward never reached {', '.join(map(repr, missing))}")
        return seen

    def put_on(self) -> None:
        """Register the hooks that apply the masks and gates."""
        self.take_off()
        self._applied = {name: _broadcastable(mask) for name, mask in self.masks.items()}
        if self.masks or self.gates:
            undoable(self.take_off)
            self._register(self._apply, self.targets, self._hooks)

    def take_off(self) -> None:
        """Remove the hooks."""
        _remove(self._hooks)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the values are as without masks."""
        with Undo() as undo:
            if self.on:
                undo(self.put_on)
            self.take_off()
            yield

    def _apply(self, target: TargetSetting, value: Tensor) -> Tensor:
        if target.name in self.gates:
            value = value * self._fitted(target, self.gates[target.name], value).to(value)
        if target.name not in self._applied:
            return value
        mask = self._fitted(target, self._applied[target.name], value)
        if target.apply_method == "add":
            return value + BLOCKED * (~mask).to(value)
        return value * mask.to(value)

    def _fitted(self, target: TargetSetting, mask: Tensor, value: Tensor) -> Tensor:
        found = fitted(mask, self._modules[target.name], tuple(value.shape))
        if isinstance(found, Tensor):
            return found
        shape = tuple(self.masks.get(target.name, mask).shape)
        raise MaskError(
            f"the mask of {target.name!r} is {shape}, and does not fit its value of shape "
            f"{tuple(value.shape)}{found}"
        )

    @contextmanager
    def _hooked(self, visit: Any, targets: Sequence[TargetSetting]) -> Iterator[None]:
        hooks: list[tuple[nn.Module, Any]] = []
        with Undo() as undo:
            undo(partial(_remove, hooks))
            self._register(visit, targets, hooks)
            yield

    def _register(
        self, visit: Any, targets: Sequence[TargetSetting], hooks: list[tuple[nn.Module, Any]]
    ) -> None:
        """Register a hook for each target; each is in the list before it is on its module."""
        for target in targets:
            module = self._modules[target.name]
            side, key = key_of(target.target)
            before = side == "input"
            hook = (
                _before(target, ways(module, key), visit) if before else _after(target, key, visit)
            )
            hook.masks = target.name
            hooks.append((module, hook))
            if before:
                module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                module.register_forward_hook(hook)


def _remove(hooks: list[tuple[nn.Module, Any]]) -> None:
    while hooks:
        unhook_module(*hooks[-1])
        hooks.pop()


def values_masked(model: nn.Module) -> list[str]:
    """Return the inputs and outputs whose masks are on a model, by target name."""
    hooks = (
        hook
        for module in model.modules()
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    )
    return sorted({hook.masks for hook in hooks if hasattr(hook, "masks")})


def _broadcastable(mask: Tensor) -> Tensor:
    """Return a mask with size 1 where it says the same all along, so that other lengths fit."""
    for dim in range(mask.ndim):
        first = mask.narrow(dim, 0, 1)
        if bool((mask == first).all()):
            mask = first
    return mask


def _floats(target: TargetSetting, value: object) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else repr(type(value).__name__)
    raise ConfigError(f"{target.name!r} is {what}: only tensors of floats can be masked")


def _before(target: TargetSetting, options: Sequence[int | str], visit: Any) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = given(options, args, kwargs)
        if isinstance(place, str):
            return args, {**kwargs, place: visit(target, _floats(target, kwargs[place]))}
        if place is not None:
            changed = visit(target, _floats(target, args[place]))
            return (*args[:place], changed, *args[place + 1 :]), kwargs
        names = f" and {', '.join(map(repr, kwargs))}" if kwargs else ""
        raise ConfigError(
            f"{target.name!r}: {target.module!r} was called without such an input, with "
            f"{len(args)} by position{names}"
        )

    return hook


def _after(target: TargetSetting, key: int | str, visit: Any) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor) and key == 0:
            return visit(target, _floats(target, output))
        if isinstance(output, (tuple, list)) and isinstance(key, int) and key < len(output):
            changed = visit(target, _floats(target, output[key]))
            parts = [*output[:key], changed, *output[key + 1 :]]
            return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
        if isinstance(output, dict):
            named = dict(enumerate(output)).get(key) if isinstance(key, int) else key
            if named in output:
                copied = copy.copy(output)  # a dict, or a class of its own
                copied[named] = visit(target, _floats(target, output[named]))
                return copied
        raise ConfigError(f"{target.name!r}: {target.module!r} has no such output")

    return hook
