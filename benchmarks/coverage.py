"""Which models can be pruned, exactly or at all, how much of them, and what fails and why.

Every model gets random weights.  Half of every exact group is cut, grids one axis at a time, and
the smaller model is compared with the masked one; then inexact groups are cut as well, and the
forward must run.  A model that is cut, differs, and was not reported inexact is SILENT: one of
them fails the benchmark.  Both libraries have equally long for the pruning itself.  Each model
runs in a process of its own; results are kept after each, so that a run that was stopped goes on
where it was.

    python -m benchmarks.coverage                                  everything that has no result yet
    python -m benchmarks.coverage --family timm --only '*vit*' --again
    python -m benchmarks.coverage --failed --ours                  what failed, without the peer
    python -m benchmarks.coverage --jobs 2                         two models at a time
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import secateur
from benchmarks.covered import TOLERANCE, TOLERANCE_64, report
from benchmarks.limits import Clock, Late, Outcome, in_a_process
from benchmarks.models import FAMILIES, build
from benchmarks.record import FOLDER, write
from secateur.graph.axes import Atom, Axis, Concat, find
from secateur.graph.groups import Group
from secateur.graph.outputs import results_of
from secateur.graph.rules import rule_for
from secateur.runtime.forward import evaluating, random_kept
from secateur.runtime.precise import Precisely
from secateur.runtime.undo import in_mode
from secateur.shrinking import Plan, group_masks
from secateur.shrinking.cut import Surgery
from secateur.shrinking.verify import difference
from secateur.structure import Structure
from secateur.types import Example, call_arguments

CHEAP = 25e6  # parameters up to which float64 is run as well


def examine(family: str, name: str, limit: float) -> Outcome:
    """Return what secateur makes of one model; analysis, first cut and comparison are timed."""
    stage, clock = "build fails", Clock(limit)
    try:
        model, example = build(family, name)
        stage = "trace fails"
        with clock:
            structure = secateur.analyze(model, example)
        found = _facts(structure)
        stage = "cut fails"
        found |= _exact(model, structure, example, clock)
        if found["status"] == "ok":
            stage = "inexact cut fails"
            masked_and_cut(model, structure, structure.independent(inexact=True), example)
    except Exception as error:  # whatever a model of somebody else's raises
        found = {} if stage in ("build fails", "trace fails") else found
        found |= {"status": stage, "error": f"{type(error).__name__}: {error}"[:600]}
    except Late:
        found = {"status": "too slow"}
    return found | clock.facts()


def _facts(structure: Structure) -> Outcome:
    ops = structure.inferred.recording.ops
    unknown = Counter(op.name for op in ops if rule_for(op.func) is None)
    return {
        "params": structure.cost().params,
        "groups": len(structure.groups),
        "exact": len(structure.exact),
        "reach": reach(structure),
        "unknown": dict(unknown.most_common()),
    }


def reach(structure: Structure) -> float:
    """Return the share of parameters that lie in at least one free group."""

    def outside(axis: Axis) -> int:
        axis = find(axis)
        if isinstance(axis, Atom):
            return 0 if axis.frozen is None and axis.size > 1 else axis.size
        counts = [outside(part) for part in axis.parts]  # type: ignore[attr-defined]
        return sum(counts) if isinstance(axis, Concat) else _product(counts)

    r = structure.inferred.recording
    types = [structure.inferred.types[value] for value in r.parameters.values()]
    total = sum(_product([d.size for d in typed.dims]) for typed in types)
    left = sum(_product([outside(d.axis) for d in typed.dims]) for typed in types)
    return 1 - left / total if total else 0.0


def _product(numbers: list[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def _exact(model: nn.Module, structure: Structure, example: Example, clock: Clock) -> Outcome:
    """Cut half of every exact group and compare; groups of one grid are cut in separate rounds."""
    if not any(g.size > 1 for g in structure.groups):
        return {"status": "nothing to cut"}
    worst, worst64, effect = 0.0, None, None
    wide: tuple[nn.Module, Example] | None = None
    for groups in rounds(structure):
        with clock if effect is None else nullcontext():  # later rounds are further checks
            masked, small = masked_and_cut(model, structure, groups, example)
        worst = max(worst, gap := difference(masked, small))
        if effect is None:  # of the masks on the outputs; a test of nothing would show as 0
            effect = difference(forward(model, example), masked)
        if structure.cost().params <= CHEAP or gap > TOLERANCE:
            wide = wide or _in_double(model, example)
        if wide:
            worst64 = max(
                worst64 or 0.0,
                difference(*masked_and_cut(wide[0], structure, groups, wide[1], in_double=True)),
            )
    proven = worst64 is not None and worst64 <= TOLERANCE_64
    same = worst <= TOLERANCE and (worst64 or 0.0) <= TOLERANCE
    return {
        "status": "ok" if same or proven else "SILENT",
        "difference": worst,
        "difference64": worst64,  # None: too large a model, or it cannot run in float64
        "effect": effect,
    }


def _in_double(model: nn.Module, example: Example) -> tuple[nn.Module, Example] | None:
    """Return a copy of the model and its example in float64, or None where it cannot run so."""
    wide = copy.deepcopy(model).double()
    example = tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, example
    )
    try:
        forward(wide, example)
    except (RuntimeError, TypeError):  # an operation, or the model's own code, wants float32
        return None
    return wide, example


def forward(model: nn.Module, example: Example, *, in_double: bool = False) -> list[list[Tensor]]:
    """Return the model's outputs on the example, as ``difference`` compares them.

    Args:
        in_double: also where the model's own code asks for float32.
    """
    args, kwargs = call_arguments(example)
    mode = in_mode(Precisely(torch.float64)) if in_double else nullcontext()
    with evaluating(model), torch.no_grad(), random_kept(), mode:
        torch.manual_seed(0)
        return [[x.clone() for x in results_of(model, model(*args, **kwargs))]]


def rounds(structure: Structure) -> Iterator[list[Group]]:
    """Yield sets of exact groups that together are all of them; no two of a set share a grid."""
    left = {g.name: g for g in structure.exact if g.size > 1}
    chosen = [g for g in structure.independent() if g.name in left]
    while chosen:
        yield chosen
        for group in chosen:
            del left[group.name]
        taken: set[str] = set()
        chosen = []
        for group in sorted(left.values(), key=lambda g: -g.size):
            mates = {group.name, *group.sized}
            if not taken & {mate for n in mates for mate in structure[n].grid}:
                chosen.append(group)
                taken |= mates


def masked_and_cut(
    model: nn.Module,
    structure: Structure,
    groups: Iterable[Group],
    example: Example,
    *,
    in_double: bool = False,
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Mask, then cut, a random half of each group; return the outputs of both."""
    generator = torch.Generator().manual_seed(0)
    keeps = {}
    for group in groups:
        keep = torch.zeros(group.size, dtype=torch.bool)
        left = max(group.least, -(-(group.size - group.size // 2) // group.step) * group.step)
        keep[torch.randperm(group.size, generator=generator)[:left]] = True
        keeps[group.name] = keep
    surgery = Surgery(model)
    try:
        surgery.mask(group_masks(structure, keeps))
        masked = forward(model, example, in_double=in_double)
        surgery.cut(structure, Plan.from_keeps(structure, keeps))
        return masked, forward(model, example, in_double=in_double)
    finally:
        surgery.undo()


def peer(family: str, name: str, limit: float) -> Outcome:
    """Return what Torch-Pruning makes of one model: it runs, and its outputs have their shapes.

    Told what its manual asks for: the layers that make the outputs are ignored.  Not told the
    numbers of heads, which its manual asks for as well, because no person has written them down.
    """
    clock = Clock(limit)
    try:
        import torch_pruning

        model, example = build(family, name)
        for module in model.modules():  # to it a cache among the outputs would be a result
            if hasattr(config := getattr(module, "config", None), "use_cache"):
                config.use_cache = False
        before = forward(model, example)
        widths = {size for out in before[0] for size in out.shape[1:]}
        last = [
            module
            for module in model.modules()
            if getattr(module, "out_features", getattr(module, "out_channels", 0)) in widths
        ]
        with clock:
            torch_pruning.pruner.BasePruner(
                model,
                example,
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=0.5,
                ignored_layers=last,
            ).step()
        after = forward(model, example)
        same = [x.shape for x in before[0]] == [x.shape for x in after[0]]
        found: Outcome = {"status": "ok" if same else "other shapes"}
        found["params"] = sum(p.numel() for p in model.parameters())
    except Exception as error:  # whatever it raises on a model
        found = {"status": "fails", "error": f"{type(error).__name__}: {error}"[:300]}
    except Late:
        found = {"status": "too slow"}
    return found | clock.facts()


def main() -> int:
    """Run what is asked for and write the results; 1 where one is SILENT."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--family", action="append", help="one of the families, or how it starts")
    parser.add_argument("--only", default="*", help="names that match this pattern")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--failed", action="store_true", help="also those that are not covered")
    parser.add_argument("--ours", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--limit", type=float, default=60, help="seconds for pruning one model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--name", default="coverage", help="results/<name>.json and .md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = FOLDER / f"{options.name}.json"
    results = json.loads(file.read_text())["data"] if file.exists() else {}
    results = {family: results.get(family, {}) for family in FAMILIES}
    tasks = [
        (family, name)
        for family in FAMILIES
        if not options.family or any(family.startswith(f) for f in options.family)
        for name in FAMILIES[family].names
        if fnmatch(name, options.only)
    ]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("fork")) as pool:
        running = {
            pool.submit(_judge, family, name, results[family].get(name), options): (family, name)
            for family, name in tasks
        }
        for done in as_completed(running):
            family, name = running[done]
            if done.result() != results[family].get(name):
                found = results[family] | {name: done.result()}
                results[family] = {n: found[n] for n in FAMILIES[family].names if n in found}
                print(f"{family}: {name}", json.dumps(done.result()), flush=True)
                _save(options.name, results)
    print(report(results))
    return int(any(r["status"] == "SILENT" for ms in results.values() for r in ms.values()))


def _judge(family: str, name: str, known: Outcome | None, options: argparse.Namespace) -> Outcome:
    """Return what is known of a model, with what was asked for measured."""
    failed = known is not None and options.failed and known["status"] != "ok"
    if known is None or options.again or failed:
        found = in_a_process(examine, family, name, options.limit)
        if options.ours and known and "peer" in known:
            found["peer"] = known["peer"]
    else:
        found = dict(known)
    if not options.ours and "peer" not in found:
        found["peer"] = in_a_process(peer, family, name, options.limit)
    return found


def _save(name: str, results: Any) -> None:
    write(name, "Coverage", results, report(results), show=False)


if __name__ == "__main__":
    sys.exit(main())
