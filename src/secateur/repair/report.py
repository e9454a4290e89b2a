"""What a repair did, and how far the pruned model is from the dense one."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isnan


@dataclass(frozen=True)
class Refit:
    """One reader of what was pruned: its outputs' error on batches that were held out.

    Errors are shares of the variance of the dense model's outputs; NaN where nothing was held out.

    Attributes:
        tensor: the reader's weight.
        before: error with the masked weight, behind readers that are repaired already.
        after: error with the new one.
        damping: how strongly it was held to its old weights; None where they were left.
        rows: how many rows of inputs were fitted.
        why: why it was left as it was.
    """

    tensor: str
    before: float
    after: float
    damping: float | None
    rows: int
    why: str = ""

    @property
    def done(self) -> bool:
        """Whether its weights or its intercept are others now."""
        return not self.why and (self.damping is not None or self.after != self.before)


@dataclass(frozen=True)
class Distance:
    """How far a model's outputs are from the dense model's, on held-out batches.

    ``error`` is the root mean square of the difference as a share of the outputs' own spread.
    ``kl`` is the mean Kullback-Leibler divergence of the predictions in nats, None where the
    outputs are no logits.
    """

    error: float
    kl: float | None = None

    def nearer_than(self, other: Distance) -> bool:
        """Compare predictions where there are any, and outputs elsewhere; no number is farthest.

        >>> Distance(0.2, 0.01).nearer_than(Distance(0.1, 0.02))
        True
        """
        one, two = self.error, other.error
        if self.kl is not None and other.kl is not None:
            one, two = self.kl, other.kl
        return one < two or isnan(two) > isnan(one)

    def __str__(self) -> str:
        return f"error {self.error:.3g}" + ("" if self.kl is None else f", KL {self.kl:.3g}")


@dataclass(frozen=True)
class Repair:
    """The record of one repair: what was done, and how far the outputs are from the dense model's.

    >>> import torch
    >>> from torch import nn
    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> data = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0))
    >>> repair = prune(net, data[0], sparsity=0.25, data=list(data)).repair
    >>> [refit.tensor for refit in repair.refits], repair.after.error < repair.before.error
    (['2.weight'], True)

    See also:
        ``Pruner.repair``, which returns one; ``Result.repair``.

    Attributes:
        how: the name of the repair.
        refits: one for each reader, in the order in which they run.
        before: of the masked model.
        after: of the repaired one.
        norms: whether norms got new statistics.
        notes: what a user should know.
    """

    how: str
    refits: tuple[Refit, ...]
    before: Distance
    after: Distance
    norms: bool = False
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        done = [refit for refit in self.refits if refit.done]
        kl = ""
        if self.before.kl is not None and self.after.kl is not None:
            kl = f", KL {self.before.kl:.3g} -> {self.after.kl:.3g}"
        norms = ", norms re-estimated" if self.norms else ""
        return (
            f"repair {self.how!r}: {len(done)} of {len(self.refits)} readers refitted{norms}; "
            f"outputs' error on held-out batches {self.before.error:.1%} -> "
            f"{self.after.error:.1%}{kl}"
        )
