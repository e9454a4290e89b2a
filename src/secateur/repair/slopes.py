"""How far a model's outputs move when weights change, from the slopes of the outputs at them.

Outputs count in squares, logits too: the divergence of predictions has slopes as well, but where
these are confident few samples have any (benchmarks/results/curves.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ConfigError
from secateur.runtime.batches import call, padding
from secateur.runtime.distributed import reduced
from secateur.runtime.progress import shown
from secateur.scoring.arrangement import Arrangement
from secateur.scoring.readings import Reading
from secateur.scoring.watching import Watch

from .quality import Spread, outputs_in, rows_of


@dataclass(frozen=True)
class Change:
    """What one cut changes.

    Attributes:
        readers: reader → the change of its weight, ``(systems, out, features)``.
        lost: factor of a product → which of its outputs go, with those they are multiplied by,
            bool ``(systems, out)``.
    """

    readers: Mapping[Arrangement, Tensor]
    lost: Mapping[Arrangement, Tensor]


class Moves:
    """How far outputs move, sample for sample, when weights change.

    Args:
        changes: of each cut, by its number.
        watched: the parameters, by name.
        means: what an intercept takes over of a reader's inputs, ``(systems, features)``, if any.
    """

    def __init__(
        self,
        changes: Mapping[int, Change],
        watched: Mapping[str, Tensor],
        means: Callable[[Arrangement], Tensor | None],
    ):
        self.cuts = list(changes)
        self._readers = _by_arrangement([change.readers for change in changes.values()])
        self._lost = _by_arrangement([change.lost for change in changes.values()])
        self._means = {arrangement: means(arrangement) for arrangement in self._readers}
        every = self._readers.keys() | self._lost.keys()
        self._watched = {a.name: watched[a.name] for a in every}
        self._moved = torch.zeros(())  # (cuts, samples) of one batch
        self._told: set[Arrangement] = set()

    def measured(self, model: nn.Module, batches: Sequence[Any]) -> dict[int, float]:
        """Return the error of each cut, but of those whose readers no slope came back to."""
        if not self.cuts:
            return {}
        spread, generator = Spread(), torch.Generator().manual_seed(0)
        squares = torch.zeros(len(self.cuts), dtype=torch.float64)
        watch = _Hooking(self._watched.items(), self._slope, self._lost)
        for batch in shown(batches, "estimating: slopes"):
            self._moved = torch.zeros(len(self.cuts), _samples(batch), dtype=torch.float64)
            masks = padding(model, batch)
            watch.start(masks)
            with torch.enable_grad():
                out = call(model, batch, within=watch)
                watch.hook()
                _backward(_direction(outputs_in(out), masks, spread, generator))
            for parameter in model.parameters():
                parameter.grad = None
            squares += self._moved.square().sum(1)
        errors = reduced(squares, "sum") / max(spread.whole(), 1e-30)
        known = dict(zip(self.cuts, errors.tolist(), strict=True))
        for each in (self._readers, self._lost):
            for arrangement in each.keys() - self._told:  # it runs under no_grad, or detached
                for place in each[arrangement][0].tolist():
                    known.pop(self.cuts[place], None)
        return known

    @torch.no_grad()
    def _slope(self, reading: Reading, out: Tensor | None, gradient: Tensor) -> None:
        """Add what a reading's changes do to each sample."""
        arrangement = reading.arrangement
        if arrangement in self._readers:
            self._add_reader(reading, gradient)
        if arrangement in self._lost and out is not None:
            place, lost = self._lost[arrangement]
            for where, some, _, y in reading.sampled(gradient * out, self._moved.shape[1]):
                moved = lost[:, where].flatten(1).to(y) @ y.sum(2).movedim(1, 0).flatten(1).T
                self._moved[place, some] -= moved.to(self._moved) / 2
        self._told.add(arrangement)

    def _add_reader(self, reading: Reading, gradient: Tensor) -> None:
        place, changes = self._readers[reading.arrangement]
        means = self._means[reading.arrangement]
        for where, some, x, slopes in reading.sampled(gradient, self._moved.shape[1]):
            if means is not None:
                x = x - means[where][:, None, None].to(x)
            of_weight = torch.einsum("snpo,snpf->nsof", slopes, x).flatten(1)
            moved = changes[:, where].flatten(1).to(of_weight) @ of_weight.T
            self._moved[place, some] += moved.to(self._moved)


def _by_arrangement(
    changes: Sequence[Mapping[Arrangement, Tensor]],
) -> dict[Arrangement, tuple[Tensor, Tensor]]:
    """Return for each arrangement the places of what changes it, ``(n,)``, and how, stacked."""
    of: dict[Arrangement, list[tuple[int, Tensor]]] = {}
    for place, each in enumerate(changes):
        for arrangement, change in each.items():
            of.setdefault(arrangement, []).append((place, change))
    return {
        arrangement: (torch.tensor([i for i, _ in every]), torch.stack([c for _, c in every]))
        for arrangement, every in of.items()
    }


class _Hooking(Watch):
    """A watch that tells the gradient of what came out of each reading, once a backward runs.

    Autograd knows an output only when its operation is over, and in-place operations that follow
    make another tensor of it: so a hook is put on before the next operation runs.

    Args:
        named: the parameters to look for.
        slope: called with a reading, what came out of it if that is wanted, and the gradient.
        wanted: the arrangements of which what came out is wanted.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        slope: Callable[[Reading, Tensor | None, Tensor], None],
        wanted: Collection[Arrangement],
    ):
        super().__init__(named, self._wait)
        self._slope, self._wants = slope, wanted
        self._made: tuple[Reading, Tensor] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.hook()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _wait(self, reading: Reading, out: Tensor) -> None:
        self._made = reading, out

    def hook(self) -> None:
        """Put a hook on what the last operation made, if that was a reading."""
        if self._made is None:
            return
        (reading, out), self._made = self._made, None
        if out.requires_grad:
            kept = out.detach().clone() if reading.arrangement in self._wants else None
            out.register_hook(partial(self._slope, reading, kept))


def _samples(batch: Any) -> int:
    """Return how many samples a batch has: the first dimension counts them."""
    sizes = [len(x) for x in tree_leaves(batch) if isinstance(x, Tensor) and x.ndim]
    return sizes[0] if sizes else 1


def _direction(
    outputs: Sequence[tuple[str, Tensor]],
    masks: Sequence[Tensor],
    spread: Spread,
    generator: torch.Generator,
) -> Tensor:
    """Return a sum of all outputs with signs that are drawn.

    The square of what a change adds to it is, in the mean over signs, the sum of the squares of
    what it adds to each output.
    """
    total = torch.zeros((), dtype=torch.float64)
    for place, (_, output) in enumerate(outputs):
        rows = rows_of(output, masks)
        spread.add((place, rows.shape[-1]), rows.detach())
        signs = 2 * torch.randint(0, 2, rows.shape, generator=generator) - 1
        total = total.to(rows.device) + (rows * signs.to(rows)).sum()
    return total


def _backward(total: Tensor) -> None:
    """Run a backward.

    Raises:
        ConfigError: there is none.
    """
    problem: Exception | None = None
    if total.requires_grad:
        try:
            total.backward()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            problem = error
        else:
            return
    why = f": {problem}" if problem else ""
    raise ConfigError(
        "allocate='estimate' needs gradients, and none come from the model's outputs"
        f"{why}; take allocate='error', which measures"
    ) from problem
