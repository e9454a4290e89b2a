"""Run a model's forward once and write down every operation that it executes.

The forward is the model's own, on the example inputs, in eval mode and without gradients, under a
``TorchDispatchMode``.  Large models, and those on ``torch.device("meta")``, run on fake tensors
that have shapes and no data; all others run for real, because that works for models that read
values.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.errors import TraceError
from secateur.replacements import in_plain_operations
from secateur.runtime.alone import in_trial
from secateur.runtime.caches import forget_unnamed, keys_of
from secateur.runtime.copying import not_its_own, original_parameters
from secateur.runtime.forward import Apart, evaluating, in_training_mode, undisturbed
from secateur.runtime.ordinary import ordinary, without_autocast
from secateur.runtime.undo import Undo, in_mode, unhook
from secateur.types import Example, call_arguments

from .attributes import traced_attributes
from .calls import CallWatcher
from .fakes import lacks_values, shape_only, standing_in
from .integers import TracedInt, origin_of, watched_functions
from .origins import Attribute, Origin, Size
from .outputs import results_of
from .program import Compared, ModuleCall, Number, Op, Recording, Ref, Whole
from .scripted import scripts_as_python

HERE = f"{Path(__file__).parent}{os.sep}"
LARGE = 2**31  # bytes of parameters from which on the forward runs on fake tensors


class _Recorder(TorchDispatchMode):
    def __init__(self, recording: Recording, fake: bool, apart: Apart, others: dict[int, str]):
        super().__init__()
        self.recording = recording
        self.fake = fake
        self.others = others  # names of parameters that a copy must not read, by their ids
        self.read: set[str] = set()  # of those
        self.apart = apart
        self.running: dict[int, nn.Module | None] = {0: None}  # calls of modules, by their number
        self.values: Any = WeakTensorKeyDictionary()
        self.modules: list[str] = [""]
        self.calls = CallWatcher(lambda tensor: self.values.get(tensor), self)

    def new(self, tensor: Tensor, owner: int | None = None) -> int:
        """Give a tensor its number (a new one when it was written to in place)."""
        r = self.recording
        value = len(r.shapes)
        r.shapes.append(tuple(map(int, tensor.shape)))
        r.itemsize.append(tensor.element_size())
        if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
            r.integers.add(value)
        r.owner.append(value if owner is None else r.owner[owner])
        self.values[tensor] = value
        return value

    def decision(self, origin: Origin, other: Origin, equal: bool) -> None:
        """Write down that the running module compares an integer with another."""
        term = origin.single
        if term and len(term.powers) == 1 and isinstance(term.powers[0][0], Attribute):
            self.recording.decisions.setdefault(self.modules[-1], set()).add(term.powers[0][0])
        if origin.factors and origin != other and (other.factors or (equal and _tells(other))):
            found = Compared(origin, other, equal, self.modules[-1], _line())
            self.recording.compared.append(found)

    def number(self, origin: Origin) -> None:
        """Write down that the code computes a number, and no size, from an integer."""
        if origin.factors:
            self.recording.numbers.append(Number(origin, self.modules[-1], _line()))

    def spent(self, attribute: Attribute) -> None:
        """Write down that the code computes a number from a float, which must stay."""
        self.recording.spent.add(attribute)

    def whole(self, tensor: Tensor, dim: int, bound: int) -> None:
        """Write down that all of a dimension is asked for, by a bound."""
        if (value := self.values.get(tensor)) is not None:
            found = Whole(value, dim, int(bound), origin_of(bound), self.modules[-1], _line())
            self.recording.whole.append(found)

    def length(self, tensor: Tensor) -> None:
        """Write down that ``len`` was asked, whose answer tells no more where it is from."""
        if (value := self.values.get(tensor)) is not None:
            self.recording.lengths.append(Origin.of(Size(value, 0)))

    def hashed(self, integer: TracedInt) -> None:
        """Remember which call of a module may store a key."""
        integer.call = next(reversed(self.running))

    def outlived(self, key: TracedInt) -> bool:
        """Tell whether a key was stored by a call that is over, or in what is there for longer.

        A container that a call makes for itself may compare the sizes of several tensors; a cache
        would hand what one layer computed to the next.
        """
        if key.call not in self.running:
            return True
        owned = (held for m in self.running.values() if m for held in (vars(m), vars(type(m))))
        found = (v for held in owned for v in held.values() if isinstance(v, (dict, set)))
        return any(key is part for part in keys_of((*self.apart.caches, *found)))

    def ref(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            if (value := self.values.get(x)) is None:
                self.read |= {self.others[id(x)]} if id(x) in self.others else set()
                value = self.new(x)
            return Ref(value)
        if isinstance(x, (list, tuple)):
            return type(x)([self.ref(part) for part in x])
        return x

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        stand_in = shape_only(func) if self.fake else None
        out = self.apart.writes.run(func, stand_in or func, args, kwargs)
        if func.namespace == "prim":
            return out
        if type(out) is int:  # read from a tensor
            self.recording.given.add(out)
        seen = tuple(self.ref(a) for a in args)
        options = {k: self.ref(v) for k, v in kwargs.items()}
        tensors = (
            [out] if isinstance(out, Tensor) else out if isinstance(out, (list, tuple)) else []
        )
        outputs, updates = [], None
        for i, tensor in enumerate(t for t in tensors if isinstance(t, Tensor)):
            mine, written = _aliases(func, i, seen)
            value = self.new(tensor, mine)
            if written and mine is not None:
                updates = (mine, value)
            outputs.append(Ref(value))
        line = _line()
        call = self.calls.current
        self.recording.ops.append(
            Op(func, seen, options, tuple(outputs), self.modules[-1], line, call, updates)
        )
        return out


def _tells(literal: Origin) -> bool:
    """Tell whether to find a size equal to a number says something of it.

    Code that asks for 0 or 1 takes a shorter way to the same result.  What was found to be larger
    may well stay so; whether it does is seen when the smaller model runs.
    """
    return any(term.coefficient not in (-1, 0, 1) for term in literal.terms)


def _aliases(func: Any, i: int, seen: tuple[Any, ...]) -> tuple[int | None, bool]:
    """Return the value that output i shares memory with, and whether it was written to."""
    if func.is_view and seen and isinstance(seen[0], Ref):  # of split, the schema tells nothing
        return seen[0].value, False
    returns = func._schema.returns
    info = returns[min(i, len(returns) - 1)].alias_info if returns else None
    if info is None:
        return None, False
    for argument, given in zip(func._schema.arguments, seen, strict=False):
        if argument.alias_info is not None and isinstance(given, Ref):
            shared = argument.alias_info.before_set & info.before_set
            if shared or argument.alias_info.before_set == info.before_set:
                return given.value, argument.alias_info.is_write
    return None, False


def _line() -> str:
    """Return ``file:line`` of the nearest frame outside of torch and of this folder."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and not file.startswith(HERE):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@contextmanager
