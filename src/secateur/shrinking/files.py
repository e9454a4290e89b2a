"""``save_pruned`` and ``load_pruned``: a smaller model as safetensors and a plan to read.

A folder holds ``model.safetensors`` (the state dict), ``buffers.safetensors`` (buffers that are no
part of it, if there are any) and ``plan.json``, which names both with their digests.  Loading
repeats the recorded changes on a freshly built dense model: no trace, no example inputs, nothing is
unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from secateur.errors import FileError, WriteError
from secateur.graph.origins import Attribute
from secateur.replacements import name_of
from secateur.runtime.claims import claimed
from secateur.runtime.io import read_tensors, write_tensors, write_text, writing
from secateur.runtime.model import check_model
from secateur.runtime.ordinary import in_ordinary_mode
from secateur.runtime.scratch import alone_in, scratch
from secateur.runtime.together import Seal, publish, seal_of
from secateur.runtime.undo import Undo

from .cut import Surgery
from .document import (
    PLAN,
    SCHEMA,
    Document,
    bound_to,
    counted,
    history_of,
    listed,
    read,
    seals_in,
    signed,
)
from .exports import remove_outdated
from .fits import EXTRA, absent, by_tensor, has_extra, misfits, shape_of, state_of, tensors_of, ties
from .folder import BUFFERS, INDEX, WEIGHTS, is_weights, read_folder, same, weights_of
from .history import HELD_AS, History
from .older import outdate
from .overrides import follow, remembered
from .plan import MOST_IN_ALL, Plan


class Holder(Protocol):
    """What holds a model, such as a ``Result``."""

    model: nn.Module


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
    return save_with(model, directory, weights=weights)


def save_with(
    model: nn.Module | Holder,
    directory: str | os.PathLike[str],
    *,
    weights: bool = True,
    beside: Callable[[Path], object] | None = None,
) -> Path:
    """Write a pruned model together with other files: all of them, or none.

    Args:
        model: as for ``save_pruned``.
        directory: likewise.
        weights: likewise.
        beside: writes the other files into the folder that it is given; weights among them are
            taken for the model's.

    Raises: as ``save_pruned``.
    """
    model = _model_of(model)
    given: object = directory
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise WriteError(f"{directory!r} names no folder; '.' is the current one")
    with claimed(model):
        return _save(model, Path(directory), weights, beside)


def _save(
    model: nn.Module, folder: Path, weights: bool, beside: Callable[[Path], object] | None
) -> Path:
    history = History.of(model)
    if not history.steps:
        raise FileError(
            f"this {type(model).__name__} was not pruned by secateur; save its state_dict()"
        )
    tensors = tensors_of(model)
    _check_unchanged(tensors, history)
    state = state_of(model)
    others = {name: tensor for name, tensor in model.named_buffers() if name not in state}
    tied = ties(tensors)
    document = _document(model, history, tied)
    with writing(folder), scratch(folder, PLAN) as made:
        if beside is not None:
            beside(made)
        bound = bound_to(json.dumps(document))
        if weights and not any(is_weights(path.name) for path in made.iterdir()):
            _write_weights(made / WEIGHTS, state, tied, bound)
        if others:
            write_tensors(made / BUFFERS, others, text=bound)
        with alone_in(folder):
            _publish(folder, made, document, {k: v for k, v in state.items() if k not in tied})
    return folder


def add_beside(directory: str | os.PathLike[str], name: str, text: str) -> None:
    """Write a text beside a saved model, to which it belongs from then on."""
    folder = Path(directory)
    with writing(folder / name), scratch(folder, name) as made, alone_in(folder):
        try:
            document = read(folder / PLAN)
        except FileError:  # then there is nothing for it to belong to
            write_text(folder / name, text)
            return
        write_text(made / name, text)
        raw = document.model_dump(mode="json", by_alias=True, exclude_unset=True)

        def told(seals: dict[str, Seal]) -> str:
            return signed({**raw, "files": _listed({**document.seals, **seals})})

        publish(folder, {name: made / name}, document.seals, PLAN, told)


def _publish(
    folder: Path, made: Path, document: dict[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Let the files that were made take the place of those in the folder."""
    files = {path.name: path for path in made.iterdir() if path.is_file()}
    kept: dict[str, Seal] = {}
    gone = set() if BUFFERS in files else {BUFFERS}
    weights = {n: seal_of(path) for n, path in files.items() if is_weights(n)}
    old = seals_in(folder / PLAN)
    if weights:
        there = {path.name for path in folder.iterdir() if is_weights(path.name)}
        gone |= (there | {INDEX} | old.keys()) - files.keys()  # several files, another config
        remove_outdated(folder, weights)
    else:
        kept = {path.name: seal_of(path) for path in weights_of(folder) if _holds(path, state)}

    def told(seals: dict[str, Seal]) -> str:
        return signed({**document, "files": _listed({**kept, **seals})})

    publish(folder, files, old, PLAN, told, gone)


def _listed(seals: Mapping[str, Seal]) -> dict[str, Any]:
    return {name: asdict(seals[name]) for name in sorted(seals)}


def _holds(path: Path, state: Mapping[str, Tensor]) -> bool:
    """Tell whether weights that somebody else wrote are those that the model has now."""
    try:
        found = read_tensors(path)
    except FileError:
        return False
    return all(n in state and same(tensor, state[n]) for n, tensor in found.items())


