"""Caches of the user's process, kept apart from what a trial computes.

A size that is traced equals its number, so that a cache would serve one layer's sizes, or another
model's, to the next, and a tensor without values to whoever asks after the trial.  While a trial
runs, each function with a cache of ``functools`` has a memory of its own, in which sizes of
different origins differ, and while a forward is recorded, a dict that its code fills as it goes
starts without the entries that are about sizes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial, wraps
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from .alone import in_trial
from .reach import PLAIN, Place, cached_in
from .undo import Undo

_made_tensors: WeakSet[Any] = WeakSet()  # caches that are known to hold tensors
DEPTH = 5  # to which objects are looked into
MOST = 512  # entries of a container that is looked into


@contextmanager
def functions_apart(places: Iterable[Place]) -> Iterator[None]:
    """Give each cached function at these places a memory of its own."""
    made: dict[int, Any] = {}
    with Undo() as undo:
        for place in places:
            held = place.value
            if (cache := cached_in(held)) is not None:
                if id(cache) not in made:
                    made[id(cache)] = _apart(cache)
                undo(partial(place.put, held))
                place.put(_in_place_of(held, made[id(cache)]))
        yield


def _in_place_of(held: Any, apart: Callable[..., Any]) -> Any:
    if isinstance(held, (staticmethod, classmethod)):
        return type(held)(_in_place_of(held.__func__, apart))
    return partial(apart, *held.args, **held.keywords) if isinstance(held, partial) else apart


def _apart(cache: Any) -> Callable[..., Any]:
    memory: dict[Any, Any] = {}

    @wraps(cache)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not in_trial():  # another thread, which must not be given what a trial computed
            return cache(*args, **kwargs)
        arguments = (args, tuple(kwargs.items()))
        if not is_of_trial(arguments) and cache not in _made_tensors:
            misses = cache.cache_info().misses
            found = cache(*args, **kwargs)
            if not is_of_trial(found):
                return found
            _made_tensors.add(cache)
            if cache.cache_info().misses != misses:
                cache.cache_clear()
        key = _key(arguments)
        if key not in memory:
            memory[key] = cache.__wrapped__(*args, **kwargs)
        return memory[key]

    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(call, name, getattr(cache, name))
    return call


def is_of_trial(value: Any, depth: int = DEPTH, tensors: bool = True) -> bool:
    """Tell whether a value is a traced number or a tensor, or holds one."""
    if isinstance(value, PLAIN):
        return hasattr(value, "origin")
    if isinstance(value, (Tensor, nn.Module)):
        return tensors
    if not depth:
        return False
    if isinstance(value, (dict, tuple, list, set, frozenset)):
        parts = (*value, *value.values()) if isinstance(value, dict) else value
        return len(parts) <= MOST and any(is_of_trial(part, depth - 1, tensors) for part in parts)
    held = None if isinstance(value, type) else getattr(value, "__dict__", None)
    return isinstance(held, dict) and is_of_trial(held, depth - 1, tensors)


def _key(value: Any) -> Any:
    """Return what tells arguments apart: of a traced number its origin, too."""
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    return (int(value), value.origin) if hasattr(value, "origin") else value


def hide_sizes(cache: Any, about: Callable[[int], object]) -> bool:
    """Take the entries that are about sizes or tensors out of a dict or set, and dicts inside it.

    Args:
        cache: the container.
        about: told the id of each that had any, before it changes: the caller puts it back.

    Returns: whether there were any.
    """
    if isinstance(cache, dict):
        gone = [key for key, value in cache.items() if _has_size(key) or is_of_trial(value, 1)]
        if gone:
            about(id(cache))
            _take_out(cache, gone)
        held = [value for value in cache.values() if isinstance(value, (dict, set))]
        return any([bool(gone), *(hide_sizes(value, about) for value in held)])
    gone = [key for key in cache if _has_size(key)]
    if gone:
        about(id(cache))
        cache.difference_update(gone)
    return bool(gone)


def forget_properties(model: nn.Module) -> None:
    """Let modules compute their ``cached_property`` attributes again; ``State`` puts them back.

    >>> class Half(nn.Linear):
    ...     @cached_property
    ...     def half(self): return self.in_features // 2
    >>> layer = Half(4, 2)
    >>> layer.half, forget_properties(layer), "half" in vars(layer)
    (2, None, False)
    """
    for module in model.modules():
        for name in [*vars(module)]:
            if isinstance(getattr(type(module), name, None), cached_property):
                del vars(module)[name]


def forget_unnamed(cache: Any) -> None:
    """Take traced numbers out of a dict that are kept under keys which do not tell their origin."""
    if isinstance(cache, dict):
        gone = [
            key
            for key, value in cache.items()
            if not is_of_trial(key) and is_of_trial(value, 2, tensors=False)
        ]
        _take_out(cache, [key for key in gone if not isinstance(cache[key], (dict, set))])
        for value in cache.values():
            forget_unnamed(value)


def _take_out(cache: dict[Any, Any], keys: Iterable[Any]) -> None:
    kind: Any = OrderedDict if isinstance(cache, OrderedDict) else dict
    for key in keys:
        kind.__delitem__(cache, key)


def keys_of(caches: Iterable[Any]) -> Iterator[Any]:
    """Yield all keys of dicts and sets, and what is in those that are tuples or objects."""
    for cache in caches:  # dict's own views, as an OrderedDict's would look keys up
        for key in dict.keys(cache) if isinstance(cache, dict) else cache:
            yield from _parts(key)
        if isinstance(cache, dict):
            yield from keys_of(v for v in dict.values(cache) if isinstance(v, (dict, set)))


def _parts(key: Any) -> Iterator[Any]:
    if isinstance(key, (tuple, frozenset)):
        for part in key:
            yield from _parts(part)
    elif not isinstance(key, (PLAIN, type)) and isinstance(getattr(key, "__dict__", None), dict):
        yield from vars(key).values()
    else:
        yield key


def _has_size(key: Any) -> bool:
    """Tell whether a key holds a number, or is a text with one."""
    return any(
        any(map(str.isdigit, part))
        if isinstance(part, str)
        else isinstance(part, int) and not isinstance(part, bool)
        for part in _parts(key)
    )
