"""How a forward is run to look at it: in eval mode, leaving no trace, as exactly as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .alone import alone
from .caches import forget_properties, functions_apart, hide_sizes
from .drawing import Drawn, keep_generators
from .ordinary import make_ordinary, ordinary_mode
from .reach import CACHE, Place, is_foreign, reach
from .state import State
from .undo import Undo, in_mode
from .writes import Writes


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and back into its own mode afterwards."""
    with Undo() as undo:
        _keep_modes(model, undo)
        model.eval()
        yield


@contextmanager
def asking_for_gradients(model: nn.Module) -> Iterator[None]:
    """Let code that asks be told that gradients are on, where none is computed."""
    with Undo() as undo, torch.enable_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_leaf:
                undo(partial(parameter.requires_grad_, True))
                parameter.requires_grad_(False)
        yield


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in training mode, and back into its own mode afterwards."""
    with Undo() as undo:
        _keep_modes(model, undo)
        model.train()
        yield


def _keep_modes(model: nn.Module, undo: Undo) -> None:
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, mode in modes:
            module.training = mode

    undo(restore)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, in which it runs the operations that its code names."""
    with alone(), in_eval_mode(model), in_mode(_AsNamed()), _casts_anew():
        yield


@contextmanager
def _casts_anew() -> Iterator[None]:
    """Let autocast cast weights wherever they are read: casts that it remembers hide them."""
    with Undo() as undo:
        undo(partial(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()))
        torch.set_autocast_cache_enabled(False)
        torch.clear_autocast_cache()
        yield


class _AsNamed(TorchFunctionMode):
    """Changes nothing, but where a mode is on, torch's attention takes no fast path.

    The fast path hides the operations.  Its own flag is the process's, which other threads read
    too, and the function that reads it is kept by what it is, by ``torch.compile`` among others.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def random_kept() -> Iterator[None]:
    """Let operations draw from the generators of the process, and leave these as they were.

    torch's, on the CPU and all GPUs; Python's and numpy's are put back (see ``keep_generators``).
    """
    with Undo() as undo:
        keep_generators(undo, named=False)
        with in_mode(Drawn()):
            yield


@dataclass
class Apart:
    """What a trial is kept apart from: dicts and sets that the model's code fills as it goes.

    ``hidden`` tells whether entries of theirs are out of the trial's sight.  ``writes`` must see
    every operation before it runs, where it was not put on for the whole trial.  ``changed`` tells,
    when the trial is over, whether it would have left anything behind in the model; ``new`` yields
    what is there by now, and was not before.
    """

    caches: list[Any]
    hidden: bool
    writes: Writes
    new: Callable[[], Iterator[Any]]
    changed: bool = False


@contextmanager
def undisturbed(
    model: nn.Module, example: Any = None, *, afresh: bool = False, watched: bool = False
) -> Iterator[Apart]:
    """Let a forward change nothing that outlives it, and find nothing that a trial left behind.

    Every forward that the library makes for itself runs in here.  Afterwards tensors (assigned,
    written to in place or through ``.data``), gradients, attributes, containers, caches and random
    generators are as before: those of the model, of the objects that it holds, and of the globals,
    classes and closures that its code can reach.  ``inference_mode`` is off inside, as it hides
    operations and leaves tensors behind that cannot be trained.

    What others share with the model's code, such as the list that a hook fills, keeps what the
    forward did to it, but for tensors and traced numbers.

    Args:
        model: whose forward is run inside.
        example: what it is run on, which it may write to.
        afresh: hide what the model's own caches know of sizes: it is computed again.
        watched: the caller shows every operation to ``writes`` itself.
    """
    with alone(), Undo() as undo:
        state = State()
        state.keep(model, example)
        reached = reach(_code_of(model, state))
        places = [*state.attributes, *reached.places.values(), *reached.rebound.values()]
        for kind in {base for found in state.classes for base in found.__mro__}:
            if not is_foreign(kind.__module__):
                state.keep_class(kind)
                places += [Place(kind, name) for name in vars(kind)]
        state.keep(*(place.value for place in places), shared=True)
        state.keep_names(reached.rebound.values())
        filled = (place.value for place in places if place.name in reached.stored)
        caches = [value for value in filled if isinstance(value, (dict, set))]
        apart = Apart(caches, False, state.writes, state.new)
        undo(state.forget)
        undo(state.restore)
        undo(partial(_look, apart, state))
        keep_generators(undo, named=reached.draws)
        with ordinary_mode(), functions_apart([*reached.caches.values(), *places]):
            make_ordinary(model)
            _run_as_written(model)
            if afresh:
                forget_properties(model)
                hidden = [hide_sizes(cache, state.always.add) for cache in caches]
                apart.hidden = any(hidden)
            with nullcontext() if watched else in_mode(state.writes):
                yield apart


def _look(apart: Apart, state: State) -> None:
    apart.changed = apart.changed or state.changed()


def _run_as_written(model: nn.Module) -> None:
    """Let modules forget what ``model.compile()`` made of them; ``State`` puts it back."""
    for module in model.modules():
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None


def _code_of(model: nn.Module, state: State) -> frozenset[Any]:
    """Return the classes and functions from which the walk to all that a forward reaches starts."""
    code = {type(module) for module in model.modules()} | state.classes
    code |= {*_functions(place.value for place in state.attributes)}
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            if hooks:
                code |= {*_functions(hooks.values())}
    return frozenset(code)


def _functions(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the functions among values, without the objects that they are bound to."""
    for value in values:
        inner = getattr(value, "__func__", value)
        inner = getattr(inner, "__wrapped__", inner) if isinstance(inner, CACHE) else inner
        inner = getattr(inner, "__func__", inner)
        if isinstance(inner, FunctionType) and not is_foreign(inner.__module__):
            yield inner


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32, where GPUs would round the factors to TF32's 10 bits.

    Convolutions do that by default, and two that sum other channels then differ by 1e-3.
    """
    with alone(), Undo() as undo:
        for place, name, exact in _precision_flags():
            undo(partial(setattr, place, name, getattr(place, name)))
            setattr(place, name, exact)
        yield


def _precision_flags() -> list[tuple[Any, str, Any]]:
    """Return where torch keeps how float32 products are computed, and what exactly means there.

    Since torch 2.9 there are finer flags; where somebody has set these, the older ones raise.
    """
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    older: list[tuple[Any, str, Any]] = [(p, "allow_tf32", False) for p in (matmul, cudnn)]
    try:
        for place, name, _ in older:
            getattr(place, name)
    except RuntimeError:
        return [(p, "fp32_precision", "ieee") for p in (matmul, cudnn.conv, cudnn.rnn)]
    return older
