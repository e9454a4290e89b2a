"""The demo from start to end: train, prune, fine-tune, check, measure, save."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import save
from torch import nn

import secateur
from secateur.report import Report, report_of
from secateur.runtime.forward import evaluating
from secateur.runtime.measure import Latency, latency
from secateur.types import Masks

from .digits import Digits, DigitsNet, accuracy, fit, load_digits, logits

MACS_KEPT = 0.30
"""The smaller network may do at most this share of the multiplications."""

POINTS_LOST = 1.0
"""After fine-tuning it may be at most this many percentage points less accurate."""

SAME = 1e-5
"""The outputs of the masked and the smaller network may differ by this much of the largest."""


@dataclass(frozen=True)
class Row:
    """One network of the demo: accuracy in %, size in bytes, latency of the test batch."""

    accuracy: float
    params: int
    macs: int
    file_bytes: int
    latency: Latency


@dataclass(frozen=True)
class Record:
    """What the demo measured, and in ``problems`` what it promised and did not keep."""

    seed: int
    torch_version: str
    cpus: int
    test_images: int
    train_seconds: float
    fine_tune_seconds: float
    macs_kept: float
    points_lost: float
    predictions_that_differ: int
    output_difference: float
    problems: tuple[str, ...]
    rows: dict[str, Row]
    report: Report = field(repr=False)


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of the model whose masked weights are zero."""
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep in masks.items():
            masked.get_parameter(name).mul_(keep)
    return masked


def run(
    out: Path,
    seed: int = 0,
    *,
    epochs: int = 20,
    fine_tune_epochs: int = 20,
    timings: int = 15,
    console: Console | None = None,
) -> Record:
    """Train, prune, fine-tune, check and save; return what was measured.

    Writes the smaller network and its plan to ``out``.
    """
    with _one_thread():
        return _run(out, seed, epochs, fine_tune_epochs, timings, console or Console())


def _run(
    out: Path, seed: int, epochs: int, fine_tune_epochs: int, timings: int, console: Console
) -> Record:
    data = load_digits(seed)
    images = data.test_images
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = DigitsNet()
    history: list[dict[str, float]] = []
    train_seconds = _fit_with_bar(console, "train", dense, data, epochs, 3e-3, seed, history)

    # A little more than asked for, because only whole channels can go.
    settings: dict[str, Any] = {"sparsity": 1 - MACS_KEPT + 0.01, "of": "macs"}
    result = secateur.prune(dense, images[:1], **settings)
    smaller, masked = result.model, masked_copy(dense, result.masks)
    console.print(result)
    before, after = logits(masked, images), logits(smaller, images)
    differ = int((before.argmax(1) != after.argmax(1)).sum())
    gap = float((before - after).abs().max() / before.abs().max())
    cut = copy.deepcopy(smaller)
    fine_tune_seconds = _fit_with_bar(
        console, "fine-tune", smaller, data, fine_tune_epochs, 2e-3, seed, history
    )

    models = {"dense": dense, "masked": masked, "smaller": cut, "fine-tuned": smaller}
    time_of = latency(models, images, runs=timings)
    rows = {}
    for name, model in models.items():
        rows[name] = Row(
            accuracy=accuracy(model, data),
            params=sum(parameter.numel() for parameter in model.parameters()),
            macs=(result.before if name in ("dense", "masked") else result.after).macs,
            file_bytes=len(save(model.state_dict())),
            latency=time_of[name],
        )
    checked = (differ, gap)
    seconds = (train_seconds, fine_tune_seconds)
    told = _curves(history, _share_removed(result), epochs)
    report = _report(result, dense, rows, told, settings, seed)
    record = _record(seed, len(images), seconds, checked, rows, report)
    result.save(out)
    console.print(_table(record))
    console.print(
        f"masked and smaller: the same digit on {len(images) - differ} of {len(images)} test "
        f"images, outputs differ by at most {gap:.0e} relative"
    )
    for problem in record.problems:
        console.print(f"[red]not as promised:[/red] {problem}")
    return record


