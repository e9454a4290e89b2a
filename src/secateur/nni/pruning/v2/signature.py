"""The older of NNI 2.x's two signatures: a trainer or a finetuner in place of an evaluator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from secateur.errors import ConfigError, did_you_mean
from secateur.nni.evaluators import LegacyEvaluator

C = TypeVar("C", bound=Callable[..., None])

PARTS = {
    "trainer": "trainer",
    "traced_optimizer": "traced_optimizer",
    "criterion": "criterion",
    "finetuner": "finetuner",
    "evaluator": "evaluating_func",
    "dummy_input": "dummy_input",
}
"""What of the older signature an evaluator is made of: its name → that of LegacyEvaluator."""


def is_evaluator(value: object) -> bool:
    """Tell whether a value is an evaluator, and not a function as the older signature has.

    >>> is_evaluator(print), is_evaluator(LegacyEvaluator())
    (False, True)
    """
    return all(hasattr(value, name) for name in ("train", "evaluate", "bound_to"))


def also(*names: str, **renamed: str) -> Callable[[C], C]:
    """Let a constructor take its arguments in the older order too.

    Args:
        names: of the older signature, in its order, without ``self``; ``PARTS`` become an
            evaluator, others are those of the newer, or renamed to it.
        renamed: a name there → its name in the newer.
    """

    def decorate(init: C) -> C:
        newer = list(inspect.signature(init).parameters)[1:]
        place = names.index(next(n for n in names if n not in newer or n == "evaluator"))
        only_older = {n for n in names if n not in newer and n not in renamed.values()}

        @functools.wraps(init)
        def either(self: Any, *args: Any, **kwargs: Any) -> None:
            if not _is_older(args, kwargs, place, only_older):
                _check(newer, args, kwargs, type(self).__name__)
                return init(self, *args, **kwargs)
            _check(names, args, kwargs, type(self).__name__)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            parts = {PARTS[n]: given.pop(n) for n in list(given) if n in PARTS}
            if "dummy_input" in newer and "dummy_input" in parts:
                given["dummy_input"] = parts["dummy_input"]
            found = {renamed.get(name, name): value for name, value in given.items()}
            return init(self, evaluator=LegacyEvaluator(**parts), **found)

        return either  # type: ignore[return-value]

    return decorate


def _is_older(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int, only_older: set[str]
) -> bool:
    """Tell by which of the two signatures a call was written."""
    if only_older & kwargs.keys():
        return True
    said = args[place] if len(args) > place else kwargs.get("evaluator")
    return said is not None and not is_evaluator(said)


def _check(
    names: list[str] | tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any], kind: str
) -> None:
    """Raise a ConfigError for names that the signature has not, or twice, and too many values."""
    problems = [
        f"{kind} has no argument {name!r}.{did_you_mean(name, names)}"
        for name in kwargs
        if name not in names
    ]
    problems += [
        f"{kind} got {name!r} twice, by position and by name: give it once"
        for name in names[: len(args)]
        if name in kwargs
    ]
    if len(args) > len(names):
        problems.append(f"{kind} takes {len(names)} arguments by position, got {len(args)}")
    if problems:
        raise ConfigError(*problems)
