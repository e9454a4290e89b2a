"""Does a saved model fit a freshly built dense one?  Every reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from torch import Tensor, nn

from secateur.errors import did_you_mean
from secateur.graph.attributes import followed_in
from secateur.graph.origins import Attribute
from secateur.replacements import name_of, replacement_of

from .agreeing import disagreements
from .cut import Surgery
from .describe import says_size
from .document import Document
from .history import History, Number, Shape


def misfits(
    document: Document,
    history: History,
    model: nn.Module,
    saved: Mapping[str, Tensor],
    surgery: Surgery,
) -> list[str]:
    """Return why a saved model does not fit this one.

    What was taken out, dropped and replaced then is, on the way, so here too: ``surgery`` takes it
    back.
    """
    return [
        *_foreign(document, model),
        *_taken(history, model, surgery),  # the others have other names now
        *_dropped(history, model, surgery),  # what went with them is in no file
        *disagreements(history, document.tied, tensors_of(model)),
        *_other_tensors(history, model, saved),
        *_untied(document.tied, model),
        *_replaced(document.replaced, model, surgery),  # these have more attributes
        *_other_values(history, model),
    ]


def _foreign(document: Document, model: nn.Module) -> Iterator[str]:
    saved, here = document.model.rpartition(".")[2], type(model).__name__
    if saved != here:
        yield f"it was saved from a {document.model}, and this is a {here}"
    if History.of(model).steps:
        yield "this model is pruned already; load onto one that was just built"


def _other_tensors(
    history: History, model: nn.Module, saved: Mapping[str, Tensor]
) -> Iterator[str]:
    tensors, state = tensors_of(model), model.state_dict().keys()
    for name in (*saved, *history.shapes):
        if name not in tensors:
            yield f"this model has no tensor {name!r}.{did_you_mean(name, tensors)}"
    for names, tensor in by_tensor(model):
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
    tensors = tensors_of(model)
    for name, other in tied.items():
        if tensors.get(name) is not tensors.get(other):
            yield f"{name!r} and {other!r} are one tensor in the file, and two in this model"


def _taken(history: History, model: nn.Module, surgery: Surgery) -> Iterator[str]:
    outer_first = sorted(history.taken.items(), key=lambda item: item[0].count("."))
    for path, (size, kept) in outer_first:
        found = dict(model.named_modules()).get(path)
        if not isinstance(found, (nn.ModuleList, nn.Sequential)):
            yield f"this model has no list of modules {path!r}"
        elif len(found) != size:
            here = f"{len(found)} modules in this model"
            yield f"{path!r} has {here}, and had {size} in the dense one"
        elif list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < size:
            yield f"{path!r} keeps places 0…{size - 1}, each at most once and in their order"
        else:
            surgery.take_out(path, kept)


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
    followed = followed_in(model)
    for text, (before, after) in history.attributes.items():
        try:
            attribute = Attribute.parse(text, modules)
        except ValueError as error:
            yield str(error)
            continue
        module = modules[attribute.path]
        if wrong := _other_value(attribute, before, after, module, history):
            yield wrong
        elif (attribute.path, attribute.name.rpartition(".")[0]) not in followed:
            yield f"{text} is no number that the structure of this model could have changed"
        elif not says_size(module, attribute.name):
            yield f"{text} cannot be changed: it is no size of a {type(module).__name__}"


def _other_value(
    attribute: Attribute, before: Number | None, after: Number, module: nn.Module, history: History
) -> str | None:
    """Return why a number cannot go from one value to another, or None."""
    value = attribute.held_by(module)
    if isinstance(before, tuple) or isinstance(after, tuple):
        return _other_list(attribute, before, after, value, history)
    if before is None:
        if not _can_be_given(module, attribute, after):
            return f"{attribute} cannot be given to a model that has none"
        if value is not None and value != after:
            return f"{attribute} is {value!r} in this model, and the dense one had none"
        return None
    if type(value) is not type(before):
        kind = "integer" if type(before) is int else "float"
        return f"this model has no {kind} {str(attribute)!r}"
    if value != before:
        return f"{attribute} is {value} in this model, and was {before} in the dense one"
    if type(after) is not type(before) or not _sensible(before, after, history):
        return f"{attribute} cannot become {after}: it is {before}"
    return None


def _other_list(
    attribute: Attribute, before: Any, after: Any, value: Any, history: History
) -> str | None:
    """Return why a list with a value for each layer cannot become another, or None."""
    if not isinstance(value, (list, tuple)) or before != tuple(value):
        return f"{attribute} is {value!r} in this model, and was {before} in the dense one"
    left = [
        tuple(before[i] for i in kept) for n, kept in history.taken.values() if n == len(before)
    ]
    if attribute.index is not None or after not in left:
        return f"{attribute} cannot become {after}: no list of modules keeps these of its places"
    return None


def _can_be_given(module: nn.Module, attribute: Attribute, after: float) -> bool:
    """Tell whether a number can be given: a size to a config, or an epsilon instead of None."""
    if isinstance(after, float):
        return hasattr(module, attribute.name) and 0 < after < inf
    return attribute.name.startswith("config.") and after >= 1


def _sensible(before: float, after: float, history: History) -> bool:
    """Tell whether a size became smaller, or an epsilon larger or smaller."""
    if isinstance(before, int):
        return (0 if history.dropped or history.taken else 1) <= after <= before
    return 0 < after < inf


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by every one of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def by_tensor(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in tensors_of(model).items():
        found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(found.values())


def ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name → first name, for each further name of a tensor."""
    first: dict[int, str] = {}
    return {n: first[id(t)] for n, t in tensors.items() if first.setdefault(id(t), n) != n}


def shape_of(tensor: Tensor | None) -> Shape | None:
    return None if tensor is None else tuple(tensor.shape)
