"""``save_pruned`` and ``load_pruned``: a smaller model as safetensors and a plan to read.

A folder holds ``model.safetensors`` (the state dict), ``buffers.safetensors`` (buffers that are no
part of it, if there are any) and ``plan.json``.  Loading repeats the recorded changes on a freshly
built dense model: no trace, no example inputs, nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from secateur.errors import FileError, PlanError, did_you_mean
from secateur.graph.lengths import Attribute
from secateur.io import read_tensors, read_text, write_tensors, write_text
from secateur.replacements import name_of, replacement_of
from secateur.settings import problems_in

from .cut import Surgery
from .history import HELD_AS, History, Shape
from .plan import Plan

if TYPE_CHECKING:
    from .result import Result

SCHEMA = 1
WEIGHTS, BUFFERS, PLAN = "model.safetensors", "buffers.safetensors", "plan.json"
SHOWN = 12  # problems that one error lists


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Reshaped(_Part):
    before: tuple[int, ...] = Field(max_length=16)
    after: tuple[int, ...] = Field(max_length=16)


class _Changed(_Part):
    before: int
    after: int


class _Passing(_Part):
    input: int | str
    output: tuple[bool, ...] | None


class _Document(_Part):
    """What ``plan.json`` holds."""

    format: Literal["secateur.pruned"]
    schema_: int = Field(alias="schema")
    secateur: str
    model: str
    steps: list[dict[str, Any]]
    shapes: dict[str, _Reshaped]
    attributes: dict[str, _Changed]
    replaced: dict[str, str]
    dropped: dict[str, _Passing]
    tied: dict[str, str]


def save_pruned(
    model: nn.Module | Result, directory: str | os.PathLike[str], *, weights: bool = True
) -> Path:
    """Write a pruned model, so that ``load_pruned`` makes it again from a dense one.

    Args:
        model: one that secateur made smaller, trained further or not; or the result.
        directory: is made where it is missing.
        weights: write ``model.safetensors`` too; False leaves that to somebody else, such as
            ``save_pretrained(directory, save_original_format=False)``, which then keeps the names.

    Returns:
        The directory.

    Raises:
        FileError: the model was not pruned, or its shapes were changed since by something else.
    """
    folder = Path(directory)
    model = model if isinstance(model, nn.Module) else model.model
    history = History.of(model)
    if not history.steps:
        raise FileError(
            f"this {type(model).__name__} was not pruned by secateur; save its state_dict()"
        )
    tensors = _tensors(model)
    wrong = [
        f"{name!r} was {after} after pruning, and is {_shape_of(tensors.get(name))}"
        for name, (_, after) in history.shapes.items()
        if _shape_of(tensors.get(name)) != after
    ]
    if wrong:
        raise FileError(_listed("the model was changed after it was pruned", wrong))
    state = model.state_dict()
    others = {name: tensor for name, tensor in model.named_buffers() if name not in state}
    tied = _ties(tensors)
    if weights:
        objects = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if objects:
            raise FileError(f"the state {objects[0]!r} is no tensor and cannot be saved")
        write_tensors(folder / WEIGHTS, {k: v for k, v in state.items() if k not in tied})
    if others:
        write_tensors(folder / BUFFERS, others)
    else:
        (folder / BUFFERS).unlink(missing_ok=True)
    document = {
        "format": "secateur.pruned",
        "schema": SCHEMA,
        "secateur": version("secateur"),
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "steps": [plan.to_json() for plan in history.steps],
        "shapes": {n: {"before": b, "after": a} for n, (b, a) in history.shapes.items()},
        "attributes": {n: {"before": b, "after": a} for n, (b, a) in history.attributes.items()},
        "replaced": {p: name for p, m in model.named_modules() if (name := name_of(m))},
        "dropped": {n: {"input": x, "output": out} for n, (x, out) in history.dropped.items()},
        "tied": tied,
    }
    write_text(folder / PLAN, _dump(document) + "\n")
    return folder


def load_plans(directory: str | os.PathLike[str]) -> tuple[Plan, ...]:
    """Return the plans that made a saved model, in the order in which they were applied.

    Raises:
        FileError: there is no ``plan.json``, or it is damaged or of another kind.
    """
    return _history(_read(Path(directory) / PLAN)).steps


def load_pruned(directory: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Turn a freshly built dense model into the pruned one that was saved.

    Everything is checked before anything changes: names, shapes before and after, dtypes, ties, and
    that each recorded attribute has its recorded value.  A model on ``torch.device("meta")`` gets
    its tensors on the CPU.

    Args:
        directory: what ``save_pruned`` or ``Result.save`` wrote.
        model: a dense model of the same class and configuration; it is changed in place.

    Returns:
        The model.

    Raises:
        FileError: a file is damaged or does not fit the model, which is as it was before.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from secateur import prune
    >>> def net(): return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> with TemporaryDirectory() as folder:
    ...     _ = prune(net(), torch.zeros(1, 8), sparsity=0.5).save(folder)
    ...     load_pruned(folder, net())[0].out_features
    8
    """
    folder = Path(directory)
    document = _read(folder / PLAN)
    history = _history(document)
    saved = _saved(folder)
    surgery = Surgery(model)
    try:
        wrong = [
            *_foreign(document, model),
            *_dropped(history, model, surgery),  # what went with them is in no file
            *_misfits(history, model, saved),
            *_untied(document.tied, model),
            *_replaced(document.replaced, model, surgery),  # these have more attributes
            *_other_values(history, model),
        ]
        if wrong:
            what = f"{folder} does not fit this {type(model).__name__}"
            if (folder / "config.json").is_file() and "has no tensor" in "".join(wrong):
                what += " (save_pretrained may rename tensors: give it save_original_format=False)"
            raise FileError(_listed(what, wrong))
        for names, tensor in _by_tensor(model):
            name = next((n for n in names if n in saved), None)
            if name is not None:
                surgery.set_tensor(tensor, saved[name])
        paths = dict(model.named_modules(remove_duplicate=False))
        for text, (_, after) in history.attributes.items():
            surgery.set_size(Attribute.parse(text, paths), after)
        surgery.describe()
        surgery.set_attribute(model, HELD_AS, history)
    except BaseException:
        surgery.undo()
        raise
    return model


