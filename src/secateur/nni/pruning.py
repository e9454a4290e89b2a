"""NNI's pruners: its constructors, methods and masks, on secateur's criteria and selection.

Migrating is replacing ``nni.compression`` by ``secateur.nni``:

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
>>> pruner = L1NormPruner(model, [{"op_names": ["0"], "sparse_ratio": 0.5}])
>>> _, masks = pruner.compress()
>>> masks["0"]["weight"].sum((1, 2, 3)).count_nonzero().item(), masks["0"]["bias"].sum().item()
(4, 4.0)
>>> model = pruner.unwrap_model()
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any, Self

import torch
from torch import Tensor, nn

from secateur import masking
from secateur.errors import ConfigError, MaskError, did_you_mean
from secateur.granularity import Granularity
from secateur.select import Request, select
from secateur.targets import Part, Selectable, scored
from secateur.types import call_arguments

from .activations import ActivationMasks
from .config_list import TargetSetting, parse, resolve
from .targets import full_name, is_activation

NniMasks = dict[str, dict[str, Tensor | None]]


class Pruner:
    """What all of NNI's pruners do; a subclass names its criterion and its default granularity.

    Args:
        model: any module; masks are put on it, its class and its paths stay.
        config_list: NNI's configuration, see ``secateur.nni.config_list``.
        evaluator: only for targets that need data; its ``dummy_input`` is used.
        existed_wrappers: accepted for NNI's signature, and not needed.

    Raises:
        ConfigError: the config_list is wrong or does not fit the model; all problems at once.
    """

    criterion = ""
    default_granularity = "out_channel"

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Any = None,
        existed_wrappers: Any = None,
    ):
        self.bound_model = model
        self.evaluator = evaluator
        self.config_list = config_list
        entries = parse(config_list)
        self.targets = resolve(entries, model, default_granularity=self.default_granularity)
        aimless = [
            f"entry {t.entry}: {t.name!r} has no goal; give sparse_ratio or sparse_threshold."
            for t in self.targets
            if t.align is None and t.sparse_ratio is None and t.sparse_threshold is None
        ]
        if aimless:
            raise ConfigError(*aimless)
        self.activations = ActivationMasks(model, [t for t in self.targets if t.shape is None])
        self.masks: dict[str, Tensor] = {}  # full target name → bool, True is kept
        self.notes: list[str] = []
        self._fused: Pruner | None = None

    @classmethod
    def from_compressor(
        cls,
        compressor: Pruner,
        new_config_list: list[dict[str, Any]],
        evaluator: Any = None,
    ) -> Self:
        """Return a pruner on the same model whose masks multiply with those of ``compressor``."""
        evaluator = evaluator if evaluator is not None else compressor.evaluator
        pruner = cls(compressor.bound_model, new_config_list, evaluator)
        pruner._fused = compressor
        return pruner

    # -- NNI's methods ---------------------------------------------------------------------------

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, NniMasks]:
        """Make the masks, put them on the model, and return both.

        ``max_steps`` and ``max_epochs`` are for pruners that train; these do not.
        """
        self.generate_masks()
        self.wrap_model()
        return self.bound_model, self.get_masks()

    def generate_masks(self) -> NniMasks:
        """Compute the masks from the weights as they are, and return them.

        Raises:
            ScoreError: a weight is NaN or infinite.
            ConfigError: an input or output is a target, and there is nothing to run the model on.
        """
        tensors = self._tensors()
        units = _units([t for t in self.targets if t.align is None], tensors, self.criterion)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            requests = [scored(unit, unit.score(tensors, generator)) for unit in units]
        selection = select(requests, [unit.name for unit in units])
        self.notes = selection.notes
        masks: dict[str, Tensor] = {}
        for unit, keep in zip(units, selection.keeps, strict=True):
            masks |= unit.masks(keep, tensors)
        for target in self.targets:
            if target.align is not None:
                masks[target.name] = _aligned(target, masks, tensors)
        self.masks = masks
        return self.get_masks()

    def get_masks(self) -> NniMasks:
        """Return ``{module: {target: 0/1 float tensor}}``.

        None stands for a target without a mask yet, and for the bias that a layer does not have.
        """
        found: NniMasks = self._fused.get_masks() if self._fused else {}
        for target in self.targets:
            mask = self.masks.get(target.name)
            value = None if mask is None else mask.float()
            before = found.setdefault(target.module, {}).get(target.target)
            found[target.module][target.target] = (
                value if before is None else before if value is None else before * value
            )
        for module, by_target in found.items():
            for name, parameter in self.bound_model.get_submodule(module)._parameters.items():
                if parameter is None:
                    by_target.setdefault(name, None)
        return found

    def update_masks(self, masks: Mapping[str, Mapping[str, Tensor | None]]) -> None:
        """Take masks made elsewhere, in NNI's format; if masks are on, these take their place.

        Raises:
            MaskError: a module or target is not one of this pruner's, or a shape does not fit.
        """
        known = {t.name: t for each in self._family() for t in each.targets}
        fresh: dict[str, Tensor] = {}
        for module, by_target in masks.items():
            for name, mask in by_target.items():
                full = full_name(module, name)
                if mask is None:
                    continue
                if full not in known:
                    raise MaskError(f"{full!r} is no target here.{did_you_mean(full, known)}")
                fresh[full] = _boolean(known[full], mask)
        for pruner in self._family():
            own = [t.name for t in pruner.targets if t.name in fresh]
            pruner.masks |= {name: fresh.pop(name) for name in own}
        if masking.is_masked(self.bound_model) or self.activations.on:
            self.wrap_model()

    def wrap_model(self) -> None:
        """Put the masks on: weights through a parametrization, inputs and outputs by hooks."""
        for pruner in self._family():
            activations = {t.name for t in pruner.activations.targets}
            pruner.activations.masks = {n: m for n, m in pruner.masks.items() if n in activations}
            pruner.activations.put_on()
        masking.put_on(self.bound_model, self.parameter_masks())

    def unwrap_model(self) -> nn.Module:
        """Take the masks off and return the bare model; masked weights stay zero."""
        for pruner in self._family():
            pruner.activations.take_off()
        masking.take_off(self.bound_model)
        return self.bound_model

    def parameter_masks(self) -> dict[str, Tensor]:
        """Return the masks of parameters by full name, True is kept, fused ones included."""
        found: dict[str, Tensor] = {}
        for module, by_target in self.get_masks().items():
            for name, mask in by_target.items():
                if mask is not None and not is_activation(name):
                    found[full_name(module, name)] = mask.bool()
        return found

    # -- how -------------------------------------------------------------------------------------

    def _family(self) -> list[Pruner]:
        """Return this pruner and those that it was made from."""
        return [self, *(self._fused._family() if self._fused else ())]

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for target in self.targets:
            if target.shape is not None:
                module = self.bound_model.get_submodule(target.module)
                tensors[target.name] = masking.dense(module, target.target)
        if self.activations.targets:
            tensors |= self.activations.observed(self._example())
        return tensors

    def _example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        example = getattr(self.evaluator, "dummy_input", None)
        if example is None:
            names = ", ".join(repr(t.name) for t in self.activations.targets)
            raise ConfigError(
                f"{names}: inputs and outputs are scored on data; give an evaluator with a "
                "dummy_input"
            )
        return call_arguments(example)


class LevelPruner(Pruner):
    """Removes single weights of the smallest magnitude."""

    criterion = "magnitude"
    default_granularity = "element"


class L1NormPruner(Pruner):
    """Removes output channels of the smallest L1 norm (Li et al. 2017, arXiv:1608.08710)."""

    criterion = "l1"


class L2NormPruner(Pruner):
    """Removes output channels of the smallest L2 norm."""

    criterion = "l2"


class FPGMPruner(Pruner):
    """Removes the channels nearest to the geometric median (He et al. 2019, arXiv:1811.00250)."""

    criterion = "fpgm"


def _units(
    targets: list[TargetSetting], tensors: Mapping[str, Tensor], criterion: str
) -> list[Selectable]:
    """Return what is ranked: each target for itself, members of a dependency group as one."""
    families: dict[Any, list[TargetSetting]] = {}
    for target in targets:
        key = target.dependency_group_id
        families.setdefault(target.name if key is None else ("dependency", key), []).append(target)
    units = []
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
        blocks = parts[0].granularity.blocks(shape)
        if blocks % clusters:
            raise ConfigError(
                f"{first.name!r}: internal_metric_block {clusters} does not divide its "
                f"{blocks} blocks"
            )
        pooled = first.global_group_id if first.dependency_group_id is None else None
        request = Request(
            torch.empty(0),
            sparsity=first.sparse_ratio,
            threshold=first.sparse_threshold,
            min_sparsity=first.min_sparse_ratio,
            max_sparsity=first.max_sparse_ratio,
            clusters=clusters,
            grain=tensors[first.name].numel() / blocks,
            pool=pooled,
        )
        name = first.name if len(members) == 1 else f"dependency group of {first.name}"
        units.append(Selectable(name, tuple(parts), criterion, request, "none"))
    return units


def _aligned(
    target: TargetSetting, masks: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Tensor:
    """Return the mask of a target that follows another one's."""
    assert target.align is not None
    source = masks[target.align.name]
    keep_dims = {d % source.ndim for d in target.align.dims}
    gone = [d for d in range(source.ndim) if d not in keep_dims]
    reduced = source.flatten() if not gone else source
    for d in sorted(gone, reverse=True):
        reduced = reduced.any(d)
    shape = tuple(tensors[target.name].shape)
    if tuple(reduced.shape) == shape:
        return reduced.clone()
    if target.granularity is None:
        raise ConfigError(
            f"{target.name!r} of shape {shape} cannot follow {target.align.name!r} reduced to "
            f"{tuple(reduced.shape)}: give it a granularity that says where those lie"
        )
    return target.granularity.expand(reduced.flatten(), shape)


def _boolean(target: TargetSetting, mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise MaskError(f"the mask of {target.name!r} is a {type(mask).__name__}, not a tensor")
    if target.shape is not None and tuple(mask.shape) != tuple(target.shape):
        raise MaskError(f"the mask of {target.name!r} is {tuple(mask.shape)}, not {target.shape}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError(f"the mask of {target.name!r} has values other than 0 and 1")
    return mask.bool()
