"""What numbers the settings of a search may be; who has them says which is which."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite
from numbers import Integral, Real

KINDS: dict[str, tuple[type, Callable[[float], bool], str]] = {
    "counts": (Integral, lambda value: value >= 1, "a whole number of at least 1"),
    "from_zero": (Integral, lambda value: value >= 0, "a whole number of at least 0"),
    "positive": (Real, lambda value: value > 0, "a number above 0"),
    "shares": (Real, lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "closed": (Real, lambda value: 0 <= value <= 1, "a number in [0, 1]"),
}
"""The kinds of numbers: their type, what holds of them, and this in words."""


def check(settings: object, **names: Iterable[str]) -> None:
    """Raise a ValueError that says which settings are not of their kind.

    Args:
        settings: an object with an attribute for each name.
        names: of the settings of each of ``KINDS``.

    >>> from types import SimpleNamespace
    >>> check(SimpleNamespace(size=0, rate="x"), counts=["size"], positive=["rate"])
    Traceback (most recent call last):
        ...
    ValueError: size must be a whole number of at least 1, got 0; rate must be a number above 0, \
got 'x'
    """
    wrong = []
    for kind, of in names.items():
        number, holds, words = KINDS[kind]
        for name in of:
            value = getattr(settings, name)
            real = isinstance(value, number) and not isinstance(value, bool)
            if not real or not isfinite(value) or not holds(value):
                wrong.append(f"{name} must be {words}, got {value!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
