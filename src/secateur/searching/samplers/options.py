"""The options of a sampler: names that it has, or an error with the nearest one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from secateur.errors import ConfigError, SecateurError, did_you_mean

T = TypeVar("T")


def checked(
    of: Callable[..., Any], options: Mapping[str, Any], without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return options as keywords of a function or class that has them all.

    Raises:
        ConfigError: it has no such option, or that is no such number.

    >>> checked(sorted, {"revers": True})
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: sampler_options: unknown 'revers'. Did you mean 'reverse'?
    """
    parameters = inspect.signature(of).parameters
    known = [name for name in parameters if name not in without]
    problems = [
        f"sampler_options: unknown {name!r}.{did_you_mean(name, known)}"
        for name in options
        if name not in known
    ]
    for name in options.keys() & set(known):
        usual, given = parameters[name].default, options[name]
        wanted = {int: Integral, float: Real}.get(type(usual))
        if wanted and (not isinstance(given, wanted) or isinstance(given, bool)):
            kind = "whole number" if wanted is Integral else "number"
            problems.append(f"sampler_options: {name!r} must be a {kind}, got {given!r}")
    if problems:
        raise ConfigError(*problems)
    return dict(options)


def accepted(make: Callable[[], T]) -> T:
    """Return what a function makes of options, whose complaints are about these.

    >>> accepted(lambda: 1 / 0)
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: sampler_options: division by zero
    """
    try:
        return make()
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        if isinstance(error, SecateurError):
            raise
        raise ConfigError(f"sampler_options: {str(error) or type(error).__name__}") from error
