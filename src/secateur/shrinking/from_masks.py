"""``shrink``: one call from masks to a smaller, verified model, or to an unchanged one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.errors import MaskError
from secateur.graph.infer import Inferred
from secateur.graph.record import runs_for_real
from secateur.repair import Repair
from secateur.repair.fold import Folding, Inputs, watching
from secateur.runtime.copying import copied, own
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.undo import Undo
from secateur.structure import Structure, analyze
from secateur.types import Example

from .apply import cut_and_verify
from .completion import Completion, check_masks, complete, group_masks
from .cut import Surgery
from .plan import Plan
from .repaired import repaired
from .result import Result
from .verify import Check


@in_ordinary_mode
def shrink(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example_inputs: Example,
    *,
    structure: Structure | None = None,
    inplace: bool = False,
    verify: bool = True,
    constants: Literal["fold", "mask"] = "fold",
    inexact: bool = False,
    data: Iterable[Any] | None = None,
    repair: str = "least_squares",
) -> Result:
    """Remove what masks have made superfluous.

    Masks may be partial, or disagree across a residual: they are completed, and ``notes`` say how.

    Args:
        model: any module.
        masks: parameter name → bool tensor of its shape, True = kept.
        example_inputs: as for ``analyze``.
        structure: from ``analyze``, when it is known already.  By default the one under which more
            goes: whole groups of a grouped convolution, or channels of each of its groups.
        inplace: cut this very model; by default a deep copy.
        verify: compare the smaller with the masked model.
        constants: what becomes of a number that a removed position emits all the same (the bias
            of its BatchNorm is not masked): "fold" it into its readers' biases, or "mask" it.
        inexact: remove also what is masked wherever it is made, if a norm over all makes it anew
            (hidden positions of a transformer): the result says by how much the outputs change.
        data: batches of inputs, by which what stays makes up for what goes (``Pruner.repair``).
        repair: how, a name in ``secateur.repairs``; the model must have its dense weights still.

    Raises:
        MaskError: ``masks`` is no dict, or a mask fits no parameter.
        ConfigError: ``data`` is empty, or the model refuses a batch; ``model`` is unchanged.
        VerificationError, ShrinkError: nothing can be cut; ``model`` is unchanged.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> mask = torch.ones(8, 4, dtype=torch.bool)
    >>> mask[:3] = False
    >>> small = shrink(net, {"0.weight": mask, "0.bias": mask[:, 0]}, torch.zeros(1, 4))
    >>> small.model[0].out_features, small.verification.passed
    (5, True)
    """
    check_model(model)
    _check_dict(masks)
    settings = verify, constants, inexact
    how = _repaired_and_shrunk if inplace else _of_copy
    return how(model, masks, example_inputs, structure, settings, data, repair)


def _check_dict(masks: object) -> None:
    if not isinstance(masks, Mapping):
        raise MaskError(
            "masks must be a dict of parameter names and bool tensors, got a "
            f"{type(masks).__name__}: the call is shrink(model, masks, example_inputs)"
        )


def _of_copy(model: nn.Module, masks: Mapping[str, Tensor], *given: Any) -> Result:
    """Return the result of a copy, which keeps nothing of the model's own."""
    copy = copied(model, borrowing=given[-2] is None)  # a repair writes to what it borrowed
    result = _repaired_and_shrunk(copy, masks, *given)
    own(copy, model)
    return result


def _repaired_and_shrunk(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    example: Example,
    structure: Structure | None,
    settings: tuple[bool, Literal["fold", "mask"], bool],
    data: Iterable[Any] | None,
    how: str,
) -> Result:
    """Return the result, or leave the model as it was."""
    record: Repair | None = None
    surgery = Surgery(model)
    with Undo(lasting=True) as undo:
        undo(surgery.undo)
        if data is not None:
            structure = structure or analyze(surgery.model, example)
            masks, record = repaired(surgery, masks, structure, data, how, inexact=settings[-1])
        result = _shrink(surgery, masks, example, structure, *settings)
    return result.with_repair(record)


