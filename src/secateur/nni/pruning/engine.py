"""secateur's own pruner at work on NNI's targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni.activations import ActivationMasks
from secateur.nni.config_list import TargetSetting
from secateur.nni.placed import placed, unplaced
from secateur.pruner import Pruner
from secateur.scoring.criteria import criteria, needs
from secateur.scoring.granularity import Granularity
from secateur.selection.decision import sunk
from secateur.selection.select import Request
from secateur.selection.targets import Part, Selectable
from secateur.structure import analyze
from secateur.types import Masks, Scores

from .align import aligned, needs_value


class Engine(Pruner):
    """Decides on NNI's targets: members of a dependency group as one, aligned ones after others.

    Args:
        model: any module, without masks.
        targets: what a config_list came to.
        settings: fields of ``secateur.Config``.
        activations: the targets among them that are inputs and outputs.
        example: returns what the model is run on to score those.
        others: returns the masks of other pruners of the same model, which multiply with these.
        before: masks from which nothing comes back: what they mask goes first.

    Attributes:
        known: scores by name of target, in place of the criterion's.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[TargetSetting],
        settings: Mapping[str, Any],
        activations: ActivationMasks,
        example: Callable[[], Any],
        others: Callable[[], Masks],
        before: Mapping[str, Tensor] | None = None,
    ):
        self.known: dict[str, Tensor] = {}
        self._gone = before or {}
        self.activations = activations
        self._run_on = example
        self._others = others
        self._put_on: Masks = {}
        config = Config(**{"strict": False, **settings})  # bounds go over a ratio, as in NNI
        _check_method(config, targets)
        self.model = model
        self.targets = self._placed(targets)
        self._values = [t for t in self.targets if t.shape is None and needs_value(t)]
        scored = [target for target in self.targets if target.align is None]
        self._gated = "grad" in needs(criteria[config.criterion])
        if self._gated:
            observed = self._observed()
            activations.gates = _gates([t for t in scored if t.name in observed], observed)
        selectables = units(scored, self.tensors(), config.criterion)
        super().__init__(model, config, selectables=selectables)
        self.optimizing.gates = lambda: activations.gates

    def _placed(self, targets: Sequence[TargetSetting]) -> Sequence[TargetSetting]:
        """Return the targets with the dimension of their channels, where a forward can tell."""
        open_ones = [t for t in targets if unplaced(t, self.model)]
        if not open_ones or not any(needs_value(t) for t in open_ones):
            return targets
        args, kwargs = self._run_on()
        with self.activations.off():
            structure = analyze(self.model, kwargs or args)
        return placed(targets, self.model, structure)

    def _observed(self) -> dict[str, Tensor]:
        return self.activations.observed(self._values, self._run_on()) if self._values else {}

    def tensors(self) -> dict[str, Tensor]:
        """Return what is scored by target name: weights below their masks, gates, or values."""
        found: dict[str, Tensor] = {}
        for target in self.targets:
            if target.shape is not None:
                module = self.model.get_submodule(target.module)
                found[target.name] = masking.dense(module, target.target)
        if self._gated:
            return found | {name: gate.detach() for name, gate in self.activations.gates.items()}
        return found | self._observed()

    def scores(self, tensors: Mapping[str, Tensor], given: Scores) -> list[Tensor]:
        found = super().scores(tensors, {**given, **self.known})
        low = min((float(score.min()) for score in found if len(score)), default=0.0)
        for i, each in enumerate(self.selectables):
            for part in each.parts if len(found[i]) else ():
                if part.tensor in self._gone:
                    alive = part.granularity.rows(self._gone[part.tensor]).any(1)
                    found[i] = sunk(found[i], alive, low)
        return found

    def decide(self, share: float = 1.0) -> Masks:
        super().decide(share)
        followers = [target for target in self.targets if target.align is not None]
        shapes = {t.name: t.shape for t in followers if t.shape is not None}
        if any(needs_value(t) for t in followers):
            shapes |= {name: tuple(value.shape) for name, value in self._observed().items()}
        masks = dict(self.masks)
        for target in followers:
            module = self.model.get_submodule(target.module)
            masks[target.name] = aligned(target, masks, shapes.get(target.name), module)
        for name in masks.keys() & self._gone.keys():
            masks[name] = masks[name] & self._gone[name].to(masks[name].device)
        self.decision = replace(self.decision, masks=masks)
        return masks

    def put_on(self) -> None:
        if self.masks is self._put_on:
            return
        self._put_on = self.masks
        values = {target.name for target in self.activations.targets}
        applied = {target.name for target in self.targets if target.applied}
        self.activations.masks = {n: m for n, m in self.masks.items() if n in values & applied}
        self.activations.put_on()
        others = self._others()
        weights = {
            name: mask & others[name] if name in others else mask
            for name, mask in self.masks.items()
            if name in applied - values
        }
        masking.put_on(self.model, weights, differentiable=self.method.learns_masks)

    def release(self) -> None:
        """Let go of the optimizers and the gates; the masks stay as they are."""
        self._unwatch()
        if self.activations.gates:
            self.activations.gates = {}
            if self.activations.on:
                self.activations.put_on()


