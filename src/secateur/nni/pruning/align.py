"""Masks of aligned targets: they have no scores, and follow the mask of another target."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.nni.channels import spread
from secateur.nni.config_list import TargetSetting
from secateur.scoring.granularity import Channel, Tile


def needs_value(target: TargetSetting) -> bool:
    """Tell whether the mask of an input or output cannot be made before the model has run."""
    if target.shape is not None:
        return False
    return target.align is None or _line(target) is None


def aligned(
    target: TargetSetting,
    masks: Mapping[str, Tensor],
    shape: tuple[int, ...] | None,
    module: nn.Module,
) -> Tensor:
    """Return the mask of a target that follows another one's.

    Args:
        target: that follows.
        masks: those made already, by target name.
        shape: the target's, or None where it is not known: of an input or output.
        module: whose target it is.

    Raises:
        ConfigError: the shapes do not tell where the positions lie.
    """
    kept = _kept(target, masks)
    if target.shape is None and _line(target) == ():
        return spread(kept, module) if kept.ndim == 1 else kept
    line = _line(target) if target.shape is None else None
    if line is not None and kept.ndim == 1:
        return kept.view([-1 if size == 1 else 1 for size in line])
    if shape is None or tuple(kept.shape) == shape:
        return kept.clone()
    if target.granularity is None:
        assert target.align is not None
        raise ConfigError(
            f"{target.name!r} of shape {shape} cannot follow {target.align.name!r} reduced to "
            f"{tuple(kept.shape)}: give it a granularity that says where those lie"
        )
    return target.granularity.expand(kept.flatten(), shape)


def _kept(target: TargetSetting, masks: Mapping[str, Tensor]) -> Tensor:
    """Return the source's mask, reduced over all dimensions but those that are named."""
    assert target.align is not None
    source = masks[target.align.name]
    named = {d % source.ndim for d in target.align.dims}
    gone = [d for d in range(source.ndim) if d not in named]
    reduced = source.flatten() if not gone else source
    for d in sorted(gone, reverse=True):
        reduced = reduced.any(d)
    return reduced


def _line(target: TargetSetting) -> tuple[int, ...] | None:
    """Return the tile sizes of an input or output whose units are whole but along one dimension.

    Where its channels are followed it is (), and None where only its shape can tell.
    """
    kind = target.granularity
    if kind is None or isinstance(kind, Channel):
        return ()
    plain = isinstance(kind, Tile) and set(kind.sizes) <= {1, -1} and kind.sizes.count(1) == 1
    return kind.sizes if plain and isinstance(kind, Tile) else None
