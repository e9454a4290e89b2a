"""Where each of NNI's names is here, by its dotted name there; or why it is nowhere."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from secateur.errors import NotHereError, did_you_mean

from .absent import reason

HERE = "secateur.nni"
MODULES = (
    *("", "pruning", "speedup", "config_list", "evaluators", "utils", "utils.counter"),
    *("utils.external.external_replacer", "base.compressor", "base.setting"),
    *("common.types", "common.concrete_trace_utils"),
)
"""Where a name is looked for that NNI has elsewhere."""
OLDER = (
    *("pytorch", "pytorch.pruning", "pytorch.pruning.tools", "pytorch.speedup"),
    *("pytorch.utils", "pytorch.utils.counter"),
)
"""Likewise, of what scripts of NNI 2.x import."""
MOVED = {
    "nni.algorithms.compression.v2": "nni.compression",
    "nni.contrib.compression": "nni.compression",
}
"""Where NNI 2.x implements, or tries what 3.0 has → where it is offered."""


def module_for(name: str) -> str | None:
    """Return secateur's module for one of NNI's, or None.

    >>> module_for("nni.compression.pruning"), module_for("nni"), module_for("nni.nas")
    ('secateur.nni.pruning', 'secateur.nni', None)
    """
    path = _offered(name).removeprefix("nni").removeprefix(".compression")
    return f"{HERE}{path}" if _loaded(f"{HERE}{path}") else None


def home_of(module: str, name: str) -> str | None:
    """Return the module here that has a name of one of NNI's modules, or None.

    >>> home_of("nni.compression.pruning.basic_pruner", "L1NormPruner")
    'secateur.nni.pruning'
    """
    here = module_for(module)
    if name == "*":
        return here
    if here is not None and (_has(here, name) or _loaded(f"{here}.{name}")):
        return here
    path = _path(f"{module}.{name}")
    module = _offered(module)
    if reason(path) is None and module.startswith("nni.compression"):
        places = (*OLDER, *MODULES) if module.startswith("nni.compression.pytorch") else MODULES
        homes = (f"{HERE}.{other}".rstrip(".") for other in places)
        return next((home for home in homes if _has(home, name)), None)
    return None


def is_here(dotted: str) -> bool:
    """Tell whether a dotted name of NNI's, of a module or of what is in it, is here.

    >>> is_here("nni.trace"), is_here("nni.compression.utils.Scaling"), is_here("nni.get_trial_id")
    (True, False, False)
    """
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):  # the longest front that is a module; then its attribute
        here = module_for(".".join(parts[:cut]))
        if here is not None:
            return not parts[cut:] or _has(here, parts[cut])
    return False


def why_not(dotted: str) -> str:
    """Say why a name of NNI's is not here, and what to do."""
    if found := reason(_path(dotted)):
        return found
    if not _offered(dotted).startswith("nni.compression"):
        return "it is not about compression; NNI has to stay installed for it"
    known = [n for m in MODULES for n in dir(import_module(f"{HERE}.{m}".rstrip(".")))]
    near = did_you_mean(dotted.rpartition(".")[2], known)
    return f"secateur has nothing of that name.{near}"


def _path(dotted: str) -> str:
    return _offered(dotted).removeprefix("nni.").removeprefix("compression.")


def _offered(dotted: str) -> str:
    """Return a dotted name where NNI offers it, of one where it is implemented.

    >>> _offered("nni.algorithms.compression.v2.pytorch.pruning")
    'nni.compression.pytorch.pruning'
    """
    for place, offered in MOVED.items():
        dotted = dotted.replace(place, offered, 1) if dotted.startswith(place) else dotted
    return dotted


@cache
def _loaded(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name)
    except NotHereError:
        return False
