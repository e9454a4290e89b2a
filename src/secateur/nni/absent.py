"""Names of NNI's that have no counterpart here, and what to do instead.

A module that stands for one of NNI's answers for its missing names with ``missing``, so that an
import says why it fails; ``secateur.nni.migrate`` reports the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from secateur.errors import NotHereError

QUANTISE = "secateur does not quantise: quantise the smaller model afterwards, with torchao"
DISTIL = "NNI's distillers are not here: add a teacher's loss to your own training step"
WRAPPERS = "there are no wrappers here: masks are on your own modules"
CONFIG = "a config_list is read by secateur.nni.config_list: parse, resolve and load"
HOOKS = "an evaluator has train and evaluate; hook the model and the optimizer by torch's own hooks"

REASONS = {
    "quantization": QUANTISE,
    "quantization_speedup": QUANTISE,
    "utils.quantization": QUANTISE,
    "distillation": DISTIL,
    "base.wrapper": WRAPPERS,
    "base.target_space": WRAPPERS,
    "base.apply_method": WRAPPERS,
    "base.fuse_modules": QUANTISE,
    "base.config": CONFIG,
    "pytorch.quantization": QUANTISE,
    "pytorch.quantization_speedup": QUANTISE,
    "pytorch.distillation": DISTIL,
    "algorithms.compression.pytorch": "this is older than 2.x's pruners: move to those first",
    "utils.Scaling": "secateur.scoring.granularity says what is removed together",
    "utils.scaling": "secateur.scoring.granularity says what is removed together",
    **{
        f"{place}.{kind}Hook": HOOKS
        for place in ("utils", "utils.evaluator")
        for kind in ("Tensor", "Module", "Forward", "Backward")
    },
    "utils.fix_mask_conflict": "ModelSpeedup does it",
    "utils.mask_conflict": "ModelSpeedup does it",
    "speedup.mask_updater": "structure is inferred from the operations: register a rule for yours",
    "speedup.replacer": "modules are cut in place, and their classes stay",
    "common.concrete_trace_utils": "structure is inferred from one forward: no tracer is needed",
    "speedup.dependency": "ask secateur.analyze(model, example).groups",
    "utils.external.huggingface": "attention is inferred like all else: no parser is needed",
}
"""NNI's path after ``nni.compression.`` → what to do without it."""


def reason(path: str) -> str | None:
    """Return what to do without something of NNI's, by its path after ``nni.compression.``.

    >>> reason("quantization.QATQuantizer")
    'secateur does not quantise: quantise the smaller model afterwards, with torchao'
    >>> reason("pruning.L1NormPruner") is None
    True
    """
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        if found := REASONS.get(".".join(parts[:length])):
            return found
    return None


def refuse(path: str) -> NoReturn:
    """Raise the error for a name that is not here."""
    raise NotHereError(f"secateur.nni.{path}: {reason(path)}.")


def missing(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module, which explains the names that it lacks.

    >>> missing("utils")("fix_mask_conflict")
    Traceback (most recent call last):
        ...
    secateur.errors.NotHereError: secateur.nni.utils.fix_mask_conflict: ModelSpeedup does it.
    """

    def look_up(name: str) -> Any:
        path = f"{module}.{name}"
        if path in REASONS or (name[0].isupper() and reason(path)):  # and no probe, as pytest's
            refuse(path)
        raise AttributeError(f"module 'secateur.nni.{module}' has no attribute {name!r}")

    return look_up
