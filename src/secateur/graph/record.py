"""Run a model's forward once and write down every operation that it executes.

The forward is the model's own, on the example inputs, in eval mode and without gradients, under a
``TorchDispatchMode``.  Large models, and those on ``torch.device("meta")``, run on fake tensors
that have shapes and no data; all others run for real, because that works for models that read
values.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.errors import TraceError
from secateur.replacements import in_plain_operations
from secateur.runtime.caches import keys_of
from secateur.runtime.copying import not_its_own, original_parameters
from secateur.runtime.forward import (
    Apart,
    asking_for_gradients,
    evaluating,
    in_training_mode,
    undisturbed,
)
from secateur.runtime.ordinary import ordinary, without_autocast
from secateur.runtime.said import said_by
from secateur.runtime.undo import in_mode
from secateur.types import Example, call_arguments

from .attributes import traced_attributes
from .calls import CallWatcher
from .fakes import lacks_values, shape_only, standing_in
from .handed import handed_out
from .integers import TracedInt, origin_of, watched_functions
from .module_calls import module_calls
from .origins import Attribute, Origin, Size
from .outputs import hides, left_in, numbers_of, results_of
from .program import Compared, Number, Op, Recording, Ref, Whole
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
    _check_plain(call_arguments(example))
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
        recording.said = dict(_said(model, recording))
        leaves = tree_flatten((args, kwargs))[0]
        recording.inputs = [recorder.ref(x).value for x in leaves if isinstance(x, Tensor)]
        recording.given |= {x for x in leaves if type(x) is int}
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        failed = stack.enter_context(module_calls(model, recorder))
        stack.enter_context(in_plain_operations(model))
        stack.enter_context(traced_attributes(model, recorder))
        stack.enter_context(watched_functions())
        stack.enter_context(scripts_as_python())
        try:
            forward = _Forward(recorder, model, args, kwargs)
            out, results = forward.run()
        except Exception as error:  # the user's forward may raise anything
            if apart.hidden:  # entries that it needs
                stack.close()
                return _record(model, example, fake, afresh=False)
            shapes = ", ".join(str(tuple(recording.shapes[i])) for i in recording.inputs)
            raise TraceError(
                f"the forward of {type(model).__name__} failed on the example inputs "
                f"({shapes or 'no tensors'}), in {''.join(failed) or 'the model'!r}: "
                f"{type(error).__name__}: {error}{without_autocast()}"
                f"{_hint(error, bool(recording.inputs))}"
            ) from error
        if recorder.read:
            raise not_its_own(model, recorder.read)
        if forward.results(out, results) or recording.unread():
            _record_training(forward)
    recording.stateful = apart.changed
    recording.given_floats = recorder.calls.given
    return recording


def _said(
    model: nn.Module, recording: Recording
) -> Iterator[tuple[tuple[str, str], tuple[int, int]]]:
    """Yield what layers say of sizes of their parameters."""
    for path, module in model.named_modules():
        for name, (held, dim, _) in said_by(module).items():
            own = recording.names.get(f"{path}.{held}" if path else held)
            if own in recording.parameters:
                yield (path, name), (recording.parameters[own], dim)


HINTS = {
    "HigherOrderOperator": (
        "operators that take functions (torch.cond, while_loop, flex_attention) hide what these "
        "do: let the model that is pruned say it in plain Python"
    ),
    "require grad": (
        "forwards are looked at without gradients: where one takes a gradient itself, let it do so "
        "under torch.enable_grad()"
    ),
}
"""What helps where a forward fails because it is recorded, by words of the error."""


def _hint(error: Exception, inputs: bool) -> str:
    hints = [hint for words, hint in HINTS.items() if words in str(error)]
    hints += [] if inputs else ["give example inputs that the model runs on"]
    return "".join(f"\n{hint}" for hint in hints)


def _check_plain(args: Any) -> None:
    if any(isinstance(x, Tensor) and x.is_nested for x in tree_flatten(args)[0]):
        raise TraceError(
            "the example inputs hold a nested tensor, whose sizes nobody can follow: give padded "
            "ones (nested.to_padded_tensor(0.0))"
        )


@dataclass(frozen=True)
class _Forward:
    """A call that is recorded, and may be again."""

    recorder: _Recorder
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self) -> tuple[Any, list[Tensor]]:
        """Record it; return what it returned, and the tensors therein."""
        with in_mode(self.recorder), in_mode(self.recorder.calls):
            out = self.model(*self.args, **self.kwargs)
            return out, [*results_of(self.model, out)]  # a generator runs its code now

    def results(self, out: Any, tensors: Sequence[Tensor]) -> bool:
        """Write down what is a result of the call; tell whether nothing reads other values."""
        recorder, model, recording = self.recorder, self.model, self.recorder.recording
        recording.outputs = [recorder.ref(x).value for x in tensors]
        for number in numbers_of(out):
            recorder.number(origin_of(number))
        left, arrays = left_in([*recorder.apart.new(), self.args, self.kwargs])
        state = {recording.owner[value] for value in recording.state}
        known = (recorder.values[x] for x in left if x in recorder.values)
        values = [value for value in known if recording.owner[value] not in state]
        closed = hides(model, out) or arrays
        more, loose = handed_out(recording, values, self._again, closed=closed)
        recording.outputs += more
        return loose

    def _again(self) -> Recording:
        """Record another call behind it, as far as it comes: what it does not read is a result."""
        with _beside(self.recorder) as recording, suppress(Exception):  # of the user's own code
            self.run()
        return recording


@contextmanager
def _beside(recorder: _Recorder) -> Iterator[Recording]:
    """Let what is recorded be another forward, whose tensors are numbered along."""
    recording = recorder.recording
    recorder.recording = recording.beside()
    try:
        yield recorder.recording
    finally:
        recorder.recording = recording


def _record_training(forward: _Forward) -> None:
    """Record a call in training mode, beside the first: it reads what that one does not."""
    recording = forward.recorder.recording
    with _beside(forward.recorder) as recording.training:
        try:
            with in_training_mode(forward.model), asking_for_gradients(forward.model):
                forward.results(*forward.run())
        except Exception as error:  # it may need targets, or more than one example for a batch norm
            recording.failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]


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
