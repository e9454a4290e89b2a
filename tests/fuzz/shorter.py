"""Make a program that shows a defect as short as it can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .judge import Outcome, judge
from .program import Node, Program

MOST = 200
"""So many shorter programs are tried in all."""


def shorter(program: Program, outcome: Outcome) -> tuple[Program, Outcome]:
    """Return the shortest program found, by leaving out blocks, that comes to the same kind."""
    tried = 0
    found = True
    while found and tried < MOST:
        found = False
        for candidate in candidates(program):
            tried += 1
            try:
                now = judge(candidate)
            except Exception:  # what is left does not fit together
                continue
            if now.kind == outcome.kind and _cause(now) == _cause(outcome):
                program, outcome, found = candidate, now, True
                break
    return program, outcome


def _cause(outcome: Outcome) -> str:
    """Return the class of the error, where there is one."""
    return outcome.detail.split(":")[0].split(" ")[0] if outcome.kind in ("refused", "raw") else ""


def candidates(program: Program) -> Iterator[Program]:
    """Yield programs without a stage, a block, or a join around blocks."""
    if len(program.stages) > 1:
        yield replace(program, stages=program.stages[:-1])
        yield replace(program, stages=program.stages[1:])
    for i, (world, chain) in enumerate(program.stages):
        before, after = program.stages[:i], program.stages[i + 1 :]
        for less in _less(chain):
            yield replace(program, stages=(*before, (world, less), *after))


def _less(chain: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    for i, node in enumerate(chain):
        before, after = chain[:i], chain[i + 1 :]
        yield before + after
        for inner in node.inner:
            yield before + inner + after
        for j, inner in enumerate(node.inner):
            for less in _less(inner):
                if less:
                    held = (*node.inner[:j], less, *node.inner[j + 1 :])
                    yield (*before, replace(node, inner=held), *after)
