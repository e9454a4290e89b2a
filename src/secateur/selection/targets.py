"""From a config and a model to what is ranked: one ``Selectable`` for each thing that is decided.

A selectable is a set of positions with one score and one decision each, and the tensors that the
decision is written to: one weight for an element or channel pruner, every slice of a dependency
group, the members of one of NNI's dependency groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
from torch import Tensor, nn

from secateur.config import Config, Target
from secateur.errors import ConfigError, NoMatchError, ScoreError, did_you_mean
from secateur.graph.groups import Group, Member
from secateur.graph.layout import Along
from secateur.runtime.values import not_finite
from secateur.runtime.writes import unwritten
from secateur.scoring.allocations import allocators
from secateur.scoring.criteria import Side, criteria, needs
from secateur.scoring.granularity import Element, Granularity
from secateur.scoring.schedules import asked
from secateur.settings import granularity_from, stores_transposed
from secateur.structure import Structure
from secateur.types import Factored, Masks

from .kinds import candidates
from .obstacles import obstacles, selected
from .select import Request
from .selectors import Selectors

FORM = "group"
"""The granularity of dependency groups."""


@dataclass(frozen=True)
class Part:
    """A tensor that a decision is about, and how it falls into the positions decided on.

    ``masked`` is False where another part's zeros remove its positions, and its own would be NaN:
    the direction of a weight norm, beside its length.
    """

    tensor: str
    granularity: Granularity
    scores: bool = True
    masked: bool = True


@dataclass(frozen=True)
class Selectable:
    """Positions that are decided on together; see the module's docstring."""

    name: str
    parts: tuple[Part, ...]
    criterion: str
    request: Request  # without scores yet: an empty tensor
    normalize: str = "mean"
    group: Group | None = None

    @property
    def scoring(self) -> tuple[Part, ...]:
        """The parts that have scores of their own; the others only follow the decision."""
        return tuple(part for part in self.parts if part.scores)

    @property
    def patterned(self) -> bool:
        """Whether its masks make a pattern that counts positions of a tensor."""
        return any(part.granularity.patterned for part in self.parts)

    @property
    def single(self) -> bool:
        """Whether single weights are decided on."""
        return any(isinstance(part.granularity, Element) for part in self.parts)

    def score(self, tensors: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Return one score per position from the weights alone; see ``combine``."""
        parts = self.scoring
        return self.combine(
            [self.part_score(p, tensors[p.tensor], generator=generator) for p in parts]
        )

    def part_score(self, part: Part, tensor: Tensor, **statistics: Any) -> Tensor:
        """Return the criterion's score for each unit of one part's tensor."""
        function = criteria[self.criterion]
        options = {name: statistics[name] for name in needs(function)}
        rows = part.granularity.rows(tensor)
        given = (x for x in (rows, *options.values()) if isinstance(x, Tensor))
        with unwritten(given):  # they are views of the user's own weights
            scores: Any = function(rows, **options)
        known = isinstance(scores, Tensor) and not scores.is_complex()
        if not known or scores.shape != rows.shape[:1]:
            said = tuple(scores.shape) if known else f"a {type(scores).__name__}"
            raise ScoreError(
                f"criterion {self.criterion!r} must return one score for each of {len(rows)} rows, "
                f"as a tensor, and returned {said}"
            )
        return scores.float()

    def combine(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the mean of the parts' scores, each made comparable, on the first one's device."""
        if len(scores) == 1:
            return normalized(scores[0], self.normalize)
        place = scores[0].device
        return torch.stack([normalized(s, self.normalize).to(place) for s in scores]).mean(0)

    def masks(self, keep: Tensor, tensors: Mapping[str, Tensor], only: str | None = None) -> Masks:
        """Return the mask of every masked part's tensor for a bool decision ``(positions,)``.

        Each is on its tensor's device.  ``only``: of the parts in that tensor alone.
        """
        masks = Factored()
        for part in self.parts:
            if not part.masked or (only is not None and part.tensor != only):
                continue
            tensor = tensors[part.tensor]
            mask = part.granularity.expand(keep.to(tensor.device), tuple(tensor.shape))
            masks.multiply({part.tensor: mask})
        return masks


def check_scorable(selectables: Sequence[Selectable], tensors: Mapping[str, Tensor]) -> None:
    """Look at all that is scored.

    Raises:
        ScoreError: a tensor has no numbers, whole numbers, or a NaN or infinite weight.
    """
    names = sorted({part.tensor for each in selectables for part in each.scoring})
    if empty := [name for name in names if tensors[name].is_meta]:
        raise ScoreError(
            f"{empty[0]!r} is on torch.device('meta') and has no numbers to rank: analyze() and "
            "apply_plan() do without; to prune, load the weights first"
        )
    for name in names:
        if not (tensors[name].is_floating_point() or tensors[name].is_complex()):
            raise ScoreError(
                f"{name!r} holds {str(tensors[name].dtype).removeprefix('torch.')}, and whole "
                "numbers are not ranked: prune first and quantise the smaller model, or exclude it"
            )
    if odd := not_finite({name: tensors[name] for name in names}):
        raise ScoreError(f"{odd[0]!r} has weights that are NaN or infinite: nothing can be ranked")


def normalized(score: Tensor, how: str) -> Tensor:
    """Return scores on a common scale: divided by their mean, max or sum, or standardised.

    >>> normalized(torch.tensor([1., 3.]), "mean")
    tensor([0.5000, 1.5000])
    """
    if how == "gaussian":
        return (score - score.mean()) / score.std(correction=0).clamp(min=1e-12)
    if how in ("none", "output"):  # what is needed for the latter, the calibration knows
        return score
    scale = {"mean": score.mean(), "max": score.amax(), "sum": score.sum()}[how]
    return score / scale.clamp(min=1e-12)


def check_given(given: object, selectables: Sequence[Selectable]) -> None:
    """Refuse scores of a method that are not of what is decided on, one for each position.

    Raises:
        ConfigError: one names something else, or is no tensor, or of another length.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"method: scores() must return tensors by name, not {given!r}")
    known = {each.name: each for each in selectables}
    for name, scores in given.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"method: scores() names {name!r}, which is not selected.{hint}")
        group = known[name].group
        wrong = not isinstance(scores, Tensor) or scores.ndim != 1
        if wrong or (group is not None and len(scores) != group.size):
            many = f"{group.size} scores" if group else "a row of scores"
            said = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ConfigError(f"method: scores() must give {name!r} a tensor of {many}, not {said}")


def selectables(model: nn.Module, config: Config, structure: Structure | None) -> list[Selectable]:
    """Return what a config selects in a model; a later target replaces an earlier one's choices.

    Raises:
        NoMatchError: a target matches nothing.
        ConfigError: a target has no goal, or a tensor cannot fall into such units.
    """
    found: dict[str, Selectable] = {}
    owners, chosen = dict[str, str](), dict[str, int]()
    unmatched, wrong = list[str](), list[str]()
    for i, target in enumerate(config.resolved_targets()):
        if allocators.facts[config.allocate].pooled:
            target = target.replace(scope="global")
        if config.budget and target.sparsity is None and target.threshold is None:
            target = target.replace(sparsity=0.0)  # a least share bounds it, and is no goal besides
        place = f"targets[{i}]" if config.targets else "the config"
        selectors = Selectors(model, target)
        odd = " ".join(selectors.problems())
        goals = (target.sparsity, target.threshold, target.min_sparsity)
        if all(goal is None for goal in goals) and not (config.allocation or config.budget):
            wrong.append(f"{place} has no goal: give sparsity or threshold")
        else:
            made = _made(model, selectors, config, structure, i)
            if not made:
                why = f": {odd}" if odd else obstacles(structure, selectors, config)
                unmatched.append(f"{place} selects nothing that can be pruned{why}")
            elif odd:
                unmatched.append(f"{place} has a word that selects nothing: {odd}")
            found |= {each.name: each for each in made}
            owners |= dict.fromkeys((each.name for each in made), place)
            chosen[place] = len(made)
    lost = [place for place, count in chosen.items() if count and place not in owners.values()]
    unmatched += [
        f"{place} selects nothing that a later target does not take: the last one that matches "
        "counts, so that general targets stand first"
        for place in lost
    ]
    if unmatched:
        raise NoMatchError(*unmatched, *wrong)
    if wrong:
        raise ConfigError(*wrong)
    return list(found.values())


def _made(
    model: nn.Module,
    selectors: Selectors,
    config: Config,
    structure: Structure | None,
    index: int,
) -> list[Selectable]:
    if selectors.target.granularity != FORM:
        return _of_tensors(model, selectors, config, index)
    assert structure is not None
    return _of_groups(model, selectors, config, structure, index)


def _request(target: Target, pool: Hashable, **options: float | int) -> Request:
    given = target.sparsity is not None or target.threshold is not None
    return Request(
        torch.empty(0),
        sparsity=target.sparsity if given else target.min_sparsity or 0.0,
        threshold=target.threshold,
        min_sparsity=target.min_sparsity,
        max_sparsity=target.max_sparsity,
        pool=pool if target.scope == "global" else None,
        **options,  # type: ignore[arg-type]
    )


def _of_groups(
    model: nn.Module, selectors: Selectors, config: Config, structure: Structure, index: int
) -> list[Selectable]:
    target = selectors.target
    parameters = dict(model.named_parameters())
    made = []
    for group in candidates(structure, config, target):
        if not selected(group, selectors, structure):
            continue
        weights = _scoring(group, parameters, criteria.facts[target.criterion].of)
        parts = tuple(
            Part(
                m.tensor,
                Along(m.dim, structure.tensor(m.tensor)[m.dim].axis, group.atom),
                scores=m in weights,
                masked=(m.tensor, m.dim) not in structure.inferred.typing.spared,
            )
            for m in group.members
            if m.role != "buffer"
        )
        request = _request(
            target,
            index,
            round_to=lcm(config.round_to, group.step),
            keep_at_least=group.least,
        )
        if any(p.scores for p in parts):
            made.append(
                Selectable(group.name, parts, target.criterion, request, target.normalize, group)
            )
    return made


def _scoring(group: Group, parameters: Mapping[str, Tensor], side: Side) -> list[Member]:
    """Return the slices that have scores: a criterion's side of a group, else what it has."""
    makers = [m for m in group.members if m.role == "out"]
    readers = [m for m in group.members if m.role == "in"]
    wanted = {"makers": makers, "readers": readers or makers, "both": [*makers, *readers]}[side]
    return [m for m in wanted if parameters[m.tensor].ndim > 1] or wanted


def _of_tensors(
    model: nn.Module, selectors: Selectors, config: Config, index: int
) -> list[Selectable]:
    made = []
    target = selectors.target
    if criteria.facts[target.criterion].experts:
        raise ConfigError(
            f"criterion {target.criterion!r} ranks whole experts: granularity={FORM!r}, not "
            f"{target.granularity!r}"
        )
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not selectors.takes(path):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name not in target.parameters or id(parameter) in seen:
                continue
            shape = tuple(parameter.shape)
            granularity = granularity_from(target.granularity, transposed=stores_transposed(module))
            assert granularity is not None
            if target.scope == "local" and criteria.facts[target.criterion].within == "row":
                granularity = _by_row(granularity, module, len(shape))
            vector = len(shape) < 2 and not target.types
            if vector and (name == "weight" or target.granularity != "element"):
                continue  # a norm's weight is a scale, and has no channels of its own
            if selectors.excludes(full := f"{path}.{name}" if path else name):
                continue
            seen.add(id(parameter))
            units = granularity.units(shape)
            request = _request(
                target,
                index,
                clusters=granularity.clusters(shape),
                grain=parameter.numel() / max(units, 1),
                round_to=config.round_to if target.granularity == "out_channel" else 1,
            )
            part = Part(full, granularity)
            made.append(Selectable(full, (part,), target.criterion, request, target.normalize))
    return made


def _by_row(granularity: Granularity, module: nn.Module, rank: int) -> Granularity:
    """Return single weights that are compared among those of one output, and others as they are."""
    if granularity != Element() or rank < 2:
        return granularity
    if stores_transposed(module):
        return Element(apart=(1,))
    stacked = rank == 3 and not hasattr(module, "kernel_size")  # experts: one matrix each
    return Element(apart=(0, 1) if stacked else (0,))


def scored(
    selectable: Selectable, score: Tensor, share: float = 1.0, schedule: str = "constant"
) -> Request:
    """Return the selectable's request with its scores, for a share of the way to its goal."""
    request = selectable.request

    def part(value: float | None) -> float | None:
        return None if value is None else asked(schedule, value, share)

    return replace(
        request,
        score=score,
        sparsity=part(request.sparsity),
        threshold=None if request.threshold is None else request.threshold * share,
        min_sparsity=part(request.min_sparsity),
        max_sparsity=part(request.max_sparsity),
    )
