"""The hooks of a method, all optional, and the registry.

A method is a pydantic dataclass, whose fields are its settings.  A ``Pruner`` makes one for its run
(``Config(method="slim", method_options={"strength": 1e-4})``) and calls, in this order:

1. ``attach``, once, when all is set up and nothing is masked;
2. ``before``, before each step of an optimizer of the user's; then ``penalty``: the gradient of
   what it returns is added to the gradients of the parameters, which are final by then;
3. ``step``, at the start of each ``Pruner.step()``: learn from what the last backward left;
4. ``scores``, whenever the pruner decides; and ``complete``, on the masks that come of it;
5. ``pruned``, when the masks of a pruning step are on;

and ``state_dict`` and ``load_state_dict`` with the pruner's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, cast

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import is_pydantic_dataclass
from torch import Tensor
from torch.optim import Optimizer

from secateur.errors import ConfigError, did_you_mean
from secateur.registry import F, Registry, name_of
from secateur.settings import problems_in
from secateur.types import Masks

from .run import Run


class Method:
    """A method without any hook, to derive others from; all hooks are optional.

    A ``Pruner`` makes one for its run and calls ``attach`` once; ``before`` and ``penalty`` before
    each step of an optimizer; ``step`` at the start of each step of its own; ``scores`` and
    ``complete`` whenever it decides; ``pruned`` when new masks are on.

    >>> from pydantic.dataclasses import dataclass
    >>> @methods.register
    ... @dataclass(kw_only=True)
    ... class Plain(Method):
    ...     "A pull of each weight towards zero."
    ...     strength: float = 0.1
    ...     def attach(self, run): self.run = run
    ...     def penalty(self):
    ...         return self.strength * sum(p.abs().sum() for p in self.run.model.parameters())
    >>> named("plain", {"strength": 0.5}).strength
    0.5
    >>> del methods._functions["plain"]
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the config that the method changes the defaults of."""
    continuous: ClassVar[bool] = False
    """Decide at every call of ``step`` from the first pruning step on, not only when one is due."""
    learns_masks: ClassVar[bool] = False
    """Masks are differentiable: see ``secateur.masks.masking.put_on``."""

    def attach(self, run: Run) -> None:
        """Prepare for a run; ``run.model``, ``.selectables`` and ``.config`` are set."""

    def before(self, optimizer: Optimizer) -> None:
        """Look at an optimizer that holds parameters of the model and is about to step."""

    def penalty(self) -> Tensor | None:
        """Return a differentiable scalar that is added to the user's loss, or None."""
        return None

    def step(self, *, learning_rate_share: float, loss_scale: float) -> None:
        """Learn from the last backward.

        Args:
            learning_rate_share: the user's learning rate divided by its peak.
            loss_scale: what gradients that no optimizer has seen are multiplied by.
        """

    def scores(self) -> Mapping[str, Tensor]:
        """Return scores by name of selectable; those that are absent have the criterion's."""
        return {}

    def complete(self, masks: Masks) -> Masks:
        """Return the masks that go on: those given, or more."""
        return masks

    def pruned(self) -> None:
        """Go on from a pruning step: its masks are on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: nested dicts of tensors, numbers and text."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""


STRICT = ConfigDict(strict=True, extra="forbid")


class MethodRegistry(Registry):
    """Methods by the name of their class; see ``name_of``."""

    def register(self, function: F) -> F:
        """Register a class under its name in small letters.

        Raises:
            ValueError: it is no subclass of ``Method``, its settings are not declared by pydantic's
                ``dataclass``, one of its methods is nearly called as a hook, or the name is taken.
        """
        name = name_of(getattr(function, "__name__", repr(function)))
        if not (isinstance(function, type) and issubclass(function, Method)):
            raise ValueError(f"method {name!r} must be a class derived from secateur.Method")
        if not is_pydantic_dataclass(cast(type, function)):
            raise ValueError(
                f"method {name!r} must be a pydantic.dataclasses.dataclass, whose fields are its "
                "settings: put @dataclass(kw_only=True) below @methods.register"
            )
        hooks = [hook for hook in vars(Method) if not hook.startswith("_")]
        for own in {name for name in vars(function) if name[0] != "_"} - set(hooks):
            if callable(vars(function)[own]) and (hint := did_you_mean(own, hooks)):
                raise ValueError(f"method {name!r}: nothing calls {own}().{hint}")
        self.register_as(name)(function)
        return function


methods = MethodRegistry("method")


def named(name: str | None, options: Mapping[str, Any]) -> Method:
    """Return the method of that name with settings; without a name, one that does nothing.

    Raises:
        UnknownNameError: there is no such method.
        ConfigError: an option is unknown or out of range.

    >>> named("slim", {"strenght": 1e-3})
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: method_options: unknown key 'strenght'. Did you mean 'strength'?
    """
    if name is None:
        if options:
            raise ConfigError("method_options are given, but no method")
        return Method()
    kind = methods[name]
    known = [field.name for field in fields(cast(Any, kind))]
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ConfigError(
            *(f"method_options: unknown key {k!r}.{did_you_mean(k, known)}" for k in unknown)
        )
    try:
        return cast(Method, kind(**options))
    except ValidationError as error:
        found = problems_in(error, known)
        raise ConfigError(*(f"method_options.{at}: {problem}" for at, problem in found)) from None
