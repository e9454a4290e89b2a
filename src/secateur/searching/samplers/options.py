"""The options of a sampler: names that it has, or an error with the nearest one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from secateur.errors import ConfigError, did_you_mean


def checked(
    of: Callable[..., Any], options: Mapping[str, Any], without: Sequence[str] = ()
) -> dict[str, Any]:
    """Return options as keywords of a function or class that has them all.

    Raises:
        ConfigError: it has no such option.

    >>> checked(sorted, {"revers": True})
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: sampler_options: unknown 'revers'. Did you mean 'reverse'?
    """
    known = [name for name in inspect.signature(of).parameters if name not in without]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            *(f"sampler_options: unknown {name!r}.{did_you_mean(name, known)}" for name in unknown)
        )
    return dict(options)
