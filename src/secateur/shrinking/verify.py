"""Is the smaller model the masked model?  Both run on the same inputs, and the outputs compare.

They are computed in float64 on the CPU where that is not too much, whatever the model's own types,
and each number is compared with the size of its own row and column of the output.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from secateur.errors import ShrinkError
from secateur.graph.outputs import results_of, taken_back, tensors_of
from secateur.runtime.forward import evaluating, full_precision, undisturbed
from secateur.runtime.precise import Precisely, held_precisely
from secateur.runtime.quiet import quiet
from secateur.runtime.undo import in_mode
from secateur.structure import Structure
from secateur.types import Example, Masks, call_arguments, factors_of

from .aside import Aside
from .comparable import check_comparable
from .difference import difference, resolution
from .locate import Calls, module_outputs
from .trials import Trial, Way, trials

ById = Mapping[int, Sequence[Tensor]]
"""Masks by the ids of their parameters, each as factors that broadcast to it."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
MOST_BYTES = 2**31  # of parameters, and of activations, in float64
FRUGAL_BYTES = 2**27  # of parameters in float64: more are converted as they are read
MOST_MACS = 4e10  # of a forward in float64
FAR = 100  # times what roundings did before is not looked at again
NOISES = 2  # runs whose roundings are others
COARSEST = 5e-2  # at most, where a model computes in a coarse type and in no other


@dataclass(frozen=True)
class Precision:
    """What a check computes in: ``dtype`` at least, on a device or where each tensor is.

    Without a ``dtype`` it is what the model itself computes in.  ``why`` it is not float64.
    ``frugal``: parameters are converted, and masked, where they are read, so that there is no copy
    of all of them; else they hold their values in that type meanwhile.
    """

    dtype: torch.dtype | None
    device: torch.device | None = None
    why: str = ""
    frugal: bool = False

    def __str__(self) -> str:
        return f"{self.name}, because {self.why}" if self.why else self.name

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.") if self.dtype else "the model's own types"

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.dtype or torch.float32]

    def mode(
        self, noise: torch.Generator | None = None, masks: ById | None = None
    ) -> Precisely | None:
        """Return what makes operations compute so, if anything must."""
        nothing = self.dtype is None and noise is None and not masks
        return None if nothing else Precisely(self.dtype, self.device, noise, masks)

    def held(self, model: nn.Module, masks: ById) -> list[Tensor]:
        """Return the tensors that hold other values meanwhile: in another type, or masked."""
        parameters = list(model.parameters())
        if self.frugal:
            parameters = [p for p in parameters if p.ndim < 2]  # a convolution checks its bias
        if self.device:
            return [*parameters, *model.buffers()]
        return [p for p in parameters if id(p) in masks]


def precisions(structure: Structure) -> list[Precision]:
    """Return what a check of this model may compute in, the finest first."""
    cost = structure.cost()
    large = max(8 * cost.params, 2 * cost.peak_bytes) > MOST_BYTES or cost.macs > MOST_MACS
    every = [Precision(torch.float32), Precision(None)]
    if large:
        every = [replace(each, why="it is large") for each in every]
    else:
        every.insert(0, Precision(torch.float64, torch.device("cpu")))
    if 8 * cost.params > FRUGAL_BYTES:
        every.insert(0, replace(every[0], frugal=True))
    return every


