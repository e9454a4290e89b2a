"""What cuts cost in errors of the model's output, estimated from two passes over the data.

Near the dense model the square of the output's error is a quadratic form of what the readers of a
group lose.  The first pass sums second moments of their inputs, of which follows what a repair will
make of their weights.  The second is a forward and a backward of each batch: a slope of the output
at a weight, times the weight's change, is how far the output moves, sample for sample.  What meets
in a product (queries and keys) is read by no weight: there the output moves by the slopes at both,
times what both are, and by half of that, for a product without one of its factors is none.

Singh and Alistarh, 2020, arXiv:2004.14340 (WoodFisher); Martens, 2014, arXiv:1412.1193
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.replacements import in_plain_operations
from secateur.runtime.batches import call, padding
from secateur.runtime.distributed import summed, whole
from secateur.runtime.forward import evaluating, undisturbed
from secateur.runtime.progress import shown
from secateur.runtime.undo import Undo
from secateur.scoring.arrangement import Arrangement
from secateur.scoring.grams import DAMPING, PLACES, moments, precise
from secateur.scoring.readings import Reading
from secateur.scoring.watching import Watch
from secateur.structure import Structure
from secateur.types import Masks

from .intercepts import Intercepts
from .slopes import Change, Moves
from .table import repairs

MOST = 1 << 28
"""Elements of weights' changes that exist at once: 1 GiB.  More of them take further passes."""

Sums = dict[str, Tensor]


def estimated_errors(
    model: nn.Module,
    structure: Structure,
    cuts: Sequence[Masks],
    batches: Sequence[Any],
    how: str | None = None,
    products: Sequence[Masks] = (),
) -> list[float | None]:
    """Return for each cut the square of the output's error, as a share of the outputs' spread.

    Logits count in squares too.  The model is as it was afterwards.

    Args:
        model: the dense one.
        structure: of it.
        cuts: of each, parameter name → bool tensor of its shape.
        batches: of inputs; each is run three times.
        how: the repair that will follow, a name in ``secateur.repairs``, or None.
        products: of each, masks of weights whose rows are multiplied by others' that go, if any.

    Returns:
        None for a cut that this says nothing of: nothing that was seen reads what goes, outputs of
        one reader keep different inputs, or rows are sorted by expert.

    Raises:
        ConfigError: no gradient comes from the outputs.

    >>> from secateur.structure import analyze
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> x, mask = torch.randn(64, 4), torch.ones(3, 8).bool()
    >>> mask[:, :2] = False
    >>> cuts = [{"2.weight": mask}]
    >>> (alone,) = estimated_errors(net, analyze(net, x), cuts, [x])
    >>> (repaired,) = estimated_errors(net, analyze(net, x), cuts, [x], "least_squares")
    >>> 0 < repaired < alone
    True
    """
    watched, intercepts = _masked(model, cuts), Intercepts(structure)
    centred = {name for name in watched if how and intercepts.of(name) is not None}
    found: list[float | None] = [None] * len(cuts)
    with Undo() as undo, undisturbed(model), evaluating(model), in_plain_operations(model):
        inputs = _Inputs(watched, centred, how)
        inputs.collect(model, batches)
        _let_slopes_through(model, undo)
        for some in _parts(cuts, watched):
            changes = {i: inputs.change(cuts[i], products[i] if products else {}) for i in some}
            known = {i: change for i, change in changes.items() if change is not None}
            for i, error in Moves(known, watched, inputs.means).measured(model, batches).items():
                found[i] = error
    return found


def _masked(model: nn.Module, cuts: Sequence[Masks]) -> dict[str, Tensor]:
    """Return the parameters of which a cut takes something."""
    names = {name for cut in cuts for name, mask in cut.items() if not bool(mask.all())}
    every = model.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in every if name in names}


def _let_slopes_through(model: nn.Module, undo: Undo) -> None:
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            undo(partial(parameter.requires_grad_, False))
            parameter.requires_grad_(True)


def _parts(cuts: Sequence[Masks], watched: Mapping[str, Tensor]) -> Iterator[list[int]]:
    """Yield cuts whose changes fit into memory together."""
    some, held = list[int](), 0
    for i, cut in enumerate(cuts):
        size = sum(watched[name].numel() for name in cut if name in watched)
        if some and held + size > MOST:
            yield some
            some, held = [], 0
        some.append(i)
        held += size
    if some:
        yield some


