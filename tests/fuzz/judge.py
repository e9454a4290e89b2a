"""The judge: is the smaller model the masked one?  Answered without the library's own answers.

The library completes masks, decides what goes with what, and compares the two models itself; none
of that is trusted here.  A masked model is made from the dense and the smaller one alone: no two
weights of one tensor are equal, so a weight that is found in the smaller model's tensor of that
name stays, and one that is not is set to zero.  Which rows, columns or groups these are does not
matter, nor how the library came to them.

Three masked models may be told apart, and the smaller one must equal those that it claims to equal:

- ``kept``: by the weights that are left, as above;
- ``said``: by ``result.masks``, which is what a user sees;
- ``given``: by the masks that the program was given from outside, and nothing else.

They run in float64 beside the smaller model, on the example and again (state), then on inputs of
other sizes, each of which the dense model must accept.
"""

from __future__ import annotations

import copy
import re
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError

from .compare import brief, compare, kept, masked, size, trials
from .draw import Draw
from .further import FURTHER
from .program import Program
from .surroundings import Surroundings
from .ways import WAYS, Cut, Masks

EXACT = 1e-8
FOLDED = 1e-5
"""Constants are folded into float32 biases."""
PATIENCE = 60  # seconds for one program

KINDS = {
    "exact": "equal everywhere",
    "inexact": "not equal, and the result says so",
    "nothing": "no group could be cut, or the masks freed none",
    "refused": "a SecateurError",
}
"""What may come of a program."""
DEFECTS = {
    "silent": "another function than the masked model's, and the result says exact",
    "given": "another function than that of the masks given, and the result does not say so",
    "masks": "``result.masks`` are not what was removed",
    "size": "fails on an input that the dense model accepts",
    "raw": "an error of torch's or Python's",
    "dense": "the dense model was changed",
    "training": "cannot be trained, though the dense one can",
    "files": "what was saved and loaded is another model",
    "hang": "took longer than it may",
}
"""What must not come of one."""


@dataclass(frozen=True)
class Outcome:
    """What came of a program; ``left`` is the share of the parameters that is left."""

    kind: str
    detail: str = ""
    left: float = 1.0

    @property
    def defect(self) -> bool:
        return self.kind in DEFECTS


class Hang(BaseException):
    """No Exception, so that nobody handles it."""


def judge(program: Program) -> Outcome:
    """Build a program, prune it, and say what came of it."""
    around = Surroundings(program)
    dense = around.model(program)
    example = around.inputs(program)
    with torch.no_grad():
        copy.deepcopy(dense)(*example)  # a program that does not run is our own mistake
    subject = around.subject(dense, example)
    before = picture(subject)
    try:
        with at_most(PATIENCE), warnings.catch_warnings(), around.context():
            warnings.simplefilter("ignore")
            cut = WAYS[program.way](Draw(f"way {program.seed}"), subject, example)
    except SecateurError as error:
        kind = "nothing" if type(error).__name__ == "NoMatchError" else "refused"
        return changed(subject, before) or Outcome(kind, f"{type(error).__name__}: {brief(error)}")
    except Hang:
        return Outcome("hang", f"more than {PATIENCE} s")
    except Exception as error:
        return Outcome("raw", where(error))
    outcome = weigh(program, around, cut.dense or dense, cut)
    return outcome if outcome.defect else changed(subject, before) or outcome


def weigh(program: Program, around: Surroundings, dense: nn.Module, cut: Cut) -> Outcome:
    """Compare what was cut with all that it claims to equal."""
    small, said = cut.result.model, " ".join(str(cut.result).split())
    left = size(small) / size(dense)
    given = list(trials(program))
    folded = bool(cut.result.folded)
    gaps = {
        name: compare(masked(dense, masks), small, given, stored=folded)
        for name, masks in claims(dense, cut, around.exact).items()
    }
    worst = {n: gap for n, gap in gaps.items() if not gap.amount <= (FOLDED if folded else EXACT)}
    failed = next((gap for gap in worst.values() if gap.failed), None)
    if failed:
        return Outcome("size", failed.where, left)
    if inexact(said):
        return Outcome("inexact", "", left)
    if set(worst) == {"said"} != set(gaps):
        return Outcome("masks", str(worst["said"]), left)
    if worst and set(worst) != {"kept"}:  # what divides is not masked: only the masks say so
        name, gap = max(worst.items(), key=lambda item: item[1].amount)
        if name == "given" and "it is masked too" in said:  # a constant that nothing can take over
            return Outcome("inexact", "", left)
        return Outcome("given" if name == "given" else "silent", str(gap), left)
    for kind, check in FURTHER.items():
        if failure := check(program, around, dense, cut):
            return Outcome(kind, failure, left)
    return Outcome("exact" if left < 1 else "nothing", "", left)


def claims(dense: nn.Module, cut: Cut, told_apart: bool) -> dict[str, Masks]:
    """Return the masks of each model that the smaller one claims to equal.

    ``told_apart`` says that the weights of a tensor differ, so that each is found by its value.
    """
    found: dict[str, Masks] = {}
    if cut.given is not None:
        found["given"] = cut.given
    elif told_apart:
        found["kept"] = kept(dense, cut.result.model)
    if not cut.result.folded:
        found["said"] = {name: mask.cpu() for name, mask in cut.result.masks.items()}
    return found


def inexact(said: str) -> bool:
    """Tell whether a result says that the smaller model computes another thing than was asked."""
    measured = re.findall(r"differ by (\S+) relative from those of the masks given", said)
    doubtful = "inexact" in said or "as far as roundings allow to see" in said
    return doubtful or any(float(n) > FOLDED for n in measured)


def where(error: BaseException) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    file = place.filename.rsplit("/", 1)[-1]
    return f"{type(error).__name__} at {file}:{place.name}: {brief(error)}"


def picture(model: nn.Module) -> dict[str, Any]:
    """Return all that a model holds: tensors as copies, the rest as text."""
    held: dict[str, Any] = {n: t.clone() for n, t in model.state_dict().items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and not callable(value):
                held[f"{path}.{name}"] = repr(value)
    return held


def changed(subject: nn.Module, before: dict[str, Any]) -> Outcome | None:
    """Say what of the dense model is not as it was, if anything."""
    after = picture(subject)
    for name in {**before, **after}:
        if name not in before or name not in after:
            return Outcome("dense", f"{name} came or went")
        old, new = before[name], after[name]
        if not (torch.equal(old, new) if isinstance(old, Tensor) else old == new):
            return Outcome("dense", f"{name} changed")
    return None


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
