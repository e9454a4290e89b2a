"""``secateur compare``: two models side by side, on the same inputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os.path import isdir  # which takes any text
from pathlib import Path

from rich.table import Table

from secateur.graph.cost import Cost, human
from secateur.runtime.measure import Latency, figure, latency, state_bytes
from secateur.runtime.perplexity import Perplexity
from secateur.shrinking.verify import Check
from secateur.structure import analyze

from .models import Loaded, load
from .options import NOTHING, Given
from .reading import Reading
from .show import AsJson, show


@dataclass(frozen=True)
class Measured:
    """What is compared of one model."""

    model: str
    cost: Cost
    bytes: int
    latency: Latency
    perplexity: Perplexity | None = None


def compare(
    dense: str,
    pruned: str,
    /,
    *,
    given: Given = NOTHING,
    runs: int = 15,
    threads: int | None = None,
    data: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    as_json: AsJson = False,
) -> None:
    """Compare two models: parameters, MACs, file size, latency with spread, and outputs.

    Parameters
    ----------
    dense
        A MODEL; --arg, --weights and --input are for this one, as in secateur inspect.
    pruned
        Another, most often a folder that secateur prune wrote. It gets the same inputs. Where the
        folder's own record would run code, its dense model is built as DENSE is.
    runs
        Timings of each model; the two take turns.
    threads
        CPU threads for the timings; by default as many as torch uses.
    data
        A text, or ids, to measure the perplexity of both on, as in secateur evaluate. Both read
        the tokens of DENSE's tokenizer.
    window
        Tokens that both read at once; by default as in secateur evaluate.
    stride
        How far apart windows begin, likewise.
    """
    one = load(dense, given)
    other = load(pruned, Given(input=given.input, trust=given.trust), dense=one.source)
    times = latency(
        {"dense": one.model, "pruned": other.model}, one.example, runs=runs, threads=threads
    )
    structure, smaller = analyze(one.model, one.example), analyze(other.model, one.example)
    seen: list[Perplexity] = []
    if data is not None:
        reading = Reading(data, window, stride)
        seen = [reading.of(each, one.source.model)[0] for each in (one, other)]
    before = Measured(dense, structure.cost(), size_of(dense, one), times["dense"], *seen[:1])
    after = Measured(pruned, smaller.cost(), size_of(pruned, other), times["pruned"], *seen[1:])
    check = Check(structure, one.example)
    gap = check.compare(other.model, check.expect(one.model), exact=False).difference
    facts = {"dense": asdict(before), "pruned": asdict(after), "output_difference": gap}
    show(_table(before, after, gap), facts, as_json=as_json)


def size_of(name: str, loaded: Loaded) -> int:
    """Return the bytes of the tensors: in files where there are some, without their headers."""
    files = list(Path(name).glob("*.safetensors")) if isdir(name) else []
    return sum(map(_tensor_bytes, files)) or state_bytes(loaded.model)


def _tensor_bytes(file: Path) -> int:
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    return file.stat().st_size - 8 - header


def _table(before: Measured, after: Measured, gap: float) -> Table:
    table = Table(
        caption=f"outputs differ by {gap:.1e} of the largest of each column, on the same inputs"
    )
    table.add_column("")
    for each in (before, after):
        table.add_column(each.model, justify="right", overflow="fold")
    table.add_column("change", justify="right")
    for label, old, new in (
        ("parameters", before.cost.params, after.cost.params),
        ("MACs", before.cost.macs, after.cost.macs),
        ("peak activations, B", before.cost.peak_bytes, after.cost.peak_bytes),
        ("weights, B", before.bytes, after.bytes),
    ):
        change = f"{new / old - 1:+.0%}" if old else ""
        table.add_row(label, human(old), human(new), change)
    if before.perplexity and after.perplexity:
        table.add_row(*_predicted(before.perplexity, after.perplexity))
    slow, fast = before.latency, after.latency
    faster = fast.beside(slow)
    times = f"{figure(slow.median)} ms", f"{figure(fast.median)} ms"
    table.add_row(f"latency on {slow.threads} threads", *times, faster)
    spreads = (each.middle_half for each in (slow, fast))
    table.add_row(f"  middle half of {slow.runs}", *spreads, "", style="dim")
    return table


def _predicted(dense: Perplexity, pruned: Perplexity) -> tuple[str, str, str, str]:
    values = f"{dense.value:.4g}", f"{pruned.value:.4g}"
    label = f"perplexity, windows of {dense.window}"
    return label, *values, f"{pruned.value / dense.value:.3f}x"
