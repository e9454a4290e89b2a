"""What to prune, by how much and how: frozen values, checked whole, every problem told at once.

>>> config = Config(sparsity=0.5, targets=[Target(names=["layer1.*"], sparsity=0.3)])
>>> config.resolved_targets()[0].sparsity
0.3
>>> Config(sparsity=30, criterion="fpmg", stepz=4)  # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
secateur.errors.ConfigError: criterion: unknown criterion 'fpmg'. Did you mean 'fpgm'? ...
sparsity: must be less than or equal to 1, got 30. Did you mean 0.3?
unknown key 'stepz'. Did you mean 'steps'?
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .costs import COSTS, amount_of
from .errors import ConfigError, UnknownNameError, did_you_mean
from .graph.kinds import EVERY_KIND, kinds
from .registry import Registry
from .runtime.io import write_text
from .scoring.allocations import allocators
from .scoring.criteria import criteria
from .scoring.granularity import FORMS
from .scoring.schedules import problem as schedule_problem
from .scoring.schedules import schedules
from .settings import (
    GOALS,
    Count,
    Names,
    Number,
    Share,
    goal_problems,
    granularity_from,
    pattern_share,
    problems_in,
    read_settings,
)

SHARES = ("sparsity", "threshold")
"""Goals that a target may have instead of a budget."""


def _known(registry: Registry) -> AfterValidator:
    def check(name: str) -> str:
        try:
            registry[name]
        except UnknownNameError as error:
            raise ValueError(str(error)) from None
        return name

    return AfterValidator(check)


def _known_kinds(names: tuple[str, ...]) -> tuple[str, ...]:
    if names == (EVERY_KIND,):
        return tuple(sorted(kinds))
    for name in names:
        try:
            kinds[name]
        except UnknownNameError as error:
            raise ValueError(str(error)) from None
    return names


def _stored_granularity(value: object) -> object:
    granularity_from(value)
    return tuple(value) if isinstance(value, list) else value


def _known_cost(name: str) -> str:
    names = ["channels", *sorted(COSTS)]
    if name not in names:
        raise ValueError(
            f"unknown cost {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."
        )
    return name


def _stored_budget(value: object) -> object:
    """Return amounts as the tuple that is stored; each is read once for its errors."""
    amounts = [value] if isinstance(value, str) else value
    if not isinstance(amounts, (list, tuple)):
        raise ValueError(f"must be an amount or a list of amounts, got {brief(value)}.")
    for amount in amounts:
        amount_of(amount)
    return tuple(amounts)


def _at(place: str, sentence: str) -> str:
    if sentence.startswith("unknown key"):  # the sentence names its place
        return sentence
    return f"{place}{sentence}" if sentence.startswith("[") else f"{place}: {sentence}"


class Target(BaseModel):
    """Some modules, and how they are pruned.  What is left unset comes from the Config around it.

    Lists may be given for tuples, and ints for floats; nothing else is converted.

    Raises:
        ConfigError: with one sentence for every problem.

    >>> Target(names=["layer?.*"], sparsity=0.5).sparsity
    0.5
    >>> Target(sparsty=0.5)
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: unknown key 'sparsty'. Did you mean 'sparsity'?

    See also:
        ``Config``, which holds targets.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    names: Names = Field((), description="shell patterns over module names; empty: all")
    types: Names = Field((), description="class names such as Conv2d; empty: all")
    exclude: Names = Field(
        (),
        description="shell patterns over modules, or parameters, whose outputs stay as they are",
    )
    exclude_types: Names = Field((), description="class names to leave alone, with all in them")
    what: Annotated[Names, AfterValidator(_known_kinds)] = Field(
        (),
        description=f"kinds of groups: {', '.join(sorted(kinds))}, or all of these; "
        "empty: all that are exact",
    )
    parameters: Names = Field(("weight",), description="not for granularity 'group'")
    criterion: Annotated[str, _known(criteria)] = Field(
        "l2", description="how much a weight matters; `secateur list` names all"
    )
    sparsity: Share | None = Field(None, description="share to remove")
    threshold: Number | None = Field(None, description="remove what scores less")
    min_sparsity: Share | None = Field(None, description="of every tensor or group, at least")
    max_sparsity: Share | None = Field(None, description="of every tensor or group, at most")
    granularity: Annotated[str | tuple[int, ...], BeforeValidator(_stored_granularity)] = Field(
        "group", description=f"what is removed as one: {', '.join(FORMS)}"
    )
    scope: Literal["local", "global"] = Field(
        "local", description="rank each tensor or group for itself, or all of them together"
    )
    normalize: Literal["none", "mean", "max", "sum", "gaussian", "output"] = Field(
        "mean",
        description="how scores of different tensors are made comparable; output: as shares of "
        "what a layer's outputs are added to, for criteria that are errors of outputs",
    )

    if not TYPE_CHECKING:  # editors and type checkers keep the fields as keywords

        def __init__(self, /, **settings):
            problems = self._contradictions(settings)
            try:
                super().__init__(**settings)
            except ValidationError as error:
                found = problems_in(error, type(self).model_fields)
                problems = [_at(place, sentence) for place, sentence in found] + problems
            if problems:
                raise ConfigError(*dict.fromkeys(problems))

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is frozen; use .replace({name}=...)")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Return the value that a plain dict describes."""
        if not isinstance(settings, Mapping):
            raise ConfigError(f"must be a dict of settings, got {brief(settings)}.")
        return cls(**{str(key): value for key, value in settings.items()})

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some settings changed, checked again."""
        return type(self)(**{**self._given(), **changes})

    def _given(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.model_fields_set}

    @classmethod
    def _contradictions(cls, settings: Mapping[str, Any]) -> list[str]:
        problems = goal_problems(settings)
        if settings.get("granularity") == "group" and "parameters" in settings:
            problems.append("'parameters' are not for granularity 'group', which takes them all.")
        if settings.get("what") and settings.get("granularity", "group") != "group":
            problems.append("'what' names kinds of groups, and is for granularity 'group' alone.")
        if settings.get("scope") == "global" and pattern_share(settings.get("granularity")):
            problems.append(f"granularity {settings['granularity']!r} cannot have a global scope.")
        return problems


def _stored_targets(value: object) -> object:
    """Return a tuple of Targets, made one by one so that all their problems are told."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of targets, got {brief(value)}.")
    made, problems = [], []
    for i, target in enumerate(value):
        try:
            if isinstance(target, Config):
                raise ConfigError("must be a Target, not a Config.")
            made.append(target if isinstance(target, Target) else Target.from_dict(target))
        except ConfigError as error:
            problems += [f"[{i}]: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(*problems)
    return tuple(made)


class Config(Target):
    """The defaults of all targets, and what holds for the whole run.

    Without ``targets`` the Config itself is the one target.  With them, what none selects stays as
    it is, and of several that match the last one counts: ``{}``, all of it, stands first.

    Raises:
        ConfigError: with one sentence for every problem.

    >>> config = Config(sparsity=0.5, targets=[{}, {"names": ["stem"], "sparsity": 0.1}])
    >>> [target.sparsity for target in config.resolved_targets()]
    [0.5, 0.1]
    >>> config.replace(criterion="l1").criterion
    'l1'

    See also:
        ``prune`` and ``Pruner``, which take one; ``secateur list`` names what settings accept.
    """

    targets: Annotated[tuple[Target, ...], BeforeValidator(_stored_targets)] = ()
    schedule: Annotated[str, _known(schedules)] = Field(
        "constant", description="how the sparsity grows over the steps"
    )
    start: int = Field(0, ge=0, description="calls of step() before pruning begins (warm-up)")
    steps: Count = Field(1, description="pruning steps until the goal")
    every: Count = Field(1, description="calls of step() for one pruning step")
    method: str | None = Field(None, description="a name in secateur.methods")
    method_options: dict[str, bool | int | float | str | dict[str, float]] = Field(
        default_factory=dict, description="settings of the method, as its docstring lists them"
    )
    of: Annotated[str, AfterValidator(_known_cost)] = Field(
        "channels",
        description=f"what the sparsity is a share of: channels, {', '.join(sorted(COSTS))}",
    )
    budget: Annotated[tuple[str, ...], BeforeValidator(_stored_budget)] = Field(
        (),
        description="amounts to be met, in place of a sparsity: '12 ms', '300 M MACs', '20 MB', or "
        "'80 % params' of the dense model's",
    )
    latency_table: str | None = Field(
        None, description="JSON file of measured latencies of operations: read, and added to"
    )
    allocate: Annotated[str, _known(allocators)] = Field(
        "uniform",
        description="who loses how much under the goal; `secateur list` names all ways",
    )
    allocation: dict[str, Share] = Field(
        default_factory=dict,
        description="share to remove of each group or tensor, by its name or a shell pattern; goes "
        "over the sparsity, without which the rest stays whole",
    )
    alike: bool = Field(
        False,
        description="to params or macs all groups lose the same share; else widths inside of "
        "blocks go first, and what blocks share when half of these are gone",
    )
    round_to: Count = Field(1, description="kept counts are multiples of this")
    uniform: bool = Field(False, description="the same kept count for all groups of one kind")
    grid: Literal["auto", "fine", "coarse"] = Field(
        "auto",
        description="of axes that share a grid: whole heads of attention, and widths elsewhere "
        "(auto); widths (fine); or what takes most with it (coarse)",
    )
    inexact: bool = Field(False, description="also prune groups whose removal is inexact")
    strict: bool = Field(
        True, description="a goal that cannot be met is an error; else as much as can go goes"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of what falls by chance")

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # fields may hold a dict

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the config in a YAML, JSON or TOML file; ConfigError names the file."""
        settings = read_settings(path)
        try:
            return cls.from_dict(settings)
        except ConfigError as error:
            raise ConfigError(*(f"{path}: {problem}" for problem in error.problems)) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the settings that were given as JSON; the file is whole, or as it was before."""
        path = Path(path)
        if path.suffix != ".json":
            raise ConfigError(f"{path}: a config is saved as JSON; give a name that ends in .json.")
        text = json.dumps(self.model_dump(mode="json", exclude_unset=True), indent=2)
        write_text(path, text + "\n")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Self:
        """Return a copy in which fields that were not given have other defaults.

        >>> Config(sparsity=0.5).with_defaults({"scope": "global", "sparsity": 0.1}).sparsity
        0.5
        """
        return type(self)(**{**defaults, **self._given()})

    def resolved_targets(self) -> tuple[Target, ...]:
        """Return the targets with every unset field taken from this config.

        A target with a goal of its own (sparsity, threshold, or an n:m granularity, which is one)
        does not take the other goals.

        >>> Config(sparsity=0.5, targets=[{"threshold": 0.1}]).resolved_targets()[0].sparsity
        >>> Config(granularity="2:4").resolved_targets()[0].sparsity
        0.5
        """
        resolved = []
        for target in self.targets or (Target(),):
            merged = _inherited(self._given(), target._given())
            exact = pattern_share(merged["granularity"])
            resolved.append(Target(**(merged if exact is None else {**merged, "sparsity": exact})))
        return tuple(resolved)

    @classmethod
    def _contradictions(cls, settings: Mapping[str, Any]) -> list[str]:
        targets = settings.get("targets") or ()
        budgets = [*_budget_problems(settings), *_sharing_problems(settings)]
        budgets += _schedule_problems(settings)
        if not targets or not isinstance(targets, (list, tuple)):
            return [*super()._contradictions({"granularity": "group", **settings}), *budgets]
        general = super()._contradictions(settings)
        problems = [*general, *budgets]
        for i, target in enumerate(targets):
            own = target._given() if isinstance(target, Target) else target
            if isinstance(own, Mapping):
                found = super()._contradictions(_inherited(settings, own))
                problems = problems + [f"targets[{i}]: {p}" for p in found if p not in general]
        return problems


def _budget_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return what contradicts a budget among raw settings."""
    of, budget = settings.get("of", "channels"), settings.get("budget") or ()
    if not budget:
        return []
    shares = [goal for goal in SHARES if settings.get(goal) is not None]
    if shares and of == "channels":
        return [f"'budget' and {shares[0]!r} are both given; keep one, or say of=… besides."]
    if problems := [] if of != "channels" else _shares_of_targets(settings.get("targets")):
        return problems
    if shares or not isinstance(of, str) or of not in COSTS:
        return []
    try:
        for amount in [budget] if isinstance(budget, str) else budget:
            amount_of(amount, of)
    except ConfigError as error:
        return list(error.problems)
    except TypeError:
        return []  # the field says what is wrong
    return []


def _sharing_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return that one ranking of all and shares of each contradict each other."""
    allocate, targets = settings.get("allocate"), settings.get("targets")
    if not isinstance(allocate, str) or allocate not in allocators:
        return []  # the field says what is wrong
    if allocators.facts[allocate].plain:
        return []
    every = [settings, *(targets if isinstance(targets, (list, tuple)) else ())]
    given = [each._given() if isinstance(each, Target) else each for each in every]
    if not any(isinstance(each, Mapping) and each.get("scope") == "global" for each in given):
        return []
    return [
        f"scope='global' ranks positions of all groups together, and allocate={allocate!r} gives "
        "each group a share of its own; keep one."
    ]


def _schedule_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return that a schedule leads somewhere else than to the goal."""
    schedule, steps = settings.get("schedule"), settings.get("steps", 1)
    if not isinstance(schedule, str) or schedule not in schedules:
        return []  # the field says what is wrong
    if not isinstance(steps, int) or steps < 1:
        return []
    found = schedule_problem(schedule, steps)
    return [found] if found else []


def _shares_of_targets(targets: object) -> list[str]:
    """Return which targets have shares of their own, which are no part of an amount."""
    found = []
    for i, target in enumerate(targets if isinstance(targets, (list, tuple)) else ()):
        own = target._given() if isinstance(target, Target) else target
        shares = [g for g in SHARES if isinstance(own, Mapping) and own.get(g) is not None]
        if shares:
            found.append(
                f"'budget' and targets[{i}].{shares[0]} are both given: the budget is shared out "
                "among all targets. What single groups lose besides is said by allocation={name: "
                "share}, or within bounds by min_sparsity and max_sparsity."
            )
    return found


def _inherited(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    taken = {key: defaults[key] for key in Target.model_fields if key in defaults}
    if pattern_share(own.get("granularity")) is not None:
        taken = {key: taken[key] for key in taken if key not in (*GOALS, "scope")}
    elif own.get("sparsity") is not None or own.get("threshold") is not None:
        taken = {key: taken[key] for key in taken if key not in SHARES}
    merged = {"granularity": "group", **taken, **own}
    if merged["granularity"] == "group" and "parameters" not in own:
        merged.pop("parameters", None)
    return merged
