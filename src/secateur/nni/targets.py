"""The targets of one module: which it has, and what an entry's settings come to for each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from reprlib import repr as brief
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from secateur.errors import ConfigError, did_you_mean
from secateur.scoring.granularity import Channel, Element, Granularity
from secateur.settings import granularity_from, pattern_share, problems_in, stores_transposed

from .channels import channel_dim
from .settings import GOALS, GRANULARITIES, AlignSetting, Entry, Setting, merged, whole_name

_SCORED = Setting()
_BIAS = Setting(align=AlignSetting(target_name="weight", dims=(0,)))
_TRANSPOSED_BIAS = Setting(align=AlignSetting(target_name="weight", dims=(1,)))

_known: dict[str, dict[str, Setting]] = {
    **{
        f"{kind}{rank}d": {"weight": _SCORED, "bias": _BIAS}
        for kind in ("Conv", "BatchNorm")
        for rank in (1, 2, 3)
    },
    **{
        f"ConvTranspose{rank}d": {"weight": _SCORED, "bias": _TRANSPOSED_BIAS} for rank in (1, 2, 3)
    },
    "Linear": {"weight": _SCORED, "bias": _BIAS},
    "Embedding": {"weight": _SCORED},
}


def full_name(module: str, target: str) -> str:
    """Return "module.target"; the model itself has no name."""
    return f"{module}.{target}" if module else target


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class, also while its weights are masked."""
    return type_before_parametrizations(module).__name__


@dataclass(frozen=True)
class Align:
    """Masked where the source's mask, reduced over all dimensions but ``dims``, is all zero."""

    module_name: str
    target_name: str
    dims: tuple[int, ...]

    @property
    def name(self) -> str:
        """The source's full name, as "layer1.0.conv1.weight"."""
        return full_name(self.module_name, self.target_name)


@dataclass(frozen=True)
class TargetSetting:
    """One tensor of one module, and how it is pruned."""

    module: str
    target: str  # a parameter or buffer, or "_input_…", "_output_…"
    module_type: str
    shape: tuple[int, ...] | None  # None for inputs and outputs: not known before a forward
    granularity: Granularity | None  # of an aligned target: where ``align.dims`` lie in it
    sparse_ratio: float | None = None
    sparse_threshold: float | None = None
    min_sparse_ratio: float | None = None
    max_sparse_ratio: float | None = None
    global_group_id: int | str | None = None
    dependency_group_id: int | str | None = None
    internal_metric_block: int | None = None
    apply_method: str = "mul"
    align: Align | None = None  # then the target has no scores of its own
    entry: int = 0  # the entry that it comes from, counted from 1

    @property
    def name(self) -> str:
        """The full name, as "layer1.0.conv1.weight"."""
        return full_name(self.module, self.target)

    @property
    def applied(self) -> bool:
        """Whether the mask is put on the model; with ``bypass`` it is only made."""
        return self.apply_method != "bypass"

    @property
    def units(self) -> int | None:
        """How many scores the target has; None while its shape is not known."""
        if self.shape is None or self.granularity is None:
            return None
        return self.granularity.units(self.shape)


def register_module(type_name: str, targets: Mapping[str, Any] | Iterable[str]) -> None:
    """Make a module class known: the targets that it has by default, each with its settings.

    A class that is known already gets the new ones.  Subclasses inherit them.

    >>> register_module("Scale", {"gamma": {"granularity": "element"}})
    """
    if isinstance(targets, str) or not isinstance(targets, (Mapping, Iterable)):
        raise ConfigError(
            f"targets of {type_name!r}: must be a list or a dict, got {brief(targets)}."
        )
    settings = dict(targets) if isinstance(targets, Mapping) else dict.fromkeys(targets, {})
    made, problems = {}, []
    for target, setting in settings.items():
        try:
            made[whole_name(str(target))] = Setting.model_validate(setting)
        except ValidationError as error:
            found = problems_in(error, Setting.model_fields)
            problems += [f"{type_name}.{target}, key {place!r}: {text}" for place, text in found]
    if problems:
        raise ConfigError(*problems)
    _known[type_name] = made


def target_settings(
    entry: Entry, number: int, name: str, module: nn.Module, default: str, *, lenient: bool
) -> tuple[list[TargetSetting], list[str]]:
    """Return what an entry sets for one module, and what is wrong with it.

    ``default`` is the granularity called "default".  A ``lenient`` module, which only a regular
    expression selects, may lack the targets that the entry names.
    """
    known = _known_targets(module)
    targets = entry.target_names or tuple(dict.fromkeys([*known, *entry.target_settings]))
    kind = class_name(module)
    if not targets and not lenient:
        return [], [
            f"{name!r} is a {kind}, a class without known targets;"
            f" give 'target_names', or call register_module({kind!r}, ...)."
        ]
    made: list[TargetSetting] = []
    problems: list[str] = []
    for target in targets:
        if not has_target(module, target):
            if not lenient:
                near = did_you_mean(target, _tensors(module))
                problems.append(f"{name!r} ({kind}) has no target {target!r}.{near}")
            continue
        if not is_activation(target) and getattr(module, target) is None:
            continue  # a layer made with bias=False or affine=False
        written = _written(entry, known.get(target, Setting()), target, targets)
        try:
            record = _record(written, number, name, module, target, default)
        except ConfigError as error:
            problems += [f"{full_name(name, target)!r}: {problem}" for problem in error.problems]
        else:
            made.append(record)
    return made, problems


