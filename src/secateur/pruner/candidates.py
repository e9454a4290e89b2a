"""What a model would be with some decision: how far its outputs would be off, and how small it is.

Each question is answered on the model as it runs, or on a copy that is dropped; the decision itself
is not made here but for what blocks have to do with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.graph.blocks import outermost
from secateur.graph.groups import Group
from secateur.masks import masking
from secateur.repair import estimated_errors, output_error
from secateur.runtime.copying import copied
from secateur.runtime.distributed import whole
from secateur.runtime.forbidding import Forbidden
from secateur.selection.budget import Budget
from secateur.selection.decision import Decision, decide
from secateur.selection.targets import Selectable
from secateur.shrinking import Plan, Result, cut_and_verify
from secateur.shrinking import shrink as shrink_masks
from secateur.shrinking.mixing import Try, mixes, with_blocks
from secateur.shrinking.shallower import passing, writers
from secateur.shrinking.stock import is_pretrained
from secateur.structure import Structure
from secateur.types import Example, Masks

FACTORS = 2
"""Weights that make what meets in a product: one each, or one for both."""


@dataclass
class Candidates:
    """What may be decided about one model, and what each decision would come to.

    Attributes:
        repairs: the repair that will follow, which errors are measured after; None is none.
        named: a class with a config says the shapes, and loads the model while these stay.
    """

    model: nn.Module
    config: Config
    example: Example
    structure: Structure | None
    selectables: Sequence[Selectable]
    budget: Budget
    repairs: str | None = None
    named: bool = field(init=False)

    @property
    def mixes(self) -> bool:
        """Whether blocks go besides groups, under one budget."""
        return mixes(self.config)

    @property
    def known(self) -> Structure:
        """The structure, of a run that has one."""
        assert self.structure is not None
        return self.structure

    def tensors(self) -> dict[str, Tensor]:
        """Return what is scored and masked by name: the parameters, without their masks."""
        self.check_same()
        return {n: whole(p.detach()) for n, p in self.model.named_parameters()}

    def __post_init__(self) -> None:
        self.named = is_pretrained(self.model)
        self._shapes = self._shapes_now()

    def _shapes_now(self) -> dict[str, torch.Size]:
        named = self.model.named_parameters(remove_duplicate=False)
        return {name: parameter.shape for name, parameter in named}

    def check_same(self) -> None:
        """Refuse a model that has other layers than when the run began, or smaller ones."""
        now = self._shapes_now()
        for name in (p.tensor for s in self.selectables for p in s.parts):
            if name not in now:
                raise ConfigError(
                    f"the model has no parameter {name!r} any more: something has replaced its "
                    "layers since the pruner was made.  Take adapters off before the pruner goes "
                    "on (secateur.merge adds what they learned), or finish() it before they come"
                )
            if now[name] != self._shapes[name]:
                was, is_ = tuple(self._shapes[name]), tuple(now[name])
                raise ConfigError(
                    f"{name!r} is {is_} now, and was {was} when the pruner was made: the model has "
                    "been cut since, as by finish(), or the layer was replaced.  To go on with the "
                    "model as it is, make a new Pruner of it"
                )

    def decided(
        self, scores: Sequence[Tensor], tensors: Mapping[str, Tensor], share: float
    ) -> Decision:
        """Decide on groups, and on blocks where these go too."""
        given = self.selectables, scores, self.budget, tensors, share, self.smaller
        if not self.mixes:
            return decide(*given)
        self.budget.known.curves.clear()

        def tried(drop: tuple[str, ...]) -> Try:
            self.budget.without(drop)
            made = decide(*given)
            counts = {name: int(keep.sum()) for name, keep in made.keeps.items()}
            return Try(drop, made, self.budget.over(counts))

        def lost(each: Try) -> float:
            return self.lost(each.decision.keeps, each.drop)

        batches = self.budget.known.batches
        made = with_blocks(self.model, self.known, batches, tried, lost)
        self.budget.without(made.drop)
        return made

    def lost(
        self,
        keeps: Mapping[str, Tensor],
        drop: tuple[str, ...] = (),
        *,
        squares: bool = False,
    ) -> float:
        """Return how far the output is off when groups keep such positions, and blocks go.

        ``squares``: of outputs, where these are predictions too.
        """
        masks = self._masks(keeps, dict(Plan({}, drop).masks(self.known)))
        batches, how = self.budget.known.batches, self.repairs
        besides = self.besides(keeps, drop)
        return output_error(self.model, masks, self.known, batches, how, squares=squares, **besides)

    def error(
        self, keeps: Mapping[int, Tensor], *, squares: bool = False, goal: bool = False
    ) -> float:
        """Return how far the output is off when some selectables keep such positions.

        ``goal``: beside the blocks that go; else all others are whole.
        """
        named = {self.selectables[i].name: keep for i, keep in keeps.items()}
        return self.lost(named, self.budget.drop if goal else (), squares=squares)

    def _masks(self, keeps: Mapping[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return masks, and those of what groups keep besides."""
        tensors = self.tensors()
        for each in self.selectables:
            if each.name in keeps:
                for name, mask in each.masks(keeps[each.name], tensors).items():
                    masks[name] = masks[name] & mask if name in masks else mask
        return masks

    def estimated(self, cuts: Sequence[Mapping[int, Tensor]]) -> list[float | None]:
        """Return the error of many cuts, from gradients; None where these do not tell it."""
        groups = [[self.selectables[i].group for i in cut] for cut in cuts]
        told = [all(self._only_read(g) or self._only_met(g) for g in each) for each in groups]
        masks, products = list[Masks](), list[Masks]()
        for cut, tells in zip(cuts, told, strict=True):
            if tells:
                keeps = {self.selectables[i].name: keep for i, keep in cut.items()}
                masks.append(self._masks(keeps, {}))
                products.append(self._factors(keeps))
        given = self.model, self.known, masks, self.budget.known.batches, self.repairs, products
        errors = iter(estimated_errors(*given))
        return [next(errors) if tells else None for tells in told]

    def _only_read(self, group: Group | None) -> bool:
        """Tell whether nothing but parameters reads a group, and no router chooses among it."""
        if group is None or group.unchosen:
            return False
        sites = self.known.inferred.sites_of(group.atom)
        return all(site.weight is not None for site in sites)

    def _only_met(self, group: Group | None) -> bool:
        """Tell whether a group is the factors of products alone, each made by one weight."""
        if group is None or group.unchosen or any(m.role == "in" for m in group.members):
            return False
        sites = self.known.inferred.sites_of(group.atom)
        met = all(site.product and not site.harm for site in sites)
        return bool(sites) and met and len(self._made_by(group)) <= FACTORS

    def _made_by(self, group: Group) -> set[str]:
        """Return the weights that make a group: matrices and kernels."""
        made = {m.tensor for m in group.members if m.role == "out"}
        return {name for name in made if len(self.known.tensor(name)) > 1}

    def _factors(self, keeps: Mapping[str, Tensor]) -> Masks:
        """Return the masks of weights whose rows meet others' that go too."""
        found: dict[str, Tensor] = {}
        for each in self.selectables:
            if each.name in keeps and each.group is not None and self._only_met(each.group):
                own = self._masks({each.name: keeps[each.name]}, {})
                found |= {name: own[name] for name in self._made_by(each.group)}
        return found

    def smaller(self, keeps: Sequence[Tensor]) -> nn.Module:
        """Return a smaller model of what stays, to be measured and dropped."""
        model = copied(self.model, borrowing=True)
        on = masking.masks_on(model)
        masking.take_off(model, bake=False)
        named = {s.name: keep for s, keep in zip(self.selectables, keeps, strict=True)}
        plan = Plan.from_keeps(self.known, named)
        result = cut_and_verify(model, self.known, plan, on, self.example, notes=[], verify=False)
        return result.model

    def plan(self, decision: Decision) -> Plan:
        """Return what is kept of each group, and which blocks go, of what was decided as groups."""
        groups = {s.name for s in self.selectables if s.group is not None}
        keeps = {name: keep for name, keep in decision.keeps.items() if name in groups}
        return replace(Plan.from_keeps(self.known, keeps), drop=decision.drop)

    def cut(self, model: nn.Module, decision: Decision, on: Masks, *, verify: bool) -> Result:
        """Cut a model without masks down to a decision, in place.

        Where masks make a pattern, as 2:4, only what was decided as a group is cut: the pattern
        would not survive that rows or columns go because nothing reads them.  So it is where single
        weights were masked of a model whose class loads it by a config, for which widths of layers
        are alike.

        Args:
            model: the run's, or a copy of it.
            decision: what stays of it.
            on: the masks that it was trained with: they stay zero, also where they cannot be cut.
            verify: check that the result is exact.
        """
        notes = list(decision.notes)
        stays = any(s.patterned or (self.named and s.single) for s in self.selectables)
        if stays or all(s.group is not None for s in self.selectables):
            given = self.known, self.plan(decision), decision.masks if stays else on
            return cut_and_verify(model, *given, self.example, notes=notes, verify=verify)
        result = shrink_masks(
            model,
            decision.masks,
            self.example,
            structure=self.known,
            inplace=True,
            verify=verify,
            inexact=self.config.inexact,
        )
        result.notes[:0] = notes
        return result

    def forbidden(self, keeps: Mapping[str, Tensor]) -> list[Forbidden]:
        """Return where a router is not to choose the experts that are masked."""
        if self.structure is None:
            return []
        unchosen = {group.name for group in self.structure.groups if group.unchosen}
        return [
            each
            for name, keep in keeps.items()
            if name in unchosen
            for each in self.structure.forbidden(name, keep.cpu())
        ]

    def besides(self, keeps: Mapping[str, Tensor], drop: Sequence[str]) -> dict[str, Any]:
        """Return what of a smaller model no mask says, as options of a repair."""
        found: dict[str, Any] = {"forbidden": self.forbidden(keeps)}
        if drop and self.structure is not None:
            blocks = [self.structure.block(name) for name in drop]
            found["also"] = frozenset(writers(self.structure, blocks))
            found["skipped"] = passing(block for block in blocks if not block.exact)
        return found


def blocks_that_may_go(config: Config, structure: Structure | None) -> list[str]:
    """Return the blocks that may go, the largest last; none where groups alone go."""
    if not mixes(config) or structure is None:
        return []
    return [b.name for b in sorted(outermost(structure.blocks), key=lambda b: b.params)]
