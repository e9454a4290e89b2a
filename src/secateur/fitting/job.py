"""One fit, from its first batch to the best of its smaller models; it can be stopped anywhere."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, AdamW, Optimizer

from secateur.config import Config
from secateur.errors import ConfigError
from secateur.masks.resume import write_state
from secateur.pruner import Pruner
from secateur.runtime.batches import arguments, call
from secateur.runtime.copying import copied
from secateur.runtime.forward import in_eval_mode
from secateur.scoring.criteria import criteria
from secateur.shrinking import Plan, Result, apply_plan, cut_optimizer
from secateur.training.distillation import Distillation, at_least_float32, logits_of
from secateur.types import call_arguments

from .deadline import Deadline, rate
from .options import Options
from .precision import AUTO, FULL, autocast, chosen
from .rounds import Fitted, Round, kept
from .saved import check_optimizer, saved, tell, told
from .stream import OTHER_BATCHES, Stream, few, inputs_of

log = logging.getLogger(__name__)

PRUNED_BY = 0.4
"""The share of the budget after which all is pruned: the smaller model needs the rest."""
MEASURED = (0.6, 0.8)
"""Shares of the budget at which the smaller model is measured, before its end."""
WATCHED = 8
"""Batches that a criterion or a repair looks at."""


class Job:
    """A fit; ``run`` does it."""

    def __init__(self, dense: nn.Module, config: Config, options: Options, deadline: Deadline):
        self.config, self.options, self.deadline, self.dense = config, options, deadline, dense
        self.given, file = options.given(), options.file
        known = self._settings(), self.given, options.same
        state = None if file is None else saved(file, *known)
        self.example = options.example_inputs
        if self.example is None:
            self.example = few(inputs_of(next(Stream(options.train))))
        self.model = copied(dense)
        self.result: Result | None = None
        self.pruner: Pruner | None = None
        if state is not None and state["plan"] is not None:
            self.result = apply_plan(self.model, Plan.from_json(state["plan"]), self.example)
            self.model = self.result.model
        else:
            self.pruner = Pruner(self.model, config, self.example)
        self.optimizer = self._optimizer()
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        how = options.weight, options.temperature, options.hidden
        self.teacher = Distillation(self.model, dense, *how)
        if not options.weight:
            self.teacher.close()  # nothing is learned from it, which may have no logits
        self.step, self.pruned, self.dense_value = 0, 0, math.nan
        self.rounds: list[Round] = []
        self.best: dict[str, Tensor] | None = None
        self.stream = Stream(options.train, None if state is None else state["stream"])
        self.precision = self._precision(state)
        if state is not None:
            self._restore(state)
            if self.deadline.progress(self.step) >= 1:
                log.warning(
                    "%s holds a fit that is over, and nothing is trained: this is its result. For "
                    "another one give another folder=…",
                    options.file,
                )

    def run(self) -> Fitted:
        """Return the best of the smaller models; the dense one is as it was."""
        try:
            self._measure_dense()
            while (progress := self.deadline.progress(self.step)) < 1:
                while self._due(progress):
                    self._prune()
                if self._to_be_measured(progress):
                    self._measure()
                self._train(progress)
            while self.pruned < self.config.steps:  # the budget was too short to train in between
                self._prune()
            if not self.rounds or self.rounds[-1].number < self.pruned or self._trained_since():
                self._measure()
        finally:
            self.teacher.close()
        assert self.result is not None
        assert self.best is not None
        self.model.load_state_dict(self.best)
        self.model.train(self.dense.training)
        self.result.warnings += [OTHER_BATCHES] * self.stream.other
        return Fitted(self.result, self.dense_value, self.rounds, self.precision)

    def _due(self, progress: float) -> bool:
        rounds = self.config.steps
        return self.pruned < rounds and progress >= PRUNED_BY * self.pruned / rounds

    def _prune(self) -> None:
        """Measure what the last round has come to, and prune, repair and, at last, cut."""
        assert self.pruner is not None
        if self.pruned and self._trained_since():
            self._measure()
        pruner, how = self.pruner, self.options.repair
        batches = list(islice(self.stream, WATCHED))
        asked = [each.criterion for each in pruner.selectables]
        if any(criteria.asks(criterion, "backward") for criterion in asked):
            pruner.calibrate(batches, self._loss)
        elif any(criteria.asks(criterion, "forward") for criterion in asked):
            pruner.calibrate([inputs_of(batch) for batch in batches])
        pruner.step()
        if how != "none":
            pruner.repair([inputs_of(batch) for batch in batches], how)
        self.pruned += 1
        if self.pruned == self.config.steps:
            self.result = pruner.finish()
            cut_optimizer(self.optimizer, self.result)
            self.pruner = None
            self._measure()  # training may not make it better
        self._save()

    def _train(self, progress: float) -> None:
        """Make one step of the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate(progress)
        self.model.train()
        self.optimizer.zero_grad()
        with autocast(self.model, self.precision):
            loss = self._loss(self.model, next(self.stream))
            loss = self.teacher(loss) if self.options.weight else loss
        if not bool(loss.detach().isfinite()):
            raise ConfigError(
                f"the loss is {float(loss.detach())} at step {self.step + 1}: give an optimizer=… "
                "of a lower rate"
            )
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        if self.options.loss is not None:
            own: object = self.options.loss(model, batch)
            if not isinstance(own, Tensor) or own.numel() != 1:
                said = f"a tensor {tuple(own.shape)}" if isinstance(own, Tensor) else repr(own)
                raise ConfigError(f"loss=… must return a scalar tensor, and returned {said}")
            return own
        if isinstance(batch, Mapping):
            found = call(model, batch)
            loss = found.get("loss") if isinstance(found, Mapping) else getattr(found, "loss", None)
            if not isinstance(loss, Tensor):
                raise ConfigError(
                    f"train: with these keyword arguments the {type(model).__name__} returns no "
                    "loss: give loss=…, a function of (model, batch)"
                )
            return loss
        args, kwargs = arguments(model, inputs_of(batch))
        logits = logits_of(model(*args, **kwargs))
        return F.cross_entropy(at_least_float32(logits), batch[1].to(logits.device))

    def _precision(self, state: Mapping[str, Any] | None) -> str:
        """Return what was asked for, what it began in, or, against the clock, what is faster."""
        if self.options.precision != AUTO:
            return self.options.precision
        if state is not None:
            return str(state.get("precision", FULL))
        if self.deadline.minutes is None or self.options.loss is not None:
            return FULL  # what is counted in steps is the same anywhere
        batch = next(Stream(self.options.train))
        return chosen(self.dense, inputs_of(batch), lambda model: self._loss(model, batch))

    def _optimizer(self) -> Optimizer:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError(
                f"no parameter of this {type(self.dense).__name__} requires a gradient: there is "
                "nothing to train. Let some (requires_grad_()), or use prune(…, data=…)"
            )
        made: object = (self.options.optimizer or self._default)(parameters)
        if not isinstance(made, Optimizer) or isinstance(made, LBFGS):
            raise ConfigError(
                "optimizer=… must return an optimizer that makes one backward in each step, and "
                f"returned {type(made).__name__}"
            )
        return made

    def _default(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        args, kwargs = call_arguments(self.example)
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        tokens = not any(x.is_floating_point() for x in given)
        return AdamW(parameters, lr=5e-5 if tokens else 1e-3)

    # measuring

    def _trained_since(self) -> bool:
        """Tell whether there were steps since the last measurement."""
        return self.step > (self.rounds[-1].step if self.rounds else 0)

    def _to_be_measured(self, progress: float) -> bool:
        """Tell whether the smaller model is to be measured, as it is now and then."""
        if self.result is None or not self._trained_since():
            return False
        done = sum(each.number == each.of for each in self.rounds) - 1  # the first: not trained yet
        return done < len(MEASURED) and progress >= MEASURED[done]

    def _measure_dense(self) -> None:
        if math.isnan(self.dense_value):
            before = self.deadline.spent
            self.dense_value = self._value(self.dense)
            self.deadline.reserved = self.deadline.spent - before

    def _measure(self) -> None:
        value, rounds = self._value(self.model), self.config.steps
        made = Round(self.pruned, rounds, self.step, self.deadline.spent, value)
        self.rounds.append(made)
        if self.result is not None and kept(self.rounds, self.dense_value) is made:
            state = self.model.state_dict()
            self.best = {name: tensor.detach().clone() for name, tensor in state.items()}
        self._save()
        self.options.on_round(made)

    def _value(self, model: nn.Module) -> float:
        with in_eval_mode(model):
            found = self.options.evaluate(model)
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"evaluate must return a number, larger is better; got {found!r}")
        return value

    # going on

    def _settings(self) -> dict[str, Any]:
        """Return what another run must have in common to go on with this one."""
        budget = {"minutes": self.deadline.minutes, "steps": self.deadline.steps}
        options = self.options
        own = {"repair": options.repair, "weight": options.weight, "t": options.temperature}
        own["hidden"] = list(options.hidden)
        return {**budget, **own, "config": self.config.model_dump(mode="json")}

    def _save(self) -> None:
        if self.options.file is None:
            return
        cut, pruner = self.result, self.pruner
        state = {
            "settings": self._settings(),
            "given": self.given,
            "teacher": self.teacher.digest(),
            "precision": self.precision,
            "plan": None if cut is None else json.dumps(cut.plan.to_json()),
            "told": None if cut is None else told(cut),
            "pruner": None if pruner is None else pruner.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "stream": self.stream.state(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "pruned": self.pruned,
            "spent": self.deadline.spent,
            "dense": self.dense_value,
            "rounds": [each.facts() for each in self.rounds],
        }
        self.options.file.parent.mkdir(parents=True, exist_ok=True)
        write_state(self.options.file, state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of an interrupted fit."""
        self.teacher.check(state["teacher"])
        if self.pruner is not None:
            self.pruner.load_state_dict(state["pruner"])
        if self.result is not None:
            tell(self.result, state["told"])
        self.model.load_state_dict(state["model"])
        check_optimizer(self.optimizer, state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.step, self.pruned = state["best"], state["step"], state["pruned"]
        self.dense_value = state["dense"]
        self.rounds = [Round.of_facts(facts) for facts in state["rounds"]]
        self.deadline.go_on(state["spent"])
        torch.set_rng_state(state["random"])
