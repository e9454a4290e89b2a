"""What a batch of calibration inputs is: how it is passed to a model, and which of it is padding.

A batch is what ``Example`` is, of many samples: a tensor, a tuple or list of positional arguments
(a namedtuple too), or a mapping of keyword arguments (a dict, a tokenizer's ``BatchEncoding``).
Anything else (a ``PackedSequence``, a graph, a dataclass) is the one argument; a tuple or a mapping
is one inside a tuple.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from secateur.errors import ConfigError, SecateurError
from secateur.types import call_arguments

from .no_batch import check_iterable, problem_of, shapes_of
from .ordinary import without_autocast

DATA_IS_TRUE = ("attention_mask", "decoder_attention_mask", "encoder_attention_mask")
PADDING_IS_TRUE = (
    "key_padding_mask",
    "src_key_padding_mask",
    "tgt_key_padding_mask",
    "memory_key_padding_mask",
)
"""Arguments that say which positions are padding: those of Hugging Face, and those of torch."""
OF_DECODERS = ("decoder_attention_mask", "tgt_key_padding_mask")
"""Those of a decoder's positions, where a model that takes them has its outputs."""
HIDDEN = -100.0
"""What is added to the score of a position that gets no attention: exp() of it is nothing."""
SHORTEN = "where the rest are labels, pass (x for x, y in loader), or loss=… of a batch"


