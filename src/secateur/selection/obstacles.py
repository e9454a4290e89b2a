"""Why groups stay: what an error says of a target that selects nothing, or a goal out of reach."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from secateur.config import Config
from secateur.graph.axes import atoms
from secateur.graph.groups import Group
from secateur.structure import Structure

from .kinds import missing
from .selectors import Selectors

SHOWN = 3


def selected(group: Group, selectors: Selectors, structure: Structure) -> bool:
    """Tell whether a target takes a group: some layer that makes it, and none is excluded.

    A width that norms of other layers are rescaled for is the model's own, and who names some
    layers does not mean it: there the target must take every layer that makes it.
    """
    if excluded(group, selectors) is not None:
        return False
    rescaled = structure.inferred.rescaled
    axes = [axis for found in rescaled for axis, _ in found.powers]
    if any(atom is group.atom for axis in axes for atom in atoms(axis)):
        tensors = [m.tensor for m in group.members if m.role == "out"]
        matrices = [t for t in tensors if len(structure.tensor(t)) > 1]
        return all(selectors.takes(_owner(tensor)) for tensor in matrices)
    return any(map(selectors.takes, makers(group)))


def makers(group: Group) -> list[str]:
    """Return the modules whose rows, biases or scales a group lives on, in the model's order."""
    tensors = (m.tensor for m in group.members if m.role == "out")
    return list(dict.fromkeys(_owner(tensor) for tensor in tensors))


def excluded(group: Group, selectors: Selectors) -> str | None:
    """Return the first module or parameter of a group that a target leaves alone."""
    tensors = [m.tensor for m in group.members if m.role == "out"]
    return next((n for n in (*makers(group), *tensors) if selectors.excludes(n)), None)


def _owner(tensor: str) -> str:
    """Return the module of a parameter, which a parametrization has moved further in."""
    return (
        tensor.partition(".parametrizations.")[0]
        if ".parametrizations." in tensor
        else (tensor.rpartition(".")[0])
    )


def obstacles(structure: Structure | None, selectors: Selectors, config: Config) -> str:
    """Return why a target selects nothing, as the rest of a sentence; "" where nobody knows."""
    if not selectors.parameters:
        return ": the model has no parameter (a quantised one packs them away: prune it before)"
    lines = _containers(selectors)
    if structure is not None:
        lines += missing(structure, config, selectors.target)
    if structure is not None and selectors.target.granularity == "group":
        lines += group_obstacles(structure, selectors, config)
    elif not lines:
        names = ", ".join(map(repr, selectors.target.parameters))
        lines = [f"the modules that it takes have no parameter {names} of two dimensions or more"]
    return "".join(f"\n  {line}" for line in lines)


def group_obstacles(structure: Structure, selectors: Selectors, config: Config) -> list[str]:
    """Return why groups that a target names stay: one line for each kind of reason."""
    free = {g.name for g in structure.independent(inexact=config.inexact, grid=config.grid)}
    everyone = [*structure.groups, *structure.frozen]
    named = [g for g in everyone if any(map(selectors.takes, makers(g)))]
    alone = [(g, excluded(g, selectors)) for g in everyone]
    kept = [(g, what) for g, what in alone if what is not None and g.frozen is None and g.size > 1]
    frozen = [(g, str(g.frozen)) for g in named if g.frozen is not None]
    inexact = [(g, str(g.inexact)) for g in named if g.frozen is None and not g.exact]
    return [
        *_told("frozen", frozen),
        *(_told("inexact=True would allow", inexact) if not config.inexact else []),
        *_told("left alone", [(g, f"{what!r} is excluded") for g, what in kept]),
        *_told("chosen with its grid instead:", _grid_mates(named, free, structure)),
        *unknown(structure),
    ]


def unknown(structure: Structure) -> list[str]:
    """Return a line that names the operations without a rule, if there are any."""
    odd = [f"{name} (in {why.module or 'the model'!r})" for name, why in structure.unknown.items()]
    more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
    listed = f"{', '.join(odd[:SHOWN])}{more}"
    return [f"what these touch is frozen, as no rule knows them: {listed}"] if odd else []


def _grid_mates(
    named: Sequence[Group], free: set[str], structure: Structure
) -> list[tuple[Group, str]]:
    found = []
    for group in named:
        mates = [mate for mate in group.grid if mate in free]
        if group.frozen is None and group.exact and group.name not in free and mates:
            found.append((group, f"{structure[mates[0]].name!r} shares a grid with it"))
    return found


def _told(what: str, groups: Iterable[tuple[Group, str]]) -> list[str]:
    """Return lines for groups, those with one reason together, the first reasons first."""
    reasons: dict[str, list[str]] = {}
    for group, why in groups:
        reasons.setdefault(why, []).append(f"{group.name!r} ({group.size})")
    ordered = sorted(reasons, key=_plain)  # what every model has comes last
    lines = []
    for why in ordered[:SHOWN]:
        names = reasons[why]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"{what} {', '.join(names[:SHOWN])}{more}: {why}")
    if len(ordered) > SHOWN:
        lines.append(f"{what} others, for {len(ordered) - SHOWN} more reasons: see analyze()")
    return lines


def _plain(reason: str) -> bool:
    return reason.startswith(("it is the model's input", "it is the model's output"))


def _containers(selectors: Selectors) -> list[str]:
    """Name patterns that match only modules without parameters of their own."""
    target, modules = selectors.target, selectors.modules
    lines = []
    for pattern in target.names:
        taken: Callable[[str], bool] = Selectors(modules[""], type(target)(names=(pattern,))).takes
        found = [path for path in modules if taken(path)]
        holding = [p for p in found if any(True for _ in modules[p].children())]
        if holding and not any(modules[p]._parameters for p in found):
            lines.append(f"{pattern!r} holds layers and no weights: say '{pattern}.*'")
    return lines