def _model_of(given: Any) -> nn.Module:
    model: nn.Module = given if isinstance(given, nn.Module) else getattr(given, "model", given)
    check_model(model)
    return model


def _write_weights(
    path: Path, state: Mapping[str, Any], tied: Mapping[str, str], bound: str
) -> None:
    objects = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if objects:
        raise FileError(
            f"the state {objects[0]!r} is no tensor and cannot be saved: nothing in a file is ever "
            "unpickled. Let get_extra_state() return a tensor"
        )
    write_tensors(path, {k: v for k, v in state.items() if k not in tied}, text=bound)


def _check_unchanged(tensors: Mapping[str, Tensor], history: History) -> None:
    wrong = [
        f"{name!r} was {after} after pruning, and is {shape_of(tensors.get(name))}"
        for name, (_, after) in history.shapes.items()
        if shape_of(tensors.get(name)) != after
    ]
    if wrong:
        raise FileError(listed("the model was changed after it was pruned", wrong))


def _document(model: nn.Module, history: History, tied: Mapping[str, str]) -> dict[str, Any]:
    """Return what ``plan.json`` says of a pruned model.

    Raises:
        FileError: it would be more than ``load_pruned`` reads.
    """
    kept = sum(len(keep) for plan in history.steps for keep in plan.keep.values())
    if kept > MOST_IN_ALL:
        raise FileError(
            f"{kept} positions are kept, and a plan is read with {MOST_IN_ALL} at most: save "
            "model.state_dict(), and with torch.save or pickle the model itself"
        )
    state = state_of(model).keys()
    taken = {path: {"size": n, "kept": list(kept)} for path, (n, kept) in history.taken.items()}
    told = {
        "format": "secateur.pruned",
        "schema": 2 if history.implied is None else SCHEMA,
        "secateur": version("secateur"),
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "steps": [plan.to_json() for plan in history.steps],
        "shapes": {n: {"before": b, "after": a} for n, (b, a) in history.shapes.items()},
        "attributes": {n: _number(history, n) for n in history.attributes},
        "replaced": {p: name for p, m in model.named_modules() if (name := name_of(m))},
        "dropped": {n: {"input": x, "output": out} for n, (x, out) in history.dropped.items()},
        **({"taken": taken} if taken else {}),
        "tied": tied,
        "buffers": {name: name in state for name in dict(model.named_buffers())},
    }
    return {**told, "entries": counted(told)}


def _number(history: History, name: str) -> dict[str, Any]:
    before, after = history.attributes[name]
    of = (history.implied or {}).get(name)
    return {"before": before, "after": after, **({"of": [*map(asdict, of)]} if of else {})}


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
def load_pruned(
    directory: str | os.PathLike[str], model: nn.Module, *, verify_digests: bool = True
) -> nn.Module:
    """Turn a freshly built dense model into the pruned one that was saved.

    Everything is checked before anything changes: digests of files, names, shapes before and after,
    dtypes, ties, and that each recorded attribute has its recorded value.  A model on
    ``torch.device("meta")`` gets its tensors on the CPU.

    Args:
        directory: what ``save_pruned`` or ``Result.save`` wrote.
        model: a dense model of the same class and configuration; it is changed in place.
        verify_digests: compare the SHA-256 of each file with that in ``plan.json``, and its own,
            which takes one to three seconds per gigabyte; False compares sizes alone, and takes a
            plan that was edited, if it fits.  Folders of before there were digests load without.

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
    found = read_folder(folder, verify_digests=verify_digests)
    document, saved = found.document, found.tensors
    history, surgery = history_of(document), Surgery(model)
    made = _made_later(document, model, saved)
    held = replace(history, shapes={n: c for n, c in history.shapes.items() if n not in made})
    there = {name: tensor for name, tensor in saved.items() if name not in made}
    with Undo(lasting=True) as undo:
        undo(surgery.undo)
        wrong = [*found.wrong, *absent(document, saved)]
        if wrong := [*wrong, *misfits(document, held, model, there, surgery)]:
            raise _misfit(folder, model, wrong)
        _repeat(surgery, history, there)
        for name in made:
            surgery.register_buffer(name, saved[name], persistent=document.buffers[name])
        outdate(model, history.shapes)
    return model


def _misfit(folder: Path, model: nn.Module, wrong: list[str]) -> FileError:
    what = f"{folder} does not fit this {type(model).__name__}"
    if (folder / "config.json").is_file():
        what += (
            " (secateur.from_pretrained loads what a config says; save_pretrained may rename "
            "tensors, if it is not given save_original_format=False)"
        )
    return FileError(listed(what, wrong))


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
    for name, module in paths.items():
        extra = f"{name}.{EXTRA}" if name else EXTRA
        if extra in saved and has_extra(module):
            surgery.set_extra(module, saved[extra])
    before = remembered(getattr(model, "config", None))
    for text, (_, after) in history.attributes.items():
        surgery.set_size(Attribute.parse(text, paths), after)
    follow(getattr(model, "config", None), before, history.taken.values(), surgery.say_of_layers)
    surgery.describe()
    surgery.set_attribute(model, HELD_AS, history)
