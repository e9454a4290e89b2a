"""The table that the coverage benchmark writes: by family, then what is not covered, and why."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping

from benchmarks.limits import Outcome
from benchmarks.models import FAMILIES
from benchmarks.record import table

TOLERANCE = 1e-4  # relative, float32
TOLERANCE_64 = 1e-8  # the same in float64: what proves that a difference in float32 is rounding
REACH = 0.95


def report(results: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return the table by family, and below it every model that is not covered."""
    lines, failures = [], []
    for family, models in results.items():
        if not models:
            continue
        ok = [r for r in models.values() if r["status"] == "ok"]
        silent = sum(r["status"] == "SILENT" for r in models.values())
        reached = [r["reach"] for r in models.values() if "reach" in r]
        peers = [r["peer"] for r in models.values() if "peer" in r]
        theirs = sum(p["status"] == "ok" for p in peers)
        lines.append(
            [
                family,
                str(len(models)),
                f"{len(ok)} ({len(ok) / len(models):.1%})",
                f"≥ {FAMILIES[family].goal:.0%}",
                str(silent),
                f"{statistics.median(reached):.3f}" if reached else "–",
                f"{theirs} of {len(peers)} ({theirs / len(peers):.1%})" if peers else "–",
            ]
        )
        for name, r in models.items():
            if r["status"] != "ok":
                error = r.get("error", "").split("\n")[0][:200].replace("|", "¦")
                failures.append([f"{family}: {name}", r["status"], error])
    heads = ["family", "models", "covered", "goal", "SILENT", "median reach", "Torch-Pruning runs"]
    text = table(heads, lines)
    unknown: Counter[str] = Counter()
    for models in results.values():
        for r in models.values():
            unknown.update(dict.fromkeys(r.get("unknown", {}), 1))
    text += (
        "\n\nCovered: half of every exact group was cut (heads and their widths in turn), and the "
        f"smaller model equals the masked one to {TOLERANCE:.0e} relative, or to "
        f"{TOLERANCE_64:.0e} in float64; with half of the inexact groups cut as well, it runs. "
        "SILENT: it differs and was not reported inexact. Reach: the share of parameters that lie "
        f"in a group that may be cut (goal: median ≥ {REACH}). Torch-Pruning: pruned by 50 % with "
        "the output layers ignored, without a cache, and not told the numbers of heads, it runs "
        "and gives outputs of the right shapes; whether they are the right numbers was not checked."
    )
    judged = [r for models in results.values() for r in models.values()]
    peers = [r["peer"] for r in judged if "peer" in r]
    limits = {r["limit"] for r in [*judged, *peers] if "limit" in r}
    late = sum(p["status"] == "too slow" for p in peers)
    if limits:
        text += (
            f"  Each had {min(limits):.0f} s of processor time for pruning a model: ours for "
            "the analysis, the first cut and its comparison with the masked model, Torch-Pruning "
            f"for its pruner and its step.  Torch-Pruning was stopped on {late} models."
        )
    if failures:
        text += "\n\n" + table(["not covered", "status", "error"], failures)
    if unknown:
        rows = [[op, str(count)] for op, count in unknown.most_common()]
        text += "\n\n" + table(["operation without a rule", "models"], rows)
    return text
