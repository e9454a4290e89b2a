"""Amounts of a cost as people write them: "12 ms", "300 M MACs", "20 MB", "80 % params"."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from secateur.errors import ConfigError, did_you_mean

from .cost import COSTS

BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
EXAMPLES = '"12 ms", "300 M MACs", "20 MB", "5 M params" or "80 % params"'
WRITTEN = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)\s*(%?)\s*([A-Za-zµμ][A-Za-zµμ ]*?)\s*")


@dataclass(frozen=True)
class Amount:
    """So much of a cost, in its base unit: seconds, bytes, one; or a share of the dense model's."""

    of: str
    value: float
    written: str
    relative: bool = False


def amount_of(written: object, of: str = "channels") -> Amount:
    """Return what an amount means.

    Args:
        written: a number and a unit, with a prefix (k, M, G, T; of times m and u; of bytes also
            Ki, Mi, Gi, Ti); or a percentage that may stay, and a unit or the name of a cost.
        of: the cost that is meant where a unit is of several: bytes are those of the file, or
            with ``of="memory"`` those of activations.

    Raises:
        ConfigError: it is no amount, its unit is unknown, or it is of another cost than ``of``.

    >>> amount_of("300 M MACs").value, amount_of("12ms").of, amount_of("20 MiB", "memory").of
    (300000000.0, 'latency', 'memory')
    >>> amount_of("80 % params")
    Amount(of='params', value=0.8, written='80 % params', relative=True)
    >>> amount_of("12 MS")
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: budget '12 MS': unknown unit 'MS'. Did you mean 'ms'?
    """
    match = WRITTEN.fullmatch(written) if isinstance(written, str) else None
    if match is None:
        raise ConfigError(f"budget {written!r}: write a number and a unit, as in {EXAMPLES}")
    units = dict(_units())
    unit = " ".join(match[3].split())
    if match[2]:
        units = {word: held for word, held in units.items() if held[0] == 1}  # of no prefix
        units |= {name: (1.0, (name,)) for name in COSTS}
    known = {spelt: spelt for spelt in units}
    found = units.get(unit, units.get(unit.replace(" ", "")))
    if found is None:
        raise ConfigError(f"budget {written!r}: unknown unit {unit!r}.{_hint(unit, list(known))}")
    factor, costs = found
    if of != "channels" and of not in costs:
        raise ConfigError(f"budget {written!r} is an amount of {costs[0]}, and of={of!r} another")
    value = float(match[1]) * (0.01 if match[2] else factor)
    if match[2] and not 0 < value < 1:
        raise ConfigError(f"budget {written!r}: the share that may stay is above 0 and below 100 %")
    if value <= 0:
        raise ConfigError(f"budget {written!r}: must be greater than 0")
    if value == float("inf"):
        raise ConfigError(
            f"budget {written!r}: more than can be counted; leave it out for no limit"
        )
    kind = costs[0] if of == "channels" else of
    return Amount(kind, value, str(written).strip(), relative=bool(match[2]))


def _units() -> Iterator[tuple[str, tuple[float, tuple[str, ...]]]]:
    """Yield every unit with its factor, and the costs that it is of, the usual one first."""
    found: dict[str, tuple[float, tuple[str, ...]]] = {}
    for name, kind in COSTS.items():
        prefixes = dict(kind.prefixes) | (BINARY if "B" in kind.words else {})
        for word in kind.words:
            for prefix, factor in prefixes.items():
                unit = f"{prefix}{word}"
                found[unit] = factor, (*found.get(unit, (0.0, ()))[1], name)
    yield from found.items()


def _hint(unit: str, known: list[str]) -> str:
    if "flop" in unit.lower():
        return " One MAC is two FLOPs: give MACs"
    same = [word for word in known if word.lower() == unit.replace(" ", "").lower()]
    return f" Did you mean {same[0]!r}?" if same else did_you_mean(unit, known)
