"""``AMCPruner``: an agent goes through the layers and learns how much of each may go.

The agent and the bounds of its actions are those of ``secateur.searching``.  Where NNI departs from
the paper, this is the paper's: what happened to a layer stands in the state of the next one, and
exploration shrinks from the end of the warm-up on.  The last layer of an episode is pruned alone,
as the others are.  Layers that must lose the same channels are one step, and those that are tied to
a layer that is not selected stay whole: their masks would cut nothing.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, did_you_mean
from secateur.nni.channels import channel_dim
from secateur.nni.dependencies import auto_set_dependency_group_ids
from secateur.nni.evaluators import Evaluator, LegacyEvaluator
from secateur.nni.pruning.pruner import at_least_one
from secateur.nni.pruning.v2.config_list import Goal, modern
from secateur.nni.pruning.v2.signature import also
from secateur.nni.targets import class_name
from secateur.nni.utils.counter import count_flops_params
from secateur.searching.amc import bounded, normalised
from secateur.searching.ddpg import Agent, Learning, episode

from .annealing import check_judge
from .pruners import ALGORITHMS, IterativePruner, pruner_of
from .task import Masks, Rules, Task, TaskGenerator

log = logging.getLogger(__name__)

PRUNES = {n: ALGORITHMS[n] for n in ("l1", "l2", "fpgm", "apoz", "mean_activation", "taylorfo")}
"""What can prune one layer at a time, by ``pruning_algorithm``."""
UNUSED = ("window_length", "max_episode_length", "epsilon")
"""Of NNI's ``ddpg_params``; they do nothing there either."""
TARGETS = ("flops", "params")
FIXED = 7
"""The numbers of a state that an episode does not change."""


