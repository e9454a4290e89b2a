"""What layers of the model make, held against what the same layers of its teacher make."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, did_you_mean
from secateur.runtime.undo import unhooked_with

log = logging.getLogger(__name__)


class Hidden:
    """How far the outputs of layers are from the teacher's, where both have one shape.

    Romero et al., 2015, arXiv:1412.6550 (FitNets); Jiao et al., 2020, arXiv:1909.10351

    Args:
        model: what is trained.
        teacher: of the same class, wider or as wide.
        names: shell patterns over the names of modules.

    Raises:
        ConfigError: a word names no module that both have.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module, names: Sequence[str]):
        both = dict(teacher.named_modules())
        known = [name for name, _ in model.named_modules() if name and name in both]
        words = [names] if isinstance(names, str) else list(names)
        odd = [w for w in words if not any(fnmatchcase(name, w) for name in known)]
        if odd:
            raise ConfigError(
                *(f"hidden: {w!r} names no layer of both.{did_you_mean(w, known)}" for w in odd)
            )
        self.matched: tuple[str, ...] | None = None
        self._sides = (_Side(), _Side())
        self._chosen = [name for name in known if any(fnmatchcase(name, w) for w in words)]
        self._ends: list[Callable[[], object]] = []
        for side, module in zip(self._sides, (model, teacher), strict=True):
            for name in self._chosen:
                layer = module.get_submodule(name)
                hook = _keeper(layer, side, name)
                self._ends.append(unhooked_with(self, layer, hook))
                layer.register_forward_hook(hook)

    def watch(self, side: int, on: bool) -> None:
        """Keep outputs of the model's (0) or the teacher's (1) layers, or no longer."""
        if on:
            self._sides[side].made = {}
        self._sides[side].open = on

    def loss(self, masks: Sequence[Tensor]) -> Tensor:
        r"""Return the mean over layers of :math:`\|h_S - h_T\|^2 / \|h_T\|^2`, and forget them.

        Args:
            masks: bool, ``(batch, positions)``, False where there is padding, which does not count
                in outputs of ``(batch, positions, …)`` or ``(positions, batch, …)``.

        Raises:
            ConfigError: no layer has ever had an output of the teacher's shape.
        """
        student, teacher = (side.made for side in self._sides)
        alike = {
            name: list(zip(student[name], told, strict=True))
            for name, told in teacher.items()
            if len(student.get(name, ())) == len(told) and all(map(_alike, student[name], told))
        }
        self._tell(tuple(alike))
        for side in self._sides:
            side.made = {}
        terms = [_error(*pair, masks) for found in alike.values() for pair in found]
        place = terms[0].device if terms else None
        return torch.stack([term.to(place) for term in terms]).mean() if terms else torch.zeros(())

    def close(self) -> None:
        """Watch nothing any longer."""
        for end in self._ends:
            end()

    def _tell(self, alike: tuple[str, ...]) -> None:
        """Say so where no layer can be matched: at once, or when a cut has come to all."""
        if not alike and self.matched is None:
            raise ConfigError(
                f"hidden: none of {', '.join(self._chosen[:5])} runs, with gradients, and has "
                "outputs of the teacher's shape: name layers that are called and whose widths are "
                "not pruned, such as whole blocks"
            )
        if not alike and self.matched:
            log.warning("hidden: no layer has outputs of the teacher's shape any longer")
        self.matched = alike


class _Side:
    """Outputs by the name of the module, each in the order of its calls, while it is open."""

    def __init__(self) -> None:
        self.open = False
        self.made: dict[str, list[Tensor]] = {}


def _keeper(module: nn.Module, side: _Side, name: str) -> Any:
    """Return a forward hook: a function, which copies of the module share and do not obey."""
    watched = weakref.ref(module)

    def keep(run: nn.Module, args: Any, output: Any) -> None:
        if side.open and run is watched():
            found = _tensor_of(output)
            if found is not None:
                side.made.setdefault(name, []).append(found)

    return keep


def _tensor_of(output: Any) -> Tensor | None:
    """Return an output, or the first tensor of several."""
    if isinstance(output, Tensor):
        return output
    several = output.values() if isinstance(output, Mapping) else output
    parts = several if isinstance(several, (list, tuple)) else list(several or ())
    return next((part for part in parts if isinstance(part, Tensor)), None)


def _alike(mine: Tensor, told: Tensor) -> bool:
    return mine.shape == told.shape and mine.requires_grad and mine.is_floating_point()


def shown(masks: Sequence[Tensor], shape: Sequence[int]) -> Tensor | None:
    """Return where all masks that are of the first two dimensions of a shape show data, or None.

    >>> shown([torch.ones(2, 3).bool()], (3, 2, 8)).shape
    torch.Size([3, 2])
    """
    wanted = tuple(shape[:2])
    found = [mask if mask.shape == wanted else mask.mT for mask in masks]
    fitting = [mask for mask in found if mask.shape == wanted]
    return torch.stack(fitting).all(0) if fitting else None


def _error(mine: Tensor, told: Tensor, masks: Sequence[Tensor]) -> Tensor:
    wide = torch.promote_types(mine.dtype, torch.float32)
    mine, told = mine.to(wide), told.detach().to(mine.device, wide)
    where = shown(masks, mine.shape) if mine.ndim > 2 else None
    if where is not None:
        mine, told = mine[where.to(mine.device)], told[where.to(mine.device)]
    size = told.square().sum()
    there = size > 0  # of nothing there is no share
    return (mine - told).square().sum() / size.where(there, 1.0) * there
