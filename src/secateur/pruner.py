"""``Pruner``, stepped by your loop like a learning-rate scheduler, and ``prune``, the one call."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .allocate import fewest, ratios_around
from .config import Config
from .errors import ConfigError
from .graph.cost import macs, params
from .schedules import schedules
from .select import Request, select, select_count
from .shrink import Plan, Result, cut_and_verify, group_masks
from .shrink import shrink as shrink_masks
from .structure import Structure, analyze
from .targets import scored, selectables
from .types import Example, Masks


class Pruner:
    """Decides what to remove, a little more at each step, and cuts it out at the end.

    Each ``step`` computes scores from the weights as they are, selects, and sets the masked weights
    to zero; call it after ``optimizer.step()``, so that what is masked stays zero while you train.
    After ``steps`` pruning steps the goal is reached; more calls only keep the masks.

    Args:
        model: any module; its weights are masked in place, its structure is not touched.
        config: what to prune, and how much.
        example: example inputs, as for ``analyze``.
        structure: from ``analyze``, when it is known already.

    Raises:
        ConfigError: the config does not fit the model.
        TraceError: the forward failed on the example.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> config = Config(criterion="l1", sparsity=0.5, schedule="linear", steps=2)
    >>> pruner = Pruner(net, config, torch.zeros(1, 8))
    >>> pruner.step()["sparsity"], pruner.step()["sparsity"]
    (0.25, 0.5)
    >>> pruner.finish().model[0].out_features
    8
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config | Mapping[str, Any],
        example: Example,
        *,
        structure: Structure | None = None,
    ):
        self.model = model
        self.config = config if isinstance(config, Config) else Config.from_dict(config)
        self.example = example
        self.structure = structure or analyze(model, example)
        self.selectables = selectables(model, self.config, self.structure)
        self.keeps: dict[str, Tensor] = {}
        self.masks: Masks = {}
        self.notes: list[str] = []
        self.calls = 0
        self._budgeted()

    def _budgeted(self) -> None:
        if self.config.of == "channels":
            return
        if any(s.group is None for s in self.selectables):
            raise ConfigError(f"of={self.config.of!r} needs granularity 'group' for all targets")
        if any(s.request.sparsity is None for s in self.selectables):
            raise ConfigError(f"of={self.config.of!r} needs a sparsity, not a threshold")
        if len({s.request.sparsity for s in self.selectables}) > 1:
            raise ConfigError(f"of={self.config.of!r} needs one sparsity for all targets")

    @property
    def updates(self) -> int:
        """How many pruning steps have been made."""
        return min(self.calls // self.config.every, self.config.steps)

    def step(self) -> dict[str, float]:
        """Prune up to where the schedule is, keep the masks on, and return ``metrics()``.

        Raises:
            ScoreError: a weight is NaN or infinite; no mask has changed.
        """
        before = self.updates
        self.calls += 1
        if self.updates > before:
            try:
                share = schedules[self.config.schedule](self.updates / self.config.steps)
                self._update(share)
            except BaseException:
                self.calls -= 1
                raise
        self._apply()
        return self.metrics()

    def _update(self, share: float) -> None:
        tensors = dict(self.model.named_parameters())
        generator = torch.Generator().manual_seed(self.config.seed)
        requests = []
        with torch.no_grad():
            for each in self.selectables:
                requests.append(_scaled(scored(each, each.score(tensors, generator)), share))
        keeps, notes = self._select(requests)
        self.notes = notes
        self.keeps = dict(zip((s.name for s in self.selectables), keeps, strict=True))
        masks: Masks = {}
        for each, keep in zip(self.selectables, keeps, strict=True):
            for name, mask in each.masks(keep, tensors).items():
                masks[name] = masks[name] & mask if name in masks else mask
        self.masks = masks

    def _select(self, requests: list[Request]) -> tuple[list[Tensor], list[str]]:
        names = [s.name for s in self.selectables]
        if self.config.of == "channels" or not requests or requests[0].sparsity is None:
            return self._balanced(requests, names)
        allowed = (1 - requests[0].sparsity) * self._cost({})

        def at(ratio: float) -> tuple[list[Tensor], list[str]]:
            return self._balanced([replace(r, sparsity=ratio) for r in requests], names)

        low, high = ratios_around(lambda ratio: self._cost(self._counts(at(ratio)[0])), allowed)
        keeps, notes = at(high)
        return self._one_by_one(requests, at(low)[0], keeps, allowed), notes

    def _one_by_one(
        self, requests: list[Request], more: list[Tensor], fewer: list[Tensor], allowed: float
    ) -> list[Tensor]:
        """Return the first keeps on the way from ``more`` to ``fewer`` that cost little enough.

        One ratio for all groups takes a position from many of them at once, which on a narrow
        network is several percent; here they go in the order of the scores that are lost.
        """
        place = {s.name: i for i, s in enumerate(self.selectables)}
        units = [[place[n] for n in family if n in place] for family in self._families()]
        alone = set(place.values()) - {i for unit in units for i in unit}
        changing = [
            unit
            for unit in [*units, *([i] for i in sorted(alone))]
            if any(not torch.equal(more[i], fewer[i]) for i in unit)
        ]

        def lost(unit: list[int]) -> float:
            return sum(float(requests[i].score[more[i] & ~fewer[i]].sum()) for i in unit)

        changing.sort(key=lost)

        def after(steps: int) -> list[Tensor]:
            done = {i for unit in changing[:steps] for i in unit}
            return [fewer[i] if i in done else keep for i, keep in enumerate(more)]

        steps = fewest(len(changing), lambda k: self._cost(self._counts(after(k))), allowed)
        return after(steps)

    def _counts(self, keeps: list[Tensor]) -> dict[str, int]:
        return {s.name: int(k.sum()) for s, k in zip(self.selectables, keeps, strict=True)}

    def _cost(self, counts: dict[str, int]) -> float:
        measure = macs if self.config.of == "macs" else params
        return measure(self.structure.inferred, self.structure.counter(counts))

    def _balanced(
        self, requests: list[Request], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Select, then give equally many positions to groups that must keep equally many."""
        selection = select(requests, names)
        keeps, notes = list(selection.keeps), list(selection.notes)
        place = {name: i for i, name in enumerate(names)}
        for family in self._families():
            members = [place[name] for name in family if name in place]
            whole = len(members) < len(family)  # a member that is not pruned keeps everything
            counts = [len(keeps[i]) if whole else int(keeps[i].sum()) for i in members]
            width = max(counts) if whole else round(sum(counts) / len(counts))
            step = max((requests[i].round_to for i in members), default=1)
            if width % step and not whole:
                width = min(
                    max(step, step * round(width / step)), *(len(keeps[i]) for i in members)
                )
            for i in members:
                if int(keeps[i].sum()) != width:
                    keeps[i] = select_count(requests[i].score, len(keeps[i]) - width)
        return keeps, notes

    def _families(self) -> list[tuple[str, ...]]:
        families = {tuple(sorted((g.name, *g.sized))) for g in self.structure.groups if g.sized}
        if self.config.uniform:
            kinds: dict[tuple[str, int], list[str]] = {}
            for each in self.selectables:
                if each.group is not None:
                    kind = re.sub(r"\d+", "#", each.name)
                    kinds.setdefault((kind, each.group.size), []).append(each.name)
            families |= {tuple(names) for names in kinds.values() if len(names) > 1}
        return _joined(families)

    def _apply(self) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, mask in self.masks.items():
                parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)

    def metrics(self) -> dict[str, float]:
        """Return what a logger shows: pruning steps made, and the share of positions masked."""
        total = sum(len(keep) for keep in self.keeps.values())
        kept = sum(int(keep.sum()) for keep in self.keeps.values())
        return {
            "pruning_step": float(self.updates),
            "sparsity": 1 - kept / total if total else 0.0,
        }

    def finish(self, *, inplace: bool = True, verify: bool = True) -> Result:
        """Cut out what is masked and return the smaller model with the record of what was done.

        Raises:
            ConfigError: ``step`` was never called long enough to prune anything.
            ShrinkError, VerificationError: the model is as it was before the call.
        """
        if not self.keeps:
            raise ConfigError("nothing is masked yet: call step() before finish()")
        options = {"inplace": inplace, "verify": verify}
        if any(s.group is None for s in self.selectables):
            result = shrink_masks(
                self.model, self.masks, self.example, structure=self.structure, **options
            )
            result.notes[:0] = self.notes
            return result
        plan = Plan.from_keeps(self.structure, self.keeps)
        masks = group_masks(self.structure, self.keeps)
        return cut_and_verify(
            self.model, self.structure, plan, masks, self.example, notes=list(self.notes), **options
        )


def _joined(families: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the families, joined where they share a member: all of them keep equally many."""
    joined: list[set[str]] = []
    for family in sorted(families):
        touching = [other for other in joined if other & set(family)]
        joined = [other for other in joined if other not in touching]
        joined.append(set(family).union(*touching))
    return sorted(tuple(sorted(family)) for family in joined)


def _scaled(request: Request, share: float) -> Request:
    def part(value: float | None) -> float | None:
        return None if value is None else value * share

    return replace(
        request,
        sparsity=part(request.sparsity),
        threshold=part(request.threshold),
        min_sparsity=part(request.min_sparsity),
        max_sparsity=part(request.max_sparsity),
    )


def prune(
    model: nn.Module,
    example_inputs: Example,
    sparsity: float | None = None,
    criterion: str = "l2",
    *,
    config: Config | Mapping[str, Any] | None = None,
    inplace: bool = False,
    verify: bool = True,
    **settings: Any,
) -> Result:
    """Prune a model in one shot and return the smaller one.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        sparsity: the share to remove, of channels or of what ``of`` says.
        criterion: a name in ``secateur.criteria``.
        config: all settings at once, instead of ``sparsity``, ``criterion`` and ``settings``.
        inplace: cut this very model; by default a deep copy, so that the dense one is there still.
        verify: compare the smaller with the masked model.
        settings: any other field of ``Config``: ``of="macs"``, ``scope="global"``, ``round_to=8``,
            ``exclude=["fc"]``, ``inexact=True``, …

    Returns:
        The result: print it; ``result.model`` is the smaller model.

    Raises:
        ConfigError: a setting is wrong, or selects nothing in this model.
        TraceError: the forward failed on the example inputs.
        ShrinkError, VerificationError: it could not be cut; ``model`` is unchanged.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> prune(net, torch.zeros(1, 8), sparsity=0.25).model[0].out_features
    12
    """
    if config is None:
        if sparsity is None and settings.get("threshold") is None and not settings.get("targets"):
            raise ConfigError("prune() needs sparsity=…, threshold=… or config=…")
        given = {**settings, "criterion": criterion}
        config = Config.from_dict(given if sparsity is None else {**given, "sparsity": sparsity})
    elif sparsity is not None or settings:
        raise ConfigError("give either config=… or single settings to prune(), not both")
    elif not isinstance(config, Config):
        config = Config.from_dict(config)
    if config.schedule != "constant" or config.steps != 1:
        raise ConfigError("prune() prunes in one shot; for a schedule use Pruner in your loop")
    structure = analyze(model, example_inputs)
    pruner = Pruner(
        model if inplace else copy.deepcopy(model), config, example_inputs, structure=structure
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()} if inplace else {}
    try:
        for _ in range(config.every):
            pruner.step()
        return pruner.finish(inplace=True, verify=verify)
    except BaseException:
        with torch.no_grad():
            for name, parameter in model.named_parameters() if inplace else ():
                parameter.copy_(before[name])
        raise
