"""Every causal and masked language model class of transformers: cut, saved, loaded, run.

A tiny model of each, with random weights, loses a quarter of its widths (``uniform=True``), one
layer, or half of its experts.  The result is saved, and loaded with the class's own
``from_pretrained`` where it says so, else with ``secateur.from_pretrained``; the outputs are
compared with the pruned model's, bit by bit, and a causal one generates as that does.  Each row is
made in a process of its own, and kept in results/lm_classes.jsonl as it comes: a run that was
stopped goes on.

    python -m benchmarks.lm_classes                        everything that has no row yet
    python -m benchmarks.lm_classes --only 'Llama*' --again
    python -m benchmarks.lm_classes --failed               what failed, again
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.limits import Clock, Late, Outcome, in_a_process
from benchmarks.models import lm
from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur import Result
from secateur.graph.kinds import kinds
from secateur.graph.outputs import results_of
from secateur.shrinking.shallower import outermost
from secateur.types import Example
from tests.zoo import randomise

ROWS = FOLDER / "lm_classes.jsonl"
SHARES = {"width": 0.25, "depth": 0.0, "experts": 0.5}
"""Kind → the share that goes; one layer in any case."""
FINE = ("ok", "nothing to cut")


def cut(model: nn.Module, example: Example, kind: str) -> Result | None:
    """Return a smaller model, or None where it has nothing of the kind."""
    structure = secateur.analyze(model, example)
    if kind == "depth":
        layers = [block.name for block in outermost(structure.blocks)]
        return secateur.drop_blocks(model, layers[-1:], example) if layers else None
    if not kinds[kind](structure.inferred, structure.groups):
        return None
    return secateur.prune(model, example, SHARES[kind], "l2", what=[kind], uniform=True)


def examine(name: str, kind: str, limit: float) -> Outcome:
    """Return the row of one class and kind: how far it came, and which loader gave what."""
    clock, found = Clock(limit), Outcome(status="not built")
    try:
        model, example = lm.make(lm.classes()[name])
        model = randomise(model, example, torch.Generator().manual_seed(0))
        found["status"] = "not cut"
        with clock, tempfile.TemporaryDirectory() as folder:
            result = cut(model, example, kind)
            if result is None:
                return {"status": "nothing to cut"} | clock.facts()
            found["status"] = "not saved"
            place = Path(result.save(folder))  # which tries the class's own loader
            found |= {"loads_with": result.loads_with, "stock": stock(result)}
            found["status"] = "not loaded"
            other = loaded(result, place)
            found["status"] = "other outputs"
            if not same(result.model, other, example):
                return found | clock.facts()
            found["status"] = "ok"
            found["generates"] = says(model) is not None
            if found["generates"]:
                found["status"] = "does not generate"
                both = says(result.model), says(other)
                if None not in both:
                    found["status"] = "ok" if torch.equal(*both) else "other words"
    except Exception as error:  # whatever somebody else's model raises
        found["error"] = f"{type(error).__name__}: {error}"[:600]
    except Late:
        found["error"] = f"more than {limit:.0f} s"
    return found | clock.facts()


def stock(result: Result) -> bool:
    """Tell whether a result names its class's own loader."""
    return result.ordinary or (result.layers is not None and not result.refused)


def loaded(result: Result, folder: Path) -> nn.Module:
    """Return what the loader that a result names makes of its folder."""
    model: nn.Module
    if not stock(result):
        model = secateur.from_pretrained(folder)
    else:
        kind: Any = type(result.model)
        model = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return model.eval()


def same(one: nn.Module, other: nn.Module, example: Example) -> bool:
    """Tell whether two models return the same bits."""
    both = [_outputs(model, example) for model in (one, other)]
    return len(both[0]) == len(both[1]) and all(map(torch.equal, *both))


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad():
        torch.manual_seed(0)
        return [x.clone() for x in results_of(model, model(**example))]


def says(model: Any) -> Tensor | None:
    """Return the words that a causal model says; None of another, and of one that cannot."""
    if not lm.is_causal(type(model)):
        return None
    try:
        found: Tensor = model.generate(lm.words(), max_new_tokens=3, do_sample=False)
    except Exception:  # the tiny config, or the class, lacks what that needs
        return None
    return found


def main() -> int:
    """Make the rows that are missing, then write the table of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="classes whose names match this pattern")
    parser.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--again", action="store_true", help="also what has a row")
    parser.add_argument("--failed", action="store_true", help="also what is not ok, or not stock")
    parser.add_argument("--limit", type=float, default=120, help="seconds of processor time a row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm.quiet()
    rows = read()
    for name in (name for name in lm.classes() if fnmatch(name, options.only)):
        for kind in options.kinds:
            known = rows.get((name, kind))
            fine = known and known["status"] in FINE and known.get("stock", True)
            if known and not options.again and (fine or not options.failed):
                continue
            row = {"class": name, "kind": kind} | in_a_process(examine, name, kind, options.limit)
            rows[name, kind] = row
            keep(ROWS, row)
            print(name, kind, row["status"], row.get("error", "")[:200], sep="\t", flush=True)
    write("lm_classes", "Language models of transformers", list(rows.values()), text(rows))
    return 0


def text(rows: dict[tuple[str, str], Outcome]) -> str:
    """Return the table by what was cut, and below it what failed or is not stock, and why."""
    lines, wrong, ours = [], [], []
    unbuilt: dict[str, str] = {}
    for kind in SHARES:
        own = {name: row for (name, of), row in rows.items() if of == kind}
        unbuilt |= {n: _why(row) for n, row in own.items() if row["status"] == "not built"}
        cut_ = {n: r for n, r in own.items() if r["status"] not in ("not built", "nothing to cut")}
        fine = [row for row in cut_.values() if row["status"] == "ok"]
        stock = [row for row in fine if row["stock"]]
        whole = sum(row["status"] == "nothing to cut" for row in own.values())
        shares = [f"{len(x)} ({len(x) / max(len(cut_), 1):.1%})" for x in (fine, stock)]
        lines.append([kind, str(len(own)), str(len(own) - len(cut_) - whole), str(whole), *shares])
        for name, row in cut_.items():
            if row["status"] != "ok":
                wrong.append([name, kind, row["status"], _why(row)])
            elif not row["stock"]:
                ours.append(f"{name} ({kind})")
    heads = ["what went", "classes", "not built", "nothing of it", "runs", "stock loads"]
    parts = [
        table(heads, lines),
        "Runs: of what has something of the kind, it was cut, saved, loaded with the loader that "
        "the result names, and computed the same bits; causal ones, where the dense model says "
        "words at all, said the same.  Stock loads: that was the class's own `from_pretrained`.",
        *([table(["fails", "what went", "where", "why"], wrong)] if wrong else []),
        "Loaded by `secateur.from_pretrained` alone: " + (", ".join(ours) or "none") + ".",
        table(["not built", "why"], [[n, why] for n, why in unbuilt.items()]),
    ]
    if missing := [n for n in lm.classes() if any((n, kind) not in rows for kind in SHARES)]:
        parts.append(f"Without a row yet ({len(missing)}): {', '.join(missing)}.")
    return "\n\n".join(parts)


def _why(row: Outcome) -> str:
    told = re.sub(r"\S*/tmp\w+", "the folder", str(row.get("error", "")))
    return told.split("\n")[0][:160].replace("|", "¦")


def read() -> dict[tuple[str, str], Outcome]:
    """Return the last row of each class and kind."""
    return {(row["class"], row["kind"]): row for row in rows_in(ROWS)}


if __name__ == "__main__":
    sys.exit(main())