def _shrink(
    surgery: Surgery,
    masks: Mapping[str, Tensor],
    example: Example,
    structure: Structure | None,
    verify: bool,
    constants: Literal["fold", "mask"],
    inexact: bool,
) -> Result:
    model = surgery.model
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
    # those that do not fit are an error as soon as the structure is known
    surgery.mask({n: m for n, m in masks.items() if _fits(m, shapes.get(n))})
    inputs: Inputs | None = None
    if structure is None:
        structure, inputs = _read(model, masks, example, inexact)
    done = complete(structure, masks, inexact=inexact)
    notes = list(done.notes)
    plan = Plan.from_keeps(structure, done.keeps)
    completed = group_masks(structure, done.keeps)
    absent = any(p.is_meta for p in model.parameters())
    changed = {*done.constants, *done.renewed}
    check = Check(structure, example) if verify and changed and not absent else None
    as_given = check.expect(model) if check else None
    fold = bool(done.constants) and constants == "fold" and not absent
    folding = Folding(done.constants, completed, inputs) if fold else None
    if not fold:
        notes += _masked_too(done)
    result = cut_and_verify(
        model,
        structure,
        plan,
        dict(masks),
        example,
        notes=notes,
        verify=verify,
        folding=folding,
        surgery=surgery,
        as_it_is=not changed,
    )
    if changed.intersection(result.plan.keep):
        compared = (
            check.compare(result.model, as_given, exact=False) if check and as_given else None
        )
        gap = compared.difference if compared else None
        _say_what_differs(result, done, constants, gap, _stored_to(model))
    return result


def _masked_too(done: Completion) -> list[str]:
    return [
        f"{name}: {int(constant.sum())} removed positions emitted a constant (a bias that is not "
        "masked); it is masked too"
        for name, constant in done.constants.items()
    ]


def _say_what_differs(
    result: Result,
    done: Completion,
    constants: Literal["fold", "mask"],
    gap: float | None,
    tolerance: float,
) -> None:
    """Tell what the check compared with, and how far that is from the masks that were given.

    Args:
        gap: relative to the outputs under the masks given; None where that was not measured.
    """
    how = "masked" if constants == "mask" else "folded where a bias can say it, masked elsewhere"
    result.compared_with = f"the model in which constants of removed positions are {how}"
    if not done.constants:
        result.compared_with = "the model in which removed positions are masked after norms too"
    if gap is not None:
        result.notes.append(f"outputs differ by {gap:.1e} relative from those of the masks given")
        if gap <= tolerance:
            return
    far = "was not measured" if gap is None else f"is {gap:.1e} relative"
    if done.renewed:
        gone = {n: int(w.sum()) for n, w in done.renewed.items() if n in result.plan.keep}
        many = ", ".join(f"{count} of {name}" for name, count in gone.items())
        result.warnings.append(
            f"the difference of its outputs from those of the masks given {far}: positions were "
            f"removed on request that a norm makes anew ({many}). Train what is left"
        )
        return
    names, more = list(done.constants)[:3], len(done.constants) - 3
    groups = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    result.warnings.append(
        f"the difference of its outputs from those of the masks given {far}: removed positions "
        f"of {groups} emitted a constant (a bias that no mask covers), which is now {how}. The "
        f"check compares with {result.compared_with}, and a repair's distance from dense is of the "
        "masks given. Mask the biases too before you train, or train what is left"
    )


def _read(
    model: nn.Module, masks: Mapping[str, Tensor], example: Example, inexact: bool
) -> tuple[Structure, Inputs | None]:
    """Return the structure under which most goes, and what layers read in its forward.

    The model is masked, so that what they read is what they will, if the forward is a real one.
    """
    with watching(model) as inputs:
        structure = analyze(model, example)
    if any(1 < getattr(m, "groups", 1) < getattr(m, "in_channels", 0) for m in model.modules()):
        check_masks(structure, masks)
        ragged = Inferred(structure.inferred.recording, ragged=True)
        readings = [structure, Structure(structure.model, ragged)]

        def left(structure: Structure) -> int:
            keeps = complete(structure, masks, inexact=inexact).keeps
            return structure.cost(Plan.from_keeps(structure, keeps)).params

        structure = min(readings, key=left)
    return structure, inputs if runs_for_real(model) else None


def _stored_to(model: nn.Module) -> float:
    """Return the relative difference that a bias cannot say: its type has so many places."""
    eps = [torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point()]
    return max([1e-5, *(4 * e for e in eps)])


def _fits(mask: Tensor, shape: torch.Size | None) -> bool:
    return mask.dtype == torch.bool and mask.shape == shape
