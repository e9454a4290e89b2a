"""Peak bytes of activations."""

from __future__ import annotations

from secateur.graph import cost as graph
from secateur.graph.cost import human_bytes

from .cost import Cost, Count, cost


@cost
class memory(Cost):
    """The most bytes of activations that are alive at one moment of the forward."""

    words = ("B", "bytes")

    @classmethod
    def shown(cls, amount: float) -> str:
        return human_bytes(amount)

    def of(self, count: Count) -> float:
        return graph.peak_bytes(self.subject.inferred, count)
