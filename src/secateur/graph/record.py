"""Run a model's forward once and write down every operation that it executes.

The forward is the model's own, on the example inputs, in eval mode and without gradients, under a
``TorchDispatchMode``.  Large models, and those on ``torch.device("meta")``, run on fake tensors
that have shapes and no data; all others run for real, because that works for models that read
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from secateur.errors import TraceError
from secateur.replacements import in_plain_operations
from secateur.runtime.copying import not_its_own, original_parameters
from secateur.runtime.forward import (
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
from .fakes import lacks_values, standing_in
from .handed import handed_out
from .integers import origin_of, watched_functions
from .module_calls import module_calls
from .outputs import numbers_of, results_of, taken_back
from .program import Recording
from .recorder import Recorder
from .scripted import scripts_as_python

LARGE = 2**31  # bytes of parameters from which on the forward runs on fake tensors


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
        recorder = Recorder(recording, fake, apart, original_parameters(model))
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
    "Nested": (
        "nested tensors have sizes that nobody can follow: let the model that is pruned compute "
        "with padded ones"
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

    recorder: Recorder
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
        own = {recorder.values[x] for x in taken_back(model, out) if x in recorder.values}
        more, loose = handed_out(recording, recorder.held, recorder.placed, self._again, own=own)
        recording.outputs += more
        recording.aside = not recording.read_out.keys() >= {*more}
        return loose

    def _again(self) -> Recording:
        """Record another call behind it, as far as it comes: what it does not read is a result."""
        with _beside(self.recorder) as recording, suppress(Exception):  # of the user's own code
            self.run()
        return recording


@contextmanager
def _beside(recorder: Recorder) -> Iterator[Recording]:
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
    recorder: Recorder,
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
