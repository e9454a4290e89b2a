"""Multiply-accumulates."""

from __future__ import annotations

from secateur.graph import cost as graph

from .cost import Cost, Count, cost


@cost
class macs(Cost):
    """Multiply-accumulates of one forward on the example: all contractions, as they are routed."""

    words = ("MACs", "macs")

    def of(self, count: Count) -> float:
        return graph.macs(self.subject.inferred, count)