@dataclass(frozen=True)
class Verification:
    """How far the smaller model's outputs are from the masked model's.

    ``difference`` is the largest ``|a - b|`` ÷ the largest ``|a|`` of the same column, over all
    outputs, inputs and dimensions but the first; ``exact`` says that no group is inexact, so that
    it must be at most ``tolerance``.  ``tried`` names the inputs; ``refused`` those that the masked
    model did not take, nor others in their place, with its error; ``precision`` what both computed
    in, and why not float64.

    >>> from secateur import prune
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> checked = prune(net, torch.randn(1, 8), sparsity=0.5).verification
    >>> checked.exact, checked.passed
    (True, True)
    """

    difference: float
    tolerance: float
    exact: bool
    inputs: int
    precision: str = "float64"
    tried: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    worst: str = ""  # of those tried: where the difference is largest
    blind: str = ""  # why a difference could not be seen: "empty" outputs, or "all the same"
    partly: str = ""  # in which outputs alone it could not

    @property
    def passed(self) -> bool:
        return not self.exact or self.difference <= self.tolerance

    def __str__(self) -> str:
        kind = "exact" if self.exact else "inexact, as reported"
        if self.exact and self.tolerance > max(TOLERANCE.values()):
            kind = f"exact as far as roundings allow to see: up to {self.tolerance:.0e}"
        many = f"{self.inputs} input{'s' * (self.inputs != 1)}"
        said = f"outputs differ by {self.difference:.1e} relative on {many} ({kind}), "
        return f"{said}in {self.precision}"


