"""``Pruner``, stepped by your loop like a learning-rate scheduler."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .config import Config
from .costs import Cost
from .errors import ConfigError
from .masks import masking
from .masks.classes import fill
from .masks.optimizers import LastStep, Scaler, add_gradient, before_each_step, sweep
from .masks.resume import read_state, write_state
from .repair import Repair, output_error, repair, repairs
from .runtime.batches import held
from .runtime.copying import copied, own
from .runtime.distributed import check_same, restoring, sharded, whole
from .runtime.forbidding import Forbidden, forbidding
from .runtime.joining import Joining
from .runtime.model import check_model
from .runtime.ordinary import in_ordinary_mode
from .runtime.ranks import meet, on_all_ranks, rank
from .runtime.undo import Undo, undoable
from .scoring.allocations import allocators
from .scoring.schedules import schedules
from .selection.allocation import allotted
from .selection.budget import Budget
from .selection.calibration import Loss, observe_forwards
from .selection.decision import Decision, decide
from .selection.goals import missed
from .selection.restored import SCHEMA, Stateful, check_decision, check_form, loaded_or_put_back
from .selection.running import RunningScores
from .selection.targets import Selectable, check_scorable
from .selection.targets import selectables as _selectables
from .shrinking import Plan, Result, cut_and_verify
from .shrinking import shrink as shrink_masks
from .shrinking.mixing import DEFAULTS as MIXED
from .shrinking.mixing import Try, check_mixed, mixes, with_blocks
from .shrinking.shallower import outermost, passing, writers
from .structure import Structure, analyze
from .training import named
from .types import Example, Masks, Scores

log = logging.getLogger(__name__)


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
    goal is reached, and more calls only keep the masks.  Each pruning step is one line of the log
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
        if masking.is_masked(model):
            raise ConfigError("the model has masks on already: finish() the pruner they belong to")
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
        self.budget = Budget(*parts, blocks=self._blocks())
        self.repairs: str | None = (
            None  # the repair that will follow, which error curves are measured after
        )
        self.statistics = RunningScores(self.selectables, self.structure)
        self.scaler = scaler
        self.decision = Decision()
        self._goal = False  # it was decided for the whole goal
        self.repaired: Repair | None = None
        self._before: Masks | None = {}  # what was masked before the last decision; None: repaired
        self.on_prune: list[Callable[[dict[str, float]], None]] = []
        self.calls = 0
        self._optimizer = LastStep()
        self.method.attach(weakref.proxy(self))  # no cycle: what is dropped stops watching at once
        sweep()
        self._unwatch: Callable[[], object] = (
            before_each_step(self._before_optimizer) if trained else lambda: None
        )

    @property
    def mixes(self) -> bool:
        """Whether blocks go besides groups, under one budget."""
        return mixes(self.config)

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
        assert self.structure is not None
        kept = Plan.from_keeps(self.structure, self.keeps)
        return replace(kept, drop=self.decision.drop)

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
        self._learn()
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
        tensors = self.tensors()
        self.statistics.notes.clear()
        with torch.no_grad():
            given = self.method.scores()
            scores = self.scores(tensors, given)
            self.budget.known.error = self._error
            try:
                made = self._decided(scores, tensors, share)
            finally:
                self.budget.known.error = None  # what is dropped is gone at once: no cycle
            notes = [*made.notes, *self.statistics.notes]
            made = replace(made, masks=self.method.complete(made.masks), notes=notes)
        check_same(made.masks)
        self._before = {name: mask.clone() for name, mask in self._on().items()}
        self.decision = made
        self._goal = share == 1
        return made.masks

    def _decided(
        self, scores: Sequence[Tensor], tensors: Mapping[str, Tensor], share: float
    ) -> Decision:
        """Decide on groups, and on blocks where these go too."""
        given = self.selectables, scores, self.budget, tensors, share, self._smaller
        if not self.mixes:
            return decide(*given)
        assert self.structure is not None
        self.budget.known.curves.clear()

        def tried(drop: tuple[str, ...]) -> Try:
            self.budget.without(drop)
            made = decide(*given)
            counts = {name: int(keep.sum()) for name, keep in made.keeps.items()}
            return Try(drop, made, self.budget.over(counts))

        def lost(each: Try) -> float:
            return self._lost(each.decision.keeps, each.drop)

        batches = self.budget.known.batches
        made = with_blocks(self.model, self.structure, batches, tried, lost)
        self.budget.without(made.drop)
        return made

    def _blocks(self) -> list[str]:
        """Return the blocks that may go, the largest last; none where groups alone go."""
        if not self.mixes or self.structure is None:
            return []
        return [b.name for b in sorted(outermost(self.structure.blocks), key=lambda b: b.params)]

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
        self._check_names()
        return {n: whole(p.detach()) for n, p in self.model.named_parameters()}

    def _check_names(self) -> None:
        names = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        lost = [p.tensor for s in self.selectables for p in s.parts if p.tensor not in names]
        if lost:
            raise ConfigError(
                f"the model has no parameter {lost[0]!r} any more: something has replaced its "
                "layers since the pruner was made.  Take adapters off before the pruner goes on "
                "(secateur.merge adds what they learned), or finish() it before they come"
            )

    def put_on(self) -> None:
        """Put the masks on the model as they are now."""
        masking.put_on(self.model, self.masks, differentiable=self.method.learns_masks)

    def observe(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Read the gradients that parameters have now; optimizers' steps do it by themselves.

        Args:
            parameters: those to read, by default all of the model.
        """
        if not self.statistics.parts:
            return
        only = None if parameters is None else {id(p) for p in parameters}
        named = self.model.named_parameters()
        self.statistics.observe({n: p for n, p in named if only is None or id(p) in only})

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
        with forbidding(self.model, self._never_chosen(self.keeps)):
            observe_forwards(self.model, data, calibration, loss, differentiated, self.structure)

    def _never_chosen(self, keeps: Mapping[str, Tensor]) -> list[Forbidden]:
        """Return where a router is not to choose the experts that are masked."""
        if self.structure is None:
            return []
        unchosen = {group.name for group in self.structure.groups if group.unchosen}
        return [
            each
            for name, keep in keeps.items()
            if name in unchosen
            for each in self.structure.forbidden(name, keep.cpu())
        ]

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
        if not self.keeps:
            raise ConfigError("nothing is masked yet: call step() or decide() before repair()")
        if self.structure is None:
            raise ConfigError("repair() needs the example inputs that the pruner was made without")
        if self._before is None:
            raise ConfigError(
                "these masks were repaired already, and the dense weights that a repair needs are "
                "no more: give all data to one repair()"
            )
        values, record = self._repaired(data, how, given)
        self._fill(values)
        undoable(partial(vars(self).update, dict(vars(self))))
        self.repaired, self._before = record, None
        return record

    def _repaired(
        self, data: Iterable[Any], how: str, given: Sequence[Any] | None
    ) -> tuple[dict[str, Tensor], Repair]:
        """Return what a repair makes of the weights, without masks on meanwhile."""
        assert self.structure is not None
        on, before = self._on(), self._before or {}
        with Undo() as undo:
            if on:
                differentiable = self.method.learns_masks
                undo(partial(masking.put_on, self.model, on, differentiable=differentiable))
                masking.take_off(self.model, bake=False)
            besides = self._besides(self.keeps, self.decision.drop)
            with masking.zeroed(self.model, before):
                masked = self.model, self.masks, self.structure
                return repair(*masked, data, how, given=given, **besides)

    def _besides(self, keeps: Mapping[str, Tensor], drop: Sequence[str]) -> dict[str, Any]:
        """Return what of a smaller model no mask says, as options of a repair."""
        found: dict[str, Any] = {"forbidden": self._never_chosen(keeps)}
        if drop and self.structure is not None:
            blocks = [self.structure.block(name) for name in drop]
            found["also"] = frozenset(writers(self.structure, blocks))
            found["skipped"] = passing(block for block in blocks if not block.exact)
        return found

    def _fill(self, values: Mapping[str, Tensor]) -> None:
        """Give what is kept of tensors its new values, until the call that does it fails."""
        with torch.no_grad():
            state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            for name, value in values.items():
                where = self.masks.get(name, torch.ones_like(value, dtype=torch.bool))
                where = where.to(value.device)
                if sharded(state[name]):  # a rank that fails puts its own shard back, alone
                    undoable(restoring(state[name]))
                else:
                    undoable(partial(fill, state[name], where, state[name].detach()[where]))
                fill(state[name], where, value[where])

    def _before_optimizer(self, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}

        def ours() -> Iterator[nn.Parameter]:
            return (p for p in self.model.parameters() if id(p) in held)

        if next(ours(), None) is None:
            return
        self._optimizer.seen(optimizer, self.scaler)
        self.observe(ours())
        self.method.before(optimizer)
        penalty = self.method.penalty()
        if penalty is not None and penalty.requires_grad:
            add_gradient(penalty, [p for p in ours() if p.requires_grad])

    def _learn(self) -> None:
        """Let the method learn, unless the optimizer skipped this step (as a GradScaler may)."""
        last = self._optimizer
        if not last.fresh and not last.ever:  # an optimizer that is none of torch's
            self.observe()
        if last.fresh or not last.ever:
            self.method.step(learning_rate_share=last.share, loss_scale=last.scale)
        last.fresh = False

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
        if self.mixes:
            raise ConfigError("what='depth' is decided in one shot: such a run has no state")
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            below = {n: whole(parameters[n].detach())[~m] for n, m in self._on().items()}
        return {
            "schema": SCHEMA,
            "config": self.config.model_dump(mode="json"),
            "calls": self.calls,
            "level": self.decision.level,
            "notes": list(self.notes),
            "keeps": dict(self.keeps),
            "masks": dict(self.masks),
            "below": below,
            "before": self._before,
            "statistics": self.statistics.state_dict(),
            "method": self.method.state_dict(),
            "peak": self._optimizer.peak,
            "ever": self._optimizer.ever,
        }

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
        check_form(state)
        ours = self.config.model_dump(mode="json")
        theirs = {**Config().model_dump(mode="json"), **state["config"]}  # of before it had all
        if other := [k for k in ours if ours[k] != theirs[k]]:
            raise ConfigError(
                "the state is of a run with other settings",
                *(f"{k}: {theirs[k]!r} there, {ours[k]!r} here" for k in other),
            )
        known = {s.name for s in self.selectables}
        if state["keeps"] and set(state["keeps"]) != known:
            odd = ", ".join(sorted(map(str, set(state["keeps"]) ^ known))[:5])
            raise ConfigError(f"the state is of a run on another model: they differ in {odd}")
        check_decision(state, self.selectables, self.tensors(), self.method.complete)
        parts: dict[str, Stateful] = {"statistics": self.statistics, "method": self.method}
        with loaded_or_put_back(parts, state) as undo:
            masking.put_on(self.model, state["masks"], differentiable=self.method.learns_masks)
            undo.pop_all()
        self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over what was checked."""
        parameters = dict(self.model.named_parameters())
        for name, values in state["below"].items():
            fill(parameters[name], ~state["masks"][name], values)
        self.calls = state["calls"]
        self.decision = Decision(
            keeps={name: keep.clone() for name, keep in state["keeps"].items()},
            masks={name: mask.clone() for name, mask in state["masks"].items()},
            notes=list(state["notes"]),
            level=state["level"],
        )
        self._before = state.get("before", {})
        self._optimizer.peak = state.get("peak", 0.0)
        self._optimizer.ever = state.get("ever", False)

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

    def _on(self) -> Masks:
        """Return the masks that are on the model: none before the first pruning step."""
        return self.masks if masking.is_masked(self.model) else {}

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
        self._check_names()
        model = self.model if inplace else copied(self.model, borrowing=True)
        on = masking.masks_on(model)
        with Undo(lasting=True) as undo:
            undo(partial(masking.put_on, model, on, differentiable=self.method.learns_masks))
            masking.take_off(model, bake=False)
            result = self._cut(model, on, verify)
        if not inplace:
            own(result.model, self.model)
        result.with_repair(self.repaired)
        if self._goal or self.share == 1:
            result.goals = self.budget.reached(result.plan.counts, result.model)
        if short := self.budget.unmet or missed(result.goals):
            result.warnings.insert(0, short)
        if inplace:
            self._unwatch()
        return result

    def _error(self, keeps: Mapping[int, Tensor]) -> float:
        """Return how far the output is off when some selectables keep such positions alone."""
        return self._lost({self.selectables[i].name: keep for i, keep in keeps.items()})

    def _lost(self, keeps: Mapping[str, Tensor], drop: tuple[str, ...] = ()) -> float:
        """Return how far the output is off when groups keep such positions, and blocks go."""
        assert self.structure is not None
        tensors, masks = self.tensors(), dict(Plan({}, drop).masks(self.structure))
        for each in self.selectables:
            if each.name in keeps:
                for name, mask in each.masks(keeps[each.name], tensors).items():
                    masks[name] = masks[name] & mask if name in masks else mask
        batches, how = self.budget.known.batches, self.repairs
        besides = self._besides(keeps, drop)
        return output_error(self.model, masks, self.structure, batches, how, **besides)

    def _smaller(self, keeps: Sequence[Tensor]) -> nn.Module:
        """Return a smaller model of what stays, to be measured and dropped."""
        assert self.structure is not None
        model = copied(self.model, borrowing=True)
        on = masking.masks_on(model)
        masking.take_off(model, bake=False)
        named = {s.name: keep for s, keep in zip(self.selectables, keeps, strict=True)}
        plan = Plan.from_keeps(self.structure, named)
        result = cut_and_verify(
            model, self.structure, plan, on, self.example, notes=[], verify=False
        )
        return result.model

    def _cut(self, model: nn.Module, on: Masks, verify: bool) -> Result:
        assert self.structure is not None
        if any(s.group is None for s in self.selectables):
            result = shrink_masks(
                model,
                self.masks,
                self.example,
                structure=self.structure,
                inplace=True,
                verify=verify,
                inexact=self.config.inexact,
            )
            result.notes[:0] = self.notes
            return result
        return cut_and_verify(
            model,
            self.structure,
            self.plan,
            on,  # what it was trained with stays masked, also where it cannot be cut
            self.example,
            notes=list(self.notes),
            verify=verify,
        )
