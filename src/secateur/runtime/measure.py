"""What is measured by running a model: how long a forward takes, and the bytes of its weights."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import thread_time

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.benchmark.utils.timer import timer as wall

from secateur.errors import ConfigError
from secateur.types import Example, call_arguments

from .forward import in_eval_mode

SHORTEST = 0.005
"""Seconds that one timing takes at least: faster forwards are repeated and averaged."""


Clock = Callable[[], float]
"""Seconds from some moment on."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward: the median of ``runs`` timings and their middle half."""

    median: float
    low: float
    high: float
    runs: int
    threads: int

    def __str__(self) -> str:
        return f"{figure(self.median)} ms ({self.middle_half})"

    @property
    def middle_half(self) -> str:
        return f"{figure(self.low)} … {figure(self.high)}"

    def beside(self, dense: Latency) -> str:
        """Say how fast this is beside another, and where no difference can be told.

        >>> Latency(1.0, 0.9, 1.1, 15, 1).beside(Latency(2.0, 1.9, 2.2, 15, 1))
        '2.00× as fast'
        >>> Latency(1.9, 0.9, 2.1, 15, 1).beside(Latency(2.0, 1.9, 2.2, 15, 1))
        '1.05× as fast, within the spread'
        """
        apart = self.high < dense.low or dense.high < self.low
        return f"{dense.median / self.median:.2f}× as fast{'' if apart else ', within the spread'}"


def figure(value: float) -> str:
    """Return a number with three digits, or all before the point.

    >>> figure(0.12345), figure(1234.5)
    ('0.123', '1234')
    """
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def clock_of(device: torch.device) -> tuple[Clock, str]:
    """Return what tells time on a device, and its name.

    On a CPU with one thread it is processor time, which does not count what others use it for.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return thread_time, "processor time"
    return wall, "wall time"


CPUINFO = Path("/proc/cpuinfo")
CALLED = ("model name", "cpu model", "cpu", "hardware", "uarch")
"""What lines of it call the processor: x86, MIPS, POWER, older ARM, RISC-V."""


def processor() -> str:
    """Return what the processor of this machine is called, as far as the system tells.

    >>> len(processor()) > 0
    True
    """
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    facts: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        facts.setdefault(key.strip().lower(), value.strip())
    machine = platform.machine()
    arm = [facts[key] for key in ("cpu implementer", "cpu part") if facts.get(key)]
    named = [
        *map(facts.get, CALLED),
        " ".join([machine, *arm]) if arm else "",
        platform.processor(),
    ]
    return next(filter(None, named), machine or "unknown")


def spread_of(values: Sequence[float], threads: int) -> Latency:
    """Return the median and the middle half of some timings in milliseconds."""
    quartiles = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    low, middle, high = quartiles.tolist()
    return Latency(middle, low, high, len(values), threads)


def latency(
    models: Mapping[str, nn.Module],
    example: Example,
    *,
    runs: int = 15,
    threads: int | None = None,
    clock: Clock = wall,
) -> dict[str, Latency]:
    """Time a forward of each model in eval mode, without gradients.

    The models take turns, so that a busy moment of the machine hits all of them.

    Args:
        models: name → model; all take the example.
        example: a tensor, a tuple of positional or a dict of keyword arguments.
        runs: timings of each model, after one that warms up.
        threads: of torch, on a CPU; None is what torch uses now.
        clock: what tells time, by default the clock on the wall.

    Raises:
        ConfigError: there are no runs or threads.

    >>> found = latency({"a": nn.Linear(8, 8)}, torch.zeros(1, 8), runs=3)["a"]
    >>> 0 < found.low <= found.median <= found.high, found.runs
    (True, 3)
    """
    if runs < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"runs={runs}, threads={threads}: at least one of each is needed")
    args, kwargs = call_arguments(example)
    threads = threads or torch.get_num_threads()
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        timers: dict[str, tuple[Timer, int]] = {}
        for name, model in models.items():
            stack.enter_context(in_eval_mode(model))
            timer = Timer(
                "model(*args, **kwargs)",
                globals={"model": model, "args": args, "kwargs": kwargs},
                num_threads=threads,
                timer=clock,
            )
            timer.timeit(1)
            timers[name] = timer, max(1, round(SHORTEST / timer.timeit(1).median))
        for _ in range(runs):
            for name, (timer, repeats) in timers.items():
                times[name].append(1000 * timer.timeit(repeats).median)
    return {name: spread_of(values, threads) for name, values in times.items()}


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and saved buffers; tied ones count once.

    >>> state_bytes(nn.Linear(8, 4))
    144
    """
    state = model.state_dict(keep_vars=True).values()
    tensors = {id(t): t for t in state if isinstance(t, torch.Tensor)}
    return sum(t.numel() * t.element_size() for t in tensors.values())