@dataclass
class Expected:
    """What the masked model computes on the inputs that it takes."""

    ways: list[Way] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Check:
    """Compares models with one that was masked: on the same inputs, equally precisely."""

    def __init__(self, structure: Structure, example: Example):
        self.model = structure.model
        self.trials = trials(example, structure)
        self.precisions = precisions(structure)  # one, as soon as one was seen to do
        self.calls = 2 if structure.inferred.recording.stateful else 1
        self.aside = structure.inferred.recording.aside
        self._levels: dict[str, float] = {}  # how far roundings move the outputs of each

    def expect(
        self, model: nn.Module, only: Sequence[Trial] = (), masks: Masks | None = None
    ) -> Expected:
        """Run a masked model on all trials, or on the example and some.

        Args:
            model: with its masks multiplied in, but for ``masks``.
            only: the trials besides the example; nothing is all of them.
            masks: of parameters that are not masked yet.

        Raises:
            ShrinkError: it does not take the example.
        """
        while True:
            precision, *coarser = self.precisions
            try:
                with ready(model, precision, masks) as read:
                    some = [self.trials[0], *(only or self.trials[1:])]
                    found = self._expected(model, some, read)
                self.precisions = [precision]
                return found
            except ShrinkError as error:
                if not coarser:
                    raise
                why = f"it does not run in {precision.name} ({said(error.__cause__)})"
                self.precisions = [replace(each, why=why) for each in coarser]

    def _expected(self, model: nn.Module, some: Sequence[Trial], read: ById) -> Expected:
        found = Expected()
        for trial in some:
            refused: list[str] = []
            for way in trial:
                try:
                    outputs = self.run(model, way, masks=read)
                except Exception as error:  # the user's forward may raise anything
                    if trial is self.trials[0]:
                        raise ShrinkError(
                            f"{self.model} does not run on the example once it is masked: "
                            f"{said(error)}"
                        ) from error
                    refused.append(f"{way.name} ({said(error)})")
                else:
                    if trial is self.trials[0]:
                        check_comparable(way.make(), outputs)
                    found.ways.append(way)
                    found.outputs.append(outputs)
                    break
            else:  # one that was made up is no news where another of its kind does
                found.refused += refused
        return found

    def compare(
        self,
        model: nn.Module,
        expected: Expected,
        *,
        exact: bool,
        watching: TorchDispatchMode | None = None,
    ) -> Verification:
        """Run another model on the same inputs, and say how far its outputs are.

        Args:
            watching: sees the operations on the first of them.

        Raises:
            ShrinkError: it does not run on one that the masked model takes.
        """
        precision = self.precision
        worst, allowed, where = 0.0, precision.tolerance, expected.ways[0].name
        failed = False
        with ready(model, precision):
            for way, old in zip(expected.ways, expected.outputs, strict=True):
                try:
                    new = self.run(model, way, watching=watching)
                    watching = None
                except Exception as error:  # the user's forward may raise anything
                    on = f" (on {way.name})" if way is not expected.ways[0] else ""
                    message = f"the smaller {self.model} does not run: {said(error)}{on}"
                    raise ShrinkError(message, way.name) from error
                if len(new) != len(old):  # a memory of a layer that went, returned in a tuple
                    many = f"returns {len(new)} tensors, and the masked one {len(old)}"
                    raise ShrinkError(f"the smaller {self.model} {many}", way.name)
                gap = difference([old], [new])
                if exact and gap > precision.tolerance:
                    level, explained = self._resolved(model, way, old, new)
                    if not explained and not failed:  # only such a difference counts from now on
                        failed, worst = True, 0.0
                    elif explained and failed:
                        continue
                    allowed = max(allowed, level)
                if gap > worst:
                    worst, where = gap, way.name
        tried = tuple(way.name for way in expected.ways)
        allowed = precision.tolerance if failed else allowed
        made = worst, allowed, exact, len(tried), str(precision), tried, tuple(expected.refused)
        return Verification(*made, where, blind(expected.outputs), partly_blind(expected.outputs))

    def run(self, model: nn.Module, way: Way, **options: Any) -> list[Tensor]:
        """Return the outputs on one of the inputs; see ``once``."""
        how = {"calls": self.calls, "aside": self.aside, **options}
        return once(model, way.make(), self.precision, **how)

    def same(self, model: nn.Module, expected: Expected) -> bool:
        """Tell whether another model runs and computes the same."""
        try:
            return self.compare(model, expected, exact=True).passed
        except ShrinkError:
            return False

    @property
    def precision(self) -> Precision:
        """What it computes in, as far as was seen to do."""
        return self.precisions[0]

    def insist(self) -> bool:
        """Compute with copies of all parameters from now on; tell whether that is another thing."""
        frugal = self.precision.frugal
        self.precisions = [replace(self.precision, frugal=False)]
        return frugal

    def watched(self, model: nn.Module, way: Way, masks: Masks | None = None) -> Calls:
        """Return what each module of a model returns on one of the inputs."""
        with ready(model, self.precision, masks) as read, module_outputs(model) as calls:
            self.run(model, way, masks=read)
        return calls

    def _resolved(
        self, model: nn.Module, way: Way, old: Sequence[Tensor], new: Sequence[Tensor]
    ) -> tuple[float, bool]:
        """Return the difference that roundings alone may make, and whether they explain this one.

        Where a network amplifies them, two orders of one sum end far apart.
        """
        precision, level = self.precision, self._levels.get(way.name)
        if level is not None and difference([old], [new]) > FAR * level:
            return level, False  # far beyond what was seen to be possible
        if difference([new], [self.run(model, way)]) > 0:
            return 0.0, False  # it computes another thing each time, which no rounding explains
        moved = [
            self.run(model, way, noise=torch.Generator().manual_seed(i)) for i in range(NOISES)
        ]
        most = float("inf") if precision.dtype else COARSEST
        found = resolution(old, new, moved, precision.tolerance, most)
        self._levels[way.name] = found[0]
        return found


@contextmanager
def ready(model: nn.Module, precision: Precision, masks: Masks | None = None) -> Iterator[ById]:
    """Let a model's tensors be what a check computes in; no warning of its code is shown.

    Yields:
        The masks that are left to be put on where parameters are read, by their ids.
    """
    state = dict(model.named_parameters(remove_duplicate=False)) if masks else {}
    by_id = {id(state[name]): factors_of(masks or {}, name) for name in masks or ()}
    with quiet():
        mode = precision.mode(masks=by_id)
        with held_precisely(precision.held(model, by_id) if mode else (), mode or Precisely(None)):
            yield by_id if precision.frugal else {}