def _written(entry: Entry, known: Setting, target: str, targets: Collection[str]) -> dict[str, Any]:
    """Return the class's settings, under the entry's shortcuts, under the target's own."""
    own = entry.target_settings.get(target, Setting()).given()
    written = merged(entry.given(), own)
    default = known.given()
    align = default.pop("align", None)
    decided = "align" in written or any(own.get(goal) is not None for goal in GOALS)
    if align and not decided and (align.module_name or align.target_name in targets):
        # the entry's shortcuts are for the targets that have scores
        shortcuts = {key: written[key] for key in written if key in own or key == "apply_method"}
        return {**default, **shortcuts, "align": align}
    if any(written.get(goal) is not None for goal in GOALS):
        default = {key: default[key] for key in default if key not in GOALS}
    return {**default, **written}


def settings_by_target(
    entry: Entry, module: nn.Module | type[nn.Module] | str
) -> dict[str, dict[str, Any]]:
    """Return what an entry sets for each target of a module class, as a config_list spells it.

    Raises:
        ConfigError: the class has no known targets.
    """
    if isinstance(module, str):
        known, kind = _known.get(module, {}), module
    elif isinstance(module, nn.Module):
        known, kind = _known_targets(module), class_name(module)
    else:
        known, kind = _of_class(module), module.__name__
    targets = entry.target_names or tuple(dict.fromkeys([*known, *entry.target_settings]))
    if not targets:
        raise ConfigError(f"{kind} is a class without known targets; register them first.")
    found = {}
    for target in targets:
        written = _written(entry, known.get(target, Setting()), target, targets)
        align = written.get("align")
        plain = {"align": align.model_dump()} if align is not None else {}
        found[target] = {k: v for k, v in {**written, **plain}.items() if v is not None}
    return found


def _record(
    written: Mapping[str, Any], number: int, name: str, module: nn.Module, target: str, default: str
) -> TargetSetting:
    tensor = None if is_activation(target) else getattr(module, target)
    if tensor is not None and is_lazy(tensor):
        raise ConfigError("has no shape yet; run the model once before it is pruned.")
    shape = None if tensor is None else tuple(tensor.shape)
    settings = {key: value for key, value in written.items() if value is not None}
    align = settings.pop("align", None)
    value = settings.pop("granularity", "default")
    granularity = None
    if not align or value != "default":
        granularity = _granularity(value, default, module, shape)
        units = None if shape is None else granularity.units(shape)
        parts = settings.get("internal_metric_block", 1)
        if units is not None and units % parts:
            raise ConfigError(f"its {units} scores do not split into {parts} equal parts.")
    if shape is not None and settings.get("apply_method") == "add":
        raise ConfigError("apply_method 'add' is for inputs and outputs; a weight takes 'mul'.")
    exact = pattern_share(value)
    if exact is not None and not align:
        settings["sparse_ratio"] = exact
    return TargetSetting(
        module=name,
        target=target,
        module_type=class_name(module),
        shape=shape,
        granularity=granularity,
        align=align and Align(align.module_name or name, align.target_name, align.dims),
        entry=number,
        **settings,
    )


def _granularity(
    value: Any, default: str, module: nn.Module, shape: tuple[int, ...] | None
) -> Granularity:
    if value == "default":
        value = "per_channel" if shape is None and default == "out_channel" else default
    if value == "per_channel" and shape is None:
        return Channel(channel_dim(module) or -1)
    if value == "per_channel" or (shape is None and value in ("out_channel", "in_channel")):
        right = "'per_channel'" if shape is None else "'out_channel' or 'in_channel'"
        raise ConfigError(f"granularity {value!r} does not fit here; use {right}.")
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        sizes, side, fill = value
        if shape is None and (side, fill) != ("front", 1):
            raise ConfigError(f"its dimensions are not known; write all sizes for {value!r}.")
        more = (fill,) * (0 if shape is None else len(shape) - len(sizes))
        value = more + sizes if side == "front" else sizes + more
    meant = granularity_from(value, transposed=stores_transposed(module), known=GRANULARITIES)
    return meant or Element()


def known_class(module: nn.Module) -> bool:
    """Tell whether a module's class, or one that it extends, has known targets."""
    return bool(_of_class(type(module)))


def _known_targets(module: nn.Module) -> dict[str, Setting]:
    """Return the default targets of a module's class, or of the nearest class that it extends."""
    known = _of_class(type(module))
    return {name: each for name, each in known.items() if _aligns(module, name, each.align)}


def _of_class(module_class: type[nn.Module]) -> dict[str, Setting]:
    names = (kind.__name__ for kind in module_class.__mro__)
    return next((_known[name] for name in names if name in _known), {})


def _aligns(module: nn.Module, target: str, align: AlignSetting | None) -> bool:
    """Tell whether a default alignment fits: not for the bias of a grouped ConvTranspose2d."""
    source = getattr(module, align.target_name, None) if align else None
    tensor = getattr(module, target, None)
    if align is None or not isinstance(source, Tensor) or not isinstance(tensor, Tensor):
        return True
    if is_lazy(source) or is_lazy(tensor) or max(align.dims, default=0) >= source.ndim:
        return True
    return prod(source.shape[dim] for dim in align.dims) == tensor.numel()


def is_activation(target: str) -> bool:
    """Tell whether a target is an input or output of its module."""
    return target.startswith(("_input_", "_output_"))


def has_target(module: nn.Module, target: str) -> bool:
    """Tell whether a module has a target, be it an input, an output, a tensor or None."""
    value = getattr(module, target, False)
    return is_activation(target) or value is None or isinstance(value, Tensor)


def _tensors(module: nn.Module) -> list[str]:
    named = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [*(name for name, _ in named), "_input_0", "_output_0"]
