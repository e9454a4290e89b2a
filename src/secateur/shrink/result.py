"""``shrink``: one call from masks to a smaller, verified model, or to an unchanged one."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from secateur.errors import PlanError, ShrinkError, VerificationError
from secateur.graph.cost import Cost, human
from secateur.structure import Structure, analyze
from secateur.types import Example, Masks

from .complete import complete, group_masks
from .cut import Surgery
from .expressed import expressed, rebuilt
from .files import load_plans, save_pruned
from .fold import Folding
from .history import History
from .plan import Plan
from .verify import Verification, difference, run, tolerance_of


@dataclass
class Result:
    """A smaller model and everything that is known of how it came about."""

    model: nn.Module
    plan: Plan
    masks: Masks
    structure: Structure
    before: Cost
    after: Cost
    verification: Verification | None
    notes: list[str] = field(default_factory=list)
    attributes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    folded: dict[str, Tensor] = field(default_factory=dict)  # added to biases for lost constants
    config: dict[str, tuple[int, int]] | None = None  # integers that say the new shapes, if any do
    rebuilt: bool = False  # such a model was built, and computes the same

    @property
    def loads_with(self) -> str:
        """Where the smaller model can be loaded, in one line."""
        model = self.structure.model
        if self.config is None:
            return (
                f"secateur.load_pruned, onto a freshly built {model}; not with the dense model's "
                "loader, because shapes differ"
            )
        numbers = ", ".join(f"{key}={after}" for key, (_, after) in self.config.items())
        seen = "the same outputs were seen" if self.rebuilt else "the shapes agree"
        loader = ", so with save_pretrained and from_pretrained"
        loader = loader if hasattr(self.model, "from_pretrained") else ""
        return f"{model}(config) with {numbers or 'its own config'}{loader} ({seen})"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        removed = sum(self.structure[n].size - k for n, k in self.plan.counts.items())
        total = sum(self.structure[n].size for n in self.plan.counts)
        share = f"{removed / total:.0%} of the units" if total else "nothing"
        title = f"{self.structure.model}: {share} of {len(self.plan.keep)} groups removed"
        table = Table(title=title, title_justify="left")
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
        yield table
        if self.plan.drop:
            many = f"{len(self.plan.drop)} of {len(self.structure.blocks)}"
            yield f"{many} residual blocks dropped: {', '.join(self.plan.drop)}"
        yield f"checked: {self.verification}" if self.verification else "not checked (verify=False)"
        yield f"loads with: {self.loads_with}"
        for note in self.notes:
            yield f"[yellow]note[/] {note}"

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the smaller model; the same as ``save_pruned(result.model, directory)``."""
        return save_pruned(self.model, directory)


def shrink(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example_inputs: Example,
    *,
    structure: Structure | None = None,
    inplace: bool = False,
    verify: bool = True,
    constants: Literal["fold", "mask"] = "fold",
) -> Result:
    """Remove what masks have made superfluous.

    Masks may be partial or disagree across a residual: what can go is found from them, completed
    where it must be, and reported in ``notes``.

    Args:
        model: any module.
        masks: parameter name → bool tensor of its shape, True = kept.
        example_inputs: as for ``analyze``.
        structure: from ``analyze``, when it is known already.
        inplace: cut this very model; by default a deep copy.
        verify: compare the smaller with the masked model.
        constants: what becomes of a number that a removed position emits all the same (the bias
            of its BatchNorm is not masked): "fold" it into the bias of the layers that read it, so
            that the outputs stay as they are, or "mask" it.  The notes say which, and what it does.

    Raises:
        MaskError: a mask fits no parameter.
        VerificationError: the outputs differ though every removal is exact; ``model`` is unchanged.
        ShrinkError: the smaller model fails to run; ``model`` is unchanged.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> mask = torch.ones(8, 4, dtype=torch.bool)
    >>> mask[:3] = False
    >>> small = shrink(net, {"0.weight": mask, "0.bias": mask[:, 0]}, torch.zeros(1, 4))
    >>> small.model[0].out_features, small.verification.passed
    (5, True)
    """
    structure = structure or analyze(model, example_inputs)
    done = complete(structure, masks)
    notes = list(done.notes)
    plan = Plan.from_keeps(structure, done.keeps)
    names = structure.inferred.recording.names  # tied names are one parameter
    full: Masks = {}
    completed = group_masks(structure, done.keeps)
    for name, mask in (*masks.items(), *completed.items()):
        full[names[name]] = full[names[name]] & mask.cpu() if names[name] in full else mask.cpu()
    runs = verify and not any(p.is_meta for p in model.parameters())
    as_given = _outputs(model, masks, example_inputs) if runs and done.constants else []
    folding = None
    if done.constants and constants == "fold" and not any(p.is_meta for p in model.parameters()):
        folding = Folding(dict(masks), done.constants, completed)
    else:
        notes += [
            f"{name}: {int(constant.sum())} removed positions emitted a constant (a bias that is "
            "not masked); it is masked too"
            for name, constant in done.constants.items()
        ]
    result = cut_and_verify(
        model,
        structure,
        plan,
        full,
        example_inputs,
        notes=notes,
        inplace=inplace,
        verify=verify,
        folding=folding,
    )
    if as_given:
        gap = difference(as_given, run(result.model, example_inputs))
        result.notes.append(f"outputs differ by {gap:.1e} relative from those of the masks given")
    return result


