"""Pruned without training: what calibration data, norms estimated anew and repair are worth.

Each row is one real model, one way to prune it and one seed of the calibration data: no labels, no
training.  Everything goes through ``secateur.prune``.  Rows are kept in results/repair.jsonl as
they are made, so that an interrupted run goes on where it was.

    python -m benchmarks.repair                                   # all; hours on a CPU
    python -m benchmarks.repair --models resnet20 --seeds 0
    python -m benchmarks.repair --models minilm --settings "heads*" --ways "*repaired"
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from torch import nn

import secateur
from benchmarks.models.real import REAL, Real
from benchmarks.record import FOLDER, keep, rows_in, table, write
from secateur.repair import reestimate_norms

ROWS = FOLDER / "repair.jsonl"


@dataclass(frozen=True)
class Way:
    """How something is pruned: settings of ``prune``, and what data is used for.

    ``data``: the criterion looks at it.  ``repair``: a name in ``secateur.repairs``.  ``norms``:
    the statistics of norms are estimated anew after the cut.
    """

    settings: dict[str, Any]
    data: bool = False
    repair: str = "none"
    norms: bool = False

    @property
    def chance(self) -> bool:
        """Tell whether a seed changes anything."""
        return self.data or self.norms or self.settings.get("criterion") == "random"


WAYS = {
    "l2": Way({"criterion": "l2"}),
    "random": Way({"criterion": "random"}),
    "activation": Way({"criterion": "activation"}, data=True),
    "activation, repaired": Way({"criterion": "activation"}, data=True, repair="least_squares"),
    "obs, repaired": Way({"criterion": "obs"}, data=True, repair="least_squares"),
    "elimination, repaired": Way({"criterion": "elimination"}, data=True, repair="least_squares"),
}
"""To remove channels, heads and neurons."""
BETWEEN = {"scope": "global", "normalize": "output", "max_sparsity": 0.75}
SHARED = {
    f"{criterion}, between layers, repaired": Way(
        {"criterion": criterion, **BETWEEN}, data=True, repair="least_squares"
    )
    for criterion in ("obs", "elimination")
}
"""Layers lose what costs their outputs least, none more than three quarters."""


DEFAULT = {"default, repaired": Way({}, data=True, repair="least_squares")}
"""Nothing said: where a cost goes, held-out data chooses between two of the ways above."""


def _with_norms(ways: dict[str, Way]) -> dict[str, Way]:
    """Return the ways, and each unrepaired one with norms estimated anew."""
    again = {
        f"{name}, norms anew": Way(way.settings, way.data, norms=True)
        for name, way in ways.items()
        if way.repair == "none"
    }
    return {**ways, **again}


SINGLE = {
    "magnitude": Way({"criterion": "magnitude"}),
    "wanda": Way({"criterion": "wanda"}, data=True),
    "wanda, repaired": Way({"criterion": "wanda"}, data=True, repair="least_squares"),
    "obs, repaired": Way({"criterion": "obs"}, data=True, repair="least_squares"),
}
EXPERTS = {
    "random": Way({"criterion": "random"}),
    "activation": Way({"criterion": "activation"}, data=True),
    "reap": Way({"criterion": "reap"}, data=True),
    "frequency": Way({"criterion": "frequency"}, data=True),
    "contribution": Way({"criterion": "contribution"}, data=True),
    "contribution, repaired": Way({"criterion": "contribution"}, data=True, repair="least_squares"),
}


@dataclass(frozen=True)
class Case:
    """A real model, what is removed from it, and by which ways: settings and ways by name."""

    samples: int
    settings: dict[str, dict[str, Any]]
    ways: dict[str, Way] = field(default_factory=dict)
    others: dict[str, dict[str, Way]] = field(default_factory=dict)
    """Ways of single settings, instead of ``ways``."""


INNER = {"names": ["layer*.conv1"]}
RESIDUAL = Case(
    512,
    {
        "70 % of the inner channels kept": {**INNER, "sparsity": 0.30},
        "50 % of the inner channels kept": {**INNER, "sparsity": 0.50},
        "39 % of the inner channels kept": {**INNER, "sparsity": 0.61},
        "70 % of MACs kept, all groups": {"of": "macs", "sparsity": 0.3},
        "50 % of MACs kept, all groups": {"of": "macs", "sparsity": 0.5},
    },
    _with_norms({**WAYS, **SHARED, **DEFAULT}),
)
LINEAR = {"names": ["model.layers.*"], "types": ["Linear"]}
FFN = {"names": ["*mlp*"]}
EXPERT = {"what": ["experts"]}
CASES: dict[str, Case] = {
    "resnet20": RESIDUAL,
    "resnet56": RESIDUAL,
    "minilm": Case(
        800,
        {
            "feed-forward −50 %": {"names": ["*intermediate*"], "sparsity": 0.5},
            "heads −50 %": {"names": ["*attention*"], "sparsity": 0.5, "grid": "coarse"},
            "feed-forward and heads −50 %": {"sparsity": 0.5, "grid": "coarse"},
        },
        WAYS,
    ),
    "docs llama": Case(
        16,
        {
            "feed-forward −20 %": {**FFN, "sparsity": 0.2},
            "feed-forward −40 %": {**FFN, "sparsity": 0.4},
            "single weights −50 %": {**LINEAR, "sparsity": 0.5, "granularity": "element"},
            "2:4": {**LINEAR, "granularity": "2:4"},
        },
        WAYS,
        {"single weights −50 %": SINGLE, "2:4": SINGLE},
    ),
    "docs mixtral": Case(
        16,
        {
            "2 of 8 experts": {**EXPERT, "sparsity": 0.25},
            "4 of 8 experts": {**EXPERT, "sparsity": 0.5},
        },
        EXPERTS,
    ),
    "tiny darknet": Case(
        68,
        {"50 % of MACs kept": {"of": "macs", "sparsity": 0.5}},
        _with_norms({**WAYS, **SHARED, **DEFAULT}),
    ),
}


def rows(options: argparse.Namespace) -> Iterator[tuple[str, str, str, int]]:
    """Yield the keys of the rows that are asked for."""
    for name in options.models:
        case = CASES[name]
        yield name, "", "dense", 0
        for setting in case.settings:
            for label, way in case.others.get(setting, case.ways).items():
                if fnmatch(setting, options.settings) and fnmatch(label, options.ways):
                    for seed in options.seeds if way.chance else options.seeds[:1]:
                        yield name, setting, label, seed


def measure(name: str, setting: str, label: str, seed: int) -> dict[str, Any]:
    """Return one row."""
    case, real = CASES[name], REAL[name]
    row: dict[str, Any] = {"model": name, "setting": setting, "way": label, "seed": seed}
    if label == "dense":
        return row | _quality(real, real.build())
    way = case.others.get(setting, case.ways)[label]
    dense, example = real.build(), real.example
    batches = real.calibration(case.samples, seed)
    given: dict[str, Any] = {"data": batches, "repair": way.repair} if way.data else {}
    settings = {"seed": seed, **case.settings[setting], **way.settings}
    start = time.process_time()
    result = secateur.prune(dense, example, **settings, **given)
    if way.norms:
        reestimate_norms(result.model, batches)
    row |= {"samples": case.samples, "seconds": time.process_time() - start}
    row |= _left(result)
    return row | _quality(real, result.model)


def _left(result: Any) -> dict[str, float]:
    return {kind: getattr(result.after, kind) / getattr(result.before, kind) for kind in COSTS}


COSTS = ("params", "macs")
FIGURES = ("quality", "elsewhere")


def _quality(real: Real, model: nn.Module) -> dict[str, float]:
    found = {"quality": real.quality(model)}
    return found | ({"elsewhere": real.elsewhere(model)} if real.elsewhere else {})


def main() -> int:
    """Make the rows that are missing, then write the tables of all."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*CASES], choices=[*CASES])
    parser.add_argument("--settings", default="*", help="a shell pattern")
    parser.add_argument("--ways", default="*", help="a shell pattern")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    found = rows_in(ROWS)
    made = {(r["model"], r["setting"], r["way"], r["seed"]) for r in found}
    for key in rows(options):
        if key not in made:
            found.append(measure(*key))
            ROWS.parent.mkdir(exist_ok=True)
            keep(ROWS, found[-1])
            print(*found[-1].values(), sep="\t", flush=True)
    write("repair", "Pruned without training", found, _text(found))
    return 0


