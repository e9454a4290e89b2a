"""Multiply-accumulates."""

from __future__ import annotations

from secateur.graph import cost as graph
from secateur.graph.blocks import Block

from .cost import Cost, Count, cost


@cost
class macs(Cost):
    """Multiply-accumulates of one forward on the example: all contractions, as they are routed."""

    words = ("MACs", "macs")

    def of(self, count: Count) -> float:
        return graph.macs(self.subject.inferred, count)

    def of_block(self, block: Block, count: Count) -> float:
        return block.cost(self.subject.inferred, count)[1]
