"""May the numbers that a model holds become what a file says?  Every reason why not."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import inf, isclose, prod
from typing import Any

from torch import nn

from secateur.graph.attributes import followed_in
from secateur.graph.origins import Attribute
from secateur.replacements import replacement_of

from .configured import built, changed
from .describe import says_size
from .history import Changes, History, Number
from .implied import Implied


def other_values(history: History, model: nn.Module) -> list[str]:
    """Return why a number cannot become what the file says, for each that cannot."""
    wrong = list(_one_by_one(history, model))
    return wrong or list(_other_configs(history, model))  # which needs them to be numbers it has


def _one_by_one(history: History, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with each number by itself."""
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
        elif wrong := _not_implied(attribute, module, model, history):
            yield wrong


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


def _not_implied(
    attribute: Attribute, module: nn.Module, model: nn.Module, history: History
) -> str | None:
    """Return why a number is not what the plans of the file make of it, or None."""
    before, after = history.attributes[str(attribute)]
    if history.implied is None or isinstance(before, tuple) or isinstance(after, tuple):
        return None
    how = history.implied.get(str(attribute))
    if how is None:
        if _is_of_config(attribute) or _is_counted(attribute, before, after, model, history):
            return None
        return f"{attribute} cannot become {after}: nothing that is kept makes it that"
    made = _made(how, history)
    if isinstance(after, float):
        before = _epsilon(attribute, module) if before is None else before
        same = made is not None and before is not None and isclose(before * made, after)
    else:
        same = made == after
    return None if same else f"{attribute} cannot become {after}: what is kept makes it another"


def _made(how: Implied, history: History) -> Fraction | float | None:
    """Return what the counts of the plans make, or None where they make nothing."""
    counts = [plan.counts for plan in history.steps]
    try:
        return prod((each.value(counts) for each in how), start=Fraction(1))
    except (LookupError, ArithmeticError, ValueError):  # no such group; or no number
        return None


def _epsilon(attribute: Attribute, module: nn.Module) -> float | None:
    """Return the number that a layer takes where it has none, if its replacement says it."""
    replacement = replacement_of(type(module))
    return None if replacement is None else replacement.extra(module).get(attribute.name)


def _is_of_config(attribute: Attribute) -> bool:
    return not attribute.path and attribute.name.startswith("config.")


def _is_counted(
    attribute: Attribute, before: Any, after: Any, model: nn.Module, history: History
) -> bool:
    """Tell whether a number counts modules of a list that lost some, or is the place of one."""
    if any((before, after) == (size, len(kept)) for size, kept in history.taken.values()):
        return True
    words = attribute.path.split(".")
    for end in range(len(words)):
        path = ".".join(words[:end])
        held = model.get_submodule(path)
        if not isinstance(held, (nn.ModuleList, nn.Sequential)):
            continue
        place = list(held._modules).index(words[end])
        was = history.taken[path][1][place] if path in history.taken else place
        if path in history.taken and (before, after) in (
            (old + start, place + start) for start in (0, 1) for old in (was, 0)
        ):
            return True
        if (before, after) == (was, 0) and (history.dropped or history.taken):
            return True  # the first that is left has the number of the first
    return False


def _other_configs(history: History, model: nn.Module) -> Iterator[str]:
    """Yield why the numbers of a config, which no kept positions make, are not the model's."""
    changes = {n: c for n, c in history.attributes.items() if n.startswith("config.")}
    made = history.implied or {}
    alone = [
        name
        for name, (before, after) in changes.items()
        if name not in made
        and not isinstance(after, tuple)
        and not _is_counted(Attribute.parse(name, ()), before, after, model, history)
    ]
    if history.implied is None or not alone:
        return
    if not _fits(history, model, changes):
        yield f"a {type(model).__name__} of the config that the file says has other sizes"
        return
    for name in alone:
        if _fits(history, model, {n: c for n, c in changes.items() if n != name}):
            yield f"{name} cannot become {changes[name][1]}: the sizes do not ask for it"


def _fits(history: History, model: nn.Module, changes: Changes) -> bool:
    """Tell whether the class makes of a changed config what the file says of tensors, numbers."""
    other = built(type(model), changed(model.config, changes))
    if other is None:
        return False
    shapes = {
        name: history.shapes[name][1] if name in history.shapes else tuple(tensor.shape)
        for name, tensor in model.named_parameters()
    }
    if {name: tuple(tensor.shape) for name, tensor in other.named_parameters()} != shapes:
        return False
    modules = dict(other.named_modules())
    for text, (_, after) in history.attributes.items():
        attribute = Attribute.parse(text, modules)
        if not _is_of_config(attribute) and attribute.held_by(modules[attribute.path]) != after:
            return False
    return True
