"""``Result``: a smaller model, and everything that is known of how it came about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from secateur.costs import Reached
from secateur.graph.cost import Cost, human
from secateur.repair.report import Repair
from secateur.runtime.shown import Shown
from secateur.structure import Structure
from secateur.types import Masks

from .history import Changes, History
from .overrides import NAME, said_by_layer
from .plan import Plan
from .record import Source
from .saving import save_result
from .stock import is_pretrained, is_stock
from .verify import Verification

MOST_NAMED = 4
SQUEEZED = 0.1
"""The share of its width below which a layer may no longer tell its inputs apart."""


MASKED = "the masked model"
UNKNOWN = "distance from the dense model: not measured, for want of data"
TRAINED = "measure it on your own task, and train it as long as you can"
FROM_PRETRAINED = "secateur.from_pretrained"
REPAIRED = f"{TRAINED}; with data= (inputs, no labels) what stays makes up for what went"


@dataclass
class Result(Shown):
    """A smaller model and everything that is known of how it came about.

    ``masks`` are made where they are asked for, and may be expanded views: ``contiguous()`` one
    before writing to it or to a file.
    ``warnings`` say where the model is not what was asked for; they come first when it is printed.

    >>> import torch
    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> result = prune(net, torch.zeros(1, 8), sparsity=0.5)
    >>> result.before.params, result.after.params, result.verification.passed
    (212, 108, True)

    See also:
        ``prune``, ``Pruner.finish``, ``shrink`` and ``apply_plan``, which return one.
    """

    model: nn.Module
    plan: Plan
    masks: Masks
    structure: Structure
    verification: Verification | None
    notes: list[str] = field(default_factory=list)
    attributes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    folded: dict[str, Tensor] = field(default_factory=dict)  # added to biases for lost constants
    config: Changes | None = None  # numbers that say the new shapes, if any do
    layers: Any = None  # a config with numbers for single layers, where no ordinary one does
    rebuilt: bool = False  # a model of such a config was built, and computes the same
    warnings: list[str] = field(default_factory=list)
    compared_with: str = MASKED
    goals: list[Reached] = field(default_factory=list)  # what was asked of costs, and reached
    repair: Repair | None = None  # how what stays makes up for what went, if it was asked to
    refused: bool = False  # saved, its class was tried: it wrote or loaded no such model
    inputs: tuple[str, ...] = ()  # words of --input that make what it was tried on, if any do

    def __post_init__(self) -> None:
        if squeezed := self.squeezed:
            names = ", ".join(f"{name} (keeps {k} of {n})" for name, (k, n) in squeezed.items())
            self.warnings.append(f"squeezed below a tenth of the width: {names}")

    @cached_property
    def before(self) -> Cost:
        """What the dense model costs."""
        return self.structure.cost()

    @cached_property
    def after(self) -> Cost:
        """What the smaller model costs."""
        return self.structure.cost(self.plan)

    @property
    def squeezed(self) -> dict[str, tuple[int, int]]:
        """The groups that keep less than a tenth of their positions: name → kept, size."""
        sizes = {name: self.structure[name].size for name in self.plan.counts}
        counts = self.plan.counts.items()
        return {name: (k, sizes[name]) for name, k in counts if k < SQUEEZED * sizes[name]}

    @property
    def unchanged(self) -> bool:
        """Whether every shape and number is the dense model's, as where single weights are zero."""
        history = History.of(self.model)
        return not (history.shapes or history.attributes or history.dropped or history.taken)

    @property
    def ordinary(self) -> bool:
        """Whether the class's own config, changed or not, says every shape."""
        return not self.refused and (self.unchanged or self.config is not None)

    @property
    def loads_with(self) -> str:
        """Where the smaller model can be loaded, in one line."""
        model = self.structure.model
        if self.refused:
            return (
                f"{self._ours()}; not with the dense model's loader: its class was tried, and "
                "refused this model or loaded another"
            )
        if self.unchanged:
            return f"whatever loads the dense {model}: every shape is as it was"
        if self.layers is not None:
            return self._by_layer()
        if self.config is None:
            return f"{self._ours()}; not with the dense model's loader, because shapes differ"
        numbers = ", ".join(f"{key}={after}" for key, (_, after) in self.config.items())
        seen = "the same outputs were seen" if self.rebuilt else "the shapes agree"
        loader = ", so with save_pretrained and from_pretrained"
        loader = loader if is_pretrained(self.model) else ""
        return f"{model}(config) with {numbers or 'its own config'}{loader} ({seen})"

    def _ours(self) -> str:
        if is_stock(self.model):
            return f"{FROM_PRETRAINED}, once saved"
        return f"secateur.load_pruned, onto a freshly built {self.structure.model}"

    def _by_layer(self) -> str:
        which = sorted({name for said in said_by_layer(self.layers) for name in said})
        return (
            f"{self.structure.model}(config) with {', '.join(which)} of each layer in its "
            f"{NAME}, so with from_pretrained, once saved (the same outputs were seen)"
        )

    def rows(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        removed = sum(self.structure[n].size - k for n, k in self.plan.counts.items())
        total = sum(self.structure[n].size for n in self.plan.counts)
        share = f"{removed / total:.0%} of the units" if total else "nothing"
        what = f"{share} of {len(self.plan.keep)} groups removed"
        if not self.plan.keep and (some := [m for m in self.masks.values() if not bool(m.all())]):
            zero = 1 - sum(int(m.sum()) for m in some) / sum(m.numel() for m in some)
            what = f"{zero:.0%} of the weights of {len(some)} tensors zero, no shape changed"
        if self.plan.drop and not self.plan.keep:
            what = f"{len(self.plan.drop)} of {len(self.structure.blocks)} blocks dropped"
        for warning in self.warnings:
            yield f"[bold yellow]warning[/] {escape(warning)}"
        yield escape(f"{self.structure.model}: {what}")
        yield from self._answers()
        yield self._costs()
        if self.structure.uncounted:
            yield f"not in the MACs: {', '.join(self.structure.uncounted)}"
        if self.plan.drop:
            yield escape(f"blocks dropped: {', '.join(self.plan.drop)}")
        yield from _compared(self.verification)
        for note in self.notes:
            yield f"[yellow]note[/] {escape(note)}"

    def _answers(self) -> Iterator[str]:
        """Yield: is the goal met, is the cut exact, how far is dense, where it loads, what next."""
        for goal in self.goals:
            yield escape(f"goal: {goal}")
        checked = "not checked (verify=False)"
        if self.verification is not None:
            checked = f"checked: {self.verification}, against {self.compared_with}"
        yield escape(checked)
        yield escape(str(self.repair or UNKNOWN))
        yield escape(f"loads with: {self.loads_with}")
        yield escape(f"next: {TRAINED if self.repair else REPAIRED}")

    def _costs(self) -> Table:
        table = Table()
        for column in ("", "before", "after", ""):
            table.add_column(column, justify="right" if column else "left")
        for label, attribute in (
            ("parameters", "params"),
            ("MACs", "macs"),
            ("peak activation bytes", "peak_bytes"),
        ):
            old, new = getattr(self.before, attribute), getattr(self.after, attribute)
            change = f"{new / old - 1:+.0%}" if old else ""
            table.add_row(label, human(old), human(new), change)
        return table

    def with_repair(self, record: Repair | None) -> Result:
        """Return this result, told what a repair did, if there was one."""
        if record is not None:
            self.repair = record
            self.notes += record.notes
        return self

    def save(self, directory: str | os.PathLike[str], *, dense: Source | None = None) -> Path:
        """Write the smaller model: the folder that ``secateur prune --out`` writes, but the report.

        It holds ``model.safetensors`` and ``plan.json``, and in ``record.json`` what an example
        input looks like.  A model of transformers has its ``config.json`` with it where that says
        every shape, which is tried with the class's own ``from_pretrained``, and its tokenizer.
        Where that makes another model, ``loads_with`` says so from then on.

        Args:
            directory: is made where it is missing.
            dense: how the dense model is built, where the command line is to build it.

        Raises:
            FileError: as ``save_pruned``.
        """
        source = dense or Source(input=self.inputs)
        config = self.layers if self.layers is not None else getattr(self.model, "config", None)
        self.refused = False
        own = self.ordinary or self.layers is not None
        given = config if own else None
        folder, self.refused = save_result(self.model, source, directory, config=given)
        return folder


def _compared(found: Verification | None) -> Iterator[str]:
    """Yield what both models were run on, and what the masked one did not take."""
    if found is None:
        return
    yield f"compared on: {escape('; '.join(found.tried))}"
    if found.refused:
        more = f" and {len(found.refused) - MOST_NAMED} more" * (len(found.refused) > MOST_NAMED)
        listed = escape("; ".join(found.refused[:MOST_NAMED]))
        yield f"the model refuses, so not compared on: {listed}{more}"
