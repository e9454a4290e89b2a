"""Does a saved model fit a freshly built dense one?  Every reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from secateur.errors import did_you_mean
from secateur.replacements import name_of, replacement_of

from .agreeing import disagreements, unknown_groups
from .cut import Surgery
from .document import Document, left_out
from .history import History, Shape
from .numbers import other_values

EXTRA = "_extra_state"
"""What torch calls that which a module saves beside its tensors."""


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
    names = {*tensors_of(model), *saved, *history.shapes, *document.buffers}
    return [
        *_foreign(document, model),
        *unknown_groups(history, names),
        *_taken(history, model, surgery),  # the others have other names now
        *_dropped(history, model, surgery),  # what went with them is in no file
        *disagreements(history, document.tied, tensors_of(model)),
        *_other_tensors(history, model, saved),
        *_untied(document.tied, model),
        *_replaced(document.replaced, model, surgery),  # these have more attributes
        *other_values(history, model),
        *left_out(document),
    ]


def absent(document: Document, saved: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the buffers beside the state dict, which a save writes too, that are not there."""
    for name, in_state in document.buffers.items():
        if not in_state and name not in saved:
            yield f"{name!r} is missing in the files"


def _foreign(document: Document, model: nn.Module) -> Iterator[str]:
    saved, here = document.model.rpartition(".")[2], type(model).__name__
    if saved != here:
        yield f"it was saved from a {document.model}, and this is a {here}"
    if History.of(model).steps:
        yield "this model is pruned already; load onto one that was just built"


def _other_tensors(
    history: History, model: nn.Module, saved: Mapping[str, Tensor]
) -> Iterator[str]:
    tensors, state = tensors_of(model), state_of(model).keys()
    for name in (*saved, *history.shapes):
        if name not in tensors and not (name in state and name.rpartition(".")[2] == EXTRA):
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
        elif found.dtype != tensor.dtype and any(n in state for n in names):  # a cast moves tables
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


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by every one of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return what a model saves, by its own names, whatever hooks make of its ``state_dict()``.

    That is all parameters, persistent buffers, and extra states (``get_extra_state``).

    >>> sorted(state_of(nn.BatchNorm1d(2, affine=False)))
    ['num_batches_tracked', 'running_mean', 'running_var']
    """
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        lasting = module._buffers.keys() - module._non_persistent_buffers_set
        held = {**module._parameters, **{name: module._buffers[name] for name in sorted(lasting)}}
        found |= {f"{prefix}{n}": t.detach() for n, t in held.items() if t is not None}
        if has_extra(module):
            found[f"{prefix}{EXTRA}"] = module.get_extra_state()
    return found


def has_extra(module: nn.Module) -> bool:
    """Tell whether a module saves something that is no parameter and no buffer."""
    return type(module).get_extra_state is not nn.Module.get_extra_state


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
