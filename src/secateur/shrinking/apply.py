"""Apply a plan: mask, cut in place, verify, and put everything back if that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from secateur.errors import PlanError, ShrinkError
from secateur.graph.origins import Attribute
from secateur.repair.fold import Folding
from secateur.runtime.copying import copied, own
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.progress import during
from secateur.runtime.undo import Undo
from secateur.structure import Structure, analyze
from secateur.types import Example, Masks

from .adapters import ranks_cut
from .awake import awake, besides, hidden
from .configured import changed
from .cut import Surgery
from .depth import TakenOut, take_out
from .expressed import expressed, expressed_by_layer, rebuilt
from .files import load_plans
from .history import Changes, History
from .older import outdate
from .operation import Operation
from .plan import Plan
from .record import words_of
from .rescale import rounded
from .result import MASKED, Result
from .verify import Check, Verification


@in_ordinary_mode
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
    check_model(model)
    dense, model = model, copied(model, borrowing=True)
    for step in plans:
        structure = analyze(model, example_inputs)
        result = cut_and_verify(
            model,
            structure,
            step,
            {},
            example_inputs,
            notes=[],
            verify=verify,
        )
    own(model, dense)
    return result


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
        plan: what to cut.  What of it fails the check, or does not run, stays whole, and the
            result's plan and notes say so.
        masks: of what is masked whatever is cut; what the plan removes is masked besides.
        folding: constants that go into biases; the model is masked by the masks it came with.
        surgery: what was done to the model before, and is undone on failure too.
        as_it_is: compare with the model under ``masks`` alone: those that somebody gave, from
            which what the plan removes is only inferred.
    """
    surgery = surgery or Surgery(model)
    with during("cutting"), Undo(lasting=True) as undo:
        undo(surgery.undo)
        check = _check(model, structure, example_inputs) if verify else None
        given = surgery, structure, masks, example_inputs, folding, check, as_it_is
        with _waking(surgery, structure, folding, check) as (woken, zero):
            done = Operation(*given, besides(woken)).perform(plan)
            config, layers, same = _said(model, structure, surgery, check, take_out(surgery, check))
        outdate(model, surgery.shapes)
    changed = _changed(structure, done.plan, surgery, as_it_is)
    return Result(
        model,
        done.plan,
        done.masks,
        structure,
        done.verification,
        notes=[*notes, *structure.notes, *done.notes, *_unseen(done.verification, zero), *changed],
        attributes=done.attributes,
        folded=done.folded,
        config=config,
        layers=layers,
        rebuilt=same,
        warnings=[*done.warnings, *_blind(done.verification), *ranks_cut(model, surgery.shapes)],
        compared_with=_compared_with(structure, done.plan, as_it_is),
        inputs=words_of(example_inputs),
    )


def _waking(
    surgery: Surgery, structure: Structure, folding: Folding | None, check: Check | None
) -> AbstractContextManager[tuple[list[str], list[str]]]:
    if check is None or (folding and folding.constants):
        return nullcontext(([], []))
    return awake(surgery, structure.inferred.recording.asked())


def _unseen(verification: Verification | None, zero: Sequence[str]) -> Iterator[str]:
    if verification is not None and verification.partly:
        yield f"compared: {verification.partly} on all inputs, and shows no difference"
    yield from hidden(zero)


def _check(model: nn.Module, structure: Structure, example: Example) -> Check | None:
    return None if any(p.is_meta for p in model.parameters()) else Check(structure, example)


def _blind(verification: Verification | None) -> Iterator[str]:
    if verification is not None and verification.blind:
        yield (
            f"the comparison says little: on all inputs that were tried the outputs are "
            f"{verification.blind}. Give an example on which the model answers"
        )


def _compared_with(structure: Structure, plan: Plan, as_it_is: bool) -> str:
    skipped = [name for name in plan.drop if not structure.block(name).exact]
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    forbids = any(structure[name].unchosen for name in plan.keep) and not as_it_is
    skips = [f"skips {', '.join(skipped[:3])}{more}"] if skipped else []
    does = [*skips, *(["never chooses an expert that is masked"] if forbids else [])]
    return MASKED + (f" that {' and '.join(does)}" if does else "")


def _changed(structure: Structure, plan: Plan, surgery: Surgery, as_it_is: bool) -> Iterator[str]:
    """Yield what a plan removes that changes what is computed, and what that rounds."""
    for name in plan.keep:
        if structure[name].unchosen and not as_it_is:
            yield f"{name}: compared with the model that never chooses what went, as no mask does"
        elif not structure[name].exact:
            yield f"inexact: {name}: {structure[name].inexact}"
    for name in plan.drop:
        if not structure.block(name).exact:
            yield f"{name}: compared with the model that skips it, as no mask does"
    if stays := [*History.of(surgery.model).dropped]:
        more = f" and {len(stays) - 3} more" if len(stays) > 3 else ""
        yield (
            f"{', '.join(stays[:3])}{more}: still called, and returns what it is given; the model "
            "was not seen to run the same without it"
        )
    yield from rounded(surgery.model, surgery.rescaled)


def _said(
    model: nn.Module,
    structure: Structure,
    surgery: Surgery,
    check: Check | None,
    taken: TakenOut,
) -> tuple[Changes | None, Any, bool]:
    """Let a config say the new sizes: of all layers, or of single ones.

    Returns:
        As ``_configured``, and between them a config that says numbers of single layers, or None.
    """
    config, same = _configured(model, structure, surgery, check, taken)
    if config is not None or check is None:
        return config, None, same
    layers = _by_layer(model, structure, check, taken)
    return None, layers, layers is not None


def _configured(
    model: nn.Module,
    structure: Structure,
    surgery: Surgery,
    check: Check | None,
    taken: TakenOut,
) -> tuple[Changes | None, bool]:
    """Let the model's config say the new sizes, where it can.

    Returns:
        The numbers that changed, or None; and whether a model that was built from them was seen
        to compute the same.
    """
    dense = History.of(model).shapes
    said, numbers = taken.config, _numbers(structure, taken)
    changes = expressed(model, dense, surgery.shapes, *numbers, shallower=said is not None)
    if changes is None or check is None:
        return changes, False
    both = {**(said or {}), **changes}
    expected = check.expect(model, check.trials[1:2])
    try:
        new = rebuilt(model, changed(model.config, _of_config(changes)))
    except ShrinkError:
        return None, False
    if new is not None and not check.same(new, expected):
        return None, False  # the shapes are the same, but something else is not: a scale
    start = surgery.mark()
    surgery.configure(changes)
    if not check.same(model, expected):  # its forward reads the config
        surgery.undo(start)
        return None, False
    return both, new is not None


def _of_config(changes: Changes) -> Changes:
    return {f"config.{name}": change for name, change in changes.items()}


def _numbers(structure: Structure, taken: TakenOut) -> list[list[Attribute]]:
    """Return the integers that the forward reads, and the epsilons, by the names that are left."""
    found = structure.inferred.attributes, structure.inferred.epsilons
    return [list(taken.attributes(attributes)) for attributes in found]


def _by_layer(model: nn.Module, structure: Structure, check: Check | None, taken: TakenOut) -> Any:
    """Return a config with numbers for single layers, if it was seen to make the same model."""
    if check is None:
        return None
    config = expressed_by_layer(model, History.of(model).shapes, *_numbers(structure, taken))
    try:
        new = config and rebuilt(model, config)
    except ShrinkError:
        return None
    if new is None:
        return None
    return config if check.same(new, check.expect(model, check.trials[1:2])) else None