# -- reading ---------------------------------------------------------------------------------------


def _read(path: Path) -> _Document:
    try:
        document = _Document.model_validate_json(read_text(path))
    except ValidationError as error:
        wrong = [f"{place}: {why}" if place else why for place, why in problems_in(error, ())]
        raise FileError(_listed(f"{path} is damaged, or no plan of secateur", wrong)) from error
    if document.schema_ > SCHEMA:
        raise FileError(f"{path} has schema {document.schema_}, newer than {SCHEMA}: upgrade")
    return document


def _history(document: _Document) -> History:
    try:
        return History(
            tuple(map(Plan.from_json, document.steps)),
            {name: (s.before, s.after) for name, s in document.shapes.items()},
            {name: (a.before, a.after) for name, a in document.attributes.items()},
            {name: (d.input, d.output) for name, d in document.dropped.items()},
        )
    except PlanError as error:
        raise FileError(f"{PLAN} holds a plan that is none: {error}") from error


def _saved(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a folder; large models are saved in several files."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileError(f"{folder} holds no {WEIGHTS}")
    found: dict[str, Tensor] = {}
    for path in (*files, *filter(Path.is_file, [folder / BUFFERS])):
        for name, tensor in read_tensors(path).items():
            if name in found:
                raise FileError(f"{name!r} is in two files of {folder}, one of them {path.name}")
            found[name] = tensor
    return found


# -- checking --------------------------------------------------------------------------------------


def _foreign(document: _Document, model: nn.Module) -> Iterator[str]:
    saved, here = document.model.rpartition(".")[2], type(model).__name__
    if saved != here:
        yield f"it was saved from a {document.model}, and this is a {here}"
    if History.of(model).steps:
        yield "this model is pruned already; load onto one that was just built"


def _misfits(history: History, model: nn.Module, saved: Mapping[str, Tensor]) -> Iterator[str]:
    tensors, state = _tensors(model), model.state_dict().keys()
    for name in (*saved, *history.shapes):
        if name not in tensors:
            yield f"this model has no tensor {name!r}.{did_you_mean(name, tensors)}"
    for names, tensor in _by_tensor(model):
        name = names[0]
        shape = tuple(tensor.shape)
        before, after = next(
            (history.shapes[n] for n in names if n in history.shapes), (shape, shape)
        )
        found = next((saved[n] for n in names if n in saved), None)
        if before != shape:
            yield f"{name!r} is {shape} in this model, and was {before} in the dense one"
        elif found is None:
            if tensor.is_meta or before != after or any(n in state for n in names):
                yield f"{name!r} is missing in the files"
        elif tuple(found.shape) != after:
            yield f"{name!r} is {tuple(found.shape)} in the file, and {after} in its plan"
        elif found.dtype != tensor.dtype:
            yield f"{name!r} is {found.dtype} in the file, and {tensor.dtype} in this model"


def _untied(tied: Mapping[str, str], model: nn.Module) -> Iterator[str]:
    tensors = _tensors(model)
    for name, other in tied.items():
        if tensors.get(name) is not tensors.get(other):
            yield f"{name!r} and {other!r} are one tensor in the file, and two in this model"


def _dropped(history: History, model: nn.Module, surgery: Surgery) -> Iterator[str]:
    modules = dict(model.named_modules())
    for path, how in history.dropped.items():
        try:
            if path not in modules or not path:
                raise ValueError("there is no such module")
            surgery.drop(path, how)
        except ValueError as error:
            yield f"{path!r} cannot be dropped: {error}"


def _replaced(replaced: Mapping[str, str], model: nn.Module, surgery: Surgery) -> Iterator[str]:
    modules = dict(model.named_modules())
    for path, name in replaced.items():
        module = modules.get(path)
        if module is None or replacement_of(type(module)) is None:
            yield f"{path!r} cannot be replaced by {name!r}: it is {type(module).__name__}"
            continue
        surgery.replace(module)
        if name_of(module) != name:
            yield f"{path!r} is replaced by {name_of(module)}, and not by {name!r}"


def _other_values(history: History, model: nn.Module) -> Iterator[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    for text, (before, after) in history.attributes.items():
        try:
            attribute = Attribute.parse(text, modules)
        except ValueError as error:
            yield str(error)
            continue
        value = attribute.held_by(modules[attribute.path])
        if type(value) is not int:
            yield f"this model has no integer {text!r}"
        elif value != before:
            yield f"{text} is {value} in this model, and was {before} in the dense one"
        elif not (0 if history.dropped else 1) <= after <= before:
            yield f"{text} cannot become {after}: it is {before}"


# -- tensors ---------------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by every one of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _by_tensor(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in _tensors(model).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → first name, for each further name of a tensor."""
    first: dict[int, str] = {}
    return {n: first[id(t)] for n, t in tensors.items() if first.setdefault(id(t), n) != n}


def _shape_of(tensor: Tensor | None) -> Shape | None:
    return None if tensor is None else tuple(tensor.shape)


# -- text ------------------------------------------------------------------------------------------


def _dump(value: Any, margin: str = "") -> str:
    """Return JSON in which what fits on a line, and every list of numbers, is on one."""
    flat = json.dumps(value)
    rows = [json.dumps(key) + ": " for key in value] if isinstance(value, dict) else []
    parts = list(value.values()) if isinstance(value, dict) else value
    if len(margin + flat) <= 100 or not (rows or any(isinstance(part, dict) for part in parts)):
        return flat
    inner = margin + "  "
    lines = [
        inner + row + _dump(part, inner)
        for row, part in zip(rows or [""] * len(parts), parts, strict=True)
    ]
    start, end = "{}" if rows else "[]"
    return start + "\n" + ",\n".join(lines) + "\n" + margin + end


def _listed(what: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{what}: {problems[0]}"
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{what}:\n  " + "\n  ".join(problems[:SHOWN]) + more
