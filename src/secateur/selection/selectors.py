"""Which modules and parameters a target takes, and which of its words mean nothing in a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase
from re import Match, search

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from secateur.config import Target
from secateur.errors import did_you_mean


class Selectors:
    """A target's selectors at work on one model.

    >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    >>> found = Selectors(net, Target(types=["Linear"], exclude=["0"]))
    >>> found.takes("0.0"), found.takes("1"), found.excludes("0.0.weight")
    (False, True, True)
    >>> list(Selectors(net, Target(exclude_types=["Linaer"])).problems())
    ["exclude_types: 'Linaer' matches none. Did you mean 'Linear'?"]
    """

    def __init__(self, model: nn.Module, target: Target):
        self.target = target
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.parameters = [n for n, _ in model.named_parameters(remove_duplicate=False)]
        self._names: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            self._names.setdefault(id(module), []).append(name)

    def takes(self, path: str) -> bool:
        """Tell whether a module is selected, and not excluded."""
        if path not in self.modules or self.excludes(path):
            return False
        module, target = self.modules[path], self.target
        names = self._names[id(module)]
        named = not target.names or any(_matches(name, target.names) for name in names)
        return named and (not target.types or _kind(module) in target.types)

    def excludes(self, path: str) -> bool:
        """Tell whether a module or parameter is left alone, by itself or inside what is."""
        last = path.rpartition(".")[2]
        module = self.modules.get(path)
        if module is None:  # a parameter, under each name of its module
            owner = self.modules[path.rpartition(".")[0]]
            names = [f"{name}.{last}" if name else last for name in self._names[id(owner)]]
        else:
            names = self._names[id(module)]
        return any(self._excluded(around) for name in names for around in _around(name))

    def _excluded(self, name: str) -> bool:
        kind = _kind(self.modules[name]) if name in self.modules else ""
        return _matches(name, self.target.exclude) or kind in self.target.exclude_types

    def problems(self) -> Iterator[str]:
        """Yield one sentence for each pattern that matches nothing: it was meant to."""
        kinds = {_kind(module) for module in self.modules.values()}
        named = [*self.modules, *self.parameters]
        ends = {name.rpartition(".")[2] for name in self.parameters}
        target = self.target
        for field, patterns, known, others, there in (
            ("names", target.names, self.modules, kinds, "types"),
            ("types", target.types, kinds, self.modules, "names"),
            ("exclude", target.exclude, named, kinds, "exclude_types"),
            ("exclude_types", target.exclude_types, kinds, named, "exclude"),
            ("parameters", target.parameters, ends, (), ""),
        ):
            if field == "parameters" and "parameters" not in target.model_fields_set:
                continue
            for pattern in patterns:
                wildcards = field in ("names", "exclude")
                if not any(_matches(n, [pattern]) if wildcards else n == pattern for n in known):
                    hint = _hint(pattern, known, others, there)
                    yield f"{field}: {pattern!r} matches none.{hint}"


def _kind(module: nn.Module) -> str:
    return type_before_parametrizations(module).__name__


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _around(name: str) -> Iterator[str]:
    """Yield a name, those of the modules that it lies in, and that of the model."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _hint(pattern: str, known: Collection[str], others: Collection[str], there: str) -> str:
    """Return which setting the word is for, or the nearest word with the same wildcards.

    >>> _hint("bakbone.*", ["backbone", "backbone.0"], [], "")
    " Did you mean 'backbone.*'?"
    >>> _hint("Linear", ["fc"], ["Linear"], "types")
    " It is for 'types'."
    >>> _hint("fc[1]", ["fc"], [], "")
    " It is a part of 'fc', which selects it; one part alone goes by allocation=."
    """
    part = re.fullmatch(r"(.+)\[\d+\]", pattern)
    if part and part[1] in known:
        return (
            f" It is a part of {part[1]!r}, which selects it; one part alone goes by allocation=."
        )
    if pattern in others:
        return f" It is for {there!r}."
    if search(r"[*?\[]", pattern):
        spelt = _spelt(pattern, {word for name in known for word in name.split(".")})
        if any(fnmatchcase(name, spelt) for name in known):
            return f" Did you mean {spelt!r}?"
    return did_you_mean(pattern, known)


def _spelt(pattern: str, words: Collection[str]) -> str:
    """Return a pattern with the nearest known word for each of its words that is none.

    >>> _spelt("*.atn.q_prj*", ["attn", "q_proj", "mlp"])
    '*.attn.q_proj*'
    """

    def known(match: Match[str]) -> str:
        near = [match[0]] if match[0] in words else get_close_matches(match[0], words, n=1)
        return near[0] if near else match[0]

    return re.sub(r"[^.*?\[\]]+", known, pattern)