def _share_removed(result: secateur.Result) -> float:
    sizes = {name: result.structure[name].size for name in result.plan.counts}
    return 1 - sum(result.plan.counts.values()) / sum(sizes.values())


def _curves(history: list[dict[str, float]], removed: float, epochs: int) -> list[dict[str, float]]:
    """Return the epochs before and after the cut as one curve."""
    return [
        {"step": step, "sparsity": removed if step > epochs else 0.0, **row}
        for step, row in enumerate(history, 1)
    ]


def _report(
    result: secateur.Result,
    dense: nn.Module,
    rows: Mapping[str, Row],
    history: list[dict[str, float]],
    settings: dict[str, Any],
    seed: int,
) -> Report:
    return report_of(
        result,
        dense,
        latency={"before": rows["dense"].latency, "after": rows["fine-tuned"].latency},
        scores={
            "before": {"accuracy, %": rows["dense"].accuracy},
            "after": {"accuracy, %": rows["fine-tuned"].accuracy},
        },
        history=history,
        config=settings,
        reproduce=f"secateur demo --seed {seed}",
    )


def _record(
    seed: int,
    images: int,
    seconds: tuple[float, float],
    checked: tuple[int, float],
    rows: dict[str, Row],
    report: Report,
) -> Record:
    """Return what was measured, held against what is promised."""
    macs_kept = rows["smaller"].macs / rows["dense"].macs
    points_lost = rows["dense"].accuracy - rows["fine-tuned"].accuracy
    return Record(
        seed=seed,
        torch_version=torch.__version__,
        cpus=os.cpu_count() or 1,
        test_images=images,
        train_seconds=seconds[0],
        fine_tune_seconds=seconds[1],
        macs_kept=macs_kept,
        points_lost=points_lost,
        predictions_that_differ=checked[0],
        output_difference=checked[1],
        problems=_problems(macs_kept, points_lost, *checked),
        rows=rows,
        report=report,
    )


def _problems(macs_kept: float, points_lost: float, differ: int, gap: float) -> tuple[str, ...]:
    found = []
    if macs_kept > MACS_KEPT:
        found.append(f"{macs_kept:.1%} of the MACs are left, more than {MACS_KEPT:.0%}")
    if points_lost > POINTS_LOST:
        found.append(f"{points_lost:.2f} points of accuracy were lost, more than {POINTS_LOST}")
    if differ or gap > SAME:
        found.append(
            f"the masked and the smaller network disagree on {differ} test images, and their "
            f"outputs differ by up to {gap:.0e} relative, more than {SAME:.0e}"
        )
    return tuple(found)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: tensors this small gain little from two, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit_with_bar(
    console: Console,
    label: str,
    model: nn.Module,
    data: Digits,
    epochs: int,
    rate: float,
    seed: int,
    history: list[dict[str, float]],
) -> float:
    """Train with a progress bar, note accuracy and loss of each epoch, and return the seconds."""
    start = time.perf_counter()
    columns = ("{task.description:<9}", BarColumn(), MofNCompleteColumn(), "epochs")
    loss_column = TextColumn("loss {task.fields[loss]:.3f}")
    with Progress(*columns, loss_column, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task(label, total=epochs, loss=float("nan"))

        def report(loss: float) -> None:
            bar.update(task, advance=1, loss=loss)
            with evaluating(model):
                history.append({"accuracy, %": accuracy(model, data), "loss": loss})

        fit(model, data, epochs=epochs, rate=rate, seed=seed, report=report)
    return time.perf_counter() - start


def _table(record: Record) -> Table:
    table = Table(title=f"digits, {record.test_images} test images")
    table.add_column("network")
    for heading in ("accuracy", "parameters", "MACs", "file", "latency"):
        table.add_column(heading, justify="right")
    for name, row in record.rows.items():
        table.add_row(
            name,
            f"{row.accuracy:.2f} %",
            f"{row.params:,}",
            f"{row.macs / 1e6:.2f} M",
            f"{row.file_bytes / 1024:.0f} KiB",
            str(row.latency),
        )
    table.caption = (
        f"latency: one batch of {record.test_images} on one CPU thread, median (middle half)"
    )
    return table
