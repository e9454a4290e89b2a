"""``secateur demo``: from training to an open report in two minutes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from secateur.shrinking.record import Source

from .models import remember
from .status import DONE, FAILED

SOURCE = Source("secateur.demo.digits:DigitsNet", {}, input=("1,1,8,8",))


def demo(*, out: Path = Path("secateur-demo"), seed: int = 0) -> int:
    """Train a small network on real digits, prune it, fine-tune it, check it and save it.

    Parameters
    ----------
    out
        Folder for the smaller network, its plan, the record of the run and its report.
    seed
        Seed of the weights, the split of the data and the order of training.
    """
    from secateur.demo import run
    from secateur.report import open_page, write

    record = run(out, seed)
    figures = {name: value for name, value in asdict(record).items() if name != "report"}
    remember(out, SOURCE, **figures)
    page = write(out, record.report)
    print(f"saved in {out}: model.safetensors, plan.json, record.json, report.json")
    print(f"report: {page}")
    open_page(page)
    return FAILED if record.problems else DONE
