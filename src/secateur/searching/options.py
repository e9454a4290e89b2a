"""How a search is conducted, beside what is pruned and tried."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from secateur.errors import ConfigError
from secateur.runtime.sameness import problem_of_same

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Options:
    """How a search is conducted; ``secateur.search`` takes each field by its name.

    Attributes:
        name: of the study in its storage.
        direction: "minimize" where lower values are better.
        per: draw a share for each "group", or for each "block" of them.
        sampler_options: of the sampler, by name.
        pruner: Optuna's, which stops a trial at a bad number that ``evaluate`` yields; by default
            ``MedianPruner()``.
        heartbeat: seconds between two signs of life.  Who misses four of them is taken for dead,
            and its trial is made again; of a process of the same machine it is known at once.
        same: of ``GIVEN``, what counts as the same as when the study was begun though it is other,
            as ["evaluate"] where only what it prints is.

    >>> Options(direction="up")
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: direction must be 'maximize' or 'minimize', got 'up'
    """

    name: str = "search"
    direction: Direction = "maximize"
    per: Literal["group", "block"] = "group"
    sampler_options: Mapping[str, Any] = field(default_factory=dict)
    pruner: BasePruner | None = None
    heartbeat: float = 30.0
    same: Sequence[str] = ()

    def __post_init__(self) -> None:
        problems = []
        if type(self.name) is not str or not 0 < len(self.name) <= 200:
            problems.append(f"name must be of 1 to 200 letters, got {self.name!r}")
        for word, known in (("direction", DIRECTIONS), ("per", ("group", "block"))):
            if getattr(self, word) not in known:
                said = " or ".join(map(repr, known))
                problems.append(f"{word} must be {said}, got {getattr(self, word)!r}")
        if type(self.heartbeat) not in (int, float) or not 0 < self.heartbeat <= DAY:
            problems.append(f"heartbeat must be seconds above 0, a day at most: {self.heartbeat!r}")
        if self.pruner is not None and not hasattr(self.pruner, "prune"):
            problems.append(f"pruner must be one of optuna.pruners, got {self.pruner!r}")
        if not isinstance(self.sampler_options, Mapping):
            problems.append(f"sampler_options must be a dict, got {self.sampler_options!r}")
        if problem := problem_of_same(self.same, GIVEN):
            problems.append(problem)
        if problems:
            raise ConfigError(*problems)

    @classmethod
    def of(cls, settings: MutableMapping[str, Any]) -> Options:
        """Return the options among settings, and take them out of these."""
        names = [each.name for each in fields(cls) if each.name in settings]
        return cls(**{name: settings.pop(name) for name in names})


GIVEN = ("data", "evaluate", "train", "loss")
"""What decides the values of trials, beside settings: a study goes on with the same only."""
DIRECTIONS = ("maximize", "minimize")
DAY = 86_400


def check(trials: object, evaluate: object, train: object) -> None:
    """Raise a ConfigError where there is no number of trials, or what is called is no function."""
    problems = []
    if type(trials) is not int or trials < 0:
        problems.append(f"trials must be a whole number, 0 or more, got {trials!r}")
    if not callable(evaluate):
        problems.append(f"evaluate must be a function of a model, got {type(evaluate).__name__}")
    if train is not None and not callable(train):
        problems.append(f"train must be a function of a model, got {type(train).__name__}")
    if problems:
        raise ConfigError(*problems)


SECRET = re.compile(r"(?i)([?&](?:\w*password|passfile|token|secret)=)[^&#]*")


def without_password(place: str) -> str:
    """Return a path or URL as it may be shown.

    >>> without_password("postgresql://me:secret@host/studies"), without_password("a.journal")
    ('postgresql://me:***@host/studies', 'a.journal')
    >>> without_password("postgresql://me@/studies?host=here&password=secret&port=1")
    'postgresql://me@/studies?host=here&password=***&port=1'
    """
    return SECRET.sub(r"\1***", re.sub(r"(?<=://)([^/@:]*):.*@", r"\1:***@", place))