def units(
    targets: Sequence[TargetSetting], tensors: Mapping[str, Tensor], criterion: str
) -> list[Selectable]:
    """Return what is ranked: each target for itself, members of a dependency group as one."""
    families: dict[Any, list[TargetSetting]] = {}
    for target in targets:
        key = target.dependency_group_id
        families.setdefault(target.name if key is None else ("dependency", key), []).append(target)
    made = []
    for members in families.values():
        first = members[0]
        parts = []
        clusters = 1
        for member in members:
            granularity = member.granularity
            assert isinstance(granularity, Granularity)
            shape = tuple(tensors[member.name].shape)
            parts.append(Part(member.name, granularity))
            clusters = lcm(clusters, member.internal_metric_block or 1, granularity.clusters(shape))
        shape = tuple(tensors[first.name].shape)
        units = parts[0].granularity.units(shape)
        if units % clusters:
            raise ConfigError(
                f"{first.name!r}: internal_metric_block {clusters} does not divide its "
                f"{units} units"
            )
        pooled = first.global_group_id if first.dependency_group_id is None else None
        request = Request(
            torch.empty(0),
            sparsity=first.sparse_ratio,
            threshold=first.sparse_threshold,
            min_sparsity=first.min_sparse_ratio,
            max_sparsity=first.max_sparse_ratio,
            clusters=clusters,
            grain=tensors[first.name].numel() / units,
            pool=pooled,
        )
        name = first.name if len(members) == 1 else f"dependency group of {first.name}"
        made.append(Selectable(name, tuple(parts), criterion, request, "none"))
    return made


def _check_method(config: Config, targets: Sequence[TargetSetting]) -> None:
    if config.method is None:
        return
    values = [t for t in targets if t.shape is None and t.align is None]
    if values:
        names = ", ".join(repr(t.name) for t in values)
        raise ConfigError(f"{names}: {config.method!r} is for weights, not inputs and outputs")
    if config.method == "movement" and (idle := [t for t in targets if not t.applied]):
        names = ", ".join(repr(t.name) for t in idle)
        raise ConfigError(
            f"{names}: apply_method 'bypass' keeps the mask off, through which 'movement' learns"
        )


def _gates(targets: Sequence[TargetSetting], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return factors of 1 for inputs and outputs, whose gradients say how much each matters."""
    made = {}
    for target in targets:
        shape = list(values[target.name].shape)
        dim = getattr(target.granularity, "dim", None)
        if dim is not None:  # one factor for each channel, so that values may have any length
            shape = [n if i == dim % len(shape) else 1 for i, n in enumerate(shape)]
        made[target.name] = torch.ones(shape, requires_grad=True)
    return made