def once(
    model: nn.Module,
    example: Example,
    precision: Precision,
    noise: torch.Generator | None = None,
    seed: int = 0,
    masks: ById | None = None,
    watching: TorchDispatchMode | None = None,
    calls: int = 1,
    aside: bool = False,
) -> list[Tensor]:
    """Return a model's output tensors, in eval mode and without gradients.

    Args:
        watching: sees each operation as the model's code calls it.
        calls: how often it is called: one that remembers does something else the second time.
        aside: also return what the first call leaves anywhere, and the second does not read.
    """
    mode = precision.mode(noise, masks)

    def own(x: Any) -> Any:  # a forward may change what it is given: a cache
        if not isinstance(x, Tensor):
            return copy.deepcopy(x)
        x = x.detach().clone()
        return mode.tensor(x) if mode else x

    given = [call_arguments(tree_map(own, example)) for _ in range(max(calls, 1 + aside))]
    left = Aside([*model.parameters(), *model.buffers(), *tensors_of(given)])
    results: list[Tensor] = []
    with ExitStack() as stack:
        apart = stack.enter_context(undisturbed(model))
        on_gpu = any(t.is_cuda for t in model.parameters()) and not (mode and mode.device)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        if on_gpu:
            stack.enter_context(full_precision())
        apart.writes.drawing.seed(seed)
        if mode:
            stack.enter_context(in_mode(mode))
        if watching:
            stack.enter_context(in_mode(watching))
        if aside:
            stack.enter_context(in_mode(left))
        for i, (args, kwargs) in enumerate(given):
            out = model(*args, **kwargs)
            found = [*results_of(model, out, numbers=True)]  # a generator runs its code now
            results += map(_plain, found if i < calls else ())
            if aside and not i:
                left.keep([*found, *taken_back(model, out)])
    return [*results, *map(_plain, left.results())]


def _plain(result: Tensor) -> Tensor:
    """Return a copy that compares: of any layout, or quantized, it is its numbers."""
    result = result.detach()
    if result.is_quantized:
        return result.dequantize()
    return result.to_dense() if result.layout != torch.strided else result.clone()


def blind(outputs: Sequence[Sequence[Tensor]]) -> str:
    """Say why outputs, those of each input, could not show any difference; nothing if they could.

    >>> blind([[torch.zeros(0, 4)], [torch.zeros(0, 4)]]), blind([[torch.ones(2)], [torch.ones(3)]])
    ('empty', 'all the same number')
    >>> blind([[torch.tensor([1.0, 2.0])]])
    ''
    """
    whys = list(_silent(outputs))
    if not all(whys):
        return ""
    return "all the same number" if "all the same number" in whys else "empty"


def partly_blind(outputs: Sequence[Sequence[Tensor]]) -> str:
    """Say which of several outputs could not show a difference, where others could.

    >>> partly_blind([[torch.tensor([1.0, 2.0]), torch.zeros(0, 4)]])
    'output 2 of 2 was empty'
    """
    whys = list(_silent(outputs))
    found = [f"output {i + 1} of {len(whys)} was {why}" for i, why in enumerate(whys) if why]
    return ", ".join(found) if len(found) < len(whys) else ""


def _silent(outputs: Sequence[Sequence[Tensor]]) -> Iterator[str]:
    """Yield for each output why it says nothing on any input, or nothing if it does."""
    for parts in zip_longest(*outputs, fillvalue=torch.empty(0)):
        numbers = [part.flatten() for part in parts if part.numel() and not part.is_meta]
        first = numbers[0][0] if numbers else torch.empty(())
        if any(part.is_meta for part in parts) or any(
            bool(each.ne(first).any()) for each in numbers
        ):
            yield ""
        else:
            yield "all the same number" if numbers else "empty"


def said(error: BaseException | None) -> str:
    """Return an error's type and its first line.

    >>> said(ValueError("too long\\nsee below"))
    'ValueError: too long'
    """
    lines = str(error).strip().splitlines()
    first = " ".join(lines[0].split())[:120] if lines else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
