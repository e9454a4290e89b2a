"""What decides a run's numbers, as facts that JSON can say: functions and data that it is given.

A function is its code, the numbers and tensors that it reads by name or has by default, and the
code of those of the user's functions that it reads.  What does not count: text (paths differ
between machines), lists and objects (they change from call to call), numbers that it sets itself,
and the code of installed packages.
"""

from __future__ import annotations

import dis
import inspect
import math
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from .digests import digest_of

SHOWN = 12
"""Letters of a digest that are kept."""
INSTALLED = (*(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib")), "<frozen")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
Facts = dict[str, Any]


def facts_of_data(batches: Sequence[Any] | None) -> Facts:
    """Return what tells batches from others.

    >>> import torch
    >>> facts_of_data([torch.zeros(2)]) == facts_of_data([torch.ones(2)])
    False
    """
    if batches is None:
        return {"name": "none"}
    return {"name": f"{len(batches)} batches", "numbers": digest_of(list(batches))[:SHOWN]}


def facts_of(function: Callable[..., Any] | None) -> Facts:
    """Return what tells a function from others: its name, its code, and what it reads.

    >>> def of(limit):
    ...     return lambda model: limit
    >>> facts_of(of(1))["reads"], facts_of(of(1)) == facts_of(of(2))
    ({'limit': 1}, False)
    """
    if function is None:
        return {"name": "none"}
    own, reads = _below(function), Facts()
    while isinstance(own, partial):
        given = [(f"argument {i}", x) for i, x in enumerate(own.args)]
        reads = {**_kept([*given, *own.keywords.items()]), **reads}
        own = _below(own.func)
    if not isinstance(own, (FunctionType, MethodType)) and not isinstance(own, type):
        held = getattr(own, "__dict__", {}).items()  # numbers in an object count on
        reads |= _kept((name, x) for name, x in held if not isinstance(x, (bool, int, float)))
        own = type(own).__call__ if isinstance(type(own).__call__, FunctionType) else own
    own = own.__func__ if isinstance(own, MethodType) else own
    name = getattr(own, "__qualname__", type(own).__qualname__).rpartition("<locals>.")[2]
    if not isinstance(own, FunctionType):
        return {"name": f"{getattr(own, '__module__', '')}.{name}", "reads": reads}
    facts = {"name": name, "python": PYTHON, "code": digest_of(_steps(own.__code__))[:SHOWN]}
    return {**facts, "reads": {**_read_by(own, ()), **reads}}


def _below(function: Any) -> Any:
    """Return a function below the decorators of installed packages, as ``torch.no_grad()``."""
    while hasattr(function, "__wrapped__") and _installed(function):
        function = function.__wrapped__
    return function


def _installed(function: Any) -> bool:
    """Tell whether a function's code is no user's."""
    if not isinstance(function, FunctionType):
        return True
    ours = str(function.__globals__.get("__name__")).partition(".")[0] == "secateur"
    return ours or function.__code__.co_filename.startswith(INSTALLED)


def _steps(code: CodeType) -> list[Any]:
    """Return what a code does, whatever file and line it is in and whatever its docstring says."""
    return [
        (step.opname, _steps(step.argval) if isinstance(step.argval, CodeType) else step.argval)
        for step in dis.get_instructions(code)
    ]


def _read_by(function: FunctionType, within: tuple[CodeType, ...]) -> Facts:
    """Return what counts of what a function reads: of its module, around it, and by default."""
    codes = list(_codes(function.__code__))
    steps = [step for code in codes for step in dis.get_instructions(code)]
    sets = {step.argval for step in steps if step.opname in ("STORE_GLOBAL", "STORE_DEREF")}
    names = dict.fromkeys(step.argval for step in steps if step.opname == "LOAD_GLOBAL")
    found = {name: function.__globals__.get(name) for name in names}
    around = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found |= {name: cell.cell_contents for name, cell in around if _is_set(cell)}
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    found |= {each.name: each.default for each in parameters}
    return _kept(((n, x) for n, x in found.items() if n not in sets), (*within, *codes))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and those of the functions in it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _is_set(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _kept(values: Iterable[tuple[str, Any]], within: tuple[CodeType, ...] = ()) -> Facts:
    """Return what counts of named values.

    Args:
        within: the codes of the functions that read them, which may call each other.
    """
    found = Facts()
    for name, value in values:
        own = _below(value)
        if isinstance(value, (bool, int, float)):
            found[name] = value if math.isfinite(value) else repr(value)
        elif isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            found[name] = f"tensor {tuple(value.shape)} {digest_of(value)[:SHOWN]}"
        elif not _installed(own) and own.__code__ not in within:
            inner = _steps(own.__code__), _read_by(own, within)
            found[name] = f"code {PYTHON} {digest_of(inner)[:SHOWN]}"
    return found
