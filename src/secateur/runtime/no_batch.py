"""What is no batch of inputs, and no iterable of such: said at once, with what to give instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from secateur.errors import ConfigError
from secateur.types import call_arguments

from .values import numbers


def check_iterable(batches: Any, what: str = "data") -> None:
    """Refuse what is no iterable of batches, though Python may be able to iterate over it.

    Raises:
        ConfigError: it is one batch, a text, a table, a data set of single samples, a function, …

    >>> check_iterable(torch.zeros(512, 3))
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: data: a tensor (512, 3) is no list of batches: give x.split(32)
    """
    kind = type(batches).__name__
    if isinstance(batches, Tensor):
        problem = f"a tensor {tuple(batches.shape)} is no list of batches: give x.split(32)"
    elif isinstance(batches, Mapping):
        problem = f"a {kind} is one batch: give [batch], a list of them"
    elif _gives_samples(batches):
        problem = f"a {kind} gives single samples: give DataLoader(it, batch_size=32)"
    elif foreign := _text(batches) or _foreign(batches):
        problem = f"it {foreign}, in batches"
    elif isinstance(batches, nn.Module) or not _is_iterable(batches):
        called = "call it" if callable(batches) else "give a list of batches"
        problem = f"{kind} is no iterable of batches: {called}"
    else:
        return
    raise ConfigError(f"{what}: {problem}")


def problem_of(batch: Any) -> str:
    """Say what is wrong with a batch, and what to do; "" if nothing is.

    >>> problem_of("a text")
    'is a text (str): give the tensors that the tokenizer makes of it'
    """
    args, kwargs = call_arguments(batch)
    named = {**{f"input {i}": x for i, x in enumerate(args)}, **kwargs}
    if len(args) == 1 and args[0] is batch:
        named = {"": batch}
    if not named:
        return f"is an empty {type(batch).__name__}"
    tensors = any(map(_may_be_tensor, named.values()))
    for name, value in named.items():
        if problem := _foreign(value) or ("" if tensors else _text(value)):
            return f"holds {name!r}, which {problem}" if name else problem
    if not tensors:
        kinds = ", ".join(sorted({type(value).__name__ for value in named.values()}))
        return (
            f"holds no tensor ({kinds}): give torch.tensor(…) of it; a tokenizer returns tensors "
            'where it is called with return_tensors="pt"'
        )
    for name in _with_nan(named):
        which = f" in {name!r}" if name else ""
        return f"holds NaN{which}, and so would every statistic: leave such samples out"
    return ""


def shapes_of(batch: Any) -> str:
    """Say what a batch holds, in a few words.

    >>> shapes_of((torch.zeros(2, 3), None)), shapes_of({"x": torch.zeros(1)})
    ('(2, 3), NoneType', 'x (1,)')
    """
    args, kwargs = call_arguments(batch)
    return ", ".join([*map(_shape, args), *(f"{name} {_shape(x)}" for name, x in kwargs.items())])


def _shape(x: Any) -> str:
    if not isinstance(x, Tensor):
        return type(x).__name__
    return "nested tensor" if x.is_nested else str(tuple(x.shape))


def _is_iterable(x: Any) -> bool:
    return isinstance(x, Iterable) or hasattr(type(x), "__getitem__")


def _gives_samples(x: Any) -> bool:
    own = isinstance(x, Dataset) and not isinstance(x, IterableDataset)
    return own or _comes_from(x, "datasets")


def _comes_from(value: Any, *libraries: str) -> bool:
    """Tell whether an object's class is defined in a library, which need not be installed."""
    return type(value).__module__.partition(".")[0] in libraries


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        return ""
    return f"is a text ({type(value).__name__}): give the tensors that the tokenizer makes of it"


def _foreign(value: Any) -> str:
    """Say what an array, a table or a picture is, and what to give in its place; "" otherwise."""
    kind = type(value).__name__
    if _comes_from(value, "numpy") and value.ndim:
        return f"is a numpy {kind}: give torch.from_numpy(it)"
    if _comes_from(value, "pandas", "polars", "pyarrow"):
        return f"is a table ({kind}): give torch.tensor(it.to_numpy())"
    if _comes_from(value, "PIL"):
        return f"is a picture ({kind}): give the tensor that training makes of it"
    return ""


def _may_be_tensor(value: Any) -> bool:
    """Tell whether a value is a tensor, or something that may hold one."""
    if isinstance(value, tuple | list):
        return any(map(_may_be_tensor, value))
    return not isinstance(value, str | bytes | int | float | complex | None)


def _with_nan(named: Mapping[str, Any]) -> list[str]:
    """Return which inputs hold NaN; infinite numbers are what some masks are made of."""
    lows = {}
    for name, x in named.items():
        if isinstance(x, Tensor) and x.layout is torch.strided and not (x.is_nested or x.is_meta):
            real = torch.view_as_real(x) if x.is_complex() else x
            if real.is_floating_point() and real.numel():
                wide = real.float() if real.itemsize == 1 else real
                lows[name] = wide.detach().aminmax().min  # NaN if any is
    return [n for n, low in zip(lows, numbers(lows.values()), strict=True) if low != low]
