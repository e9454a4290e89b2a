"""Random programs, pruned at random and judged from outside: the long form of tests/fuzz.

    python -m benchmarks.fuzz --count 10000 --seed 0 --jobs 1 --out failures.jsonl
    python -m benchmarks.fuzz --program '[12, [["vector", [["linear", 3]]]], "prune"]'

Prints how many programs there were, in what time, and what came of them; each that shows a defect
is made smaller, and written as one line that ``--program`` runs again.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import table, write
from tests.fuzz.judge import DEFECTS, KINDS, Outcome, judge
from tests.fuzz.program import Program
from tests.fuzz.shorter import shorter
from tests.fuzz.ways import WAYS

WITHOUT: list[str] = []


def one(seed: int) -> tuple[int, str, Outcome, float]:
    """Return a program and its outcome, and the processor's seconds that it took."""
    start = time.process_time()
    program = Program.drawn(seed, tuple(WAYS))
    if any(f'"{name}"' in str(program) for name in WITHOUT):
        return seed, "", Outcome("skipped"), 0.0
    try:
        found = judge(program)
    except Exception as error:  # of the program itself: it is no finding about the library
        found = Outcome("invalid", f"{type(error).__name__}: {error}"[:300])
    if (found.defect and found.kind != "hang") or found.kind == "refused":
        program, found = shorter(program, found)
    return seed, str(program), found, time.process_time() - start


def quiet() -> None:
    torch.set_num_threads(1)
    logging.disable()
    warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    parser.add_argument("--program", help="judge this one")
    parser.add_argument("--record", action="store_true", help="write results/fuzz.md")
    parser.add_argument("--without", nargs="*", default=[], help="blocks that no program may hold")
    options = parser.parse_args()
    WITHOUT.extend(options.without)
    quiet()
    if options.program:
        program = Program.read(options.program)
        print(program.model(), judge(program), sep="\n")
        return
    seeds = range(options.seed, options.seed + options.count)
    start, spent = time.perf_counter(), 0.0
    kinds: Counter[str] = Counter()
    left: list[float] = []
    context = multiprocessing.get_context("fork")
    with context.Pool(options.jobs, quiet) as pool, options.out.open("w") as file:
        for seed, text, found, seconds in pool.imap_unordered(one, seeds, chunksize=8):
            kinds[found.kind] += 1
            spent += seconds
            left += [found.left] if found.kind == "exact" else []
            if found.defect or found.kind in ("refused", "invalid"):
                line = {"seed": seed, "kind": found.kind, "detail": found.detail, "program": text}
                file.write(json.dumps(line) + "\n")
                file.flush()
    report(kinds, left, spent, time.perf_counter() - start, options)


def report(kinds: Counter[str], left: list[float], spent: float, took: float, options: Any) -> None:
    """Print what came of the programs, and keep it where that is asked."""
    count = sum(kinds.values())
    last = options.seed + options.count - 1
    lines = [
        f"{count} programs, seeds {options.seed}…{last}: {took / 60:.1f} min, of which the "
        f"processor {spent / 60:.1f} min ({1000 * spent / count:.0f} ms each).",
        f"Where the result is exact, {sum(left) / max(len(left), 1):.0%} of the parameters stay.",
    ]
    meanings = {**KINDS, **DEFECTS, "invalid": "the program itself does not run", "skipped": ""}
    rows = [(kind, str(kinds[kind]), meanings[kind]) for kind in meanings if kinds[kind]]
    none = ", ".join(kind for kind in DEFECTS if not kinds[kind])
    text = "\n\n".join([*lines, table(["outcome", "programs", "is"], rows), f"None: {none}."])
    if options.record:
        facts = {"count": count, "seed": options.seed, "seconds": spent, "outcomes": dict(kinds)}
        write("fuzz", "Random programs", facts, text, show=False)
    print(text)


if __name__ == "__main__":
    main()
