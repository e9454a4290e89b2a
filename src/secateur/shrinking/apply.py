"""Apply a plan: mask, cut in place, verify, and put everything back if that fails."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence

from torch import Tensor, nn

from secateur.errors import PlanError, ShrinkError, VerificationError
from secateur.repair.fold import Folding
from secateur.structure import Structure, analyze
from secateur.types import Example, Masks

from .cut import Surgery
from .expressed import expressed, rebuilt
from .files import load_plans
from .history import History
from .plan import Plan
from .result import Result
from .verify import Verification, difference, run, tolerance_of


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

    Returns:
        The result of the last plan.

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


def cut_and_verify(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    masks: Masks,
    example_inputs: Example,
    *,
    notes: list[str],
    verify: bool,
    folding: Folding | None = None,
    surgery: Surgery | None = None,
    as_it_is: bool = False,
) -> Result:
    """Multiply in the masks, apply the plan, and compare; on failure the model is as before.

    Args:
        masks: of whatever the plan removes, which only the comparison needs.
        folding: constants that go into biases; the model is masked by the masks it came with.
        surgery: what was done to the model before, and is undone on failure too.
        as_it_is: compare with the model as it comes, and do not multiply the masks in: it was
            masked by those that somebody gave, from which the others are only inferred.
    """
    surgery = surgery or Surgery(model)
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
            folded, told = folding.amounts(model, structure, example_inputs)
            notes = [*notes, *told]
        verify = verify and not any(p.is_meta for p in model.parameters())
        if verify and not as_it_is:
            surgery.mask(masks)
        surgery.add(folded)
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
        checked,
        notes=[*notes, *(f"inexact: {reason}" for reason in inexact)],
        attributes=attributes,
        folded=folded,
        config=config,
        rebuilt=same,
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
