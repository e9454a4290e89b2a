"""What all of NNI's pruners do: its methods, its format of masks, and the training in between."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any, Self

from torch import Tensor, nn

from secateur.config import Config
from secateur.errors import ConfigError, MaskError, did_you_mean
from secateur.masks import masking
from secateur.nni.activations import ActivationMasks
from secateur.nni.config_list import parse, resolve
from secateur.nni.evaluators import Evaluator
from secateur.nni.masks import NniMasks, boolean, product
from secateur.nni.targets import full_name
from secateur.runtime.undo import Undo, outermost
from secateur.types import call_arguments

from .engine import Engine


class Pruner:
    """Base of NNI's pruners: a subclass names its criterion, or says more in ``settings``.

    Args:
        model: any module; masks are put on it, its class and its paths stay.
        config_list: NNI's configuration, see ``secateur.nni.config_list``.
        evaluator: trains the model, where that is needed; its ``dummy_input`` is what the model
            runs on for targets that are inputs or outputs.
        existed_wrappers: accepted for NNI's signature, and not needed.

    Attributes:
        notes: what a user should know about the masks made last.

    Raises:
        ConfigError: the config_list is wrong or does not fit the model; all problems at once.
    """

    criterion = ""
    default_granularity = "out_channel"
    trains = False

    def __init__(
        self,
        model: nn.Module,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
        existed_wrappers: Any = None,
    ):
        self.bound_model = model
        self.evaluator = evaluator
        self.config_list = config_list
        entries = parse(config_list)
        self.targets = resolve(entries, model, default_granularity=self.default_granularity)
        problems = [
            f"entry {t.entry}: {t.name!r} has no goal; give sparse_ratio or sparse_threshold."
            for t in self.targets
            if t.align is None and t.sparse_ratio is None and t.sparse_threshold is None
        ]
        if self.trains and not hasattr(evaluator, "train"):
            problems.append(f"{type(self).__name__} trains the model: give it an evaluator.")
        if problems:
            raise ConfigError(*problems)
        self.activations = ActivationMasks(model, [t for t in self.targets if t.shape is None])
        self.masks: dict[str, Tensor] = {}  # full target name → bool, True is kept
        self.notes: list[str] = []
        self._given: dict[str, Tensor] = {}  # masks from which nothing comes back
        self._fused: Pruner | None = None

    @classmethod
    def from_compressor(
        cls,
        compressor: Pruner,
        new_config_list: list[dict[str, Any]],
        evaluator: Evaluator | None = None,
    ) -> Self:
        """Return a pruner on the same model whose masks multiply with those of ``compressor``.

        If that one has no masks yet, ``compress`` makes them too; all train together.
        """
        return cls._beside(compressor, new_config_list, evaluator)

    @classmethod
    def _beside(
        cls,
        compressor: Pruner,
        config_list: list[dict[str, Any]],
        evaluator: Evaluator | None,
        *arguments: Any,
    ) -> Self:
        evaluator = evaluator if evaluator is not None else compressor.evaluator
        pruner = cls(compressor.bound_model, config_list, evaluator, *arguments)
        pruner._fused = compressor
        return pruner

    def settings(self) -> dict[str, Any]:
        """Return what ``secateur.Config`` should say: criterion, method, schedule."""
        return {"criterion": self.criterion}

    @property
    def length(self) -> int:
        """How many optimizer steps it takes until the goal is reached."""
        config = Config(**self.settings())
        return config.start + config.steps * config.every

    # -- NNI's methods ---------------------------------------------------------------------------

    def compress(
        self, max_steps: int | None = None, max_epochs: int | None = None
    ) -> tuple[nn.Module, NniMasks]:
        """Make the masks, put them on the model, and return both.

        Args:
            max_steps: optimizer steps to train for, by default as many as the masks need; more
                train on with the masks on.
            max_epochs: epochs to train for; the first of both limits that is met ends it.

        Raises:
            ConfigError: ``max_steps`` is too small, or the targets cannot be scored.
            ScoreError: a weight is NaN or infinite.
            Exception: whatever the training raised; the model is then without masks.
        """
        due = [each for each in self._family() if each is self or not each.masks]
        for each in reversed(due):
            if not each.trains:
                each.generate_masks()
        training = [each for each in due if each.trains]
        on = {} if training else masking.masks_on(self.bound_model)
        with Undo(lasting=True) as undo:
            undo(partial(masking.put_on, self.bound_model, on))
            undo(partial(self._take_off, bake=False))
            if training:
                self._train(training, max_steps, max_epochs)
            self.wrap_model()
            return self.bound_model, self.get_masks()

    def generate_masks(self) -> NniMasks:
        """Compute the masks for the whole goal from what is known now, and return them.

        Raises:
            ScoreError: a weight is NaN or infinite.
            ConfigError: the targets are scored on data, and there is none.
        """
        with self._bare_model():
            engine = self._engine()
            engine.release()
            if engine.method.learns_masks:
                raise ConfigError(f"{type(self).__name__} learns its masks: call compress()")
            self.masks = dict(engine.decide())
            self.notes = engine.notes
        return self.get_masks()

    def get_masks(self) -> NniMasks:
        """Return ``{module: {target: 0/1 float tensor}}``.

        None stands for a target without a mask yet, and for the bias that a layer does not have.
        """
        found: NniMasks = {}
        for each in reversed(self._family()):
            for target in each.targets:
                found.setdefault(target.module, {}).setdefault(target.target, None)
        for name, mask in product(each.masks for each in self._family()).items():
            module, _, target_name = name.rpartition(".")
            found[module][target_name] = mask.float()
        for module, by_target in found.items():
            for name, parameter in self.bound_model.get_submodule(module)._parameters.items():
                if parameter is None:
                    by_target.setdefault(name, None)
        return found

    def update_masks(self, masks: Mapping[str, Mapping[str, Tensor | None]]) -> None:
        """Take masks made elsewhere, in NNI's format; if masks are on, these take their place.

        Raises:
            MaskError: a module or target is not one of this pruner's, or a shape does not fit.
        """
        known = {t.name: t for each in self._family() for t in each.targets}
        fresh: dict[str, Tensor] = {}
        for module, by_target in masks.items():
            for name, mask in by_target.items():
                full = full_name(module, name)
                if mask is None:
                    continue
                if full not in known:
                    raise MaskError(f"{full!r} is no target here.{did_you_mean(full, known)}")
                fresh[full] = boolean(known[full], mask)
        for pruner in self._family():
            own = [t.name for t in pruner.targets if t.name in fresh]
            pruner.masks |= {name: fresh.pop(name) for name in own}
        if masking.is_masked(self.bound_model) or self.activations.on:
            self.wrap_model()

    def wrap_model(self) -> None:
        """Put the masks on: weights as ``secateur.masks`` does, inputs and outputs by hooks."""
        outermost(self._wrap)

    def _wrap(self) -> None:
        for pruner in self._family():
            applied = {t.name for t in pruner.activations.targets if t.applied}
            pruner.activations.masks = {n: m for n, m in pruner.masks.items() if n in applied}
            pruner.activations.put_on()
        masking.put_on(self.bound_model, self.parameter_masks())

    def unwrap_model(self) -> nn.Module:
        """Take the masks off and return the bare model; masked weights stay zero."""
        self._take_off(bake=True)
        return self.bound_model

    def parameter_masks(self) -> dict[str, Tensor]:
        """Return the masks that are put on parameters, by full name, True is kept.

        Those of fused pruners are included, and those of targets with ``bypass`` are not.
        """
        return product(each._parameter_masks() for each in self._family())

    def _parameter_masks(self) -> dict[str, Tensor]:
        applied = {t.name for t in self.targets if t.shape is not None and t.applied}
        return {name: mask for name, mask in self.masks.items() if name in applied}

    # -- how -------------------------------------------------------------------------------------

    def _family(self) -> list[Pruner]:
        """Return this pruner and those that it was made from."""
        return [self, *(self._fused._family() if self._fused else ())]

    def _take_off(self, *, bake: bool) -> None:
        for pruner in self._family():
            pruner.activations.take_off()
        masking.take_off(self.bound_model, bake=bake)

    @contextmanager
    def _bare_model(self) -> Iterator[None]:
        """Within it no mask is on; those that were are on again after it."""
        on = masking.masks_on(self.bound_model)
        with Undo() as undo:
            undo(partial(masking.put_on, self.bound_model, on))
            undo(partial(masking.take_off, self.bound_model, bake=False))
            masking.take_off(self.bound_model, bake=False)
            yield

    def _engine(self, family: Sequence[Pruner] = ()) -> Engine:
        def others() -> dict[str, Tensor]:
            return product(each._parameter_masks() for each in family if each is not self)

        return Engine(
            self.bound_model,
            self.targets,
            self.settings(),
            self.activations,
            self._example,
            others,
            self._given,
        )

    def _example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        example = getattr(self.evaluator, "dummy_input", None)
        if example is None:
            names = ", ".join(repr(t.name) for t in self.activations.targets)
            raise ConfigError(
                f"{names}: inputs and outputs are scored on data; give an evaluator with a "
                "dummy_input"
            )
        return call_arguments(example)

    def _train(self, pruners: list[Pruner], max_steps: int | None, max_epochs: int | None) -> None:
        """Train the model while the given pruners of the family decide on their masks."""
        evaluator = pruners[0].evaluator
        assert evaluator is not None  # as their constructor saw to
        needed = max(each.length for each in pruners)
        if max_steps is None and max_epochs is None:
            max_steps = needed
        if max_steps is not None and max_steps < needed:
            raise ConfigError(
                f"max_steps={max_steps} is too few: the masks reach their goal after {needed} steps"
            )
        before = {each: each.masks for each in pruners}
        engines: dict[Pruner, Engine] = {}

        def step() -> dict[str, float]:
            metrics: dict[str, float] = {}
            for each, engine in engines.items():
                metrics |= engine.step()
                each.masks, each.notes = dict(engine.masks), engine.notes
            return metrics

        def give_up() -> None:
            for each, masks in before.items():
                each.masks = masks
                each.activations.gates = {}
            self._take_off(bake=False)
            for engine in engines.values():
                engine.release()

        with Undo(lasting=True) as undo:
            undo(give_up)
            self._take_off(bake=False)
            for each in pruners:
                each.masks = dict(each._given)
                engines[each] = each._engine(self._family())
            learned = any(engine.method.learns_masks for engine in engines.values())
            masking.put_on(self.bound_model, self.parameter_masks(), differentiable=learned)
            for each in self._family():
                each.activations.put_on()
            evaluator.train(self.bound_model, step, max_steps=max_steps, max_epochs=max_epochs)
        for each, engine in engines.items():
            engine.release()
            if engine.calls < each.length:
                warnings.warn(
                    f"the training ended after {engine.calls} optimizer steps, and "
                    f"{type(each).__name__} reaches its goal after {each.length}",
                    stacklevel=3,
                )


def at_least_one(name: str, value: object) -> int:
    """Return a number of steps, as ``at_least`` does."""
    return at_least(1, name, value)


def at_least(least: int, name: str, value: object) -> int:
    """Return a number of steps.

    Raises:
        ConfigError: it is no whole number, or below ``least``.
    """
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return value


def not_negative(name: str, value: object) -> float:
    """Return a weight of a penalty.

    Raises:
        ConfigError: it is no number, or below 0.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < inf:  # type: ignore[operator]
        raise ConfigError(f"{name} must be a number of at least 0, got {value!r}.")
    return float(value)  # type: ignore[arg-type]
