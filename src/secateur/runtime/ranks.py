"""Processes that go the same way: what fails on one rank fails on all, and nobody waits in vain.

A rank that raises while others are in a collective leaves them there, or takes them down with it.
So before each collective of ours all ranks *meet*: in one number each they say where they are, and
whether they failed.  If one failed, all raise its error; if they are in different places, all say
so.  A call of the user's (``on_all_ranks``) meets once more when it is over.
"""

from __future__ import annotations

import builtins
import threading
import zlib
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from secateur import errors
from secateur.errors import DivergenceError, RankError, shortened

P = ParamSpec("P")
R = TypeVar("R")
Told = tuple[str, tuple[str, str] | None]
"""Where a rank is, and, if it failed, the class of its error and what it says."""
SETTLED = "_on_all_ranks"
"""The mark of an error that all ranks raise at the same place: when that was, in ``_here.turn``."""


class _Here(threading.local):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.turn = 0  # counts calls and meetings: an error that was settled before is new again


_here = _Here()


def world() -> int:
    """Return the number of processes, 1 where no process group was made.

    >>> world()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 where no process group was made.

    >>> rank()
    0
    """
    return dist.get_rank() if world() > 1 else 0


def place() -> torch.device:
    """Return where collectives of the process group take their tensors."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def on_all_ranks(function: Callable[P, R]) -> Callable[P, R]:
    """Let a call raise on all ranks what it raises on one; all ranks must make it.

    On the others the error is of the same class, if that is one of ours or of Python's; else it is
    a ``RankError``.  What stops a process, as an interrupt does, is not waited for.

    >>> @on_all_ranks
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(2)
    4
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if world() == 1:
            return function(*args, **kwargs)
        return _together(function.__qualname__, partial(function, *args, **kwargs))

    return run


def _together(name: str, function: Callable[[], R]) -> R:
    _here.calls.append(name)
    _here.turn += 1
    try:
        result = function()
        meet("the end")
        return result
    except Exception as error:  # whatever it is, the other ranks raise it too
        if getattr(error, SETTLED, None) != _here.turn:
            meet("the end", error)
        raise
    finally:
        _here.calls.pop()


def meet(where: str, failed: Exception | None = None) -> None:
    """Wait for all ranks, inside of a call that they make together; elsewhere do nothing.

    Args:
        where: this rank is in the call; the same on all.
        failed: what this rank raises.

    Raises:
        DivergenceError: on all ranks, when they are in different places, or one is gone.
        Exception: on all ranks, what the first of those raises that failed.
    """
    if not _here.calls or world() == 1:
        return
    _here.turn += 1
    at = f"{' > '.join(_here.calls)}: {where}"
    own = zlib.crc32(at.encode())
    try:
        said = torch.tensor([failed is not None, own, -own], dtype=torch.int64, device=place())
        dist.all_reduce(said, dist.ReduceOp.MAX)
        failures, most, least = said.tolist()
        if not failures and most == -least:
            return
        told: list[Any] = [None] * world()
        dist.all_gather_object(told, (at, None if failed is None else _named(failed)))
    except RuntimeError as lost:
        raise settled(
            DivergenceError(
                f"rank {rank()} waited for the others at {shortened(at, 300)}, and one is gone or "
                f"never came: all ranks must make this call. {lost}"
            )
        ) from failed or lost
    error = settled(_error(told, failed))
    raise error from (None if error is failed else failed)


def of_first(made: Callable[[], R], what: str) -> R:
    """Return what rank 0 makes, on all ranks that are in a call together; elsewhere one's own.

    For what differs from rank to rank though all do the same, such as a measured time.  What is
    made must be plain data.

    >>> of_first(lambda: 0.25, "a time")
    0.25
    """
    if not _here.calls or world() == 1:
        return made()
    told: list[Any] = [made() if rank() == 0 else None]
    meet(f"{what} of rank 0")
    dist.broadcast_object_list(told, src=0, device=place())
    return told[0]


def settled(error: Exception) -> Exception:
    """Mark an error as one that all ranks raise at the same place, now."""
    setattr(error, SETTLED, _here.turn)
    return error


def _named(error: Exception) -> tuple[str, str]:
    kind = type(error)
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{kind.__module__}.{kind.__qualname__}", shortened(str(text))


def _error(told: list[Told], own: Exception | None) -> Exception:
    """Return what all ranks raise, from what each has told."""
    failures = [(i, failure) for i, (_, failure) in enumerate(told) if failure is not None]
    if not failures:
        places = "; ".join(f"rank {i} is at {shortened(at, 400)}" for i, (at, _) in enumerate(told))
        return DivergenceError(
            f"ranks go different ways: {places}. All must make the same calls, in the same order, "
            "with the same settings"
        )
    first, (kind, text) = failures[0]
    if own is not None and _named(own) == (kind, text):
        return own
    made = _made(kind, f"{text} (on rank {first})")
    return made or RankError(f"{kind.removeprefix('builtins.')} on rank {first}: {text}")


def _made(kind: str, text: str) -> Exception | None:
    """Return an error of a class of ours or of Python's, if it can be made of a text."""
    module, _, name = kind.rpartition(".")
    home = {errors.__name__: errors, builtins.__name__: builtins}.get(module)
    found = getattr(home, name, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        return None
    try:
        return found(text)
    except TypeError:  # it is made of more than a text
        return None
