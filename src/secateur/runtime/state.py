"""The state of a model and of what its code reaches: as it was, when a trial is over."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .caches import is_of_trial
from .reach import PLAIN, Place, is_foreign
from .writes import Writes

NEVER = (*PLAIN, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, torch.dtype)
CHANGES = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
HOOKS = vars(nn.Module()).keys() - CHANGES - {"_forward_hooks", "_forward_pre_hooks"}
SIMPLE = {"types", "argparse", "weakref", "collections", "random"}  # whose objects only hold things
OTHERS = (Tensor, nn.Module, tuple, list, type, ModuleType)  # that are no cache, and no code
EMPTY: Any = {}
MOST_OBJECTS = 50_000  # further ones are somebody's data, which no forward changes


class State:
    """What some objects hold, to put it back: attributes, containers, tensors, generators.

    ``restore`` gives every object the very values that it held; what is a tensor has its old
    contents again if it was written to while ``writes`` was on.

    Attributes:
        attributes: the places of what the objects hold, without tensors, modules and numbers.
        classes: of the objects.
        always: ids of shared containers that are restored whatever they hold.

    >>> layer = nn.BatchNorm1d(2)
    >>> state = State()
    >>> state.keep(layer)
    >>> with state.writes:
    ...     layer.last = layer(torch.ones(3, 2))
    >>> state.restore()
    >>> layer.running_mean.tolist(), hasattr(layer, "last")
    ([0.0, 0.0], False)
    """

    def __init__(self) -> None:
        self.writes = Writes()
        self.attributes: list[Place] = []
        self.classes: set[type] = set()
        self.always: set[int] = set()
        self._containers: list[tuple[Any, Any, bool]] = []  # it, what it held, is it shared?
        self._restore: list[Callable[[], object]] = []
        self._seen: dict[int, Any] = {}  # the objects too, so that an id stays its own
        self._todo: deque[Any] = deque()
        self._shared = False

    def keep(self, *values: Any, shared: bool = False) -> None:
        """Let some objects, and all that they hold, be restored.

        Args:
            values: the objects.
            shared: others may watch them: a container, or an object's attributes, are restored only
                where a trial's tensors or traced numbers would stay in them.  What an object of
                these holds is not looked into.
        """
        self._shared = shared
        self._todo += values
        while self._todo:
            value = self._todo.popleft()
            if not isinstance(value, NEVER) and id(value) not in self._seen:
                self._seen[id(value)] = value
                self._keep(value)

    def keep_names(self, places: Iterable[Place]) -> None:
        """Let names that others may read be restored, as what is shared is."""
        for place in places:
            self._restore.append(partial(_name_back, place, place.known, place.value))

    def keep_class(self, kind: type) -> None:
        """Let the attributes of a class be restored, as what is shared is."""
        self._restore.append(partial(_class_back, kind, dict(vars(kind))))

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that the objects hold."""
        yield from (value for value in self._seen.values() if isinstance(value, Tensor))

    def changed(self) -> bool:
        """Tell whether the objects hold other things than they did; what is shared does not count.

        >>> layer = nn.BatchNorm1d(2)
        >>> state = State()
        >>> state.keep(layer)
        >>> state.changed(), layer(torch.ones(3, 2)).shape, state.changed()
        (False, torch.Size([3, 2]), True)
        """
        held = ((value, held) for value, held, shared in self._containers if not shared)
        return self.writes.changed() or not all(_same(*each) for each in held)

    def new(self) -> Iterator[Any]:
        """Yield what attributes and containers hold and did not hold before.

        >>> layer = nn.ReLU()
        >>> state = State()
        >>> state.keep(layer)
        >>> layer.last = 7
        >>> list(state.new())
        [7]
        """
        for value, held, _ in self._containers:
            before = {id(x) for x in (held.values() if isinstance(held, dict) else held)}
            now = dict.values(value) if isinstance(value, dict) else value
            yield from (x for x in now if id(x) not in before)

    def restore(self) -> None:
        """Put everything back."""
        self.writes.restore()
        for restore in self._restore:
            restore()
        for value, held, shared in self._containers:
            if not _same(value, held) and (
                not shared or id(value) in self.always or _is_left(value, held)
            ):
                _fill(value, held)

    def forget(self) -> None:
        """Hold nothing any more: a trial's mode may live on, and weights that are cut must go."""
        self.writes.forget()
        for held in (self.attributes, self._containers, self._restore, self._seen):
            held.clear()

    def _keep(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.writes.keep(value)
            self._attributes(vars(value))
        elif isinstance(value, nn.Module):
            self.classes.add(type(value))
            self._attributes(vars(value), HOOKS)
        elif isinstance(value, dict):
            self._contents(value)
            self._look_into(value.values())
        elif isinstance(value, (list, set, deque)):
            self._contents(value)
            self._look_into(value)
        elif isinstance(value, (tuple, frozenset)):
            self._look_into(value)
        elif (state := _generator_state(value)) is not None:
            self._restore.append(state)
        else:
            self._object(value)

    def _look_into(self, values: Iterable[Any]) -> None:
        if len(self._seen) < MOST_OBJECTS:
            self._todo.extend(value for value in values if not isinstance(value, NEVER))

    def _contents(self, value: Any) -> None:
        held = (dict(value) if isinstance(value, dict) else list(value)) if value else EMPTY
        self._containers.append((value, held, self._shared))

    def _attributes(self, held: dict[str, Any], without: Iterable[str] = ()) -> None:
        self._contents(held)
        for name, value in held.items():
            if name not in without and not isinstance(value, PLAIN):
                if not isinstance(value, OTHERS):
                    self.attributes.append(Place(held, name))
                self._todo.append(value)

    def _object(self, value: Any) -> None:
        kind = type(value).__module__
        if is_foreign(kind) and kind not in SIMPLE:
            return
        held = getattr(value, "__dict__", None)
        if self._shared:
            if isinstance(held, dict):
                self._contents(held)
            return
        self.classes.add(type(value))
        if isinstance(held, dict):
            self._attributes(held)
        for name in slots_of(type(value)):
            try:
                before = object.__getattribute__(value, name)
            except AttributeError:
                continue
            self._restore.append(partial(_slot_back, value, name, before))
            self._look_into([before])


def _same(value: Any, held: Any) -> bool:
    """Tell whether a container holds the very objects that it held, in the same order."""
    if len(value) != len(held):
        return False
    if isinstance(value, dict):
        keys = map(is_, dict.keys(value), held)
        return all(keys) and all(map(is_, dict.values(value), held.values()))
    return all(map(is_, value, held))


def _is_left(value: Any, held: Any) -> bool:
    """Tell whether a container holds tensors or traced numbers that it did not hold before."""
    if not isinstance(value, dict):
        before = {*map(id, held)}
        return any(id(part) not in before and is_of_trial(part) for part in value)
    before = {id(x) for entry in held.items() for x in entry}
    return any(id(x) not in before and is_of_trial(x) for e in dict.items(value) for x in e)


def _fill(value: Any, held: Any) -> None:
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict
    if isinstance(value, list):
        value[:] = held
    elif isinstance(value, dict):
        kind.clear(value)
        kind.update(value, held)
    else:
        value.clear()
        (value.extend if isinstance(value, deque) else value.update)(held)


def _name_back(place: Place, known: bool, held: Any) -> None:
    if place.value is not held and is_of_trial(place.value):
        if known:
            place.put(held)
        else:
            del place.holder[place.name]


def _class_back(kind: type, held: dict[str, Any]) -> None:
    for name, value in list(vars(kind).items()):
        if held.get(name) is not value and is_of_trial(value):
            if name in held:
                type.__setattr__(kind, name, held[name])
            else:
                type.__delattr__(kind, name)


def _slot_back(value: Any, name: str, held: Any) -> None:
    if getattr(value, name, None) is not held:
        object.__setattr__(value, name, held)


def slots_of(kind: type) -> list[str]:
    """Return the names of the attributes that a class and its bases keep in slots."""
    found: list[str] = []
    for base in kind.__mro__:
        named = vars(base).get("__slots__", ())
        found += [named] if isinstance(named, str) else list(named)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _generator_state(value: Any) -> Callable[[], object] | None:
    """Return what puts a random generator back, or None if this is none."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    numpy = sys.modules.get("numpy.random")
    if numpy is None:
        return None
    if isinstance(value, numpy.Generator):
        value = value.bit_generator
    if isinstance(value, (numpy.BitGenerator, numpy.RandomState)):
        return _numpy_back(value)
    return None


def _numpy_back(value: Any) -> Callable[[], None]:
    if hasattr(value, "get_state"):
        return partial(value.set_state, value.get_state())
    held = value.state

    def restore() -> None:
        value.state = held

    return restore