class AMCTaskGenerator(TaskGenerator):
    """Episodes: in each the layers lose what an agent says, one after the other.

    Args:
        total_episode: episodes to do.
        dummy_input: what costs are counted on.
        origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result: as for
            ``TaskGenerator``; the first goal is that of all layers.
        target: "flops" or "params": what the total sparsity is a share of.
        ddpg_params: settings of the agent, see ``secateur.searching.ddpg.Learning``.
    """

    best_result_mode = "maximize"
    _costs: dict[str, float]
    _states: list[tuple[float, ...]]

    def __init__(
        self,
        total_episode: int,
        dummy_input: Any,
        origin_model: nn.Module | None = None,
        origin_config_list: Rules | None = None,
        origin_masks: Mapping[str, Mapping[str, Tensor | None]] | None = None,
        target: str = "flops",
        ddpg_params: Mapping[str, Any] | None = None,
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
    ):
        if target not in TARGETS:
            raise ConfigError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
        self.total_episode = at_least_one("total_episode", total_episode)
        self.dummy_input, self.target = dummy_input, target
        self.learning = _learning({} if ddpg_params is None else ddpg_params, total_episode)
        super().__init__(
            origin_model, origin_config_list, origin_masks, log_dir, keep_intermediate_result
        )

    def begin(self) -> None:
        first = self.goals[0]
        self.most = 1.0 if first.most is None else first.most
        selected = {name for goal in self.goals for name in goal.names}
        self.layers = [n for n, _ in self.origin.named_modules() if n in selected]
        self.units = units(self.origin, self.layers, self.dummy_input)
        self.dense_costs, rows = self._counted(self.origin)
        self.budget = sum(self.dense_costs.values())
        self.goal = first.sparsity * self.budget
        self._rows = normalised(_features(self.origin, self.units, rows))
        self._agent = Agent(
            FIXED + 3, self.learning, int(torch.randint(1 << 62, ()))
        )  # torch.manual_seed repeats it
        self._episode_begins()

    def next(self) -> Task | None:
        if self._agent.episodes >= self.total_episode:
            return None
        unit, last = self.units[len(self._shares)], len(self._shares) + 1 == len(self.units)
        share = self._bounded(self._agent.action(self._states[-1]))
        goal = Goal(unit, share)
        task = self._task(self._model, self._masks, [goal])
        task.said = [*self._said, goal]
        task.finetune = task.evaluate = last
        return task

    def received(self, task: Task, model: nn.Module, masks: Masks) -> None:
        (goal,) = task.goals
        costs, _ = self._counted(model)
        before = self._cost([goal.names])
        self._shares.append(1 - sum(costs[name] for name in goal.names) / before)
        self._model, self._masks, self._costs = model, masks, costs
        self._said.append(goal)
        left = sum(costs.values())
        named = f"current_{self.target}"
        task.state |= {
            "current_total_sparsity": 1 - left / self.budget,
            named: f"{left / 1e6:.2f} M",
        }
        if len(self._shares) < len(self.units):
            self._states.append(self._state())
            return
        if task.score is None:
            raise ConfigError("AMC needs scores: give the evaluator an evaluating function")
        if not 0 <= task.score <= 1:
            warnings.warn(
                f"AMC's reward is the score minus 1, for scores in [0, 1]; this was {task.score}",
                stacklevel=2,
            )
        if left > self.budget - self.goal * 0.99:
            log.warning(
                "episode %d left %.1f%% of the %s, more than was asked for: what was left to the "
                "last layers, they could not lose",
                *(self._agent.episodes, 100 * left / self.budget, self.target),
            )
        actions = [goal.sparsity for goal in self._said]
        self._agent.learn(episode(self._states, actions, task.score - 1))
        self._episode_begins()

    def _episode_begins(self) -> None:
        self._model, self._masks = self.origin, self.masks
        self._costs = self.dense_costs
        self._shares: list[float] = []
        self._said: list[Goal] = []
        self._states = [self._state()]

    def _state(self) -> tuple[float, ...]:
        """Return what the agent sees before it acts on the next layer."""
        at = len(self._shares)
        gone = 1 - sum(self._costs.values()) / self.budget
        rest = self._cost(self.units[at + 1 :]) / self.budget
        return (*self._rows[at], gone, rest, self._shares[-1] if self._shares else 0.0)

    def _bounded(self, action: float) -> float:
        """Return the action made such that the goal is met by what the later layers can give."""
        at = len(self._shares)
        unit = self.units[at]
        found = bounded(
            action,
            cost=self._cost([unit]),
            original=sum(self.dense_costs[name] for name in unit),
            most=self.most,
            goal=self.goal,
            gone=self.budget - sum(self._costs.values()),
            later=self._cost(self.units[at + 1 :]) * self.most,
        )
        return min(found, 1 - 1e-6)

    def _cost(self, units: Sequence[tuple[str, ...]]) -> float:
        """Return what some units cost now."""
        return sum(self._costs[name] for unit in units for name in unit)

    def _counted(self, model: nn.Module) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
        """Return what each layer costs now, and all that was counted of it."""
        _, _, found = count_flops_params(model, self.dummy_input, verbose=False)
        rows = {row["name"]: row for row in found}
        if missing := [name for name in self.layers if name not in rows]:
            raise ConfigError(
                f"{missing[0]!r} is not counted: it is no convolution or linear layer, or does not "
                "run on the dummy_input; exclude it"
            )
        return {name: float(rows[name][self.target]) for name in self.layers}, rows


class AMCPruner(IterativePruner):
    """Lets an agent learn the shares of layers from the scores of whole models (He et al. 2018).

    Args:
        total_episode: models that are made and judged.
        model: any module, which stays as it is.
        config_list: NNI 2.x's configuration; ``total_sparsity`` and ``max_sparsity_per_layer`` of
            its first entry are those of all layers.
        evaluator: fine-tunes the model at the end of each episode and judges it, by a score in
            [0, 1]; its ``dummy_input`` is what costs are counted on.
        pruning_algorithm: what prunes each layer, a name in ``PRUNES``.
        log_dir: where a folder with the results is made, as safetensors and JSON.
        keep_intermediate_result: write the result of each layer too.
        ddpg_params: settings of the agent; its warm-up is a quarter of the episodes by default.
        pruning_params: further arguments of the pruner.
        target: "flops" or "params": what the total sparsity is a share of.
    """

    @also(
        *("total_episode", "model", "config_list", "dummy_input", "evaluator", "pruning_algorithm"),
        *("log_dir", "keep_intermediate_result", "finetuner", "ddpg_params", "pruning_params"),
        "target",
    )
    def __init__(
        self,
        total_episode: int,
        model: nn.Module,
        config_list: Rules,
        evaluator: Evaluator | LegacyEvaluator,
        pruning_algorithm: str = "l1",
        log_dir: str | os.PathLike[str] = ".",
        keep_intermediate_result: bool = False,
        ddpg_params: Mapping[str, Any] | None = None,
        pruning_params: Mapping[str, Any] | None = None,
        target: str = "flops",
    ):
        check_judge(evaluator, type(self).__name__)
        example = getattr(evaluator, "dummy_input", None)
        if example is None:
            raise ConfigError("AMC cuts after each layer: give the evaluator a dummy_input")
        tied = {"mode": "dependency_aware", "dummy_input": example}
        pruner = pruner_of(pruning_algorithm, {**tied, **(pruning_params or {})}, PRUNES)
        generator = AMCTaskGenerator(
            *(total_episode, example, model, config_list, {}, target, ddpg_params),
            *(log_dir, keep_intermediate_result),
        )
        super().__init__(pruner, generator, evaluator, speedup=True)