def arguments(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of a batch, on the model's device.

    Tensors are copies, so that a model which writes to its inputs leaves the batch as it is.

    >>> arguments(nn.Identity(), (torch.zeros(1), {"k": 2}))
    ((tensor([0.]), {'k': 2}), {})
    """
    args, kwargs = call_arguments(batch)
    device = _device(model)
    seen: dict[int, Tensor] = {}
    return (
        tuple(_copied(x, device, seen) for x in args),
        {name: _copied(x, device, seen) for name, x in kwargs.items()},
    )


def call(
    model: nn.Module,
    batch: Any,
    index: int | None = None,
    within: AbstractContextManager[Any] | None = None,
) -> Any:
    """Return what a model makes of a batch, in whatever mode the model and torch are.

    Args:
        index: which batch it is, for the error.
        within: entered for the forward alone, and not while the batch is copied.

    Raises:
        ConfigError: the model refuses the batch; the message has torch's own.

    >>> call(nn.Linear(2, 1), torch.zeros(3, 2)).shape
    torch.Size([3, 1])
    """
    args, kwargs = arguments(model, batch)
    which = "this batch" if index is None else f"batch {index}"
    what = f"data: {which}, {shapes_of(batch)}"
    most = _most_positional(model)
    if most is not None and len(args) > most:
        raise ConfigError(
            f"{what}: {len(args)} inputs, and {type(model).__name__} takes {most}: {SHORTEN}"
        )
    try:
        with within or nullcontext():
            return model(*args, **kwargs)
    except (SecateurError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model's own code may raise anything
        hint = f" ({SHORTEN})" if len(args) > 1 else ""
        raise ConfigError(
            f"{what}: {type(model).__name__} refuses it: {type(error).__name__}: {error}{hint}"
            f"{without_autocast()}"
        ) from error


def padding(model: nn.Module, batch: Any, *, of_outputs: bool = False) -> list[Tensor]:
    """Return the masks of padding that a batch's own arguments carry, on the model's device.

    They are found by name (``DATA_IS_TRUE``, ``PADDING_IS_TRUE``), also where they are passed by
    position, and in a mapping that is itself an argument.  A mask of more than two dimensions says
    what attends to what, and is none of them.

    Args:
        of_outputs: only of the model's outputs' positions: a decoder's, where it has one.

    Returns:
        Bool tensors (batch, positions), True where there is data, in the order of the arguments.

    >>> padding(nn.Identity(), {"x": 0, "attention_mask": torch.tensor([[1, 1, 0]])})
    [tensor([[ True,  True, False]])]
    """
    args, kwargs = call_arguments(batch)
    names = [p.name for p in _parameters(model) if p.kind in POSITIONAL]
    named = [*zip(names, args, strict=False), *kwargs.items()]
    named += [("", arg) for arg in args[len(names) :]]
    device = _device(model)
    known: tuple[str, ...] = (*DATA_IS_TRUE, *PADDING_IS_TRUE)
    if of_outputs and any(p.name in OF_DECODERS for p in _parameters(model)):
        known = OF_DECODERS
    return [mask if device is None else mask.to(device) for mask in _masks(named, known)]


def checked(batches: Iterable[Any], what: str = "data") -> Iterator[Any]:
    """Yield batches as they are, each once it is seen to be one.

    Args:
        what: the name of the setting, for errors.

    Raises:
        ConfigError: this is no iterable of batches, or there are none; a batch is a text, a table
            or an array, or holds NaN.  The message says which batch, and what to give.

    >>> list(checked([]))
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: data: there are no batches in it
    """
    check_iterable(batches, what)
    index = -1
    for index, batch in enumerate(batches):
        if problem := problem_of(batch):
            raise ConfigError(f"{what}: batch {index} {problem}")
        yield batch
    if index < 0:
        used = f", or this {type(batches).__name__} is used up: it can be read once only"
        raise ConfigError(
            f"{what}: there are no batches in it{used if isinstance(batches, Iterator) else ''}"
        )


def held(batches: Iterable[Any], what: str = "data") -> list[Any]:
    """Return batches that several passes can read: the same ones, in the same order.

    A list or tuple holds them already.  What a generator or a loader gives is read once and copied:
    a loader shuffles anew in each pass, and a generator may fill one buffer again and again.
    ``itertools.islice(loader, 8)`` reads no more than 8.

    Raises:
        ConfigError: as ``checked``.

    >>> held(iter([torch.ones(1)]))
    [tensor([1.])]
    """
    found = checked(batches, what)
    if isinstance(batches, (list, tuple)):
        return list(found)
    return [_copied(batch, None, {}) for batch in found]


POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _parameters(model: nn.Module) -> list[inspect.Parameter]:
    return list(inspect.signature(model.forward).parameters.values())


def _most_positional(model: nn.Module) -> int | None:
    """Return how many positional arguments a model takes; None where there may be any number."""
    parameters = _parameters(model)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    return sum(p.kind in POSITIONAL for p in parameters)


def _device(model: nn.Module) -> torch.device | None:
    """Return where a model takes its inputs: where its first tensor is that has values."""
    tensors = (t for group in (model.parameters(), model.buffers()) for t in group)
    return next((t.device for t in tensors if not t.is_meta), None)


def _copied(x: Any, device: torch.device | None, seen: dict[int, Tensor]) -> Any:
    """Return a copy of an argument on a device; a tensor that is in it twice is so in the copy."""
    if isinstance(x, Tensor):
        if id(x) not in seen:
            there = x.detach().to(device or x.device, copy=True)
            seen[id(x)] = there.requires_grad_(x.requires_grad)
        return seen[id(x)]
    if isinstance(x, type | nn.Module):
        return x
    if callable(getattr(x, "to", None)) and not isinstance(x, UserDict):
        own: Any = x if isinstance(x, PackedSequence) else copy.copy(x)  # graphs move in place
        return own if device is None else own.to(device)
    if isinstance(x, MutableMapping):
        twin = copy.copy(x)
        for name in x:
            twin[name] = _copied(x[name], device, seen)
        return twin
    if isinstance(x, Mapping):
        return {name: _copied(inner, device, seen) for name, inner in x.items()}
    if isinstance(x, tuple | list):
        parts = [_copied(part, device, seen) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return _copied_fields(x, device, seen) if dataclasses.is_dataclass(x) else x


def _copied_fields(x: Any, device: torch.device | None, seen: dict[int, Tensor]) -> Any:
    """Return a copy of a dataclass, which may be frozen."""
    twin = copy.copy(x)
    for field in dataclasses.fields(x):
        if hasattr(x, field.name):
            object.__setattr__(twin, field.name, _copied(getattr(x, field.name), device, seen))
    return twin


def _masks(named: Iterable[tuple[str, Any]], known: tuple[str, ...]) -> Iterator[Tensor]:
    """Yield the masks among named values, True where there is data; those of known names."""
    for name, value in named:
        if isinstance(value, Mapping):
            yield from _masks(((str(key), inner) for key, inner in value.items()), known)
        elif not isinstance(value, Tensor) or name not in known:
            continue
        elif name in DATA_IS_TRUE and value.dim() == 2:
            yield value > HIDDEN if _is_added(value) else value != 0
        elif name in PADDING_IS_TRUE and value.dim() in (1, 2):
            data = value > HIDDEN if value.is_floating_point() else value == 0
            yield data if value.dim() == 2 else data[None]


def _is_added(mask: Tensor) -> bool:
    """Tell whether a mask is added to scores: 0 where there is data, and far below elsewhere."""
    return mask.is_floating_point() and not bool((mask > 0).any())
