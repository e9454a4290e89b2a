"""Cut a model in place, and put it back if anything fails."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import ShrinkError
from secateur.graph.axes import Atom
from secateur.graph.lengths import now
from secateur.graph.origins import Attribute
from secateur.replacements import replacement_of
from secateur.replacements.passing import Passing, PassThrough, argument, passing
from secateur.runtime.forward import evaluating
from secateur.runtime.precise import without
from secateur.runtime.undo import Undo
from secateur.runtime.values import not_finite
from secateur.structure import Structure
from secateur.types import Factored, Masks

from .contents import Shortened, has_own_memory, put
from .describe import descriptions
from .history import HELD_AS, Changes, History, Number, Renaming, Shape
from .implied import implied_by
from .overrides import Overrides, say
from .owning import own
from .plan import Plan
from .rescale import rescaled_floats, rescaled_tensors
from .slices import Choice, Slices, laid_out_as

FAST = (torch.float32, torch.float64)
"""What is multiplied by a mask faster than it is filled."""


class Surgery:
    """The changes made to one model; ``undo`` takes them all back."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._undo: list[Callable[[], None]] = []
        self.shapes: dict[str, tuple[Shape, Shape]] = {}  # before and after the cut
        self.rescaled: dict[str, Tensor] = {}  # parameters, by their values before rounding
        self._mine: list[Any] = []  # objects that no other model holds

    def mark(self) -> int:
        """Return how many changes were made, for ``undo``."""
        return len(self._undo)

    def undo(self, since: int = 0) -> None:
        """Put every tensor and attribute back, last change first, down to a mark."""
        while len(self._undo) > since:
            self._undo[-1]()  # an interrupt may come in it: then it is the next again
            self._undo.pop()

    def set_data(self, tensor: Tensor, data: Tensor, gradient: Tensor | None = None) -> None:
        """Give a parameter or buffer other contents; it stays the same object.

        Args:
            gradient: the new one, where the shape changes; else it stays.
        """
        before, held = tensor.data, tensor.grad
        self._undo.append(lambda: put(tensor, before, held))
        put(tensor, data, held if data.shape == before.shape else gradient)

    def shorten(
        self, tensor: Tensor, choices: Sequence[Choice], gradient: Tensor | None = None
    ) -> None:
        """Cut a parameter or buffer; ``gradient``: what is left of its gradient."""
        if not has_own_memory(tensor):
            left = tensor.data
            for choice in choices:
                left = choice.left(left)
            self.set_data(tensor, laid_out_as(left, tensor.data), gradient)
            return
        self._set_gradient(tensor, None)
        for choice in choices:
            change = Shortened(tensor, choice)
            self._undo.append(change.undo)
            change.do()
        self._set_gradient(tensor, gradient)

    def _set_gradient(self, tensor: Tensor, gradient: Tensor | None) -> None:
        before = tensor.grad
        self._undo.append(lambda: setattr(tensor, "grad", before))
        tensor.grad = gradient

    def set_attribute(self, module: Any, name: str, value: Any) -> None:
        """Set what may or may not be there already."""
        if hasattr(module, name):
            before = getattr(module, name)
            self._undo.append(lambda: setattr(module, name, before))
        else:
            self._undo.append(lambda: _without(module, name))
        setattr(module, name, value)

    def register_buffer(self, name: str, data: Tensor, *, persistent: bool) -> None:
        """Give a module a buffer that its first forward would register."""
        path, _, last = name.rpartition(".")
        module = self.model.get_submodule(path)
        held: tuple[Any, ...] = vars(module), module._buffers, module._non_persistent_buffers_set
        before = [copy.copy(each) for each in held]

        def undo() -> None:
            for each, was in zip(held, before, strict=True):
                each.clear()
                each.update(was)

        self._undo.append(undo)
        vars(module).pop(last, None)  # a None in its place
        module.register_buffer(last, data, persistent=persistent)

    def set_tensor(self, tensor: Tensor, data: Tensor) -> None:
        """Give a parameter or buffer other contents; one without any (on ``meta``) is replaced."""
        if not tensor.is_meta:
            self.set_data(tensor, laid_out_as(data.to(tensor.device), tensor))
            return
        new = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
        for module in self.model.modules():
            for name, held in [*module._parameters.items(), *module._buffers.items()]:
                if held is tensor:
                    self.set_attribute(module, name, new)  # recurrent layers keep a second list

    def set_extra(self, module: nn.Module, state: Tensor) -> None:
        """Give a module what it saved beside its tensors."""
        before = module.get_extra_state()
        self._undo.append(lambda: module.set_extra_state(before))
        module.set_extra_state(state)

    def delete_attribute(self, module: Any, name: str) -> None:
        before = getattr(module, name)
        self._undo.append(lambda: setattr(module, name, before))
        delattr(module, name)

    def set_class(self, module: nn.Module, kind: type[nn.Module]) -> None:
        before = type(module)
        self._undo.append(lambda: setattr(module, "__class__", before))
        module.__class__ = kind

    def replace(self, module: nn.Module) -> Callable[[], list[str]]:
        """Make a layer an instance of its replacement.

        Returns:
            What makes it itself again, and returns the names of the attributes that it then loses.
        """
        original, held = type(module), dict(vars(module))
        replacement = replacement_of(original)
        assert replacement is not None
        extra = replacement.extra(module)
        for name, value in extra.items():
            self.set_attribute(module, name, value)
        self.set_class(module, replacement)

        def restore() -> list[str]:
            self.set_class(module, original)
            for name in extra:
                if name in held:
                    self.set_attribute(module, name, held[name])
                else:
                    self.delete_attribute(module, name)
            return [name for name in extra if name not in held]

        return restore

    def mask(self, masks: Mapping[str, Tensor]) -> None:
        """Set masked weights to zero, also those that are NaN or infinite."""
        state = dict(self.model.named_parameters(remove_duplicate=False))
        for name, mask in masks.items():
            data, mask = state[name].data, mask.to(state[name].device)
            plain = data.dtype in FAST and not data.is_meta
            if plain and not not_finite({name: data}):  # one by one, while it is in the cache
                self.set_data(state[name], (data * mask).add_(0.0))  # faster; no zero is -0
            else:
                self.set_data(state[name], data.masked_fill(~mask, 0))

    def add(self, amounts: Mapping[str, Tensor]) -> None:
        """Add to parameters and buffers by their names."""
        for name, amount in amounts.items():
            path, _, last = name.rpartition(".")
            tensor = getattr(self.model.get_submodule(path), last)
            self.set_data(tensor, tensor.data + amount)

    def cut(self, structure: Structure, plan: Plan, masks: Masks | None = None) -> Changes:
        """Apply a plan; return attribute → (before, after).

        Args:
            masks: of parameters, by their first names, that are not masked yet.

        Raises:
            ShrinkError: an attribute of the model cannot express the new size.
        """
        plan.check(structure)
        shapes = self.shapes = self._cut_tensors(Slices(structure, plan), masks or {})
        count = structure.counter(plan)
        changed: Changes = {**self._set_sizes(structure, count), **self._rescale(structure, count)}
        changed |= self._hand_on_first_place(plan.drop)
        blocks = map(structure.block, plan.drop)
        dropped: dict[str, Passing] = {b.name: (b.position, b.returns) for b in blocks}
        for name, how in dropped.items():
            self.drop(name, how)
        self.describe()
        before = History.of(self.model)
        implied = dict(implied_by(structure, plan.counts, len(before.steps), changed))
        history = before.then(plan, shapes, changed, dropped, implied)
        self.set_attribute(self.model, HELD_AS, history)
        return changed

    def configure(self, changes: Changes) -> None:
        """Let the model's config say other numbers, and the history that it does."""
        named = {f"config.{key}": change for key, change in changes.items()}
        for name, (_, after) in named.items():
            self.set_size(Attribute("", name), after)
        self.set_attribute(self.model, HELD_AS, History.of(self.model).with_attributes(named))

    def say_of_layers(self, config: Any, overrides: Overrides) -> None:
        """Let a config say other numbers of single layers."""
        held = vars(config)
        before = dict(held)

        def undo() -> None:
            held.clear()
            held.update(before)

        self._undo.append(undo)
        say(config, overrides)

    def drop(self, path: str, how: Passing) -> None:
        """Let a block return its input; its tensors go, its submodules and attributes stay."""
        block = self.model.get_submodule(path)
        kind = type(block)
        self.set_attribute(block, "passes", argument(kind, how[0]))
        self.set_attribute(block, "returns", how[1])
        self.set_class(block, passing(kind))
        for module in block.modules():
            for name, held in [*module._parameters.items(), *module._buffers.items()]:
                if held is not None:
                    self.set_attribute(module, name, None)

    def take_out(self, path: str, kept: Sequence[int]) -> None:
        """Let a list of modules keep some of them, counted anew."""
        held = self.model.get_submodule(path)._modules
        before = dict(held)

        def undo() -> None:
            held.clear()
            held.update(before)

        new = Renaming("", list(before), kept).keys(before)
        self._undo.append(undo)
        held.clear()
        held.update(new)

    @contextmanager
    def spelled_out(self, structure: Structure, plan: Plan) -> Iterator[None]:
        """Let the epsilons that a cut will change be numbers: a check computes in another type."""
        with Undo() as undo:
            undo(partial(self.undo, self.mark()))
            rescaled, count = structure.inferred.rescaled, structure.counter(plan)
            for attribute, held, _ in rescaled_floats(self.model, rescaled, count):
                self.set_size(attribute, held)
            yield

    def _hand_on_first_place(self, dropped: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Give the first block that is left the number of the first that was: 0.

        A cache asks its first layer for its length.  Such a number is any integer that, in every
        block of a list, is the block's place.
        """
        changed: dict[str, tuple[int, int]] = {}
        for path, module in self.model.named_modules():
            if not isinstance(module, (nn.ModuleList, nn.Sequential)):
                continue
            left = [i for i, m in enumerate(module) if not isinstance(m, PassThrough)]
            after = [i for i in left if f"{path}.{i}" not in dropped]
            if len(left) < 2 or not after or left[0] == after[0]:
                continue
            for inner, first in module[left[0]].named_modules():
                for name, value in list(vars(first).items()):
                    ranks = {i: _integer(module[i], inner, name) for i in left}
                    if type(value) is int and ranks == {i: i if i != left[0] else 0 for i in left}:
                        where = ".".join(filter(None, (path, str(after[0]), inner)))
                        self.set_size(Attribute(where, name), 0)
                        changed[str(Attribute(where, name))] = (after[0], 0)
        return changed

    def _cut_tensors(self, slices: Slices, masks: Masks) -> dict[str, tuple[Shape, Shape]]:
        changed: dict[str, tuple[Shape, Shape]] = {}
        state = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        names = list(slices.names())
        self.mask(Factored(masks).only(masks.keys() - names))
        for name in names:
            if name not in state:
                continue
            tensor = state[name]
            if choices := slices.choices(name, tensor.data):
                before, held = tuple(tensor.shape), tensor.grad
                gradient = None if held is None else slices.of(name, held)
                self.shorten(tensor, choices, gradient)
                changed[name] = before, tuple(tensor.shape)
            left = slices.of_mask(name, masks) if name in masks else []
            if not all(bool(mask.all()) for mask in left):
                self.set_data(tensor, without(tensor.data.clone(), left))
        return changed

    def _set_sizes(
        self, structure: Structure, count: Callable[[Atom], int]
    ) -> dict[str, tuple[int, int]]:
        layers = {p: m for p, m in self.model.named_modules() if replacement_of(type(m))}
        restore = {path: self.replace(module) for path, module in layers.items()}
        changed: dict[str, tuple[int, int]] = {}
        for attribute, (axis, factor) in structure.inferred.attributes.items():
            before, after = axis.size / factor, now(axis, count) / factor
            if before == after:
                continue
            if after.denominator != 1:
                raise ShrinkError(
                    f"{attribute} would have to become {after}, which is no whole number; "
                    "use round_to, or keep the groups that it names"
                )
            self.set_size(attribute, int(after))
            changed[str(attribute)] = (int(before), int(after))
        for path, module in layers.items():
            if cast(Any, type(module)).fits(module):
                for name in restore[path]():
                    changed.pop(str(Attribute(path, name)), None)
        return changed

    def _rescale(self, structure: Structure, count: Callable[[Atom], int]) -> Changes:
        """Let scales and epsilons take up the factors of averages over what was cut."""
        found = structure.inferred.rescaled
        changed: Changes = {}
        for attribute, _, after in rescaled_floats(self.model, found, count):
            before = attribute.held_by(self.model.get_submodule(attribute.path))
            self.set_size(attribute, after)
            changed[str(attribute)] = (before, after)
        state = dict(self.model.named_parameters())
        self.rescaled = dict(rescaled_tensors(state, found, count))
        for name, values in self.rescaled.items():
            tensor = state[name]
            self.set_data(tensor, laid_out_as(values.to(tensor.dtype), tensor))
        return changed

    def set_size(self, attribute: Attribute, size: Number) -> None:
        """Set a number that a module, or an object of it, keeps alone, in a tuple or a dict.

        Args:
            attribute: which.
            size: the number, or the whole of a list.
        """
        *way, name = attribute.name.split(".")
        module = self.model.get_submodule(attribute.path)
        if way:
            self._own(reduce(getattr, way, module))
        held = vars(reduce(getattr, way, module))
        if name not in held:  # a config that said nothing of it
            self._undo.append(lambda: held.pop(name, None))
            held[name] = size
            return
        before = held[name]
        value: Any = size if not isinstance(size, tuple) else type(before)(size)
        if isinstance(attribute.index, str):
            value = {**before, attribute.index: size}
        elif attribute.index is not None:
            sizes = list(before)
            sizes[attribute.index] = size
            value = type(before)(sizes)
        # past properties and validators, which may compare it with what is not set yet
        self._undo.append(lambda: held.__setitem__(name, before))
        held[name] = value

    def _own(self, value: Any) -> None:
        """Let nobody but this model hold an object whose numbers change."""
        if any(value is mine for mine in self._mine):
            return

        def put(attributes: dict[str, Any], name: str, new: Any) -> None:
            before = attributes[name]
            self._undo.append(lambda: attributes.__setitem__(name, before))
            attributes[name] = new

        known = len(self._mine)
        self._undo.append(lambda: self._mine.__delitem__(slice(known, None)))
        self._mine += own(self.model, value, put)

    def describe(self) -> None:
        """Let torch's own layers say the sizes that they now have."""
        with evaluating(self.model), torch.no_grad():  # looking at a spectral norm would change it
            for module in self.model.modules():
                for name, said in descriptions(module).items():
                    if getattr(module, name) != said:
                        self.set_attribute(module, name, said)
                if isinstance(module, nn.RNNBase):
                    module.flatten_parameters()  # cuDNN wants them in one piece


def _without(module: Any, name: str) -> None:
    if hasattr(module, name):
        delattr(module, name)


def _integer(module: nn.Module, inner: str, name: str) -> int | None:
    held: Any = dict(module.named_modules()).get(inner)
    value = vars(held).get(name) if held is not None else None
    return value if type(value) is int else None