class _Inputs:
    """Second moments of what readers multiply, and what these say a repair does.

    Args:
        watched: the parameters that may be masked.
        centred: those whose outputs' means an intercept can take over.
        how: the repair.
    """

    def __init__(self, watched: Mapping[str, Tensor], centred: set[str], how: str | None):
        self.watched, self.centred = watched, centred
        self.refits = how is not None and how not in repairs.means_only
        self.sums: dict[Arrangement, Sums] = {}
        self._sorted: set[str] = set()
        """Parameters whose rows are not the samples' in turn: of experts."""

    @torch.no_grad()
    def collect(self, model: nn.Module, batches: Sequence[Any]) -> None:
        watch = Watch(self.watched.items(), lambda reading, _: self._read(reading))
        for batch in shown(batches, "estimating: inputs"):
            watch.start(padding(model, batch))
            call(model, batch, within=watch)
        self.sums = summed(self.sums)

    def _read(self, reading: Reading) -> None:
        if reading.routes or not reading.in_turn:
            self._sorted.add(reading.arrangement.name)
            return
        sums, features = self.sums.setdefault(reading.arrangement, {}), reading.features
        if not sums:
            new, many = reading.source.new_zeros, reading.systems
            sums["gram"] = new(many, features, features, dtype=precise(features))
            sums["x"] = new(many, features, dtype=torch.float64)
            sums["rows"] = new(many, dtype=torch.float64)
        for where, inputs, _ in reading.chunks(places=PLACES):
            sums["gram"][where] += moments(inputs, inputs, sums["gram"].dtype)
            sums["x"][where] += inputs.sum(1, dtype=torch.float64)
            sums["rows"][where] += inputs.shape[1]

    def means(self, arrangement: Arrangement) -> Tensor | None:
        """Return the means that an intercept takes over, ``(systems, features)``, or None."""
        if arrangement.name not in self.centred:
            return None
        sums = self.sums[arrangement]
        return sums["x"] / sums["rows"][:, None].clamp(min=1)

    @torch.no_grad()
    def change(self, cut: Masks, products: Masks) -> Change | None:
        """Return what changes by a cut; None if that is nothing, or unknown."""
        readers, lost = self._readers(cut), self._lost(products)
        if readers is None or lost is None or not (readers or lost):
            return None
        return Change(readers, lost)

    def _lost(self, products: Masks) -> dict[Arrangement, Tensor] | None:
        """Return which outputs of factors go, bool ``(systems, out)``; None if unknown."""
        found = {}
        for name, mask in products.items():
            seen = [arrangement for arrangement in self.sums if arrangement.name == name]
            if not seen or name in self._sorted:
                return None
            for arrangement in seen:
                gone = ~arrangement.of(mask).any(2)
                if bool(gone.any()):
                    found[arrangement] = gone
        return found

    def _readers(self, cut: Masks) -> dict[Arrangement, Tensor] | None:
        """Return how each reader's weight changes, ``(systems, out, features)``; None: unknown."""
        found = {}
        for arrangement in self.sums:
            mask = cut.get(arrangement.name)
            if mask is None:
                continue
            masks = arrangement.of(mask)
            weights = arrangement.of(whole(self.watched[arrangement.name].detach()))
            change = torch.zeros_like(weights)
            for i, m in enumerate(masks.to(weights.device)):
                alive, kept = m.any(1), m.any(0)
                if bool(kept.all()) or not bool(alive.any()):
                    continue
                if not torch.equal(m, alive[:, None] & kept) or arrangement.name in self._sorted:
                    return None
                change[i] = self._change(arrangement, i, weights[i], kept) * alive[:, None]
            if bool(change.any()):
                found[arrangement] = change
        return found

    def _change(self, arrangement: Arrangement, i: int, weight: Tensor, kept: Tensor) -> Tensor:
        """Return what a system's weight loses, and what its refit adds."""
        change = -weight * ~kept
        sums, means = self.sums[arrangement], self.means(arrangement)
        if not self.refits or not bool(kept.any()) or not sums["rows"][i]:
            return change
        gram = sums["gram"][i].double() / sums["rows"][i]
        gram = gram if means is None else gram - torch.outer(means[i], means[i])
        stay, gone = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0]
        damping = DAMPING * gram.diagonal().mean().clamp(min=1e-30)
        system = gram[stay][:, stay] + damping * torch.eye(len(stay)).to(gram)
        added = torch.linalg.solve(system, gram[stay][:, gone] @ weight[:, gone].to(gram).T)
        change[:, stay] = added.T.to(change)
        return change