def _learning(parameters: Mapping[str, Any], episodes: int) -> Learning:
    """Return the agent's settings from NNI's names.

    Raises:
        ConfigError: a name is none of them, or a value is out of range.
    """
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"ddpg_params must be a dict, got {parameters!r}.")
    known = [name for name in Learning.__dataclass_fields__ if name != "first_action"]
    odd = [name for name in parameters if name not in known and name not in UNUSED]
    if odd:
        raise ConfigError(
            *(f"ddpg_params: unknown key {name!r}.{did_you_mean(name, known)}" for name in odd)
        )
    given = {name: value for name, value in parameters.items() if name in known}
    try:
        return Learning(**{"warmup": episodes // 4, **given})
    except ValueError as error:
        raise ConfigError(f"ddpg_params: {error}") from error


def units(model: nn.Module, layers: Sequence[str], example: Any) -> list[tuple[str, ...]]:
    """Return the layers that can be cut, those that must lose the same channels together.

    Raises:
        ConfigError: all are tied to layers that are not among them.

    >>> units(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), ["0"], torch.zeros(1, 2))
    [('0',)]
    """
    named = dict(model.named_modules())
    every = [
        n for n, m in named.items() if channel_dim(m) and getattr(m, "weight", None) is not None
    ]
    weights = tuple(n for n in every if n in layers or model.get_parameter(f"{n}.weight").ndim > 1)
    tied = auto_set_dependency_group_ids(model, modern([Goal(weights, 0.0)], model), example)
    families: dict[object, list[str]] = {}
    for entry in tied:
        (name,) = entry["op_names"]
        families.setdefault(entry.get("dependency_group_id", name), []).append(name)
    found, held = list[tuple[str, ...]](), list[str]()
    for family in families.values():
        inside = [name for name in layers if name in family]
        if len(inside) == len(family):
            found.append(tuple(inside))
        held += inside if len(inside) < len(family) else []
    if held:
        log.warning("tied to layers that are not selected, and left whole: %s", ", ".join(held))
    if not found:
        raise ConfigError("all selected layers are tied to others that are not: select those too")
    return sorted(found, key=lambda unit: layers.index(unit[0]))


def _features(
    model: nn.Module, units: Sequence[tuple[str, ...]], rows: Mapping[str, Mapping[str, Any]]
) -> list[list[float]]:
    """Return what is known of each unit and does not change: where and of what kind, and sizes."""
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    kinds = list(dict.fromkeys(class_name(model.get_submodule(unit[0])) for unit in units))
    found = []
    for unit in units:
        name = unit[0]
        layer = model.get_submodule(name)
        found.append(
            [
                float(order[name]),
                float(kinds.index(class_name(layer))),
                float(prod(rows[name]["input_size"])),
                float(prod(rows[name]["output_size"])),
                _mean(getattr(layer, "stride", 0)),
                _mean(getattr(layer, "kernel_size", 1)),
                float(sum(rows[each]["params"] for each in unit)),
            ]
        )
    return found


def _mean(value: object) -> float:
    """Return the geometric mean of a layer's stride or kernel size.

    >>> _mean((2, 8)), _mean(3)
    (4.0, 3.0)
    """
    if isinstance(value, tuple):
        return float(prod(value) ** (1 / len(value)))
    return float(value) if isinstance(value, int) else 0.0