def _module_calls(model: nn.Module, recorder: _Recorder) -> Iterator[list[str]]:
    """Write down each module's forward; yield the path of the one that failed."""
    paths = {id(module): path for path, module in model.named_modules()}
    stack = recorder.modules
    entered: list[tuple[int, dict[int | str, int]]] = []
    failed: list[str] = []
    numbers = itertools.count(1)

    def values(arguments: Any) -> dict[int | str, int]:
        tensors = {key: x for key, x in arguments if isinstance(x, Tensor)}
        return {key: recorder.values[x] for key, x in tensors.items() if x in recorder.values}

    def enter(module: nn.Module, arguments: Any) -> None:
        if not in_trial():  # another thread's
            return
        stack.append(paths.get(id(module), stack[-1]))
        recorder.running[next(numbers)] = module
        entered.append((len(recorder.recording.ops), values(enumerate(arguments))))

    def leave(module: nn.Module, _: Any, *rest: Any) -> None:
        if not in_trial():
            return
        *keywords, out = rest  # torch leaves them out when the forward failed
        start, inputs = entered.pop()
        if sys.exc_info()[0] is not None and not failed:
            failed.append(stack[-1])
        path = stack.pop()
        recorder.running.popitem()
        for cache in recorder.apart.caches:
            forget_unnamed(cache)
        if paths.get(id(module)) is not None:
            ran = range(start, len(recorder.recording.ops))
            inputs |= values(keywords[0].items() if keywords else ())
            recorder.recording.calls.append(
                ModuleCall(path, inputs, _returned(out, recorder.values), ran)
            )

    with Undo() as undo:
        undo(partial(_without, enter, leave))
        register_module_forward_pre_hook(enter)
        register_module_forward_hook(leave, with_kwargs=True, always_call=True)
        yield failed


def _without(enter: Any, leave: Any) -> None:
    """Take the two functions out of the hooks of all modules."""
    hooks: Any = module_hooks
    unhook(hooks._global_forward_pre_hooks, enter)
    # torch forgets these two, and torch.compile then warns of a global hook for ever
    options = hooks._global_forward_hooks_with_kwargs, hooks._global_forward_hooks_always_called
    unhook(hooks._global_forward_hooks, leave, *options)


