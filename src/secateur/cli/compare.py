"""``secateur compare``: two models side by side, on the same inputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from secateur.graph.cost import Cost, human
from secateur.measure import Latency, latency, state_bytes
from secateur.shrink.verify import difference, run
from secateur.structure import analyze

from .models import Loaded, load
from .options import Arguments, AsJson, Inputs, Weights, show


@dataclass(frozen=True)
class Measured:
    """What is compared of one model."""

    cost: Cost
    bytes: int
    latency: Latency


def compare(
    dense: str,
    pruned: str,
    /,
    *,
    arg: Arguments = None,
    weights: Weights = None,
    input: Inputs = None,
    runs: int = 15,
    threads: int | None = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models: parameters, MACs, file size, latency with spread, and outputs.

    Parameters
    ----------
    dense
        A MODEL; --arg, --weights and --input are for this one, as in secateur inspect.
    pruned
        Another, most often a folder that secateur prune wrote. It gets the same inputs.
    runs
        Timings of each model; the two take turns.
    threads
        CPU threads for the timings; by default as many as torch uses.
    """
    one = load(dense, arg or (), weights, input or ())
    other = load(pruned, inputs=input or ())
    measured = measure({dense: one, pruned: other}, runs=runs, threads=threads)
    gap = difference(run(one.model, one.example), run(other.model, one.example))
    facts = {name: asdict(each) for name, each in measured.items()}
    show(
        _table(measured, gap),
        {"models": facts, "output_difference": gap},
        as_json=as_json,
    )


def measure(loaded: dict[str, Loaded], *, runs: int, threads: int | None) -> dict[str, Measured]:
    """Return costs and latencies of models on the inputs of the first."""
    example = next(iter(loaded.values())).example
    times = latency(
        {name: each.model for name, each in loaded.items()}, example, runs=runs, threads=threads
    )
    return {
        name: Measured(analyze(each.model, example).cost(), size_of(name, each), times[name])
        for name, each in loaded.items()
    }


def size_of(name: str, loaded: Loaded) -> int:
    """Return the bytes of the weights: of the file where there is one, else of the tensors."""
    files = list(Path(name).glob("*.safetensors")) if Path(name).is_dir() else []
    return sum(file.stat().st_size for file in files) or state_bytes(loaded.model)


def _table(measured: dict[str, Measured], gap: float) -> Table:
    table = Table(caption=f"outputs differ by {gap:.1e} of the largest, on the same inputs")
    table.add_column("")
    for name in measured:
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("change", justify="right")
    rows: dict[str, tuple[Any, ...]] = {
        "parameters": tuple(m.cost.params for m in measured.values()),
        "MACs": tuple(m.cost.macs for m in measured.values()),
        "peak activation bytes": tuple(m.cost.peak_bytes for m in measured.values()),
        "weights, bytes": tuple(m.bytes for m in measured.values()),
    }
    for label, (before, after) in rows.items():
        change = f"{after / before - 1:+.0%}" if before else ""
        table.add_row(label, human(before), human(after), change)
    before, after = (m.latency for m in measured.values())
    faster = f"{before.median / after.median:.2f}x as fast"
    table.add_row(f"latency, {before.threads} threads", str(before), str(after), faster)
    return table
