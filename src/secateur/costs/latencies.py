"""A table of measured latencies of operations: JSON, to be saved, shared and looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from secateur.errors import ConfigError, FileError
from secateur.runtime.io import read_text, write_text
from secateur.runtime.measure import Clock, Latency, clock_of, processor, spread_of

SCHEMA = 1
ROUNDS = 5
"""Timings of each operation; those that are measured together take turns."""
SHORTEST = 0.001
"""Seconds that one timing takes at least."""


@dataclass
class Latencies:
    """Operation at its shapes → what it takes, on one device.

    Attributes:
        made_on: device, threads, clock and version of torch: other ones have other latencies.
        found: the operation as text → milliseconds, their middle half, and how many timings.
    """

    made_on: dict[str, str]
    found: dict[str, Latency] = field(default_factory=dict)

    @classmethod
    def here(cls, device: torch.device) -> Latencies:
        """Return an empty table for a device of this machine."""
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
        else:
            name = f"{device.type}, {processor()}"
        _, clock = clock_of(device)
        threads = str(torch.get_num_threads())
        made_on = {"device": name, "threads": threads, "clock": clock, "torch": torch.__version__}
        return cls(made_on)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Latencies:
        """Return the table in a file.

        Raises:
            FileError: there is none, or it is no table.
        """
        try:
            raw = json.loads(read_text(path))
            if raw["schema"] != SCHEMA:
                raise FileError(f"{path} has schema {raw['schema']!r}; this reads {SCHEMA}")
            made_on = {str(key): str(value) for key, value in raw["made_on"].items()}
            found = {str(key): _row(row) for key, row in raw["operations"].items()}
        except FileError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(f"{path} is no table of latencies: {error}") from error
        return cls(made_on, found)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table: whole, or the file is as it was before."""
        rows = {key: [x.median, x.low, x.high, x.runs] for key, x in sorted(self.found.items())}
        raw = {"schema": SCHEMA, "made_on": self.made_on, "operations": rows}
        write_text(Path(path), json.dumps(raw, indent=1) + "\n")

    def add(self, runs: Mapping[str, Callable[[], Any]], clock: Clock) -> None:
        """Measure operations, in turns."""
        timers = {}
        for key, run in runs.items():
            timer = Timer("run()", globals={"run": run}, timer=clock, num_threads=_threads())
            timer.timeit(1)
            timers[key] = timer, max(1, round(SHORTEST / max(timer.timeit(2).median, 1e-7)))
        times: dict[str, list[float]] = {key: [] for key in timers}
        for _ in range(ROUNDS):
            for key, (timer, repeats) in timers.items():
                times[key].append(1000 * timer.timeit(repeats).median)
        self.found |= {key: spread_of(values, _threads()) for key, values in times.items()}

    def check(self, here: Latencies, path: str) -> None:
        """Raise a ConfigError where this table is of another device, clock or version."""
        odd = [k for k in here.made_on if self.made_on.get(k) != here.made_on[k]]
        if odd:
            said = ", ".join(f"{k} {self.made_on.get(k)!r}, here {here.made_on[k]!r}" for k in odd)
            raise ConfigError(f"{path} was measured elsewhere: {said}; give another file")

    def __str__(self) -> str:
        head = ", ".join(f"{key} {value}" for key, value in self.made_on.items())
        rows = sorted(self.found.items(), key=lambda pair: -pair[1].median)
        return "\n".join([head, *(f"{1000 * x.median:>9.1f} µs  {key}" for key, x in rows)])


def _threads() -> int:
    return torch.get_num_threads()


def _row(row: Any) -> Latency:
    median, low, high, runs = row
    values = (float(median), float(low), float(high))
    if not all(isfinite(v) and v >= 0 for v in values) or type(runs) is not int:
        raise ValueError(f"{row!r} is no latency")
    return Latency(*values, runs, _threads())