def _returned(out: Any, values: Any) -> Any:
    """Return what a module returned, with a reference for each tensor that was recorded."""
    if isinstance(out, Tensor):
        return Ref(values[out]) if out in values else "other"
    if type(out) in (tuple, list):
        return tuple(_returned(part, values) for part in out)
    if isinstance(out, dict):
        return {key: _returned(part, values) for key, part in out.items()}
    return None if out is None else "other"


def runs_for_real(model: nn.Module) -> bool:
    """Tell whether a recorded forward computes with the model's own values, and not with fakes."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return False
    return sum(p.numel() * p.element_size() for p in model.parameters()) <= LARGE


def record(model: nn.Module, example: Example) -> Recording:
    """Return the operations of one forward of the model on the example inputs.

    Raises:
        TraceError: the forward failed; the message has its error, and the model is as before.
        CopyError: it is a copy, and computes with parameters of its original.
    """
    if runs_for_real(model):
        return _record(model, example, fake=False)
    absent = any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    try:
        return _record(model, example, fake=True)
    except TraceError as error:
        if not absent:  # a forward that reads values can have them
            return _record(model, example, fake=False)
        if not lacks_values(error.__cause__):
            raise
        raise TraceError(
            f"{error}\nThis forward reads values, which tensors on meta do not have: analyse the "
            "model with weights, or one of a smaller config, whose groups are alike"
        ) from error


def _record(
    model: nn.Module,
    example: Example,
    fake: bool,
    afresh: bool = True,
) -> Recording:
    recording = Recording()
    with ExitStack() as stack:
        apart = stack.enter_context(undisturbed(model, example, afresh=afresh, watched=True))
        recorder = _Recorder(recording, fake, apart, original_parameters(model))
        named = [*model.named_parameters(remove_duplicate=False)]
        buffers = [*model.named_buffers(remove_duplicate=False)]
        inside = stack.enter_context(standing_in(model)) if fake else ordinary
        args, kwargs = tree_map(
            lambda x: inside(x) if isinstance(x, Tensor) else x, call_arguments(example)
        )
        for table, entries in ((recording.parameters, named), (recording.buffers, buffers)):
            _number(recorder, recording, table, entries, inside)
        recording.inputs = [
            recorder.ref(x).value for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)
        ]
        recording.given |= {x for x in tree_flatten((args, kwargs))[0] if type(x) is int}
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        failed = stack.enter_context(_module_calls(model, recorder))
        stack.enter_context(in_plain_operations(model))
        stack.enter_context(traced_attributes(model, recorder))
        stack.enter_context(watched_functions())
        stack.enter_context(scripts_as_python())
        try:
            with in_mode(recorder), in_mode(recorder.calls):
                out = model(*args, **kwargs)
        except Exception as error:  # the user's forward may raise anything
            if apart.hidden:  # entries that it needs
                stack.close()
                return _record(model, example, fake, afresh=False)
            shapes = ", ".join(str(tuple(recording.shapes[i])) for i in recording.inputs)
            raise TraceError(
                f"the forward of {type(model).__name__} failed on the example inputs "
                f"({shapes or 'no tensors'}), in {''.join(failed) or 'the model'!r}: "
                f"{type(error).__name__}: {error}{without_autocast()}"
            ) from error
        recording.outputs = [recorder.ref(x).value for x in results_of(model, out)]
        if recorder.read:
            raise not_its_own(model, recorder.read)
        if recording.unread():
            _record_training(recorder, model, args, kwargs)
    recording.stateful = apart.changed
    recording.given_floats = recorder.calls.given
    return recording


def _record_training(
    recorder: _Recorder, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Record a forward in training mode, beside the first: it reads what that one does not."""
    recording = recorder.recording
    recorder.recording = recording.training = recording.beside()
    try:
        with in_training_mode(model), in_mode(recorder), in_mode(recorder.calls):
            out = model(*args, **kwargs)
        recorder.recording.outputs = [recorder.ref(x).value for x in results_of(model, out)]
    except Exception as error:  # it may need targets, or more than one example for each batch norm
        recording.failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    finally:
        recorder.recording = recording


def _number(
    recorder: _Recorder,
    recording: Recording,
    table: dict[str, int],
    entries: Sequence[tuple[str, Tensor]],
    inside: Callable[[Tensor], Tensor],
) -> None:
    first: dict[int, str] = {}
    for name, tensor in entries:
        if id(tensor) in first:
            recording.names[name] = first[id(tensor)]
            continue
        first[id(tensor)] = recording.names[name] = name
        table[name] = recorder.new(inside(tensor))
