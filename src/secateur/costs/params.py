"""Parameters."""

from __future__ import annotations

from secateur.graph import cost as graph
from secateur.graph.blocks import Block

from .cost import Cost, Count, cost


@cost
class params(Cost):
    """The number of parameters; tied ones count once."""

    words = ("params", "parameters")

    def of(self, count: Count) -> float:
        return graph.params(self.subject.inferred, count)

    def of_block(self, block: Block, count: Count) -> float:
        return block.cost(self.subject.inferred, count)[0]