def apply_plan(
    model: nn.Module,
    plan: Plan | Sequence[Plan] | str | os.PathLike[str],
    example_inputs: Example,
    *,
    verify: bool = True,
) -> Result:
    """Cut a deep copy of a dense model, with its own weights, by a plan.

    Args:
        model: any module; it is not touched.
        plan: a plan, several that follow each other, or a directory that ``save_pruned`` wrote.
        example_inputs: as for ``analyze``.
        verify: compare the smaller with the masked model.

    Raises:
        FileError: the directory holds no plan.
        PlanError: the plan does not fit the model.
        ShrinkError, VerificationError: it could not be cut.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> apply_plan(net, Plan({"0": (0, 1, 5)}), torch.zeros(1, 4)).model[0].out_features
    3
    """
    if isinstance(plan, (str, os.PathLike)):
        plan = load_plans(plan)
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    if not plans:
        raise PlanError("there is no plan to apply")
    model = copy.deepcopy(model)
    for step in plans:
        structure = analyze(model, example_inputs)
        result = cut_and_verify(
            model,
            structure,
            step,
            step.masks(structure),
            example_inputs,
            notes=[],
            inplace=True,
            verify=verify,
        )
    return result


def drop_blocks(
    model: nn.Module, names: Sequence[str], example_inputs: Example, *, verify: bool = True
) -> Result:
    """Drop residual blocks from a deep copy of a model: each returns its input.

    Args:
        model: any module; it is not touched.
        names: of ``analyze(model, example_inputs).blocks``.
        example_inputs: as for ``analyze``; without a cache, which would keep what the blocks made.
        verify: compare with the model in which what the blocks add is masked to zero.

    Raises:
        PlanError: a name is none of a residual block.
        ShrinkError, VerificationError: the model does not run without them, or computes another
            thing than the masked one.

    >>> import torch
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner = nn.Linear(8, 8)
    ...     def forward(self, x):
    ...         return x + self.inner(x)
    >>> net, x = nn.Sequential(Block(), Block(), nn.Linear(8, 2)), torch.randn(3, 8)
    >>> from secateur import analyze
    >>> [(block.name, block.params) for block in analyze(net, x).blocks]
    [('0', 72), ('1', 72)]
    >>> small = drop_blocks(net, ["1"], x)
    >>> small.after.params, small.verification.passed
    (90, True)
    """
    return apply_plan(model, Plan({}, tuple(names)), example_inputs, verify=verify)


def _outputs(model: nn.Module, masks: Mapping[str, Tensor], example: Example) -> list[list[Tensor]]:
    """Return what the model computes under masks, and leave it as it was."""
    surgery = Surgery(model)
    try:
        surgery.mask(masks)
        return run(model, example)
    finally:
        surgery.undo()


def cut_and_verify(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    masks: Masks,
    example_inputs: Example,
    *,
    notes: list[str],
    inplace: bool,
    verify: bool,
    folding: Folding | None = None,
) -> Result:
    """Multiply in the masks, apply the plan, and compare; on failure the model is as before."""
    model = model if inplace else copy.deepcopy(model)
    surgery = Surgery(model)
    inexact = [f"{n}: {structure[n].inexact}" for n in plan.keep if not structure[n].exact]
    inexact += [
        f"{name}: what it adds cannot be masked by parameters"
        for name in plan.drop
        if not structure.block(name).exact
    ]
    checked: Verification | None = None
    folded: dict[str, Tensor] = {}
    config, same = None, False
    try:
        if folding:
            surgery.mask(folding.masks)
            folded, told = folding.amounts(model, structure, example_inputs)
            notes = [*notes, *told]
        surgery.mask(masks)
        surgery.add(folded)
        verify = verify and not any(p.is_meta for p in model.parameters())
        expected = run(model, example_inputs) if verify else []
        attributes = surgery.cut(structure, plan)
        if verify:
            try:
                found = run(model, example_inputs)
            except Exception as error:  # the user's forward may raise anything
                raise ShrinkError(
                    f"the smaller {structure.model} does not run: {type(error).__name__}: {error}"
                ) from error
            gap = difference(expected, found)
            checked = Verification(gap, tolerance_of(expected), not inexact, len(found))
            if not checked.passed:
                raise VerificationError(
                    f"the smaller {structure.model} differs from the masked one by {gap:.1e} "
                    f"relative (allowed {checked.tolerance:.0e}) though every removal is exact"
                )
        config, same = _configured(model, structure, surgery, example_inputs if verify else None)
    except BaseException:
        surgery.undo()
        raise
    return Result(
        model,
        plan,
        masks,
        structure,
        structure.cost(),
        structure.cost(plan),
        checked,
        [*notes, *(f"inexact: {reason}" for reason in inexact)],
        attributes,
        folded,
        config,
        same,
    )


def _configured(
    model: nn.Module, structure: Structure, surgery: Surgery, example: Example | None
) -> tuple[dict[str, tuple[int, int]] | None, bool]:
    """Let the model's config say the new sizes, where it can.

    Returns:
        The integers that changed, or None; and whether a model that was built from them was seen
        to compute the same.
    """
    dense = History.of(model).shapes
    changes = expressed(model, dense, surgery.shapes, structure.inferred.attributes)
    if changes is None or example is None:
        return changes, False
    expected = run(model, example)
    new = rebuilt(model, changes)
    allowed = tolerance_of(expected)
    if new is not None and difference(expected, run(new, example)) > allowed:
        return None, False  # the shapes are the same, but something else is not: a scale
    start = surgery.mark()
    surgery.configure(changes)
    if difference(expected, run(model, example)) > allowed:  # its forward reads the config
        surgery.undo(start)
        return None, False
    return changes, new is not None
