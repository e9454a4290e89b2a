"""What NNI 2.x's pruners of one shot do: its methods and modes, on the pruner of 3.0's face."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni.dependencies import auto_set_dependency_group_ids
from secateur.nni.evaluators import Evaluator
from secateur.nni.masks import NniMasks
from secateur.nni.pruning.engine import Engine
from secateur.nni.pruning.pruner import Pruner
from secateur.runtime.io import write_tensors
from secateur.runtime.undo import Undo
from secateur.types import Example

from .config_list import Goal, canonical, modern

log = logging.getLogger(__name__)

MODES = ("normal", "dependency_aware", "global", "balance")


class OneShotPruner(Pruner):
    """Base of them: a subclass names its criterion, and how it learns if it does.

    Args:
        model: any module, or None: then ``reset`` gives it.
        config_list: NNI 2.x's configuration, or None likewise.
        evaluator: trains the model, where that is needed.
        mode: "normal": each layer for itself; "dependency_aware": what must lose the same channels
            does; "global": the layers of an entry are ranked together.
        dummy_input: example inputs, for "dependency_aware".

    Attributes:
        goals: what each layer is to lose, as ``secateur.nni.pruning.v2.config_list`` has it.

    Raises:
        ConfigError: the config_list is wrong or does not fit the model; all problems at once.
    """

    modes: tuple[str, ...] = ("normal",)

    def __init__(
        self,
        model: nn.Module | None,
        config_list: Sequence[Mapping[str, Any]] | None,
        evaluator: Evaluator | None = None,
        mode: str = "normal",
        dummy_input: Example = None,
    ):
        if mode not in self.modes:
            raise ConfigError(f"mode must be one of {', '.join(self.modes)}, got {mode!r}.")
        if mode == "dependency_aware" and dummy_input is None:
            raise ConfigError(
                "mode 'dependency_aware' needs dummy_input=…, which the model runs on"
            )
        if self.trains and not hasattr(evaluator, "train"):
            raise ConfigError(f"{type(self).__name__} trains the model: give it an evaluator.")
        self.evaluator, self.mode, self.dummy_input = evaluator, mode, dummy_input
        self._lent = evaluator
        if (model is None) != (config_list is None):
            raise ConfigError("give model and config_list, or neither and call reset() later")
        if model is not None and config_list is not None:
            self.reset(model, config_list)

    def reset(
        self,
        model: nn.Module,
        config_list: Sequence[Mapping[str, Any]],
        *,
        dense: nn.Module | None = None,
    ) -> None:
        """Begin anew with a model and its configuration.

        Args:
            model: without masks.
            config_list: as for the constructor.
            dense: the model that the evaluator was built for, where ``model`` is a copy of it.
        """
        self.goals = canonical(config_list, model)
        super().__init__(model, self._modern(model), self.evaluator)
        self.config_list = list(map(dict, config_list))
        if dense is not None and self._lent is not None:
            self.evaluator = self._lent.bound_to(model, dense)

    def compress(  # type: ignore[override]
        self,
    ) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
        """Make the masks, put them on the model, and return both; nothing is taken off again.

        Masks that ``load_masks`` gave stay: what they mask goes first.
        """
        self._bound()
        if not self.trains:
            self.generate_masks()
        else:
            self._take_off(bake=False)
            with Undo() as undo:
                undo(partial(masking.take_off, self.bound_model, bake=False))
                engine = self._engine()
                undo(engine.release)
                masking.put_on(self.bound_model, self._given)
                self._learn(engine)
                masking.take_off(self.bound_model, bake=False)
                self.masks, self.notes = dict(engine.decide()), engine.notes
        self.wrap_model()
        return self.bound_model, self.masks_of_layers()

    def masks_of_layers(self) -> dict[str, dict[str, Tensor]]:
        """Return ``{layer: {"weight": mask, "bias": mask}}``, of what has a mask."""
        named = self.get_masks().items()
        found = {n: {t: m for t, m in by.items() if m is not None} for n, by in named}
        return {name: masks for name, masks in found.items() if masks}

    def load_masks(self, masks: Mapping[str, Mapping[str, Tensor | None]]) -> None:
        """Put masks on, which the next ``compress`` only adds to.

        Raises:
            MaskError: a layer is not one of the config_list, or a shape does not fit.
        """
        self.update_masks(masks)
        self._given = {n: m for n, m in self.masks.items() if not bool(m.all())}
        self.wrap_model()

    def show_pruned_weights(self, dim: int = 0) -> None:
        """Log how many indices along a dimension of each weight are left, of how many.

        Raises:
            ConfigError: a weight has no such dimension.
        """
        for name, by_target in self.masks_of_layers().items():
            mask = by_target["weight"]
            if type(dim) is not int or not -mask.ndim <= dim < mask.ndim:
                raise ConfigError(
                    f"show_pruned_weights: {name!r} has {mask.ndim} dimensions, got dim={dim!r}"
                )
            others = [d for d in range(mask.ndim) if d != dim % mask.ndim]
            left = int(mask.sum(others).count_nonzero()) if others else int(mask.sum())
            log.info("%s: %d of %d along dimension %d are left", name, left, mask.shape[dim], dim)

    def export_model(
        self, model_path: str | os.PathLike[str], mask_path: str | os.PathLike[str] | None = None
    ) -> None:
        """Write the state of the masked model, and the masks, as safetensors (NNI: pickles).

        ``safetensors.torch.load_file`` reads both, and ``ModelSpeedup`` the masks; the names of
        these are "layer.weight".
        """
        self.wrap_model()
        write_tensors(model_path, dict(self.bound_model.state_dict()))
        if mask_path is not None:
            named = self.masks_of_layers().items()
            flat = {f"{n}.{t}" if n else t: m for n, by in named for t, m in by.items()}
            write_tensors(mask_path, flat)

    def get_modules_wrapper(self) -> dict[str, nn.Module]:
        """Return the layers that are pruned, by name; nothing wraps them."""
        self._bound()
        layers = dict.fromkeys(target.module for target in self.targets)
        return {name: self.bound_model.get_submodule(name) for name in layers}

    def generate_masks(self) -> NniMasks:
        """Compute the masks from what is known now, and return them; see ``Pruner``."""
        self._bound()
        return super().generate_masks()

    def _wrap_model(self) -> None:
        self.wrap_model()

    def _unwrap_model(self) -> None:
        self.unwrap_model()

    def _family(self) -> list[Pruner]:  # which all that needs a model asks for
        self._bound()
        return super()._family()

    def _bound(self) -> None:
        if not hasattr(self, "bound_model"):
            raise ConfigError("this pruner has no model yet: call reset(model, config_list) before")

    def _modern(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return the goals in 3.0's words, tied where the mode says so."""
        entries = modern(self.goals, model, pooled=self.mode == "global")
        if self.mode != "dependency_aware":
            return entries
        tied = auto_set_dependency_group_ids(model, entries, self.dummy_input)
        least: dict[object, float] = {}
        for entry in tied:
            group = entry.get("dependency_group_id")
            least[group] = min(least.get(group, 1.0), entry["sparse_ratio"])
        for entry in tied:
            if "dependency_group_id" in entry:
                entry["sparse_ratio"] = least[entry["dependency_group_id"]]
        return tied

    def _learn(self, engine: Engine) -> None:
        """Train the model, so that the engine can decide."""
        raise NotImplementedError

    def _trained(
        self, steps: int | None, epochs: int | None = None
    ) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
        """Decide while the model trains, as pruners of 3.0 do."""
        self._bound()
        super().compress(steps, epochs)
        return self.bound_model, self.masks_of_layers()

    def _trainer(self) -> Evaluator:
        assert self.evaluator is not None  # as the constructor saw to
        return self.evaluator

    def _goal_of(self) -> dict[str, Goal]:
        """Return the goal of each layer."""
        return {name: goal for goal in self.goals for name in goal.names}


def nothing() -> None:
    """Do nothing after a step: masks are decided on when the training is over."""
