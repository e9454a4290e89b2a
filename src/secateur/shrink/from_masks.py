"""``shrink``: one call from masks to a smaller, verified model, or to an unchanged one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from secateur.graph.infer import Inferred
from secateur.graph.record import runs_for_real
from secateur.structure import Structure, analyze
from secateur.types import Example, Masks

from .apply import cut_and_verify
from .complete import check_masks, complete, group_masks
from .cut import Surgery
from .fold import Folding, Inputs, watching
from .plan import Plan
from .result import Result
from .verify import difference, run


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
        structure: from ``analyze``, when it is known already.  By default the one under which more
            goes: whole groups of a grouped convolution, or channels of each of its groups.
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
    inputs: Inputs | None = None
    if structure is None:
        structure, inputs = _read(model, masks, example_inputs)
    done = complete(structure, masks)
    notes = list(done.notes)
    plan = Plan.from_keeps(structure, done.keeps)
    names = structure.inferred.recording.names  # tied names are one parameter
    completed = group_masks(structure, done.keeps)
    full: Masks = {name: mask.clone() for name, mask in completed.items()}
    for name, mask in masks.items():
        if names[name] in full:
            full[names[name]] &= mask.cpu()
        else:
            full[names[name]] = mask.cpu().clone()
    runs = verify and not any(p.is_meta for p in model.parameters())
    as_given = _outputs(model, masks, example_inputs) if runs and done.constants else []
    folding = None
    if done.constants and constants == "fold" and not any(p.is_meta for p in model.parameters()):
        folding = Folding(dict(masks), done.constants, completed, inputs)
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


def _read(
    model: nn.Module, masks: Mapping[str, Tensor], example: Example
) -> tuple[Structure, Inputs | None]:
    """Return the structure under which most goes, and what layers read in its forward.

    That is under the masks if the forward is a real one, which saves another.
    """
    inputs: Inputs | None = None
    if runs_for_real(model):
        shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
        surgery = Surgery(model)
        try:  # masks that do not fit are an error as soon as the structure is known
            surgery.mask({n: mask for n, mask in masks.items() if _fits(mask, shapes.get(n))})
            with watching(model) as inputs:
                structure = analyze(model, example)
        finally:
            surgery.undo()
    else:
        structure = analyze(model, example)
    if any(1 < getattr(m, "groups", 1) < getattr(m, "in_channels", 0) for m in model.modules()):
        check_masks(structure, masks)
        ragged = Inferred(structure.inferred.recording, ragged=True)
        readings = [structure, Structure(structure.model, ragged)]
        structure = min(readings, key=lambda s: s.cost(Plan.from_masks(s, masks)).params)
    return structure, inputs


def _fits(mask: Tensor, shape: torch.Size | None) -> bool:
    return mask.dtype == torch.bool and mask.shape == shape


def _outputs(model: nn.Module, masks: Mapping[str, Tensor], example: Example) -> list[list[Tensor]]:
    """Return what the model computes under masks, and leave it as it was."""
    surgery = Surgery(model)
    try:
        surgery.mask(masks)
        return run(model, example)
    finally:
        surgery.undo()
