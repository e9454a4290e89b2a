"""Is a run's saved state one that this run could have been in?  Asked before anything changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from typing import Any, Protocol

import torch
from torch import Tensor

from secateur.errors import ConfigError, FileError, MaskError, SecateurError, did_you_mean
from secateur.types import Masks

from .decision import masks_of
from .targets import Selectable

SCHEMA = 1
NEEDED = ("config", "calls", "level", "notes", "keeps", "masks", "below", "statistics", "method")
RAW = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError)
"""What comes of numbers and tensors that are none of those expected."""


class Stateful(Protocol):
    """What has a state of its own in a run."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def check_form(state: Any) -> None:
    """Refuse what is no state of a run, or one of a newer version.

    Raises:
        FileError: it is not.
    """
    if not isinstance(state, Mapping):
        raise FileError(f"a {type(state).__name__} is no state of a pruning run")
    schema = state.get("schema", SCHEMA)  # states of before had none
    if type(schema) is not int or schema > SCHEMA:
        raise FileError(f"the state has schema {str(schema)[:20]}, newer than {SCHEMA}: upgrade")
    if missing := [key for key in NEEDED if key not in state]:
        raise FileError(f"the state of the run lacks {', '.join(map(repr, missing))}")
    kinds = {"config": Mapping, "keeps": Mapping, "masks": Mapping, "below": Mapping}
    kinds |= {"statistics": Mapping, "method": Mapping}
    for key, kind in kinds.items():
        if not isinstance(state[key], kind):
            raise _wrong(key, f"is a {type(state[key]).__name__}")
    if type(state["calls"]) is not int or not 0 <= state["calls"] < 1 << 63:
        raise _wrong("calls", "is no number of calls")
    level = state["level"]
    if type(level) not in (int, float) or not isfinite(level):
        raise _wrong("level", "is no score")
    notes = state["notes"]
    if not isinstance(notes, (list, tuple)) or not all(isinstance(n, str) for n in notes):
        raise _wrong("notes", "are no texts")
    if not _are_tables(state.get("allocation", {})):
        raise _wrong("allocation", "is none: by name, rows of numbers")
    peak, ever = state.get("peak", 0.0), state.get("ever", False)
    if type(peak) not in (int, float) or not isfinite(peak) or type(ever) is not bool:
        raise _wrong("peak", "and 'ever' are no learning rate and no answer")
    if type(state.get("whole", False)) is not bool:
        raise _wrong("whole", "is no answer")


def _are_tables(found: Any) -> bool:
    """Tell whether there are rows of finite numbers by name, and nothing else."""
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        return False
    lists = (list, tuple)
    if not all(isinstance(table, lists) for table in found.values()):
        return False
    rows = [row for table in found.values() for row in table]
    return all(
        isinstance(row, lists) and all(type(x) in (int, float) and isfinite(x) for x in row)
        for row in rows
    )


def check_decision(
    state: Mapping[str, Any],
    selectables: Sequence[Selectable],
    tensors: Mapping[str, Tensor],
    complete: Callable[[Masks], Masks],
) -> None:
    """Refuse masks that do not fit the model, or are not those that the decision makes.

    Args:
        state: of a run, in the right form.
        selectables: what this run decides on; the state's decisions are on the same.
        tensors: the parameters by name, whole.
        complete: what the method makes of the masks of a decision.

    Raises:
        MaskError: a mask does not fit.
        FileError: decisions, masks and the weights below them contradict each other.
        ConfigError: the weights below are of another type than the model's.
    """
    masks, keeps, below = state["masks"], state["keeps"], state["below"]
    _check_masks("masks", masks, tensors)
    before = state.get("before", {})
    _check_masks("before", {} if before is None else before, tensors)
    for name, keep in keeps.items():
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.ndim != 1:
            raise _wrong("keeps", f"has no decisions of {name!r}, one bool each")
    expected: Masks = {}
    if keeps:
        given = [keeps[each.name].cpu() for each in selectables]
        try:
            expected = complete(masks_of(selectables, given, tensors))
        except RAW as error:
            raise _wrong("keeps", f"does not fit the model: {error}") from error
    for name in masks.keys() ^ expected.keys():
        raise _wrong("masks", f"and 'keeps' contradict each other: one says nothing of {name!r}")
    for name, mask in expected.items():
        if not torch.equal(mask.cpu(), masks[name].cpu()):
            raise _wrong("masks", f"and 'keeps' contradict each other in {name!r}")
    for name, values in below.items():
        fits = isinstance(values, Tensor) and name in masks
        if not fits or values.shape != (int((~masks[name]).sum()),):
            raise _wrong("below", f"has other weights of {name!r} than its mask hides")
        if values.dtype != tensors[name].dtype:
            raise ConfigError(
                f"the state is of a model in {_short(values.dtype)}, and {name!r} is in "
                f"{_short(tensors[name].dtype)} here: bring the model into the type of then first"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def loaded_or_put_back(parts: Mapping[str, Stateful], state: Mapping[str, Any]) -> ExitStack:
    """Load the states of several parts; what is returned puts them back, unless it is told not to.

    Raises:
        FileError: one does not fit; all are as before.
    """
    stack = ExitStack()
    for part in parts.values():
        stack.callback(part.load_state_dict, _copied(part.state_dict()))
    try:
        for key, part in parts.items():
            _check_like(key, part.state_dict(), state[key])
            part.load_state_dict(_copied(state[key]))
    except SecateurError:
        stack.close()
        raise
    except RAW as error:
        stack.close()
        raise _wrong(key, f"does not fit this run: {type(error).__name__}: {error}") from error
    return stack


def _check_masks(key: str, masks: Any, tensors: Mapping[str, Tensor]) -> None:
    if not isinstance(masks, Mapping):
        raise _wrong(key, f"is a {type(masks).__name__}")
    for name, mask in masks.items():
        if name not in tensors:
            raise MaskError(f"there is no parameter {name!r}.{did_you_mean(name, tensors)}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise MaskError(f"the mask of {name!r} in the state is no bool tensor")
        if mask.shape != tensors[name].shape:
            shapes = tuple(mask.shape), tuple(tensors[name].shape)
            raise MaskError(f"the mask of {name!r} is {shapes[0]}, not {shapes[1]}")


def _check_like(key: str, ours: Any, theirs: Any) -> None:
    """Refuse tensors of another shape or kind where this run has one already."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in ours.keys() & theirs.keys():
            _check_like(f"{key}.{name}", ours[name], theirs[name])
    elif isinstance(ours, Tensor) and not (
        isinstance(theirs, Tensor)
        and theirs.shape == ours.shape
        and theirs.is_floating_point() == ours.is_floating_point()
    ):
        raise _wrong(key, "is no tensor of the shape that it has in this run")


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


def _wrong(key: str, why: str) -> FileError:
    return FileError(f"the state of the run is damaged: {key!r} {why}")
