"""Holding functions and data against those that a run was begun with, before it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secateur.errors import ConfigError

SHUFFLED = "a loader that shuffles gives others each time: seed it"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is other in what ``fingerprints`` returned.

    >>> list(differences({"name": "f", "reads": {"n": 1}}, {"name": "f", "reads": {"n": 2}}))
    ['reads n: 1 there, 2 here']
    """
    versions = {each["python"] for each in (theirs, ours) if "python" in each}
    comparable = len(versions) < 2  # each version has instructions of its own
    there, here = theirs["name"], ours["name"]
    renamed = there != here and "code" in theirs and theirs["code"] == ours.get("code")
    if there != here and comparable and not renamed:
        yield f"{there} there, {here} here"
    elif comparable and theirs.get("code") != ours.get("code"):
        yield f"the code of {there} is other"
    elif theirs.get("numbers") != ours.get("numbers"):
        yield f"{there} there and here, and other numbers in them"
    before, now = theirs.get("reads", {}), ours.get("reads", {})
    for name in dict.fromkeys([*before, *now]):
        one, other = before.get(name), now.get(name)
        codes = all(isinstance(each, str) and each.startswith("code ") for each in (one, other))
        if one != other and (comparable or not codes):
            yield f"reads {name}: {one} there, {other} here"


def check_same(
    what: str,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    same: Sequence[str],
    advice: str,
) -> None:
    """Raise a ConfigError where functions or data are other than before; says which, and in what.

    Args:
        what: it is that goes on.
        theirs: name → facts, of before; what older files do not say is not compared.
        ours: as theirs, of now.
        same: names of what counts as the same, whatever it is.
        advice: what to give for another run.
    """
    compared = [name for name in ours if name in theirs and name not in same]
    found = {name: "; ".join(differences(theirs[name], ours[name])) for name in compared}
    if other := [name for name in compared if found[name]]:
        hint = {"data": f" ({SHUFFLED})"}
        raise ConfigError(
            f"{what} was begun with another {' and another '.join(other)}, whose numbers do not "
            f"mix with those of this: {advice}, or say same={other!r} where they do",
            *(f"{name}: {found[name]}{hint.get(name, '')}" for name in other),
        )


def problem_of_same(same: object, known: Sequence[str]) -> str | None:
    """Return what is wrong with the names of what counts as the same; None where nothing is.

    >>> problem_of_same(["data"], ["data", "loss"])
    >>> problem_of_same("data", ["data"])
    "same must be a list of names among 'data', got 'data'"
    """
    if isinstance(same, (list, tuple)) and set(map(str, same)) <= set(known):
        return None
    return f"same must be a list of names among {', '.join(map(repr, known))}, got {same!r}"
