"""Results that nobody returns: what outlives a forward anywhere, or leaves it as numbers."""

from __future__ import annotations

import collections
import contextvars
import copy
import functools
import gc
import io
import json
import pickle
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc

PLACE: Any = None
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("aside")
QUEUE: queue.SimpleQueue[Any] = queue.SimpleQueue()
DEQUE: collections.deque[Any] = collections.deque(maxlen=1)
LOCAL = threading.local()
FIXED = torch.zeros(3, 6)
FILE = io.BytesIO()


class Net(nn.Module):
    """Two layers and a head, and one more layer whose results go where ``hand`` puts them."""

    last: Any = None

    def __init__(self, hand: Callable[[Any, Tensor], Any]):
        super().__init__()
        self.hand = hand
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head, self.aside = nn.Linear(16, 4), nn.Linear(16, 6)
        self.register_buffer("kept", torch.zeros(3, 6), persistent=False)

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).relu()
        given = self.hand(self, self.aside(h))
        out = self.head(self.second(h).relu())
        return out if given is None else (out, given)


def rebound(m: Any, aside: Tensor) -> None:
    global PLACE
    PLACE = aside


def of_a_function(m: Any, aside: Tensor) -> None:
    of_a_function.last = aside  # type: ignore[attr-defined]


def future(m: Any, aside: Tensor) -> Any:
    made: Any = torch.futures.Future()
    made.set_result(aside)
    return made


def later(m: Any, aside: Tensor) -> None:
    def steps() -> Any:
        yield aside.relu()

    m.last = steps()


def circle(m: Any, aside: Tensor) -> Any:
    made: list[Any] = [aside]
    made.append(made)
    return made


def saved(m: Any, aside: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(aside, file)
    return file


def raised(m: Any, aside: Tensor) -> Any:
    try:
        raise StopIteration(aside)
    except StopIteration as error:
        return error


HELD: dict[str, Callable[[Any, Tensor], Any]] = {
    "a global": rebound,
    "a class": lambda m, aside: setattr(type(m), "last", aside),
    "a function": of_a_function,
    "a context variable": lambda m, aside: VARIABLE.set(aside) and None,
    "a queue": lambda m, aside: QUEUE.put(aside),
    "a deque": lambda m, aside: DEQUE.append(aside.exp()),
    "a local of a thread": lambda m, aside: setattr(LOCAL, "last", aside),
    "a tensor of the module": lambda m, aside: None if FIXED.copy_(aside) is FIXED else aside,
    "a closure": lambda m, aside: setattr(m, "last", lambda: aside),
    "a partial": lambda m, aside: setattr(m, "last", functools.partial(torch.neg, aside)),
    "a generator": later,
    "the data of a buffer": lambda m, aside: setattr(m.kept, "data", aside.detach()),
    "an attribute of a parameter": lambda m, aside: setattr(m.head.weight, "last", aside),
    "a gradient": lambda m, aside: setattr(m.kept, "grad", aside),
    "a storage": lambda m, aside: setattr(m, "last", aside.untyped_storage()),
    "a set in a global": lambda m, aside: globals().__setitem__("PLACE", {aside}),
    "a future": future,
    "an exception": raised,
    "a list that holds itself": circle,
}
TOLD: dict[str, Callable[[Any, Tensor], Any]] = {
    "numbers in an attribute": lambda m, aside: setattr(m, "last", aside.tolist()),
    "text": lambda m, aside: json.dumps(aside.tolist()),
    "printed": lambda m, aside: f"{aside}",
    "represented": lambda m, aside: repr([aside]),
    "bytes": lambda m, aside: aside.numpy().tobytes(),
    "an array in a global": lambda m, aside: globals().__setitem__(
        "PLACE", np.asarray(aside.exp())
    ),
    "pickled": lambda m, aside: pickle.dumps(aside),
    "a file": saved,
    "written to a file": lambda m, aside: FILE.write(np.asarray(aside.exp()).tobytes()) and None,
    "whole numbers as text": lambda m, aside: str(aside.argmax(-1).tolist()),
    "a copy": lambda m, aside: setattr(m, "last", copy.deepcopy(aside)),
}


def pruned(hand: Callable[[Any, Tensor], Any]) -> Any:
    torch.manual_seed(0)
    return sc.prune(Net(hand).eval(), torch.randn(3, 8), 0.5)


@pytest.mark.parametrize("name", [*HELD, *TOLD])
def test_prune_when_results_are_found_anywhere_afterwards_then_they_keep_their_shape(
    name: str,
) -> None:
    result = pruned((HELD | TOLD)[name])
    assert result.model.aside.out_features == 6
    assert result.model.first.out_features == 8
    assert result.verification.passed


def dropped(m: Any, aside: Tensor) -> None:
    aside.exp()


def in_a_circle(m: Any, aside: Tensor) -> None:
    made: list[Any] = [aside]
    made.append(made)


def taken_again(m: Any, aside: Tensor) -> None:
    row = [aside]
    m.row = row
    m.row.pop()


def counted(m: Any, aside: Tensor) -> Any:
    return f"{tuple(aside.shape)[0]} {aside.dtype} {aside.device}"


@pytest.mark.parametrize("hand", [dropped, in_a_circle, taken_again, counted])
def test_prune_when_nobody_has_a_value_afterwards_then_its_layer_is_cut(
    hand: Callable[..., Any],
) -> None:
    gc.collect()
    assert pruned(hand).model.aside.out_features < 6


def test_analyze_when_numbers_leave_the_record_then_the_report_says_by_what() -> None:
    structure = sc.analyze(Net(TOLD["text"]).eval(), torch.randn(3, 8))
    assert "tolist hands out its numbers" in str(structure)


@pytest.mark.parametrize("place", ["attribute", "global"])
def test_prune_when_the_next_call_reads_what_is_left_anywhere_then_it_is_memory(
    place: str,
) -> None:
    class Remembers(Net):
        def forward(self, x: Tensor) -> Tensor:
            global PLACE
            before = PLACE if place == "global" else vars(self).get("before")
            h = self.second(self.first(x).relu())
            after = h if before is None else h + before
            PLACE = self.before = after.tanh()
            return self.head(after) + self.aside(h)[:, :4]

    global PLACE
    PLACE = None
    result = sc.prune(Remembers(dropped).eval(), torch.randn(3, 8), 0.5)
    assert result.model.second.out_features == 8


NO_TENSOR = {"a tensor of the module", "the data of a buffer", "a storage"}
LEFT = {name: hand for name, hand in HELD.items() if name not in NO_TENSOR}


@pytest.mark.parametrize("name", LEFT)
def test_prune_when_a_result_is_computed_with_an_unseen_width_then_it_is_compared(
    name: str,
) -> None:
    def wrong(m: Any, aside: Tensor) -> Any:
        return LEFT[name](m, aside * (2 if m.second.weight.stride(0) > 12 else 1))

    result = pruned(wrong)
    assert result.model.first.out_features == 16
    assert any("first stays whole" in note and "differs" in note for note in result.notes)