def _text(found: list[dict[str, Any]]) -> str:
    parts = [
        "No labels, no training. Mean over seeds of the calibration data, in brackets their least "
        "and greatest; seconds of processor time for all of `prune`, one thread."
    ]
    for name, case in CASES.items():
        own = [row for row in found if row["model"] == name]
        if own:
            real = REAL[name]
            (first,) = (row for row in own if row["way"] == "dense")
            dense = " / ".join(f"{first[kind]:.4g}" for kind in FIGURES if kind in first)
            more = "; second figure: in another domain" if real.elsewhere else ""
            about = f"{name}, dense {dense} ({real.measure}{more}); {case.samples} samples"
            parts += [f"## {about}", _table(case, own)]
    return "\n\n".join(parts)


def _table(case: Case, own: list[dict[str, Any]]) -> str:
    body = []
    for setting in case.settings:
        for label in case.others.get(setting, case.ways):
            same = [r for r in own if (r["setting"], r["way"]) == (setting, label)]
            if same:
                kinds = [kind for kind in FIGURES if kind in same[0]]
                left = [f"{statistics.mean(r[kind] for r in same):.0%}" for kind in COSTS]
                seconds = f"{statistics.median(r['seconds'] for r in same):.0f}"
                figures = " / ".join(_spread([r[kind] for r in same]) for kind in kinds)
                body.append([f"{setting}: {label}", figures, str(len(same)), *left, seconds])
    return table(["", "quality", "seeds", "params left", "MACs left", "seconds"], body)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4g}"
    return f"{mean} ({min(values):.4g}–{max(values):.4g})" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
