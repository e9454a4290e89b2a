"""Take dropped layers out of the list that held them, and count the rest anew, where that does.

Where code of the model needs each at its place, they stay as modules that return their input.  What
does is found by trying: the model runs again, and must compute the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from secateur.graph.origins import Attribute
from secateur.replacements.passing import PassThrough
from secateur.runtime.undo import Undo

from .counted import counted
from .cut import Surgery
from .history import HELD_AS, Changes, History, Renaming, Taken
from .overrides import follow, remembered
from .verify import Check, Expected


@dataclass(frozen=True)
class TakenOut:
    """What became of paths, and what the config says of it: None where it cannot."""

    renamings: Sequence[Renaming] = ()
    config: Changes | None = None

    def attributes(self, found: Iterable[Attribute]) -> Iterator[Attribute]:
        """Yield what is left of attributes, by their new paths."""
        for attribute in found:
            path: str | None = attribute.path
            for renaming in self.renamings:
                path = path if path is None else renaming.of(path)
            if path is not None:
                yield replace(attribute, path=path)


def take_out(surgery: Surgery, check: Check | None) -> TakenOut:
    """Take the blocks that were dropped out of their lists, where the model then runs as before.

    Args:
        surgery: of a model that was cut already.
        check: what it is run on; None leaves them where they are, because nothing is compared.
    """
    model, start = surgery.model, surgery.mark()
    lists = _lists(model)
    if check is None or not lists:
        return TakenOut()
    expected = check.expect(model, check.trials[1:2])
    named = surgery.shapes, surgery.rescaled
    for count in (_by_config, _by_places, _by_lengths):
        taken = _taken(surgery, lists)
        possible, said = count(surgery, taken)
        if possible and _runs(surgery, taken, check, expected):
            return TakenOut([each.renaming for each in taken], said)
        surgery.undo(start)
        surgery.shapes, surgery.rescaled = named
    return TakenOut()


class _List:
    """A list of modules that loses some."""

    def __init__(self, path: str, modules: Sequence[tuple[str, nn.Module]], kept: Sequence[int]):
        self.path = path
        self.names = [name for name, _ in modules]
        self.modules = [module for _, module in modules]
        self.kept = kept
        self.renaming = Renaming(path, self.names, kept)

    def name(self, place: int) -> str:
        """Return the name that a module has now, by its place of before."""
        return self.renaming.new[self.names[place]]

    @property
    def gone(self) -> list[nn.Module]:
        return [module for i, module in enumerate(self.modules) if i not in self.kept]

    @property
    def how(self) -> Taken:
        return len(self.modules), tuple(self.kept)


def _lists(model: nn.Module) -> dict[str, list[int]]:
    """Return the lists that hold dropped blocks, outer ones first, and the places of the others."""
    found: dict[str, list[int]] = {}
    gone: list[str] = []
    for path, module in model.named_modules():  # outer ones come first
        if isinstance(module, PassThrough):
            gone.append(f"{path}.")
        elif isinstance(module, (nn.ModuleList, nn.Sequential)) and not path.startswith(
            tuple(gone)
        ):
            kept = [i for i, m in enumerate(module.children()) if not isinstance(m, PassThrough)]
            if 0 < len(kept) < len(module._modules) == len(list(module.children())):
                found[path] = kept
    return found


def _taken(surgery: Surgery, lists: Mapping[str, list[int]]) -> list[_List]:
    """Take modules out of lists; the history and the shapes go by the new names."""
    done: list[_List] = []
    for path, kept in lists.items():
        for outer in done:
            path = outer.renaming.of(path) or path
        modules = list(surgery.model.get_submodule(path).named_children())
        done.append(_List(path, modules, kept))
        history = History.of(surgery.model).without(path, done[-1].names, kept)
        surgery.take_out(path, kept)
        surgery.set_attribute(surgery.model, HELD_AS, history)
        surgery.shapes = done[-1].renaming.keys(surgery.shapes)
        surgery.rescaled = done[-1].renaming.keys(surgery.rescaled)
    return done


Counted: TypeAlias = tuple[bool, Changes | None]
"""Whether numbers may do that were changed, and which of the config's."""


def _by_config(surgery: Surgery, taken: Sequence[_List]) -> Counted:
    """Let the config say how many there are, and each module its place."""
    changes = counted(surgery.model, {each.path: each.how for each in taken})
    if changes is None:
        return False, None
    before = remembered(surgery.model.config)
    _set(surgery, changes)
    follow(surgery.model.config, before, [each.how for each in taken], surgery.say_of_layers)
    _by_places(surgery, taken)
    return True, {name.removeprefix("config."): change for name, change in changes.items()}


def _by_places(surgery: Surgery, taken: Sequence[_List]) -> Counted:
    """Let each module say its place."""
    for each in taken:
        _set(surgery, dict(_places(each)))
    return True, None


def _by_lengths(surgery: Surgery, taken: Sequence[_List]) -> Counted:
    """Let what holds a list, and its config, count anew whatever was as many as it had modules."""
    _by_places(surgery, taken)
    for each in taken:
        size, kept = each.how
        for path, module in surgery.model.named_modules():
            if path and not f"{each.path}.".startswith(f"{path}."):
                continue
            numbers = [(name, value) for name, value in vars(module).items()]
            if not path and hasattr(module, "config") and hasattr(module.config, "__dict__"):
                numbers += [(f"config.{name}", v) for name, v in vars(module.config).items()]
            found = {
                str(Attribute(path, name)): (size, len(kept))
                for name, value in numbers
                if type(value) is int and value == size and "._" not in f".{name}"
            }
            _set(surgery, found)
    return True, None


def _set(surgery: Surgery, changes: Mapping[str, Any]) -> None:
    paths = dict(surgery.model.named_modules())
    for text, (_, after) in changes.items():
        surgery.set_size(Attribute.parse(text, paths), after)
    history = History.of(surgery.model).with_attributes(changes)
    surgery.set_attribute(surgery.model, HELD_AS, history)


def _places(each: _List) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the integers that are the place of each module in a list, as a cache's number is.

    Counted from 0 or from 1; the first that is left may have been given the number of the first.
    """
    ranks = {place: rank for rank, place in enumerate(each.kept)}
    held: dict[tuple[str, str], dict[int, int]] = {}
    for i, module in enumerate(each.modules):
        for path, inner in module.named_modules():
            for name, value in vars(inner).items():
                if type(value) is int and not name.startswith("_"):
                    held.setdefault((path, name), {})[i] = value
    first = each.kept[0]
    for (path, name), values in held.items():
        for start in (0, 1):
            fits = [
                i
                for i, value in values.items()
                if value == i + start or (i == first and value == start)
            ]
            if len(fits) == len(values) > 1:
                for i in set(values) & set(ranks):
                    now = ranks[i] + start
                    if values[i] != now:
                        where = ".".join(filter(None, (each.path, each.name(i), path)))
                        yield str(Attribute(where, name)), (values[i], now)
                break


def _runs(surgery: Surgery, taken: Sequence[_List], check: Check, expected: Expected) -> bool:
    """Tell whether the model computes the same, and calls none of the modules that were taken."""
    gone = [module for each in taken for module in each.gone]
    left = set(surgery.model.modules())
    if any(module in left for module in gone):
        return False
    with Undo() as undo:
        for module in gone:
            undo(partial(vars(module).pop, "forward", None))
            vars(module)["forward"] = _absent
        return check.same(surgery.model, expected)


def _absent(*_: Any, **__: Any) -> Any:
    raise LookupError("a module that was taken out of its list is called")
