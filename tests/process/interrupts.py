"""``KeyboardInterrupt`` at a drawn line of the library, in a forked child, and what it changed."""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from secateur.masks.optimizers import sweep

from .process import changed, process_state, state_of

PACKAGE = f"{os.sep}secateur{os.sep}"
MOST = 300  # moments that are remembered of one place
PATIENCE = 240.0  # seconds for one child, on a busy machine

Job = Callable[[nn.Module], Any]
Judge = Callable[[nn.Module], list[str]]


class Lines:
    """Sees each line of the library run, in all threads that start meanwhile."""

    def __init__(self, stop: int = -1):
        self.stop = stop
        self.count = 0
        self.place = ""
        self.places: dict[tuple[str, int], list[int]] = {}

    def __enter__(self) -> Lines:
        threading.settrace(self._call)
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        self.off()

    def off(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _call(self, frame: Any, event: str, _: Any) -> Any:
        return self._line if PACKAGE in frame.f_code.co_filename else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            self.count += 1
            place = frame.f_code.co_filename.split(PACKAGE)[-1], frame.f_lineno
            moments = self.places.setdefault(place, [])
            if len(moments) < MOST:
                moments.append(self.count)
            if self.count == self.stop:
                self.place = f"{place[0]}:{place[1]}"
                self.off()
                raise KeyboardInterrupt
        return self._line


def drawn(build: Callable[[], nn.Module], job: Job, many: int, seed: int) -> Iterator[int]:
    """Yield moments at which to interrupt a job: each of its lines is as likely as another."""
    job(build())  # what is imported late is there by now
    with Lines() as lines:
        job(build())
    draw = random.Random(seed)
    places = sorted(lines.places)
    for place in draw.sample(places, min(many, len(places))):
        yield draw.choice(lines.places[place])
    gc.collect()


def interrupted(
    build: Callable[[], nn.Module], job: Job, moment: int, judge: Judge | None = None
) -> list[str]:
    """Return what an interrupt at a moment of a job has changed, with its place, or nothing.

    Args:
        judge: returns what is wrong with the model afterwards, where it need not be as it was.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            found = _in_child(build, job, moment, judge)
        except BaseException as error:
            found = [f"raised {error!r}"[:500]]
        os.write(writing, json.dumps(found).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    try:
        if not select.select([reading], [], [], PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
            return [f"hangs after moment {moment}"]
        with os.fdopen(os.dup(reading), "rb") as pipe:
            return list(json.loads(pipe.read()))
    finally:
        os.close(reading)
        os.waitpid(child, 0)


def _in_child(
    build: Callable[[], nn.Module], job: Job, moment: int, judge: Judge | None
) -> list[str]:
    model = build()
    gc.collect()
    _step()  # the first imports what adds to the filters of warnings
    held, process = state_of(model), process_state()
    lines = Lines(moment)
    try:
        with lines:
            job(model)
    except KeyboardInterrupt:
        pass
    else:
        return []  # it was over before
    gc.collect()
    _step()
    wrong = changed(held, state_of(model)) if judge is None else judge(model)
    del model  # one that was cut is watched as long as it is there
    gc.collect()
    _step()
    found = [*wrong, *changed(process, process_state())]
    if judge is not None:  # trainers seed them
        found = [each for each in found if not each.endswith("numbers")]
    alive = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    return [f"{lines.place}: {each}" for each in (*found, *alive)]


def _step() -> None:
    """Make a step of an optimizer: a hook whose finalizer was interrupted ends in the next one."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1).step()
    sweep()
