"""``ActivationAPoZRankPruner``, ``ActivationMeanRankPruner``: ranked by a layer's own outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.nni.channels import batched, channel_dim
from secateur.nni.evaluators import Evaluator
from secateur.nni.pruning.engine import Engine
from secateur.nni.pruning.pruner import at_least_one
from secateur.nni.targets import full_name
from secateur.runtime.distributed import summed
from secateur.runtime.undo import Undo, unhook_module
from secateur.types import Example

from .pruner import OneShotPruner
from .signature import also

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "relu6": nn.functional.relu6,
}


class ActivationPruner(OneShotPruner):
    """Base of both: watches outputs in ``training_steps`` steps of training, which trains.

    An activation function is applied to the output of the layer itself, before any norm or real
    activation that follows.  (The criteria ``apoz`` and ``mean_activation`` look at what comes
    after these instead.)  All positions of all batches count; NNI stops after as many *samples* as
    there should be steps.

    Args:
        model: any module, or None.
        config_list: NNI 2.x's configuration, of convolutions and linear layers.
        evaluator: trains the model.
        training_steps: optimizer steps in which outputs are looked at.
        activation: "relu", "gelu" or "relu6".
        mode: "normal" or "dependency_aware".
        dummy_input: example inputs, for "dependency_aware".
    """

    criterion = "l1"  # of no consequence: the outputs' scores take its place
    trains = True
    modes = ("normal", "dependency_aware")

    @also(
        *("model", "config_list", "trainer", "traced_optimizer", "criterion", "training_batches"),
        *("activation", "mode", "dummy_input"),
        training_batches="training_steps",
    )
    def __init__(
        self,
        model: nn.Module | None,
        config_list: Sequence[Mapping[str, Any]] | None,
        evaluator: Evaluator,
        training_steps: int,
        activation: str = "relu",
        mode: str = "normal",
        dummy_input: Example = None,
    ):
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"activation must be one of {known}, got {activation!r}.")
        self.training_steps = at_least_one("training_steps", training_steps)
        self.activation = activation
        super().__init__(model, config_list, evaluator, mode, dummy_input)

    def _modern(self, model: nn.Module) -> list[dict[str, Any]]:
        layers = (model.get_submodule(name) for goal in self.goals for name in goal.names)
        if odd := [type(layer).__name__ for layer in layers if channel_dim(layer) is None]:
            raise ConfigError(
                f"{type(self).__name__} ranks outputs of convolutions and linear layers, not of "
                f"{odd[0]}"
            )
        return super()._modern(model)

    def _learn(self, engine: Engine) -> None:
        layers = {name: self.bound_model.get_submodule(name) for name in self._goal_of()}
        apply = ACTIVATIONS[self.activation]
        with watched(layers, lambda out: self._counted(apply(out))) as (sums, after_step):
            self._trainer().train(self.bound_model, after_step, max_steps=self.training_steps)
        found = summed(sums)
        if missing := [name for name in layers if name not in found]:
            raise ConfigError(f"the training never ran {', '.join(map(repr, missing))}")
        means = {name: each["sum"] / each["count"] for name, each in found.items()}
        _know(engine, {full_name(name, "weight"): mean for name, mean in means.items()})

    def _counted(self, activations: Tensor) -> Tensor:
        """Return what is averaged of each position."""
        raise NotImplementedError


class ActivationAPoZRankPruner(ActivationPruner):
    """Removes the channels whose outputs are most often zero (Hu et al. 2016, arXiv:1607.03250)."""

    __doc__ += (ActivationPruner.__doc__ or "").partition("\n")[2]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.activation == "gelu":
            warnings.warn("gelu never makes zeros: APoZ cannot rank by them", stacklevel=2)

    def _counted(self, activations: Tensor) -> Tensor:
        return activations != 0


class ActivationMeanRankPruner(ActivationPruner):
    """Removes the channels of the smallest mean output (Molchanov et al. 2017)."""

    __doc__ += (ActivationPruner.__doc__ or "").partition("\n")[2]

    def _counted(self, activations: Tensor) -> Tensor:
        return activations


def _know(engine: Engine, means: Mapping[str, Tensor]) -> None:
    """Give the engine a score for each thing it decides on: the mean of its layers'."""
    for each in engine.selectables:
        scores = [means[part.tensor] for part in each.parts if part.tensor in means]
        if scores:
            engine.known[each.name] = torch.stack(scores).mean(0).float()


@contextmanager
def watched(
    layers: Mapping[str, nn.Module], counted: Callable[[Tensor], Tensor]
) -> Iterator[tuple[dict[str, dict[str, Tensor]], Callable[[], None]]]:
    """Within it, add up what is counted of each channel of each layer's outputs in training.

    Yields the sums, and what is to be called after each step: what comes after the last does not
    count.
    """
    sums: dict[str, dict[str, Tensor]] = {}
    new: list[tuple[str, Tensor]] = []

    def after_step() -> None:
        for name, rows in new:
            zero = {"sum": rows.new_zeros(len(rows)), "count": rows.new_zeros(1)}
            own = sums.setdefault(name, zero)
            own["sum"] += rows[:, 0]
            own["count"] += rows[0, 1]
        new.clear()

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return  # an evaluation in between
            value = counted(batched(module, output.detach()))
            rows = value.movedim(channel_dim(module) or 1, 0).flatten(1).double()
            count = torch.full_like(rows[:, 0], rows.shape[1])
            new.append((name, torch.stack([rows.sum(1), count], 1)))

        return see

    with Undo() as undo:
        for name, layer in layers.items():
            hook = watch(name)
            undo(partial(unhook_module, layer, hook))
            layer.register_forward_hook(hook)
        yield sums, after_step
