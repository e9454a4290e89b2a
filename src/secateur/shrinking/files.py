"""``save_pruned`` and ``load_pruned``: a smaller model as safetensors and a plan to read.

A folder holds ``model.safetensors`` (the state dict), ``buffers.safetensors`` (buffers that are no
part of it, if there are any) and ``plan.json``.  Loading repeats the recorded changes on a freshly
built dense model: no trace, no example inputs, nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.errors import FileError
from secateur.graph.origins import Attribute
from secateur.replacements import name_of
from secateur.runtime.io import read_tensors, write_tensors, write_text
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode

from .cut import Surgery
from .document import PLAN, SCHEMA, Document, dump, history_of, listed, read
from .exports import exports_of
from .fits import by_tensor, misfits, shape_of, tensors_of, ties
from .history import HELD_AS, History
from .older import outdate
from .plan import Plan


class Holder(Protocol):
    """What holds a model, such as a ``Result``."""

    model: nn.Module


WEIGHTS, BUFFERS = "model.safetensors", "buffers.safetensors"
INDEX = "model.safetensors.index.json"


def save_pruned(
    model: nn.Module | Holder, directory: str | os.PathLike[str], *, weights: bool = True
) -> Path:
    """Write a pruned model, so that ``load_pruned`` makes it again from a dense one.

    Args:
        model: one that secateur made smaller, trained further or not; or the result.
        directory: is made where it is missing.
        weights: write ``model.safetensors`` too, and remove exports of other weights that were
            there; False leaves that to ``save_pretrained(directory,
            save_original_format=False)``, which then keeps the names, or to somebody else.

    Returns:
        The directory.

    Raises:
        FileError: the model was not pruned, or its shapes were changed since by something else.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> small = prune(net, torch.zeros(1, 8), sparsity=0.5).model
    >>> with TemporaryDirectory() as folder:
    ...     sorted(path.name for path in save_pruned(small, folder).iterdir())
    ['model.safetensors', 'plan.json']

    See also:
        ``load_pruned``, which makes the model again.
    """
    folder = Path(directory)
    model = _model_of(model)
    history = History.of(model)
    if not history.steps:
        raise FileError(
            f"this {type(model).__name__} was not pruned by secateur; save its state_dict()"
        )
    tensors = tensors_of(model)
    _check_unchanged(tensors, history)
    state = model.state_dict()
    others = {name: tensor for name, tensor in model.named_buffers() if name not in state}
    tied = ties(tensors)
    if weights:
        _write_weights(folder, state, tied)
    if others:
        write_tensors(folder / BUFFERS, others)
    else:
        (folder / BUFFERS).unlink(missing_ok=True)
    write_text(folder / PLAN, dump(_document(model, history, tied)) + "\n")
    return folder


def _model_of(given: Any) -> nn.Module:
    model: nn.Module = given if isinstance(given, nn.Module) else getattr(given, "model", given)
    check_model(model)
    return model


def _write_weights(folder: Path, state: Mapping[str, Any], tied: Mapping[str, str]) -> None:
    objects = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if objects:
        raise FileError(f"the state {objects[0]!r} is no tensor and cannot be saved")
    with exports_of(folder):
        write_tensors(folder / WEIGHTS, {k: v for k, v in state.items() if k not in tied})
        for old in (*folder.glob("model-*-of-*.safetensors"), folder / INDEX):
            old.unlink(missing_ok=True)  # a model that was saved here in several files


def _check_unchanged(tensors: Mapping[str, Tensor], history: History) -> None:
    wrong = [
        f"{name!r} was {after} after pruning, and is {shape_of(tensors.get(name))}"
        for name, (_, after) in history.shapes.items()
        if shape_of(tensors.get(name)) != after
    ]
    if wrong:
        raise FileError(listed("the model was changed after it was pruned", wrong))


def _document(model: nn.Module, history: History, tied: Mapping[str, str]) -> dict[str, Any]:
    """Return what ``plan.json`` says of a pruned model."""
    state = model.state_dict().keys()
    return {
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
        "buffers": {name: name in state for name in dict(model.named_buffers())},
    }


def load_plans(directory: str | os.PathLike[str]) -> tuple[Plan, ...]:
    """Return the plans that made a saved model, in the order in which they were applied.

    Raises:
        FileError: there is no ``plan.json``, or it is damaged or of another kind.

    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> with TemporaryDirectory() as folder:
    ...     _ = prune(net, torch.zeros(1, 8), sparsity=0.75).save(folder)
    ...     [plan.counts for plan in load_plans(folder)]
    [{'0': 4}]
    """
    return history_of(read(Path(directory) / PLAN)).steps


@in_ordinary_mode
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
    check_model(model)
    folder = Path(directory)
    document = read(folder / PLAN)
    history = history_of(document)
    saved = _saved(folder)
    surgery = Surgery(model)
    made = _made_later(document, model, saved)
    shapes = {name: change for name, change in history.shapes.items() if name not in made}
    there = {name: tensor for name, tensor in saved.items() if name not in made}
    try:
        if wrong := misfits(document, replace(history, shapes=shapes), model, there, surgery):
            what = f"{folder} does not fit this {type(model).__name__}"
            if (folder / "config.json").is_file() and "has no tensor" in "".join(wrong):
                what += " (save_pretrained may rename tensors: give it save_original_format=False)"
            raise FileError(listed(what, wrong))
        _repeat(surgery, history, there)
        for name in made:
            surgery.register_buffer(name, saved[name], persistent=document.buffers[name])
    except BaseException:
        surgery.undo()
        raise
    outdate(model, history.shapes)
    return model


def _made_later(document: Document, model: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    """Return the saved buffers that a freshly built model lacks: its first forward makes them."""
    paths = dict(model.named_modules(remove_duplicate=False))
    known = tensors_of(model)
    return [
        name
        for name in saved
        if name in document.buffers and name not in known and name.rpartition(".")[0] in paths
    ]


def _repeat(surgery: Surgery, history: History, saved: Mapping[str, Tensor]) -> None:
    """Give a dense model the tensors and numbers of the saved one."""
    model = surgery.model
    for names, tensor in by_tensor(model):
        name = next((n for n in names if n in saved), None)
        if name is not None:
            surgery.set_tensor(tensor, saved[name])
    paths = dict(model.named_modules(remove_duplicate=False))
    for text, (_, after) in history.attributes.items():
        surgery.set_size(Attribute.parse(text, paths), after)
    surgery.describe()
    surgery.set_attribute(model, HELD_AS, history)


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
