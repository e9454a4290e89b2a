"""Masks on a module's inputs and outputs, by forward hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.errors import ConfigError, MaskError
from secateur.runtime.forward import evaluating

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
        self._hooks: list[RemovableHandle] = []

    @property
    def on(self) -> bool:
        """Whether the hooks are registered."""
        return bool(self._hooks)

    def observed(self, example: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Tensor]:
        """Run the model once and return the mean magnitude of each target over the batch.

        The batch dimension stays, with size 1, so that a mask broadcasts over any batch.
        """
        seen: dict[str, Tensor] = {}

        def look(target: TargetSetting, value: Tensor) -> Tensor:
            seen[target.name] = value.detach().abs().mean(0, keepdim=True)
            return value

        with self._off(), self._hooked(look), evaluating(self.model), torch.no_grad():
            self.model(*example[0], **example[1])
        missing = [t.name for t in self.targets if t.name not in seen]
        if missing:
            raise ConfigError(f"the forward never reached {', '.join(map(repr, missing))}")
        return seen

    def put_on(self) -> None:
        """Register the hooks that apply the masks and gates."""
        self.take_off()
        self._applied = {name: _broadcastable(mask) for name, mask in self.masks.items()}
        if self.masks or self.gates:
            self._hooks = self._register(self._apply)

    def take_off(self) -> None:
        """Remove the hooks."""
        while self._hooks:
            self._hooks.pop().remove()

    @contextmanager
    def _off(self) -> Iterator[None]:
        on = self.on
        self.take_off()
        try:
            yield
        finally:
            if on:
                self.put_on()

    def _apply(self, target: TargetSetting, value: Tensor) -> Tensor:
        if target.name in self.gates:
            value = value * self.gates[target.name].to(value)
        mask = self._applied.get(target.name)
        if mask is None:
            return value
        fits = (m in (1, n) for m, n in zip(mask.shape, value.shape, strict=False))
        if mask.ndim != value.ndim or not all(fits):
            raise MaskError(
                f"the mask of {target.name!r} is {tuple(mask.shape)}, and does not fit its value "
                f"of shape {tuple(value.shape)}"
            )
        if target.apply_method == "add":
            return value + BLOCKED * (~mask).to(value)
        return value * mask.to(value)

    @contextmanager
    def _hooked(self, visit: Any) -> Iterator[None]:
        hooks = self._register(visit)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _register(self, visit: Any) -> list[RemovableHandle]:
        hooks = []
        for target in self.targets:
            module = self.model.get_submodule(target.module)
            side, _, which = target.target.lstrip("_").partition("_")
            key: int | str = int(which) if which.isdigit() else which or 0
            if side == "input":
                hooks.append(
                    module.register_forward_pre_hook(_before(target, key, visit), with_kwargs=True)
                )
            else:
                hooks.append(module.register_forward_hook(_after(target, key, visit)))
        return hooks


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


def _before(target: TargetSetting, key: int | str, visit: Any) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(key, str) and key in kwargs:
            return args, {**kwargs, key: visit(target, _floats(target, kwargs[key]))}
        if isinstance(key, int) and key < len(args):
            changed = visit(target, _floats(target, args[key]))
            return (*args[:key], changed, *args[key + 1 :]), kwargs
        raise ConfigError(f"{target.name!r}: {target.module!r} was called without such an input")

    return hook


def _after(target: TargetSetting, key: int | str, visit: Any) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor) and key == 0:
            return visit(target, _floats(target, output))
        if isinstance(output, (tuple, list)) and isinstance(key, int) and key < len(output):
            changed = visit(target, _floats(target, output[key]))
            parts = [*output[:key], changed, *output[key + 1 :]]
            return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
        if isinstance(output, dict) and key in output:
            copied = copy.copy(output)  # a dict, or a class of its own
            copied[key] = visit(target, _floats(target, output[key]))
            return copied
        raise ConfigError(f"{target.name!r}: {target.module!r} has no such output")

    return hook
