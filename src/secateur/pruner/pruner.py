"""``Pruner``, stepped by your loop like a learning-rate scheduler."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.config import Config
from secateur.costs import Cost
from secateur.errors import ConfigError, CopyError
from secateur.masks import masking
from secateur.masks.optimizers import Scaler, before_each_step, sweep
from secateur.masks.resume import read_state, write_state
from secateur.repair import Repair, repairs
from secateur.runtime.batches import held
from secateur.runtime.copying import copied, own
from secateur.runtime.distributed import check_same, sharded
from secateur.runtime.forbidding import forbidding
from secateur.runtime.joining import Joining
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.ranks import meet, on_all_ranks, rank
from secateur.runtime.undo import Undo, undoable
from secateur.scoring.allocations import allocators
from secateur.scoring.schedules import schedules
from secateur.selection.allocation import allotted
from secateur.selection.budget import Budget
from secateur.selection.calibration import Loss, observe_forwards
from secateur.selection.decision import Decision, decide
from secateur.selection.goals import missed
from secateur.selection.kinds import absent
from secateur.selection.running import RunningScores
from secateur.selection.targets import Selectable, check_given, check_scorable
from secateur.selection.targets import selectables as _selectables
from secateur.shrinking import Plan, Result
from secateur.shrinking.mixing import DEFAULTS as MIXED
from secateur.shrinking.mixing import check_mixed, mixes
from secateur.structure import Structure, analyze
from secateur.training import named
from secateur.types import Example, Masks, Scores

from .candidates import Candidates, blocks_that_may_go
from .optimizing import Optimizing
from .repairing import check_repairable, fill_kept, repaired
from .run import check_alone, keeps_masks, masks_on
from .state import state_of, take_over

log = logging.getLogger("secateur.pruner")


class Pruner:
    """Decides what to remove, a little more at each step, and cuts it out at the end.

    Your loop stays yours: call ``step`` after ``optimizer.step()``, as you would a learning-rate
    scheduler, in every iteration (or once an epoch, if schedules are to count epochs).  While you
    train, masks are on the model (``secateur.masks.masking``): the optimizer, names and order of
    parameters are as without them, the dense weights live on below, and what ``state_dict`` writes
    is masked.  No optimizer is wrapped: gradients are read, and penalties added, by a public hook
    just before the optimizer steps, when they are accumulated, unscaled, clipped and averaged.

    The first ``start`` calls only watch.  Then every ``every``-th call is a *pruning step*: scores
    are computed, and masks made that meet what the schedule asks for; after ``steps`` of them the
    goal is reached, and more calls only keep the masks (of ``movement``, which
    goes on learning, those that the scores say by then).  Each pruning step is one line of the log
    ``secateur.pruner``, at the level INFO.

    Where a process group was made, all ranks make the same calls in the same order, this one too,
    but for ``save``; what one of them raises all raise.  Blocks of ``join()`` are refused.

    Args:
        model: any module; under DDP the bare one, not the wrapper.
        config: what to prune, how much, and when.
        example: example inputs, as for ``analyze``; None where ``selectables`` are given and the
            model is not to be cut.
        structure: from ``analyze``, when it is known already.
        selectables: what is decided on, in place of what the config's targets select.
        scaler: your ``GradScaler``, if there is one; only methods with learned scores need it.
        costs: those that another pruner of this model has made, in its ``budget.costs``.
        trained: False where nothing is trained between steps: then no optimizer is watched.

    Attributes:
        decision: of the last pruning step.
        repaired: the record of the last repair.
        on_prune: functions that are called with ``metrics()`` after each pruning step.

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

    @in_ordinary_mode
    @on_all_ranks
    def __init__(
        self,
        model: nn.Module,
        config: Config | Mapping[str, Any],
        example: Example = None,
        *,
        structure: Structure | None = None,
        selectables: Sequence[Selectable] | None = None,
        scaler: Scaler | None = None,
        trained: bool = True,
        costs: dict[str, Cost] | None = None,
    ):
        check_model(model)
        masking.check_unmasked(model)
        self.model = model
        config = config if isinstance(config, Config) else Config.from_dict(config)
        self.method = named(config.method, config.method_options)
        self.config = config.with_defaults(self.method.defaults)
        if mixes(self.config):
            check_mixed(self.config, trained=trained)
            self.config = self.config.with_defaults(MIXED)
        meet(f"with {self.config.model_dump(mode='json', exclude_defaults=True)}")
        self._joining = Joining(model)
        self.example = example
        self.structure = structure
        if selectables is None:
            self.structure = structure or analyze(model, example)
            selectables = _selectables(model, self.config, self.structure)
        self.selectables = allotted(self.config, self.structure, selectables)
        parts = self.config, self.structure, self.selectables, model, example, costs
        self.budget = Budget(*parts, blocks=blocks_that_may_go(self.config, self.structure))
        decided_on = self.structure, self.selectables, self.budget
        self.candidates = Candidates(model, self.config, example, *decided_on)
        self.statistics = RunningScores(self.selectables, self.structure)
        self.optimizing = Optimizing(model, self.method, self.statistics, scaler)
        self.decision = Decision()
        self.whole = False  # what was decided on is the whole goal
        self.repaired: Repair | None = None
        self.before: Masks | None = {}  # what was masked before the last decision; None: repaired
        self.on_prune: list[Callable[[dict[str, float]], None]] = []
        self.calls = 0
        self.method.attach(weakref.proxy(self))  # no cycle: what is dropped stops watching at once
        sweep()
        self._unwatch: Callable[[], object] = (
            before_each_step(self.optimizing.before) if trained else lambda: None
        )

    @property
    def mixes(self) -> bool:
        """Whether blocks go besides groups, under one budget."""
        return self.candidates.mixes

    @property
    def repairs(self) -> str | None:
        """The repair that will follow, which error curves are measured after."""
        return self.candidates.repairs

    @repairs.setter
    def repairs(self, how: str | None) -> None:
        self.candidates.repairs = how

    @property
    def scaler(self) -> Scaler | None:
        """The ``GradScaler`` of the loop, if there is one."""
        return self.optimizing.scaler

    @scaler.setter
    def scaler(self, scaler: Scaler | None) -> None:
        self.optimizing.scaler = scaler

    @property
    def masks(self) -> Masks:
        """Parameter name → bool tensor of its shape, True is kept; of the last pruning step."""
        return self.decision.masks

    @property
    def keeps(self) -> dict[str, Tensor]:
        """Name of a group or target → bool tensor, one decision per position."""
        return self.decision.keeps

    @property
    def notes(self) -> list[str]:
        """What a user should know about the last pruning step."""
        return self.decision.notes

    @property
    def plan(self) -> Plan:
        """What is kept of each group, and which blocks go; of a pruner of groups alone."""
        return self.candidates.plan(self.decision)

    @property
    def steps(self) -> int:
        """How many pruning steps lead to the goal."""
        return self.config.steps

    @property
    def updates(self) -> int:
        """How many pruning steps have been made."""
        return self._updates(self.calls)

    def _updates(self, calls: int) -> int:
        return min(max(calls - self.config.start, 0) // self.config.every, self.config.steps)

    @property
    def share(self) -> float:
        """The share of the goal that the schedule asks for now, in [0, 1]."""
        if self.updates == 0:
            return 0.0
        return float(schedules[self.config.schedule](self.updates / self.config.steps))

    @in_ordinary_mode
    def step(self) -> dict[str, float]:
        """Prune up to where the schedule is, keep the masks on, and return ``metrics()``.

        Raises:
            ScoreError: a weight is NaN or infinite; no mask has changed.
            ConfigError: the criterion needs gradients, and there were none.
            DivergenceError: ranks would mask differently; no mask has changed.
        """
        self._joining.refuse()
        due = self._updates(self.calls + 1) > self.updates
        if due or self.method.continuous:
            return self._pruned(due)
        self._watch()
        return self.metrics()

    @on_all_ranks
    def _pruned(self, due: bool) -> dict[str, float]:
        """Make a step in which ranks exchange what they have seen."""
        self._watch()
        if self.updates:
            self.decide(self.share)
            self.put_on()
        if due:
            self.method.pruned()
        metrics = self.metrics()
        if due:
            self.statistics.reset()
            log.info("%s", self.progress)
            for report in self.on_prune:
                report(metrics)
        return metrics

    def _watch(self) -> None:
        self.optimizing.learn()
        undoable(partial(vars(self).update, dict(vars(self))))
        self.calls += 1

    @in_ordinary_mode
    @on_all_ranks
    def decide(self, share: float = 1.0) -> Masks:
        """Compute the masks for a share of the goal and return them, without putting them on.

        Raises: as ``step``.
        """
        self._joining.refuse()
        undoable(partial(vars(self).update, dict(vars(self))))
        check_alone(self)
        tensors = self.tensors()
        self.statistics.notes.clear()
        with torch.no_grad():
            given = self.method.scores()
            check_given(given, self.selectables)
            scores = self.scores(tensors, given)
            known, candidates = self.budget.known, self.candidates
            known.error, known.estimated = candidates.error, candidates.estimated
            try:
                made = candidates.decided(scores, tensors, share)
            finally:  # what is dropped is gone at once: no cycle
                known.error = known.estimated = None
            stays = absent(self.structure, self.config)
            notes = [*stays, *made.notes, *self.statistics.notes]
            made = replace(made, masks=self.method.complete(made.masks), notes=notes)
        check_same(made.masks)
        self.before = {name: mask.clone() for name, mask in masks_on(self).items()}
        self.decision = made
        self.whole = share == 1
        return made.masks

    def scores(self, tensors: Mapping[str, Tensor], given: Scores) -> list[Tensor]:
        """Return the scores of each selectable: those that are given, and else the criterion's."""
        check_scorable([s for s in self.selectables if s.name not in given], tensors)
        generator = torch.Generator().manual_seed(self.config.seed)
        return [
            given[s.name] if s.name in given else self.statistics.score(s, tensors, generator)
            for s in self.selectables
        ]

    def masks_of(self, tensors: Mapping[str, Tensor]) -> Masks:
        """Return the masks that the whole goal makes of other values of the parameters."""
        with torch.no_grad():
            scores = self.scores(tensors, {})
            return decide(self.selectables, scores, self.budget, tensors, 1.0).masks

    def tensors(self) -> dict[str, Tensor]:
        """Return what is scored and masked by name: the parameters, without their masks."""
        return self.candidates.tensors()

    def put_on(self) -> None:
        """Put the masks on the model as they are now."""
        masking.put_on(self.model, self.masks, differentiable=self.method.learns_masks)
        keeps_masks(self)

    def observe(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Read the gradients that parameters have now; optimizers' steps do it by themselves.

        Args:
            parameters: those to read, by default all of the model.
        """
        self.optimizing.observe(parameters)

    @in_ordinary_mode
    @on_all_ranks
    def calibrate(self, data: Iterable[Any], loss: Loss | None = None) -> None:
        """Run the model on batches and collect what the criterion needs of its forwards.

        Each call adds to the ones before, until the next pruning step: then the masks are others,
        and the next call begins anew.  In eval mode; the model is as before.  Ranks may have
        different batches.  Norms and means need one number per input feature of a layer, ``energy``
        and ``obs`` a matrix of ``features²`` numbers for each input of a layer.

        Args:
            data: batches of inputs: tensors, tuples of positional or dicts of keyword arguments.
                Positions that an ``attention_mask`` among them hides do not count.
            loss: ``(model, batch) → scalar``, for criteria that need gradients; then a batch is
                whatever it takes.

        Raises:
            ConfigError: there are no batches, the model refuses one, or the criterion needs
                gradients and there is no ``loss``.

        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> pruner = Pruner(net, Config(criterion="wanda", sparsity=0.5), torch.zeros(1, 8))
        >>> pruner.calibrate([torch.randn(32, 8) for _ in range(4)])
        >>> pruner.step()["sparsity"]
        0.5
        """
        self._joining.refuse()
        needed = bool(self.statistics.parts)
        allocator = allocators.facts[self.config.allocate]
        if needed and loss is None and not (allocator.data and self.statistics.sums):
            raise ConfigError(
                "data=… need loss=…, a function of (model, batch) that returns a loss: the "
                "criterion needs gradients"
            )
        if (allocator.data or self.mixes) and loss is None:
            self.budget.known.batches = data = held(data)
        self.budget.known.labelled = loss is not None
        differentiated = self.observe if needed and loss is not None else None
        calibration = self.statistics.calibration
        with forbidding(self.model, self.candidates.forbidden(self.keeps)):
            observe_forwards(self.model, data, calibration, loss, differentiated, self.structure)

    @in_ordinary_mode
    @on_all_ranks
    def repair(
        self,
        data: Iterable[Any],
        how: str = "least_squares",
        *,
        given: Sequence[Any] | None = None,
    ) -> Repair:
        """Let what stays make up for what is masked: new weights, under the same masks.

        Every layer that reads what is masked is fitted so that its outputs stay the dense model's,
        in the order in which layers run.  Biases, and the means of batch norms, take what is
        constant; norms' statistics are estimated anew where that brings the outputs nearer.  Of
        four batches one is held out: it chooses how strongly weights are held to their old values,
        and says how well it went.  The model needs room for two copies of it meanwhile.

        Call it once after ``step`` or ``decide``, before the weights are trained further: the dense
        model is what it was just before, with the masks that were on then.  A change of masks later
        keeps the new weights, and can be repaired again.

        Args:
            data: batches of inputs, as for ``calibrate``; read once.
            how: of ``secateur.repairs``: "least_squares", "bias" (means) or "sparse" (elements).
            given: what the pruned model gets in place of ``data``, batch for batch, where the model
                is a part of one whose parts before it were pruned already.

        Returns: what was refitted, and how far the outputs are from the dense model's.

        Raises:
            ConfigError, UnknownNameError: nothing is masked yet, these masks were repaired already,
                there are no batches that the model takes, or no such repair; nothing has changed.

        He et al., 2017, arXiv:1707.06168; Frantar and Alistarh, 2023, arXiv:2301.00774
        """
        self._joining.refuse()
        repairs[how]
        check_repairable(self)
        values, record = repaired(self, data, how, given)
        fill_kept(self.model, self.masks, values)
        undoable(partial(vars(self).update, dict(vars(self))))
        self.repaired, self.before = record, None
        return record

    def metrics(self) -> dict[str, float]:
        """Return what a logger shows.

        ``pruning_step``: pruning steps made; ``target``: the share of the goal asked for;
        ``sparsity``: the share of positions masked; ``threshold``: the largest score among them.
        """
        return {
            "pruning_step": float(self.updates),
            "target": self.share,
            "sparsity": self.decision.sparsity,
            "threshold": self.decision.level,
        }

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse copies and pickles: they would not see what optimizers do.

        Raises:
            CopyError: always; the state is what can be taken elsewhere.
        """
        raise CopyError(
            "a Pruner belongs to its model, and watches the optimizers of this process: make one "
            "of the copied model, and give it the state: load_state_dict(pruner.state_dict()), or "
            "save(path) and load(path)"
        )

    @property
    def _early(self) -> str:
        """Say that the whole goal has not been asked for yet, or nothing."""
        if self.whole or self.share == 1:
            return ""
        return (
            f"the whole goal was not asked for yet: finish() came after {self.updates} of "
            f"{self.steps} pruning steps. Call step() until all are made, or ask for less"
        )

    @property
    def progress(self) -> str:
        """Where the run is, in one line: calls, share of the goal, share masked, largest score."""
        now = self.metrics()
        return (
            f"step {self.calls}: {now['target']:.1%} of the goal, {now['sparsity']:.1%} masked, "
            f"scores up to {now['threshold']:.3g}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: counts, masks, the dense weights below them, scores.

        The model's own state, its optimizer's and the random generators' are your checkpoint's
        part.  Under FSDP2 all ranks must ask for it.

        Raises:
            ConfigError: blocks go too, which is one shot.
        """
        return state_of(self)

    @in_ordinary_mode
    @on_all_ranks
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; before or after the model's state is loaded.

        All of it is checked before anything changes.

        Raises:
            FileError: it is no state, contradicts itself, or is of a newer version.
            ConfigError: the state is of a run with other settings, or on another model.
            MaskError: its masks do not fit the model.
        """
        take_over(self, state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state as one safetensors file, whole or not at all; under FSDP2 on all ranks.

        Only rank 0 writes.
        """
        state = self.state_dict()
        if rank() == 0:
            write_state(path, state)

    @on_all_ranks
    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file that ``save`` wrote.

        Raises:
            FileError: there is no such file, or it is damaged.
            ConfigError, MaskError: it is of another run; see ``load_state_dict``.
        """
        self.load_state_dict(read_state(path))

    @in_ordinary_mode
    @on_all_ranks
    def finish(self, *, inplace: bool = True, verify: bool = True) -> Result:
        """Cut out what is masked and return the smaller model with the record of what was done.

        Raises:
            ConfigError: ``step`` was never called long enough to prune anything.
            ShrinkError, VerificationError: the model is as it was before the call.
        """
        if not self.keeps:
            raise ConfigError("nothing is masked yet: call step() before finish()")
        if self.structure is None:
            raise ConfigError("finish() needs the example inputs that the pruner was made without")
        self.candidates.check_same()
        if cut := next((n for n, p in self.model.named_parameters() if sharded(p)), None):
            raise ConfigError(
                f"{cut!r} is sharded (fully_shard), and is cut on a model that is not: save() the "
                "pruner and the whole state_dict on all ranks, load both into a bare model with a "
                "pruner of the same config, and finish() that"
            )
        model = self.model if inplace else copied(self.model, borrowing=True)
        on = masking.masks_on(model)
        with Undo(lasting=True) as undo:
            undo(partial(masking.put_on, model, on, differentiable=self.method.learns_masks))
            masking.take_off(model, bake=False)
            result = self.candidates.cut(model, self.decision, on, verify=verify)
        if not inplace:
            own(result.model, self.model)
        result.with_repair(self.repaired)
        result.goals = self.budget.reached(result.plan.counts, result.model)
        if short := self._early or self.budget.unmet or missed(result.goals):
            result.warnings.insert(0, short)
        if inplace:
            self._unwatch()
        return result
